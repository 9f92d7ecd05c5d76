"""Digests of the files that a run and its metrics read, so that a run is identified by their contents and not by paths.

The files of a built object are its attributes that are paths, those of its parts, and `files` where it keeps a path in another
form. A file counts by its SHA-256, a file of the hub's cache by the commit of its snapshot, which need not be read. The
digests are kept in a small file of the user's cache, by size and times, so that gigabytes are read once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task

_OWN = ("guidedgen.",)
_GRAIN = 2.0  # s; a file may be changed again within the grain of its file system's clock, and look the same
_SMALL = 1 << 16  # bytes; to read such a file takes no longer than to look it up
_KEPT = 20_000  # files that the cache holds at most
_COMMIT = re.compile(r"[0-9a-f]{40}")

Digests = dict[str, str]  # by a file's name, in its folder where that is meant: a SHA-256, or "commit ..." of a repository
Parts = Mapping[str, Mapping[str, str]]  # Digests by what reads the files: "dataset", "model", "method", ...


def of(*built: Any, packages: Sequence[str] = ()) -> Digests:
    """The digests of all files that built objects read.

    `packages` are prefixes of modules, as in "my_lab.", of classes that are not this package's. Of their objects a text that names
    an existing file counts as a path too. Raises UsageError where a file cannot be read.
    """
    found: Digests = {}
    for label, digest in (entry for path in _paths(built, (*_OWN, *packages), {}) for entry in _entries(path)):
        name, number = label, 1
        while found.get(name, digest) != digest:  # another file of that name
            number += 1
            name = f"{label} ({number})"
        found[name] = digest
    _store()
    return found


def of_tasks(tasks: Sequence[Task]) -> str:
    """The digest of tasks, with the content of their references."""
    references = {task.reference: sha256(Path(task.reference)) for task in tasks if task.reference is not None}
    rows = [
        [task.id, task.prompt, task.category, task.noise_ratio, references[task.reference] if task.reference is not None else None]
        for task in tasks
    ]
    _store()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def of_files(files: Iterable[Path]) -> str:
    """One digest of files, by their names and contents."""
    rows = sorted([file.name, sha256(file)] for file in files)
    _store()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def changed(then: Parts, now: Parts) -> list[str]:
    """The parts that hold something else now, with the first file of each."""
    found = []
    for part in sorted({*then, *now}):
        before, after = then.get(part, {}), now.get(part, {})
        if names := [name for name in {**before, **after} if before.get(name) != after.get(name)]:
            found.append(f"{part} ({names[0]}{', ...' if len(names) > 1 else ''})")
    return found


def recorded(environment: Mapping[str, Any], name: str = "contents") -> Parts | None:
    """The contents that a run has recorded in its environment.json; None of an older run, and where they are damaged."""
    parts = environment.get(name)
    if not isinstance(parts, dict) or not all(isinstance(digests, dict) for digests in parts.values()):
        return None
    return parts if all(isinstance(value, str) for digests in parts.values() for value in digests.values()) else None


# From objects to paths


def _paths(value: Any, packages: Sequence[str], seen: dict[int, Any], *, foreign: bool = False) -> Iterator[Path]:
    """The paths in a value; `foreign` where it is part of an object whose class is not this package's."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str):
        if foreign and (path := _named(value)):
            yield path
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(item, packages, seen, foreign=foreign)
    elif isinstance(value, functools.partial):
        yield from _paths([value.func, value.args, value.keywords], packages, seen, foreign=foreign)
    elif isinstance(value, types.MethodType):
        yield from _paths(value.__self__, packages, seen)
    elif not isinstance(value, type) and f"{type(value).__module__}.".startswith(tuple(packages)) and id(value) not in seen:
        seen[id(value)] = value
        files = getattr(value, "files", ())
        yield from (Path(file) for file in files if isinstance(file, str | Path)) if isinstance(files, Iterable) else ()
        other = not f"{type(value).__module__}.".startswith(_OWN)
        for item in _attributes(value):
            yield from _paths(item, packages, seen, foreign=other)


def _attributes(value: Any) -> list[Any]:
    """What an object was built with; not what it has loaded since and keeps by functools.cached_property."""
    members = {name: member for kind in reversed(type(value).__mro__) for name, member in vars(kind).items()}
    names = {**dict.fromkeys(getattr(value, "__dict__", ())), **dict.fromkeys(_slots(type(value)))}
    return [getattr(value, name, None) for name in names if not isinstance(members.get(name), functools.cached_property)]


def _slots(kind: type) -> list[str]:
    found = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    return [name for slots in found for name in ([slots] if isinstance(slots, str) else slots) if not name.startswith("__")]


