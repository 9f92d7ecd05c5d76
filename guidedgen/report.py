"""What a run shows: its progress, its table, its grid of images."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from guidedgen.cost import Ledger
from guidedgen.evaluate import Images
from guidedgen.types import UsageError

_COLUMNS = 8  # images per row of a grid
_SIDE = 160  # px of an image in a grid
_NETWORKS = ("text", "denoise", "decode", "encode", "reward", "backward", "judge")  # the ledger's kinds


# What published tables call our figures; `reward` is the guided one.
_PRINTED = {"t_clip": "clip_score", "i_gram": "style_clip_rn50"}


@contextlib.contextmanager
def progress(label: str, *, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, else a line every half minute; yields what to call after each step."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(label, total)
        return
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def _lines(label: str, total: int) -> Callable[[], None]:
    done, told = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(f"{label}: {done}/{total} steps", flush=True)

    return advance


def show(metrics: Mapping[str, Any]) -> None:
    """Prints the table of a run: base beside guided, with sample sizes, cost and what shares a network with the guidance."""
    table = Table(title=str(metrics.get("title", "")), title_justify="left", caption_justify="left")
    printed = _printed(metrics)
    columns = ["", "base", "this run", "95 % interval", "wins", *(["published"] if printed else [])]
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right")
    shared = False

    def row(label: str, name: str, base: float | None, value: float | None, interval: str = "", wins: str = "") -> None:
        table.add_row(*(label, _number(base), _number(value), interval, wins, _number(printed.get(name)))[: len(columns)])

    for name, entry in metrics.get("scores", {}).items():
        mark = "*" if entry.get("shares_guide") else ""
        shared |= bool(mark)
        interval = f"{entry['low']:.4g} .. {entry['high']:.4g}" if entry.get("low") is not None else ""
        wins = f"{100 * entry['win_rate']:.0f} %" if entry.get("win_rate") is not None else ""
        row(name + mark, name, entry.get("base"), entry["value"], interval, wins)
        if entry.get("slipped"):
            past = entry["slipped"]
            interval = f"{past['low']:.4g} .. {past['high']:.4g}"
            row(f"slipped past ({past['slipped']} of {past['flagged']})", "slipped past", None, past["ratio"], interval)
    for name, entry in metrics.get("distances", {}).items():
        mark = "*" if entry.get("shares_guide") else ""
        shared |= bool(mark)
        ours, theirs = metrics.get("compared") or (metrics["samples"], metrics["reference_samples"])
        row(f"{name}{mark} ({ours} v {theirs})", name, None, entry["value"])
    if found := metrics.get("per_class"):
        mark = "*" if found["shares_guide"] else ""
        shared |= bool(mark)
        change = f"{found['mean_of_percent']:+.3g} % (of means {found['percent_of_means']:+.3g} %)"
        row(f"fid to each of {found['classes']} classes{mark}", "class_fid", found["base"], found["fid"], change)
    cost, base = metrics.get("cost", {}), metrics.get("base_cost", {})
    for name in ("nfe", "nfe_backward", "decodes", "reward_calls", "seconds"):
        row(f"{name} / sample", name, base.get(name), cost.get(name))
    table.caption = f"{metrics.get('samples')} samples, {metrics.get('prompts')} prompts" + (
        "; * shares a network with the guidance" if shared else ""
    )
    for name, entry in metrics.get("scores", {}).items():
        if entry.get("described"):
            table.caption += f"\n{name}: {entry['described']}"
    if learned := metrics.get("learning"):
        rows = f"{learned['nfe']} network rows, {learned['nfe_backward']} of them backward"
        table.caption += f"\nlearned first, on {learned['lessons']} pictures: {rows}, {learned['seconds']:.0f} s"
    if metrics.get("blurred"):
        table.caption += f"\n{metrics['blurred']} are stored blurred and left out of distances"
    if printed:
        table.caption += f"\npublished: {metrics['published']['source']}"
    Console().print(table)


def _printed(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Published figures by our names for them; seconds per sample from minutes."""
    found = dict(metrics.get("published", {}))
    found.pop("source", None)
    if "minutes" in found:
        found["seconds"] = 60 * found.pop("minutes")
    names = {**{name: name for name in found}, "reward": str(metrics.get("reward")), **_PRINTED}
    return {names[name]: value for name, value in found.items()}


