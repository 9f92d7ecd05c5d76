"""Kills a small run again and again: python kills.py FOLDER KILLS SEED prints as JSON what was hit, and where files differ after.

Every child is a fork of this process, which has the networks loaded: a life is about a second. It must stay free of threads.
"""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from guidedgen.runs import config, experiment, preparation
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFolder

RUN = [
    "method=code", "method.num_particles=2", "method.block_size=2", "scheduler.num_steps=4", "dataset.limit=4", "batch_size=2",
    "tracker=none", "device=cpu", "metrics=none",
]  # fmt: skip
SAMPLES = 4


def start(job: Job) -> int:
    """The process id of a child that runs the job as run.py does."""
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        experiment.prepare = lambda cfg: job  # type: ignore[attr-defined]
        try:
            experiment.main(job.cfg)
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    os._exit(code)


def ended(child: int) -> int:
    """A child's exit code, or its signal's number less than 0, once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(study: Path) -> dict[str, bytes]:
    """All of a study's runs that may not depend on how often they were killed, by file, or by sample where its order may differ."""
    kept: dict[str, bytes] = {}
    for path in sorted(path for path in study.rglob("*") if path.is_file()):
        name = str(path.relative_to(study))
        if path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                record = timeless(json.loads(line))
                key = f"{name} {record['task']}-{record['seed']}"
                kept[key] = kept.get(key, b"") + json.dumps(record).encode()
        elif path.name == "metrics.json":
            kept[name] = json.dumps(timeless(json.loads(path.read_text()))).encode()
        elif path.name not in ("environment.json", "run.log"):
            kept[name] = path.read_bytes()
    return kept


def timeless(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: timeless(item) for key, item in value.items() if key not in ("seconds", "peak_memory_mib")}


def phase(job: Job) -> str:
    """What the run was at when it was killed."""
    assert job.base is not None
    for folder, label in ((job.base.folder, "unguided"), (job.folder, "guided")):
        if not folder.path.exists():
            return "before any file" if label == "unguided" else "between the two runs"
        if any(folder.path.rglob("*.partial")):
            return "in the middle of writing a file"
        made = len(folder.records())
        if made < SAMPLES:
            return f"{label}: {made} of {SAMPLES} samples"
        if label == "unguided" and not folder.done:
            return "unguided: finishing"
    if job.folder.done:
        return "already done"
    return "finishing" if (job.folder.path / "metrics.json").exists() else "judging"


def whole(folder: RunFolder) -> bool:
    """Whether each of a folder's records has its picture, to the end."""
    return all((folder.path / r.image).read_bytes().endswith(b"IEND\xaeB`\x82") for r in folder.records().values())


def lives(job: Job, expected: dict[str, bytes], kills: int, length: float, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Kills so often, and a quarter of that while samples are made, at random moments; a run that gets done all the same is compared,
    and begun anew. `length` is what a run takes; it follows the machine, which may be faster or slower later."""
    assert job.base is not None
    study, hits, sampling = job.folder.path.parent, 0, 0
    while hits < kills or sampling < kills / 4:
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        child = start(job)
        time.sleep(rng.uniform(0, length / 2))  # what is resumed takes less
        os.kill(child, number)
        code, at = ended(child), phase(job)
        hits += code != 0  # else it was done before
        sampling += code != 0 and "samples" in at
        length *= 0.95 if code == 0 else 1.05 if at == "before any file" else 1
        life = {"signal": number.name, "code": code, "at": at, "whole": whole(job.base.folder) and whole(job.folder), "differ": []}
        if job.folder.done:
            life["differ"] = differing(contents(study), expected)
            shutil.rmtree(study)
        yield life


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        job = preparation.prepare(compose("config", overrides=[f"outputs={folder}", *RUN]))
    study = job.folder.path.parent
    with contextlib.redirect_stdout(sys.stderr):
        experiment.run(job)  # loads the networks
        shutil.rmtree(study)
        began = time.perf_counter()
        assert ended(start(job)) == 0
        length = time.perf_counter() - began
    expected = contents(study)
    shutil.rmtree(study)

    found = list(lives(job, expected, kills, length, random.Random(seed)))
    hits = [life for life in found if life["code"]]
    last = ended(start(job))
    differ = differing(contents(study), expected)
    shutil.rmtree(study)
    pair = [start(job) for _ in range(2)]  # two processes that begin at once: each sample is made once
    codes = [ended(child) for child in pair]
    return {
        "kills": len(hits),
        "codes": collections.Counter(f"{life['signal']} {life['code']}" for life in hits),
        "at": collections.Counter(life["at"] for life in hits),
        "torn": sum(not life["whole"] for life in found),
        "compared": sum(life["at"] == "already done" for life in found) + 1,
        "differ": sorted({name for life in found for name in life["differ"]} | set(differ)),
        "last": last,
        "pair": codes,
        "pair_differ": differing(contents(study), expected),
        "pair_lines": [len((run / "records.jsonl").read_text().splitlines()) for run in study.iterdir()],
        "seconds": round(length, 2),
        "files": len(expected),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
