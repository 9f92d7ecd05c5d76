"""hydra/launcher=slurm, the second road, in a real SLURM."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guidedgen.lab.networks import WEIGHTS

from .conftest import HELD, ROOT, SWEEP, Cluster, lasting, wait

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


def test_pre_empted_jobs_go_on_and_leave_what_a_local_sweep_leaves(cluster: Cluster, local: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs guidedgen[slurm]")
    (tmp_path / "held.py").write_text(HELD)
    (tmp_path / "hold").touch()
    known = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HOLD": str(tmp_path / "hold"), "HF_HUB_OFFLINE": "1"}
    launcher = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), "-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null",
         *(word.replace("seed=0,1,2", "seed=0,1") for word in SWEEP), "outputs=there"],
        cwd=tmp_path, env={**cluster.environment, **known}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def stored() -> int:
        return sum(len(file.read_text().splitlines()) for file in tmp_path.glob("there/default/code-*/records.jsonl"))

    try:
        wait(lambda: stored() == 2, "no samples", 240)
        jobs = cluster("squeue", "-h", "-o", "%i").split()
        assert len(jobs) == 2
        cluster("sbatch", "--partition=urgent", "--cpus-per-task=4", "--output=/dev/null", "--wrap", "sleep 1")
        for number in jobs:
            wait(lambda number=number: cluster.job(number)["Restarts"] == "1", lambda number=number: str(cluster.job(number)), 60)
        (tmp_path / "hold").unlink()
        printed, _ = launcher.communicate(timeout=300)
    finally:
        launcher.kill()
    assert launcher.returncode == 0, printed
    there = lasting(tmp_path / "there")
    assert len(there) == 2 * 7
    assert there == {name: value for name, value in local.items() if name in there}
