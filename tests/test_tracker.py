"""The mirror, through the real client. Processes of their own: the client keeps state and threads, and reads the home folder."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from guidedgen.basics.errors import BadValue
from guidedgen.runs import tracker
from guidedgen.runs.store import Record
from guidedgen.runs.tracker import Wandb

ROOT = Path(__file__).resolve().parent.parent
RUN_ID = "0123456789ab"
LOG = """
    import json, sys
    from pathlib import Path
    from guidedgen.runs.store import Record
    from guidedgen.runs.tracker import Wandb
    folder = Path(sys.argv[1])
    records = [Record(**line) for line in json.loads((folder / "records.json").read_text())]
    Wandb(project="proj-x", mode=sys.argv[2]).log(
        folder=folder.parent / "before", run_id="before", name="before", config={}, records=[], metrics={"fid": 1},
    )
    metrics = {"fid": {"value": 3.5, "samples": 2}, "cmmd": None, "seed": 7, "pairs": [1, 2], "method": "code"}
    Wandb(project="proj-x", mode=sys.argv[2]).log(
        folder=folder, run_id=sys.argv[3], name="code-aesthetic", config={"seed": 7, "method": {"num_particles": 4}}, records=records,
        metrics=metrics,
    )
    import wandb
    assert wandb.run is None, "a run is left open"
"""


def record(seed: int, **scores: float | None) -> dict[str, Any]:
    return {
        "task": "a-cat", "prompt": 'a "cat", 猫', "category": "", "seed": seed, "image": f"images/a-cat-{seed}.png", "scores": scores,
        "nfe": 8, "nfe_backward": 0, "decodes": 1, "reward_calls": 0, "seconds": 0.5, "peak_memory_mib": 100.0,
    }  # fmt: skip


def log(folder: Path, mode: str) -> subprocess.CompletedProcess[str]:
    """Logs two samples from a process without a key, a home or a terminal."""
    (folder / "images").mkdir(parents=True)
    (folder.parent / "before").mkdir()
    records = [record(0, aesthetic=5.25, clip=None), record(1, aesthetic=4.5)]
    for item in records:
        Image.new("RGB", (4, 4)).save(folder / item["image"])
    (folder / "sheets" / "film").mkdir(parents=True)  # of the first sample alone
    strip = Image.new("RGB", (12, 4))
    for x in range(12):
        strip.paste((80 * (x // 4), 0, 0), (x, 0, x + 1, 4))
    strip.save(folder / "sheets" / "film" / "a-cat-0.png")
    (folder / "records.json").write_text(json.dumps(records))
    home = folder.parent / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment |= {"HOME": str(home), "NETRC": str(home / "netrc"), "WANDB_DATA_DIR": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOG), str(folder), mode, RUN_ID], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def offline_run(folder: Path) -> Path:
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert run.name.endswith(f"-{RUN_ID}")
    assert (run / f"run-{RUN_ID}.wandb").stat().st_size > 0
    return run


def test_an_offline_run_can_be_read_back(tmp_path: Path) -> None:
    done = log(tmp_path / "run", "offline")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = offline_run(tmp_path / "run")
    assert tmp_path.name.encode() in (run / f"run-{RUN_ID}.wandb").read_bytes()  # the study, which runs are grouped by
    (table,) = (run / "files" / "media" / "table").glob("samples_*.table.json")
    rows = json.loads(table.read_text())
    assert rows["columns"] == ["image", "prompt", "seed", "aesthetic", "clip", "film"]
    assert [row[1:-1] for row in rows["data"]] == [['a "cat", 猫', 0, 5.25, None], ['a "cat", 猫', 1, 4.5, None]]
    assert [row[-1] is None for row in rows["data"]] == [False, True]
    (gif,) = (run / "files" / "media").rglob("*.gif")
    with Image.open(gif) as moving:
        assert "film" in gif.parent.parts and (moving.n_frames, moving.size) == (3, (4, 4))

    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)]
    printed = subprocess.run(
        inspect, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HOME": str(tmp_path)}
    )
    if printed.returncode != 0:  # a client without this command
        content = (run / f"run-{RUN_ID}.wandb").read_bytes()
        assert all(word in content for word in (b"proj-x", RUN_ID.encode(), b"fid/value", b"code-aesthetic"))
        return
    summary = json.loads(printed.stdout)
    assert {key: summary[key] for key in ("project", "run_id", "name", "state")} == {
        "project": "proj-x", "run_id": RUN_ID, "name": "code-aesthetic", "state": "finished",
    }  # fmt: skip
    assert summary["config"] == {"seed": 7, "method": {"num_particles": 4}}
    values = {key: value for key, value in summary["summary"].items() if not key.startswith("_")}
    assert values.pop("samples")["nrows"] == 2
    assert values.pop("film/a-cat-0")["caption"] == 'a "cat", 猫'
    assert values == {"fid/value": 3.5, "fid/samples": 2, "seed": 7, "method": "code"}


def test_online_without_a_key_goes_offline_and_says_so_in_one_line(tmp_path: Path) -> None:
    done = log(tmp_path / "run", "online")
    assert (done.returncode, done.stdout) == (0, "")
    offline_run(tmp_path / "run")
    assert "no key is set" in done.stderr
    assert done.stderr.count("\n") == 2, done.stderr  # one of each run


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    done = log(tmp_path / "run", "disabled")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "run" / "wandb").exists() and not (tmp_path / "before" / "wandb").exists()


def test_a_failing_client_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def fail(**_: object) -> None:
        raise wandb.errors.CommError("the server is on fire")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.warns(RuntimeWarning, match=f"^wandb: the server is on fire; the run is whole in {tmp_path}$") as warned:
        Wandb().log(folder=tmp_path, run_id=RUN_ID, name="x", config={}, records=[], metrics={})
    assert len(warned) == 1


def test_a_run_is_not_lost_to_an_image_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails inside the client's run, the run is left in order."""
    import wandb

    left: list[object] = []

    class Run:
        def __enter__(self) -> "Run":
            return self

        def __exit__(self, kind: object, *_: object) -> None:
            left.append(kind)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    with pytest.warns(RuntimeWarning, match="^wandb: .*the run is whole"):
        Wandb().log(folder=tmp_path, run_id=RUN_ID, name="x", config={}, records=[Record(**record(0))], metrics={})
    assert len(left) == 1
    assert left[0] is not None


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_a_signal_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException]) -> None:
    def stop(*_: object) -> None:
        raise signal

    monkeypatch.setattr(Wandb, "_log", stop)
    with pytest.raises(signal):
        Wandb().log(folder=tmp_path, run_id=RUN_ID, name="x", config={}, records=[], metrics={})


@pytest.mark.parametrize("project", ["", "a/b", "a\\b", "a#b", "a?b", "a%b", "a:b"])
def test_projects_the_server_would_refuse(project: str) -> None:
    with pytest.raises(BadValue, match="must not be empty or hold any of") as error:
        Wandb(project=project)
    assert error.value.name == "project"


def test_metrics_are_flattened() -> None:
    nested = {"a": {"b": {"c": 1}, "d": "x"}, "e": 2.5, "f": None, "g": [1], "h": True}
    assert tracker._flat(nested) == [("a/b/c", 1), ("a/d", "x"), ("e", 2.5), ("h", True)]
