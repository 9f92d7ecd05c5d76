"""Runs to rows and columns, and these to Markdown, CSV and LaTeX.

Intervals and win rates are those of metrics.json: bootstrap over prompts at 95 %, and images above the unguided one's.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedgen.basics.errors import UsageError, printable
from guidedgen.runs.figures import number, published
from guidedgen.studies.study import Run, read_study

# What published tables call our figures; `reward` is the guided one.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}",  # at a row's start it would be an option of the line's end before it
}  # fmt: skip
_PER_PROMPT = "of each prompt's images to the reference's of the same prompt, mean over prompts"
_ALWAYS = ("fid", "cmmd", "rmse", "fid_per_prompt", "cmmd_per_prompt")  # distances with a column whether every one has or not
_MEANS = {"higher": "higher is better", "lower": "lower is better", "": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure, with what else is known of it. Missing parts are None."""

    value: float | None = None
    percent: bool = False  # `value`, `low` and `high` are shares
    low: float | None = None  # 95 % interval
    high: float | None = None
    base: float | None = None  # the unguided run's
    wins: float | None = None  # share of images above the unguided one's
    printed: float | None = None  # what the source prints of this very setting
    shared: bool = False  # measured by a network that has guided
    note: str = ""  # shown next to the figure
    described: str = ""  # what else it depends on

    @property
    def text(self) -> str:
        """The figure and its asterisk."""
        return self.figure(self.value) + ("*" if self.shared and self.value is not None else "")

    def figure(self, value: float | None) -> str:
        """A figure of this cell's kind; empty for none."""
        if value is None or not self.percent:
            return number(value)
        return f"{100 * value:.0f} %"

    @property
    def interval(self) -> str:
        """Both ends of the interval, in percent where the figure is; empty where there is none."""
        return "" if self.low is None or self.high is None else f"{self._end(self.low)} .. {self._end(self.high)}"

    def _end(self, value: float) -> str:
        return f"{100 * value:.0f}" if self.percent else number(float(f"{value:.3g}"))  # three digits say enough


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """What a column holds."""

    key: str
    title: str
    better: str = ""  # higher, lower, or neither
    about: str = ""

    @property
    def hint(self) -> str:
        """A sentence about it."""
        return "; ".join(filter(None, (self.about, _MEANS[self.better])))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Runs by columns. Columns in which no run has anything are left out."""

    columns: Sequence[Column]
    rows: Sequence[tuple[Run, Mapping[str, Cell]]]

    def cells(self, row: int) -> list[Cell]:
        """A row's cells, empty ones included."""
        return [self.rows[row][1].get(column.key, Cell()) for column in self.columns]


# What is tabulated


def of_metrics(runs: Sequence[Run], *, every: bool = False) -> Table:
    """Methods by metrics: the guided reward, wins, other scores, distances, cost, number of images; `every` distance there is."""
    rewards = {run.reward for run in runs if run.reward}
    guided = rewards.pop() if len(rewards) == 1 else "guided reward"
    rows = [(run, _cells(run.metrics, guided)) for run in runs]
    scores = dict.fromkeys(name for run in runs for name in run.metrics["scores"] if name != run.reward)
    measured = dict.fromkeys(name for run in runs for name in run.metrics.get("distances", {})) if every else {}
    columns = [
        Column(key=guided, title=guided, better="higher", about="what guides"),
        Column(key="wins", title="wins", better="higher", about="images whose guided reward is above the unguided one's"),
        Column(key="slipped past", title="slipped past", about="of what the filter flags unguided, what it does not flag"),
        *(Column(key=name, title=name, better="higher", about="held out where it has no asterisk") for name in scores),
        Column(key="fid", title="fid", better="lower", about="to the reference, the unguided run by default"),
        Column(key="class fid", title="class fid", better="lower", about="to real pictures of a prompt, mean over prompts"),
        *(Column(key=name, title=name, better="lower") for name in ("cmmd", "rmse")),
        *(
            Column(key=f"{name}_per_prompt", title=f"{name} per prompt", better="lower", about=_PER_PROMPT)
            for name in ("fid", "cmmd")
        ),
        *(Column(key=name, title=name, better="lower") for name in measured if name not in _ALWAYS),
        Column(key="nfe", title="nfe", better="lower", about="network rows per image"),
        Column(key="nfe_backward", title="nfe_backward", better="lower", about="network rows differentiated, per image"),
        Column(key="seconds", title="seconds", better="lower", about="per image"),
        Column(key="n", title="n", about="images"),
    ]
    return _without_empty(columns, rows)


