"""A checked job to a finished folder: sample in batches, judge, show, mirror."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import Stopped, UsageError
from guidedgen.runs import config, judging, learning, objective, report, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.preparation import prepare
from guidedgen.runs.store import RunFailed, check_writable


def main(cfg: DictConfig) -> float | None:
    """Runs one config to its end; returns the value of `run.objective`, where there is one, for a sweeper that chooses by it.

    Ends with SystemExit: 2 for a wrong config, 75 after a signal, 130 after Ctrl-C. A wrong config and a failure of one run of
    a sweep are RuntimeErrors, which Hydra reports at the end: the runs after it go on.
    """
    for number in (signal.SIGTERM, signal.SIGUSR2):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):  # submitit has its own, which requeue the job
            signal.signal(number, _stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started with it ignored
    try:
        job = prepare(cfg)
        objective.check(job)
        with _noted(job):
            metrics = run(job)
        return objective.of(job, metrics)
    except UsageError as error:
        print(f"guidedgen: {error}", file=sys.stderr)
        if _of_sweep():
            raise RuntimeError(error) from None
        sys.exit(2)
    except RunFailed as failed:
        if _of_sweep():
            raise RuntimeError(failed.code) from None
        raise
    except Stopped as stopped:
        print(f"guidedgen: stopped by {stopped}; the same command goes on from here", file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        print("guidedgen: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _of_sweep() -> bool:
    """Whether the process makes several runs."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _stop(number: int, _frame: object) -> None:
    raise Stopped(signal.Signals(number).name)


@contextlib.contextmanager
def _noted(job: Job) -> Iterator[None]:
    """Writes into the run's own log why it ended before it was done: the cluster's log may be lost, or belong to the next run."""
    try:
        yield
    except Stopped as stopped:
        job.folder.note(f"stopped by {stopped}")
        raise
    except KeyboardInterrupt:
        job.folder.note("interrupted")
        raise
    except (RunFailed, UsageError) as error:
        job.folder.note(f"failed: {error}")
        raise
    except Exception as error:
        job.folder.note(f"failed: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        raise


def run(job: Job) -> Mapping[str, Any]:
    """Samples what is missing, judges, shows and mirrors; returns the metrics. A finished run is only shown."""
    started = time.perf_counter()
    fresh = job.cfg.run.fresh
    job.model.ledger.device = job.cfg.device if job.cfg.run.profile else None
    metrics = {} if fresh else job.folder.read_json("metrics.json")
    if not fresh and job.folder.done and metrics.get("judged_by") == judging.judged_by(job):
        job.folder.release("judging")
        if _of_sweep():
            print(f"{job.folder.path}: already done: {report.line(metrics)}")
            return metrics
        print(f"{job.folder.path}: already done (run.fresh=true starts anew)")
        report.show(metrics)
        return metrics
    unguided_runs = ((job.base, "base"), (job.apart, "base, other seeds"), (job.originals, "originals"))
    for unguided, label in unguided_runs:  # before the model is tuned
        if unguided is not None and not unguided.folder.done:
            _open(unguided)
            sampling.sample_all(unguided, label)
            sampling.close(unguided)
    if job.folder.done and not fresh:
        check_writable(job.folder.path, "outputs")  # its metrics are of other judges
    if fresh or not job.folder.done:
        _open(job, fresh=fresh)
        job.folder.note(f"started: {shlex.join(_command())}; {sampling.left(job)} of {len(job.samples)} samples to make")
        if job.originals is not None:
            job.model.load()
            with job.folder.alone("learning"):
                learning.learn(job)
        sampling.sample_all(job, job.method_name)
    with job.folder.alone("judging"):  # of several processes, one is last
        if left := sampling.left(job):
            print(f"{job.folder.path}: share {job.shard.part} is done; others have {left} samples to make")
            job.folder.note(f"share {job.shard.part} is done")
            return {}
        sampling.close(job.base)
        sampling.close(job.apart)
        sampling.close(job.originals)
        sampling.merge(job)
        metrics = judging.judge(job)
        _track(job, metrics)
        job.folder.note("done")
        job.folder.finish()
    report.show(metrics)
    if job.cfg.run.profile:
        report.show_profile(job.model.ledger, time.perf_counter() - started)
    print(f"{len(job.samples)} samples in {time.perf_counter() - started:.1f} s: {job.folder.path}/images/grid.png")
    return metrics


def _track(job: Job, metrics: Mapping[str, Any]) -> None:
    if job.tracker is None:
        return
    plain = OmegaConf.to_container(job.cfg, resolve=True)
    assert isinstance(plain, dict)
    job.tracker.log(
        folder=job.folder.path,
        run_id=job.run_id,
        name=job.name,
        config={str(key): value for key, value in plain.items()},
        records=list(job.folder.records().values()),
        metrics=metrics,
    )


def _open(job: Job, *, fresh: bool = False) -> None:
    """Opens the job's folder, and makes torch deterministic."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    job.folder.open(OmegaConf.to_yaml(job.cfg), _environment(job), fresh=fresh)


def _command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def _environment(job: Job) -> dict[str, Any]:
    """What else the results may depend on."""
    packages = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy", "pillow")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=config.CONF, capture_output=True, text=True, check=False
    ).stdout.strip()
    device = torch.device(job.cfg.device)
    return {
        "command": _command(),
        "samples": len(job.samples),
        "contents": job.contents,
        "judged_with": judging.judged_with(job),
        "commit": commit or None,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
