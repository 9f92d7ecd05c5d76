"""What a user can cause, as errors of one line, and how a text becomes one line."""

from __future__ import annotations

import math
import re
import unicodedata


def printable(text: str) -> str:
    """The text as one line that is safe on a terminal: line ends become spaces, and what a terminal would obey instead of showing
    it (control characters, marks that turn the direction, half surrogate pairs) is written as an escape sequence.
    """
    line = re.sub(r"\s*[\n\r]\s*", " ", text.strip("\r\n"))
    return "".join(letter if _shows(letter) else letter.encode("unicode_escape").decode() for letter in line)


def _shows(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) in ("Zs", "Cn", "Co") or letter in "\u200c\u200d"


class UsageError(Exception):
    """A wrong key, value or combination: one line that names the key, the value and the way out. Exit code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


class BadValue(ValueError):
    """An option's value breaks its rule; the caller that knows the option's full key turns this into a UsageError."""

    def __init__(self, name: str, value: object, rule: str) -> None:
        super().__init__(f"{name}={value!r}: {rule}")
        self.name, self.value, self.rule = name, value, rule


def check_amounts(holder: object, *names: str) -> None:
    """Raises BadValue where an option of these names is below 0, infinite or not a number."""
    for name in names:
        if not 0 <= getattr(holder, name) < math.inf:
            raise BadValue(name, getattr(holder, name), "must be at least 0 and finite")


class Stopped(BaseException):
    """A signal asked the run to stop; what was finished is saved. Exit code 75."""
