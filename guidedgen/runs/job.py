"""A checked run, of which everything is built and no network is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from guidedgen.basics.tasks import Sample
from guidedgen.methods import Method
from guidedgen.metrics.classes import PerClass
from guidedgen.metrics.sets import PerPrompt, SetMetric
from guidedgen.models.latent import LatentModel
from guidedgen.process import Scheduler
from guidedgen.process.grid import Grid
from guidedgen.rewards import Reward
from guidedgen.runs import config, contents
from guidedgen.runs.shards import Shard
from guidedgen.runs.store import RunFolder
from guidedgen.runs.tracker import Tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A checked run: everything is built, and no network is loaded yet."""

    cfg: DictConfig  # resolved, with the device and dtype that `auto` stood for
    run_id: str
    contents: contents.Parts  # of the files that it is made of
    folder: RunFolder
    model: LatentModel
    method: Method
    reward: Reward | None
    scheduler: Scheduler
    grid: Grid
    samples: Sequence[Sample]
    shard: Shard  # of the batches that this process samples
    scorers: Mapping[str, Reward]  # the reward first, where there is one
    distances: Mapping[str, SetMetric | PerPrompt]
    per_class: PerClass | None  # the distance of each task's pictures to real ones
    tracker: Tracker | None
    base: Job | None  # the unguided run it is measured against
    apart: Job | None  # the unguided run at other seeds that its distances are measured to instead
    reference: Path | None  # a folder of images it is measured against instead
    blurs: bool = False  # pictures that the reward's filter flags are stored blurred
    lessons: Sequence[Sample] = ()  # what the method learns on, where it does
    originals: Job | None = None  # the unguided run that draws their originals

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.folder.path.name

    @property
    def method_name(self) -> str:
        """The method's file."""
        return config.module_of(self.cfg.method)

    @property
    def reward_name(self) -> str | None:
        """The reward's file, which is what its scores are called."""
        return config.module_of(self.cfg.reward) if self.cfg.reward else None

    @property
    def verdicts(self) -> set[str]:
        """Names of the scorers whose scores are a filter's verdicts."""
        return {name for name, scorer in self.scorers.items() if getattr(scorer, "flags", False)}