def _cells(metrics: Mapping[str, Any], guided: str) -> dict[str, Cell]:
    source, reward = published(metrics), metrics.get("reward")
    row = {}
    for name, entry in {**metrics["scores"], **metrics.get("distances", {})}.items():
        row[guided if name == reward else name] = Cell(
            value=entry["value"], low=entry.get("low"), high=entry.get("high"), base=entry.get("base"), wins=entry.get("win_rate"),
            printed=source.get(name), shared=entry.get("shares_guide", False), described=entry.get("described", ""),
        )  # fmt: skip
        if past := entry.get("slipped"):
            note = f"n {past['flagged']}"
            row["slipped past"] = Cell(value=past["ratio"], percent=True, low=past["low"], high=past["high"], note=note)
    if reward in metrics["scores"]:
        row["wins"] = Cell(value=metrics["scores"][reward].get("win_rate"), percent=True)
    if found := metrics.get("per_class"):
        row["class fid"] = Cell(
            value=found["fid"], base=found["base"], printed=source.get("class_fid"), shared=found["shares_guide"],
            note=_change(found["mean_of_percent"], source.get("class_fid_percent")),
        )  # fmt: skip
    row |= {name: Cell(value=value, printed=source.get(name)) for name, value in metrics["cost"].items()}
    return row | {"n": Cell(value=metrics["samples"])}


def _change(percent: float | None, printed: float | None) -> str:
    """The change of the distance to each class, and the published one."""
    parts = [f"{percent:+.3g} %" if percent is not None else "", f"published {printed:+.3g} %" if printed is not None else ""]
    return ", ".join(filter(None, parts))


def of_cost(runs: Sequence[Run]) -> Table:
    """What a run has cost: per image from its metrics, in all from its records, and what it has learned first."""
    names = {
        "nfe": "network rows per image",
        "nfe_backward": "network rows differentiated, per image",
        "decodes": "latents decoded, per image",
        "reward_calls": "pictures scored while guiding, per image",
        "seconds": "per image",
    }
    columns = [
        Column(key="n", title="images"),
        *(Column(key=name, title=name, about=about) for name, about in names.items()),
        Column(key="times", title="x unguided", about="network rows, against the unguided run's"),
        Column(key="minutes", title="minutes", about="of all its images"),
        Column(key="learning", title="learned first", about="network rows, once for all images"),
        Column(key="peak_memory_mib", title="peak MiB", about="the highest of any batch: the GPU's, or the process's on a CPU"),
    ]
    rows = []
    for run in runs:
        cost, learned = run.metrics["cost"], run.metrics.get("learning")
        base = run.metrics.get("base_cost", {}).get("nfe")
        cells = {name: Cell(value=cost.get(name)) for name in (*names, "peak_memory_mib")}
        cells["n"] = Cell(value=run.metrics["samples"])
        cells["times"] = Cell(value=cost["nfe"] / base if base else None)
        cells["minutes"] = Cell(value=sum(record.seconds for record in run.records) / 60 if run.records else None)
        if learned:
            cells["learning"] = Cell(value=learned["nfe"], note=f"{learned['seconds']:.0f} s")
        rows.append((run, cells))
    return _without_empty(columns, rows)


def of_categories(runs: Sequence[Run]) -> Table:
    """Scores by the category of the prompts, of runs whose prompts are of several."""
    columns: dict[str, Column] = {}
    rows = []
    for run in runs:
        cells, source = {}, published(run.metrics)
        for score, entry in run.metrics["scores"].items():
            for category, part in entry.get("categories", {}).items():
                key = f"{score}_{category}"
                columns[key] = Column(key=key, title=f"{score}, {category or 'other'}", better="higher")
                cells[key] = Cell(
                    value=part["value"], low=part.get("low"), high=part.get("high"), printed=source.get(key),
                    shared=entry.get("shares_guide", False),
                )  # fmt: skip
        if cells:
            rows.append((run, cells))
    return _without_empty(list(columns.values()), rows)


def _without_empty(columns: Sequence[Column], rows: Sequence[tuple[Run, Mapping[str, Cell]]]) -> Table:
    kept = [column for column in columns if any(cells.get(column.key, Cell()).text for _, cells in rows)]
    return Table(columns=kept, rows=rows)


# How it is written


def notes(table: Table, star: str = "*") -> Iterator[str]:
    """Notes on the table: its terms, its marks, and where published figures are from."""
    keys, cells = {column.key for column in table.columns}, [cell for i in range(len(table.rows)) for cell in table.cells(i)]
    yield "nfe, nfe_backward: network rows per sample; seconds per sample; n images; wins: guided reward against the base's."
    if "slipped past" in keys:
        yield "slipped past: of n samples that the filter flags without guidance, those it does not flag with it (95 % interval)."
    if "class fid" in keys:
        yield "class fid: FID to real pictures of what a prompt asks for, mean over prompts (mean change against the base)."
    if any(run.config.get("reference_seed") is not None for run, _ in table.rows) and keys & {*_ALWAYS}:
        yield "Distances are to unguided images of other seeds."
    if any(cell.shared and cell.text for cell in cells):
        yield f"{star} shares a network with the guidance."


