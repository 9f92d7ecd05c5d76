"""Makes a command independent of its terminal: it finishes wherever its output goes and whatever the machine's language, and
reports an error as one line on stderr and an exit code.

A reader that stops early (`| head -1`) or a full disk (`> log`) must not end the work.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from guidedgen.basics.errors import BadValue, UsageError


class _Lasting(io.RawIOBase):
    """A stream's file descriptor; what it does not take is dropped, and why is kept in `error`."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: object) -> int:
        held = memoryview(data)  # type: ignore[arg-type]
        try:
            return os.write(self._number, held) if self.error is None else len(held)
        except OSError as error:
            self.error = error
            return len(held)


def run(main: Callable[[], object]) -> NoReturn:
    """Calls a script's main and exits with its exit code: 2 after UsageError and BadValue, in one line; 130 after Ctrl-C; 1 where
    its output could not be written, but for a reader that has gone.
    """
    _in_utf8()
    out = _settle()
    code = _code_of(main)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if out.error is not None and out.error.errno not in (errno.EPIPE, errno.EBADF):
        print(
            f"guidedgen: the output cannot be written ({out.error.strerror}); what was made is stored", file=sys.stderr, flush=True
        )
        code = code or 1
    sys.exit(code)


def _code_of(main: Callable[[], object]) -> int:
    try:
        main()
    except SystemExit as left:
        if isinstance(left.code, int | None):
            return left.code or 0
        print(left.code, file=sys.stderr)
        return 1
    except (UsageError, BadValue) as error:
        print(f"guidedgen: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("guidedgen: interrupted", file=sys.stderr)
        return 130
    return 0


def _in_utf8() -> None:
    """Starts the process again in Python's UTF-8 mode where the machine's language has another encoding, or none: arguments, file
    names and files are UTF-8 everywhere else.
    """
    if sys.getfilesystemencoding().lower().replace("-", "") != "utf8" and not sys.flags.utf8_mode and sys.executable:
        os.environ["PYTHONUTF8"] = "1"  # for what this process starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _settle() -> _Lasting:
    """Replaces stdout and stderr by streams that stay open; a closed one discards what is written. Returns stdout's."""
    lasting = []
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed; the next file that is opened would get its number
            os.open(os.devnull, os.O_RDWR)
        if number:
            stream = _Lasting(number)
            line_by_line = number == 2 or stream.isatty()
            encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
            settled = io.TextIOWrapper(io.BufferedWriter(stream), encoding, "backslashreplace", line_buffering=line_by_line)
            setattr(sys, name, settled)
            lasting.append(stream)
    return lasting[0]
