"""Judges a stored run again, from its images: by the metrics it was judged by, or by others that are chosen now."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.runs import composition, config, contents, evaluate, judging, sampling
from guidedgen.runs.identity import stored_unguided
from guidedgen.runs.job import Job
from guidedgen.runs.preparation import prepare
from guidedgen.runs.store import RunFolder

# What of a stored run's config may change when it is judged again: groups, and keys. All else has made its pictures.
_GROUPS = ("metrics", "reward", "zoo")
_KEYS = ("reference", "reference_seed", "batch_size", "device", "zoo_dtype", "allow_targets")


def judge_again(folder: Path, overrides: Sequence[str] = (), config_dir: Path | None = None) -> Mapping[str, Any]:
    """Judges a stored run again from its images, with `metrics=...` or any of its keys changed; rewrites metrics.json.

    `config_dir` is a folder with options in addition to the project's, as Hydra's --config-dir.
    Raises UsageError where an override is wrong, and where the folder or that of its unguided run is damaged.
    """
    if folder.is_symlink():
        raise UsageError(f"{folder}: a link, and nothing is written where it leads; give the run's own folder")
    RunFolder(folder).check_plain(deep=True)
    cfg = config.read_whole(folder / "config.yaml")
    cfg.outputs, cfg.study = str(folder.absolute().parent.parent), folder.absolute().parent.name
    try:
        job = dataclasses.replace(_prepared(changed(cfg, overrides, config_dir), RunFolder(folder)), folder=RunFolder(folder))
    except UsageError as error:
        if overrides:  # which may be what is wrong
            raise
        raise UsageError(f"{folder / 'config.yaml'}: {error}") from error
    job = _as_made(job, cfg, chosen={item.key_or_group.split(".")[0] for item in composition.parse(overrides)})
    _check_stored(job)
    if not _left(job):  # the process that would have been the last may have died
        sampling.close(job.base)
        sampling.close(job.apart)
        sampling.merge(job)
        job.folder.finish()
    return judging.judge(job)


def _prepared(cfg: DictConfig, folder: RunFolder) -> Job:
    """The job of a stored config. If its data set is no longer there, its tasks are the recorded ones, without references."""
    try:
        return prepare(cfg)
    except UsageError as error:
        tasks = {task.id: task for task in _recorded_tasks(folder).values()}
        if not str(error).startswith("dataset.path=") or not tasks:
            raise
        try:
            return prepare(cfg, list(tasks.values()))
        except UsageError:
            raise error from None


def _recorded_tasks(folder: RunFolder) -> dict[str, Task]:
    """The task of every recorded sample, by the sample's name."""
    records = folder.records()
    return {name: Task(id=record.task, prompt=record.prompt, category=record.category) for name, record in records.items()}


def _as_made(job: Job, cfg: DictConfig, chosen: Collection[str]) -> Job:
    """The job of a stored run, whose config is given, with the samples that were made, measured against the unguided run of the
    same contents. Prints a note where files have changed since, or where that is unknown, except for a newly `chosen` reward.
    """
    parts = contents.recorded(job.folder.read_json("environment.json"))
    if parts is None:
        _warn(job, "what its files held when it was made is not recorded; it is judged by what they hold now")
    elif differ := contents.changed(*({p: d for p, d in of.items() if p not in chosen} for of in (parts, job.contents))):
        _warn(job, f"changed since it was made: {', '.join(differ)}; its pictures stay, and are judged by what is there now")
    samples = _samples(job, parts)
    base, apart = job.base, job.apart
    if base is not None:
        base = dataclasses.replace(base, folder=_unguided_folder(job, cfg, parts), samples=samples)
    if apart is not None:
        seed = int(apart.cfg.seed)
        others = [dataclasses.replace(sample, seed=sample.seed - job.cfg.seed + seed) for sample in samples]
        apart = dataclasses.replace(apart, folder=_unguided_folder(job, cfg, parts, seed), samples=others)
    return dataclasses.replace(job, samples=samples, base=base, apart=apart)


def _unguided_folder(job: Job, cfg: DictConfig, parts: contents.Parts | None, seed: int | None = None) -> RunFolder:
    """The folder of the unguided run of a stored one, or of that at another seed, whether it is there or not."""
    candidates = stored_unguided(job.folder.path.absolute(), cfg, parts, seed)
    # Another reward may be chosen, that blurs nothing.
    likely = sorted(candidates, key=lambda path: path != candidates[job.blurs])
    return RunFolder(next((path for path in likely if (path / "config.yaml").exists()), likely[0]))


def _samples(job: Job, parts: contents.Parts | None) -> Sequence[Sample]:
    """The job's samples; the recorded ones if its prompts have changed since, or may have."""
    known = {sample.name: sample for sample in job.samples}
    records = job.folder.records()
    if records.keys() <= known.keys() if parts is None else parts.get("dataset") == job.contents.get("dataset"):
        return job.samples
    tasks = _recorded_tasks(job.folder)
    return [known.get(name) or Sample(task=tasks[name], seed=record.seed) for name, record in records.items()]


def _left(job: Job) -> int:
    """How many samples are neither finished nor failed, by the job or by what was recorded when it was made."""
    wanted = job.folder.read_json("environment.json").get("samples")
    return max(sampling.left(job), wanted - len(job.folder.tried()) if isinstance(wanted, int) else 0)


def _warn(job: Job, note: str) -> None:
    print(f"guidedgen: {job.folder.path}: {note}", file=sys.stderr)


