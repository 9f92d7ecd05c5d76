"""What text encoders have read in prompts, kept on the host, so that the encoders need not stay on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

_Reading = TypeVar("_Reading")


class Prompts(Generic[_Reading]):
    """What was read in prompts, of at most so many: 1000 are 4 GB of FLUX, 2.7 GB of Stable Diffusion 3 and 0.3 GB of XL, in half
    precision. Prompts that are announced are read ahead, so many at once, and the encoders are needed no more in between.

    `live` is a model whose text encoders are being changed: nothing is kept of it.
    """

    def __init__(self, most: int = 1000) -> None:
        self.most, self.live = most, False
        self.negative: _Reading | None = None  # what was read in the negative prompt, which is the same for all
        self._kept: dict[str, _Reading] = {}
        self._coming: Sequence[str] = ()

    def announce(self, prompts: Iterable[str]) -> None:
        """Says which prompts will be asked for, in this order; none: it is not known."""
        self._coming = list(dict.fromkeys(prompts))

    @property
    def announced(self) -> bool:
        """Whether it is known what will be asked for."""
        return bool(self._coming)

    def first_missing(self) -> Sequence[str]:
        """The first prompt that is announced and not kept, or nothing."""
        return [prompt for prompt in self._coming if prompt not in self._kept][:1]

    def missing(self, prompts: Sequence[str]) -> Sequence[str]:
        """What has to be read before these can be had: nothing where all are kept, and else those that are not, and as many of
        those that are announced after them as there is room for. Others are forgotten where they leave too little.
        """
        wanted = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if not wanted:
            return []
        last = max((i for i, prompt in enumerate(self._coming) if prompt in wanted), default=len(self._coming))
        ahead = [prompt for prompt in self._coming[last + 1 :] if prompt not in self._kept]
        group = [*wanted, *ahead[: max(0, self.most - len(set(prompts)))]]
        if len(self._kept) + len(group) > self.most:
            self._kept = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        return group

    def keep(self, prompt: str, reading: _Reading) -> None:
        """What was read in a prompt."""
        self._kept[prompt] = reading

    def forget(self) -> None:
        """All of them."""
        self._kept, self.negative = {}, None

    def __getitem__(self, prompt: str) -> _Reading:
        return self._kept[prompt]
