"""Metrics of a sampled job, computed from the images it has stored."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig

from guidedgen.runs import config, contents, evaluate, learning, report, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFailed, RunFolder


def judge(job: Job) -> dict[str, Any]:
    """The metrics of a sampled job, from its stored images; they are written with its grid. In smaller batches where the device's
    memory is too small.
    """
    while True:
        try:
            return _judge_at(job)
        except torch.OutOfMemoryError:
            rows = job.cfg.batch_size
        print(f"guidedgen: batch_size={rows} needs too much memory to judge; going on with less", file=sys.stderr)
        job = sampling.halved(job)
        torch.cuda.empty_cache()


def _judge_at(job: Job) -> dict[str, Any]:
    """The same, `batch_size` images at a time."""
    own, reference, tasks = (
        evaluate.Images.of_run(job.folder),
        _reference(job),
        {s.name: sampling.with_original(s, job.base) for s in job.samples},
    )
    lost, unmade, guide = _lost(job), _unmade(job), _guide(job)
    own, reference = own.without({*lost, *unmade}), reference.without({*lost, *unmade}) if reference is not None else None
    if not len(own):
        raise RunFailed(f"{job.folder.path}: no sample came out both here and unguided")
    where = {"batch_size": job.cfg.batch_size, "device": job.cfg.device}
    with job.model.ledger.timed("judge"):
        ours = evaluate.score(own, job.scorers, tasks, recorded=_recorded(job, own), **where)
        paired = reference is not None and reference.records is not None
        theirs = {}
        if reference is not None and paired:
            theirs = evaluate.score(reference, job.scorers, tasks, recorded=_recorded(job, reference), **where)
        extra_images = {
            name: (kept, evaluate.score(kept, job.scorers, tasks, **where)) for name, kept in own.extra_images().items()
        }
        summary = evaluate.summarise(own, reference, ours, theirs, job.verdicts)
        metrics = {**_described(job, guide), "judged_by": judged_by(job), "judged_with": judged_with(job), **summary}
        metrics["blurred"] = len(own.blurred)
        metrics["failed"] = len(lost)
        if extra_images:
            metrics["extra_images"] = {
                name: {"samples": len(kept), "scores": evaluate.expected(kept, scores)}
                for name, (kept, scores) in extra_images.items()
            }
        if lost:
            metrics["failures"] = lost
        if unmade:
            metrics["missing"] = len(unmade)
        pairs = [_pair(own, against, where) for against in (reference, _apart(job)) if against is not None]
        if pairs:
            measured = pairs[-1]  # to the unguided run at other seeds, where there is one
            metrics["reference_samples"] = len(measured.reference)
            metrics["compared"] = [len(measured.own), len(measured.reference)]
            metrics["distances"] = evaluate.distances(measured, job.distances)
        if reference is not None and job.per_class is not None:
            known = {sample.task.id: sample.task for sample in job.samples}
            metrics["per_class"] = evaluate.per_class(pairs[0], job.per_class, known)
    if job.originals is not None:
        metrics["learning"] = learning.spent(job)
    _mark_shared(job, metrics, guide)
    job.folder.write_json("metrics.json", metrics)

    score = next(iter(job.scorers), "")  # the reward, where there is one
    rows = {"base": (reference, theirs.get(score, ()))} if reference is not None and job.base is not None else {}
    rows |= {job.method_name: (own, ours.get(score, ()))}
    rows |= {f"the {name}": (kept, scores.get(score, ())) for name, (kept, scores) in extra_images.items() if len(kept) == len(own)}
    report.write_grid(job.folder.path / "images" / evaluate.GRID, rows, score)
    return metrics


def _pair(own: evaluate.Images, reference: evaluate.Images, where: Mapping[str, Any]) -> evaluate.Pair:
    sharp, other = evaluate.comparable(own, reference)
    return evaluate.Pair(own=sharp, reference=other, **where)


def _lost(job: Job) -> dict[str, str]:
    """Why samples have failed, by name. Where the unguided one has, there is nothing to compare with: it is left out too."""
    unguided = {} if job.base is None else job.base.folder.failures()
    return {**{name: f"unguided: {reason}" for name, reason in unguided.items()}, **job.folder.failures()}


def _unmade(job: Job) -> set[str]:
    """Names of the samples that are neither finished nor failed, here or unguided: the run is stopped, or has lost records."""
    tried = job.folder.tried() if job.base is None else job.folder.tried() & job.base.folder.tried()
    return {sample.name for sample in job.samples} - tried


def _recorded(job: Job, pictures: evaluate.Images) -> set[str]:
    """Names of the scorers whose scores the records of a run hold: those that are now as they were when it was sampled."""
    if not pictures.blurred:
        return set()
    folder = pictures.paths[0].parent.parent
    then, now = config.read_whole(folder / "config.yaml"), job.cfg
    judged_then = contents.recorded(RunFolder(folder).read_json("environment.json"), "judged_with") or {}
    files = judged_then.get("metrics", {})
    if any(files.get(name, digest) != digest for name, digest in judged_with(job).get("metrics", {}).items()):
        return set()
    judges = {str(name) for name, node in now.metrics.scorers.items() if then.metrics.scorers.get(name) == node}
    guides = job.scorers.keys() - now.metrics.scorers.keys()  # the reward, with what it reports
    return judges | (guides if then.reward == now.reward else set())


def _described(job: Job, guide: DictConfig | None) -> dict[str, Any]:
    """The run's name in a table of runs, and its published figures where it is a row of a published table."""
    table, printed = job.cfg.get("table") or {}, config.published(job.cfg)
    return {
        "title": job.name,
        "label": table.get("label") or table.get("row") or job.method_name,
        "reward": config.module_of(guide) if guide else job.reward_name,
        **({"published": printed} if printed else {}),
    }