def _check_stored(job: Job) -> None:
    """Raises UsageError where a picture that is to be judged is missing or damaged, or all of the unguided run's are. Prints a note
    where records are missing or damaged: those samples are not judged, and the run may not be finished.
    """
    runs = [(job, "its own command")]
    without = {"reference=none": job.base, "reference_seed=null": job.apart}
    for hint, unguided in without.items():
        if unguided is None:
            continue
        if not (unguided.folder.path / "config.yaml").exists():
            raise UsageError(
                f"{job.folder.path}: its unguided run {unguided.name} is not in the same folder; {hint} judges without"
            )
        unguided.folder.check_plain(deep=True)
        runs.append((unguided, "the same with method=base" if unguided is job.base else "its own command"))
    for run, command in runs:
        evaluate.check_stored(run.folder, f"; where it is damaged remove it: {command} makes it anew")
        left, damaged_lines = _left(run), run.folder.damaged_lines
        if left or damaged_lines:
            damage = f" (damaged lines of records.jsonl: {damaged_lines})" if damaged_lines else ""
            missing = f"{left} of {max(left, len(run.samples))} samples missing{damage}"
            _warn(run, f"{missing}, and not judged; {command} makes what is missing")


def changed(cfg: DictConfig, overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """A stored config with what it is judged by replaced: by options, as Hydra composes them, and then by single values.

    Raises UsageError for an unknown option or key, and for one that does not concern the judging.
    """
    cfg, items = cfg.copy(), composition.parse(overrides)
    for item in items:
        _check_concern(item, cfg)
        if item.key_or_group == "device":
            _unpin(cfg, "device", cfg.device, "device")
        elif item.key_or_group == "zoo_dtype":
            for part in (cfg.zoo, cfg.metrics, cfg.reward):
                _unpin(part, "dtype", cfg.zoo_dtype, "zoo_dtype")
    choices = {item.key_or_group: config.shown(item.value()) for item in items if item.key_or_group in _GROUPS}
    of_zoo = [item.input_line for item in items if item.key_or_group.split(".")[0] == "zoo"]
    if of_zoo and not choices.keys() & {"metrics", "reward"}:
        raise UsageError(
            f"{of_zoo[0]}: stored metrics have their networks; choose some that take them from the zoo, as metrics=lab"
        )
    if choices or config_dir:
        chosen = composition.checked_options([f"{group}={option}" for group, option in choices.items()], config_dir)
        cfg.update({group: chosen[group] for group in choices})
    for item in items:
        if item.key_or_group not in _GROUPS:
            _change(cfg, item)
    for key in ("metrics.scorers", "metrics.distances"):
        if not isinstance(found := OmegaConf.select(cfg, key), DictConfig):
            raise UsageError(f"{key}={config.shown(found)}: expected a mapping, as {key}={{}}; ~{key}.NAME leaves one out")
    if not isinstance(cfg.allow_targets, ListConfig):
        raise UsageError(f"allow_targets={config.shown(cfg.allow_targets)}: expected a list, as in allow_targets=[my_lab.]")
    return cfg


def _check_concern(item: Any, cfg: DictConfig) -> None:
    """Raises UsageError where an override, as Hydra reads it, does not concern the judging, or has another form."""
    key, given, free = item.key_or_group, item.input_line, (*_GROUPS, *_KEYS)
    root, choices = key.split(".")[0], f"; when judging choose from {', '.join(free)}"
    if item.package is not None or root not in free:
        if item.package is None and root in cfg:
            raise UsageError(f"{given}: {root} has made the pictures, which stay{choices}")
        raise UsageError(f"{given}: there is no key {item.get_key_element()!r}{config.near(root, free)}{choices}")
    if item.is_sweep_override():
        raise UsageError(f"{given}: several values; give one, or quotes if it is one text")
    if key in free and (item.is_delete() or item.is_add() or item.is_force_add()):
        raise UsageError(f"{given}: {key} is always there; give it as {key}=...")
    if item.is_delete() and item.value() is not None:
        raise UsageError(f"{given}: takes no value; give it as ~{key}")
    if key == "reference" and not isinstance(item.value(), str):
        raise UsageError(f"{given}: expected base, none or a folder")


def _change(cfg: DictConfig, item: Any) -> None:
    """Sets, adds (+) or leaves out (~) one key of a config; a mapping replaces the one that is there."""
    key, (above, _, name) = item.key_or_group, item.key_or_group.rpartition(".")
    root, parent = key.split(".")[0], OmegaConf.select(cfg, above) if above else cfg
    mapping, adds = isinstance(parent, DictConfig), item.is_add() or item.is_force_add()
    there = mapping and name in parent
    # What a constructor takes may be missing in its node: names are checked where that is built.
    if not there and (not mapping or item.is_delete() or above == "metrics" or not (adds or "_target_" in parent)):
        near = config.near(key, composition.keys(cfg[root], f"{root}.") if isinstance(cfg[root], DictConfig) else ())
        hint = f"; choose from {', '.join(map(str, parent))}" if mapping and parent else ""
        raise UsageError(f"{item.input_line}: there is no key {key!r}{near}{hint}")
    if there and item.is_add():
        raise UsageError(f"{item.input_line}: there is one already; {key}=... changes it")
    if item.is_delete():
        del parent[name]
    else:
        OmegaConf.update(cfg, key, item.value(), merge=False, force_add=True)


def _unpin(node: Any, name: str, stored: str, option: str) -> None:
    """Lets all keys of this name that hold the run's value, below the top of its config, follow an option."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node[key]
        if key == name and child == stored and node._get_parent() is not None:
            node[key] = f"${{{option}}}"
        elif OmegaConf.is_config(child):
            _unpin(child, name, stored, option)
