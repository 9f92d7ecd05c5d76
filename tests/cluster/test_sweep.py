"""A sweep of real runs in a real SLURM: whatever happens to its jobs, the files are those of a local sweep."""

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from guidedgen.lab.networks import WEIGHTS

from .conftest import HELD, ROOT, SWEEP, Cluster, lasting, python, wait

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


def run_of(cluster: Cluster, task: str) -> int:
    """The process of a task's run."""
    for line in cluster("scontrol", "listpids", cluster.job(task)["JobId"]).splitlines()[1:]:
        number = int(line.split()[0])
        if number > 0 and b"run.py" in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0", 2)[1]:
            return number
    raise AssertionError(f"{task} has no run")


def restarted(cluster: Cluster, task: str) -> None:
    wait(lambda: cluster.job(task)["Restarts"] == "1", lambda: str(cluster.job(task)), 60)


def test_jobs_that_are_killed_stopped_and_preempted_leave_what_a_local_sweep_leaves(
    cluster: Cluster, local: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "hold").touch()
    written = python(str(ROOT / "scripts" / "sweep.py"), *SWEEP, "outputs=there", "hydra.launcher.gres=gpu:1",
                     "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null", folder=tmp_path)  # fmt: skip
    command = shlex.split(written.splitlines()[-1])
    sweep = Path(command[-1])

    def submit(tasks: str, *options: str) -> str:
        for name, value in {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HOLD": str(tmp_path / "hold")}.items():
            cluster.environment[name] = value
        return cluster(*command[:-2], "--parsable", f"--array={tasks}", *options, *command[-2:], cwd=tmp_path)

    def stored() -> int:
        return sum(len(file.read_text().splitlines()) for file in tmp_path.glob("there/default/code-*/records.jsonl"))

    job = submit("1-3")
    wait(lambda: stored() == 3, lambda: (tmp_path / sweep / "1.log").read_text(), 240)
    os.kill(run_of(cluster, f"{job}_1"), signal.SIGKILL)
    assert cluster.wait_for(f"{job}_1", "FAILED")["ExitCode"] == "137:0"
    stopped = cluster.job(f"{job}_2")
    minutes = (
        int(stopped["RunTime"].split(":")[1]) + 2
    )  # less than the 120 s ahead, so signalled when SLURM looks next, within 30 s
    cluster("scontrol", "update", f"JobId={stopped['JobId']}", f"TimeLimit={minutes}")
    restarted(cluster, f"{job}_2")
    cluster("scontrol", "update", f"JobId={stopped['JobId']}", "TimeLimit=60")
    cluster("sbatch", "--partition=urgent", "--cpus-per-task=4", "--output=/dev/null", "--wrap", "sleep 1")
    restarted(cluster, f"{job}_3")
    (tmp_path / "hold").unlink()
    again = submit("1")
    for task in (f"{job}_2", f"{job}_3", f"{again}_1"):
        cluster.wait_for(task, "COMPLETED", 240)

    assert lasting(tmp_path / "there") == local
