""" "Referee Can Play"'s table: every row makes a job, and what the overlay holds is what the paper says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from guidedgen import config, jobs
from guidedgen.lab.networks import WEIGHTS
from guidedgen.methods.blip_inversion import BlipInversion

MODES = ["full", "referee_only", "distill_only"]
LAB = ["model=lab", "zoo=lab", "metrics=lab", "dataset=lab", "dataset.category=colour", "dtype=float32"]  # for what is not here
APPENDIX_C = {
    "num_iterations": 160, "distill_iterations": 10, "weight": 2.0, "lr": [1.0, 0.5], "distill_weight": [800.0, 400.0],
    "distill_scale": 30.0, "noise": 0.2, "ema_start": 40, "ema_restart": 60,
}  # fmt: skip

pytestmark = pytest.mark.skipif(not (WEIGHTS / "blip2.safetensors").exists(), reason="the lab's weights are missing")


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        yield


def overlay(name: str, *overrides: str) -> DictConfig:
    return compose("config", overrides=[f"experiment=referee/{name}", "device=cpu", "tracker=none", *overrides])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["compbench", "lab/compbench"])
def test_every_row_makes_a_job(name: str, mode: str, tmp_path: Path) -> None:
    stand_in = LAB if name == "compbench" else []
    job = jobs.prepare(overlay(name, f"outputs={tmp_path}", f"method.mode={mode}", *stand_in))
    assert isinstance(job.method, BlipInversion) and job.method.needs.reward == (mode != "distill_only")
    assert job.base is not None and job.reward is not None and job.reward.differentiable


@pytest.mark.parametrize("name", ["compbench", "lab/compbench"])
def test_the_sweep_is_the_three_rows(name: str) -> None:
    params = compose("config", overrides=[f"experiment=referee/{name}"], return_hydra_config=True).hydra.sweeper.params
    assert params == {"method.mode": ",".join(MODES)}


def test_the_settings_are_the_paper_s() -> None:
    cfg, twin = overlay("compbench"), overlay("lab/compbench")
    assert {key: OmegaConf.to_container(cfg.method)[key] for key in APPENDIX_C} == APPENDIX_C
    assert cfg.method.augmentations.count == 30 and cfg.samples_per_prompt == 10
    per_element = [weight / 64**2 for weight in cfg.method.distill_weight]
    assert [weight / 16**2 for weight in twin.method.distill_weight] == per_element
