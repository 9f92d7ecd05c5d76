"""A study as one HTML page that loads nothing from the network: tables, plots, pictures, curves, cost, commands and cautions.

The same study gives the same bytes. Everything inline is named by its hash in the page's content security policy, so that a
browser runs this script and no other, whatever a prompt contains.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

from guidedgen.runs.store import write_atomic
from guidedgen.studies.cautions import cautions
from guidedgen.studies.html import Markup, address, join, tag
from guidedgen.studies.panels import (
    anchor,
    cost_panel,
    curves_panel,
    downloads,
    figures_panel,
    pictures_panel,
    plots_panel,
    sheets_panel,
)
from guidedgen.studies.plots import Style, swatch
from guidedgen.studies.study import Run, Study, read_study

_HERE = Path(__file__).resolve().parent
_BUDGET = 12_000_000  # bytes of embedded pictures: the page opens at once, and fits in a mail


def write(folder: Path) -> list[Path]:
    """Writes report.html, report.csv, report_cost.csv and report.tex into a study's folder; returns their paths.

    Raises:
        UsageError: the folder holds no run.
    """
    study = read_study(folder)
    files = {"report.html": page(study), **downloads(study)}
    for name, text in files.items():
        write_atomic(folder / name, text.encode(errors="replace"))  # half a surrogate pair is no text
    return [folder / name for name in files]


def page(study: Study, budget: int = _BUDGET) -> str:
    """The page's text, with at most about `budget` bytes of pictures."""
    name, css, js = study.folder.absolute().name, _asset("page.css"), _asset("page.js")
    numbers = itertools.count()
    styles = {run.name: Style(number=None if run.unguided else next(numbers)) for run in study.runs}
    sections = {
        "Pictures": join(*pictures_panel(study, styles, budget)),
        "Figures": join(*figures_panel(study, styles), _cautions(study)),
        "Plots": join(*plots_panel(study, styles)),
        "Evolution": join(*sheets_panel(study)),
        "Curves": join(*curves_panel(study, styles)),
        "Cost": join(*cost_panel(study, styles)),
        "Commands": join(*(_command(run, styles[run.name]) for run in study.runs)),
    }
    shown = {title: content for title, content in sections.items() if content}
    allowed = f"img-src data:; style-src '{_hash(css)}'; script-src '{_hash(js)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{name} · guidedgen"),
        tag("style", Markup(css)),
    )
    links = [tag("a", title, href=f"#{title.lower()}") for title in shown]
    parts = [tag("section", tag("h2", title), content, id=title.lower()) for title, content in shown.items()]
    body = tag(
        "body",
        tag("header", tag("h1", name), _summary(study), tag("nav", *links)),
        tag("main", *parts),
        _viewer(),
        tag("script", Markup(js)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return (_HERE / name).read_text()


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _summary(study: Study) -> Markup:
    done = sum(run.done for run in study.runs)
    models = dict.fromkeys(str(run.config["model"].get("name")) for run in study.runs if run.config.get("model"))
    parts = [
        f"{done} of {len(study.runs) + len(study.damaged)} runs done",
        f"{len({(record.task, record.prompt) for run in study.drawn for record in run.records}):,} prompts",
        f"{sum(len(run.records) for run in study.runs):,} pictures",
        *(f"model {model}" for model in models),
    ]
    return tag("p", " · ".join(parts), class_="summary")


def _cautions(study: Study) -> Markup | None:
    """One line each; the whole sentence after a click."""
    items = [
        tag("details", tag("summary", caution.text), class_="serious" if caution.serious else "note") for caution in cautions(study)
    ]
    return tag("div", *items, class_="cautions", aria_label="Cautions") if items else None


def _viewer() -> Markup:
    """The enlarged view after a click: the picture, with the unguided one of its pair next to it."""
    sides = [tag("figure", tag("img", alt=""), tag("figcaption", tag("b"), tag("span")), id=name) for name in ("before", "after")]
    buttons = [
        tag("button", "Previous", type="button", id="previous", title="left arrow"),
        tag("button", "Next", type="button", id="next", title="right arrow"),
        tag("button", "Close", type="button", id="close", title="Esc"),
    ]
    head = tag("div", tag("h3", id="prompt"), *buttons, tag("a", "stored file", id="file"), class_="tools")
    return tag("dialog", head, tag("div", *sides, class_="sides"), id="viewer")


# Commands


def _command(run: Run, style: Style) -> Markup:
    served = run.unguided and not run.judged
    parts = [f"{len(run.records):,} pictures", *(["unguided, for others to be measured against"] if served else [])]
    state = tag("span", ", ".join([*parts, *([] if run.done else ["not done"])]), class_="remark")
    return tag("details", tag("summary", swatch(style), tag("b", run.name), " ", state), *_behind(run), id=anchor(run))


def _behind(run: Run) -> Iterator[Markup]:
    """The command line and the config of a run, and the machine it was made on."""
    environment = run.environment
    if command := environment.get("command"):
        yield tag("pre", f"python {shlex.join(map(str, command))}", class_="command")
        if {"-m", "--multirun"} & set(command):
            yield tag("p", "A sweep, of which this is one run; below is the config of this run alone.", class_="remark")
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    python = f"Python {environment['python']}" if environment.get("python") else None
    known = [environment.get("device"), python, packages, environment.get("commit") and f"commit {environment['commit'][:12]}"]
    yield tag("p", " · ".join(str(item) for item in known if item), class_="remark")
    yield tag("p", tag("a", f"{run.folder.name}/", href=address(f"{run.folder.name}/")), class_="remark")
    if run.text:
        yield tag("pre", run.text)
