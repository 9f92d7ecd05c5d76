"""What a run shows: its progress, its table, its grid of images."""

from __future__ import annotations

import contextlib
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

_COLUMNS = 8  # images per row of a grid
_SIDE = 160  # px of an image in a grid
_NETWORKS = ("text", "denoise", "decode", "encode", "reward", "judge")  # the ledger's kinds


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
    for column in ("", "base", "this run", "95 % interval", "wins"):
        table.add_column(column, justify="left" if column == "" else "right")
    shared = False
    for name, entry in metrics.get("scores", {}).items():
        mark = "*" if entry.get("shares_guide") else ""
        shared |= bool(mark)
        interval = f"{entry['low']:.4g} .. {entry['high']:.4g}" if entry.get("low") is not None else ""
        wins = f"{100 * entry['win_rate']:.0f} %" if entry.get("win_rate") is not None else ""
        table.add_row(name + mark, _number(entry.get("base")), _number(entry["value"]), interval, wins)
    for name, entry in metrics.get("distances", {}).items():
        mark = "*" if entry.get("shares_guide") else ""
        shared |= bool(mark)
        table.add_row(f"{name}{mark} ({metrics['samples']} v {metrics['reference_samples']})", "", _number(entry["value"]), "", "")
    cost, base = metrics.get("cost", {}), metrics.get("base_cost", {})
    for name in ("nfe", "decodes", "reward_calls", "seconds"):
        table.add_row(f"{name} / sample", _number(base.get(name)), _number(cost.get(name)), "", "")
    table.caption = f"{metrics.get('samples')} samples, {metrics.get('prompts')} prompts" + (
        "; * shares a network with the guidance" if shared else ""
    )
    Console().print(table)


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
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"


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
            text = f"{label}: {score} {scores[column]:.3g}" if scores else label
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
