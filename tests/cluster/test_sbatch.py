"""scripts/sweep.sbatch in a real SLURM, with a stand-in for run.py that takes no time to start."""

import shlex
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT, Cluster, wait

# Ends with the code of its argument, or sleeps: "wait" ends by a signal with 75, and the next time with 0; so does "slow", which
# needs a second for it, and "deaf", which has no handler yet.
STAND_IN = """
import os, pathlib, signal, sys, time
wanted, seen = sys.argv[1], pathlib.Path(sys.argv[2])
saved = seen.with_suffix(".saved")
def stop(*_):
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    time.sleep(wanted == "slow")
    saved.touch()
    sys.exit(75)
if seen.exists() and not wanted.isdigit():
    sys.exit(0 if saved.exists() or wanted == "deaf" else 4)
if wanted in ("wait", "slow"):
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, stop)
seen.write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
if not wanted.isdigit():
    time.sleep(60)
sys.exit(int(wanted))
"""


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path):
    (tmp_path / "stand_in.py").write_text(STAND_IN)

    def go(*lines: str, setup: str = "", options: tuple[str, ...] = ()) -> str:
        (tmp_path / "lines").write_text("".join(f"{line} {tmp_path}/seen{i}\n" for i, line in enumerate(lines, 1)))
        run = shlex.join([sys.executable, str(tmp_path / "stand_in.py")])
        (tmp_path / "setup.sh").write_text(f"run={shlex.quote(run)}\n{setup}\n")
        command = ["sbatch", "--parsable", f"--array=1-{len(lines)}", f"--output={tmp_path}/%a.log", *options]
        return cluster(*command, str(ROOT / "scripts" / "sweep.sbatch"), str(tmp_path))

    return go


def seen(folder: Path, task: int) -> str:
    """Waits until the task has begun, and says which GPU it was given."""
    file = folder / f"seen{task}"
    wait(file.exists, f"task {task} has not begun", 30)
    return file.read_text()


def test_a_task_ends_as_its_run_does(cluster: Cluster, submit, tmp_path: Path) -> None:
    """One GPU a task; a line for each, in words that the shell takes apart."""
    number = submit("0", "'3'", "2", options=("--gres=gpu:1", "--array=1-4"))
    assert cluster.wait_for(f"{number}_1", "COMPLETED")["ExitCode"] == "0:0"
    for task, code in ((2, 3), (3, 2), (4, 2)):
        assert cluster.wait_for(f"{number}_{task}", "FAILED")["ExitCode"] == f"{code}:0"
    assert "has no line 4" in (tmp_path / "4.log").read_text()
    assert len({seen(tmp_path, task) for task in (1, 2, 3)} - {""}) == 3


def test_who_is_requeued(cluster: Cluster, submit, tmp_path: Path) -> None:
    """What is pre-empted, listening or not yet, or signalled twice; not what is cancelled. The last task has the array's own job id."""
    number = submit("wait", "slow", "deaf", "wait")
    for task in (1, 2, 3, 4):
        seen(tmp_path, task)
    cluster("scancel", f"{number}_1")
    for _ in range(2):
        cluster("scancel", "--batch", "--signal=USR2", f"{number}_2")
        time.sleep(0.2)
    cluster("scancel", "--full", "--signal=TERM", f"{number}_4")  # as pre-emption does where no signal of the job's own is sent
    cluster("sbatch", "--partition=urgent", "--cpus-per-task=4", "--output=/dev/null", "--wrap", "sleep 1")
    for task in (2, 3, 4):
        assert cluster.wait_for(f"{number}_{task}", "COMPLETED")["Restarts"] == "1"
        log = (tmp_path / f"{task}.log").read_text()
        assert "start 0" in log and "start 1" in log
    assert cluster.job(f"{number}_4")["JobId"] == number
    assert cluster.job(f"{number}_1")["JobState"] == "CANCELLED"
    assert "start 1" not in (tmp_path / "1.log").read_text()


def test_a_run_that_never_comes_to_its_end_is_given_up(cluster: Cluster, submit, tmp_path: Path) -> None:
    number = submit("75", setup="MAX_REQUEUES=0")
    assert cluster.wait_for(f"{number}_1", "FAILED")["ExitCode"] == "75:0"
