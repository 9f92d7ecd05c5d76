"""The thin mains: what they print and how they fail."""

import contextlib
import inspect
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.lab import shipping

ROOT = Path(__file__).resolve().parent.parent


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return processes.run(f"scripts/{name}", *arguments, **environment)


BAD = {
    "bench.py": [
        ["gradients", "--device", "foo"], ["gradients", "--device", "cuda:99"], ["gradients", "--device", "meta"],
        ["gradients", "--samples", "0"], ["gradients", "--samples", "1000000000000"], ["gradients", "--steps", "0"],
        ["gradients", "--steps", "1001"], ["gradients", "--memory-gb", "nan"], ["gradients", "--memory-gb", "inf"],
        ["gradients", "--threads", "-1"], ["gradients", "--threads", "0"], ["gradients", "--threads", "1000000"],
        ["gradients", "--dtype", "float8"], ["gradients", "--model", "nowhere/at/all"], ["gradients", "--model", "FILE"],
        ["sampling", "sed=1"], ["sampling", "method=bas"], ["sampling", "seed=1,2"], ["sampling", "--samples", "0"],
        ["sampling", "--repeats", "0"], ["sampling", "method=base", "dataset.limit=1", "--samples", "2"],
    ],
    "train_lab.py": [
        ["--folder", "FILE"], ["--folder", "FILE/x"], ["--folder", "/proc/x"], ["--device", "foo"], ["--device", "cuda:99"],
        ["--scale", "nan"], ["--scale", "inf"], ["--scale", "0"], ["--scale", "-1"], ["--seed", "-1"], ["--threads", "-1"], ["--threads", "0"],
    ],
    "status.py": [["nowhere"], ["FILE"], ["a=b"], ["FOLDER", "a=1"], ["seed=1,2", "sed=3"], ["study=../x"], ["seed=range(0,0)"], ["dataset.prompt=" + "x" * 300, "sed=1"]],
    "table.py": [["nowhere"], ["FILE"], ["FOLDER"], ["x" * 300], ["a=b"]],
    "report.py": [["nowhere"], ["FILE"], ["FOLDER"], ["x" * 300], ["a=b"]],
    "evaluate.py": [["nowhere"], ["FILE"], ["FOLDER"], ["FOLDER", "metrics=x"], ["x" * 300], ["FOLDER", "--config-dir=FILE"]],
    "sweep.py": [
        ["seed=range(0,0)"], ["sed=1"], ["hydra.run.dir=x"], ["hydra.launcher._target_=os.system"], ["hydra.launcher.setup=x", "seed=1"],
        ["hydra.launcher.additional_parameters=5", "seed=1"], ["study=a/b"], ["seed=1", "outputs=FILE"], ["seed=1", "--config-dir=FILE"],
        ["seed=1", "device=vulkan"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), [(name, given) for name, those in BAD.items() for given in those])
def test_a_script_says_in_one_line_what_it_cannot_do(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Callable[..., None]
) -> None:
    """In this process; `terminal.run` makes a line of what is raised, as tests/test_terminal.py has it."""
    (tmp_path / "FILE").write_text("not a folder")
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipping, "train", lambda *_: pytest.fail("it trains"))
    main = runpy.run_path(str(ROOT / "scripts" / name))["main"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    taken = [arguments] if inspect.signature(main).parameters else []
    with contextlib.redirect_stderr(io.StringIO()) as printed, pytest.raises((UsageError, BadValue, SystemExit)) as left:
        main(*taken)
    assert left.type is not SystemExit or (left.value.code == 2 and printed.getvalue().startswith("guidedgen: ")), (
        printed.getvalue()
    )
    assert printed.getvalue().count("\n") == (left.type is SystemExit)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "outputs") == ["FILE", "FOLDER"]
    tried("refused")


def test_a_study_s_folder_may_have_an_equals_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    (tmp_path / "a=b" / "run").mkdir(parents=True)
    (tmp_path / "a=b" / "run" / "config.yaml").write_text("seed: 0\n")
    runpy.run_path(str(ROOT / "scripts" / "status.py"))["main"]([str(tmp_path / "a=b")])
    assert "1 runs: 1 partial" in capsys.readouterr().out
    tried("used")


