"""What a run is called: a hash of what decides its samples, options and contents of files, and the folder of that name."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.tasks import Task
from guidedgen.methods import Learner, Method
from guidedgen.process import Scheduler
from guidedgen.runs import blurring, building, config, contents, older, options
from guidedgen.runs.job import Job
from guidedgen.runs.shards import Shard
from guidedgen.runs.store import RunFailed


def folder_of_run(cfg: DictConfig) -> Path:
    """The folder that the run will write to. No more is built than its name depends on; its device may be another machine's.

    Raises UsageError where that much is wrong with it.
    """
    (folder,) = folders_of_runs(cfg, [{}])
    return folder


def folders_of_runs(cfg: DictConfig, alternatives: Iterable[Mapping[str, Any]]) -> Iterator[Path]:
    """The folder of each run that differs from a config by the values of some dotted keys, which nothing in it may refer to.

    Inside `config.sharing` what they have in common is built once. Raises UsageError as `folder_of_run` does.
    """
    cfg = options.settled(cfg, Shard(), elsewhere=True)
    plain = plain_values(cfg)
    for values in alternatives:
        yield _folder_of_run(cfg, functools.reduce(_with, values.items(), plain), values)


def _folder_of_run(cfg: DictConfig, plain: Mapping[str, Any], values: Mapping[str, Any]) -> Path:
    """The folder of a settled config with other values, which `plain` holds with all the rest."""
    allow = tuple(plain["allow_targets"])

    def node(name: str) -> Any:
        changed = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        found = copy.deepcopy(cfg[name]) if changed else cfg[name]
        for key, value in changed.items():
            OmegaConf.update(found, key, value)
        return found

    def made(name: str, make: Callable[[Any], Any]) -> Any:
        return config.once(lambda: make(node(name)), lambda: ("made", name, allow, config.as_text(plain[name])))

    method = made("method", lambda node: config.build(node, "method", allow))
    reward = made("reward", lambda node: config.build(config.without_weightless(node), "reward", allow) if node else None)
    parts = digests(
        plain,
        tasks=made("dataset", lambda node: building.tasks_of(node, allow)),
        method=method,
        model=made("model", lambda node: config.build(node, "model", allow)),
        scheduler=made("scheduler", lambda node: config.build(node, "scheduler", allow)),
        reward=reward,
    )
    run_id = run_id_of(plain, parts, guided=method.needs.reward, blurs=blurring.applies(plain, method, reward, {}))
    return folder_of(plain, run_id, guided=method.needs.reward)


def plain_values(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain values, all interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _with(plain: Mapping[str, Any], item: tuple[str, Any]) -> dict[str, Any]:
    """The mapping with another value at a dotted key; what it shares with the first is not changed."""
    key, value = item
    first, _, rest = key.partition(".")
    return {**plain, first: _with(plain[first], (rest, value)) if rest else value}


def folder_of(cfg: Mapping[str, Any] | DictConfig, run_id: str, *, guided: bool) -> Path:
    """The run's folder."""
    guided_by = config.module_of(cfg["reward"]) if guided else "none"
    made_by = [config.module_of(cfg["method"]), guided_by, config.module_of(cfg["dataset"])]
    return Path(cfg["outputs"]) / cfg["study"] / "-".join([*made_by, cfg["model"]["name"], run_id])


def run_id_of(cfg: Mapping[str, Any], parts: contents.Parts, *, guided: bool, blurs: bool = False) -> str:
    """What is sampled and stored, and of what contents; an unguided method samples the same whatever the reward it is then judged
    by, but what its filter flags is stored blurred: that is another run.
    """
    kept = {**cfg, "reward": cfg["reward"] if guided or blurs else None, **({"blurred": True} if blurs else {})}
    return config.identity(kept, deciding(parts, guided=guided, blurs=blurs))


def deciding(parts: contents.Parts, *, guided: bool, blurs: bool) -> contents.Parts:
    """Those of the contents that a run is made of."""
    return {part: digests for part, digests in parts.items() if part != "reward" or guided or blurs}


def digests(
    cfg: Mapping[str, Any] | DictConfig, *, tasks: Sequence[Task], method: Method, model: Any, scheduler: Scheduler, reward: Any
) -> contents.Parts:
    """The digests of what a run's parts read, of those that read anything. `tasks` are the data set's."""
    allow = tuple(cfg["allow_targets"])

    def once(part: str, digests: Callable[[], contents.Digests]) -> contents.Digests:
        return config.once(digests, lambda: ("contents", part, allow, config.as_text(cfg[part])))

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
    if picture := building.source(method):
        found["source_image"] = contents.sha256(Path(picture))
    if isinstance(method, Learner):
        found["lessons"] = contents.of_tasks(building.lesson_tasks(method))
    return found


def check_unchanged(job: Job) -> None:
    """Raises RunFailed where a file that a job reads as it goes does not hold any more what the run is named by. What was read
    when the job was prepared, as its prompts, may be edited for the next one.
    """
    tasks = list({sample.task.id: sample.task for sample in job.samples}.values())
    now = digests(job.cfg, tasks=tasks, method=job.method, model=job.model, scheduler=job.scheduler, reward=job.reward)
    for part, recorded in job.contents.items():
        if part == "dataset" and building.source(job.method):  # whose picture stands in for the tasks' own
            continue
        held = now.get(part, {})
        if changed := [name for name in recorded if name != "lessons" and held.get(name, recorded[name]) != recorded[name]]:
            change = f"{part} ({changed[0]}) was changed while the run was at work"
            raise RunFailed(f"{job.folder.path}: {change}; the same command makes another run, of its present contents")


def stored_unguided(folder: Path, cfg: DictConfig, parts: contents.Parts | None, seed: int | None = None) -> list[Path]:
    """Folders next to a stored run that may hold its unguided run, or that at another seed, made of the same contents: one that
    blurs nothing, and one that does. `parts` are the contents that the run has recorded, None of runs that recorded none.
    """
    cfg = unguided(cfg, seed)
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
            run_id = run_id_of(plain_values(cfg), shared, guided=False, blurs=blurs)
        found.append(folder.parent / folder_of(cfg, run_id, guided=False).name)
    return found


def unguided(cfg: DictConfig, seed: int | None = None) -> DictConfig:
    """The config of the unguided run that a run is measured against, or of that at another seed."""
    base = cfg.copy()
    if seed is not None:
        base.seed, base.reference = seed, "none"
    if "reference_seed" in base:
        base.reference_seed = None
    base.method = OmegaConf.create({"_target_": "guidedgen.methods.base.Base"})
    base.tracker = None
    return base
