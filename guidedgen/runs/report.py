"""What a run prints and draws: its progress, its table, its grid of images."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from guidedgen.basics.cost import Ledger
from guidedgen.basics.errors import printable
from guidedgen.runs.evaluate import Images
from guidedgen.runs.figures import number, published
from guidedgen.runs.store import write_atomic

_COLUMNS = 8  # images per row of a grid
_SIDE = 160  # px of an image in a grid
_NETWORKS = ("text", "denoise", "decode", "encode", "reward", "backward", "judge")  # the ledger's kinds


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing is printed of what runs do."""
    token = _quiet.set(True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        _quiet.reset(token)


@contextlib.contextmanager
def progress(label: str, *, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, otherwise a line every half minute; yields a function to call after each step."""
    console = Console(stderr=True)
    if _quiet.get():
        yield lambda: None
        return
    if not console.is_terminal:
        yield _lines(label, total)
        return
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def _lines(label: str, total: int) -> Callable[[], None]:
    done, last_printed = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, last_printed
        done += 1
        if time.monotonic() - last_printed > 30:
            last_printed = time.monotonic()
            print(f"{label}: {done}/{total} steps", flush=True)

    return advance


def show(metrics: Mapping[str, Any]) -> None:
    """Prints a run's table: base and guided side by side, sample sizes, cost, and what shares a network with the guidance."""
    title = escape(printable(str(metrics.get("title", ""))))
    table = Table(title=title, title_justify="left", caption_justify="left")
    printed = published(metrics)
    columns = ["", "base", "this run", "95 % interval", "wins", *(["published"] if printed else [])]
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right")
    shared = False

    def row(label: str, name: str, base: float | None, value: float | None, interval: str = "", wins: str = "") -> None:
        table.add_row(
            *(escape(printable(label)), number(base), number(value), interval, wins, number(printed.get(name)))[: len(columns)]
        )

    for name, entry in metrics.get("scores", {}).items():
        mark = "*" if entry.get("shares_guide") else ""
        shared |= bool(mark)
        wins = f"{100 * entry['win_rate']:.0f} %" if entry.get("win_rate") is not None else ""
        row(name + mark, name, entry.get("base"), entry["value"], _interval(entry), wins)
        if entry.get("slipped"):
            past = entry["slipped"]
            row(f"slipped past ({past['slipped']} of {past['flagged']})", "slipped past", None, past["ratio"], _interval(past))
    for name, entry in metrics.get("distances", {}).items():
        mark = "*" if entry.get("shares_guide") else ""
        shared |= bool(mark)
        ours, theirs = metrics.get("compared") or (metrics["samples"], metrics.get("reference_samples", "?"))
        of = f"{ours} v {theirs}" if entry.get("prompts") is None else f"{entry['prompts']} prompts"
        row(f"{name}{mark} ({of})", name, None, entry["value"], _interval(entry))
    if found := metrics.get("per_class"):
        mark = "*" if found["shares_guide"] else ""
        shared |= bool(mark)
        change = f"{_percent(found['mean_of_percent'])} (of means {_percent(found['percent_of_means'])})"
        row(f"fid to each of {found['classes']} classes{mark}", "class_fid", found["base"], found["fid"], change)
        if "class_fid_percent" in printed:
            row("its change, in percent", "class_fid_percent", None, found["mean_of_percent"])
    cost, base = metrics.get("cost", {}), metrics.get("base_cost", {})
    for name in ("nfe", "nfe_backward", "decodes", "reward_calls", "seconds"):
        label = "nfe (network rows)" if name == "nfe" else name
        row(f"{label} / sample", name, base.get(name), cost.get(name))
    notes = [
        f"{metrics.get('samples')} samples, {metrics.get('prompts')} prompts" + "; * shares a network with the guidance" * shared
    ]
    for name, entry in metrics.get("scores", {}).items():
        if entry.get("described"):
            notes.append(f"{name}: {entry['described']}")
    if learned := metrics.get("learning"):
        rows = f"{learned['nfe']} network rows, {learned['nfe_backward']} of them backward"
        notes.append(f"learned first, on {learned['lessons']} pictures: {rows}, {learned['seconds']:.0f} s")
    for name, kept in metrics.get("extra_images", {}).items():
        found = {score: entry["value"] for score, entry in kept["scores"].items() if entry["value"] is not None}
        scores = ", ".join(f"{score} {number(value)}" for score, value in found.items())
        notes.append(f"the {name} of {kept['samples']}, in images/{name}: {scores}")
    if metrics.get("blurred"):
        notes.append(f"{metrics['blurred']} are stored blurred and left out of distances")
    if metrics.get("failed"):
        notes.append(f"{metrics['failed']} failed and are left out: {', '.join(metrics.get('failures', {}))}")
    if printed:
        notes.append(f"published: {metrics['published']['source']}")
    table.caption = "\n".join(escape(printable(line)) for line in notes)
    Console().print(table)


def _interval(entry: Mapping[str, Any]) -> str:
    """Empty where there is none, and of a single prompt, over which there is nothing to draw again."""
    known = entry.get("low") is not None and entry.get("prompts") != 1
    return f"{entry['low']:.4g} .. {entry['high']:.4g}" if known else ""


def line(metrics: Mapping[str, Any]) -> str:
    """A run's first scores and its cost in one line."""
    scores = {name: entry["value"] for name, entry in metrics.get("scores", {}).items() if entry.get("value") is not None}
    parts = [f"{name} {number(value)}" for name, value in list(scores.items())[:3]]
    return ", ".join([*parts, f"nfe {number(metrics.get('cost', {}).get('nfe'))}"])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.3g} %"


def show_profile(ledger: Ledger, wall: float) -> None:
    """Prints where the wall time went: seconds and shares that add up to the whole, of a ledger that began with the wall time."""
    table = Table("", "seconds", "share", title="profile", title_justify="left")
    networks = sum(ledger.seconds[kind] for kind in _NETWORKS)
    rows = {kind: ledger.seconds[kind] for kind in _NETWORKS} | {"in networks": networks, "loading": ledger.seconds["load"]}
    rows["elsewhere"] = wall - networks - ledger.seconds["load"]
    for name, seconds in rows.items():
        table.add_row(name, f"{seconds:.2f}", f"{100 * seconds / wall:.1f} %")
    Console().print(table)


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
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomic(file, buffer.getvalue())


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
