"""Stored pictures side by side: the same prompt and seed across runs, as many of them as a page can carry."""

from __future__ import annotations

import base64
import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from guidedgen.basics.animation import animated
from guidedgen.runs import inside
from guidedgen.runs.store import Record
from guidedgen.studies.html import address
from guidedgen.studies.study import Run, Study

_SMALL = 24_000  # bytes up to which a stored file is embedded as it is
_MOST = 2**26  # bytes of a picture's file: no run stores larger ones
_SIDE = 320  # px that others are scaled to
_SHEET = 1600  # px that sheets are
_QUALITY = 85  # of a scaled picture's JPEG
_UNREADABLE = (OSError, SyntaxError, ValueError, Warning, Image.DecompressionBombError)  # Pillow's errors for broken files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """One run's picture of a pair, or why it has none."""

    run: Run
    record: Record | None = None  # None where the sample has failed
    failed: str = ""
    embedded: str = ""  # a data: address; empty where there is no picture that can be read, or the page is full

    @property
    def link(self) -> str:
        """Path of the stored file, from the study's folder."""
        assert self.record is not None
        return address(f"{self.run.folder.name}/{self.record.image}")

    def filled(self) -> Shot:
        """The same with its picture embedded."""
        return self if self.record is None else dataclasses.replace(self, embedded=_address(self.run.folder, self.record.image))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The pictures of one prompt and seed."""

    task: str
    prompt: str
    seed: int
    shots: Sequence[Shot]


def pairs(study: Study, budget: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs that are embedded, and the rest, whose shots are links alone.

    Pictures are embedded until they are `budget` bytes; every prompt's first seed comes before any second. Both are in the order
    of prompts, then of seeds.
    """
    everything = list(_gathered(study.drawn))
    turns = sorted(range(len(everything)), key=_turns(everything).__getitem__)
    embedded: dict[int, Pair] = {}
    spent = 0
    for i in turns:
        if spent >= budget:
            break
        shots = [shot.filled() for shot in everything[i].shots]
        embedded[i] = dataclasses.replace(everything[i], shots=shots)
        spent += sum(len(shot.embedded) for shot in shots)
    return [embedded[i] for i in sorted(embedded)], [pair for i, pair in enumerate(everything) if i not in embedded]


def _gathered(runs: Sequence[Run]) -> Iterator[Pair]:
    """Pairs in the order of the fullest run's samples, seeds of a prompt together."""
    records = [{record.name: record for record in run.records} for run in runs]
    found: dict[tuple[str, str], dict[int, Pair]] = {}
    for record in (record for own in sorted(records, key=len, reverse=True) for record in own.values()):
        pair = Pair(task=record.task, prompt=record.prompt, seed=record.seed, shots=())
        found.setdefault((record.task, record.prompt), {}).setdefault(record.seed, pair)
    for by_seed in found.values():
        for seed in sorted(by_seed):
            name = f"{by_seed[seed].task}-{seed}"
            shots = [
                Shot(run=run, record=own.get(name), failed=run.failures.get(name, ""))
                for run, own in zip(runs, records, strict=True)
                if name in own or name in run.failures
            ]
            yield dataclasses.replace(by_seed[seed], shots=shots)


def _turns(everything: Sequence[Pair]) -> list[tuple[int, int]]:
    """Of each, how many seeds of its prompt come before it, then its own index."""
    turns: list[tuple[int, int]] = []
    for index, pair in enumerate(everything):
        same = index > 0 and everything[index - 1].task == pair.task
        turns.append((turns[-1][0] + 1 if same else 0, index))
    return turns


def animation(run: Run, record: Record) -> str:
    """A sample's film as a GIF, as a data: address; empty where it has none that can be read."""
    opened = [_opened(run.folder, path) for path in (f"sheets/film/{record.name}.png", record.image)]
    if opened[0] is None or opened[1] is None:
        return ""
    try:
        content = animated(opened[0][0], opened[1][0].width)
    except _UNREADABLE:
        return ""
    return f"data:image/gif;base64,{base64.b64encode(content).decode()}"


def sheets(run: Run, most: int) -> dict[str, list[tuple[Record, str]]]:
    """The sheets of a run's first samples, `most` of each kind, as data: addresses that can be read."""
    found: dict[str, list[tuple[Record, str]]] = {}
    for kind in inside.names(run.folder, "sheets"):
        for record in run.records[:most]:
            if embedded := _address(run.folder, f"sheets/{kind}/{record.name}.png", _SHEET):
                found.setdefault(kind, []).append((record, embedded))
    return found


def _address(folder: Path, image: str, side: int = _SIDE) -> str:
    """A picture as a data: address: the stored file while it is small, else scaled; empty where it cannot be read."""
    opened = _opened(folder, image)
    if opened is None:
        return ""
    (picture, content), kind = opened, "png"
    try:
        if len(content) > _SMALL:
            small = picture.convert("RGB")
            small.thumbnail((side, side), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=_QUALITY)
            kind, content = "jpeg", buffer.getvalue()
    except _UNREADABLE:
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _opened(folder: Path, image: str) -> tuple[Image.Image, bytes] | None:
    """A stored picture, not decoded yet, and its file; None where it cannot be read."""
    try:
        content = inside.read(folder, image, _MOST)
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            return Image.open(io.BytesIO(content), formats=["PNG"]), content
    except _UNREADABLE:
        return None


def scores_text(scores: Mapping[str, float | None]) -> str:
    """A picture's scores as one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if value is not None)