def _named(text: str) -> Path | None:
    """The file that a text names, or the folder where it is written as a path; not one that holds everything, as "/" and "..".."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(text).expanduser()
        if path.is_file() or (os.sep in text and path.is_dir() and not Path.cwd().is_relative_to(path.resolve())):
            return path
    return None


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """The name and the digest of a file, or of all files in a folder but hidden ones; none for a path that does not exist."""
    try:
        if path.is_file():
            yield _entry(path, path.name)
        elif path.is_dir():
            yield from (_entry(file, f"{path.name}/{file.relative_to(path).as_posix()}") for file in _inside(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error


def _inside(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those inside it, links to folders too, in the order of their names."""
    seen = set()
    for directory, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        found = [Path(directory, name) for name in sorted(files) if not name.startswith(".")] if real not in seen else []
        seen.add(real)
        yield from (file for file in found if file.is_file())


def _entry(file: Path, label: str) -> tuple[str, str]:
    snapshot = next((part for part in file.parents if _COMMIT.fullmatch(part.name) and part.parent.name == "snapshots"), None)
    repository = snapshot.parent.parent if snapshot else None
    if snapshot is None or repository is None or not repository.name.startswith("models--"):
        return label, sha256(file)
    name = "/".join(repository.name.split("--")[1:])
    if file.is_symlink() and file.resolve().is_relative_to(repository.resolve() / "blobs"):
        return name, f"commit {snapshot.name}"  # whatever else of the snapshot is there by now
    return f"{name}/{file.relative_to(snapshot).as_posix()}", sha256(file)


# From paths to digests

_Stamp = list[int]
_known: dict[str, tuple[_Stamp, str]] = {}  # of this process, by path
_fresh: dict[str, tuple[_Stamp, str]] = {}  # of those, what is to be added to the user's cache
_latest: dict[str, str] = {}  # what a file held when this process last looked
_read: set[Path] = set()  # caches that have been read


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, hexadecimal; from the cache where its size, times and inode are unchanged.

    Raises UsageError where it cannot be read.
    """
    _load()
    path = os.path.abspath(file)
    try:
        stamp = _stamp(path)
        before = _known.get(path)
        if before is not None and before[0] == stamp:
            return _held(path, before[1])
        with open(path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        settled = max(stamp[1], stamp[2]) / 1e9 < time.time() - _GRAIN and _stamp(path) == stamp
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror or error})") from error
    if settled:
        _known[path] = (stamp, digest)
        if stamp[0] >= _SMALL:
            _fresh[path] = (stamp, digest)
    return _held(path, digest)


def _held(path: str, digest: str) -> str:
    """The digest; if it has changed since this process last looked, everything that was loaded is dropped."""
    if _latest.setdefault(path, digest) != digest:
        _latest[path] = digest
        _forget()
    return digest


def _stamp(path: str) -> _Stamp:
    """What changes with a file: its size, its times and its inode. The second time cannot be set back, as by `touch -r`."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _forget() -> None:
    """Drops what this process has loaded, because a file that it may be from has changed."""
    for name, module in list(sys.modules.items()):
        if f"{name}.".startswith(_OWN):
            for member in list(vars(module).values()):
                if callable(clear := getattr(member, "cache_clear", None)):
                    clear()


def _cache() -> Path | None:
    """The user's cache of digests; None where the user has no home."""
    with contextlib.suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "guidedgen", "digests.json").expanduser()
    return None


def _load() -> None:
    """Reads the user's cache once. One that is not there, or damaged, is an empty one."""
    cache = _cache()
    if cache is not None and cache not in _read:
        _read.add(cache)
        for path, kept in _stored(cache).items():
            _known.setdefault(path, kept)


def _stored(cache: Path) -> dict[str, tuple[_Stamp, str]]:
    found: dict[str, tuple[_Stamp, str]] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        stored = json.loads(cache.read_bytes()) if cache.is_file() else {}
        for path, entry in stored.items() if isinstance(stored, dict) else ():
            match entry:
                case [[int(), int(), int(), int(), int()] as stamp, str(digest)] if re.fullmatch(r"[0-9a-f]{64}", digest):
                    found[path] = (stamp, digest)
    return found


def _store() -> None:
    """Adds what this process has read to the user's cache. Where that cannot be written, the next process reads it again."""
    cache = _cache()
    if cache is None or not _fresh:
        return
    partial = cache.with_name(f".{cache.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        kept = list({**_stored(cache), **_fresh}.items())[-_KEPT:]
        partial.write_text(json.dumps(dict(kept)))
        partial.replace(cache)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    _fresh.clear()
