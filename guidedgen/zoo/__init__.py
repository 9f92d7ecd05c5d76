"""Reward and metric networks, and where weights are found.

A constructor locates its weights, and raises `UsageError` where they are missing; they are loaded at first use. Networks are
frozen, in fp32 and in evaluation mode; two instances of the same weights on the same device share one network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.basics.images import Detection


class Clip(Protocol):
    """A CLIP. `name` identifies it, so that a report can mark a metric that shares its network with the guidance."""

    name: str

    def encode_image(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d of unit length, differentiable."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """-> b d of unit length."""


class Features(Protocol):
    """An image feature network for distances between sets."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d."""


class Matcher(Protocol):
    """Scores how well a text describes an image (BLIP-2's Q-Former)."""

    name: str

    def __call__(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1], one text each -> losses, b each, differentiable: of matching, -log p(match), and of captioning, the
        label-smoothed cross-entropy per token.
        """


class Vqa(Protocol):
    """Answers yes/no questions about images."""

    name: str
    differentiable: bool  # whether gradients reach the pixels

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """b 3 H W in [0, 1], one question each -> b, log-odds of yes against no: sigmoid of it is P(yes) / (P(yes) + P(no))."""


class Detector(Protocol):
    """Finds things in pictures."""

    name: str

    def __call__(self, images: Tensor, labels: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """b 3 H W in [0, 1] and what is looked for in each -> what is found in each, the most confident first; None for a picture
        that it has no detections for.
        """


class DepthEstimator(Protocol):
    """Tells how near things are in pictures."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b H W, from 0 to 1 in each picture, larger where nearer."""
