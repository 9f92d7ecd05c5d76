"""From config to a checked job: what a run is made of, built before any network is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from guidedgen import config, evaluate, options
from guidedgen.datasets.references import read_reference
from guidedgen.datasets.tasks import check_text
from guidedgen.metrics.classes import PerClass
from guidedgen.metrics.sets import SetMetric
from guidedgen.models import tuning
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process.grid import Grid
from guidedgen.shards import Shard, find_shard
from guidedgen.store import RunFolder, check_writable
from guidedgen.tracker import Tracker
from guidedgen.types import BadValue, Learner, Method, Reward, Sample, Scheduler, Task, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A checked run: everything is built, and no network is loaded yet."""

    cfg: DictConfig  # resolved, with the device and dtype that `auto` stood for
    run_id: str
    folder: RunFolder
    model: StableDiffusion
    method: Method
    reward: Reward | None
    scheduler: Scheduler
    grid: Grid
    samples: Sequence[Sample]
    shard: Shard  # of the batches that this process samples
    scorers: Mapping[str, Reward]  # the reward first, where there is one
    distances: Mapping[str, SetMetric]
    per_class: PerClass | None  # the distance of each task's pictures to real ones
    tracker: Tracker | None
    base: Job | None  # the unguided run it is measured against
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


def prepare(cfg: DictConfig) -> Job:
    """Builds and checks a run. Raises UsageError for whatever is wrong with it; loads no network."""
    shard = find_shard(*_shard(cfg), os.environ)
    if shard.count > 1 and options.value(cfg, "run.fresh"):
        raise UsageError("run.fresh=true: not where others write too (shard.count above 1); remove the run's folder first")
    cfg = options.settled(cfg, shard)
    for name in map(str, cfg.zoo):  # of which a run uses a few: a slip in another would go unseen
        if cfg.zoo[name] is not None:
            config.check_node(cfg.zoo[name], f"zoo.{name}", tuple(cfg.allow_targets))
    job = _prepare(cfg, shard)
    try:
        check_writable(job.folder.path.parent, "outputs")
    except UsageError:
        if cfg.run.fresh or not job.folder.done:  # a finished run is shown, wherever it lies
            raise
    return job


def place(cfg: DictConfig) -> Path:
    """The folder that the run will write to. No more is built than its name depends on; its device may be another machine's.

    Raises UsageError where that much is wrong with it.
    """
    cfg = options.settled(cfg, Shard(), elsewhere=True)
    allow = tuple(cfg.allow_targets)
    method = config.build(cfg.method, "method", allow)
    reward = config.build(config.without_weightless(cfg.reward), "reward", allow) if cfg.reward else None
    run_id = _identity(cfg, guided=method.needs.reward, blurs=_blurs(cfg, method, reward, {}))
    return _folder(cfg, run_id, guided=method.needs.reward)


def _shard(cfg: DictConfig) -> tuple[int | str, int | str]:
    """Options of older runs' configs, which have none, are those of a whole run."""
    if not cfg.get("shard"):
        return 1, 0
    return options.value(cfg, "shard.count"), options.value(cfg, "shard.index")


def _prepare(cfg: DictConfig, shard: Shard, model: StableDiffusion | None = None) -> Job:
    """The job, on a model that another job has built where one is given: its networks are then loaded once."""
    allow = tuple(cfg.allow_targets)
    method = config.build(cfg.method, "method", allow)
    scheduler = config.build(cfg.scheduler, "scheduler", allow)
    tasks = _with_source(_tasks(cfg, allow), method)
    _check_combination(cfg, method, scheduler, tasks)
    model = config.build(cfg.model, "model", allow) if model is None else model
    try:
        if negative := cfg.model.get("negative_prompt"):
            check_text("negative_prompt", negative)
    except BadValue as error:
        raise UsageError(f"model.{error.name}={error.value}: {error.rule}") from error
    try:
        grid = scheduler.grid(model.schedule)
    except BadValue as error:
        raise UsageError(f"scheduler.{error.name}={error.value}: {error.rule}") from error
    if method.needs.noisy_end and not grid[-1].sigma:
        raise UsageError(
            f"method={config.module_of(cfg.method)}: with these options it ends where noise is left: scheduler.end=first"
        )
    _check_memory(method, model)
    lessons, originals = _lessons(cfg, shard, method, model)
    everything = [*tasks, *(lesson.task for lesson in lessons)]
    model.check(everything, method.tuning.num_vectors if isinstance(method, Learner) and method.tuning.what == "token" else 0)
    reward = _reward(cfg, method, everything, allow)
    scorers = {
        **({config.module_of(cfg.reward): reward, **getattr(reward, "reports", {})} if cfg.reward else {}),
        **_each(cfg.metrics.scorers, "metrics.scorers", allow),
    }
    blurs = _blurs(cfg, method, reward, scorers)
    run_id = _identity(cfg, guided=method.needs.reward, blurs=blurs)
    base, reference = _reference(cfg, shard, model)
    return Job(
        cfg=cfg,
        run_id=run_id,
        folder=RunFolder(_folder(cfg, run_id, guided=method.needs.reward), shard.part),
        model=model,
        method=method,
        reward=reward,
        scheduler=scheduler,
        grid=grid,
        samples=_samples(tasks, cfg.seed, cfg.samples_per_prompt, "samples_per_prompt"),
        scorers=scorers,
        distances=_each(cfg.metrics.distances, "metrics.distances", allow),
        per_class=_per_class(cfg, tasks, allow),
        tracker=config.build(cfg.tracker, "tracker", allow) if cfg.tracker else None,
        base=base,
        reference=reference,
        blurs=blurs,
        lessons=lessons,
        originals=originals,
        shard=shard,
    )


