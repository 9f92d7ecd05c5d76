"""Reads and writes files of a folder safely: no link and no name leads out of it, and only regular files are opened.

A name is relative to the folder, as in images/a-0.png. The folder itself may be reached through links, as outputs on a scratch disk
are; below it a link is never followed, and a pipe, a socket or a device is never opened. What is written replaces the file of that
name: another name of the same file, a hard link, keeps the old content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

LONGEST = 2**24  # bytes of a line
_KINDS = {
    stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder", stat.S_IFREG: "a file",
}  # fmt: skip
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class NotPlain(OSError):
    """There is a link of this name, or something of another kind than expected."""

    def __init__(self, what: str, path: Path) -> None:
        super().__init__(errno.EINVAL, what, str(path))


@contextlib.contextmanager
def entered(root: Path, folder: str = "") -> Iterator[int]:
    """The descriptor of a folder inside `root`. Raises OSError where it is not there, and where a link would lead to it."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = root
        for part in _parts(root, folder):
            path = path / part
            _check(directory, part, path, stat.S_IFDIR)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | _SAFE, dir_fd=directory)
            os.close(directory)
            directory = inner
        yield directory
    finally:
        os.close(directory)


def _parts(root: Path, name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise NotPlain("a name that leads out of its folder", root / name.replace("\0", "?"))
    return path.parts


def _split(root: Path, name: str) -> tuple[str, str]:
    """The folder and the last part of a name."""
    *folders, entry = _parts(root, name)
    return "/".join(folders), entry


def _check(directory: int, entry: str, path: Path, wanted: int) -> bool:
    """Whether there is something of this name; it has to be of the wanted kind. A device is not even opened to find out."""
    try:
        kind = stat.S_IFMT(os.lstat(entry, dir_fd=directory).st_mode)
    except FileNotFoundError:
        return False
    if kind != wanted:
        raise NotPlain(f"{_KINDS.get(kind, 'something else')}, not {_KINDS[wanted]}: remove it", path)
    return True


def opened(root: Path, name: str, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a file. Raises FileNotFoundError where there is none, NotPlain where it is none, OSError otherwise."""
    folder, entry = _split(root, name)
    with entered(root, folder) as directory:
        _check(directory, entry, root / name, stat.S_IFREG)
        return os.open(entry, flags | _SAFE, 0o666, dir_fd=directory)


def is_file(root: Path, name: str) -> bool:
    """Whether a file of this name is there."""
    try:
        folder, entry = _split(root, name)
        with entered(root, folder) as directory:
            return _check(directory, entry, root / name, stat.S_IFREG)
    except OSError:
        return False


def read(root: Path, name: str, most: int | None = 2**26) -> bytes:
    """A file's content. Raises OSError as `opened` does, and where it is more than so many bytes."""
    with os.fdopen(opened(root, name), "rb") as file:
        if most is not None and os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"more than {most // 2**20} MiB", str(root / name))
        return file.read()


def tail(root: Path, name: str, most: int) -> bytes:
    """The last bytes of a file."""
    with os.fdopen(opened(root, name), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def lines(root: Path, name: str) -> Iterator[bytes]:
    """The whole lines of a log, without their ends; of one that is longer than any that is written, an empty one. None where there
    is no file. A last line without its end is being written, or was cut short by a kill.
    """
    try:
        file = os.fdopen(opened(root, name), "rb")
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(LONGEST):
            if line.endswith(b"\n"):
                yield line[:-1]
            elif _skips_to_end(file):
                yield b""


def _skips_to_end(file: IO[bytes]) -> bool:
    """Reads to the end of a line; whether it has one."""
    while part := file.readline(LONGEST):
        if part.endswith(b"\n"):
            return True
    return False


def ends_with(directory: int, entry: str, end: bytes) -> bool:
    """Whether a file is there, in a folder that was entered, and its last bytes are these."""
    try:
        if not _check(directory, entry, Path(entry), stat.S_IFREG):
            return False
        with os.fdopen(os.open(entry, os.O_RDONLY | _SAFE, dir_fd=directory), "rb") as file:
            file.seek(-len(end), os.SEEK_END)
            return file.read() == end
    except OSError:  # it is shorter, or cannot be read
        return False


def names(root: Path, folder: str = "") -> list[str]:
    """What is directly in a folder, `root` or one inside it, in order; nothing where it is not there."""
    try:
        with entered(root, folder) as directory:
            return sorted(os.listdir(directory))
    except OSError:
        return []


def write(root: Path, name: str, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, after a power cut too. Raises OSError where it cannot."""
    folder, entry = _split(root, name)
    with entered(root, folder) as directory:
        _check(directory, entry, root / name, stat.S_IFREG)
        partial = f".{entry}.{os.getpid()}.partial"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=directory)  # of a process of this number that was killed
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o666, dir_fd=directory), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, entry, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=directory)  # it would take what is left of a full disk
            raise
        os.fsync(directory)


def append(root: Path, name: str, content: bytes) -> None:
    """Adds to a file, which is made if need be, and waits until it is on the disk."""
    with os.fdopen(opened(root, name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as file:
        alone = os.fstat(file.fileno()).st_nlink == 1
        if alone:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    if not alone:
        write(root, name, read(root, name, None) + content)


def drop_torn_line(root: Path, name: str) -> None:
    """Cuts a last line without its end, which only a kill in the middle of an append leaves."""
    try:
        file = os.fdopen(opened(root, name, os.O_RDWR), "r+b")
    except FileNotFoundError:
        return
    with file:
        size = end = os.fstat(file.fileno()).st_size
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if end < size and os.fstat(file.fileno()).st_nlink == 1:
            file.truncate(end)
            return
    if end < size:
        write(root, name, read(root, name, None)[:end])


def make_folder(root: Path, name: str) -> None:
    """Makes a folder inside one that is there. Raises NotPlain where something else has its name."""
    folder, entry = _split(root, name)
    with entered(root, folder) as directory:
        if not _check(directory, entry, root / name, stat.S_IFDIR):
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.mkdir(entry, dir_fd=directory)


def check(root: Path, name: str) -> None:
    """Raises NotPlain where a folder inside `root`, if it is there, is none, or holds what is no file and no folder."""
    if not is_folder(root, name):
        return
    with os.scandir(root / name) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            check(root, f"{name}/{entry.name}")
        elif not entry.is_file(follow_symlinks=False):
            check_file(root, f"{name}/{entry.name}")


def is_folder(root: Path, name: str) -> bool:
    """Whether there is something of this name. Raises NotPlain where that is no folder."""
    folder, entry = _split(root, name)
    with entered(root, folder) as directory:
        return _check(directory, entry, root / name, stat.S_IFDIR)


def check_file(root: Path, name: str) -> None:
    """Raises NotPlain where something is there under the name that is no file."""
    folder, entry = _split(root, name)
    with entered(root, folder) as directory:
        _check(directory, entry, root / name, stat.S_IFREG)


def check_links(root: Path, name: str) -> None:
    """Raises NotPlain where a folder inside `root`, if it is there, is none, or a link in it, at any depth, leads out of it."""
    if not is_folder(root, name):
        return
    home = os.path.realpath(root / name)
    for path, folders, files in os.walk(home):
        for each in (os.path.join(path, one) for one in (*folders, *files)):
            if os.path.islink(each) and os.path.commonpath([home, os.path.realpath(each)]) != home:
                raise NotPlain("a link that leads out of the run's folder: remove it", Path(each))
