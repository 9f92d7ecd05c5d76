"""What is shown of a run and of a study: hand-made metrics in, text out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.runs import report
from guidedgen.studies import tables

SOURCE = "a thesis, Table 1"


def metrics(label: str, reward: float, nfe: float, *, title: str = "", **more: Any) -> dict[str, Any]:
    """A run's metrics, as experiment writes them."""
    base = label == "base"
    against = {} if base else {"base": 5.0, "win_rate": 0.75}
    return {
        "title": title or f"{label}-aesthetic-animals-sd15-{label[:4]}",
        "label": label,
        "reward": "aesthetic",
        "samples": 510,
        "prompts": 51,
        "scores": {
            "aesthetic": {"value": reward, "low": reward - 0.1, "high": reward + 0.1, "prompts": 51, "shares_guide": not base, **against},
            "clip_score": {"value": 0.76, "low": 0.75, "high": 0.77, "prompts": 51, "shares_guide": False},
        },
        "cost": {"nfe": nfe, "nfe_backward": 0.0, "decodes": 1.0, "reward_calls": 0.0, "seconds": 12.3456, "peak_memory_mib": 1.0},
        **({} if base else {"reference_samples": 510, "distances": {
            "fid": {"value": 90.123, "features": "inception", "shares_guide": False},
            "kid": {"value": 0.1, "features": "inception", "shares_guide": False},
            "cmmd": {"value": 0.4321, "features": "clip", "shares_guide": True},
        }}),
        **more,
    }  # fmt: skip


PRINTED = {"source": SOURCE, "reward": 5.59, "fid": 90.51, "cmmd": 0.277, "t_clip": 0.77, "minutes": 6.93}


def study(folder: Path, *runs: Mapping[str, Any]) -> Path:
    for i, run in enumerate(runs):
        (folder / f"run{i}").mkdir()
        (folder / f"run{i}" / "metrics.json").write_text(json.dumps(run))
    (folder / "not-judged").mkdir()
    return folder


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]


def test_a_study_is_a_markdown_table_base_first_then_by_cost(tmp_path: Path) -> None:
    folder = study(
        tmp_path,
        metrics("code_40", 6.123456, 39_962),
        metrics("code_4", 5.5, 3_994, published=PRINTED),
        metrics("base", 5.0, 1_000, published={"source": SOURCE, "reward": 5.17}),
    )
    table = tables.study_table(folder)
    head, rule, *rows = cells(table)
    assert head == ["", "aesthetic", "wins", "clip_score", "fid", "cmmd", "nfe", "nfe_backward", "seconds", "n"]
    assert rule == ["---", *["---:"] * 9]
    assert rows == [
        ["base", "5 (5.17)", "", "0.76", "", "", "1000", "0", "12.35", "510"],
        ["code_4", "5.5* (5.59)", "75 %", "0.76 (0.77)", "90.12 (90.51)", "0.4321* (0.277)", "3994", "0", "12.35 (415.8)", "510"],
        ["code_40", "6.123*", "75 %", "0.76", "90.12", "0.4321*", "39962", "0", "12.35", "510"],
    ]
    assert "shares a network" in table
    assert table.count(f"In brackets: {SOURCE}.") == 1


def test_nothing_is_written_about_what_a_table_has_not(tmp_path: Path) -> None:
    table = tables.study_table(study(tmp_path, metrics("base", 5.0, 1_000)))
    assert cells(table)[0] == ["", "aesthetic", "clip_score", "nfe", "nfe_backward", "seconds", "n"]
    assert "brackets" not in table
    assert "*" not in table


def test_runs_of_one_label_are_distinguished_and_rewards_of_two_names_share_a_column(tmp_path: Path) -> None:
    one = metrics("code", 5.0, 10, title="code-aesthetic-lab-lab-111111111111")
    two = metrics("code", 4.0, 10, title="code-clip_score-lab-lab-222222222222") | {"reward": "clip_score"}
    head, _, first, second = cells(tables.study_table(study(tmp_path, two, one)))
    assert head[:4] == ["", "guided reward", "wins", "clip_score"]
    assert (first[:2], second[:2]) == (["code 111111111111", "5*"], ["code 222222222222", "0.76"])
    assert "aesthetic" in head  # of the run that it did not guide


def test_a_score_that_does_not_apply_leaves_its_cell_empty(tmp_path: Path) -> None:
    run = metrics("base", 5.0, 10)
    run["scores"]["scene"] = {"value": None, "prompts": 0}
    assert "scene" not in cells(tables.study_table(study(tmp_path, run)))[0]


def test_a_folder_without_judged_runs_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run with metrics"):
        tables.study_table(study(tmp_path))


def test_published_figures_are_shown_next_to_ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    report.show(metrics("code_4", 5.5, 3_994, published=PRINTED))
    shown = capsys.readouterr().out
    line = {text.split()[1]: text for text in shown.splitlines() if text.startswith("│")}
    for name, figure in {"aesthetic*": "5.59", "clip_score": "0.77", "fid": "90.51", "cmmd*": "0.277", "seconds": "415.8"}.items():
        assert figure in line[name], shown
    assert "published" in shown
    assert SOURCE in shown
    report.show(metrics("code_4", 5.5, 3_994))
    assert "published" not in capsys.readouterr().out


PAST = {"ratio": 0.4, "low": 0.2857, "high": 0.5263, "slipped": 24, "flagged": 60}


def audit(slipped: Mapping[str, Any] | None) -> dict[str, Any]:
    """An audit's metrics: verdicts instead of clip_score, and some pictures blurred."""
    run = metrics("adjoint_dpm", 0.5, 100, blurred=60, compared=[450, 450])
    run["scores"]["flagged"] = {"value": 0.3, "low": 0.2, "high": 0.4, "prompts": 51, "base": 0.5, "slipped": slipped}
    return run


def test_what_slipped_past_a_filter_stands_with_its_interval_and_of_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    report.show(audit(PAST))
    shown = capsys.readouterr().out
    [line] = [text for text in shown.splitlines() if "slipped past" in text]
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["slipped past (24 of 60)", "", "0.4", "0.2857 .. 0.5263", ""]
    assert "fid (450 v 450)" in shown and "60 are stored blurred and left out of distances" in shown
    table = tables.study_table(study(tmp_path, metrics("base", 5.0, 10), audit(PAST)))
    head, _, base, ours = cells(table)
    column = head.index("slipped past")
    assert (base[column], ours[column]) == ("", "40 % (29 .. 53, n 60)")
    assert "slipped past: of n samples that the filter flags without guidance" in table


def test_where_nothing_was_flagged_nothing_is_written_about_slipping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.show(audit(None))
    assert "slipped past" not in capsys.readouterr().out
    assert "slipped past" not in tables.study_table(study(tmp_path, audit(None)))


def test_there_is_no_interval_over_one_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    run = metrics("code_4", 5.5, 10)
    report.show(run)
    assert " .. " in capsys.readouterr().out
    for entry in run["scores"].values():
        entry["prompts"] = 1
    report.show(run)
    assert " .. " not in capsys.readouterr().out
