"""How small an image is as a JPEG file."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.basics.images import check, to_pil
from guidedgen.basics.tasks import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compressibility:
    """Minus the size in kB (1000 bytes) of the 8-bit image as JPEG, chroma halved both ways (4:2:0, Pillow's default).

    After jpeg_compressibility in kvablack/ddpo-pytorch, ddpo_pytorch/rewards.py. Sizes vary by a percent or so with libjpeg.
    """

    quality: int = 95

    differentiable = False

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise UsageError(f"reward.quality={self.quality}: must be from 1 to 100")

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide: none."""
        return ()

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b, negative kB; NaN for an image that holds a NaN."""
        check(images, "compressibility")
        images = images.detach()
        sizes = [self._size(picture) for picture in to_pil(images.nan_to_num(0))]
        rewards = torch.tensor(sizes, dtype=torch.float32, device=images.device) / -1000
        return rewards.masked_fill(images.isnan().flatten(1).any(1), float("nan"))

    def _size(self, picture: Image.Image) -> int:
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell()
