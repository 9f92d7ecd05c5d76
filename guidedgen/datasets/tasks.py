"""From prompts to tasks: names that are stable, unique and safe as file names."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import hashlib
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task

LARGEST = 256 * 2**20  # bytes of a file of prompts: some millions of them
LONGEST = 10_000  # characters of a text
# Invisible characters of a text: controls except tabs and line ends, line and paragraph separators, what changes the direction
# of text, deprecated format characters, byte order marks, annotations, and what is no character.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)) + "]"
)  # fmt: skip
# Characters that leave no mark on the page though they count as letters or symbols: Hangul fillers and the empty Braille cell.
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"


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


def check_choices(name: str, value: str | Sequence[str], choices: Collection[str]) -> None:
    """Raises BadValue unless the option `name` is one of its choices, or a list of some of them, none twice."""
    for chosen in [value] if isinstance(value, str) else value:
        check_choice(name, chosen, choices)
    if not isinstance(value, str) and (not value or len(set(value)) < len(value)):
        raise BadValue(name, list(value), f"names one twice, or none; choose from {', '.join(choices)}")


def of_each(value: str | Sequence[str], tasks: Callable[[str], Sequence[Task]]) -> list[Task]:
    """The tasks of a category, or of several one after the other; an id that an earlier one has gets the category after it."""
    found: dict[str, Task] = {}
    for category in [value] if isinstance(value, str) else value:
        for task in tasks(category):
            name = task.id if task.id not in found else f"{task.id}-{category}"
            found[name] = dataclasses.replace(task, id=name)
    return list(found.values())


def check_text(name: str, text: str) -> None:
    """Raises BadValue where a text of the option `name` is empty, cannot be written as UTF-8, is longer than any prompt, shows
    nothing, or holds invisible characters (except tabs, line ends and what shapes letters or emoji).
    """
    if not text.strip(" \t\r\n"):
        raise BadValue(name, text, "is empty; two layers of quotes hold a text together, as in 'dataset.prompt=\"a red circle\"'")
    shown = ascii(text if len(text) <= 60 else f"{text[:60]}...")
    if len(text) > LONGEST:
        raise BadValue(name, shown, f"holds {len(text):,} characters; a text has at most {LONGEST:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValue(name, shown, "is not valid UTF-8") from error
    if unseen := _UNSEEN.search(text):
        hint = ", or save the file as UTF-8 where it is UTF-16" if unseen[0] == "\0" else ""
        raise BadValue(name, shown, f"holds {_named(unseen[0])}, which is invisible; take it out{hint}")
    if not any(map(_shows, text)):
        raise BadValue(name, shown, f"shows nothing: it holds {', '.join(map(_named, sorted(set(text))[:3]))} alone")


def _named(character: str) -> str:
    """A character that cannot be shown: "U+200B (ZERO WIDTH SPACE)"."""
    name = unicodedata.name(character, "" if unicodedata.category(character) != "Cc" else "a control character")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")


def _shows(character: str) -> bool:
    """Whether a character leaves a mark by itself: no white space, format character or mark that stands on another."""
    category = unicodedata.category(character)
    return category[0] not in "ZM" and category not in ("Cc", "Cf") and character not in _BLANK


def check_limit(limit: int | None) -> None:
    """Raises BadValue unless the limit is None or positive."""
    if limit is not None and limit < 1:
        raise BadValue("limit", limit, "must be at least 1, or null for all")


def expand(name: str, path: str, folder: Path | None = None) -> Path:
    """The path that the option `name` holds, relative to `folder` (else to the current folder), whether or not anything is there.

    Raises:
        BadValue: nothing can be there: a home folder of no user, a name that is too long or no name, a folder without permission.
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
        BadValue: the file that the option `name` holds cannot be read, is no regular file, or is larger than LARGEST.
    """
    found = expand(name, path)
    try:
        state = found.stat()
        if stat.S_ISDIR(state.st_mode):
            raise BadValue(name, path, "cannot be read (Is a directory)")
        if not stat.S_ISREG(state.st_mode):  # a device may have no end, and a pipe no beginning
            raise BadValue(name, path, "is no regular file; save its text in one")
        with found.open("rb") as file:
            content = file.read(LARGEST + 1) if state.st_size <= LARGEST else b""
    except OSError as error:
        raise BadValue(name, path, f"cannot be read ({error.strerror or error})") from error
    if max(state.st_size, len(content)) > LARGEST:
        rule = f"is larger than {LARGEST // 2**20} MiB, millions of prompts; take a part of it, as by head -n 1000"
        raise BadValue(name, path, rule)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "; it is UTF-16, save it as UTF-8" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise BadValue(name, path, f"not UTF-8 ({error.reason} at byte {error.start}){hint}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def number_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip(" \t")]


def read_lines(name: str, path: str, limit: int | None = None) -> list[str]:
    """The first `limit` lines of a text file that are not blank.

    Raises:
        BadValue: there is none, the file cannot be read, or one of these is refused by `check_text`.
    """
    numbered = number_lines(read_text(name, path))
    if not numbered:
        raise BadValue(name, path, "holds no prompt; write one a line")
    for number, line in numbered[:limit]:
        try:
            check_text(name, line)
        except BadValue as error:
            raise BadValue(name, path, f"line {number}: {error.rule}") from error
    return [line for _, line in numbered[:limit]]
