"""The same sweeps without SLURM: GNU parallel or xargs over the file of lines, Optuna, a W&B agent."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from guidedgen.cli import command_line
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import preparation, tracker

from .conftest import ROOT, python

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
ENGINES = {
    "parallel": ["parallel", "--will-cite", "-j", "2", "-a"],
    "xargs": ["xargs", "-L", "1", "-P", "2", "-a"],
}


PROMPTS = ['"a red circle, and a square"', '"it\'s \\"blue\\" & $HOME; `x`"']
REST = ["tracker=none", "device=cpu", "outputs=there"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    given = ["dataset=prompt", f"dataset.prompt={','.join(PROMPTS)}", *REST]
    written = python(str(ROOT / "scripts" / "sweep.py"), *given, folder=folder)
    (file,) = (folder / "there" / "default" / ".sweep").glob("*/lines")
    assert str(file.relative_to(folder)) in written
    return file


@trained
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_runs_every_line_as_it_was_meant(engine: str, lines: Path, tmp_path: Path) -> None:
    """With a stand-in that notes what it is given; the engine fails where a run does."""
    if shutil.which(engine) is None:
        pytest.skip(f"there is no {engine} here: apt-get install {engine}")
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text("import json, os, sys\nopen(f'{os.getpid()}.json', 'w').write(json.dumps(sys.argv[1:]))\nsys.exit(3)")
    words = ["eval"] if engine == "parallel" else []
    done = subprocess.run([*ENGINES[engine], str(lines), *words, sys.executable, str(stand_in)], cwd=tmp_path, check=False)
    assert done.returncode != 0
    seen = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert sorted(seen) == sorted(["dataset=prompt", f"dataset.prompt={prompt}", *REST] for prompt in PROMPTS)


@trained
def test_optuna_finds_the_best_run_within_a_limit(tmp_path: Path) -> None:
    """CoDe's rows, 2N(T-1) + 2 at T = 4: 14 at N = 2 are the most that the limit leaves."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs guidedgen[optuna]")
    given = ["-m", "hydra/sweeper=optuna_maximize", "hydra.sweeper.n_trials=3", "method.num_particles=choice(2,4)",
             "run.objective=cost.nfe", "run.objective_limit={cost.nfe: 20}", "dataset.limit=1", "scheduler.num_steps=4",
             "reward=compressibility", "reference=none", "metrics=none", "tracker=none", "device=cpu", "outputs=there"]  # fmt: skip
    python(str(ROOT / "run.py"), *given, folder=tmp_path)
    study = tmp_path / "there" / "default"
    found = OmegaConf.load(study / "optimization_results.yaml")
    assert (found.best_params, found.best_value) == ({"method.num_particles": 2}, 14)
    tried = {json.loads((run / "metrics.json").read_text())["cost"]["nfe"] for run in study.glob("code-*")}
    assert tried == {14, 26}
    again = python(str(ROOT / "run.py"), *given, folder=tmp_path)
    assert again.count("already done") == 3  # the same runs were asked for

    (best,) = (run for run in study.glob("code-*") if json.loads((run / "metrics.json").read_text())["cost"]["nfe"] == 14)
    (other,) = set(study.glob("code-*")) - {best}
    shutil.rmtree(other)
    other.write_bytes(b"")  # where its folder should be: it cannot be made
    python(str(ROOT / "run.py"), *given, folder=tmp_path)
    assert OmegaConf.load(study / "optimization_results.yaml").best_params == {"method.num_particles": 2}


@trained
def test_the_sweep_file_of_wandb_names_runs_that_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    """Through the client's own making of the command that an agent starts."""
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((ROOT / "scripts" / "wandb_sweep.yaml").read_text())
    chosen = {
        name: {"value": node.get("value", node.get("min", node.get("values", [None])[0]))}
        for name, node in sweep["parameters"].items()
    }
    words = utils.create_sweep_command_args({"args": chosen}) | {
        "interpreter": ["python"],
        "program": [sweep["program"]],
        "env": ["env"],
    }
    command = [word for part in utils.create_sweep_command(sweep["command"]) for word in words.get(part[2:-1], [part])]
    assert command[:3] == ["env", "python", "run.py"]
    command_line.preflight([*command[3:], "device=cpu"], preparation.prepare)  # ends the process where it is wrong
    metrics = {"scores": {"aesthetic": {"value": 6.5}}}
    assert sweep["metric"]["name"] in dict(tracker._flat(metrics))
