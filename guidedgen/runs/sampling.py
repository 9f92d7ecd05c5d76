"""A job's samples, batch by batch: those that come out are stored, those that fail are marked and the others go on."""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import math
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedgen.basics import cost, images
from guidedgen.basics.errors import UsageError, printable
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Sample, Task
from guidedgen.methods.problem import Problem
from guidedgen.process.grid import Grid, tail
from guidedgen.runs import blurring, building, older, report
from guidedgen.runs.film import Film
from guidedgen.runs.identity import check_unchanged
from guidedgen.runs.job import Job
from guidedgen.runs.store import Record, RunFailed

_HOPELESS = 10  # a run whose first samples all fail, so many of them, is broken: it ends instead of failing with all the rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A sample that was made, or failed and has no images."""

    sample: Sample
    record: Record
    image: Tensor | None = None  # 3 H W
    extra_images: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)  # 3 H W by name
    sheets: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)  # 3 H W by name
    trace: Sequence[Mapping[str, Any]] = ()


def sample_all(job: Job, label: str) -> None:
    """Samples every batch of this process's share that is not finished. Images to learn on are sampled by the first process."""
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
        job.model.load(building.read_by_model(job.method, [sample.task for batch in todo for sample in batch]))
    needs, failed, came_out = job.method.needs, 0, bool(finished)
    steps = [needs.chains * (len(_grid(job, _share(job, batch[0]))) - 1) if needs.steps is None else needs.steps for batch in todo]
    with report.progress(label, total=sum(steps)) as advance:
        for made in _outcomes(job, todo, finished, _at_most(sum(steps), advance)):
            check_unchanged(job)
            sample, record = made.sample, made.record
            if sample.name in finished:
                continue
            if made.image is not None:
                others = [{name: images.png(image) for name, image in each.items()} for each in (made.extra_images, made.sheets)]
                job.folder.save(sample, images.png(made.image), record, made.trace, *others)
                came_out = True
                continue
            job.folder.fail(record)
            failed += 1
            print(printable(f"guidedgen: {sample.name} ({sample.task.prompt[:60]!r}) failed: {record.failed}"), file=sys.stderr)
            if not came_out and failed == _HOPELESS:
                raise RunFailed(f"{job.folder.path}: the first {failed} samples have all failed, the last as: {record.failed}")
    if failed and not came_out:
        raise RunFailed(f"{job.folder.path}: none of {failed} samples came out, the last failed as: {record.failed}")


def _at_most(total: int, advance: Callable[[], None]) -> Callable[[], None]:
    """`advance` that does nothing after `total` calls: steps that are repeated do not count twice."""
    left = iter(range(total))

    def once() -> None:
        if next(left, None) is not None:
            advance()

    return once


def _outcomes(
    job: Job, batches: Sequence[Sequence[Sample]], finished: Collection[str], advance: Callable[[], None]
) -> Iterator[Outcome]:
    """Every sample of the batches, made or failed.

    Where a device's memory is too small for a batch, it is computed again after torch has freed its cached memory, and then, with
    all later ones, at half the size, also in rows. Where something raises, the batch is computed sample by sample, and only the
    samples that raise alone fail. Samples depend on the rest of their batch only by the rounding of batched kernels, so smaller
    batches give the same images to a level or two of 255, and to the byte those of that batch_size.
    """
    queue, flagged, again, small, raised = collections.deque(batches), blurring.flagged_unguided(job), False, False, False
    while queue:
        batch, full = queue.popleft(), False
        try:
            outcomes = list(_sample(job, batch, flagged, advance))
        except torch.OutOfMemoryError:
            full = True  # handled below, where its traceback does not keep the memory alive any more
        except (UsageError, torch.AcceleratorError):  # missing weights; a device that is lost: nothing of this sample
            raise
        except Exception as error:  # whatever a reward may raise
            if len(batch) > 1:
                queue.extendleft([sample] for sample in reversed(batch) if sample.name not in finished)
                continue
            if not raised:  # for debugging; once is enough
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
            small, job = True, halved(job)
            queue = collections.deque(_cut(queue, job.cfg.batch_size))
        again = True


def halved(job: Job) -> Job:
    """The job with half the rows at once, on the same networks. Raises RunFailed where there is one row already."""
    rows = job.cfg.batch_size // 2
    if not rows:
        raise RunFailed(f"device={job.cfg.device}: its memory is too small for one row; try another method/gradients, or a device")
    cfg, model = job.cfg.copy(), copy.copy(job.model)  # a new model would load its networks again
    cfg.batch_size = rows
    weak = copy.copy(model.weak)
    for each in (model, weak):
        if each is not None:
            object.__setattr__(each, "batch_size", rows)
    object.__setattr__(model, "weak", weak)
    return dataclasses.replace(job, cfg=cfg, model=model)


