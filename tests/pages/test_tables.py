"""A study's tables: what stands in them, and that what is written is read back as it was."""

import csv
import io
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.runs import evaluate, report
from guidedgen.runs.store import Record, RunFailed, RunFolder
from guidedgen.studies import page, status, tables
from guidedgen.studies.study import read_study
from guidedgen.studies.tables import Cell

from .conftest import MakeRun

ASCII = "".join(map(chr, range(33, 127)))


def read_csv(text: str) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader(io.StringIO(text))}


def unescaped(text: str) -> str:
    """What LaTeX prints."""
    named = {"textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<", "textgreater": ">"}
    text = re.sub(r"\\(text\w+)\{\}|\\([{}$&#%_])|\{([\[\]])\}", lambda m: named[m[1]] if m[1] else m[2] or m[3], text)
    return text


def test_csv_holds_every_figure_in_full(study: Path) -> None:
    runs = read_study(study).rows
    rows = read_csv(tables.as_csv(tables.of_metrics(runs, every=True)))
    assert list(rows) == ["base", "code", "mpgd", "codex"]
    for run in runs[1:]:
        entry, row = run.metrics["scores"]["aesthetic"], rows[run.name]
        assert [float(row[f"aesthetic{part}"]) for part in ("", "_low", "_high", "_unguided", "_wins")] == [
            entry[key] for key in ("value", "low", "high", "base", "win_rate")
        ]
        assert row["aesthetic_shares_guidance"] == "True" and "clip_score_shares_guidance" not in row
        assert float(row["cmmd"]) == run.metrics["distances"]["cmmd"]["value"]
        assert row["folder"] == run.folder.name
    assert (rows["code"]["aesthetic_published"], rows["code"]["seconds_published"], rows["mpgd"]["aesthetic_published"]) == (
        "5.59",
        "120",
        "",
    )
    assert rows["base"]["aesthetic_low"] == ""