def _lessons(cfg: DictConfig, shard: Shard, method: Method, model: StableDiffusion) -> tuple[Sequence[Sample], Job | None]:
    """What a method learns on, and the unguided run that draws its originals; nothing where it does not learn."""
    if not isinstance(method, Learner):
        return (), None
    tuning.check(method.tuning, model)
    lessons, node = method.lessons, _unguided(cfg)
    template = config.escaped(lessons.target)
    node.dataset = {"_target_": "guidedgen.datasets.templated.Templated", "prompts": cfg.method.prompts, "template": template}
    node.samples_per_prompt, node.seed = lessons.noises_per_prompt, lessons.seed
    node.reward, node.reference, node.metrics = None, "none", {"scorers": {}, "distances": {}}
    originals = _prepare(node, shard, model)
    try:
        tasks = lessons.prompts.tasks()
    except BadValue as error:
        raise UsageError(f"method.prompts.{error.name}={error.value}: {error.rule}") from error
    return _samples(tasks, lessons.seed, lessons.noises_per_prompt, "method.noises_per_prompt"), originals


def _samples(tasks: Sequence[Task], seed: int, count: int, key: str) -> Sequence[Sample]:
    """`count` samples of each task, the first of this seed. Raises UsageError where they would fill the memory."""
    if len(tasks) * count > options.SAMPLES:
        raise UsageError(f"{key}={count}: {len(tasks)} prompts make {len(tasks) * count} samples; {options.SAMPLES} are the most")
    return [Sample(task=task, seed=seed + i) for task in tasks for i in range(count)]


