"""The study of AdjointDPM's Table 1: its sweep is the table's, each row costs what it says, and errors are measured at equal noise."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_pixel
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from guidedgen.basics.errors import UsageError
from guidedgen.lab.networks import WEIGHTS
from guidedgen.process.flow import FlowChain
from guidedgen.runs import composition, config, experiment, preparation

ROWS = ("adjoint/eq_4", "adjoint/eq_10")


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        yield


def overlay(row: str, *overrides: str) -> DictConfig:
    fixed = ["experiment=adjoint/lab/solvers", f"row={row}", "device=cpu", "reference=none", "tracker=none"]
    return compose("config", overrides=[*fixed, *overrides])


def test_it_sweeps_both_odes_by_both_solvers_at_the_paper_s_calls() -> None:
    composed = compose("config", overrides=["experiment=adjoint/lab/solvers"], return_hydra_config=True)
    params = {key: f"{key}={value}" for key, value in composed.hydra.sweeper.params.items()}
    swept = {item.key_or_group: list(item.sweep_string_iterator()) for item in composition.parse([*params.values()])}
    assert swept == {
        "row": [*ROWS, "adjoint/dpm_solver"],
        "table.solver": ["euler", "explicit_adams"],
        "table.calls": ["'10'", "'20'", "'50'"],
    }


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("solver", ["euler", "explicit_adams"])
@pytest.mark.parametrize("calls", [10, 20, 50])
def test_every_row_takes_the_calls_it_says(row: str, solver: str, calls: int, tmp_path: Path) -> None:
    """Adams' method takes six more than it has steps, for Runge and Kutta's first two."""
    job = preparation.prepare(overlay(row, f"table.solver={solver}", f"table.calls='{calls}'", f"outputs={tmp_path}"))
    chain = FlowChain(denoise=lambda x_t, t: x_t, grid=job.grid, schedule=job.model.schedule)
    assert len(chain) + (6 if solver == "explicit_adams" else 0) == calls
    times = [point.t for point in job.grid]
    lengths = [t - s for t, s in pairwise(times[:-1])]
    assert times[0] == 999 and times[-1] == 0 and max(lengths) - min(lengths) <= 1  # equal, but for rounding to trained times
    assert (job.method.num_updates, job.cfg.model.guidance_scale, len(job.samples)) == (0, 1, 256)
    assert job.cfg.table.label.startswith(row.removeprefix("adjoint/eq_").join(("Eq. ", f", {solver}, {calls} calls")))


def test_the_rows_differ_in_the_ode_alone() -> None:
    one, other = (overlay(row, "dtype=float32") for row in ROWS)
    assert config.identity(one) != config.identity(other)
    other.method.reparameterise = one.method.reparameterise
    assert config.identity(one) == config.identity(other)


def test_the_fine_solution_comes_first(tmp_path: Path) -> None:
    cfg = compose("config", overrides=["experiment=adjoint/lab/solvers", "device=cpu", f"outputs={tmp_path}"])
    with pytest.raises(UsageError, match=f"^reference={tmp_path}/adjoint_lab_fine: no such folder"):
        preparation.prepare(cfg)


@pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
def test_it_runs_and_errors_are_of_the_same_pictures(tmp_path: Path) -> None:
    brief = ["dataset.limit=1", "samples_per_prompt=1", f"outputs={tmp_path}", "metrics=none"]
    experiment.run(preparation.prepare(overlay("adjoint/fine", "study=fine", "scheduler.num_steps=7", *brief)))
    (fine,) = tmp_path.glob("fine/*")
    errors = {}
    for row in ROWS:
        run = overlay(row, "table.solver=explicit_adams", "table.calls='10'", f"reference={fine}", *brief)
        metrics = experiment.run(preparation.prepare(run))
        errors[row] = metrics["distances"]["rmse"]["value"]
        assert (metrics["cost"]["nfe"], metrics["cost"]["nfe_backward"], metrics["base_cost"]["nfe"]) == (10, 0, 24)
    assert 0.001 < errors["adjoint/eq_10"] < errors["adjoint/eq_4"] < 0.05  # other pictures are 0.1 and more away
    assert json.loads((fine / "metrics.json").read_text())["label"] == "fine, w 1"


# On the paper's data


def composed(*overrides: str) -> DictConfig:
    return compose("config", overrides=["device=cpu", "tracker=none", *overrides])


def test_table_1_takes_the_calls_it_says(tmp_path: Path) -> None:
    """On a tiny model of CIFAR-10's kind, against a folder of pictures."""
    folder, photos = tiny_pixel.save_ddpm(tmp_path / "ddpm"), tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (40 * i, 90, 200 - 60 * i)).save(photos / f"{i}.png")
    few = ["samples_per_prompt=2", "zoo=lab", f"model.path={folder}", f"reference={photos}", f"outputs={tmp_path}"]
    for row in (*ROWS, "adjoint/dpm_solver"):
        cfg = composed("experiment=adjoint/solvers", f"row={row}", "table.calls='10'", *few)
        assert cfg.model.clip_sample is False
        metrics = experiment.run(preparation.prepare(cfg))
        assert (metrics["cost"]["nfe"], metrics["cost"]["nfe_backward"]) == (10, 0)
        assert metrics["compared"] == [2, 3] and {*metrics["distances"]} == {"fid", "kid"}


def test_table_1_is_of_as_many_pictures_as_the_training_set(tmp_path: Path) -> None:
    cfg = composed("experiment=adjoint/solvers", "reference=photos")
    assert (cfg.samples_per_prompt, cfg.model.name, cfg.method.gradients.solver) == (50_000, "ddpm_cifar10", "explicit_adams")
    assert [composed("experiment=adjoint/solvers", "reference=x", f"table.calls='{n}'").scheduler.num_steps for n in (10, 20, 50)] == [
        5, 15, 45,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="^reference=cifar10_train: no such folder"):
        preparation.prepare(composed("experiment=adjoint/solvers", "zoo=lab", f"model.path={tiny_pixel.save_ddpm(tmp_path)}"))


@pytest.mark.parametrize("row", [*ROWS, "adjoint/dpm_solver", "adjoint/fine"])
def test_its_twin_on_stable_diffusion_has_the_same_rows(row: str) -> None:
    full, lab = (composed(f"experiment=adjoint/{name}", f"row={row}") for name in ("solvers_sd15", "lab/solvers"))
    assert full.model.name == "sd15" and full.method == lab.method and full.scheduler == lab.scheduler
    assert full.table.label == lab.table.label
