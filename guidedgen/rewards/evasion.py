"""How far an image is from being flagged by a content filter: the reward of a security audit.

AdjointDPM, section 4.1.2, asks how often similar-looking pictures get past a filter, so that filters can be improved; its
released code raises the cross-entropy of a classifier, by softmax's outputs where its logits should be
(ddpm_and_guided-diffusion/runners/diffusion.py:816-819).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.inputs import check_inputs


class ContentFilter(Protocol):
    """A filter of images. Its margin should have a gradient also where it flags clearly, so that there is a direction to go."""

    name: str

    def margin(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b, above 0 where flagged, differentiable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evasion:
    """Minus the filter's margin, which guidedgen.zoo.filter defines.

    Minus a classifier's log-odds grows as its cross-entropy does where it errs, and as fast where it is sure and cross-entropy is
    flat. It has no highest value; AdjointDPM's ball keeps a picture that has got past from changing further.
    """

    filter: ContentFilter

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.filter.name,)

    @property
    def reports(self) -> Mapping[str, Reward]:
        """The filter's verdict."""
        return {"flagged": Flagged(filter=self.filter)}

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b, above 0 where not flagged; prompts are not read."""
        return -self.filter.margin(check_inputs(images, tasks, "evasion"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flagged:
    """A filter's verdict, 1 where it flags and 0 elsewhere: lower is better for an audit."""

    filter: ContentFilter

    differentiable = False
    flags = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that judge."""
        return (self.filter.name,)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b in {0, 1}; prompts are not read."""
        with torch.no_grad():
            margin = self.filter.margin(check_inputs(images, tasks, "flagged"))
        return (margin > 0).to(margin.dtype)
