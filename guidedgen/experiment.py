"""A checked job to a finished folder: sample in batches, judge, show, mirror."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import importlib.metadata
import itertools
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from guidedgen import config, cost, evaluate, images, learning, report, sweeps
from guidedgen.jobs import Job, module_of, prepare
from guidedgen.noise import Noise
from guidedgen.problem import Problem
from guidedgen.process.grid import Grid, tail
from guidedgen.store import Record, RunFailed, RunFolder
from guidedgen.types import Sample, Stopped, Task, UsageError

_HOPELESS = 10  # a run whose first samples all fail, so many of them, is broken: it ends instead of failing with all the rest
_Outcome = tuple[Sample, Tensor, Record, list[dict[str, Any]]]  # with its image (3 H W), where it has not failed, and its trace


def main(cfg: DictConfig) -> float | None:
    """Runs one config to its end; returns the value of `run.objective`, where there is one, for a sweeper that chooses by it.

    Leaves by SystemExit with 2 for a wrong config, 75 after a signal, 130 after Ctrl-C.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):  # submitit has its own, which requeue the job
            signal.signal(number, _stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
    try:
        job = prepare(cfg)
        sweeps.check_objective(job)
        with _noted(job):
            metrics = run(job)
        return sweeps.objective(job, metrics)
    except UsageError as error:
        print(f"guidedgen: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(f"guidedgen: stopped by {stopped}; the same command goes on from here", file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        print("guidedgen: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _stop(number: int, _frame: object) -> None:
    raise Stopped(signal.Signals(number).name)


@contextlib.contextmanager
def _noted(job: Job) -> Iterator[None]:
    """Writes into the run's own log why it ended before it was done: what the cluster shows may be lost, or the next run's."""
    try:
        yield
    except Stopped as stopped:
        job.folder.note(f"stopped by {stopped}")
        raise
    except KeyboardInterrupt:
        job.folder.note("interrupted")
        raise
    except (RunFailed, UsageError) as error:
        job.folder.note(f"failed: {error}")
        raise
    except Exception as error:
        job.folder.note(f"failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        raise


def run(job: Job) -> Mapping[str, Any]:
    """Samples what is missing, judges, shows and mirrors; returns the metrics. A finished run only shows."""
    started = time.perf_counter()
    fresh = job.cfg.run.fresh
    metrics = job.folder.read_json("metrics.json")
    if job.folder.done and metrics.get("judged_by") == _judged_by(job) and not fresh:
        print(f"{job.folder.path}: already done (run.fresh=true starts anew)")
        report.show(metrics)
        return metrics
    for unguided, label in ((job.base, "base"), (job.originals, "originals")):  # before the model is tuned
        if unguided is not None and not unguided.folder.done:
            _open(unguided)
            _sample_all(unguided, label)
            _close(unguided)
    if not job.folder.done or fresh:
        _open(job, fresh=fresh)
        job.folder.note(f"started: {shlex.join(_command())}; {_left(job)} of {len(job.samples)} samples to make")
        if job.originals is not None:
            job.model.load()
            with job.folder.alone("learning"):
                learning.learn(job, lambda places: problem(job, [job.lessons[place] for place in places], job.originals))
        _sample_all(job, module_of(job.cfg.method))
    with job.folder.alone("judging"):  # of several processes, one comes out last
        if left := _left(job):
            print(f"{job.folder.path}: share {job.shard.part} is done; others have {left} samples to make")
            job.folder.note(f"share {job.shard.part} is done")
            return {}
        _close(job.base)
        job.folder.merge([sample.name for sample in job.samples])
        metrics = _judge(job)
        _track(job, metrics)
        job.folder.note("done")
        job.folder.finish()
    report.show(metrics)
    if job.cfg.run.profile:
        report.show_profile(job.model.ledger, time.perf_counter() - started)
    print(f"{len(job.samples)} samples in {time.perf_counter() - started:.1f} s: {job.folder.path}/images/grid.png")
    return metrics


def _track(job: Job, metrics: Mapping[str, Any]) -> None:
    if job.tracker is None:
        return
    plain = OmegaConf.to_container(job.cfg, resolve=True)
    assert isinstance(plain, dict)
    job.tracker.log(
        folder=job.folder.path,
        run_id=job.run_id,
        name=job.name,
        config={str(key): value for key, value in plain.items()},
        records=list(job.folder.records().values()),
        metrics=metrics,
    )


def judge_again(folder: Path, overrides: Sequence[str] = ()) -> Mapping[str, Any]:
    """Judges a stored run anew, from its images and with `metrics=...` or any dotted key changed; rewrites metrics.json."""
    cfg = config.read(folder / "config.yaml")
    cfg.outputs, cfg.study = str(folder.absolute().parent.parent), folder.absolute().parent.name
    for override in overrides:
        key, _, value = override.partition("=")
        file = config.CONF / key / f"{value}.yaml"
        try:
            OmegaConf.update(
                cfg, key, OmegaConf.load(file) if file.exists() else OmegaConf.create(f"x: {value}").x, force_add=False
            )
        except Exception as error:  # OmegaConf's many errors
            raise UsageError(f"{override}: {error}") from error
    job = dataclasses.replace(prepare(cfg), folder=RunFolder(folder))
    if not _left(job):  # whoever of several processes was to be the last may have died
        _close(job.base)
        job.folder.merge([sample.name for sample in job.samples])
        job.folder.finish()
    return _judge(job)


def _judge(job: Job) -> dict[str, Any]:
    """The metrics of a sampled job, from its stored images; they are written with its grid. In smaller batches where the device's
    memory is too small.
    """
    while True:
        try:
            return _judge_at(job)
        except torch.OutOfMemoryError:
            rows = job.cfg.batch_size
        print(f"guidedgen: batch_size={rows} needs too much memory to judge; going on with less", file=sys.stderr)
        job = _halved(job)
        torch.cuda.empty_cache()


def _judge_at(job: Job) -> dict[str, Any]:
    """The same, `batch_size` images at a time."""
    own, reference, tasks = (
        evaluate.Images.of_run(job.folder),
        _reference(job),
        {s.name: _with_original(s, job.base) for s in job.samples},
    )
    lost = _lost(job)
    own, reference = own.without(lost), reference.without(lost) if reference is not None else None
    if not len(own):
        raise RunFailed(f"{job.folder.path}: no sample came out both here and unguided")
    where = {"batch_size": job.cfg.batch_size, "device": job.cfg.device}
    with job.model.ledger.timed("judge"):
        ours = evaluate.score(own, job.scorers, tasks, recorded=_recorded(job, own), **where)
        paired = reference is not None and reference.records is not None
        theirs = {}
        if reference is not None and paired:
            theirs = evaluate.score(reference, job.scorers, tasks, recorded=_recorded(job, reference), **where)
        summary = evaluate.summarise(own, reference, ours, theirs, job.verdicts)
        metrics = {**_described(job), "judged_by": _judged_by(job), **summary}
        metrics["blurred"] = len(own.blurred)
        metrics["failed"] = len(lost)
        if lost:
            metrics["failures"] = lost
        if reference is not None:
            sharp, other = evaluate.comparable(own, reference)
            metrics["reference_samples"] = len(reference)
            metrics["compared"] = [len(sharp), len(other)]
            metrics["distances"] = evaluate.distances(sharp, other, job.distances, **where)
            if job.per_class is not None:
                known = {sample.task.id: sample.task for sample in job.samples}
                metrics["per_class"] = evaluate.per_class(sharp, other, job.per_class, known, **where)
    if job.originals is not None:
        metrics["learning"] = learning.spent(job)
    _mark_shared(job, metrics)
    job.folder.write_json("metrics.json", metrics)

    score = next(iter(job.scorers), "")  # the reward, where there is one
    rows = {"base": (reference, theirs.get(score, ()))} if reference is not None and job.base is not None else {}
    rows |= {module_of(job.cfg.method): (own, ours.get(score, ()))}
    report.write_grid(job.folder.path / "images" / evaluate.GRID, rows, score)
    return metrics


def _lost(job: Job) -> dict[str, str]:
    """Why samples have failed, by name. Where the unguided one has, there is nothing to compare with: it is left out too."""
    unguided = {} if job.base is None else job.base.folder.failures()
    return {**{name: f"unguided: {reason}" for name, reason in unguided.items()}, **job.folder.failures()}


def _recorded(job: Job, pictures: evaluate.Images) -> set[str]:
    """Names of the scorers whose scores the records of a run hold: those that are now as they were when it was sampled."""
    if not pictures.blurred:
        return set()
    then, now = config.read(pictures.paths[0].parent.parent / "config.yaml"), job.cfg
    judges = {str(name) for name, node in now.metrics.scorers.items() if then.metrics.scorers.get(name) == node}
    guides = job.scorers.keys() - now.metrics.scorers.keys()  # the reward, with what it reports
    return judges | (guides if then.reward == now.reward else set())


def _described(job: Job) -> dict[str, Any]:
    """What a table of runs calls this one, and what its source prints of it where it is a row of a published table."""
    table, printed = job.cfg.get("table") or {}, config.published(job.cfg)
    return {
        "title": job.name,
        "label": table.get("label") or table.get("row") or module_of(job.cfg.method),
        "reward": module_of(job.cfg.reward) if job.cfg.reward else None,
        **({"published": printed} if printed else {}),
    }


def _reference(job: Job) -> evaluate.Images | None:
    if job.base is not None:
        return evaluate.Images.of_run(job.base.folder)
    return evaluate.Images.of_folder(job.reference) if job.reference is not None else None


def _mark_shared(job: Job, metrics: Mapping[str, Any]) -> None:
    """Says of each figure whether a network that measured it has guided too, and what else it depends on."""
    guide = set(getattr(job.reward, "networks", ())) if job.method.needs.reward else set()
    for name, entry in metrics["scores"].items():
        entry["shares_guide"] = bool(guide & set(getattr(job.scorers[name], "networks", ())))
        if described := getattr(job.scorers[name], "described", None):
            entry["described"] = described
    for entry in [*metrics.get("distances", {}).values(), *filter(None, [metrics.get("per_class")])]:
        entry["shares_guide"] = entry["features"] in guide


def _judged_by(job: Job) -> str:
    """Names what a run is judged by, which may change after it was sampled."""
    return config.digest({key: job.cfg[key] for key in ("reward", "metrics", "reference")})


def _open(job: Job, *, fresh: bool = False) -> None:
    """Makes the job's folder ready, and torch repeat itself."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    job.folder.open(OmegaConf.to_yaml(job.cfg), _environment(job), fresh=fresh)


def _left(job: Job) -> int:
    """How many of the run's samples are neither finished nor failed."""
    return len({sample.name for sample in job.samples} - job.folder.records().keys() - job.folder.failures().keys())


def _close(job: Job | None) -> None:
    """Declares an unguided run done once all its samples are, and lets other processes have its folder."""
    if job is None:
        return
    if not job.folder.done:
        with job.folder.alone("closing"):
            if not _left(job):
                job.folder.merge([sample.name for sample in job.samples])
                job.folder.finish()
    job.folder.close()


def _sample_all(job: Job, label: str) -> None:
    """Samples every batch of this process's share that is not finished. What is learned on is drawn by the first that comes."""
    if label == "originals" and job.shard.part:
        with job.folder.alone("originals"):
            _sample_batches(job, label, _batches(job))
    else:
        _sample_batches(job, label, job.shard.of(_batches(job)))


def _sample_batches(job: Job, label: str, batches: Sequence[Sequence[Sample]]) -> None:
    """Samples what is not finished of the batches; one that fails is recorded as such, and the others go on.

    Raises RunFailed where none comes out, of all samples or of the first ten.
    """
    finished = job.folder.records().keys()
    todo = [batch for batch in batches if any(sample.name not in finished for sample in batch)]
    if todo:
        job.model.load()
    needs, failed, came_out = job.method.needs, 0, bool(finished)
    steps = [needs.chains * (len(_grid(job, _share(job, batch[0]))) - 1) if needs.steps is None else needs.steps for batch in todo]
    with report.progress(label, total=sum(steps)) as advance:
        for sample, image, record, trace in _outcomes(job, todo, finished, _at_most(sum(steps), advance)):
            if sample.name in finished:
                continue
            if record.failed is None:
                job.folder.save(sample, images.png(image), record, trace)
                came_out = True
                continue
            job.folder.fail(record)
            failed += 1
            print(f"guidedgen: {sample.name} ({sample.task.prompt[:60]!r}) failed: {record.failed}", file=sys.stderr)
            if not came_out and failed == _HOPELESS:
                raise RunFailed(f"{job.folder.path}: the first {failed} samples have all failed; see above why")
    if failed and not came_out:
        raise RunFailed(f"{job.folder.path}: none of {failed} samples came out; see above why")


def _at_most(total: int, advance: Callable[[], None]) -> Callable[[], None]:
    """`advance` that does nothing after `total` calls: what is taken again does not count twice."""
    left = iter(range(total))

    def once() -> None:
        if next(left, None) is not None:
            advance()

    return once


def _outcomes(
    job: Job, batches: Sequence[Sequence[Sample]], finished: Collection[str], advance: Callable[[], None]
) -> Iterator[_Outcome]:
    """Every sample of the batches, made or failed.

    Where a device's memory is too small for a batch, it is taken again, with what torch keeps of the memory given back; and then,
    with those after it, in halves, of its rows too. Where something raises, the batch is taken sample by sample, and those fail
    that raise alone. Samples do not depend on their neighbours but by the rounding of batched kernels, so that in smaller batches
    the same images come out, to a level or two of 255: to the byte those of that batch_size.
    """
    queue, flagged, again, small, raised = collections.deque(batches), _flagged(job), False, False, False
    while queue:
        batch, full = queue.popleft(), False
        try:
            outcomes = list(_sample(job, batch, flagged, advance))
        except torch.OutOfMemoryError:
            full = True  # dealt with below, where its traceback does not hold on to the memory any more
        except (UsageError, torch.AcceleratorError):  # missing weights; a device that is lost: nothing of this sample
            raise
        except Exception as error:  # whatever a reward may raise
            if len(batch) > 1:
                queue.extendleft([sample] for sample in reversed(batch) if sample.name not in finished)
                continue
            if not raised:  # for whoever has to repair it; once is enough
                traceback.print_exc()
            raised, outcomes = True, [_raised(batch[0], error)]
        if not full:
            again = False
            yield from outcomes
            continue
        torch.cuda.empty_cache()
        queue.appendleft(batch)
        if again:
            if not small:
                print(f"guidedgen: batch_size={job.cfg.batch_size} needs too much memory; going on with less", file=sys.stderr)
            small, job = True, _halved(job)
            queue = collections.deque(_cut(queue, job.cfg.batch_size))
        again = True


def _halved(job: Job) -> Job:
    """The job with half the rows at once, on the same networks. Raises RunFailed where there is one row already."""
    rows = job.cfg.batch_size // 2
    if not rows:
        raise RunFailed(f"device={job.cfg.device}: its memory is too small for one row; try another method/gradients, or a device")
    cfg, model = job.cfg.copy(), copy.copy(job.model)  # a new model would load its networks again
    cfg.batch_size = rows
    object.__setattr__(model, "batch_size", rows)
    return dataclasses.replace(job, cfg=cfg, model=model)


def _cut(batches: Iterable[Sequence[Sample]], size: int) -> Iterator[Sequence[Sample]]:
    """Each of the batches in batches of at most `size`."""
    for batch in batches:
        yield from (batch[i : i + size] for i in range(0, len(batch), size))


def _raised(sample: Sample, error: Exception) -> _Outcome:
    """What there is of a sample that raised."""
    *_, last = traceback.extract_tb(error.__traceback__)
    told = " ".join(f"{type(error).__name__}: {error}".split())
    record = Record(
        task=sample.task.id, prompt=sample.task.prompt, category=sample.task.category, seed=sample.seed, image="", scores={},
        nfe=0, nfe_backward=0, decodes=0, reward_calls=0, seconds=0.0, peak_memory_mib=0.0,
        failed=f"{told} ({Path(last.filename).name}:{last.lineno})",
    )  # fmt: skip
    return sample, torch.empty(0), record, []


class _Guides:
    """Listens to what guides b samples: their rewards, and the gradients of these by the pictures.

    Methods leave out a reward or a gradient that is not finite, and go on with the others; a sample for which none is has not
    been guided.
    """

    def __init__(self, posed: Problem, device: str) -> None:
        # A task of its own for every sample: samples of one prompt may share one.
        self.problem = dataclasses.replace(
            posed, tasks=[dataclasses.replace(task) for task in posed.tasks], reward=None if posed.reward is None else self._reward
        )
        self._posed, self._place = posed, {id(task): i for i, task in enumerate(self.problem.tasks)}
        self._seen = {kind: torch.zeros(2, len(posed), dtype=torch.int64, device=device) for kind in ("reward", "gradient")}

    def _reward(self, pictures: Tensor, owners: Sequence[Task]) -> Tensor:
        assert self._posed.reward is not None
        rows = torch.tensor([self._place[id(task)] for task in owners], device=pictures.device)
        rewards = self._posed.reward(pictures, owners)
        self._note("reward", rows, rewards.detach())
        if pictures.requires_grad:
            pictures.register_hook(lambda gradient: self._note("gradient", rows, gradient))
        return rewards

    def _note(self, kind: str, rows: Tensor, values: Tensor) -> None:
        """Counts, without waiting for the device, the values of each sample and those that are finite."""
        finite = values.reshape(len(rows), -1).isfinite().all(1)
        self._seen[kind].index_add_(1, rows, torch.stack([torch.ones_like(finite), finite]).long())

    def useless(self) -> list[str | None]:
        """Why a sample has not been guided, if so."""
        reasons: list[str | None] = [None] * len(self._place)
        for kind, (seen, finite) in ((kind, counts.tolist()) for kind, counts in self._seen.items()):
            for i in range(len(reasons)):
                if seen[i] and not finite[i] and reasons[i] is None:
                    reasons[i] = f"no {kind} was finite while it was guided"
        return reasons


def _failures(job: Job, guides: _Guides, x_0: Tensor, pictures: Tensor, scores: Mapping[str, Sequence[float]]) -> list[str | None]:
    """Why samples have failed, None of those that have not."""
    reasons = guides.useless()
    guide = scores.get(module_of(job.cfg.reward)) if job.cfg.reward and job.method.needs.reward else None
    for i, (latent, picture) in enumerate(
        zip(x_0.isfinite().flatten(1).all(1), pictures.isfinite().flatten(1).all(1), strict=True)
    ):
        if guide is not None and not math.isfinite(guide[i]):
            reasons[i] = reasons[i] or f"the reward of its picture is {guide[i]}"
        if not picture:
            reasons[i] = "its picture is not finite" if latent else "its latents are not finite"
    return reasons


def _sample(job: Job, batch: Sequence[Sample], flagged: Collection[str], advance: Callable[[], None]) -> Iterator[_Outcome]:
    """One batch, taken at once; a filter has flagged the unguided pictures of the samples in `flagged`.

    A sample fails where its latents, its picture or the guiding reward of that are not finite, or nothing that guided it was.
    """
    traces: list[list[dict[str, Any]]] = [[] for _ in batch]

    def observe(event: str, step: int, values: Mapping[str, Any]) -> None:
        if event == "step":
            advance()
            return
        for i, trace in enumerate(traces):  # values are per sample along their first axis
            trace.append({"event": event, "step": step, **{name: value[i].tolist() for name, value in values.items()}})

    ledger = job.model.ledger
    before, started = ledger.counts(), time.perf_counter()
    if torch.device(job.cfg.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():  # methods that need gradients switch them on
        guides = _Guides(problem(job, batch, job.base), job.cfg.device)
        x_0 = job.method(guides.problem, observe)
        decoded = torch.cat([job.model.decode(rows) for rows in x_0.split(job.cfg.batch_size)])
        pictures = images.to_bytes(decoded.nan_to_num(0)).float() / 255  # what is judged is what is stored
    spent = {name: (value - before[name]) // len(batch) for name, value in ledger.counts().items()}
    seconds = (time.perf_counter() - started) / len(batch)
    scores = _scores(job, pictures, [_with_original(sample, job.base) for sample in batch])
    failures = _failures(job, guides, x_0, decoded, scores)
    for i, sample in enumerate(batch):
        blurred = job.blurs and (sample.name in flagged or any(scores[name][i] > 0 for name in job.verdicts))
        failed = failures[i]
        record = Record(
            task=sample.task.id, prompt=sample.task.prompt, category=sample.task.category, seed=sample.seed,
            image=sample.image if failed is None else "",
            scores={name: values[i] for name, values in scores.items()} if failed is None else {},
            seconds=round(seconds, 4), peak_memory_mib=round(cost.peak_memory_mib(job.cfg.device), 1), blurred=blurred,
            failed=failed, **spent,
        )  # fmt: skip
        yield sample, _blurred(pictures[i]) if blurred else pictures[i], record, traces[i]


def _flagged(job: Job) -> set[str]:
    """Names of the samples whose pictures the unguided run has stored blurred, where this one blurs any."""
    if not job.blurs or job.base is None:
        return set()
    return {name for name, record in job.base.folder.records().items() if record.blurred}


def _blurred(image: Tensor) -> Tensor:
    """3 H H, of which no more is left than the means of 8 x 8 parts."""
    return images.resize(images.resize(image[None], 8), image.shape[-1])[0]


def _scores(job: Job, pictures: Tensor, tasks: Sequence[Task]) -> dict[str, list[float]]:
    with torch.no_grad(), job.model.ledger.timed("judge"):
        return {name: scorer(pictures, tasks).float().tolist() for name, scorer in job.scorers.items()}


def problem(job: Job, batch: Sequence[Sample], unguided: Job | None = None) -> Problem:
    """What the method is given for a batch of samples that start at the same noise; their originals are of the unguided run."""
    model, tasks = job.model, [_with_original(sample, unguided) for sample in batch]
    keys = [f"{sample.seed}/{sample.task.id}" for sample in batch]
    share = _share(job, batch[0])
    assert all(_share(job, sample) == share for sample in batch)

    def reward(pictures: Tensor, owners: Sequence[Task]) -> Tensor:
        assert job.reward is not None
        model.ledger.reward_calls += len(pictures)
        with model.ledger.timed("reward"):
            return job.reward(pictures, owners)

    return Problem(
        tasks=tasks, denoise=model.denoiser(tasks), scheduler=job.scheduler, latent_shape=model.latent_shape,
        grid=_grid(job, share), num_steps=len(job.grid) - 1, schedule=model.schedule,
        noise=Noise(keys, device=job.cfg.device), decode=model.decode, reward=reward, batch_size=job.cfg.batch_size,
        reference=_encoded(job, tasks) if share or job.method.needs.reference == "inverted" else None,
        timed=model.ledger.timed,
    )  # fmt: skip


def _with_original(sample: Sample, unguided: Job | None) -> Task:
    """The sample's task, with the picture that the unguided run has drawn of it."""
    if unguided is None:
        return sample.task
    return dataclasses.replace(sample.task, original=str(unguided.folder.path / sample.image))


def _share(job: Job, sample: Sample) -> float | None:
    """How much of the chain is run from the task's reference; None where it starts from noise."""
    return None if job.method.needs.reference in ("ignored", "inverted") else sample.task.noise_ratio


def _grid(job: Job, share: float | None) -> Grid:
    """The part of the job's grid that such a share of the chain is run on."""
    return job.grid if share is None else tail(job.grid, share)


def _encoded(job: Job, tasks: Sequence[Task]) -> Tensor:
    """The tasks' references, brought to the model's size: b c h w. A picture of several is encoded once."""
    latents: dict[str, Tensor] = {}
    rows = []
    for task in tasks:
        assert task.reference is not None
        if task.reference not in latents:
            picture = images.resize(images.read(Path(task.reference)), job.model.image_size)
            latents[task.reference] = job.model.encode(picture.to(job.cfg.device))
        rows.append(latents[task.reference])
    return torch.cat(rows)


def _batches(job: Job) -> list[list[Sample]]:
    """The samples in batches, cut from the full list, so that a resumed run computes the same; a batch starts at one noise."""
    size = 1 if job.method.needs.one_sample else job.cfg.batch_size
    groups = [list(group) for _, group in itertools.groupby(job.samples, lambda sample: _share(job, sample))]
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def _command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _environment(job: Job) -> dict[str, Any]:
    """What else numbers may depend on."""
    packages = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=config.CONF, capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.device(job.cfg.device)
    return {
        "command": _command(),
        "samples": len(job.samples),
        "commit": commit or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
