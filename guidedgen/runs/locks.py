"""Locks between processes, of one machine or of several."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import IO

from guidedgen.runs import inside

_HOLDER = re.compile(r"process \d+ on [\w.-]+")


class Lock:
    """A lock on the bytes of a file. The kernel releases it when its holder ends, however it ends.

    A POSIX lock (fcntl) and not BSD's (flock): NFS, GPFS and Lustre hold it between machines wherever they have locks at all, and
    children do not inherit it. A process excludes others, not itself. A link is not followed: OSError.
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
        """Whether the file that was opened is the one at this path now."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), self._path.lstat())
        except OSError:  # gone, or its folder is
            return False

    def take(self, start: int = 0, length: int = 0, *, wait: bool = True) -> bool:
        """Takes `length` bytes (0: all) from `start` on, once no other process has any of them; or only if so, without `wait`."""
        for looks in itertools.count():
            file = self._there()
            if _try_lock(file, self._path, start, length):
                if self.held:  # and not removed by its last holder
                    self._sign(file)
                    break
            elif not wait:
                return False
            elif looks == 4:
                print(f"{self._path.parent}: {self._holder(file)} is at work on it; waiting until it has finished",
                      file=sys.stderr, flush=True)  # fmt: skip
            time.sleep(0.25)
        return True

    def _sign(self, file: IO[bytes]) -> None:
        """Writes into the file who holds it; not into a file with another hard link, whose content is not ours."""
        if os.fstat(file.fileno()).st_nlink == 1:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}".encode())
            file.flush()

    def _holder(self, file: IO[bytes]) -> str:
        file.seek(0)
        holder = _HOLDER.fullmatch(file.read(300).decode(errors="replace"))
        return holder[0] if holder else "another process"

    def _there(self) -> IO[bytes]:
        """The file at this path now, open."""
        if self._file is None or not self.held:
            self._close()
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
            self._file = os.fdopen(inside.opened(self._path.parent, self._path.name, flags), "a+b")
        return self._file

    def keep(self, offset: int) -> None:
        """Releases all but the byte at `offset`."""
        assert self._file is not None
        with contextlib.suppress(OSError):  # where there are no locks
            fcntl.lockf(self._file, fcntl.LOCK_UN, 0, offset + 1)
            if offset:
                fcntl.lockf(self._file, fcntl.LOCK_UN, offset, 0)

    def drop(self) -> None:
        """Releases it; the last holder removes the file."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # the folder may be gone, or not be written to any more
            if self.held and _try_lock(self._file, self._path, 0, 0):
                self._path.unlink()
        self._close()


def is_taken(path: Path) -> bool:
    """Whether another process has any of a lock."""
    try:
        with os.fdopen(inside.opened(path.parent, path.name, os.O_RDWR), "r+b") as file:
            return not _try_lock(file, path, 0, 0)
    except OSError:
        return False


def _try_lock(file: IO[bytes], path: Path, start: int, length: int) -> bool:
    """Whether no other process has any of the bytes; they are then this one's."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            print(f"{path}: no locks on this file system; start no second process on this run", file=sys.stderr)
            return True
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True