def _guide(job: Job) -> DictConfig | None:
    """The reward that the run was sampled with, which need not be the one it is judged by; None where none has guided."""
    return config.read_whole(job.folder.path / "config.yaml").reward if job.method.needs.reward else None


def _reference(job: Job) -> evaluate.Images | None:
    if job.base is not None:
        return evaluate.Images.of_run(job.base.folder)
    return evaluate.Images.of_folder(job.reference) if job.reference is not None else None


def _apart(job: Job) -> evaluate.Images | None:
    """The pictures of the unguided run at other seeds, where the distances are to be measured to them."""
    return evaluate.Images.of_run(job.apart.folder) if job.apart is not None else None


def _mark_shared(job: Job, metrics: Mapping[str, Any], guide: DictConfig | None) -> None:
    """Marks each figure that was measured by what guided, or by a network of it, and what else it depends on."""
    reward = job.reward
    if guide and guide != job.cfg.reward:
        reward = config.build(config.without_weightless(guide), "reward", tuple(job.cfg.allow_targets))
    networks = set(getattr(reward, "networks", ())) if guide else set()
    for name, entry in metrics["scores"].items():
        itself = guide is not None and bool(guide) and name == config.module_of(guide)  # it need not run on a network
        entry["shares_guide"] = itself or bool(networks & set(getattr(job.scorers[name], "networks", ())))
        if described := getattr(job.scorers[name], "described", None):
            entry["described"] = described
    for entry in [*metrics.get("distances", {}).values(), *filter(None, [metrics.get("per_class")])]:
        entry["shares_guide"] = entry["features"] in networks


def judged_by(job: Job) -> str:
    """A digest of what a run is judged by: options, and the files that its judges read. It may change after the run was sampled."""
    options = {key: job.cfg[key] for key in ("reward", "metrics", "reference")}
    if job.apart is not None:
        options["reference_seed"] = job.apart.cfg.seed
    return config.digest({**options, "contents": [job.contents, judged_with(job)]})


def judged_with(job: Job) -> contents.Parts:
    """The digests of what a run's judges read, and of the pictures that it is measured against."""
    judges = [job.scorers, job.distances, job.per_class]
    found = {"metrics": contents.of(*judges, packages=tuple(job.cfg.allow_targets))}
    if job.reference is not None:
        records = [file] if (file := job.reference / "records.jsonl").exists() else []
        found["reference"] = {"pictures": contents.of_files([*evaluate.Images.of_folder(job.reference).paths, *records])}
    return {part: digests for part, digests in found.items() if digests}