def _cut(batches: Iterable[Sequence[Sample]], size: int) -> Iterator[Sequence[Sample]]:
    """Each of the batches in batches of at most `size`."""
    for batch in batches:
        yield from (batch[i : i + size] for i in range(0, len(batch), size))


def _raised(sample: Sample, error: Exception) -> Outcome:
    """The outcome of a sample that raised."""
    *_, last = traceback.extract_tb(error.__traceback__)
    message = " ".join(f"{type(error).__name__}: {error}".split())
    record = Record(
        task=sample.task.id, prompt=sample.task.prompt, category=sample.task.category, seed=sample.seed, image="", scores={},
        nfe=0, nfe_backward=0, decodes=0, reward_calls=0, seconds=0.0, peak_memory_mib=0.0,
        failed=f"{message} ({Path(last.filename).name}:{last.lineno})",
    )  # fmt: skip
    return Outcome(sample=sample, record=record)


class _Guides:
    """Checks what guides b samples: their rewards, and the gradients of these by the pictures.

    Methods leave out a reward or a gradient that is not finite, and go on with the others; a sample for which none is has not
    been guided.
    """

    def __init__(self, given: Problem, device: str) -> None:
        # A task of its own for every sample: samples of one prompt may share one.
        self.problem = dataclasses.replace(
            given, tasks=[dataclasses.replace(task) for task in given.tasks], reward=None if given.reward is None else self._reward
        )
        self._given, self._index = given, {id(task): i for i, task in enumerate(self.problem.tasks)}
        self._seen = {kind: torch.zeros(2, len(given), dtype=torch.int64, device=device) for kind in ("reward", "gradient")}

    def _reward(self, pictures: Tensor, owners: Sequence[Task]) -> Tensor:
        assert self._given.reward is not None
        rows = torch.tensor([self._index[id(task)] for task in owners], device=pictures.device)
        rewards = self._given.reward(pictures, owners)
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
        reasons: list[str | None] = [None] * len(self._index)
        for kind, (seen, finite) in ((kind, counts.tolist()) for kind, counts in self._seen.items()):
            for i in range(len(reasons)):
                if seen[i] and not finite[i] and reasons[i] is None:
                    reasons[i] = f"no {kind} was finite while it was guided"
        return reasons


def _failures(job: Job, guides: _Guides, x_0: Tensor, pictures: Tensor, scores: Mapping[str, Sequence[float]]) -> list[str | None]:
    """Why samples have failed, None of those that have not."""
    reasons = guides.useless()
    guide = scores.get(job.reward_name) if job.reward_name and job.method.needs.reward else None
    for i, (latent, picture) in enumerate(
        zip(x_0.isfinite().flatten(1).all(1), pictures.isfinite().flatten(1).all(1), strict=True)
    ):
        if guide is not None and not math.isfinite(guide[i]):
            reasons[i] = reasons[i] or f"the reward of its picture is {guide[i]}"
        if not picture:
            reasons[i] = "its picture is not finite" if latent else "its latents are not finite"
    return reasons


