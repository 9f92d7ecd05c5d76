"""What is around a run: prompts of any kind and any number, the clock, and the mirror."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from guidedgen.basics.tasks import Sample
from guidedgen.runs import experiment, inside, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.store import Record, RunFolder

ROOT = Path(__file__).resolve().parents[2]
Lasting = Callable[[Path], dict[str, bytes]]
HOSTILE = [
    "../../../escape", "/etc/passwd", "..", "a/b\\c:d*e?f|g<h>", "quotes \" and ' and `touch escape`; $(touch escape)", "${oc.env:HOME}",
    "emoji \U0001f388\U0001f389 \u732b", "first line\nsecond line\r\n\tthird", "from right to left \u05e9\u05dc\u05d5\u05dd", "word " * 400, "w" * 2000, "%s %n {0} {}",
]  # fmt: skip


def test_prompts_of_any_kind_write_nothing_outside_the_run_folder(job: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in HOSTILE))
    options = ["dataset=jsonl", f"dataset.path={tmp_path / 'prompts.jsonl'}", "dataset.limit=null", "model.truncate_prompts=true"]
    made = job(*options)
    here = sorted(os.listdir())
    experiment.run(made)
    records = made.folder.records().values()
    assert sorted(record.prompt for record in records) == sorted(prompt.strip() for prompt in HOSTILE)
    files = {path for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path / "prompts.jsonl"}
    assert all(path.is_relative_to(made.folder.path) for path in files)
    assert {path.name for path in (made.folder.path / "images").iterdir()} == {
        "grid.png", *(Path(record.image).name for record in records)
    }  # fmt: skip
    assert sorted(os.listdir()) == here
    assert experiment.run(job(*options))["samples"] == len(HOSTILE)  # and again: done


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Samples are drawn at once, black; the names of those that are."""
    names: list[str] = []

    def sample(job: Job, batch: Sequence[Sample], flagged: Collection[str], advance: Callable[[], None]) -> Iterator[Any]:
        for each in batch:
            names.append(each.name)
            record = Record(
                task=each.task.id, prompt=each.task.prompt, category="", seed=each.seed, image=each.image, scores={}, nfe=1,
                nfe_backward=0, decodes=1, reward_calls=0, seconds=0.1, peak_memory_mib=1.0,
            )  # fmt: skip
            yield sampling.Outcome(sample=each, record=record, image=torch.zeros(3, 8, 8), trace=[{"event": "select", "step": 0}])

    monkeypatch.setattr(sampling, "_sample", sample)
    return names


def test_the_logs_are_read_as_often_for_many_prompts_as_for_few(
    job: Callable[..., Job], tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a run begins, and when it goes on with its second half."""
    reads: list[str] = []
    lines = inside.lines
    monkeypatch.setattr(inside, "lines", lambda root, name: (reads.append(name), lines(root, name))[1])
    counts = {}
    for size in (20, 200):
        (tmp_path / f"{size}.txt").write_text("".join(f"a red circle {i}\n" for i in range(size)))
        made = job("dataset=text", f"dataset.path={tmp_path / f'{size}.txt'}", "dataset.limit=null", "reward=none", "batch_size=5")
        for turn in ("all", "half"):
            reads.clear(), drawn.clear()
            experiment.run(made)
            counts[size, turn] = len(reads)
            assert len(drawn) == (size if turn == "all" else size // 2)
            log, half = made.folder.path / "records.jsonl", size // 2
            log.write_text("".join(log.read_text().splitlines(keepends=True)[:half]))
            (made.folder.path / "DONE").unlink()
    assert counts[20, "all"] == counts[200, "all"] and counts[20, "half"] == counts[200, "half"] < 20


def test_a_clock_that_is_set_back_changes_nothing(
    job: Callable[..., Job], lasting: Lasting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a run, and by a year before it goes on."""
    whole, made = job("study=whole", "batch_size=2"), job("batch_size=2")
    experiment.run(whole)
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 60
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    save = RunFolder.save

    def stopping(self: RunFolder, *arguments: Any) -> None:
        save(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(made)
    for path in made.folder.path.rglob("*"):
        os.utime(path, (4e9, 4e9))  # written in the year 2096
    now[0] -= 365 * 86400
    experiment.run(job("batch_size=2"))
    assert lasting(made.folder.path) == lasting(whole.folder.path)


MIRROR = """
import sys
from pathlib import Path
import wandb
from guidedgen.runs.store import Record
from guidedgen.runs.tracker import Wandb
settings = wandb.Settings
wandb.Settings = lambda **options: settings(**{**options, "init_timeout": 2})
record = Record(task="a", prompt="a", category="", seed=0, image="a.png", scores={}, nfe=1, nfe_backward=0, decodes=1, reward_calls=0,
                seconds=0.1, peak_memory_mib=1.0)
Wandb(mode=sys.argv[2]).log(folder=Path(sys.argv[1]), run_id="0123456789ab", name="a", config={}, records=[record], metrics={"a": 1})
print("the run goes on")
"""


def mirrored(folder: Path, mode: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "a.png")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = kept | {"HOME": str(folder), "PYTHONPATH": str(ROOT), **environ}
    command = [sys.executable, "-c", MIRROR, str(folder), mode]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_mirror_whose_server_is_down_is_reported_in_one_line(tmp_path: Path) -> None:
    done = mirrored(tmp_path, "online", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40)
    assert (done.returncode, done.stdout) == (0, "the run goes on\n"), done.stderr
    assert done.stderr.count("\n") == 1 and "the run is whole in" in done.stderr, done.stderr


def test_a_mirror_that_cannot_write_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("a file where its folder would be")
    done = mirrored(tmp_path, "offline")
    assert (done.returncode, done.stdout) == (0, "the run goes on\n"), done.stderr
    assert done.stderr.count("\n") == 1 and "the run is whole in" in done.stderr, done.stderr
