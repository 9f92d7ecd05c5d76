"""How well a text describes the image, by BLIP-2: the losses that "Referee Can Play" optimises images by."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from guidedgen.basics.errors import BadValue, check_amounts
from guidedgen.basics.tasks import Task
from guidedgen.basics.templates import check_template, fill
from guidedgen.rewards import Reward
from guidedgen.rewards.inputs import check_inputs
from guidedgen.zoo import Matcher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blip2:
    """-(matching_weight L_itm + caption_weight L_cg) of the image and `template`, in which {prompt} stands for the prompt.

    "Referee Can Play" (arXiv:2402.16305), section 3 and appendix A.2: both weights are 1, and the contrastive loss is left out. Its
    released code (Pepper-lll/VLMinv, blip2_sds.py) gives BLIP-2 the bare prompt and "A photo exactly contains " and the prompt to
    the diffusion model. Raises BadValue for a weight that is negative or not finite, where both are 0, and for other words in
    braces.
    """

    matcher: Matcher
    template: str = "{prompt}"
    matching_weight: float = 1.0
    caption_weight: float = 1.0

    differentiable = True

    def __post_init__(self) -> None:
        check_template("template", self.template)
        check_amounts(self, "matching_weight", "caption_weight")
        if not self.matching_weight + self.caption_weight:
            raise BadValue("caption_weight", self.caption_weight, "both weights are 0; there is nothing to optimise")

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.matcher.name,)

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """The probability of a match, and minus the captioning loss."""
        return {f"blip2_{part}": _Part(reward=self, part=part) for part in ("match", "caption")}

    def losses(self, images: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1] and b tasks -> losses of matching and of captioning, b each."""
        check_inputs(images, tasks, "blip2")
        return self.matcher(images, [fill(self.template, task.prompt) for task in tasks])

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, at most 0."""
        matching, caption = self.losses(images, tasks)
        return -(self.matching_weight * matching + self.caption_weight * caption)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """One of the two, by itself: exp(-L_itm), which is a probability, or -L_cg."""

    reward: Blip2
    part: Literal["match", "caption"]

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        return self.reward.networks

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        matching, caption = self.reward.losses(images, tasks)
        return (-matching).exp() if self.part == "match" else -caption
