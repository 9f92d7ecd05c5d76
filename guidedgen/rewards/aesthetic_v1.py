"""How pleasing an image is to several aesthetic predictors: DOODL's pair of LAION's first heads."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.aesthetic import Aesthetic, check_target, towards


@dataclasses.dataclass(frozen=True, kw_only=True)
class AestheticV1:
    """Mean of the predictors' scores by weight; with a `target`, minus its distance to that, as of `Aesthetic`.

    salesforce/DOODL, doodl.py, aesthetic_loss_fn: linear heads over OpenAI's ViT-L/14 and ViT-B/32, in its demonstration with
    weights 0.5 and 1.5 (in this order by the code, in the other by its comment). It divides the weighted sum by the number of
    heads, not by their weights' sum: the same for weights that sum to that number, as those and its default of 1 each do.
    Predictors' own targets are not read. Raises BadValue where predictors and weights differ by name, and for weights that are not
    finite and above 0.
    """

    predictors: Mapping[str, Aesthetic]
    weights: Mapping[str, float]  # by the predictors' names
    target: float | None = None

    differentiable = True

    def __post_init__(self) -> None:
        if unpaired := sorted(self.predictors.keys() ^ self.weights.keys()):
            lacking = "weight" if unpaired[0] in self.predictors else "predictor"
            raise BadValue("weights", dict(self.weights), f"there is no {lacking} for {unpaired[0]}")
        if not self.weights:
            raise BadValue("predictors", "{}", "at least one is needed")
        for name, weight in self.weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise BadValue(f"weights.{name}", weight, "must be finite and above 0")
        check_target(self.target)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide, each once."""
        return tuple(dict.fromkeys(name for part in self._parts.values() for name in part.networks))

    @functools.cached_property
    def _parts(self) -> dict[str, Aesthetic]:
        return {name: dataclasses.replace(part, target=None) for name, part in self.predictors.items()}

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """Each predictor's score, and their mean where its distance to a target guides."""
        mean = {} if self.target is None else {"aesthetic_score": dataclasses.replace(self, target=None)}
        return {**mean, **{f"aesthetic_{name}": part for name, part in self._parts.items()}}

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b, about 1 to 10; with a target at most 0."""
        first, *others = (self.weights[name] * part(images, tasks) for name, part in self._parts.items())
        return towards(self.target, sum(others, start=first) / sum(self.weights.values()))
