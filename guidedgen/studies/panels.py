"""A study's page, part by part: tables, plots, curves and pictures as HTML."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence

from guidedgen.studies import pictures, plots, tables
from guidedgen.studies.curves import REWARDS, curves
from guidedgen.studies.html import Markup, address, join, tag
from guidedgen.studies.plots import Curve, Point, Style
from guidedgen.studies.study import Run, Study
from guidedgen.studies.tables import Cell, Table

_SHEETS = 2  # samples of a run whose sheets are shown
_LINKED = 500  # further pairs that are listed with links
_DISTANCES = ("cmmd", "fid", "rmse")  # what stands for divergence, the first two there are
_COSTS = {"nfe": "network rows per image", "seconds": "seconds per image"}


def anchor(run: Run) -> str:
    """The id of a run's section on the page."""
    return f"run-{run.folder.name}"


def _name(run: Run, style: Style) -> Markup:
    """A run's mark and name, leading to its command."""
    return tag("a", plots.swatch(style), run.name, href=f"#{address(anchor(run))}", class_="run", title=run.folder.name)


def downloads(study: Study) -> dict[str, str]:
    """The tables as files; none before a run is judged."""
    if not study.rows:
        return {}
    metrics, cost, name = tables.of_metrics(study.rows), tables.of_cost(study.rows), study.folder.absolute().name
    published = [f"Published: {source}." for source in tables.sources(metrics)]
    words = "; ".join(f"{column.title}: {column.about}" for column in cost.columns if column.about)
    return {
        "report.csv": tables.as_csv(tables.of_metrics(study.rows, every=True)),
        "report_cost.csv": tables.as_csv(cost),
        **({"report_categories.csv": tables.as_csv(by_category)} if (by_category := tables.of_categories(study.rows)).rows else {}),
        "report.tex": "\n".join([
            tables.latex(metrics, " ".join([f"{name}.", *tables.notes(metrics), *published])),
            tables.latex(cost, f"Cost of {name}. {words}."),
        ]),
    }  # fmt: skip


# Tables


def figures_panel(study: Study, styles: Mapping[str, Style]) -> Iterator[Markup]:
    """Methods by metrics, notes on them, and the tables as files."""
    if not study.rows:
        yield tag("p", "No run has been judged yet.")
        return
    table = tables.of_metrics(study.rows)
    yield _table(table, styles)
    if (by_category := tables.of_categories(study.rows)).rows:
        yield _table(by_category, styles)
    marks = "Small: 95 % interval, bootstrap over prompts. ▲ ▼: it lies above or below the unguided mean."
    yield tag("p", " ".join([marks, *tables.notes(table)]), class_="remark")
    yield from (
        tag("p", f"Published: {source}, where the setting is the printed one.", class_="remark") for source in tables.sources(table)
    )
    yield tag("p", *(_download(name, text) for name, text in downloads(study).items()), class_="downloads")


def _download(name: str, text: str) -> Markup:
    kind = "text/csv" if name.endswith(".csv") else "application/x-tex"
    content = base64.b64encode(text.encode(errors="replace")).decode()
    return tag("a", name, href=f"data:{kind};base64,{content}", download=name)


def _table(table: Table, styles: Mapping[str, Style]) -> Markup:
    """Every run is a table body of its own, so that its published figures stay below it when rows are sorted."""
    heads = [
        tag("th", tag("button", column.title, type="button"), scope="col", title=column.hint or None) for column in table.columns
    ]
    bodies = []
    for i, (run, _) in enumerate(table.rows):
        cells = table.cells(i)
        own = tag(
            "tr",
            tag("th", _name(run, styles[run.name]), scope="row"),
            *map(_cell, cells),
            class_="unguided" if run.unguided else None,
        )
        printed = None
        if any(cell.printed is not None for cell in cells):
            printed = tag(
                "tr",
                tag("th", "published", scope="row"),
                *(tag("td", cell.figure(cell.printed)) for cell in cells),
                class_="printed",
            )
        bodies.append(tag("tbody", own, printed))
    return tag(
        "div", tag("table", tag("thead", tag("tr", tag("th", "run", scope="col"), *heads)), *bodies), class_="scroll", tabindex="0"
    )


