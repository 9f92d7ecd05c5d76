"""A run's folder: written so that a kill at any moment loses at most the samples in flight, and read back.

config.yaml        resolved config            records.jsonl  one line per finished sample
environment.json   versions, device, command  trace.jsonl    what methods logged on the way
images/NAME.png    one per sample             metrics.json   scores and distances of the set
images/KIND/       extra images that a method keeps
sheets/KIND/       pictures of how an image was made
learned/           where the method learns    run.log        when it started, and why it ended
.lock              while a process is at work DONE           written last

No path or link in it leads out of the folder: see guidedgen.runs.inside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from guidedgen.basics.errors import UsageError, printable
from guidedgen.basics.tasks import Sample
from guidedgen.runs import inside, older, shapes
from guidedgen.runs.locks import Lock, is_taken

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the chunk that every PNG file ends with


class RunFailed(SystemExit):
    """A run cannot go on, with nothing wrong in its config: one line, which Python prints as it exits with code 1."""

    def __init__(self, line: str) -> None:
        super().__init__(f"guidedgen: {printable(line)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One sample that was made, or failed, as a line of records.jsonl. Costs are this sample's share of its batch."""

    task: str
    prompt: str
    category: str
    seed: int
    image: str  # relative to the run's folder; empty where it failed
    scores: dict[str, float | None]  # None: the scorer does not apply to this prompt
    nfe: int
    nfe_backward: int
    decodes: int
    reward_calls: int
    seconds: float
    peak_memory_mib: float
    blurred: bool = False  # the image, not what the scores are of: a content filter has flagged it, or its unguided counterpart
    failed: str | None = None  # why there is no image

    @property
    def name(self) -> str:
        """The sample's name."""
        return f"{self.task}-{self.seed}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a run's records hold, once per sample."""

    records: dict[str, Record]  # of finished samples, by name, in the order they were finished
    failures: dict[str, str]  # why others have failed
    damaged_lines: int  # whole lines that are no record: damaged, or written by something else


# What is written into a run's folder, and checked before it is: users may keep other things there.
_FILES = re.compile(r"(config\.yaml|(environment|metrics)\.json|(records|trace)(\..+)?\.jsonl|run\.log|DONE|(\..+)?\.lock)")
_FOLDERS = ("images", "sheets", "learned")


