"""Small runs on the bundled model, and what of their folders may not depend on what happened to them on the way."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, preparation
from guidedgen.runs.job import Job

SMALL = ["scheduler.num_steps=2", "dataset.limit=4", "tracker=none", "device=cpu", "metrics=none", "reference=none"]
Make = Callable[..., Job]


@pytest.fixture(scope="session")
def prepared() -> Make:
    """A prepared job in a folder; overrides as on the command line. Without a base, metrics but the reward, or a tracker."""
    if not (WEIGHTS / "generator" / "model_index.json").exists():
        pytest.skip("the lab's weights are missing")

    def make(outputs: Path, *overrides: str) -> Job:
        return preparation.prepare(composition.composed([f"outputs={outputs}", "method=base", *SMALL, *overrides]))

    return make


@pytest.fixture
def job(prepared: Make, tmp_path: Path) -> Make:
    """The same in a folder of its own."""
    return functools.partial(prepared, tmp_path / "outputs")


@pytest.fixture(scope="session")
def lasting() -> Callable[[Path], dict[str, bytes]]:
    """Everything of a run's samples that may not depend on how often it was interrupted: pictures, records less costs, traces."""

    def read(folder: Path) -> dict[str, bytes]:
        kept = {path.name: path.read_bytes() for path in sorted((folder / "images").glob("*.png"))}
        for log in ("records", "trace"):
            path = folder / f"{log}.jsonl"
            for line in path.read_text().splitlines() if path.exists() else ():
                record = json.loads(line)
                record.pop("seconds", None), record.pop("peak_memory_mib", None)
                name = f"{log} {record['task']}-{record['seed']}"
                kept[name] = kept.get(name, b"") + json.dumps(record, sort_keys=True).encode()
        return kept

    return read
