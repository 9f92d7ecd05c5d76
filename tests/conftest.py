"""Fixtures of the whole suite."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow a shared machine down several times
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared by tests
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference values and benchmark data, which is not part of the repository."""
    folder = Path(os.environ.get("GUIDEDGEN_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data is not at {folder} (set GUIDEDGEN_SHARED)")
    return folder