class RunFolder:
    """One run on disk. Nothing is written before `open`; what cannot be written ends the run by RunFailed.

    Where several processes share a run, each has a `part` of its name, and writes its records and traces to files of its own,
    records.PART.jsonl and trace.PART.jsonl, until `merge` makes one of them. All parts' records are read.
    """

    def __init__(self, path: Path, part: str = "") -> None:
        self.path, self.part = path, part
        self._lock = Lock(path / ".lock")

    def _log(self, name: str) -> str:
        """This process's records or traces."""
        return f"{name}.{self.part}.jsonl" if self.part else f"{name}.jsonl"

    def _logs(self, name: str) -> list[str]:
        """Those of all processes."""
        parts = [found for found in inside.names(self.path) if re.fullmatch(rf"{name}\..+\.jsonl", found)]
        return [f"{name}.jsonl", *parts]

    @property
    def done(self) -> bool:
        """Whether the run was finished and every sample has its whole image.

        Where a sample has failed, or its image or its record was damaged since, the same command tries it again: rewards get
        repaired, services come back, and a failure that repeats costs no more than its batch.
        """
        if not self.finished or not inside.is_file(self.path, "config.yaml"):
            return False
        try:
            wanted = self.read_json("environment.json").get("samples", 0)
        except UsageError:  # which is written anew
            return False
        recorded = self.recorded()
        whole = self._whole(recorded.records)
        return not recorded.damaged_lines and not recorded.failures and len(whole) == len(recorded.records) >= wanted

    @property
    def finished(self) -> bool:
        """Whether it was marked as done, whatever has happened to its files since."""
        return inside.is_file(self.path, "DONE")

    @property
    def damaged_lines(self) -> int:
        """How many lines of the records are none: damaged, or not a run's. A last one that a kill cut short does not count."""
        return self.recorded().damaged_lines

    def open(self, config: str, environment: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Makes the folder, or picks up what an earlier process left; `fresh` discards it first.

        Waits while another process has it open, but for one that has another part of the run.
        """
        with self._own():
            self.path.mkdir(parents=True, exist_ok=True)
            alone = self._acquire()
            if fresh:
                self._clear()
            self._check_plain(inside.check)
            if not self.done:  # by the process that was waited for
                inside.make_folder(self.path, "images")
                self._tidy(alone)
                inside.write(self.path, "config.yaml", config.encode())
                self.write_json("environment.json", environment)
            if self.part:
                self._lock.keep(self._lock_offset)

    @contextlib.contextmanager
    def _own(self) -> Iterator[None]:
        """Turns what cannot be written into RunFailed. The run's folder is no link: it may lead anywhere."""
        with writing(self.path):
            if self.path.is_symlink():
                raise inside.NotPlain("a link, not a run's folder: remove it", self.path)
            yield

    def check_plain(self, *, deep: bool = False) -> None:
        """Raises UsageError where one of the run's files or folders is a link, a pipe or the like; `deep`: or one in those."""
        try:
            self._check_plain(inside.check if deep else inside.is_folder)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be read ({error.strerror})") from error

    def _check_plain(self, check: Callable[[Path, str], object]) -> None:
        """Raises NotPlain where something that is to be written or shown is a link, a pipe or the like."""
        for name in inside.names(self.path):
            if _FILES.fullmatch(name):
                inside.check_file(self.path, name)
        for name in _FOLDERS:
            check(self.path, name)

    @property
    def _lock_offset(self) -> int:
        """The byte of the lock that stands for this part."""
        return int(self.part.split("-")[0])

    def _acquire(self) -> bool:
        """Takes the whole lock for the whole run; a part needs its own byte. Whether no other process has any of it."""
        alone = self._lock.take(wait=not self.part)
        if not alone:
            self._lock.take(self._lock_offset, 1)
        return alone

    def _clear(self) -> None:
        """Removes all that is in the folder but the lock; of a link, the link."""
        for found in self.path.iterdir():
            if found.name != ".lock":
                _remove(found)

    def _tidy(self, alone: bool) -> None:
        """Removes what a kill has cut short and what will be made again: samples that failed or have lost their image, and traces
        of those without a record. Failed samples of other parts stay, and while those are at work, merged files too.
        """
        if alone:
            (self.path / "DONE").unlink(missing_ok=True)
            self._drop_partials()
        recorded = self.recorded()
        if recorded.damaged_lines:
            print(
                f"{self.path}: damaged lines of its records: {recorded.damaged_lines}; what they were of is made again",
                file=sys.stderr,
            )
        kept = self._whole(recorded.records)
        for kind in ("records", "trace"):
            shared = [f"{kind}.jsonl"] if alone else []
            for log in {*shared, self._log(kind)} if self.part else self._logs(kind):
                inside.drop_torn_line(self.path, log)
                self._keep_lines(log, kept, _record if kind == "records" else dict)

    def _keep_lines(self, log: str, names: Collection[str], whole: Callable[[dict[str, Any]], object]) -> None:
        """Keeps the lines of a log that belong to these samples and for which `whole` is true; writes only if that changes it."""
        found = [(line, _parsed(line)) for line in inside.lines(self.path, log)]
        kept = [line for line, record in found if whole(record) and not record.get("failed") and _name(record) in names]
        if len(kept) < len(found):
            inside.write(self.path, log, b"".join(line + b"\n" for line in kept))

    def _drop_partials(self) -> None:
        """Removes files and folders that were not finished."""
        for partial in list(self.path.rglob(".*.partial")):
            _remove(partial)

    def _whole(self, records: Mapping[str, Record]) -> set[str]:
        """The names of samples whose images are there and complete."""
        try:
            with inside.entered(self.path, "images") as folder:
                return {name for name in records if inside.ends_with(folder, f"{name}.png", _PNG_END)}
        except OSError:
            return set()

    def recorded(self) -> Recorded:
        """The run's records. A line cut short by a kill is ignored. Raises UsageError where they are no file that can be read."""
        latest, damaged_lines = self._latest()
        return Recorded(
            records={name: record for name, record in latest.items() if record.failed is None},
            failures={name: record.failed for name, record in latest.items() if record.failed is not None},
            damaged_lines=damaged_lines,
        )

    def _latest(self) -> tuple[dict[str, Record], int]:
        """Samples that were made or failed, by name, in the order they were first tried; and how many full lines are no record."""
        found: list[Record | None] = []
        for log in self._logs("records"):
            try:
                found += [_record(_parsed(line)) for line in inside.lines(self.path, log)]
            except OSError as error:
                raise self._unreadable(log, error) from error
        return {record.name: record for record in found if record is not None}, found.count(None)

    def _unreadable(self, name: str, error: OSError) -> UsageError:
        reason = error.strerror or error
        return UsageError(f"{self.path / name}: cannot be read ({reason}); without it the run's own command goes on")

    def records(self) -> dict[str, Record]:
        """Finished samples by name, in the order they were finished; those that failed are not among them."""
        return self.recorded().records

    def tried(self) -> set[str]:
        """Names of the samples that are finished or have failed."""
        recorded = self.recorded()
        return {*recorded.records, *recorded.failures}

    def failures(self) -> dict[str, str]:
        """Why samples have failed, by name."""
        return self.recorded().failures

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Waits until no other process is in the same block of this run. A process that dies leaves it."""
        lock = Lock(self.path / f".{what}.lock")
        with self._own():
            lock.take()
        try:
            yield
        finally:
            lock.drop()

    def release(self, what: str) -> None:
        """Removes the lock that a process has left by dying in such a block."""
        if inside.is_file(self.path, f".{what}.lock"):
            with self.alone(what):
                pass

    def merge(self, names: Sequence[str]) -> None:
        """One records.jsonl and one trace.jsonl of what parts have written, in the order of the samples' names, all tried.

        The result is the same whichever process merges, and after a kill in the middle.
        """
        parts = [log for name in ("records", "trace") for log in self._logs(name)[1:]]
        if not parts:
            return
        with self._own():
            records, _ = self._latest()
            by_sample: dict[str, list[dict[str, Any]]] = {}
            for log in self._logs("trace"):
                here: dict[str, list[dict[str, Any]]] = {}
                for line in filter(None, map(_parsed, inside.lines(self.path, log))):
                    here.setdefault(_name(line), []).append(line)
                by_sample = {**here, **by_sample}  # the merged file first, where a merge was cut short
            if by_sample:
                events = [line for name in names for line in by_sample.get(name, ())]
                inside.write(self.path, "trace.jsonl", "".join(map(_json_line, events)).encode())
            lines = (_json_line(dataclasses.asdict(records[name])) for name in names)
            inside.write(self.path, "records.jsonl", "".join(lines).encode())
            for log in parts:
                (self.path / log).unlink(missing_ok=True)
            self._drop_partials()

    def save(
        self,
        sample: Sample,
        png: bytes,
        record: Record,
        trace: Sequence[Mapping[str, Any]],
        extra_images: Mapping[str, bytes] = MappingProxyType({}),
        sheets: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Stores a finished sample: its image, what else there is of it, its trace, then its record, which makes it count."""
        self._check_held()
        self.write(record.image, png)
        others = {sample.extra_image(name): other for name, other in extra_images.items()}
        for file, other in (others | {sample.sheet(name): sheet for name, sheet in sheets.items()}).items():
            for above in reversed(Path(file).parents[:-1]):
                self.make_folder(str(above))
            self.write(file, other)
        if trace:
            key = {"task": sample.task.id, "seed": sample.seed}
            self._append(self._log("trace"), "".join(_json_line({**key, **event}) for event in trace))
        self._append(self._log("records"), _json_line(dataclasses.asdict(record)))

    def fail(self, record: Record) -> None:
        """Stores that a sample has failed, and why."""
        self._check_held()
        self._append(self._log("records"), _json_line(dataclasses.asdict(record)))

    def _append(self, name: str, text: str) -> None:
        with self._own(), writing(self.path / name):
            inside.append(self.path, name, text.encode())

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run, by its name in the folder: whole or not at all."""
        with self._own(), writing(self.path / name):
            inside.write(self.path, name, content)

    def make_folder(self, name: str) -> None:
        """Makes a folder inside the run's, where it is not there."""
        with self._own(), writing(self.path / name):
            inside.make_folder(self.path, name)

    @contextlib.contextmanager
    def assembled(self, name: str) -> Iterator[Path]:
        """An empty folder for what a library writes; what is in it is put into the run's folder `name` at the end of the block,
        and thrown away where that fails.
        """
        partial = f"{name}/.new.partial"
        with self._own(), writing(self.path / name):
            inside.make_folder(self.path, name)
            _remove(self.path / partial)
            inside.make_folder(self.path, partial)
            try:
                try:
                    yield self.path / partial
                except Exception as error:  # a library's own for a full disk
                    raise OSError(errno.EIO, " ".join(str(error).split())) from error
                _sync(self.path / partial)
                for made in sorted((self.path / partial).iterdir()):
                    _remove(self.path / name / made.name)
                    made.rename(self.path / name / made.name)
            finally:
                with contextlib.suppress(OSError):
                    _remove(self.path / partial)

    def _check_held(self) -> None:
        """Raises RunFailed where the folder is not the one that was opened: another process may be at work in its successor."""
        if not self._lock.held:
            raise RunFailed(f"{self.path}: was removed while the run was at work in it; the same command makes it anew")

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file of the run."""
        self.write(name, (json.dumps(_finite(value), indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of the run, in today's format; empty where there is none. Raises UsageError where it is damaged: what
        its file holds is known (guidedgen.runs.shapes.FILES).
        """
        try:
            value = shapes.parsed(inside.read(self.path, name))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreadable(name, error) from error
        if value is not None and name == "metrics.json":
            value = older.metrics_now(value)
        wrong = "not a JSON object" if value is None else shapes.FILES.get(name, shapes.anything)(value, "")
        if value is None or wrong:
            raise UsageError(f"{self.path / name}: damaged, {wrong}; remove it, and the run's own command goes on")
        return value

    def note(self, text: str) -> None:
        """Adds what happened, with the time, to run.log, where there is a folder; further lines of the text are indented."""
        first, *others = map(printable, text.strip().splitlines())
        lines = [f"{datetime.datetime.now().isoformat(' ', 'seconds')} {first}", *(f"    {line}" for line in others)]
        with contextlib.suppress(RunFailed):  # what ended the run may be why
            self._append("run.log", "".join(f"{line}\n" for line in lines))

    @property
    def last_note(self) -> str:
        """The first line of what was noted last, without its time; empty where nothing was."""
        try:
            lines = inside.tail(self.path, "run.log", 2**16).decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line[20:] for line in reversed(lines) if not line.startswith(" ")), "")

    @property
    def busy(self) -> bool:
        """Whether another process is at work in the folder."""
        return is_taken(self.path / ".lock")

    def finish(self) -> None:
        """Marks the run as done, and closes its folder."""
        self.write("DONE", b"")
        self.close()

    def close(self) -> None:
        """Lets other processes open the folder."""
        self._lock.drop()


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
    """Writes a file so that it is there whole or not at all, after a power cut too. Raises RunFailed where it cannot."""
    with writing(path):
        inside.write(path.parent, path.name, content)