def study_table(folder: Path) -> str:
    """A Markdown table of a study's judged runs, base first, then by cost; published figures stand in brackets where they apply.

    Raises:
        UsageError: no run in the folder has been judged.
    """
    runs = [json.loads(file.read_text()) for file in sorted(folder.glob("*/metrics.json"))]
    if not runs:
        raise UsageError(f"{folder}: holds no run with metrics; give a study's folder, as in outputs/default")
    runs.sort(key=lambda run: (run.get("label") != "base", run["cost"]["nfe"], str(run.get("label")), run["title"]))
    labels = [run.get("label") or run["title"] for run in runs]
    rewards = {run.get("reward") for run in runs}
    head = str(rewards.pop()) if len(rewards) == 1 else "guided reward"
    rows = []
    for run, label in zip(runs, labels, strict=True):
        name = label if labels.count(label) == 1 else f"{label} {run['title'].rsplit('-', 1)[-1]}"
        rows.append({"": name, **_row(run, head)})
    scores = dict.fromkeys(name for run in runs for name in run["scores"] if name != run.get("reward"))
    columns = ["", head, "wins", "slipped past", *scores, "fid", "class fid", "cmmd", "rmse", "nfe", "nfe_backward", "seconds", "n"]
    columns = [name for name in columns if any(row.get(name) for row in rows)]
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *([row.get(name, "") for name in columns] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *_notes(runs, table)]).rstrip()


def _row(run: Mapping[str, Any], head: str) -> dict[str, str]:
    """A run's cells by column; `head` is the guided reward's."""
    printed, guided = _printed(run), run.get("reward")

    def cell(name: str, value: float | None, mark: bool = False) -> str:
        text = _number(value) + ("*" if mark else "")
        return f"{text} ({_number(printed[name])})".strip() if name in printed else text

    row = {}
    for name, entry in {**run["scores"], **run.get("distances", {})}.items():
        row[head if name == guided else name] = cell(name, entry["value"], entry.get("shares_guide", False))
    wins = run["scores"].get(guided, {}).get("win_rate")
    row["wins"] = "" if wins is None else f"{100 * wins:.0f} %"
    row["slipped past"] = "".join(map(_past, run["scores"].values()))
    if found := run.get("per_class"):
        row["class fid"] = cell("class_fid", found["fid"], found["shares_guide"]) + f" ({found['mean_of_percent']:+.3g} %)"
    return row | {name: cell(name, value) for name, value in run["cost"].items()} | {"n": str(run["samples"])}


def _past(entry: Mapping[str, Any]) -> str:
    """The cell of a filter's verdicts, with its 95 % interval and of how many it is; empty for other scores."""
    past = entry.get("slipped")
    return f"{100 * past['ratio']:.0f} % ({100 * past['low']:.0f} .. {100 * past['high']:.0f}, n {past['flagged']})" if past else ""


def _notes(runs: Sequence[Mapping[str, Any]], table: str) -> Iterator[str]:
    yield "nfe, nfe_backward: network rows per sample; seconds per sample; n images; wins: guided reward against the base's."
    if "slipped past" in table:
        yield "slipped past: of n samples that the filter flags without guidance, those it does not flag with it (95 % interval)."
    if "class fid" in table:
        yield "class fid: FID to real pictures of what a prompt asks for, mean over prompts (mean change against the base)."
    if "*" in table:
        yield "\\* shares a network with the guidance."
    for source in dict.fromkeys(run["published"]["source"] for run in runs if run.get("published")):
        yield f"In brackets: {source}."


def show_profile(ledger: Ledger, wall: float) -> None:
    """Prints where the wall time went."""
    table = Table("", "seconds", "share", title="profile", title_justify="left")
    networks = sum(ledger.seconds[kind] for kind in _NETWORKS)
    rows = {kind: ledger.seconds[kind] for kind in _NETWORKS} | {"in networks": networks, "loading": ledger.seconds["load"]}
    rows["elsewhere"] = wall - networks - ledger.seconds["load"]
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2f}", f"{100 * seconds / wall:.1f} %")
    Console().print(table)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def write_grid(file: Path, rows: Mapping[str, tuple[Images, Sequence[float]]], score: str) -> None:
    """One row of pictures per label, one column per prompt and seed, the score under each; the first ones only.

    All rows hold the same samples in the same order; `score` names what the numbers are.
    """
    font = ImageFont.load_default(13)
    line, head = 20, 54
    count = min(_COLUMNS, *(len(pictures) for pictures, _ in rows.values()))
    sheet = Image.new("RGB", (count * (_SIDE + 8) + 8, head + len(rows) * (_SIDE + line + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (label, (pictures, scores)) in enumerate(rows.items()):
        assert pictures.records is not None
        for column in range(count):
            x, y = 8 + column * (_SIDE + 8), head + row * (_SIDE + line + 8)
            if row == 0:
                draw.multiline_text((x, 4), _wrapped(pictures.records[column].prompt, font), fill="black", font=font)
            with Image.open(pictures.paths[column]) as picture:
                sheet.paste(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), (x, y))
            number = f"{scores[column]:.3g}" if scores else ""
            texts = (f"{label}: {score} {number}", f"{score} {number}", number) if scores else (label,)
            text = next((text for text in texts if font.getlength(text) <= _SIDE), texts[-1])  # a long one would run into the next
            draw.text((x, y + _SIDE + 2), text, fill="black", font=font)
    sheet.save(file)


def _wrapped(text: str, font: Any) -> str:
    """At most three lines that fit an image's width."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > _SIDE:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines[:3])
