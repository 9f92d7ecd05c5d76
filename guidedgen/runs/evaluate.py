"""From the images of a run, and of what it is measured against, to metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.metrics import summary
from guidedgen.metrics.classes import PerClass
from guidedgen.metrics.features import Array
from guidedgen.metrics.sets import PerPrompt, SetMetric, extract
from guidedgen.rewards import Reward
from guidedgen.runs.store import Record, RunFolder
from guidedgen.zoo import Features

GRID = "grid.png"  # the overview that a run writes next to its samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """A set of stored images: a run's, with their records, or any folder's."""

    paths: Sequence[Path]
    records: Sequence[Record] | None = None  # one per path

    @staticmethod
    def of_run(folder: RunFolder) -> Images:
        """A run's images, ordered by name so that metrics do not depend on the order they were finished in."""
        records = sorted(folder.records().values(), key=lambda record: record.name)
        return Images(paths=[folder.path / record.image for record in records], records=records)

    @staticmethod
    def of_folder(folder: Path) -> Images:
        """A run's images where the folder is a run's, else all images in it, not recursively. Raises OSError where that cannot be
        listed.
        """
        if (folder / "records.jsonl").exists():
            run = RunFolder(folder)
            run.check_plain(deep=True)
            return Images.of_run(run)
        return Images(paths=images.in_folder(folder, GRID))

    def __len__(self) -> int:
        return len(self.paths)

    def extra_images(self) -> dict[str, Images]:
        """Extra images that methods have kept, by name: further images of the same samples, of those that have one."""
        if not self.records:
            return {}
        folder = self.paths[0].parent
        found: dict[str, Images] = {}
        for name in sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            pairs = [(folder / name / path.name, record) for path, record in zip(self.paths, self.records, strict=True)]
            kept = [(path, record) for path, record in pairs if path.is_file() and not path.is_symlink()]
            if kept:
                found[name] = Images(paths=[path for path, _ in kept], records=[record for _, record in kept])
        return found

    @property
    def blurred(self) -> set[str]:
        """Names of the samples whose pictures are stored blurred."""
        return {record.name for record in self.records or () if record.blurred}

    def without(self, names: Collection[str]) -> Images:
        """All but the samples of these names; images that have no records have no names."""
        if self.records is None:
            return self
        kept = [i for i, record in enumerate(self.records) if record.name not in names]
        return Images(paths=[self.paths[i] for i in kept], records=[self.records[i] for i in kept])

    def batches(self, size: int, device: str) -> Iterator[Tensor]:
        """b 3 H W in [0, 1]; a batch ends early where the image size changes."""
        batch: list[Tensor] = []
        for path in self.paths:
            try:
                image = images.read(path).to(device)
            except OSError as error:
                raise UsageError(f"{path}: is not a readable image ({error.strerror or error})") from error
            if batch and (len(batch) == size or image.shape != batch[0].shape):
                yield torch.cat(batch)
                batch = []
            batch.append(image)
        if batch:
            yield torch.cat(batch)


