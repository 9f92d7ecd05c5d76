"""One run as several processes: which share is whose, and that the shares make the same run."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, experiment, preparation, rejudging, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.shards import Shard, find_shard
from guidedgen.runs.store import RunFolder

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["scheduler.num_steps=3", "dataset.limit=5", "batch_size=2", "tracker=none", "device=cpu", "method.num_particles=2"]
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


@pytest.mark.parametrize(
    ("count", "index", "environ", "expected"),
    [
        ("auto", "auto", {}, Shard()),
        (1, 0, TORCHRUN, Shard(local=1)),
        ("auto", "auto", TORCHRUN, Shard(index=3, count=4, local=1)),
        ("auto", "auto", SRUN, Shard(index=2, count=4, local=0)),
        ("auto", "auto", ARRAY, Shard()),  # its tasks are runs of their own unless shard.count says otherwise
        (8, "auto", ARRAY, Shard(index=2, count=8)),
        (8, 6, {}, Shard(index=6, count=8)),
        ("auto", "auto", {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Shard()),  # a batch script's own process
    ],
)
def test_the_share_is_what_the_process_was_started_as(count: Any, index: Any, environ: dict[str, str], expected: Shard) -> None:
    assert find_shard(count, index, environ) == expected


@pytest.mark.parametrize(
    ("count", "index", "environ", "message"),
    [
        (8, "auto", {}, "which share"),
        (4, 4, {}, r"shard.index=4: shard.count=4 has shares 0\.\.3"),
        (2, "auto", ARRAY | {"SLURM_ARRAY_TASK_MIN": "1"}, "shard.index=6"),
        (0, 0, {}, "shard.count=0"),
        (2, "first", {}, "shard.index=first"),
        (2, -1, {}, "shard.index=-1"),
    ],
)
def test_a_share_that_cannot_be_is_refused(count: Any, index: Any, environ: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_shard(count, index, environ)


ODD = [
    TORCHRUN | {"WORLD_SIZE": "0"}, TORCHRUN | {"WORLD_SIZE": "many"}, TORCHRUN | {"RANK": "x"}, TORCHRUN | {"RANK": "-1"},
    TORCHRUN | {"RANK": "4"}, TORCHRUN | {"LOCAL_RANK": "x"}, {"TORCHELASTIC_RUN_ID": "none"}, TORCHRUN | {"WORLD_SIZE": ""},
    {name: value for name, value in TORCHRUN.items() if name != "RANK"}, SRUN | {"SLURM_STEP_NUM_TASKS": "abc"},
    SRUN | {"SLURM_STEP_NUM_TASKS": "1.5"}, SRUN | {"SLURM_PROCID": "x"}, SRUN | {"SLURM_PROCID": "9"}, SRUN | {"SLURM_LOCALID": "-"},
    {name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}, SRUN | {"SLURM_STEP_NUM_TASKS": "9" * 40},
]  # fmt: skip


@pytest.mark.parametrize("environ", ODD)
def test_what_a_launcher_cannot_have_meant_is_refused(environ: dict[str, str], tried: Callable[..., None]) -> None:
    with pytest.raises(UsageError, match=r"WORLD_SIZE|RANK|SLURM_\w+|shard\.index=\d") as caught:
        find_shard("auto", "auto", environ)
    assert "\n" not in str(caught.value)
    tried("refused")


@pytest.mark.parametrize("name", ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN"])
def test_an_array_s_odd_numbers_matter_where_they_are_read(name: str, tried: Callable[..., None]) -> None:
    environ = ARRAY | {name: "odd"}
    assert find_shard("auto", "auto", environ) == Shard() and find_shard(8, 3, environ) == Shard(index=3, count=8)
    with pytest.raises(UsageError, match=f"{name}=odd"):
        find_shard(8, "auto", environ)
    tried("refused"), tried("used", 2)


@pytest.mark.parametrize("count", [None, "x", 1.5, True, [], 10**6, -(10**400)])
def test_a_number_of_shares_that_is_none_is_refused(count: Any, tried: Callable[..., None]) -> None:
    with pytest.raises(UsageError, match=r"^shard\.count="):
        find_shard(count, 0, {})
    tried("refused")


@pytest.mark.parametrize(("count", "size"), list(itertools.product([1, 2, 3, 8], [0, 1, 7, 8, 100])))
def test_shares_are_even_and_make_the_whole(count: int, size: int) -> None:
    shares = [Shard(index=i, count=count).of(range(size)) for i in range(count)]
    assert sorted(itertools.chain(*shares)) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def prepared(folder: Path, *overrides: str) -> Job:
    return preparation.prepare(composition.composed([f"outputs={folder}", *QUICK, *overrides]))


def kept(folder: Path) -> dict[str, bytes]:
    """All of a run that may not depend on who made it, with the order of its records and traces."""
    found = {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}
    for name in ("records.jsonl", "trace.jsonl", "metrics.json"):
        text = (folder / name).read_text() if (folder / name).exists() else "{}"
        values = [json.loads(text)] if name == "metrics.json" else [json.loads(line) for line in text.splitlines()]
        for value in values:
            for key in ("seconds", "peak_memory_mib", "cost", "base_cost"):
                value.pop(key, None)
        found[name] = json.dumps(values, sort_keys=True).encode()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The run of one process, which has no unguided one."""
    job = prepared(tmp_path_factory.mktemp("whole"), "reference=none")
    experiment.run(job)
    return job


