"""From config to a checked job: what a run is made of, built before any network is loaded."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.datasets.references import read_reference
from guidedgen.datasets.tasks import check_text
from guidedgen.methods import Learner, Method
from guidedgen.metrics.classes import PerClass
from guidedgen.metrics.sets import SetMetric
from guidedgen.models import tuning
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process import Scheduler
from guidedgen.process.grid import Grid
from guidedgen.rewards import Reward
from guidedgen.runs import config, contents, evaluate, older, options
from guidedgen.runs.shards import Shard, find_shard
from guidedgen.runs.store import RunFailed, RunFolder, check_writable
from guidedgen.runs.tracker import Tracker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A checked run: everything is built, and no network is loaded yet."""

    cfg: DictConfig  # resolved, with the device and dtype that `auto` stood for
    run_id: str
    contents: contents.Parts  # of the files that it is made of
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
    """Builds and checks a run. Raises UsageError for whatever is wrong with it; loads no network.

    Inside `config.sharing` it is the same job for all configs that differ in no more than a valid seed.
    """
    shard = find_shard(options.value(cfg, "shard.count"), options.value(cfg, "shard.index"), os.environ)
    if shard.count > 1 and options.value(cfg, "run.fresh"):
        raise UsageError("run.fresh=true: not where others write too (shard.count above 1); remove the run's folder first")
    cfg = options.settled(cfg, shard)

    def checked() -> Job:
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

    return config.once(checked, lambda: ("job", shard, config.spelled({**_plain(cfg), "seed": None})))


def place(cfg: DictConfig) -> Path:
    """The folder that the run will write to. No more is built than its name depends on; its device may be another machine's.

    Raises UsageError where that much is wrong with it.
    """
    (folder,) = places(cfg, [{}])
    return folder


def places(cfg: DictConfig, alternatives: Iterable[Mapping[str, Any]]) -> Iterator[Path]:
    """The folder of each run that differs from a config by the values of some dotted keys, which nothing in it may refer to.

    Inside `config.sharing` what they have in common is built once. Raises UsageError as `place` does.
    """
    cfg = options.settled(cfg, Shard(), elsewhere=True)
    plain = _plain(cfg)
    for values in alternatives:
        yield _place(cfg, functools.reduce(_with, values.items(), plain), values)


def _place(cfg: DictConfig, plain: Mapping[str, Any], values: Mapping[str, Any]) -> Path:
    """The folder of a settled config with other values, which `plain` holds with all the rest."""
    allow = tuple(plain["allow_targets"])

    def node(name: str) -> Any:
        changed = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        found = copy.deepcopy(cfg[name]) if changed else cfg[name]
        for key, value in changed.items():
            OmegaConf.update(found, key, value)
        return found

    def made(name: str, make: Callable[[Any], Any]) -> Any:
        return config.once(lambda: make(node(name)), lambda: ("made", name, allow, config.spelled(plain[name])))

    method = made("method", lambda node: config.build(node, "method", allow))
    reward = made("reward", lambda node: config.build(config.without_weightless(node), "reward", allow) if node else None)
    parts = _contents(
        plain,
        tasks=made("dataset", lambda node: _tasks(node, allow)),
        method=method,
        model=made("model", lambda node: config.build(node, "model", allow)),
        scheduler=made("scheduler", lambda node: config.build(node, "scheduler", allow)),
        reward=reward,
    )
    run_id = _identity(plain, parts, guided=method.needs.reward, blurs=_blurs(plain, method, reward, {}))
    return _folder(plain, run_id, guided=method.needs.reward)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _with(plain: Mapping[str, Any], item: tuple[str, Any]) -> dict[str, Any]:
    """The mapping with another value at a dotted key; what it shares with the first is not changed."""
    key, value = item
    first, _, rest = key.partition(".")
    return {**plain, first: _with(plain[first], (rest, value)) if rest else value}


