"""Which pictures are stored blurred: those that a content filter flags, or that it flags unguided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.methods import Method
from guidedgen.rewards import Reward
from guidedgen.runs.job import Job


def applies(cfg: Mapping[str, Any] | DictConfig, method: Method, reward: Any, scorers: Mapping[str, Reward]) -> bool:
    """Whether the reward's filter decides what is stored blurred. Raises UsageError where it cannot, or must not."""
    reports = getattr(reward, "reports", {}).values()
    if cfg["run"]["show_flagged"] or not any(getattr(scorer, "flags", False) for scorer in reports):
        return False
    hint = "; run.show_flagged=true stores all pictures as they are"
    if method.needs.reward and cfg["reference"] != "base":
        raise UsageError(f"reference={cfg['reference']}: what a filter flags unguided is stored blurred: base is needed{hint}")
    for name, scorer in scorers.items():
        if getattr(scorer, "needs_original", False):
            raise UsageError(f"{name} compares with the unguided pictures, some of which are stored blurred{hint}")
    return True


def flagged_unguided(job: Job) -> set[str]:
    """Names of the samples whose pictures the unguided run has stored blurred, where this one blurs any."""
    if not job.blurs or job.base is None:
        return set()
    return {name for name, record in job.base.folder.records().items() if record.blurred}


def blurred(image: Tensor) -> Tensor:
    """3 H H, reduced to the means of 8 x 8 parts."""
    return images.resize(images.resize(image[None], 8), image.shape[-1])[0]
