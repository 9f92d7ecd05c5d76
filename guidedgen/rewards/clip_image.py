"""How alike an image and its reference are to an ensemble of CLIPs: what DOODL personalises by."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.distance import Distance, likeness
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.style import References
from guidedgen.zoo import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipImage:
    """Mean over CLIPs, by weight, of minus the spherical distance (see `likeness`) of image and reference, or of their cosine.

    DOODL (arXiv:2303.13703), 5.4: ViT-B/32, ViT-L/14 and ViT-g/14 weigh 0.5, 0.25 and 0.25. Asked for all three, the released code
    (salesforce/DOODL, doodl.py, lines 232-237) loads the first alone. It also takes several references and compares with their mean
    embedding; here a task has one. A CLIP of weight 0 is not used; each of the others is reported by its cosine. Raises BadValue
    for a weight without a CLIP or a CLIP without a weight, for weights below 0 or not finite, and where all are 0; UsageError where
    the `image` that is one for all cannot be read.
    """

    clips: Mapping[str, Clip]
    weights: Mapping[str, float]  # by the CLIPs' names in `clips`
    image: str | None = None
    distance: Distance = "spherical"

    differentiable = True

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise BadValue(f"weights.{name}", weight, "must be finite and not below 0")
            if weight and name not in self.clips:
                raise BadValue(f"weights.{name}", weight, f"there is no CLIP of this name; choose from {', '.join(self.clips)}")
        if unweighted := [name for name in self.clips if name not in self.weights]:
            raise BadValue(f"clips.{unweighted[0]}", "...", f"has no weight; give it one as weights.{unweighted[0]}")
        if not any(self.weights.values()):
            raise BadValue("weights", dict(self.weights), "all are 0; no CLIP is left to ask")
        self._references  # noqa: B018  reads the image

    @property
    def files(self) -> tuple[str, ...]:
        """The image that is one for all, where there is one."""
        return () if self.image is None else (self.image,)

    @property
    def _parts(self) -> dict[str, Clip]:
        """The CLIPs that count."""
        return {name: clip for name, clip in self.clips.items() if self.weights[name]}

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide, each once."""
        return tuple(dict.fromkeys(clip.name for clip in self._parts.values()))

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """The cosine of each CLIP, unless that is the reward itself."""
        if len(self._parts) == 1 and self.distance == "cosine":
            return {}
        return {
            f"clip_image_{name}": ClipImage(clips={name: clip}, weights={name: 1}, image=self.image, distance="cosine")
            for name, clip in self._parts.items()
        }

    @functools.cached_property
    def _references(self) -> dict[str, References]:
        return {
            name: References(reward="clip_image", image=self.image, embed=clip.encode_image) for name, clip in self._parts.items()
        }

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a task has no readable reference."""
        next(iter(self._references.values())).check(tasks)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, from -pi^2/2 to 0 or in [-1, 1]."""
        check_inputs(images, tasks, "clip_image")
        first, *others = (self.weights[name] * self._likeness(name, images, tasks) for name in self._parts)
        return sum(others, start=first) / sum(self.weights[name] for name in self._parts)

    def _likeness(self, name: str, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        return likeness(self.clips[name].encode_image(images), self._references[name](tasks), self.distance)