def _prepare(cfg: DictConfig, shard: Shard, model: StableDiffusion | None = None) -> Job:
    """The job, on a model that another job has built where one is given: its networks are then loaded once."""
    allow = tuple(cfg.allow_targets)
    method = config.build(cfg.method, "method", allow)
    scheduler = config.build(cfg.scheduler, "scheduler", allow)
    own = _tasks(cfg.dataset, allow)
    tasks = _with_source(own, method)
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
    parts = _contents(_plain(cfg), tasks=own, method=method, model=model, scheduler=scheduler, reward=reward)
    run_id = _identity(_plain(cfg), parts, guided=method.needs.reward, blurs=blurs)
    base, reference = _reference(cfg, shard, model)
    return Job(
        cfg=cfg,
        run_id=run_id,
        contents=_deciding(parts, guided=method.needs.reward, blurs=blurs),
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
    return _samples(_lesson_tasks(method), lessons.seed, lessons.noises_per_prompt, "method.noises_per_prompt"), originals


def _lesson_tasks(method: Learner) -> Sequence[Task]:
    try:
        return method.lessons.prompts.tasks()
    except BadValue as error:
        raise UsageError(f"method.prompts.{error.name}={error.value}: {error.rule}") from error


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
    folder = config.once(lambda: evaluate.check_reference(Path(cfg.reference)), lambda: ("reference", cfg.reference))
    return None, folder


def _folder(cfg: Mapping[str, Any] | DictConfig, run_id: str, *, guided: bool) -> Path:
    """The run's folder."""
    guided_by = config.module_of(cfg["reward"]) if guided else "none"
    made_by = [config.module_of(cfg["method"]), guided_by, config.module_of(cfg["dataset"])]
    return Path(cfg["outputs"]) / cfg["study"] / "-".join([*made_by, cfg["model"]["name"], run_id])


def _tasks(node: DictConfig, allow: Sequence[str]) -> Sequence[Task]:
    try:
        dataset = config.build(node, "dataset", allow)
        return config.once(lambda: list(dataset.tasks()), lambda: ("tasks", tuple(allow), config.spelled(node)))
    except BadValue as error:
        raise UsageError(f"dataset.{error.name}={error.value}: {error.rule}") from error


def _with_source(tasks: Sequence[Task], method: Method) -> Sequence[Task]:
    """The tasks, with the picture that the method starts from as their reference where it names one."""
    picture = _source(method)
    return tasks if picture is None else [dataclasses.replace(task, reference=picture) for task in tasks]


def _source(method: Method) -> str | None:
    """The file of the picture that the method starts from, where it names one."""
    source = getattr(method, "source_image", None)
    if source is None:
        return None
    try:
        return read_reference("source_image", source).path
    except BadValue as error:
        raise UsageError(f"method.source_image={source}: {error.rule}") from error


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


def _blurs(cfg: Mapping[str, Any] | DictConfig, method: Method, reward: Any, scorers: Mapping[str, Reward]) -> bool:
    """Whether a filter of the reward's decides what is stored blurred. Raises UsageError where it cannot, or must not."""
    reports = getattr(reward, "reports", {}).values()
    if cfg["run"]["show_flagged"] or not any(getattr(scorer, "flags", False) for scorer in reports):
        return False
    way_out = "; run.show_flagged=true stores all pictures as they are"
    if method.needs.reward and cfg["reference"] != "base":
        raise UsageError(f"reference={cfg['reference']}: what a filter flags unguided is stored blurred: base is needed{way_out}")
    for name, scorer in scorers.items():
        if getattr(scorer, "needs_original", False):
            raise UsageError(f"{name} compares with the unguided pictures, some of which are stored blurred{way_out}")
    return True


def _identity(cfg: Mapping[str, Any], parts: contents.Parts, *, guided: bool, blurs: bool = False) -> str:
    """What is sampled and stored, and of what contents; an unguided method samples the same whatever the reward it is then judged
    by, but what its filter flags is stored blurred: that is another run.
    """
    kept = {**cfg, "reward": cfg["reward"] if guided or blurs else None, **({"blurred": True} if blurs else {})}
    return config.identity(kept, _deciding(parts, guided=guided, blurs=blurs))


def _deciding(parts: contents.Parts, *, guided: bool, blurs: bool) -> contents.Parts:
    """Those of the contents that a run is made of."""
    return {part: digests for part, digests in parts.items() if part != "reward" or guided or blurs}


def _contents(
    cfg: Mapping[str, Any] | DictConfig, *, tasks: Sequence[Task], method: Method, model: Any, scheduler: Scheduler, reward: Any
) -> contents.Parts:
    """The digests of what a run's parts read, of those that read anything. `tasks` are the data set's."""
    allow = tuple(cfg["allow_targets"])

    def once(part: str, digests: Callable[[], contents.Digests]) -> contents.Digests:
        return config.once(digests, lambda: ("contents", part, allow, config.spelled(cfg[part])))

    found = {
        "dataset": once("dataset", lambda: {"tasks": contents.of_tasks(tasks)}),
        "model": once("model", lambda: contents.of(model, packages=allow)),
        "scheduler": once("scheduler", lambda: contents.of(scheduler, packages=allow)),
        "method": once("method", lambda: _of_method(method, allow)),
        "reward": once("reward", lambda: contents.of(reward, packages=allow)),
    }
    return {part: digests for part, digests in found.items() if digests}


def _of_method(method: Method, allow: Sequence[str]) -> contents.Digests:
    """The digests of what a method reads, with the picture that it starts from and the prompts that it learns on."""
    found = contents.of(method, packages=allow)
    if picture := _source(method):
        found["source_image"] = contents.sha256(Path(picture))
    if isinstance(method, Learner):
        found["lessons"] = contents.of_tasks(_lesson_tasks(method))
    return found


def check_unchanged(job: Job) -> None:
    """Raises RunFailed where a file that a job reads as it goes does not hold any more what the run is named by. What was read
    when the job was prepared, as its prompts, may be edited for the next one.
    """
    tasks = list({sample.task.id: sample.task for sample in job.samples}.values())
    now = _contents(job.cfg, tasks=tasks, method=job.method, model=job.model, scheduler=job.scheduler, reward=job.reward)
    for part, digests in job.contents.items():
        if part == "dataset" and _source(job.method):  # whose picture stands in for the tasks' own
            continue
        held = now.get(part, {})
        if changed := [name for name in digests if name != "lessons" and held.get(name, digests[name]) != digests[name]]:
            told = f"{part} ({changed[0]}) was changed while the run was at work"
            raise RunFailed(f"{job.folder.path}: {told}; the same command makes the run of what it holds now")


def stored_unguided(folder: Path, cfg: DictConfig, parts: contents.Parts | None) -> list[Path]:
    """Where the unguided run of a stored run may lie beside it, made of the same contents: as one that blurs nothing, and as one
    that does. `parts` are the contents that the run has recorded, None of runs that recorded none.
    """
    cfg = _unguided(cfg)
    found = []
    for blurs in (False, True):
        if parts is None:
            kept = cfg.copy()
            kept.reward = cfg.reward if blurs else None
            if blurs:
                OmegaConf.update(kept, "blurred", True, force_add=True)
            run_id = older.run_id(config.deciding(kept))
        else:
            shared = {part: digests for part, digests in parts.items() if part != "method"}
            run_id = _identity(_plain(cfg), shared, guided=False, blurs=blurs)
        found.append(folder.parent / _folder(cfg, run_id, guided=False).name)
    return found


def _unguided(cfg: DictConfig) -> DictConfig:
    base = cfg.copy()
    base.method = OmegaConf.create({"_target_": "guidedgen.methods.base.Base"})
    base.tracker = None
    return base
