"""Fixtures of the whole suite, and the count of the faults that it tries."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow a shared machine down several times
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared by tests
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

ROOT = Path(__file__).resolve().parent.parent
OUTCOMES = ("refused", "used", "kills", "lost")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference values and benchmark data, which is not part of the repository."""
    folder = Path(os.environ.get("GUIDEDGEN_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data is not at {folder} (set GUIDEDGEN_SHARED)")
    return folder


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
