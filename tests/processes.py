"""This repository's scripts as processes that start in a moment: forks of a process that has their packages loaded, but not ours.

Each is a process of its own, with its own arguments, folder, environment, output, signals and exit code. But what a package reads
of the environment when it is imported, as huggingface_hub does, and how many threads OpenMP has are those of the first start.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ["diffusers", "hydra", "kornia", "open_clip", "rich.console", "sklearn", "torch", "transformers", "wandb"]
_PARTS = ["diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl", "hydra.main", "scipy.linalg"]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([*_PACKAGES, *_PARTS])


class Started:
    """A script that runs, as subprocess.Popen has it."""

    def __init__(self, script: str | Path, *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] = os.environ) -> None:
        self.args = [str(ROOT / script), *arguments]
        output = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, output)
        self._files = [Path(output, stream) for stream in ("stdout", "stderr")]
        self._process = _CONTEXT.Process(target=_be, args=(self.args, str(cwd), dict(env), [str(file) for file in self._files]))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        stdout, stderr = (file.read_text(encoding="utf-8") if file.exists() else "" for file in self._files)
        return stdout, stderr


def run(
    script: str | Path, *arguments: str, cwd: Path = ROOT, timeout: float = 300, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """A script of this repository, or any other, to its end; `environment` is added to this process's."""
    started = Started(script, *arguments, cwd=cwd, env={**os.environ, **environment})
    try:
        stdout, stderr = started.communicate(timeout)
    finally:
        started.kill()
    return subprocess.CompletedProcess(started.args, started.wait(), stdout, stderr)


def _be(command: Sequence[str], cwd: str, environment: Mapping[str, str], files: Sequence[str]) -> None:
    """Makes of the forked process what `python *command` is."""
    assert "guidedgen" not in sys.modules
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    added = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [str(Path(command[0]).parent), *filter(None, added)]
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