def sources(table: Table) -> list[str]:
    """Where the published figures are from."""
    found: dict[str, dict[str, float]] = {}
    for run, _ in table.rows:
        if printed := run.metrics.get("published"):
            found.setdefault(printed["source"], {}).update(printed.get("quoted", {}))
    return [
        source + (f" (quoted there: {', '.join(f'{name} {number(value)}' for name, value in quoted.items())})" if quoted else "")
        for source, quoted in found.items()
    ]


def study_table(folder: Path) -> str:
    """A Markdown table of a study's judged runs, base first, then by cost; published figures are in brackets where they apply.

    Raises:
        UsageError: no run in the folder has been judged.
    """
    study = read_study(folder)
    damaged = [printable(f"{name} is damaged and not shown: {why}") for name, why in study.damaged.items()]
    if not study.rows:
        raise UsageError("; ".join([f"{folder}: holds no run with metrics yet; wait for one to be done", *damaged[:1]]))
    by_category = of_categories(study.rows)
    parts = [
        markdown(of_metrics(study.rows)),
        *(["", "By category:", "", *_lines(by_category)] if by_category.rows else []),
        *damaged,
    ]
    return "\n".join(parts)


def markdown(table: Table) -> str:
    """A Markdown table, published figures and notes in brackets, and notes on it."""
    in_brackets = (f"In brackets: {_one_cell(source)}." for source in sources(table))
    return "\n".join([*_lines(table), "", *notes(table, r"\*"), *in_brackets]).rstrip()


def _lines(table: Table) -> list[str]:
    """A table's lines in Markdown."""
    lines = [["", *(_one_cell(column.title) for column in table.columns)], ["---"] + ["---:"] * len(table.columns)]
    lines += [[_one_cell(run.name), *map(_bracketed, table.cells(i))] for i, (run, _) in enumerate(table.rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _one_cell(text: str) -> str:
    """Text without table markup or terminal control characters."""
    return re.sub(r"[\\`*<>\[\]|]", r"\\\g<0>", printable(text))


def _bracketed(cell: Cell) -> str:
    notes = ", ".join(filter(None, (cell.interval if cell.percent else "", cell.note)))
    return " ".join(filter(None, (cell.text, *(f"({part})" for part in (cell.figure(cell.printed), notes) if part))))


def as_csv(table: Table) -> str:
    """Every figure in full, shares from 0 to 1; the parts of a cell are columns of their own where any row has them."""
    parts = {"": "value", "_low": "low", "_high": "high", "_unguided": "base", "_wins": "wins", "_published": "printed"}
    rows = []
    for i, (run, _) in enumerate(table.rows):
        row: dict[str, object] = {"run": run.name, "folder": run.folder.name, "reward": run.reward}
        for column, cell in zip(table.columns, table.cells(i), strict=True):
            found = {suffix: getattr(cell, part) for suffix, part in parts.items()}
            row |= {f"{column.key}{suffix}": value for suffix, value in found.items()}
            row[f"{column.key}_shares_guidance"] = True if cell.shared else None
        rows.append(row)
    names = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_no_formula, names))
    writer.writerows([_no_formula(row[name]) for name in names] for row in rows)
    return file.getvalue()


def _no_formula(value: object) -> object:
    """A cell's value: text that a spreadsheet would run as a formula has an apostrophe before it; a number is a number."""
    if not isinstance(value, str):
        return value
    value = re.sub(r"\r\n?", "\n", value)  # a lone one is not quoted, and ends the line for those who read it
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\n")) else value


def latex(table: Table, caption: str) -> str:
    r"""A table for \usepackage{booktabs}: intervals in brackets, published figures in a row of their own below."""
    lines = [" & ".join(["", *(escaped(column.title) for column in table.columns)]) + r" \\", r"\midrule"]
    for i, (run, _) in enumerate(table.rows):
        cells = table.cells(i)
        lines.append(" & ".join([escaped(run.name), *map(_with_interval, cells)]) + r" \\")
        if any(cell.printed is not None for cell in cells):
            lines.append(" & ".join([r"\quad published", *(escaped(cell.figure(cell.printed)) for cell in cells)]) + r" \\")
    head = ["% needs \\usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}"]
    foot = [r"\end{tabular}", rf"\caption{{{escaped(caption)}}}", r"\end{table}", ""]
    return "\n".join([*head, r"\toprule", *lines, r"\bottomrule", *foot])


def _with_interval(cell: Cell) -> str:
    interval = rf" {{\scriptsize [{cell.interval.replace(' .. ', ', ')}]}}" if cell.interval else ""
    return escaped(cell.text) + interval


def escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return re.sub(r"[\\{}$&#%_^~<>\[\]]", lambda found: _LATEX[found[0]], " ".join(text.split()))