def _remove(path: Path) -> None:
    """Removes a file, a folder with its contents, or a link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Waits until all that is in a folder is on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write, and ours to follow a link, into RunFailed."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error, inside.NotPlain) else path
        reason = error.strerror or error
        raise RunFailed(f"{where}: cannot be written ({reason}); what is stored stays, and the same command goes on") from error


def _parsed(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it is damaged."""
    return shapes.parsed(line) or {}


def _record(line: Mapping[str, Any]) -> Record | None:
    """The record that a line is; None where it is not one. An image's path follows from its sample's name."""
    try:
        record = Record(**line)
    except TypeError:
        return None
    if shapes.RECORD(dict(line), "") is not None or not _names_a_file(record.task):
        return None
    return record if record.image == f"images/{record.name}.png" or (record.failed is not None and not record.image) else None


def _names_a_file(task: str) -> bool:
    try:
        return not set(os.fsencode(task)) & set(b"/\0")
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _name(line: Mapping[str, Any]) -> str:
    """The sample that a line of a log is of."""
    return f"{line.get('task')}-{line.get('seed')}"


def _json_line(value: Mapping[str, Any]) -> str:
    return json.dumps(_finite(value)) + "\n"


def _finite(value: Any) -> Any:
    """The value with NaN and infinities as null, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
