"""scripts/sweep.py: what it writes, and what it asks SLURM for."""

import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.runs import composition
from guidedgen.studies import sweeps

from .conftest import ROOT


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "sweep.py"))


def launcher(*overrides: str) -> Any:
    return composition.settings(["hydra/launcher=slurm", *(f"hydra.launcher.{override}" for override in overrides)]).launcher


def test_the_launcher_s_config_is_what_sbatch_is_asked_for(script: dict[str, Any]) -> None:
    given = launcher("partition=gpu", "account=lab", "gres=gpu:a40:1", "timeout_min=90", "mem_gb=48", "array_parallelism=8",
                     "signal_delay_s=60", "additional_parameters={mail-type: FAIL, nice: 10}")  # fmt: skip
    assert script["options"](given, 12, Path("there")) == [
        "--job-name=guidedgen", "--partition=gpu", "--account=lab", "--time=90", "--gres=gpu:a40:1", "--cpus-per-task=4", "--mem=48G",
        "--signal=B:USR2@60", "--array=1-12%8", "--output=there/%a.log", "--mail-type=FAIL", "--nice=10",
    ]  # fmt: skip
    bare = script["options"](launcher("gres=null", "mem_gb=null", "gpus_per_node=1", "name=x"), 1, Path("there"))
    assert (
        "--gpus-per-node=1" in bare
        and "--job-name=x" in bare
        and not any(option.startswith(("--gres", "--mem")) for option in bare)
    )


def test_a_line_for_each_run_and_the_lines_before_it(script: dict[str, Any], tmp_path: Path) -> None:
    """Which a shell reads as they were meant; a container replaces python."""
    prompt = 'dataset.prompt="it\'s $HOME, `x`"'
    runs = sweeps.runs(["dataset=prompt", prompt, f"outputs={tmp_path}", "study=s", "seed=0,1"])
    setup = ["module load cuda/12", 'run="apptainer exec --nv lab.sif python run.py"']
    folder = script["write"](runs, launcher(f"setup={[*setup]}", "max_num_timeout=3"))
    assert folder.parent == tmp_path / "s" / ".sweep"
    lines = (folder / "lines").read_text().splitlines()
    assert [shlex.split(line) for line in lines] == [
        ["dataset=prompt", prompt, f"outputs={tmp_path}", "study=s", f"seed={i}"] for i in (0, 1)
    ]
    show = f'module() {{ echo "module $*"; }}; . {shlex.quote(str(folder / "setup.sh"))}; echo "$run; $MAX_REQUEUES"'
    printed = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == ["module load cuda/12", "apptainer exec --nv lab.sif python run.py; 3"]
    assert script["write"](runs, launcher()) == folder  # the same sweep
    own = subprocess.run(["bash", "-c", f". {folder}/setup.sh; echo $run"], capture_output=True, text=True, check=True).stdout
    assert own.split() == [sys.executable, str(ROOT / "run.py")]  # whose environment need not be active


def test_a_prompt_of_two_lines_is_refused(script: dict[str, Any], tmp_path: Path, monkeypatch, capsys) -> None:
    """Before an array is written: not even that of the runs before it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(script["main"].__globals__, "ARRAY", 1)
    with pytest.raises(UsageError, match=r'dataset\.prompt="b\.\.\.: has several lines'):
        script["main"](["dataset=prompt", 'dataset.prompt="a","b\nc"', "tracker=none"])
    assert not list(tmp_path.glob("outputs/*/.sweep"))


def test_options_in_a_folder_of_one_s_own_are_swept(script: dict[str, Any], tmp_path: Path, monkeypatch, capsys) -> None:
    """The lines name the folder, from wherever a task reads them."""
    (tmp_path / "my options" / "method").mkdir(parents=True)
    (tmp_path / "my options" / "method" / "mine.yaml").write_text("_target_: guidedgen.methods.base.Base\n")
    monkeypatch.chdir(tmp_path)
    script["main"](["--config-dir=my options", "method=mine,base", "tracker=none", "hydra.launcher.gres=null"])
    (lines,) = tmp_path.glob("outputs/default/.sweep/*/lines")
    assert [shlex.split(line) for line in lines.read_text().splitlines()] == [
        [f"--config-dir={tmp_path}/my options", f"method={name}", "tracker=none"] for name in ("mine", "base")
    ]
    command = [
        sys.executable,
        str(ROOT / "scripts" / "status.py"),
        "--config-dir",
        "my options",
        "method=mine,base",
        "tracker=none",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "2 runs: 2 missing" in printed
    capsys.readouterr()
    with pytest.raises(UsageError, match=f"^--config-dir={tmp_path}/their options: no such folder$"):
        script["main"](["--config-dir=their options", "method=mine,base"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hydra.launcher.partitoin=gpu"], "hydra.launcher.partitoin"),
        (["method=code,cod", "hydra.launcher.gres=null"], "did you mean code?"),
        (["--fresh", "seed=0"], "unrecognized arguments: --fresh"),
    ],
)
def test_a_wrong_sweep_is_not_written(
    given: list[str], message: str, script: dict[str, Any], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, UsageError)) as left:
        script["main"](given)
    assert message in (capsys.readouterr().err or str(left.value))
    assert not list(tmp_path.glob("outputs/*/.sweep"))


def test_a_gpu_is_named_so_that_folders_do_not_depend_on_where_they_are_asked_for(
    script: dict[str, Any], tmp_path: Path, monkeypatch, capsys
) -> None:
    """Though there may be none where the sweep is written."""
    monkeypatch.chdir(tmp_path)
    script["main"](["dataset=prompt", "dataset.prompt=circle", "tracker=none"])
    (lines,) = tmp_path.glob("outputs/default/.sweep/*/lines")
    assert lines.read_text() == "dataset=prompt dataset.prompt=circle tracker=none device=cuda\n"
    assert capsys.readouterr().out.splitlines()[-1].startswith("sbatch --job-name=guidedgen --time=240 --gres=gpu:1 ")


def test_what_no_array_holds_is_several(script: dict[str, Any], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(script["main"].__globals__, "ARRAY", 2)
    script["main"](["seed=range(0,5)", "tracker=none"])
    commands = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("sbatch")]
    lines = [(tmp_path / command[-1] / "lines").read_text().splitlines() for command in commands]
    assert [[line.split()[0] for line in part] for part in lines] == [["seed=0", "seed=1"], ["seed=2", "seed=3"], ["seed=4"]]
    for command, part in zip(commands, lines, strict=True):
        assert f"--array=1-{len(part)}%256" in command and f"--output={command[-1]}/%a.log" in command