@trained
def test_shares_make_the_run_that_one_process_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = prepared(tmp_path / "whole")
    assert experiment.run(whole)
    expected = kept(whole.folder.path)
    for order in ([0, 1, 2], [2, 0, 1]):
        shutil.rmtree(tmp_path / "shared", ignore_errors=True)
        for position, index in enumerate(order):
            job = prepared(tmp_path / "shared", "shard.count=3", f"shard.index={index}")
            assert job.run_id == whole.run_id and not job.folder.done
            metrics = experiment.run(job)
            assert bool(metrics) == (position == 2) == job.folder.done
        assert "is done; others have" in capsys.readouterr().out
        assert kept(job.folder.path) == expected
        assert job.base is not None and whole.base is not None
        assert (
            job.base.folder.done
            and kept(job.base.folder.path).items() >= {"records.jsonl": kept(whole.base.folder.path)["records.jsonl"]}.items()
        )
        assert not list(job.folder.path.glob("*-of-*"))
    again = experiment.run(prepared(tmp_path / "shared", "shard.count=3", "shard.index=1"))
    assert again["scores"] and "already done" in capsys.readouterr().out


@trained
def test_a_run_goes_on_with_another_number_of_shares(whole: Job, tmp_path: Path) -> None:
    assert not experiment.run(prepared(tmp_path / "shared", "reference=none", "shard.count=3", "shard.index=1"))
    job = prepared(tmp_path / "shared", "reference=none")
    assert experiment.run(job)
    expected, found = kept(whole.folder.path), kept(job.folder.path)
    assert found == expected


@trained
def test_the_evaluation_merges_what_nobody_has(whole: Job, tmp_path: Path) -> None:
    for index in range(2):
        job = prepared(tmp_path / "shared", "reference=none", "shard.count=2", f"shard.index={index}")
        experiment._open(job)
        sampling.sample_all(job, "code")  # and dies before it sees that it was the last
    folder = job.folder.path
    assert len(list(folder.glob("records.*.jsonl"))) == 2 and not (folder / "DONE").exists()
    rejudging.judge_again(folder)
    assert kept(folder) == kept(whole.folder.path) and RunFolder(folder).done


def test_shares_may_not_start_anew(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.fresh=true"):
        prepared(tmp_path, "shard.count=2", "shard.index=0", "run.fresh=true")


@trained
def test_the_stored_config_is_the_whole_run_s(tmp_path: Path) -> None:
    job = prepared(tmp_path, "reference=none", "shard.count=2", "shard.index=1")
    experiment.run(job)
    assert OmegaConf.load(job.folder.path / "config.yaml").shard == {"count": 1, "index": 0}


@trained
def test_torchrun_shares_a_run(tmp_path: Path) -> None:
    options = ["reference=none", "metrics=none"]
    whole = prepared(tmp_path / "whole", *options)
    experiment.run(whole)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(ROOT / "run.py"), f"outputs={tmp_path / 'shared'}", *QUICK, *options]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # torchrun would give one to each, which rounds in another way
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, **threads})
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "shared" / "default").iterdir()
    assert kept(folder) == kept(whole.folder.path) and "is done; others have" in done.stdout