def _cell(cell: Cell) -> Markup:
    notes = [
        f"unguided {cell.figure(cell.base)}" if cell.base is not None else "",
        f"wins {100 * cell.wins:.0f} %" if cell.wins is not None else "",
    ]
    small = ", ".join(filter(None, (cell.interval, cell.note)))
    return tag(
        "td",
        _arrow(cell),
        tag("b", cell.text),
        tag("small", small) if small else None,
        title="; ".join(filter(None, [*notes, cell.described])) or None,
        data_value=cell.value,
    )


def _arrow(cell: Cell) -> Markup | None:
    if cell.base is None or cell.low is None or cell.high is None or cell.low == cell.high or cell.low <= cell.base <= cell.high:
        return None
    return tag("i", "▲", class_="up") if cell.low > cell.base else tag("i", "▼", class_="down")


def cost_panel(study: Study, styles: Mapping[str, Style]) -> Iterator[Markup]:
    """The cost ledger."""
    if study.rows:
        yield _table(tables.of_cost(study.rows), styles)


# Plots


def plots_panel(study: Study, styles: Mapping[str, Style]) -> Iterator[Markup]:
    """The guided reward against divergence and cost, for each reward that guides runs of the study."""
    for reward in dict.fromkeys(run.reward for run in study.rows if not run.unguided and run.reward):
        guided = [run for run in study.rows if not run.unguided and run.reward == reward]
        settings = {run.setting for run in guided}
        runs = [run for run in study.rows if (run.setting in settings if run.unguided else run.reward == reward)]
        measured = [name for name in _DISTANCES if any(name in run.metrics.get("distances", {}) for run in guided)]
        plotted = [_scatter(runs, reward, name, name, styles) for name in measured[:2]]
        plotted += [_scatter(runs, reward, name, label, styles) for name, label in _COSTS.items()]
        parts = _parts(guided)
        if len(parts) > 1:  # Figure 5 of the CoDeX thesis
            plotted.append(_scatter(runs, parts[0], parts[1], parts[1], styles))
        if any(plotted):
            yield tag("div", *plotted, class_="plots")
            caption = "The line is the Pareto front: no run has more along one axis at what it has along the other."
            caption += " Whiskers: 95 % interval. Grey: unguided."
            yield tag("p", caption, class_="remark")


def _parts(runs: Sequence[Run]) -> list[str]:
    """The rewards of a weighted sum that have a weight in some run, and a score in all of them."""
    weights = [(run.config.get("reward") or {}).get("weights") or {} for run in runs]
    names = dict.fromkeys(name for own in weights for name in own)
    return [name for name in names if any(own.get(name) for own in weights) and all(name in run.metrics["scores"] for run in runs)]


def _scatter(runs: Sequence[Run], reward: str, name: str, label: str, styles: Mapping[str, Style]) -> Markup | None:
    """A reward against a distance, a cost or another score; nothing for fewer than two points."""
    points = []
    for run in runs:
        entry, x = run.metrics["scores"].get(reward, {}), _abscissa(run, name)
        if entry.get("value") is not None and x is not None:
            low, high = entry.get("low"), entry.get("high")
            points.append(Point(name=run.name, style=styles[run.name], x=x, y=entry["value"], low=low, high=high))
    if len(points) < 2:
        return None
    plot = plots.scatter(points, label, reward, log_x=name in _COSTS, more_x=name not in (*_COSTS, *_DISTANCES))
    return tag("figure", tag("figcaption", f"{reward} against {label}"), plot)


def _abscissa(run: Run, name: str) -> float | None:
    """A run's cost, another score of it, or its distance to the unguided run, which the unguided run itself does not have."""
    if name in _COSTS:
        return run.metrics["cost"].get(name)
    if name in run.metrics["scores"]:
        return run.metrics["scores"][name]["value"]
    measured = run.metrics.get("distances", {}).get(name)
    return measured["value"] if measured else 0.0 if run.unguided and run.config.get("reference") == "base" else None


def curves_panel(study: Study, styles: Mapping[str, Style]) -> Iterator[Markup]:
    """What methods have logged on the way, a plot per quantity with the runs that log it; rewards first."""
    found: dict[tuple[str, ...], list[Curve]] = {}
    for run in study.runs:
        for which, curve in curves(run, styles[run.name]).items():
            reward = str(run.reward or "reward") if which in REWARDS else ""
            found.setdefault((*which, reward), []).append(curve)
    drawn = []
    for (event, quantity, reward), those in sorted(found.items(), key=lambda item: (not item[0][2], item[0])):
        by = "update" if event in ("update", "learn") else "step"
        title = REWARDS.get((event, quantity), f"{quantity} by {by} ({event})")
        plot = plots.lines(those, by, reward or quantity, log_y=not reward)
        names = tag("p", *(tag("span", plots.swatch(curve.style), curve.name, class_="run") for curve in those), class_="legend")
        drawn.append(tag("figure", tag("figcaption", title), plot, names))
    if drawn:
        yield tag("div", *drawn, class_="plots")
        yield tag(
            "p", "Means over a run's samples; bands, where few runs share a plot, hold the middle 80 % of them.", class_="remark"
        )


