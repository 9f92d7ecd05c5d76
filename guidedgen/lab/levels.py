"""The noise levels that the lab's generator was trained on, at times between the trained ones too."""

from __future__ import annotations

import torch
from torch import Tensor


class Levels:
    """The generator's noise levels, x_t = alpha x_0 + sigma eps, at any time t between its first and its last."""

    def __init__(self, alpha_bar: Tensor) -> None:
        self._log_snr = (alpha_bar / (1 - alpha_bar)).log()  # falling

    def half_log_snr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma) (b) at times (b), interpolated."""
        low = t.long().clamp(max=len(self._log_snr) - 2)
        return torch.lerp(self._log_snr[low], self._log_snr[low + 1], t - low) / 2

    def time(self, half_log_snr: Tensor) -> Tensor:
        """The inverse."""
        falling = self._log_snr / 2
        above = torch.searchsorted(-falling, -half_log_snr).clamp(1, len(falling) - 1)
        share = (falling[above - 1] - half_log_snr) / (falling[above - 1] - falling[above])
        return above - 1 + share.clamp(0, 1)

    @staticmethod
    def scales(half_log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma (b 1 1 1)."""
        log_snr = 2 * half_log_snr[:, None, None, None]
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
