"""What is read of a study's folders: which runs are pairs, what they are called, what there is so far of those at work."""

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.studies import page
from guidedgen.studies.study import Study, read_study
from guidedgen.studies.tables import study_table

from .conftest import MakeRun


def names(study: Study) -> list[str]:
    return [run.name for run in study.runs]


def test_unguided_first_then_by_cost(study: Path) -> None:
    assert names(read_study(study)) == ["base", "code", "mpgd", "codex"]


def test_an_unguided_run_that_was_never_judged_takes_its_metrics_from_guided_runs(study: Path) -> None:
    base, code, *_ = read_study(study).runs
    assert (base.judged, base.from_guided, base.unguided) == (False, True, True)
    assert base.metrics["scores"]["aesthetic"] == {"value": 4.0, "shares_guide": False}  # no interval: no run has one of it
    assert base.metrics["cost"] == code.metrics["base_cost"]
    assert base.metrics["samples"] == 3
    assert base.reward == "aesthetic"
    assert (code.judged, code.from_guided, code.unguided) == (True, False, False)


def test_what_others_contradict_each_other_about_is_not_taken(make_run: MakeRun, tmp_path: Path) -> None:
    """Rewards of one name and other weights, under which the unguided run has two values: its cell is empty, and its point left out."""
    make_run("base", method="base", nfe=50, judged=False)
    make_run("code", base=4.0)
    make_run("codex", base=4.00001, reward=6.0)  # rounded on another device
    assert read_study(tmp_path / "study").runs[0].metrics["scores"]["aesthetic"]["value"] == pytest.approx(4, abs=1e-4)
    make_run("other", base=-3.0, guide={"weight": 2})
    base = read_study(tmp_path / "study").runs[0]
    assert base.from_guided and base.metrics["scores"].keys() == {"clip_score"}
    page.write(tmp_path / "study")
    [head, *rows] = csv.reader((tmp_path / "study" / "report.csv").read_text().splitlines())
    cells = dict(zip(head, next(row for row in rows if row[0] == "base"), strict=True))
    assert (cells["aesthetic"], cells["clip_score"]) == ("", "0.72")
    assert "base" in study_table(tmp_path / "study")


def test_what_is_measured_against_a_folder_says_nothing_of_the_unguided_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("base", method="base", judged=False)
    make_run("code", reference="pictures")
    base, _ = read_study(tmp_path / "study").runs
    assert (base.name, dict(base.metrics), base.from_guided) == ("base", {}, False)


def test_pairs_differ_in_no_more_than_method_and_reward(make_run: MakeRun, tmp_path: Path) -> None:
    for steps in (10, 25):
        make_run(f"base{steps}", method="base", num_steps=steps, judged=False)
    make_run("a", label="short", num_steps=10, base=4.1, options={"num_particles": 4})
    make_run("b", label="long", num_steps=25, base=4.2)
    make_run("c", label="longer", num_steps=25, base=4.2, nfe=300, options={"num_particles": 40})
    make_run("d", label="alone", method="base", num_steps=50, judged=False)
    read = read_study(tmp_path / "study")
    settings = {run.folder.name: run.setting for run in read.runs}
    assert settings["base10"] == settings["a"] != settings["b"] == settings["c"] == settings["base25"]
    values = {run.name: run.metrics["scores"]["aesthetic"]["value"] for run in read.runs if run.from_guided}
    assert values == {"base of short": 4.1, "base of long, longer": 4.2}
    assert "d" not in {run.folder.name for run in read.drawn}  # nothing is measured against it


def test_runs_of_one_label_are_named_by_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    for i, particles in enumerate((4, 4, 8)):
        make_run(f"code-{i}", label="code", options={"num_particles": particles, "temperature": 0.5 if i == 1 else 0.1})
    assert set(names(read_study(tmp_path / "study"))) == {"code", "code temperature=0.5", "code num_particles=8"}


def test_runs_that_differ_in_nothing_shown_or_too_much_are_named_by_their_hash(make_run: MakeRun, tmp_path: Path) -> None:
    for i in (1, 2, 3):
        many = dict.fromkeys(("a", "b", "c"), i)
        make_run(f"code-{i}", label="code", title=f"code-aesthetic-{i}", options=many)
    assert set(names(read_study(tmp_path / "study"))) == {"code 1", "code 2", "code 3"}


def test_a_study_at_work_shows_what_there_is(study: Path, make_run: MakeRun) -> None:
    folder = make_run("freedom", method="freedom", judged=False, done=False)
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"task": "circle", "promp')  # being written
    last = read_study(study).runs[-1]
    assert (last.name, last.done, last.judged, len(last.records)) == ("freedom", False, False, 3)
    assert last not in read_study(study).rows
    assert last in read_study(study).drawn


def test_failed_samples_are_distinguished(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("code", failed={"circle-0": "the reward is nan"})
    [run] = read_study(tmp_path / "study").runs
    assert dict(run.failures) == {"circle-0": "the reward is nan"}
    assert [record.task for record in run.records] == ["square", "hostile"]


def test_a_folder_without_runs_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "a: &a [1]\nb: *a\n", "config.yaml: not a run's config (an alias"),
        ("config.yaml", "method: base\n", "config.yaml: not a run's config (method is no mapping)"),
        ("metrics.json", "[1]", "metrics.json: damaged, not a JSON object; remove it"),
        ("metrics.json", '{"samples": "3"}', "metrics.json: damaged, samples is no count; remove it"),
        ("environment.json", '{"command": "run.py"}', "environment.json: damaged, command is no list; remove it"),
    ],
)
def test_a_damaged_run_is_named_and_the_others_are_shown(
    study: Path, name: str, content: str, message: str, tried: Callable[..., None]
) -> None:
    (study / "mpgd" / name).write_text(content)
    read = read_study(study)
    assert names(read) == ["base", "code", "codex"] and read.damaged.keys() == {"mpgd"}
    assert message in read.damaged["mpgd"]
    page.write(study)
    assert f"mpgd is damaged and not shown: {message}".replace("'", "&#x27;") in (study / "report.html").read_text()
    assert "mpgd is damaged and not shown: " in study_table(study).splitlines()[-1]
    tried("refused")


def test_damaged_lines_are_reported(study: Path, tried: Callable[..., None]) -> None:
    with (study / "code" / "records.jsonl").open("a") as file:
        file.write('{"somebody": "else"}\n')
    assert "code: 1 lines of its records are damaged" in page.page(read_study(study))
    tried("used")


def test_what_is_read_and_compared_grows_with_the_runs_and_not_with_their_square(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in calls, which no machine is slower or faster at."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    counts, made = [], 0
    for total in (10, 20, 40):
        for i in range(made, total):
            make_run(f"code-{i}", label="code", options={"num_particles": i}, reward=5 + i / 10, base=4.0, nfe=100 + i)
        made, calls = total, 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            read = read_study(tmp_path / "study")
        finally:
            sys.setprofile(None)
        assert len({run.name for run in read.runs}) == total
        counts.append(calls)
    first, second, third = counts
    assert third - second < 2.1 * (second - first)
