"""From prompts to tasks: names that are stable, unique and safe as file names."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from guidedgen.types import BadValue, Task


def make_tasks(prompts: Iterable[str], category: str = "") -> list[Task]:
    """One task per prompt, surrounding white space aside.

    An id is made of the prompt's first words and a hash of all of it, so it does not change with a limit or another order; a
    prompt that comes again is another task, counted.
    """
    seen: Counter[str] = Counter()
    tasks = []
    for prompt in prompts:
        prompt = prompt.strip()
        words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].rstrip("-")
        name = "-".join(part for part in (words, hashlib.sha256(prompt.encode()).hexdigest()[:8]) if part)
        seen[name] += 1
        if seen[name] > 1:
            name += f"-{seen[name]}"
        tasks.append(Task(id=name, prompt=prompt, category=category))
    return tasks


def check_choice(name: str, value: str | None, choices: Collection[str], *, optional: bool = False) -> None:
    """Raises BadValue, with the near miss, unless the option `name` is one of its choices; an optional one may be None, for all."""
    if value in choices or (optional and value is None):
        return
    close = difflib.get_close_matches(str(value), choices, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadValue(name, value, f"{hint}choose from {', '.join(choices)}{', or null for all' if optional else ''}")


def check_text(name: str, text: str) -> None:
    """Raises BadValue where a text of the option `name` is empty or cannot be written as UTF-8."""
    if not text.strip():
        raise BadValue(name, text, "is empty; two layers of quotes hold a text together, as in 'dataset.prompt=\"a red circle\"'")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValue(name, ascii(text), "is not valid UTF-8") from error


def check_limit(limit: int | None) -> None:
    """Raises BadValue unless the limit is None or positive."""
    if limit is not None and limit < 1:
        raise BadValue("limit", limit, "must be at least 1, or null for all")


def expand(name: str, path: str, folder: Path | None = None) -> Path:
    """The path that the option `name` holds, relative to `folder` (else to where one stands), whether or not anything is there.

    Raises:
        BadValue: nothing can be there: a home folder of nobody, a name that is too long or no name, a folder one may not enter.
    """
    try:
        found = (folder or Path()) / Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found.stat()
    except RuntimeError as error:
        raise BadValue(name, path, f"there is no home folder {Path(path).parts[0]}") from error
    except OSError as error:
        raise BadValue(name, path, f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise BadValue(name, ascii(path), f"is no path ({error})") from error
    return found


def read_text(name: str, path: str) -> str:
    """A UTF-8 file's text, its line ends made one newline each, without a byte order mark.

    Raises:
        BadValue: the file that the option `name` holds cannot be read.
    """
    try:
        text = expand(name, path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadValue(name, path, f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise BadValue(name, path, f"not UTF-8 ({error.reason} at byte {error.start})") from error
    return text


def read_lines(name: str, path: str) -> list[str]:
    """The lines of a text file that are not blank. Raises BadValue where there is none, or the file cannot be read."""
    lines = [line for line in read_text(name, path).split("\n") if line.strip()]
    if not lines:
        raise BadValue(name, path, "holds no prompt; write one a line")
    return lines