def _check_memory(method: Method, model: StableDiffusion) -> None:
    """Raises UsageError where the latents of one sample's particles alone would not fit into this machine's memory."""
    particles = getattr(method, "num_particles", 1)
    most = max(particles) if isinstance(particles, Sequence) else particles
    needed, there = 4 * most * math.prod(model.latent_shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UsageError(
            f"method.num_particles={particles}: their latents take {needed >> 30} GiB; this machine has {there >> 30} GiB of memory"
        )


def _each(nodes: DictConfig, key: str, allow: Sequence[str]) -> dict[str, Any]:
    """What the nodes describe, by name; null is none."""
    names = [name for name in map(str, nodes) if nodes[name] is not None]
    for name in names:
        if not (isinstance(nodes[name], DictConfig) and "_target_" in nodes[name]):
            raise UsageError(f"{key}.{name}={nodes[name]}: expected a node with _target_, or null for none")
    return {name: config.build(nodes[name], f"{key}.{name}", allow) for name in names}


def _per_class(cfg: DictConfig, tasks: Sequence[Task], allow: Sequence[str]) -> PerClass | None:
    """What measures class by class, where the metrics have it; the unguided run has nothing to be measured against."""
    node = cfg.metrics.get("per_class")
    if node is None:
        return None
    config.check_node(node, "metrics.per_class", allow)
    if config.module_of(cfg.method) == "base":
        return None
    way_out = "; metrics.per_class=null does without"
    if cfg.reference != "base":
        raise UsageError(
            f"reference={cfg.reference}: metrics.per_class gives the change against the unguided run: base is needed{way_out}"
        )
    if cfg.samples_per_prompt < 2:
        raise UsageError(f"samples_per_prompt={cfg.samples_per_prompt}: metrics.per_class needs 2 pictures of each prompt{way_out}")
    measure: PerClass = config.build(node, "metrics.per_class", allow)
    measure.pictures.check(tasks)
    return measure


def _reference(cfg: DictConfig, shard: Shard, model: StableDiffusion) -> tuple[Job | None, Path | None]:
    """What a run is measured against: the unguided job, or a folder. The unguided run itself has no base."""
    if cfg.reference == "none" or (cfg.reference == "base" and config.module_of(cfg.method) == "base"):
        return None, None
    if cfg.reference == "base":
        return _prepare(_unguided(cfg), shard, model), None
    return None, evaluate.check_reference(Path(cfg.reference))


def _folder(cfg: DictConfig, run_id: str, *, guided: bool) -> Path:
    """The run's folder."""
    guided_by = config.module_of(cfg.reward) if guided else "none"
    name = "-".join([config.module_of(cfg.method), guided_by, config.module_of(cfg.dataset), cfg.model.name, run_id])
    return Path(cfg.outputs) / cfg.study / name


def _tasks(cfg: DictConfig, allow: Sequence[str]) -> Sequence[Task]:
    try:
        return config.build(cfg.dataset, "dataset", allow).tasks()
    except BadValue as error:
        raise UsageError(f"dataset.{error.name}={error.value}: {error.rule}") from error


def _with_source(tasks: Sequence[Task], method: Method) -> Sequence[Task]:
    """The tasks, with the picture that the method starts from as their reference where it names one."""
    source = getattr(method, "source_image", None)
    if source is None:
        return tasks
    try:
        picture = read_reference("source_image", source)
    except BadValue as error:
        raise UsageError(f"method.source_image={source}: {error.rule}") from error
    return [dataclasses.replace(task, reference=picture.path) for task in tasks]


def _check_combination(cfg: DictConfig, method: Method, scheduler: Scheduler, tasks: Sequence[Task]) -> None:
    name = config.module_of(cfg.method)
    if method.needs.reward and not cfg.reward:
        raise UsageError(f"method={name} needs a reward: choose one, as in reward=aesthetic")
    if method.needs.sampler == "stochastic" and not scheduler.stochastic:
        raise UsageError(f"method={name} needs a stochastic scheduler: scheduler=ddpm, or scheduler=ddim scheduler.eta=1")
    if method.needs.sampler == "deterministic" and scheduler.stochastic:
        raise UsageError(f"method={name} needs a deterministic scheduler: scheduler=ddim scheduler.eta=0")
    if method.needs.reference == "required" and not all(task.noise_ratio for task in tasks):
        raise UsageError(
            f"method={name} starts from reference images: give them with dataset=image_to_image, at a dataset.noise_ratio below 1"
        )


def _reward(cfg: DictConfig, method: Method, tasks: Sequence[Task], allow: Sequence[str]) -> Any:
    if not cfg.reward:
        return None
    reward = config.build(config.without_weightless(cfg.reward), "reward", allow)
    if hasattr(reward, "check"):
        reward.check(tasks)
    if getattr(reward, "needs_original", False) and cfg.reference != "base" and method.needs.gradient:
        raise UsageError(f"reward={config.module_of(cfg.reward)} compares with the unguided pictures: it needs reference=base")
    if method.needs.gradient and not reward.differentiable:
        raise UsageError(
            f"reward={config.module_of(cfg.reward)} has no gradient and method={config.module_of(cfg.method)} needs one; "
            "try method=code, method=codex with method.zero_order_samples=10, or another reward"
        )
    return reward


def _blurs(cfg: DictConfig, method: Method, reward: Any, scorers: Mapping[str, Reward]) -> bool:
    """Whether a filter of the reward's decides what is stored blurred. Raises UsageError where it cannot, or must not."""
    reports = getattr(reward, "reports", {}).values()
    if cfg.run.get("show_flagged", False) or not any(getattr(scorer, "flags", False) for scorer in reports):
        return False
    way_out = "; run.show_flagged=true stores all pictures as they are"
    if method.needs.reward and cfg.reference != "base":
        raise UsageError(f"reference={cfg.reference}: what a filter flags unguided is stored blurred: base is needed{way_out}")
    for name, scorer in scorers.items():
        if getattr(scorer, "needs_original", False):
            raise UsageError(f"{name} compares with the unguided pictures, some of which are stored blurred{way_out}")
    return True


def _identity(cfg: DictConfig, *, guided: bool, blurs: bool = False) -> str:
    """What is sampled and stored; an unguided method samples the same whatever the reward it is then judged by, but what its
    filter flags is stored blurred: that is another run.
    """
    kept = cfg.copy()
    if not guided and not blurs:
        kept.reward = None
    if blurs:
        OmegaConf.update(kept, "blurred", True, force_add=True)
    return config.identity(kept)


def _unguided(cfg: DictConfig) -> DictConfig:
    base = cfg.copy()
    base.method = OmegaConf.create({"_target_": "guidedgen.methods.base.Base"})
    base.tracker = None
    return base