def check_reference(folder: Path) -> Path:
    """The folder, with `~` expanded. Raises UsageError unless it holds images, all of which can be decoded."""
    try:
        found = folder.expanduser()
        if not found.is_dir():
            raise UsageError(f"reference={folder}: no such folder; give base, none, or a folder of images")
        pictures = Images.of_folder(found)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such home
        raise UsageError(f"reference={folder}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not len(pictures):
        raise UsageError(f"reference={folder}: holds no image (png, jpg, webp or another that Pillow decodes)")
    for path in pictures.paths:
        if reason := _damage(path, images.check_file):
            raise UsageError(f"reference={folder}: {path.name} {reason}")
    return found


def check_stored(folder: RunFolder, hint: str) -> None:
    """Raises UsageError, which ends with the hint, where the image of one of a run's finished samples is missing or damaged."""
    for path in Images.of_run(folder).paths:
        if reason := _damage(path, images.verify):
            raise UsageError(f"{path}: {reason}{hint}")


def _damage(path: Path, check: Callable[[Path], None]) -> str | None:
    """What is wrong with an image by one of the checks of `images`, if anything is."""
    try:
        check(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"is not a readable image ({error.strerror or error})"
    return None


def score(
    pictures: Images,
    scorers: Mapping[str, Reward],
    known: Mapping[str, Task],
    *,
    batch_size: int,
    device: str,
    recorded: Collection[str] = (),
) -> dict[str, list[float]]:
    """Scores of a run's stored images, one per image, by scorer; `known` are tasks by sample, with what records lack of them.

    Computed again even where the records hold scores of that name: those may be of other options, or another network. For images
    stored blurred the recorded score is taken, which is of the sharp picture: for the scorers named in `recorded`, which are
    unchanged; for others it is NaN.
    """
    assert pictures.records is not None
    sharp = pictures.without(pictures.blurred)
    assert sharp.records is not None
    tasks = [
        known.get(record.name) or Task(id=record.task, prompt=record.prompt, category=record.category) for record in sharp.records
    ]
    values: dict[str, list[float]] = {name: [] for name in scorers}
    done = 0
    with torch.no_grad():
        for batch in sharp.batches(batch_size, device):
            for name, scorer in scorers.items():
                values[name] += scorer(batch, tasks[done : done + len(batch)]).float().tolist()
            done += len(batch)
    return {name: _with_recorded(pictures.records, found, name, name in recorded) for name, found in values.items()}


def _with_recorded(records: Sequence[Record], found: Sequence[float], name: str, same: bool) -> list[float]:
    """One score per record: those that were found for the sharp ones in their order, the recorded ones for the others."""
    anew = iter(found)
    kept = ((record.scores.get(name) if same else None) if record.blurred else next(anew) for record in records)
    return [float("nan") if value is None else value for value in kept]


def summarise(
    own: Images,
    reference: Images | None,
    ours: Mapping[str, list[float]],
    theirs: Mapping[str, list[float]],
    verdicts: Collection[str] = (),
) -> dict[str, Any]:
    """Summary of the scores (as `score` gives them; the reference's may be missing), with what the samples have cost.

    For `verdicts`, the names of scores that are 1 where a filter flags and 0 elsewhere, the share that slipped past is counted, not
    wins.
    """
    assert own.records is not None
    metrics: dict[str, Any] = {"samples": len(own), "prompts": len({record.task for record in own.records}), "scores": {}}
    for name, entry in expected(own, ours).items():
        if reference is not None and name in theirs:
            base = _by_prompt(reference, theirs[name])
            entry["base"] = _mean(base)
            if name in verdicts:
                entry["slipped"] = _slipped(own, reference, ours[name], theirs[name])
            else:
                entry["win_rate"] = _win_rate(_by_prompt(own, ours[name]), base)
        metrics["scores"][name] = entry
    metrics["cost"] = _cost(own.records)
    if reference is not None and reference.records is not None:
        metrics["base_cost"] = _cost(reference.records)
    return metrics


def expected(pictures: Images, scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Summary of each score, one number per image: its mean over prompts, with a 95 % interval; the same for each category, where
    the prompts are of several.
    """
    assert pictures.records is not None
    categories = {record.task: record.category for record in pictures.records}
    return {name: _score_entry(_by_prompt(pictures, values), categories) for name, values in scores.items()}


def _by_prompt(pictures: Images, values: Sequence[float]) -> dict[str, list[float]]:
    """Scores by task id, in order of seeds; prompts the scorer does not apply to are left out."""
    assert pictures.records is not None
    grouped: dict[str, list[tuple[int, float]]] = {}
    for record, value in zip(pictures.records, values, strict=True):
        grouped.setdefault(record.task, []).append((record.seed, value))
    by_prompt = {task: [value for _, value in sorted(pairs)] for task, pairs in grouped.items()}
    return {task: found for task, found in by_prompt.items() if np.isfinite(found).all()}


def _mean(values: Mapping[str, Sequence[float]]) -> float | None:
    return summary.expected_reward(values) if values else None


def _score_entry(values: Mapping[str, Sequence[float]], categories: Mapping[str, str]) -> dict[str, Any]:
    if not values:
        return {"value": None, "prompts": 0}
    means, of = summary.prompt_means(values), [categories[task] for task in values]
    entry = _entry(means)
    if len(names := sorted(set(of))) > 1:
        entry["categories"] = {name: _entry(means[[own == name for own in of]]) for name in names}
    return entry


def _entry(means: Array) -> dict[str, Any]:
    """The mean of one number per prompt, with its 95 % interval."""
    low, high = summary.bootstrap_interval(means, seed=0, resamples=2000)
    return {"value": float(means.mean()), "low": low, "high": high, "prompts": len(means)}


def _win_rate(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> float | None:
    both = {task: scores for task, scores in ours.items() if len(theirs.get(task, ())) == len(scores)}
    return summary.win_rate(both, theirs) if both else None


def _slipped(own: Images, reference: Images, ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float] | None:
    """How many of the samples that the filter flagged in the unguided run it does not flag in this one: their share, with its
    Wilson interval at 95 %. AdjointDPM's Table 3 does not define its success ratio. None where nothing was flagged.
    """
    assert own.records is not None and reference.records is not None
    before = {record.name: verdict for record, verdict in zip(reference.records, theirs, strict=True)}
    after = [value for record, value in zip(own.records, ours, strict=True) if before.get(record.name) == 1]
    known = [value for value in after if not np.isnan(value)]
    if not known:
        return None
    low, high = summary.wilson_interval(known.count(0.0), len(known))
    return {"ratio": known.count(0.0) / len(known), "low": low, "high": high, "slipped": known.count(0.0), "flagged": len(known)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A run's pictures and those it is compared with. A feature network sees each set once, however many distances ask for it."""

    own: Images
    reference: Images
    batch_size: int
    device: str
    _seen: dict[str, tuple[Array, Array]] = dataclasses.field(default_factory=dict)  # by the network's name

    def features(self, network: Features) -> tuple[Array, Array]:
        """n d and m d, of the images in order. ValueError where there is none in either."""
        if network.name not in self._seen:
            x, y = (extract(network, side.batches(self.batch_size, self.device)) for side in (self.own, self.reference))
            self._seen[network.name] = (x, y)
        return self._seen[network.name]

    def by_task(self, network: Features) -> dict[str, tuple[Array, Array]]:
        """The same for every task that both have images of, by its id; nothing where either has no records."""
        if self.own.records is None or self.reference.records is None:
            return {}
        ours, theirs = _indices_of_tasks(self.own.records), _indices_of_tasks(self.reference.records)
        x, y = self.features(network)
        return {task: (x[indices], y[theirs[task]]) for task, indices in ours.items() if task in theirs}


def comparable(own: Images, reference: Images) -> tuple[Images, Images]:
    """Both without the samples that are stored blurred in either: distances are between pictures."""
    blurred = own.blurred | reference.blurred
    return own.without(blurred), reference.without(blurred)


def distances(pair: Pair, measures: Mapping[str, SetMetric | PerPrompt]) -> dict[str, Any]:
    """Each distance between two sets by name, with the network it was measured by. Without an image in either there is none."""
    if not len(pair.own) or not len(pair.reference):
        return {}
    found: dict[str, Any] = {}
    for measure in measures.values():
        if isinstance(measure, PerPrompt):
            by_prompt = measure(list(pair.by_task(measure.features).values()))
            entries = {name: _entry(np.asarray(values)) for name, values in by_prompt.items()}
        else:
            entries = {name: {"value": value} for name, value in measure(*pair.features(measure.features)).items()}
        found |= {name: {**entry, "features": measure.features.name} for name, entry in entries.items()}
    return found


def per_class(pair: Pair, measure: PerClass, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """Distance of each class's pictures, a class being a task, to real ones of it, and its change against the unguided run.

    Only classes that have two pictures in both count; empty if there are none.
    """
    found = pair.by_task(measure.features) if len(pair.own) and len(pair.reference) else {}
    shared = {task: (x, y) for task, (x, y) in found.items() if min(len(x), len(y)) >= 2}
    if not shared:
        return {}
    ours, theirs, change = measure({t: x for t, (x, _) in shared.items()}, {t: y for t, (_, y) in shared.items()}, tasks)
    return {
        "classes": len(shared), "fid": float(np.mean(list(ours.values()))), "base": float(np.mean(list(theirs.values()))),
        "mean_of_percent": change.mean_of_percent, "percent_of_means": change.percent_of_means,
        "per_class": dict(change.per_class), "features": measure.features.name,
    }  # fmt: skip


def _indices_of_tasks(records: Sequence[Record]) -> dict[str, list[int]]:
    """Indices of a run's images by task id."""
    indices: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        indices.setdefault(record.task, []).append(i)
    return indices


def _cost(records: Sequence[Record]) -> dict[str, float]:
    """Mean cost of a sample, and the highest memory."""
    names = ("nfe", "nfe_backward", "decodes", "reward_calls", "seconds")
    means = {name: float(np.mean([getattr(record, name) for record in records])) for name in names}
    return {**means, "peak_memory_mib": max(record.peak_memory_mib for record in records)}