# Sheets


def sheets_panel(study: Study) -> Iterator[Markup]:
    """How the pictures of each run's first samples came about, where its method shows it."""
    for run in study.drawn:
        for kind, shown in pictures.sheets(run, _SHEETS).items():
            yield tag("h3", f"{run.name}: {kind}")
            for record, embedded in shown:
                image = [tag("img", src=embedded, alt=f"{kind} of {record.prompt}, seed {record.seed}")]
                if kind == "film" and (moving := pictures.animation(run, record)):
                    image.append(
                        tag("img", src=moving, alt=f"animation of {record.prompt}, seed {record.seed}", class_="animation")
                    )
                yield tag("figure", *image, tag("figcaption", f"{record.prompt}, seed {record.seed}"), class_="sheet")


# Pictures


def pictures_panel(study: Study, styles: Mapping[str, Style], budget: int) -> Iterator[Markup]:
    """The same prompt and seed across runs, with a filter; pictures over the budget are linked."""
    shown, rest = pictures.pairs(study, budget)
    if not shown:
        return
    label = tag("label", "Prompts with ", tag("input", type="search", id="filter", placeholder="words", autocomplete="off"))
    count = f"{len(shown):,} of {len(shown) + len(rest):,} pairs of prompt and seed are here"
    more = f"{count}, the others are linked below." if rest else f"{len(shown):,} pairs of prompt and seed."
    yield tag(
        "div",
        label,
        tag("output", id="found", for_="filter"),
        tag("span", f"{more} Click a picture to enlarge it."),
        class_="tools",
    )
    yield tag("div", *(_pair(pair, styles) for pair in shown), class_="pairs", tabindex="0")
    if rest:
        limit = f", the first {_LINKED} by name" if len(rest) > _LINKED else ""
        yield tag("details", tag("summary", f"{len(rest):,} more, as links{limit}"), *_links(rest), _folders(study))


def _pair(pair: pictures.Pair, styles: Mapping[str, Style]) -> Markup:
    head = tag("h3", pair.prompt or "(no prompt)", " ", tag("span", f"seed {pair.seed}"))
    return tag(
        "article",
        head,
        tag("div", *(_shot(shot, styles) for shot in pair.shots), class_="shots"),
        class_="pair",
        data_prompt=pair.prompt,
    )


def _shot(shot: pictures.Shot, styles: Mapping[str, Style]) -> Markup:
    run, record = shot.run, shot.record
    name = _name(run, styles[run.name])
    if record is None or not shot.embedded:
        return tag(
            "figure",
            tag("div", f"failed: {shot.failed}" if shot.failed else "no picture", class_="absent"),
            tag("figcaption", name),
        )
    image = tag("img", src=shot.embedded, alt=f"{run.name}, seed {record.seed}: {record.prompt}")
    data = {
        "data_name": run.name,
        "data_scores": pictures.scores_text(record.scores),
        "data_link": shot.link,
        "data_setting": run.setting,
    }
    button = tag("button", image, type="button", class_="shot", data_unguided=run.unguided, **data)
    scorer = run.reward if run.reward in record.scores else next(iter(record.scores), "")
    figure = pictures.scores_text({scorer: record.scores.get(scorer)})
    blurred = tag("small", "blurred") if record.blurred else None
    return tag("figure", button, tag("figcaption", name, tag("small", figure) if figure else None, blurred))


def _links(rest: Sequence[pictures.Pair]) -> Iterator[Markup]:
    for pair in rest[:_LINKED]:
        links = [join(" ", tag("a", shot.run.name, href=shot.link)) for shot in pair.shots if shot.record is not None]
        yield tag("p", tag("b", pair.prompt), f" seed {pair.seed}:", *links, class_="links", data_prompt=pair.prompt)


def _folders(study: Study) -> Markup:
    links = [join(" ", tag("a", run.name, href=address(f"{run.folder.name}/images/"))) for run in study.drawn]
    return tag("p", "Folders of all pictures:", *links, class_="links")
