"""What a run has made, read from its folder: pictures, scores, traces and cost, in the order of its prompts and seeds."""

from __future__ import annotations

import collections
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from guidedgen.basics.errors import UsageError
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFolder
from guidedgen.studies.curves import traced

_COSTS = ("nfe", "nfe_backward", "decodes", "reward_calls", "seconds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The samples of a run: prompt by prompt, and of each prompt seed by seed. A sample that failed has no picture and no scores,
    None in their places; `failures` says why.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    images: Sequence[Image.Image | None]
    scores: Mapping[str, Sequence[float | None]]  # by scorer, the reward first
    trace: Sequence[Sequence[Mapping[str, Any]]]  # what the method reported of each sample, event by event
    cost: Mapping[str, float]  # per sample: rows of the denoiser forward (nfe) and backward, decodes, reward calls, seconds
    failures: Mapping[str, str]
    metrics: Mapping[str, Any]  # those of the whole run, as metrics.json has them
    base: Result | None  # the unguided samples of the same prompts and seeds
    folder: Path | None  # where the run is kept

    def __len__(self) -> int:
        return len(self.prompts)

    def renamed(self, names: Mapping[str, str]) -> Result:
        """The result with other names of scorers."""
        scores = {names.get(name, name): values for name, values in self.scores.items()}
        return dataclasses.replace(self, scores=scores, base=None if self.base is None else self.base.renamed(names))

    def grid(self, columns: int = 8) -> Image.Image:
        """All pictures in one: the unguided ones above the guided ones where there are any."""
        rows = [images for result in (self.base, self) if result is not None for images in [result.images]]
        sizes = [image.size for images in rows for image in images if image is not None]
        width, height = sizes[0] if sizes else (1, 1)
        count = min(columns, max(len(self), 1))
        bands = -(-len(self) // count)
        sheet = Image.new("RGB", (count * width, bands * len(rows) * height), "white")
        for row, images in enumerate(rows):
            for i, image in enumerate(images):
                if image is not None:
                    sheet.paste(image, (i % count * width, (i // count * len(rows) + row) * height))
        return sheet

    def _repr_png_(self) -> bytes:
        """In a notebook: the grid."""
        buffer = io.BytesIO()
        self.grid().save(buffer, format="PNG")
        return buffer.getvalue()


def of_job(job: Job, metrics: Mapping[str, Any]) -> Result:
    """What a finished job has made."""
    samples = {sample.name: (sample.task.prompt, sample.seed) for sample in job.samples}
    return _result(job.folder, samples, metrics, None if job.base is None else of_job(job.base, {}))


def read(path: Path) -> Result:
    """What a run's folder holds, by prompt and seed. Raises UsageError where it is no run, or is damaged."""
    if not (path / "records.jsonl").is_file():
        raise UsageError(
            f"{path}: holds no records.jsonl; give a run's folder, as in outputs/default/code-aesthetic-lab-lab-<hash>"
        )
    folder = RunFolder(path)
    found = folder.recorded().records
    order = {task: i for i, task in enumerate(dict.fromkeys(record.task for record in found.values()))}
    names = sorted(found, key=lambda name: (order[found[name].task], found[name].seed))
    samples = {name: (found[name].prompt, found[name].seed) for name in names}
    return _result(folder, samples, folder.read_json("metrics.json"), None)


def _result(folder: RunFolder, samples: Mapping[str, tuple[str, int]], metrics: Mapping[str, Any], base: Result | None) -> Result:
    recorded = folder.recorded()
    records = [recorded.records.get(name) for name in samples]
    made = [record for record in records if record is not None]
    traces: dict[tuple[str, int], list[Mapping[str, Any]]] = collections.defaultdict(list)
    for event in traced(folder.path):
        traces[event.get("task", ""), event.get("seed", 0)].append(event)
    return Result(
        prompts=[prompt for prompt, _ in samples.values()],
        seeds=[seed for _, seed in samples.values()],
        images=[None if record is None else _image(folder, record.image) for record in records],
        scores={
            name: [None if record is None else record.scores.get(name) for record in records]
            for name in dict.fromkeys(name for record in made for name in record.scores)
        },
        trace=[[] if record is None else traces[record.task, record.seed] for record in records],
        cost={name: sum(getattr(record, name) for record in made) / max(len(made), 1) for name in _COSTS},
        failures=dict(recorded.failures),
        metrics=metrics,
        base=base,
        folder=folder.path,
    )


def _image(folder: RunFolder, name: str) -> Image.Image:
    with Image.open(folder.path / name) as image:
        return image.convert("RGB")
