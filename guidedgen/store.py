"""A run's folder: written so that a kill at any moment loses at most the samples in flight, and read back.

config.yaml        resolved config            records.jsonl  one line per finished sample
environment.json   versions, device, command  trace.jsonl    what methods told on the way
images/NAME.png    one per sample             metrics.json   how the set fares
                                              DONE           written last
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedgen.types import Sample, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One finished sample, as a line of records.jsonl. Costs are this sample's share of its batch."""

    task: str
    prompt: str
    category: str
    seed: int
    image: str  # relative to the run's folder
    scores: dict[str, float | None]  # None: the scorer does not apply to this prompt
    nfe: int
    nfe_backward: int
    decodes: int
    reward_calls: int
    seconds: float
    peak_memory_mib: float
    blurred: bool = False  # the image, not what the scores are of: a content filter has flagged it, or its unguided counterpart

    @property
    def name(self) -> str:
        """The sample's name."""
        return f"{self.task}-{self.seed}"


class RunFolder:
    """One run on disk. Nothing is written before `open`.

    Where several processes share a run, each has a `part` of its name, and writes its records and traces to files of its own,
    records.PART.jsonl and trace.PART.jsonl, until `merge` makes one of them. All parts' records are read.
    """

    def __init__(self, path: Path, part: str = "") -> None:
        self.path, self.part = path, part

    def _log(self, name: str) -> Path:
        """This process's records or traces."""
        return self.path / (f"{name}.{self.part}.jsonl" if self.part else f"{name}.jsonl")

    def _logs(self, name: str) -> list[Path]:
        """Everybody's."""
        return [self.path / f"{name}.jsonl", *sorted(self.path.glob(f"{name}.*.jsonl"))]

    @property
    def done(self) -> bool:
        """Whether the run was finished."""
        return (self.path / "DONE").exists()

    def open(self, config: str, environment: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Makes the folder, or picks up what an earlier process left; `fresh` discards it first."""
        if fresh and self.path.exists():
            shutil.rmtree(self.path)
        (self.path / "images").mkdir(parents=True, exist_ok=True)
        if not self.part:  # others may be writing
            self._drop_partials()
        for log in ("records", "trace"):
            _drop_torn_line(self._log(log))
        self._drop_orphaned_traces()
        write_atomic(self.path / "config.yaml", config.encode())
        self.write_json("environment.json", environment)

    def _drop_partials(self) -> None:
        for partial in self.path.rglob(".*.partial"):
            partial.unlink(missing_ok=True)

    def _drop_orphaned_traces(self) -> None:
        """Traces of samples whose record a kill prevented; they will come again."""
        trace, finished = self._log("trace"), self.records()
        lines = _lines(trace)
        kept = [line for line in lines if f"{line['task']}-{line['seed']}" in finished]
        if len(kept) < len(lines):
            write_atomic(trace, "".join(map(_json_line, kept)).encode())

    def records(self) -> dict[str, Record]:
        """Finished samples by name, in the order they were finished. A line cut short by a kill is not one."""
        lines = (line for log in self._logs("records") for line in _lines(log))
        return {record.name: record for record in (Record(**line) for line in lines)}

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Waits until no other process is in the same block of this run. A process that dies leaves it.

        A lock of the operating system: on a network file system it holds between machines where that supports locks.
        """
        with (self.path / f".{what}.lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def merge(self, names: Sequence[str]) -> None:
        """One records.jsonl and one trace.jsonl of what parts have written, in the order of the samples' names, all finished.

        The same files come out whoever merges, and again after a kill in the middle.
        """
        records, parts = self.records(), [log for name in ("records", "trace") for log in self._logs(name)[1:]]
        if not parts:
            return
        told: dict[str, list[dict[str, Any]]] = {}
        for log in self._logs("trace"):
            here: dict[str, list[dict[str, Any]]] = {}
            for line in _lines(log):
                here.setdefault(f"{line['task']}-{line['seed']}", []).append(line)
            told = {**here, **told}  # the merged file first, where a merge was cut short
        if told:
            events = [line for name in names for line in told.get(name, ())]
            write_atomic(self.path / "trace.jsonl", "".join(map(_json_line, events)).encode())
        lines = (_json_line(dataclasses.asdict(records[name])) for name in names)
        write_atomic(self.path / "records.jsonl", "".join(lines).encode())
        for log in parts:
            log.unlink(missing_ok=True)
        self._drop_partials()

    def save(self, sample: Sample, png: bytes, record: Record, trace: Sequence[Mapping[str, Any]]) -> None:
        """Stores a finished sample: its image, its trace, then its record, which makes it count."""
        write_atomic(self.path / record.image, png)
        if trace:
            told = {"task": sample.task.id, "seed": sample.seed}
            _append(self._log("trace"), "".join(_json_line({**told, **event}) for event in trace))
        _append(self._log("records"), _json_line(dataclasses.asdict(record)))

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file of the run."""
        write_atomic(self.path / name, (json.dumps(_finite(value), indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of the run; empty where there is none."""
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}

    def finish(self) -> None:
        """Declares the run done."""
        write_atomic(self.path / "DONE", b"")


def check_writable(folder: Path, key: str) -> None:
    """Raises UsageError where files cannot be made in the folder, which is made if need be."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{key}={folder}: cannot be written to ({error.strerror or error}); choose another folder") from error


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, after a power cut too."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _append(path: Path, text: str) -> None:
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(path: Path) -> None:
    """Cuts a last line without its newline, which only a kill in the middle of an append leaves."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def _json_line(value: Mapping[str, Any]) -> str:
    return json.dumps(_finite(value)) + "\n"


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which JSON has no words for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
