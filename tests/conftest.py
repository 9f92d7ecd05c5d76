"""Fixtures of the whole suite, and the count of the faults that it tries."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from guidedgen.datasets import downloads
from guidedgen.zoo import needed

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow a shared machine down several times
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared by tests
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

GOLDEN = Path(__file__).resolve().parent / "golden"
OUTCOMES = ("refused", "used", "kills", "lost")


@pytest.fixture(scope="session")
def golden_metrics() -> dict[str, Any]:
    """Values that metrics have to give, each with the inputs that make it and where it comes from."""
    return json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def released() -> Callable[[str, str], Path]:
    """A benchmark's file as its authors released it: `released("hpdv2", "hps_v2_all_eval.txt")`. It is not part of the repository."""

    def find(name: str, file: str) -> Path:
        return _fetched(downloads.kept(name) / file, f"data {name}")

    return find


@pytest.fixture(scope="session")
def released_head() -> Callable[[str], Path]:
    """The file of one of LAION's aesthetic heads. It is not part of the repository."""
    return lambda file: _fetched(needed.kept_file(file), "aesthetic aesthetic_v1_l14 aesthetic_v1_b32")


def _fetched(path: Path, names: str) -> Path:
    if not path.is_file():
        pytest.skip(f"{path.name} is not here; fetch it with: python scripts/fetch.py {names}")
    return path


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Counts what a test has tried on the program: `tried("refused")`, `tried("used", 3)`, `tried("kills", 25)`, `tried("lost", 0)`.

    "refused": an input that ended with one line and exit code 2. "used": an input that was taken, in full and rightly.
    Tests with this fixture are the fault suite: `python -m pytest -m faults` runs them and prints the counts.
    """

    def count(outcome: str, times: int = 1) -> None:
        assert outcome in OUTCOMES
        record_property(outcome, times)

    return count


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "faults: tries bad input, damaged files or kills (set by the fixture `tried`)")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if "tried" in getattr(item, "fixturenames", ()):
            item.add_marker("faults")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, times in report.user_properties:
            if name in OUTCOMES:
                counts[name] += times
    if counts:
        inputs = counts["refused"] + counts["used"]
        terminalreporter.write_line(
            f"faults: {inputs} inputs tried, {counts['refused']} refused, {counts['used']} used; "
            f"{counts['kills']} kills, {counts['lost']} files lost"
        )
