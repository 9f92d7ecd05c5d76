"""What --help shows: every group, every option and every common key with the line that describes it in its config file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from guidedgen.runs import config

INTRODUCTION = """\
guidedgen: inference-time guidance of diffusion models.

  python run.py method=code reward=aesthetic                one run; the same command again resumes it
  python run.py -m method=base,code seed=0,1                a sweep; again, what is missing of it
  python run.py experiment=doodl/lab/relations              a table or figure, on the lab model or as published
  python run.py method=doodl --cfg job --package method     the options of a method and their values; conf/method/doodl.yaml says
                                                            what each does, and so for other groups
  python scripts/status.py outputs/default                  the runs' states; scripts/report.py makes a page of them
  eval "$(python run.py -sc install=bash)"                  completion by Tab (zsh, fish: install=zsh, install=fish)

A text with spaces or commas takes two layers of quotes: 'dataset.prompt="a red circle, and a square"'
"""


def text(conf: Path, width: int) -> str:
    """The help of the config files in a folder, each line at most `width` wide."""
    lines = [INTRODUCTION, "OPTIONS, as in method=doodl; in brackets what an option sets, unless another is chosen"]
    for group, options in sorted(_groups(conf).items()):
        column = max(map(len, options)) + 1
        lines += ["", f"{group}="]
        lines += [_line(f"  {name:<{column}} {description}", sets, width) for name, (description, sets) in options.items()]
    return "\n".join([*lines, "", "KEYS, as in seed=3 or run.profile=true", "", *_keys(conf / "config.yaml")])


def _line(description: str, sets: str, width: int) -> str:
    """A line that is cut to the width, with the options that it sets, which are not cut."""
    available = width - len(sets)
    return (description if len(description) <= available else f"{description[: available - 3].rstrip()}...") + sets


def _groups(conf: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Groups and their options with descriptions; overlays and rows in folders are options of their group."""
    return {
        group: {option: _described((conf / group / f"{option}.yaml").read_text(encoding="utf-8")) for option in options}
        for group, options in config.groups([conf]).items()
        if not group.startswith(("experiment/", "row/"))
    }


def _described(text: str) -> tuple[str, str]:
    """A config file's description, and the options of other groups that it sets, as " [scheduler=ddim]"."""
    sets = [f"{group}={option}" for group, option in re.findall(r"^  - .*/(\w+)@_global_\.\1: (\w+)", text, re.MULTILINE)]
    return _about(text.splitlines()), f" [{' '.join(sets)}]" if sets else ""


def _about(lines: Iterable[str]) -> str:
    """The first sentence of a file's first comment that describes it, and is not the command that runs it."""
    comments: list[str] = []
    command = False
    for line in lines:
        if not line.startswith("# "):
            break
        command = line.startswith("# python ") or (command and line.startswith("#  "))
        if not command and not line.startswith("# @package"):
            comments.append(line[2:].strip())
    return re.split(r"(?<!Eq)\. ", " ".join(comments))[0].rstrip(".:")


def _keys(main: Path) -> Iterator[str]:
    """The lines of the main config that are keys with what they mean."""
    lines = main.read_text(encoding="utf-8").splitlines()
    start = lines.index("") + 1  # after the defaults
    yield from (line for line in lines[start : lines.index("hydra:")] if line)
