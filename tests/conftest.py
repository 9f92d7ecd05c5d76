"""Fixtures of the whole suite, and the count of the faults that it tries."""

import atexit
import contextlib
import json
import os
import pickle
import shutil
import site
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guidedgen.datasets import downloads
from guidedgen.zoo import needed

FOLDERS = ("HOME", "XDG_CACHE_HOME", "TORCH_HOME")  # where python scripts/fetch.py data ... keeps files
# Of the machine and the shell that the tests are run in: keys, caches, jobs of a cluster, defaults of one's own.
FOREIGN = (
    "COLUMNS",
    "FORCE_COLOR",
    "GUIDEDGEN_MODEL",
    "HF_",
    "HUGGING",
    "HYDRA_",
    "SLURM_",
    "TORCHELASTIC_",
    "TRANSFORMERS_",
    "WANDB_",
    "XDG_",
)


def isolate() -> dict[str, str]:
    """Gives this process and those that it starts an empty home; returns the machine's own FOLDERS. A worker has its starter's."""
    if folders := os.environ.get("GUIDEDGEN_TESTS_FOLDERS"):
        return json.loads(folders)
    folders = {name: os.environ[name] for name in FOLDERS if name in os.environ}
    user_base = site.getuserbase()  # of packages that pip install --user has put there
    for name in [name for name in os.environ if name in FOLDERS or name.startswith(FOREIGN)]:
        del os.environ[name]
    home = tempfile.mkdtemp(prefix="home-of-tests-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ |= {"HOME": home, "PYTHONUSERBASE": user_base, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads slow a shared machine down several times
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared by tests
    os.environ["GUIDEDGEN_TESTS_FOLDERS"] = json.dumps(folders)
    return folders


OWN_FOLDERS = isolate()  # before torch or huggingface_hub is imported, which read it then
GOLDEN = Path(__file__).resolve().parent / "golden"
LONGEST = (
    "test_methods_alone.py", "cluster/*.py", "test_runs.py", "faults/*.py", "test_scripts.py", "test_command_line.py",
    "test_experiments.py", "pages/test_browser.py", "models/*.py", "gradients/*.py", "methods/test_adjoint_dpm.py",
)  # fmt: skip
OUTCOMES = ("refused", "used", "kills", "lost")


@pytest.fixture(scope="session")
def golden_metrics() -> dict[str, Any]:
    """Values that metrics have to give, each with the inputs that make it and where it comes from."""
    return json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def released() -> Callable[[str, str], Path]:
    """A benchmark's file as its authors released it: `released("hpdv2", "hps_v2_all_eval.txt")`. It is not part of the repository."""

    def find(name: str, file: str) -> Path:
        with own_folders():
            return _fetched(downloads.kept(name) / file, f"data {name}")

    return find


@pytest.fixture(scope="session")
def released_head() -> Callable[[str], Path]:
    """The file of one of LAION's aesthetic heads. It is not part of the repository."""

    def find(file: str) -> Path:
        with own_folders():
            return _fetched(needed.cached_file(file), "aesthetic aesthetic_v1_l14 aesthetic_v1_b32")

    return find


@contextlib.contextmanager
def own_folders() -> Iterator[None]:
    """The machine's own, where what is not part of the repository may have been fetched to."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.delenv(name, raising=False)
        for name, folder in OWN_FOLDERS.items():
            patch.setenv(name, folder)
        yield


def _fetched(path: Path, names: str) -> Path:
    if not path.is_file():
        pytest.skip(f"{path.name} is not here; fetch it with: python scripts/fetch.py {names}")
    return path


@pytest.fixture(scope="session", autouse=True)
def options_read_once() -> Iterator[None]:
    """Hydra parses a file of options once for all configs of a process, while the file is as it was: it is a third of their time."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource

    kept: dict[tuple[object, ...], bytes] = {}

    def once(read: Callable[..., Any]) -> Callable[..., Any]:
        def load_config(self: Any, config_path: str) -> Any:
            file = Path(self.path, self._normalize_file_name(config_path))
            status = file.stat() if isinstance(self, FileConfigSource) and file.is_file() else None
            state = (status.st_ino, status.st_size, status.st_mtime_ns) if status else ()
            name = (type(self), self.provider, self.path, config_path, *state)
            if name not in kept:
                kept[name] = pickle.dumps(read(self, config_path=config_path), pickle.HIGHEST_PROTOCOL)
            return pickle.loads(kept[name])

        return load_config

    with pytest.MonkeyPatch.context() as patch:
        for source in (FileConfigSource, ImportlibResourcesConfigSource):
            patch.setattr(source, "load_config", once(source.load_config))
        yield


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tried" in getattr(item, "fixturenames", ()):
            item.add_marker("faults")
    # A file is one worker's: the longest go first, so that none of them is left alone at the end.
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if item.path.match(name)), len(LONGEST)))


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