def _sample(job: Job, batch: Sequence[Sample], flagged: Collection[str], advance: Callable[[], None]) -> Iterator[Outcome]:
    """One batch, computed at once; a filter has flagged the unguided pictures of the samples in `flagged`.

    A sample fails where its latents, its picture or the guiding reward of that are not finite, or nothing that guided it was.
    """
    traces: list[list[dict[str, Any]]] = [[] for _ in batch]
    extra_images: dict[str, Tensor] = {}
    sheets: dict[str, Tensor] = {}

    def observe(event: str, step: int, values: Mapping[str, Any]) -> None:
        if event == "step":
            advance()
            if film is not None:
                film.step(values.get("x_0"))
            return
        if older.event_now(event) == "extra_images":
            extra_images.update(values)
            return
        if event == "sheets":
            sheets.update(values)
            return
        for i, trace in enumerate(traces):  # values are per sample along their first axis
            trace.append({"event": event, "step": step, **{name: value[i].tolist() for name, value in values.items()}})

    ledger = job.model.ledger
    before, started = ledger.counts(), time.perf_counter()
    cost.reset_peak_memory(job.cfg.device)
    with torch.no_grad():  # methods that need gradients switch them on
        guides = _Guides(problem(job, batch, job.base), job.cfg.device)
        film = _film(job, guides.problem)
        x_0 = job.method(guides.problem if film is None else film.problem, observe)
        decoded = _decoded(job, x_0)
        pictures = _as_stored(decoded)
        if job.blurs:  # the filter does not check these
            extra_images.clear()
            sheets.clear()
        others = {name: _as_stored(_decoded(job, latents)) for name, latents in extra_images.items()}
    spent = {name: (value - before[name]) // len(batch) for name, value in ledger.counts().items()}
    cost.wait_for(job.cfg.device)
    seconds = (time.perf_counter() - started) / len(batch)
    if film is not None and not job.blurs and (kept := film.latents()):  # after the cost is counted
        with torch.no_grad():
            sheets["film"] = torch.cat([_decoded(job, latents.to(x_0)).clamp(0, 1).nan_to_num(0) for latents in kept], -1)
    scores = _scores(job, pictures, [with_original(sample, job.base) for sample in batch])
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
        if failed is not None:
            yield Outcome(sample=sample, record=record)
            continue
        yield Outcome(
            sample=sample, record=record, trace=traces[i], image=blurring.blurred(pictures[i]) if blurred else pictures[i],
            extra_images={name: other[i] for name, other in others.items()},
            sheets={name: sheet[i] for name, sheet in sheets.items()},
        )  # fmt: skip


def _film(job: Job, given: Problem) -> Film | None:
    """Where the pictures of how samples come about are kept: of methods that walk through chains."""
    count = job.cfg.run.get("trace_images") or 0
    if not count or job.method.needs.steps is not None:
        return None
    return Film(given, count, len(given.grid) - 1, job.method.needs.chains)


def _decoded(job: Job, latents: Tensor) -> Tensor:
    """b c h w -> b 3 H W, `batch_size` at a time."""
    return torch.cat([job.model.decode(rows) for rows in latents.split(job.cfg.batch_size)])


def _as_stored(decoded: Tensor) -> Tensor:
    """b 3 H W as read back from a file, so that the stored images are the ones judged."""
    return images.to_bytes(decoded.nan_to_num(0)).float() / 255


def _scores(job: Job, pictures: Tensor, tasks: Sequence[Task]) -> dict[str, list[float]]:
    with torch.no_grad(), job.model.ledger.timed("judge"):
        return {name: scorer(pictures, tasks).float().tolist() for name, scorer in job.scorers.items()}


def problem(job: Job, batch: Sequence[Sample], unguided: Job | None = None) -> Problem:
    """What the method is given for a batch of samples that start at the same noise; their originals are of the unguided run."""
    model, tasks = job.model, [with_original(sample, unguided) for sample in batch]
    keys = [f"{sample.seed}/{sample.task.id}" for sample in batch]
    share = _share(job, batch[0])
    assert all(_share(job, sample) == share for sample in batch)

    def reward(pictures: Tensor, owners: Sequence[Task]) -> Tensor:
        assert job.reward is not None
        model.ledger.reward_calls += len(pictures)
        with model.ledger.timed("reward"):
            return job.reward(pictures, owners)

    grid, num_steps = _grid(job, share), len(job.grid) - 1
    denoise = model.guided_denoiser(building.read_by_model(job.method, tasks), grid, num_steps)
    return Problem(
        tasks=tasks, denoise=denoise, scheduler=job.scheduler, latent_shape=model.latent_shape,
        grid=grid, num_steps=num_steps, schedule=model.schedule,
        noise=Noise(keys, device=job.cfg.device), decode=model.decode, reward=reward, batch_size=job.cfg.batch_size,
        reference=_encoded(job, tasks) if share or job.method.needs.reference == "inverted" else None,
        timed=model.ledger.timed,
    )  # fmt: skip


def with_original(sample: Sample, unguided: Job | None) -> Task:
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
    """The tasks' references, resized to the model's size: b c h w. A picture that several tasks share is encoded once."""
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


def left(job: Job) -> int:
    """How many of the run's samples are neither finished nor failed."""
    return len({sample.name for sample in job.samples} - job.folder.tried())


def merge(job: Job) -> None:
    """Makes one run of what several processes have written, in the samples' order; all have to be finished or failed."""
    job.folder.merge([sample.name for sample in job.samples])


def close(job: Job | None) -> None:
    """Marks a run that is not to be judged as done once all its samples are, and releases its folder for other processes."""
    if job is None:
        return
    if not job.folder.done:
        with job.folder.alone("closing"):
            if not left(job):
                merge(job)
                job.folder.finish()
    job.folder.release("closing")
    job.folder.close()
