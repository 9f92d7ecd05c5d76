"""What a run shows: its progress, its table, its grid of images."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
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


def write_grid(file: Path, own: Images, reference: Images | None, score: str | None) -> None:
    """Same prompt and seed in one column, the base above the run's, the score under each; the first images only."""
    assert own.records is not None
    base = (
        {r.name: (p, r) for p, r in zip(reference.paths, reference.records, strict=True)} if reference and reference.records else {}
    )
    chosen = list(zip(own.paths, own.records, strict=True))[:_COLUMNS]
    rows = [("this run", chosen)]
    if base:
        rows.insert(0, ("base", [base[record.name] for _, record in chosen if record.name in base]))
    font = ImageFont.load_default(13)
    line, head = 20, 54
    sheet = Image.new("RGB", (len(chosen) * (_SIDE + 8) + 8, head + len(rows) * (_SIDE + line + 8)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (_, record) in enumerate(chosen):
        draw.multiline_text((8 + column * (_SIDE + 8), 4), _wrapped(record.prompt, font), fill="black", font=font)
    for row, (label, cells) in enumerate(rows):
        for column, (path, record) in enumerate(cells):
            corner = (8 + column * (_SIDE + 8), head + row * (_SIDE + line + 8))
            with Image.open(path) as picture:
                sheet.paste(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), corner)
            value = record.scores.get(score) if score else None
            text = label if value is None else f"{label}: {score} {value:.3g}"
            draw.text((corner[0], corner[1] + _SIDE + 2), text, fill="black", font=font)
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
