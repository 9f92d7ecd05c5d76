"""What is read of a study's folders: which runs are pairs, what they are called, what there is so far of those at work."""

import csv
from pathlib import Path

import pytest

from guidedgen.pages import page
from guidedgen.pages.study import Study, read_study
from guidedgen.report import study_table
from guidedgen.types import UsageError

from .conftest import MakeRun


def names(study: Study) -> list[str]:
    return [run.name for run in study.runs]


def test_unguided_first_then_by_cost(study: Path) -> None:
    assert names(read_study(study)) == ["base", "code", "mpgd", "codex"]


def test_an_unguided_run_that_was_never_judged_is_lent_what_others_say_of_it(study: Path) -> None:
    base, code, *_ = read_study(study).runs
    assert (base.judged, base.lent, base.unguided) == (False, True, True)
    assert base.metrics["scores"]["aesthetic"] == {"value": 4.0, "shares_guide": False}  # no interval: nobody has one of it
    assert base.metrics["cost"] == code.metrics["base_cost"]
    assert base.metrics["samples"] == 3
    assert base.reward == "aesthetic"
    assert (code.judged, code.lent, code.unguided) == (True, False, False)


def test_what_others_contradict_each_other_about_is_not_lent(make_run: MakeRun, tmp_path: Path) -> None:
    """Rewards of one name and other weights, under which the unguided run has two values: its cell is empty, and its point left out."""
    make_run("base", method="base", nfe=50, judged=False)
    make_run("code", base=4.0)
    make_run("codex", base=4.00001, reward=6.0)  # rounded on another device
    assert read_study(tmp_path / "study").runs[0].metrics["scores"]["aesthetic"]["value"] == pytest.approx(4, abs=1e-4)
    make_run("other", base=-3.0, guide={"weight": 2})
    base = read_study(tmp_path / "study").runs[0]
    assert base.lent and base.metrics["scores"].keys() == {"clip_score"}
    page.write(tmp_path / "study")
    [head, *rows] = csv.reader((tmp_path / "study" / "report.csv").read_text().splitlines())
    told = dict(zip(head, next(row for row in rows if row[0] == "base"), strict=True))
    assert (told["aesthetic"], told["clip_score"]) == ("", "0.72")
    assert "base" in study_table(tmp_path / "study")


def test_what_is_measured_against_a_folder_says_nothing_of_the_unguided_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("base", method="base", judged=False)
    make_run("code", reference="pictures")
    base, _ = read_study(tmp_path / "study").runs
    assert (base.name, dict(base.metrics), base.lent) == ("base", {}, False)


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
    values = {run.name: run.metrics["scores"]["aesthetic"]["value"] for run in read.runs if run.lent}
    assert values == {"base of short": 4.1, "base of long, longer": 4.2}
    assert "d" not in {run.folder.name for run in read.drawn}  # nothing is measured against it


def test_runs_of_one_label_are_named_by_what_differs(make_run: MakeRun, tmp_path: Path) -> None:
    for i, particles in enumerate((4, 4, 8)):
        make_run(f"code-{i}", label="code", options={"num_particles": particles, "temperature": 0.5 if i == 1 else 0.1})
    assert set(names(read_study(tmp_path / "study"))) == {"code", "code temperature=0.5", "code num_particles=8"}


def test_runs_that_differ_in_nothing_told_or_too_much_are_named_by_their_hash(make_run: MakeRun, tmp_path: Path) -> None:
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


def test_failed_samples_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("code", failed={"circle-0": "the reward is nan"})
    [run] = read_study(tmp_path / "study").runs
    assert dict(run.failures) == {"circle-0": "the reward is nan"}
    assert [record.task for record in run.records] == ["square", "hostile"]


def test_a_folder_without_runs_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match="holds no run"):
        read_study(tmp_path)
