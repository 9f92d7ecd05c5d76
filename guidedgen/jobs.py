"""From config to a checked job: what a run is made of, built before any network is loaded."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from guidedgen import config, evaluate, images
from guidedgen.metrics.sets import SetMetric
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process.grid import Grid
from guidedgen.store import RunFolder, check_writable
from guidedgen.tracker import Tracker
from guidedgen.types import BadValue, Method, Reward, Sample, Scheduler, Task, UsageError

_COUNTS = ("seed", "samples_per_prompt", "batch_size")


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
    scorers: Mapping[str, Reward]  # the reward first, where there is one
    distances: Mapping[str, SetMetric]
    tracker: Tracker | None
    base: Job | None  # the unguided run it is measured against
    reference: Path | None  # a folder of images it is measured against instead

    @property
    def name(self) -> str:
        """The run folder's name."""
        return self.folder.path.name


def prepare(cfg: DictConfig) -> Job:
    """Builds and checks a run. Raises UsageError for whatever is wrong with it; loads no network."""
    cfg = _settled(cfg)
    check_writable(Path(cfg.outputs) / cfg.study, "outputs")
    return _prepare(cfg)


def _settled(cfg: DictConfig) -> DictConfig:
    """A resolved copy in which device and dtype are real ones and the plain numbers are checked."""
    cfg = copy.deepcopy(cfg)
    for key in _COUNTS:
        if not isinstance(cfg[key], int) or isinstance(cfg[key], bool):
            raise UsageError(f"{key}={cfg[key]}: expected a whole number")
        if cfg[key] < (0 if key == "seed" else 1):
            raise UsageError(f"{key}={cfg[key]}: must be at least {0 if key == 'seed' else 1}")
    for key in ("fresh", "profile"):
        if not isinstance(cfg.run[key], bool):
            raise UsageError(f"run.{key}={cfg.run[key]}: expected true or false")
    if not str(cfg.study) or "/" in str(cfg.study) or str(cfg.study).startswith("."):
        raise UsageError(f"study={cfg.study}: expected a plain folder name")
    cfg.device = _device(str(cfg.device))
    if cfg.dtype == "auto":
        cfg.dtype = "float32" if cfg.device == "cpu" else "float16"
    try:
        OmegaConf.resolve(cfg)
        missing = sorted(OmegaConf.missing_keys(cfg))
    except Exception as error:  # OmegaConf's many errors
        raise UsageError(str(error)) from error
    if missing:
        raise UsageError(f"{missing[0]}: missing; give it as {missing[0]}=...")
    return cfg


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        have = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"device={name}: not on this machine; choose from auto, {', '.join(have)}") from error
    return str(device)


def _prepare(cfg: DictConfig, model: StableDiffusion | None = None) -> Job:
    """The job, on a model that another job has built where one is given: its networks are then loaded once."""
    allow = tuple(cfg.allow_targets)
    method = config.build(cfg.method, "method", allow)
    scheduler = config.build(cfg.scheduler, "scheduler", allow)
    tasks = _with_source(_tasks(cfg, allow), method)
    _check_combination(cfg, method, scheduler, tasks)
    model = config.build(cfg.model, "model", allow) if model is None else model
    try:
        grid = scheduler.grid(model.schedule)
    except BadValue as error:
        raise UsageError(f"scheduler.{error.name}={error.value}: {error.rule}") from error
    model.check(tasks)
    reward = _reward(cfg, method, tasks, allow)
    run_id = _identity(cfg, guided=method.needs.reward)
    base, reference = _reference(cfg, model)
    return Job(
        cfg=cfg,
        run_id=run_id,
        folder=RunFolder(Path(cfg.outputs) / cfg.study / _name(cfg, run_id, guided=method.needs.reward)),
        model=model,
        method=method,
        reward=reward,
        scheduler=scheduler,
        grid=grid,
        samples=[Sample(task=task, seed=cfg.seed + i) for task in tasks for i in range(cfg.samples_per_prompt)],
        scorers={
            **({module_of(cfg.reward): reward, **getattr(reward, "reports", {})} if cfg.reward else {}),
            **_each(cfg.metrics.scorers, "metrics.scorers", allow),
        },
        distances=_each(cfg.metrics.distances, "metrics.distances", allow),
        tracker=config.build(cfg.tracker, "tracker", allow) if cfg.tracker else None,
        base=base,
        reference=reference,
    )


def _each(nodes: DictConfig, key: str, allow: Sequence[str]) -> dict[str, Any]:
    return {name: config.build(nodes[name], f"{key}.{name}", allow) for name in map(str, nodes)}


def _reference(cfg: DictConfig, model: StableDiffusion) -> tuple[Job | None, Path | None]:
    """What a run is measured against: the unguided job, or a folder. The unguided run itself has no base."""
    if cfg.reference == "none" or (cfg.reference == "base" and module_of(cfg.method) == "base"):
        return None, None
    if cfg.reference == "base":
        return _prepare(_unguided(cfg), model), None
    evaluate.check_reference(Path(cfg.reference))
    return None, Path(cfg.reference)


def _name(cfg: DictConfig, run_id: str, *, guided: bool) -> str:
    """The run folder's name."""
    guided_by = module_of(cfg.reward) if guided else "none"
    return "-".join([module_of(cfg.method), guided_by, module_of(cfg.dataset), cfg.model.name, run_id])


def module_of(node: DictConfig) -> str:
    """The file a target lives in: one method, reward or dataset, one file."""
    return str(node["_target_"]).split(".")[-2]


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
        images.read(Path(source).expanduser())
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's errors for broken files
        raise UsageError(f"method.source_image={source}: cannot be read as an image ({error})") from error
    return [dataclasses.replace(task, reference=str(Path(source).expanduser().absolute())) for task in tasks]


def _check_combination(cfg: DictConfig, method: Method, scheduler: Scheduler, tasks: Sequence[Task]) -> None:
    name = module_of(cfg.method)
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
    if method.needs.gradient and not reward.differentiable:
        raise UsageError(
            f"reward={module_of(cfg.reward)} has no gradient and method={module_of(cfg.method)} needs one; try method=code, "
            "method=codex with method.zero_order_samples=10, or another reward"
        )
    return reward


def _identity(cfg: DictConfig, *, guided: bool) -> str:
    """What is sampled; an unguided method samples the same whatever the reward it is then judged by."""
    kept = cfg.copy()
    if not guided:
        kept.reward = None
    return config.identity(kept)


def _unguided(cfg: DictConfig) -> DictConfig:
    base = cfg.copy()
    base.method = OmegaConf.create({"_target_": "guidedgen.methods.base.Base"})
    base.tracker = None
    return base