def test_csv_keeps_names_that_need_quotes(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("run", label='a "b", c\nd')
    assert list(read_csv(tables.as_csv(tables.of_metrics(read_study(tmp_path / "study").rows)))) == ['a "b", c\nd']


def test_the_ledger_adds_up(study: Path) -> None:
    rows = read_csv(tables.as_csv(tables.of_cost(read_study(study).rows)))
    assert float(rows["codex"]["minutes"]) == pytest.approx(3 * 2.0 / 60)  # three pictures, two seconds each
    assert float(rows["codex"]["times"]) == 4.0  # 200 network rows against 50
    assert rows["base"]["times"] == ""


def test_latex_prints_every_character_as_it_is() -> None:
    assert unescaped(tables.escaped(ASCII)) == ASCII
    assert not re.search(r"(?<!\\)[$&#%_^~<>]", tables.escaped(ASCII).replace(r"\textbackslash{}", ""))


def test_a_latex_row_has_as_many_cells_as_columns_and_published_figures_below(study: Path, make_run: MakeRun) -> None:
    make_run("odd", label="[a_b & 50 %] \\ {", nfe=400)
    text = tables.latex(tables.of_metrics(read_study(study).rows), "100 %")
    columns = re.search(r"\\begin\{tabular\}\{(l\w*)\}", text)
    lines = text.split("\\midrule\n")[1].split("\\bottomrule")[0].strip().splitlines()
    assert columns and all(len(re.split(r"(?<!\\)&", line)) == len(columns[1]) for line in lines)
    assert all(line.endswith(r"\\") for line in lines)
    assert [line.split(" &")[0] for line in lines] == [
        "base", "code", r"\quad published", "mpgd", "codex", r"{[}a\_b \& 50 \%{]} \textbackslash{} \{",
    ]  # fmt: skip
    assert r"5* {\scriptsize [4.75, 5.5]}" in lines[1] and " 5.59 " in lines[2]


def test_markdown_keeps_its_columns_whatever_a_run_is_called(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("run", label="a|b")
    head, _, row, *_ = tables.markdown(tables.of_metrics(read_study(tmp_path / "study").rows)).splitlines()
    assert len(re.split(r"(?<!\\)\|", row)) == len(head.split("|"))


def test_a_cell_says_its_figure_in_its_own_kind() -> None:
    assert (Cell(value=0.4, percent=True, low=0.2857, high=0.5263).text, Cell(value=2.0, shared=True).text) == ("40 %", "2*")
    assert Cell(value=0.4, percent=True, low=0.2857, high=0.5263).interval == "29 .. 53"
    assert Cell(value=7.6488, low=7.38593, high=7.91554).interval == "7.39 .. 7.92"
    assert (Cell().text, Cell(value=float("nan")).text, Cell(shared=True).text) == ("", "", "")


# What a name or a figure may do where it is shown


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_is_a_formula_and_numbers_stay_numbers(
    make_run: MakeRun, tmp_path: Path, start: str, tried: Callable[..., None]
) -> None:
    """Names of runs, folders, rewards and scores, which are heads of columns too."""
    hostile = f"{start}HYPERLINK(1)"
    figure = {"value": -0.5, "prompts": 3, "shares_guide": False}
    make_run("run", label=hostile, reward=-5.25, base=-6.5, scores={hostile: figure, "aesthetic": figure}, title=hostile)
    runs = read_study(tmp_path / "study").rows
    for text in (tables.as_csv(tables.of_metrics(runs, every=True)), tables.as_csv(tables.of_cost(runs))):
        head, *rows = csv.reader(io.StringIO(text))
        shown = f"'{hostile}".replace("\r", "\n")
        assert shown in rows[0] and not any(cell.startswith(start) for cell in head)
        for cell in [*head, *(cell for row in rows for cell in row)]:
            assert not cell.startswith(start) or math.isfinite(float(cell))
    assert read_csv(tables.as_csv(tables.of_metrics(runs)))[shown]["aesthetic"] == "-0.5"
    tried("used")


@pytest.mark.parametrize("name", ["\033[31mred", "\033]8;;http://x\033\\", "a\x9b31m", "a\u202eb", "\ud83d", "a\rb", "a\x08b"])
def test_nothing_that_a_terminal_obeys_is_printed(
    make_run: MakeRun, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    """In tables, states, errors and a run's own table."""
    folder = make_run("run", label=name, failed={"circle-0": name}, title=name)
    make_run("other", judged=False)
    run = RunFolder(folder)
    report.show(run.read_json("metrics.json"))
    status.show(status.of_study(tmp_path / "study"))
    print(tables.study_table(tmp_path / "study"), UsageError(f"model={name}: no"), RunFailed(name))
    printed = capsys.readouterr().out
    assert not any(letter in printed for letter in "\033\x9b\u202e\ud83d\r\x08")
    assert "\\" in printed or "a b" in printed
    printed.encode()
    tried("used")


@pytest.mark.parametrize("name", ["[red]", "[/]", "[/red]", "a [link=x]b", "<img src=x>", "`a`", "a|b", "**b**", "[a](http://x)"])
def test_markup_in_a_name_is_text(
    make_run: MakeRun, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    folder = make_run("run", label=name, title=name, failed={"circle-0": name}, reward=3.0)
    report.show(RunFolder(folder).read_json("metrics.json") | {"scores": {name: {"value": 1.0, "described": name}}})
    status.show(status.of_study(tmp_path / "study"))
    assert capsys.readouterr().out.count(name) == 5  # title, score, what it depends on and its name again, why a sample failed
    cell = tables.study_table(tmp_path / "study").splitlines()[2].split(" | ")[0].removeprefix("| ")
    assert re.sub(r"\\(.)", r"\1", cell) == name and not re.search(r"(?<!\\)[\[\]<>`*|]", cell)
    tried("used")


def test_lines_of_several_are_one(tried: Callable[..., None]) -> None:
    assert str(UsageError("model=a\n  b\r\nc: no")) == "model=a b c: no"
    assert str(RunFailed("a\nb")) == "guidedgen: a b"
    tried("used", 2)


def parts(**means: float) -> dict[str, object]:
    """A score's entry of prompts of several categories."""
    found = {name: {"value": mean, "low": mean - 0.1, "high": mean + 0.1, "prompts": 20} for name, mean in means.items()}
    return {"value": sum(means.values()) / len(means), "prompts": 20 * len(means), "shares_guide": False, "categories": found}


def test_scores_by_category_have_a_table_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    printed = {"source": "a paper, Table 4", "blip_vqa": 0.6743, "blip_vqa_color": 0.7576, "quoted": {"SDXL": 0.6369}}
    make_run("full", scores={"blip_vqa": parts(color=0.7, shape=0.4)}, published=printed)
    make_run("plain")
    text = tables.study_table(tmp_path / "study")
    assert "By category:" in text
    head, _, row, *rest = text.split("By category:\n\n")[1].splitlines()
    assert head == "|  | blip_vqa, color | blip_vqa, shape |"
    assert row == "| full | 0.7 (0.7576) | 0.4 |"
    assert rest == []  # the run without categories is not in it
    assert "In brackets: a paper, Table 4 (quoted there: SDXL 0.6369)." in text
    written = {file.name: file.read_text() for file in page.write(tmp_path / "study")}
    rows = read_csv(written["report_categories.csv"])
    assert (rows["full"]["blip_vqa_color"], rows["full"]["blip_vqa_color_published"]) == ("0.7", "0.7576")
    assert "blip_vqa, shape" in written["report.html"]


def test_scores_of_one_category_have_none(study: Path) -> None:
    assert "By category" not in tables.study_table(study)
    assert [file.name for file in page.write(study)] == ["report.html", "report.csv", "report_cost.csv", "report.tex"]


def test_a_mean_over_prompts_is_split_by_their_categories() -> None:
    numbers = {"nfe": 1, "nfe_backward": 0, "decodes": 1, "reward_calls": 0, "seconds": 1.0, "peak_memory_mib": 1.0}
    drawn = [("a", "color"), ("b", "color"), ("c", "shape"), ("d", "other")]
    records = [
        Record(task=task, prompt="", category=category, seed=seed, image="", scores={}, **numbers)
        for task, category in drawn
        for seed in (0, 1)
    ]
    pictures = evaluate.Images(paths=[Path("x")] * len(records), records=records)
    scores = [1.0, 3.0, 5.0, 5.0, 0.0, 1.0, math.nan, math.nan]  # the last prompt is none that the scorer applies to
    found = evaluate.expected(pictures, {"vqa": scores, "one": [*scores[:4], *[math.nan] * 4]})
    assert found["vqa"]["value"] == pytest.approx((2 + 5 + 0.5) / 3)
    categories = found["vqa"]["categories"]
    assert {name: (part["value"], part["prompts"]) for name, part in categories.items()} == {"color": (3.5, 2), "shape": (0.5, 1)}
    assert categories["color"]["low"] <= 3.5 <= categories["color"]["high"]
    assert "categories" not in found["one"]
