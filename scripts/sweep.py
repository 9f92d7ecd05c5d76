"""Writes a sweep as a SLURM array, a run a task, and prints the command that submits it. A sweep of more than 1000 runs is several
arrays.

    python scripts/sweep.py method=code,codex reward=aesthetic,pickscore seed=0,1,2 hydra.launcher.partition=gpu
    python scripts/sweep.py experiment=codex/aesthetic hydra.launcher.gres=gpu:a100:1 --submit

Partition, time, GPU, memory, account, modules and container: conf/hydra/launcher/slurm.yaml. The same command again resumes.
"""

import argparse
import hashlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.cli import command_line, terminal
from guidedgen.runs import composition, hydra_settings
from guidedgen.runs.store import write_atomic
from guidedgen.studies import sweeps

SCRIPTS = Path(__file__).resolve().parent
# Options of sbatch by the launcher's keys; what is null is left to the cluster, or to scripts/sweep.sbatch.
OPTIONS = {
    "name": "job-name", "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "exclude": "exclude", "timeout_min": "time", "gres": "gres", "cpus_per_task": "cpus-per-task", "gpus_per_node": "gpus-per-node",
    "gpus_per_task": "gpus-per-task", "cpus_per_gpu": "cpus-per-gpu", "mem_per_gpu": "mem-per-gpu", "mem_per_cpu": "mem-per-cpu",
    "comment": "comment",
}  # fmt: skip
GPUS = ("gres", "gpus_per_node", "gpus_per_task")
ARRAY = 1000  # runs of an array at most: what clusters allow that have not set MaxArraySize (slurm.conf)


def write(runs: Sequence[sweeps.Run], launcher: DictConfig) -> Path:
    """Writes a sweep's folder, outputs/<study>/.sweep/<hash>: `lines`, a run's arguments each, and `setup.sh`."""
    cfg = composition.composed(runs[0].overrides, runs[0].config_dir)
    lines = "".join(f"{shlex.join(run.arguments)}\n" for run in runs)
    setup = [
        f"run={shlex.quote(shlex.join([sys.executable, str(SCRIPTS.parent / 'run.py')]))}",  # of this environment, active or not
        f"MAX_REQUEUES={launcher.max_num_timeout}",
    ]
    folder = Path(cfg.outputs) / cfg.study / ".sweep" / hashlib.sha256(lines.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "lines", lines.encode())  # a task may be reading them
    write_atomic(folder / "setup.sh", "".join(f"{line}\n" for line in [*setup, *(launcher.setup or [])]).encode())
    return folder


def _check_lines(runs: Sequence[sweeps.Run]) -> None:
    """Raises UsageError where a run does not fit in a line."""
    for override in (override for run in runs for override in run.overrides):
        if "\n" in override:
            raise UsageError(f"{override.splitlines()[0]}...: has several lines; put such a prompt in a file: dataset=jsonl")


def options(launcher: DictConfig, count: int, folder: Path) -> list[str]:
    """What sbatch is given, by the launcher's config."""
    given = {option: launcher[key] for key, option in OPTIONS.items() if launcher[key] is not None}
    if launcher.mem_gb is not None:
        given["mem"] = f"{launcher.mem_gb}G"
    given |= {"signal": f"B:USR2@{launcher.signal_delay_s}", "array": f"1-{count}%{launcher.array_parallelism}"}
    given |= {"output": f"{folder}/%a.log", **(launcher.additional_parameters or {})}
    return [f"--{option}={value}" for option, value in given.items()]


def _prepare(cfg: DictConfig) -> object:
    """Checks a run that is for a GPU on a machine that may have none."""
    import torch

    from guidedgen.runs import preparation

    if str(cfg.device).startswith("cuda") and not torch.cuda.is_available():
        cfg = cfg.copy()
        cfg.dtype, cfg.device = "float16" if cfg.dtype == "auto" else cfg.dtype, "cpu"
    return preparation.prepare(cfg)


def submit(command: Sequence[str]) -> None:
    """Raises UsageError where there is no sbatch; one that fails has printed why, and ends the process with exit code 1."""
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise UsageError(
            f"--submit: {command[0]} cannot be started ({error.strerror}); without it the command is printed"
        ) from error
    if code:
        sys.exit(1)


def _check_launcher(launcher: DictConfig) -> None:
    """Raises UsageError for options of more than one value that are none."""
    for key, kind, wanted in (("setup", ListConfig, "a list of lines"), ("additional_parameters", DictConfig, "a mapping")):
        if launcher[key] is not None and not isinstance(launcher[key], kind):
            raise UsageError(f"hydra.launcher.{key}={launcher[key]}: expected {wanted}, or null")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("overrides", nargs="+", help="as of python run.py -m")
    parser.add_argument("--submit", action="store_true", help="submit it")
    parser.add_argument("--config-dir", type=lambda given: Path(given).absolute(), help="a folder of further options")
    asked = parser.parse_intermixed_args(arguments)
    config_dir = asked.config_dir
    overrides = command_line.for_hydra(composition.arguments(asked.overrides, config_dir))
    overrides = [override for override in overrides if not override.startswith("--")]
    plain = [override for override in overrides if override.startswith("hydra.")]
    hydra_settings.check_overrides(composition.parse(plain))
    launcher = composition.settings(["hydra/launcher=slurm", *plain], config_dir).launcher
    _check_launcher(launcher)
    overrides = [override for override in overrides if override not in plain]
    if any(launcher[key] for key in GPUS) and not any(override.startswith("device=") for override in overrides):
        overrides.append("device=cuda")  # a part of a run's name: it must not depend on where it is asked for
    command_line.preflight(["-m", *composition.arguments(overrides, config_dir)], _prepare)
    runs = sweeps.runs(overrides, config_dir)
    _check_lines(runs)
    arrays = {write(part, launcher): len(part) for part in (runs[i : i + ARRAY] for i in range(0, len(runs), ARRAY))}
    for folder, count in arrays.items():
        command = ["sbatch", *options(launcher, count, folder), str(SCRIPTS / "sweep.sbatch"), str(folder)]
        if asked.submit:
            submit(command)
            continue
        engine = f"parallel -j 1 -a {folder}/lines eval {shlex.quote(sys.executable)} run.py"
        print(f"# {count} runs, one a line of {folder}/lines; without SLURM: {engine}")
        print(shlex.join(command))


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))
