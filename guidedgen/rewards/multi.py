"""Several rewards at once, as a weighted sum."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multi:
    """sum of weight * reward over the rewards by name; each of them is reported too, unweighted.

    The CoDeX thesis' R1 + gamma R2 (appendix A.4; maurya-goyal10/CoDe_ext, BoN/src_sd/scorers/multi_reward.py) has weights 1 and
    gamma. A reward of weight 0 is not computed; config leaves it out before it is built. Raises BadValue for a weight without a
    reward or a reward without a weight, for weights that are not finite, and where all are 0.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise BadValue(f"weights.{name}", weight, "must be finite")
            if weight and name not in self.rewards:
                close = difflib.get_close_matches(name, self.rewards, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise BadValue(f"weights.{name}", weight, f"there is no reward of this name{hint}")
        if unweighted := [name for name in self.rewards if name not in self.weights]:
            raise BadValue(f"rewards.{unweighted[0]}", "...", f"has no weight; give it one as weights.{unweighted[0]}")
        if not any(self.weights.values()):
            raise BadValue("weights", dict(self.weights), "all are 0; there is nothing to optimise")

    @property
    def _parts(self) -> dict[str, Reward]:
        """The rewards that count."""
        return {name: reward for name, reward in self.rewards.items() if self.weights[name]}

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the pixels through every part."""
        return all(part.differentiable for part in self._parts.values())

    @property
    def needs_original(self) -> bool:
        """Whether a part compares with the tasks' originals."""
        return any(getattr(part, "needs_original", False) for part in self._parts.values())

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide, each once."""
        names = (name for part in self._parts.values() for name in getattr(part, "networks", ()))
        return tuple(dict.fromkeys(names))

    @property
    def reports(self) -> Mapping[str, Reward]:
        """The parts and what they report."""
        further = (getattr(part, "reports", {}) for part in self._parts.values())
        return {**self._parts, **{name: scorer for reports in further for name, scorer in reports.items()}}

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a part cannot score these tasks."""
        for part in self._parts.values():
            if hasattr(part, "check"):
                part.check(tasks)

    def check_lessons(self, names: Sequence[str]) -> None:
        """Raises BadValue where a part cannot score the lessons of these names."""
        for name, part in self._parts.items():
            if hasattr(part, "check_lessons"):
                try:
                    part.check_lessons(names)
                except BadValue as error:
                    raise BadValue(f"rewards.{name}.{error.name}", error.value, error.rule) from error

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b."""
        first, *others = (self.weights[name] * part(images, tasks) for name, part in self._parts.items())
        return sum(others, start=first)
