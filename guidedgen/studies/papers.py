"""The tables and figures of the four papers: their commands, and what stands between each and its lab version."""

from __future__ import annotations

import dataclasses
import glob
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from guidedgen.basics.errors import UsageError
from guidedgen.runs import composition, config, plain_yaml

_FILE = Path(__file__).with_suffix(".yaml")
INTRODUCTION = """\
# The papers' tables and figures

Every table and figure of the four papers, with the command that makes it. `python scripts/reproduce.py list` shows what there is of
each. `python scripts/reproduce.py <id> --lab` runs the version on the lab model, on a CPU. Without `--lab` it runs the paper's own
setting, with the weights that `python scripts/fetch.py` and the same options bring. The id is in each block's first line.

A published figure stands next to ours only where the setting and the quantity are the printed ones. Hours are the paper's own, of
its own GPU. The times that the files in `conf/experiment` give are estimates: 15 ms for a row of Stable Diffusion's network at
512 px in float16 on an A100, three times that with the way back, and what the reward adds. Pictures take 0.5 MB each. This page is
written by `python scripts/reproduce.py page > docs/tables.md`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A table or figure. `run` and `lab` are command lines, each the arguments of run.py; papers.yaml says what the rest is."""

    id: str  # doodl/table_2
    paper: str
    what: str
    run: Sequence[Sequence[str]] = ()
    lab: Sequence[Sequence[str]] = ()
    yours: str = ""
    hours: str = ""
    differs: str = ""
    why: str = ""
    measured: str = ""
    found: str = ""

    @property
    def name(self) -> str:
        """As the paper calls it: "Table 2", "Section 5.3", "Figures 4 and 5"."""
        kind, *numbers = self.id.split("/")[1].split("_")
        joint = " " if {"and", "to", "sd"} & {*numbers} else "."
        return f"{kind.capitalize()} {joint.join(numbers)}"

    @property
    def state(self) -> str:
        """What there is of it, in a few words."""
        if not self.run:
            return f"no command: {self.why}"
        configs = [_composed(line) for line in self.run]
        printed = any((cfg.get("table") or {}).get("published") for cfg in configs)
        needs = [" and ".join(dict.fromkeys(str(cfg.model.name) for cfg in configs)), *([self.yours] if self.yours else [])]
        parts = [
            f"measured on the lab (docs/results.md, {self.measured})" if self.measured else "",
            "printed figures stand next to ours" if printed else "",
            f"needs {', '.join(needs)}",
        ]
        return "; ".join(filter(None, parts))

    def commands(self, *, lab: bool, overrides: Sequence[str] = ()) -> Iterator[list[str]]:
        """Its command lines with overrides added, one by one. A folder that one names by a pattern is looked for when its turn
        comes: an earlier one makes it.

        Raises UsageError where there are none, and where not one folder has the name.
        """
        lines = self.lab if lab else self.run
        if not lines:
            raise UsageError(f"{self.id}: has no command{'' if self.run else f': {self.why}'}{' on the lab' if lab else ''}")
        for line in lines:
            yield [*map(_found, line), *overrides]

    def study(self, *, lab: bool, overrides: Sequence[str] = ()) -> Path:
        """The folder of the runs of its last command, with overrides added."""
        cfg = _composed([*(self.lab if lab else self.run)[-1], *overrides])
        return Path(cfg.outputs) / cfg.study


def items() -> list[Item]:
    """All of them, paper by paper."""
    return [
        Item(
            id=f"{paper}/{name}",
            paper=entry["title"],
            run=[shlex.split(line) for line in values.get("run", ())],
            lab=[shlex.split(line) for line in values.get("lab", ())],
            **{key: str(value) for key, value in values.items() if key not in ("run", "lab")},
        )
        for paper, entry in plain_yaml.read(_FILE)[0].items()
        for name, values in entry["items"].items()
    ]


def item(name: str) -> Item:
    """The one of this id. Raises UsageError, with the near miss, where there is none."""
    known = {entry.id: entry for entry in items()}
    if name not in known:
        raise UsageError(f"{name}: no such table or figure{config.near(name, known)}; python scripts/reproduce.py list has all")
    return known[name]


def page() -> str:
    """A Markdown page of all of them."""
    parts, paper = [INTRODUCTION], ""
    for entry in items():
        if entry.paper != paper:
            paper = entry.paper
            parts.append(f"## {paper}")
        parts.append(f"### {entry.name}")
        facts = {"Yours": entry.yours, "Hours": entry.hours, "What differs": entry.differs, "On the lab": entry.found}
        text = [f"{entry.what[0].upper()}{entry.what[1:]}.", *(f"{name}: {fact}." for name, fact in facts.items() if fact)]
        if entry.measured:
            text.append(f"Measured on the lab: [results](results.md), {entry.measured}.")
        if not entry.run:
            text.append(f"No command: {entry.why}.")
        parts.append(" ".join(text))
        if entry.run:
            lab = ["# on the lab", *map(shown, entry.lab)] if entry.lab else []
            parts.append("\n".join(["```bash", f"# {entry.id}", *map(shown, entry.run), *lab, "```"]))
    return "\n\n".join(parts) + "\n"


def shown(line: Sequence[str]) -> str:
    """A command line as a shell takes it, which has to replace a folder's pattern."""
    words = [f"reference=$(echo {pattern})" if (pattern := _pattern(word)) else shlex.quote(word) for word in line]
    return f"python run.py {' '.join(words)}"


def _pattern(argument: str) -> str | None:
    """The pattern that an argument names a folder by, if it does."""
    key, _, value = argument.partition("=")
    return value if key == "reference" and "*" in value else None


def _found(argument: str) -> str:
    """An argument with the one folder that its pattern names."""
    if (pattern := _pattern(argument)) is None:
        return argument
    folders = [path for path in glob.glob(pattern) if not Path(path).name.startswith("base-")]
    if len(folders) != 1:
        raise UsageError(f"{argument}: {len(folders)} folders have this name; exactly one is needed")
    return f"reference={folders[0]}"


def _composed(line: Sequence[str]) -> DictConfig:
    """The config of a command line; of a sweep, that of its first run."""
    parsed = composition.parse([argument for argument in line if argument != "-m"])
    firsts = [next(iter(item.sweep_string_iterator())) if item.is_sweep_override() else None for item in parsed]
    return composition.composed(
        [
            str(item.input_line) if first is None else f"{item.get_key_element()}={first}"
            for item, first in zip(parsed, firsts, strict=True)
        ]
    )
