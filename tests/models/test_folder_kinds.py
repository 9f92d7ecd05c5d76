"""Generated folders of models: whatever is in one, it is loaded, or refused in one line.

`GUIDEDGEN_EXAMPLES=3000 python -m pytest -n 0 tests/models/test_folder_kinds.py` is the longer run, with other examples each time.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.models.stable_diffusion import StableDiffusion

LONGER = int(os.environ.get("GUIDEDGEN_EXAMPLES", "0"))
ATOMS = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3,
    8,
    16,
    1.5,
    "",
    "abc",
    "8",
    [],
    [1],
    [[1]],
    {},
    {"a": 1},
    10**9,
    float("nan"),
    ["a"],
    [None],
]
Spoil = tuple[str, Any]


def spoils() -> st.SearchStrategy[Spoil]:
    """A way in which a file may be wrong, and what it takes."""
    return st.one_of(
        st.tuples(st.just("value"), st.tuples(st.integers(0, 10**6), st.sampled_from(ATOMS))),
        st.tuples(st.just("no key"), st.integers(0, 10**6)),
        st.tuples(st.just("cut"), st.floats(0, 1)),
        st.tuples(st.just("byte"), st.tuples(st.floats(0, 1), st.integers(0, 255))),
        st.tuples(st.just("bytes"), st.binary(max_size=40)),
        st.tuples(st.sampled_from(["missing", "twice", "zeros", "folder", "pipe", "loop"]), st.none()),
    )


def spoil(file: Path, how: str, what: Any) -> None:
    content = file.read_bytes()
    if how in ("value", "no key"):
        found = json.loads(content) if file.suffix == ".json" else {}
        if isinstance(found, dict) and found:
            keys = sorted(found)
            if how == "value":
                found[keys[what[0] % len(keys)]] = what[1]
            else:
                del found[keys[what % len(keys)]]
            file.write_text(json.dumps(found))
        return
    file.unlink()
    match how:
        case "cut":
            file.write_bytes(content[: int(what * len(content))])
        case "byte":
            position = int(what[0] * (min(len(content), 3000) - 1))  # where headers are
            file.write_bytes(content[:position] + bytes([what[1]]) + content[position + 1 :])
        case "bytes":
            file.write_bytes(what)
        case "twice":
            file.write_bytes(content * 2)
        case "zeros":
            file.write_bytes(bytes(len(content)))
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "loop":
            file.symlink_to(file)


@pytest.mark.timeout(0 if LONGER else 900)
def test_any_folder_is_loaded_or_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, tried: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = folders["epsilon"]
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    counts = {"refused": 0, "used": 0}

    @settings(
        max_examples=LONGER or 200, derandomize=not LONGER, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(st.sampled_from(names), spoils())
    def check(name: Path, wrong: Spoil) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        spoil(folder / name, *wrong)
        message = None
        try:
            model = StableDiffusion(path=str(folder), name="tiny")
            model.check([Task(id="a", prompt="a cat")])
            model.load()
        except (UsageError, BadValue) as error:
            message = str(error)
        assert message is None or ("\n" not in message and len(message) < 2000)
        counts["used" if message is None else "refused"] += 1

    check()
    assert capfd.readouterr().err == ""  # no library says anything besides
    assert min(counts.values()) > 10
    for outcome, times in counts.items():
        tried(outcome, times)
