"""A run's folder: written so that a kill at any moment loses at most the samples in flight, and read back.

config.yaml        resolved config            records.jsonl  one line per finished sample
environment.json   versions, device, command  trace.jsonl    what methods told on the way
images/NAME.png    one per sample             metrics.json   how the set fares
images/KIND/       kept beside them
.lock              while a process is at work run.log        when it started, and why it ended
                                              DONE           written last
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import itertools
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from guidedgen.types import Sample, UsageError

_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # the chunk that every PNG file ends with


class RunFailed(SystemExit):
    """A run cannot go on, with nothing wrong in its config: one line, which Python prints as it exits with code 1."""

    def __init__(self, line: str) -> None:
        super().__init__(f"guidedgen: {line}")


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


# What tells a record from any other object in its log.
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("task", "prompt", "category", "image"), str),
    **dict.fromkeys(("seed", "nfe", "nfe_backward", "decodes", "reward_calls"), int),
    **dict.fromkeys(("seconds", "peak_memory_mib"), (int, float)),
    "scores": dict,
}


class RunFolder:
    """One run on disk. Nothing is written before `open`; what cannot be written ends the run by RunFailed.

    Where several processes share a run, each has a `part` of its name, and writes its records and traces to files of its own,
    records.PART.jsonl and trace.PART.jsonl, until `merge` makes one of them. All parts' records are read.
    """

    def __init__(self, path: Path, part: str = "") -> None:
        self.path, self.part = path, part
        self._lock = _Lock(path / ".lock")

    def _log(self, name: str) -> Path:
        """This process's records or traces."""
        return self.path / (f"{name}.{self.part}.jsonl" if self.part else f"{name}.jsonl")

    def _logs(self, name: str) -> list[Path]:
        """Everybody's."""
        return [self.path / f"{name}.jsonl", *sorted(self.path.glob(f"{name}.*.jsonl"))]

    @property
    def done(self) -> bool:
        """Whether the run was finished and every sample has its whole image.

        Where a sample has failed, or its image or its record was damaged since, the same command tries it again: rewards get
        repaired, services come back, and a failure that repeats costs no more than its batch.
        """
        if not (self.path / "DONE").exists():
            return False
        records, spoiled = self._told()
        return not spoiled and all(map(self._is_whole, records.values()))

    @property
    def spoiled(self) -> int:
        """How many lines of the records are none: damaged, or somebody else's. A last one that a kill cut short does not count."""
        return self._told()[1]

    def open(self, config: str, environment: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Makes the folder, or picks up what an earlier process left; `fresh` discards it first.

        Waits while another process has it open, but for one that has another part of the run.
        """
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            alone = self._acquire()
            if fresh:
                self._clear()
            if not self.done:  # by the process that was waited for
                (self.path / "images").mkdir(exist_ok=True)
                self._tidy(alone)
                write_atomic(self.path / "config.yaml", config.encode())
                self.write_json("environment.json", environment)
            if self.part:
                self._lock.keep(self._place)

    @property
    def _place(self) -> int:
        """The byte of the lock that stands for this part."""
        return int(self.part.split("-")[0])

    def _acquire(self) -> bool:
        """Takes the whole lock for the whole run; a part needs its own byte. Whether no other process has any of it."""
        alone = self._lock.take(wait=not self.part)
        if not alone:
            self._lock.take(self._place, 1)
        return alone

    def _clear(self) -> None:
        """Removes all that is in the folder but the lock."""
        for found in self.path.iterdir():
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            elif found.name != ".lock":
                found.unlink()

    def _tidy(self, alone: bool) -> None:
        """Takes away what a kill has cut short and what will come again: samples that failed or have lost their image, traces of
        those without a record. Of other parts, what has failed is theirs to try again; where they are at work, what is merged too.
        """
        if alone:
            (self.path / "DONE").unlink(missing_ok=True)
            self._drop_partials()
        records, spoiled = self._told()
        if spoiled:
            print(f"{self.path}: damaged lines of its records: {spoiled}; what they were of is made again", file=sys.stderr)
        kept = {name for name, record in records.items() if self._is_whole(record)}
        for kind in ("records", "trace"):
            shared = [self.path / f"{kind}.jsonl"] if alone else []
            for log in {*shared, self._log(kind)} if self.part else self._logs(kind):
                _drop_torn_line(log)
                _keep_lines(log, kept, _record if kind == "records" else dict)

    def _drop_partials(self) -> None:
        for partial in self.path.rglob(".*.partial"):
            partial.unlink(missing_ok=True)

    def _is_whole(self, record: Record) -> bool:
        """Whether the sample came out and its image lies there to its end."""
        return record.failed is None and _ends_with(self.path / record.image, _PNG_END)

    def _latest(self) -> dict[str, Record]:
        """Samples that were made or failed, by name, in the order they were. A line cut short by a kill is not one."""
        return self._told()[0]

    def _told(self) -> tuple[dict[str, Record], int]:
        """The same, and how many whole lines are no record."""
        found = [_record(line) for log in self._logs("records") for line in _lines(log)]
        records = [record for record in found if record is not None]
        return {record.name: record for record in records}, len(found) - len(records)

    def records(self) -> dict[str, Record]:
        """Finished samples by name, in the order they were finished; those that failed are not among them."""
        return {name: record for name, record in self._latest().items() if record.failed is None}

    def tried(self) -> set[str]:
        """Names of the samples that are finished or have failed."""
        return set(self._latest())

    def failures(self) -> dict[str, str]:
        """Why samples have failed, by name."""
        return {name: record.failed for name, record in self._latest().items() if record.failed is not None}

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Waits until no other process is in the same block of this run. A process that dies leaves it."""
        lock = _Lock(self.path / f".{what}.lock")
        with _writing(self.path):
            lock.take()
        try:
            yield
        finally:
            lock.drop()

    def merge(self, names: Sequence[str]) -> None:
        """One records.jsonl and one trace.jsonl of what parts have written, in the order of the samples' names, all tried.

        The same files come out whoever merges, and again after a kill in the middle.
        """
        records, parts = self._latest(), [log for name in ("records", "trace") for log in self._logs(name)[1:]]
        if not parts:
            return
        told: dict[str, list[dict[str, Any]]] = {}
        for log in self._logs("trace"):
            here: dict[str, list[dict[str, Any]]] = {}
            for line in filter(None, _lines(log)):
                here.setdefault(_name(line), []).append(line)
            told = {**here, **told}  # the merged file first, where a merge was cut short
        if told:
            events = [line for name in names for line in told.get(name, ())]
            write_atomic(self.path / "trace.jsonl", "".join(map(_json_line, events)).encode())
        lines = (_json_line(dataclasses.asdict(records[name])) for name in names)
        write_atomic(self.path / "records.jsonl", "".join(lines).encode())
        for log in parts:
            log.unlink(missing_ok=True)
        self._drop_partials()

    def save(
        self,
        sample: Sample,
        png: bytes,
        record: Record,
        trace: Sequence[Mapping[str, Any]],
        beside: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """Stores a finished sample: its image, those kept beside it, its trace, then its record, which makes it count."""
        self._check_held()
        write_atomic(self.path / record.image, png)
        for name, other in beside.items():
            file = self.path / sample.beside(name)
            with _writing(file):
                file.parent.mkdir(exist_ok=True)
            write_atomic(file, other)
        if trace:
            told = {"task": sample.task.id, "seed": sample.seed}
            _append(self._log("trace"), "".join(_json_line({**told, **event}) for event in trace))
        _append(self._log("records"), _json_line(dataclasses.asdict(record)))

    def fail(self, record: Record) -> None:
        """Stores that a sample has failed, and why."""
        self._check_held()
        _append(self._log("records"), _json_line(dataclasses.asdict(record)))

    def _check_held(self) -> None:
        """Raises RunFailed where the folder is not the one that was opened: another process may be at work in its successor."""
        if not self._lock.held:
            raise RunFailed(f"{self.path}: was removed while the run was at work in it; the same command makes it anew")

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file of the run."""
        write_atomic(self.path / name, (json.dumps(_finite(value), indent=1) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file of the run; empty where there is none. Raises UsageError where it is damaged."""
        try:
            told = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return {}
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise UsageError(f"{self.path / name}: damaged, not a JSON object; remove it, and the run's own command goes on")
        return told

    def note(self, text: str) -> None:
        """Adds what happened, with the time, to run.log, where there is a folder; further lines of the text are indented."""
        first, *others = text.strip().splitlines()
        lines = [f"{datetime.datetime.now().isoformat(' ', 'seconds')} {first}", *(f"    {line}" for line in others)]
        with contextlib.suppress(RunFailed):  # what ended the run may be why
            _append(self.path / "run.log", "".join(f"{line}\n" for line in lines))

    @property
    def last_note(self) -> str:
        """The first line of what was noted last, without its time; empty where nothing was."""
        try:
            lines = (self.path / "run.log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line[20:] for line in reversed(lines) if not line.startswith(" ")), "")

    @property
    def busy(self) -> bool:
        """Whether another process is at work in the folder."""
        try:
            with (self.path / ".lock").open("r+b") as file:
                return not _try_lock(file, 0, 0)
        except OSError:
            return False

    def finish(self) -> None:
        """Declares the run done, and closes its folder."""
        write_atomic(self.path / "DONE", b"")
        self.close()

    def close(self) -> None:
        """Lets other processes open the folder."""
        self._lock.drop()


class _Lock:
    """A lock on the bytes of a file. The kernel gives it back when its holder ends, however it ends.

    A POSIX lock (fcntl) and not BSD's (flock): NFS, GPFS and Lustre hold it between machines wherever they have locks at all, and
    children do not inherit it. A process excludes others, not itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    @property
    def held(self) -> bool:
        """Whether the file that was opened is the one that lies there now."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def take(self, start: int = 0, length: int = 0, *, wait: bool = True) -> bool:
        """Takes `length` bytes (0: all) from `start` on, once no other process has any of them; or only if so, without `wait`."""
        for looks in itertools.count():
            file = self._there()
            if _try_lock(file, start, length):
                if self.held:  # and not removed by its last holder
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {platform.node()}".encode())
                    file.flush()
                    break
            elif not wait:
                return False
            elif looks == 4:
                file.seek(0)
                holder = file.read().decode() or "another process"
                print(f"{self._path.parent}: {holder} is at work on it; waiting until it has finished", file=sys.stderr, flush=True)
            time.sleep(0.25)
        return True

    def _there(self) -> IO[bytes]:
        """The file that lies there now, open."""
        if self._file is None or not self.held:
            self._close()
            self._file = self._path.open("a+b")
        return self._file

    def keep(self, place: int) -> None:
        """Gives back all but the byte at `place`."""
        assert self._file is not None
        with contextlib.suppress(OSError):  # where there are no locks
            fcntl.lockf(self._file, fcntl.LOCK_UN, 0, place + 1)
            if place:
                fcntl.lockf(self._file, fcntl.LOCK_UN, place, 0)

    def drop(self) -> None:
        """Gives it back; the file goes with its last holder."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # the folder may be gone, or not be written to any more
            if self.held and _try_lock(self._file, 0, 0):
                self._path.unlink()
        self._close()


def _try_lock(file: IO[bytes], start: int, length: int) -> bool:
    """Whether no other process has any of the bytes; they are then this one's."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            print(f"{file.name}: no locks on this file system; start no second process on this run", file=sys.stderr)
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _writing(path):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # it would take what is left of a full disk
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns the system's refusal to write into RunFailed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise RunFailed(f"{path}: cannot be written ({reason}); what is stored stays, and the same command goes on") from error


def _append(path: Path, text: str) -> None:
    with _writing(path), path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _ends_with(path: Path, end: bytes) -> bool:
    """Whether the file is there and its last bytes are these."""
    try:
        with path.open("rb") as file:
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end
    except OSError:  # no file, or one that is shorter
        return False


def _drop_torn_line(path: Path) -> None:
    """Cuts a last line without its newline, which only a kill in the middle of an append leaves."""
    if not path.exists():
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, empty where a power cut has spoiled them: a kill cuts the last one short."""
    if not path.exists():
        return []
    return list(map(_parsed, path.read_bytes().split(b"\n")[:-1]))


def _parsed(line: bytes) -> dict[str, Any]:
    """What a line says; nothing where it is spoiled."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _record(line: Mapping[str, Any]) -> Record | None:
    """The record that a line is; None where it is not one."""
    try:
        record = Record(**line)
    except TypeError:
        return None
    return record if all(isinstance(getattr(record, name), kind) for name, kind in _KINDS.items()) else None


def _name(line: Mapping[str, Any]) -> str:
    """The sample that a line of a log is of."""
    return f"{line.get('task')}-{line.get('seed')}"


def _keep_lines(path: Path, names: Collection[str], whole: Callable[[dict[str, Any]], object]) -> None:
    """Leaves in a log what is of samples of these names and `whole` holds of; the file stays as it is where that is all."""
    if not path.exists():
        return
    found = [(line, _parsed(line)) for line in path.read_bytes().split(b"\n")[:-1]]
    kept = [line for line, told in found if whole(told) and not told.get("failed") and _name(told) in names]
    if len(kept) < len(found):
        write_atomic(path, b"".join(line + b"\n" for line in kept))


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