def test_fetch_says_in_one_line_what_cannot_be_had() -> None:
    done = script("fetch.py", "org/none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "org/none" in done.stderr
    assert "offline" in done.stderr


def test_fetch_without_names_shows_how(tmp_path: Path) -> None:
    done = script("fetch.py")
    assert done.returncode == 2
    assert "--all" in done.stderr


def test_evaluate_says_in_one_line_what_is_no_run(tmp_path: Path) -> None:
    done = script("evaluate.py", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "not a run's config" in done.stderr


def test_table_prints_a_study(tmp_path: Path) -> None:
    run = {"title": "base-none-lab-lab-0", "label": "base", "reward": None, "samples": 4, "scores": {}, "cost": {"nfe": 12.0}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(run))
    done = script("table.py", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert "| base | 12 | 4 |\n" in done.stdout
    done = script("table.py", str(tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "holds no run with metrics" in done.stderr


def test_bench_measures_every_engine() -> None:
    """Memory and rows as guidedgen.gradients has them: MiB, rows, rows backward by process, engine and steps."""
    done = script("bench.py", "gradients", "--steps", "2", "4", "--threads", "1", "--memory-gb", "0.03")
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    table = {(process, engine, int(steps)): [float(cell) for cell in rest] for process, engine, steps, *rest in lines[2:]}
    assert lines[0] == ["process", "engine", "T", "peak MiB", "seconds", "rows", "backward", "cosine"]
    call = table["ddim", "backprop", 2][0] / 2  # MiB of a guided call's activations
    expected = {  # calls whose activations are held, and rows
        ("ddim", "backprop"): (4, 8), ("ddim", "checkpoint"): (1, 16), ("ddim", "checkpoint, 0.03 GB"): (2, 8 + 4 + 2),
        ("edict", "backprop"): (8, 16), ("edict", "checkpoint"): (2, 32), ("edict", "checkpoint, 0.03 GB"): (2, 16 + 12 + 4),
        ("edict", "reversible"): (1, 32),
    }  # fmt: skip
    for (process, engine), (held, rows) in expected.items():
        peak, seconds, forward, backward, cosine = table[process, engine, 4]
        assert cosine == pytest.approx(1, abs=1e-3)
        assert peak == pytest.approx(held * call, rel=0.1)
        assert seconds > 0
        assert (forward, backward) == (rows, 8 if process == "ddim" else 16)
    assert all(table["ddim", "adjoint", steps][4] < 0.5 for steps in (2, 4))  # of far too few steps
    assert table["edict", "reversible", 4][0] == pytest.approx(table["edict", "reversible", 2][0], rel=1e-3)
    assert table["ddim", "adjoint", 4][0] < 1.05 * table["ddim", "adjoint", 2][0]
    assert len(table) == 2 * 8


def test_bench_measures_sampling_next_to_diffusers() -> None:
    """Images per second of both; of other methods of ours alone."""
    few = ["device=cpu", "scheduler.num_steps=2", "--samples", "2", "--repeats", "1", "--threads", "1"]
    for method, names in (("base", {"guidedgen", "diffusers"}), ("mpgd", {"guidedgen"})):
        done = script("bench.py", "sampling", f"method={method}", *few)
        assert done.returncode == 0, done.stderr
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line][
            2:
        ]
        assert {row[0] for row in rows} == names and all(float(row[1]) > 0 for row in rows)
        assert [row[3] for row in rows if row[0] == "diffusers"] == ["1.000"] * (method == "base")


def test_bench_says_in_one_line_what_it_cannot_do() -> None:
    done = script("bench.py", "gradients", "--dtype", "float8")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "float8" in done.stderr


@pytest.mark.parametrize(
    "name", ["bench.py", "fetch.py", "evaluate.py", "report.py", "status.py", "sweep.py", "table.py", "train_lab.py"]
)
def test_help_names_the_commands(name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0 and f"python scripts/{name}" in done.stdout
    assert name == "train_lab.py" or script(name).returncode == 2  # it alone needs no arguments


def test_training_refuses_a_part_that_is_not_one() -> None:
    done = script("train_lab.py", "--parts", "vea")
    assert done.returncode == 2
    assert "no such part: vea" in done.stderr


def test_evaluate_without_a_run_shows_how() -> None:
    for arguments in ([], ["metrics=lab"], ["~metrics.scorers.taste"]):
        done = script("evaluate.py", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: evaluate.py" in done.stderr
    done = script("evaluate.py", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "metrics=lab" in done.stdout


@pytest.mark.parametrize("config", ["", "hello", "{a: ", "- 1\n- 2", "seed: 0\nrun:\n  fresh: false\n"])
def test_evaluate_says_in_one_line_what_is_no_whole_config(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    done = script("evaluate.py", str(tmp_path), "metrics=none")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'config.yaml'}: not a " in done.stderr
