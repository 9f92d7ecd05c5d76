"""States of runs, read from their folders alone."""

import dataclasses
import multiprocessing
from pathlib import Path

import processes
import pytest

from guidedgen.basics.errors import Stopped, UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import experiment
from guidedgen.runs.store import Record, RunFailed, RunFolder
from guidedgen.studies import status, sweeps

QUICK = ["scheduler.num_steps=2", "dataset.limit=1", "tracker=none", "device=cpu", "reference=none"]

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


def record(task: str, failed: str | None = None) -> Record:
    return Record(
        task=task, prompt=task, category="", seed=0, image=f"images/{task}-0.png", scores={}, nfe=1, nfe_backward=0, decodes=1,
        reward_calls=0, seconds=0.0, peak_memory_mib=0.0, failed=failed,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of two samples, of which one is finished."""
    run = RunFolder(tmp_path / "study" / "run")
    run.open("seed: 0\n", {"samples": 2})
    run.note("started: run.py; 2 of 2 samples to make")
    run.save(Sample(task=Task(id="a", prompt="a"), seed=0), b"\x89PNG", record("a"), [])
    return run


def test_a_run_that_was_killed_is_partial(folder: RunFolder) -> None:
    folder.close()
    assert status.of_folder(folder.path) == status.State(name="run", state="partial", samples=1, wanted=2)


@pytest.mark.parametrize("why", ["stopped by SIGUSR2", "interrupted"])
def test_a_run_that_was_stopped_says_by_what(folder: RunFolder, why: str) -> None:
    folder.note(why)
    folder.close()
    assert status.of_folder(folder.path) == status.State(name="run", state="partial", samples=1, wanted=2, reason=why)


def test_a_run_that_failed_says_why_in_one_line(folder: RunFolder) -> None:
    folder.note("failed: ValueError: no\nTraceback:\n  stopped by nobody")
    folder.close()
    assert status.of_folder(folder.path) == status.State(name="run", state="failed", samples=1, wanted=2, reason="ValueError: no")


def test_a_run_that_is_done_says_what_failed_in_it(folder: RunFolder) -> None:
    folder.fail(record("b", failed="no reward was finite"))
    folder.note("done")
    folder.finish()
    expected = status.State(name="run", state="done", samples=1, wanted=2, reason="1 failed, as b-0: no reward was finite")
    assert status.of_folder(folder.path) == expected


def test_a_run_that_another_process_is_at_work_on_is_running(folder: RunFolder) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process's own locks do not stand in its way
        assert pool.apply(status.of_folder, (folder.path,)).state == "running"
        folder.close()
        assert pool.apply(status.of_folder, (folder.path,)).state == "partial"


def test_a_study_is_its_runs(folder: RunFolder, tmp_path: Path) -> None:
    folder.close()
    other = RunFolder(tmp_path / "study" / "other")
    other.open("seed: 1\n", {})
    other.finish()
    states = status.of_study(tmp_path / "study")
    assert [(state.name, state.state) for state in states] == [("other", "done"), ("run", "partial")]
    assert status.summary(states) == "2 runs: 1 done, 1 partial"
    with pytest.raises(UsageError, match="holds no run"):
        status.of_study(tmp_path)


@pytest.mark.parametrize(
    ("error", "noted"),
    [
        (Stopped("SIGTERM"), "stopped by SIGTERM"),
        (KeyboardInterrupt(), "interrupted"),
        (RunFailed("the disk is full"), "failed: guidedgen: the disk is full"),
        (UsageError("model.path=x: no such folder"), "failed: model.path=x: no such folder"),
        (ZeroDivisionError("by nought"), "failed: ZeroDivisionError: by nought"),
    ],
)
def test_why_a_run_ended_lands_in_its_own_log(folder: RunFolder, error: BaseException, noted: str) -> None:
    @dataclasses.dataclass
    class Job:
        folder: RunFolder

    def fail() -> None:
        raise error

    with pytest.raises(type(error)), experiment._noted(Job(folder)):  # type: ignore[arg-type]
        fail()
    assert folder.last_note == noted
    text = (folder.path / "run.log").read_text()
    assert ("in fail" in text) == isinstance(error, ZeroDivisionError)  # with the traceback


@trained
def test_a_sweep_says_what_is_missing_and_makes_it(tmp_path: Path) -> None:
    overrides = [f"outputs={tmp_path}", "method=base,best_of_n", "seed=0,1", *QUICK]

    def go(*command: str) -> str:
        done = processes.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    one = [item.replace("base,best_of_n", "base").replace("0,1", "1") for item in overrides]
    go("run.py", *one)
    states = status.of_sweep(sweeps.runs(overrides))
    assert [state.state for state in states] == ["missing", "done", "missing", "missing"]
    assert [state.name for state in states] == [
        f"method={method} seed={seed}" for method in ("base", "best_of_n") for seed in (0, 1)
    ]
    printed = go("run.py", "-m", *overrides)
    assert "4 runs: 1 done, 3 missing" in printed and printed.count("already done") == 1
    again = go("run.py", "-m", *overrides)  # a line a run instead of its table
    assert again.count(": already done: ") == 4 and "(network rows)" in printed and "(network rows)" not in again
    assert "4 runs: 4 done" in go("scripts/status.py", *overrides)
    assert "4 runs: 4 done" in go("scripts/status.py", str(tmp_path / "default"))


@trained
def test_values_that_do_not_go_together_leave_the_other_runs(tmp_path: Path) -> None:
    """Which are found when it is their turn: not all combinations of values are checked before."""
    overrides = [f"outputs={tmp_path}", "method=base,code", "scheduler=ddim", "scheduler.eta=1,0", "seed=0,1", *QUICK]
    done = processes.run("run.py", "-m", *overrides)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("guidedgen: ")] == 2 * [
        "guidedgen: method=code needs a stochastic scheduler: scheduler=ddpm, or scheduler=ddim scheduler.eta=1"
    ]
    assert len(list(tmp_path.glob("default/*/DONE"))) == 6


@trained
def test_a_run_of_a_sweep_that_cannot_be_made_leaves_the_others(tmp_path: Path) -> None:
    overrides = [f"outputs={tmp_path}", "method=base", "seed=0,1", *QUICK]
    bad, good = sweeps.runs(overrides)
    bad.folder.parent.mkdir(parents=True)
    bad.folder.write_bytes(b"")  # where its folder should be
    done = processes.run("run.py", "-m", *overrides)
    assert done.returncode == 1 and str(bad.folder) in done.stderr
    assert (good.folder / "DONE").exists()
