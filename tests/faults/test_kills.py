"""Kills at random moments, counted and printed (pytest -s): a resumed run ends as an undisturbed one, file by file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedgen.lab.networks import WEIGHTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.mark.parametrize("kills", [40, pytest.param(120, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_the_same_files(tmp_path: Path, kills: int, tried: Callable[..., None]) -> None:
    if not (WEIGHTS / "generator" / "model_index.json").exists():
        pytest.skip("the lab's weights are missing")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "kills.py"), str(tmp_path), str(kills), "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=850)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    assert found["kills"] >= kills
    assert set(found["codes"]) <= {"SIGKILL -9", "SIGTERM 75", "SIGTERM -15"}  # the last: before the handler was there
    assert sum(count for at, count in found["at"].items() if "samples" in at) >= kills / 4  # while samples are made
    assert found["torn"] == 0  # after every single kill
    assert found["differ"] == [] and found["last"] == 0 and found["compared"] >= 1
    assert found["pair"] == [0, 0] and found["pair_differ"] == [] and found["pair_lines"] == [4, 4]
    tried("kills", found["kills"])
    tried("lost", found["torn"] + len(found["differ"]))
