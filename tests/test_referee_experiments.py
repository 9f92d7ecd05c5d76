""" "Referee Can Play"'s table: every row makes a job, and what the overlay holds is what the paper says."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from guidedgen.lab.networks import WEIGHTS
from guidedgen.methods.blip_inversion import BlipInversion
from guidedgen.rewards.augmented import Augmented
from guidedgen.runs import composition, config, preparation

ROWS = ["codex/base", "referee/distill_only", "referee/referee_only", "referee/full", "codex/greedy", "referee/doodl"]
ABLATIONS = ["augmentations", "distillation", "balance", "average", "noise", "guidance", "several"]
LAB = ["model=lab", "zoo=lab", "metrics=lab", "dataset=lab", "dataset.category=colour", "dtype=float32"]  # for what is not here
APPENDIX_C = {
    "num_iterations": 160, "distill_iterations": 10, "weight": 2.0, "lr": [1.0, 0.5], "distill_weight": [800.0, 400.0],
    "distill_scale": 30.0, "noise": 0.2, "ema_start": 40, "ema_restart": 60,
}  # fmt: skip

pytestmark = pytest.mark.skipif(not (WEIGHTS / "blip2.safetensors").exists(), reason="the lab's weights are missing")


def overlay(name: str, *overrides: str) -> DictConfig:
    return composition.composed([f"experiment=referee/{name}", "device=cpu", "tracker=none", *overrides])


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", ["compbench", "lab/compbench"])
def test_every_row_makes_a_job(name: str, row: str, tmp_path: Path) -> None:
    stand_in = LAB if name == "compbench" else []
    job = preparation.prepare(overlay(name, f"outputs={tmp_path}", f"row={row}", *stand_in))
    guides = row not in ("codex/base", "referee/distill_only")
    assert job.method.needs.reward == guides and (job.base is None) == (row == "codex/base")
    if row.startswith("referee/") and not row.endswith("doodl"):
        assert isinstance(job.method, BlipInversion) and row.endswith(job.method.mode)
    if guides:
        assert job.reward is not None and job.reward.differentiable


@pytest.mark.parametrize("name", ["compbench", "lab/compbench"])
def test_the_sweep_is_the_rows(name: str) -> None:
    params = composition.settings([f"experiment=referee/{name}"]).sweeper.params
    assert params == {"row": ",".join(ROWS)}


@pytest.mark.parametrize("name", [lab + name for name in ABLATIONS for lab in ("", "lab/")])
def test_every_value_of_an_ablation_makes_another_run(name: str) -> None:
    hydra = composition.settings([f"experiment=referee/{name}"])
    swept = dict(hydra.sweeper.params)
    assert swept.pop("row") == hydra.runtime.choices.row  # what runs without -m is of the same row
    parsed = composition.parse([f"{key}={values}" for key, values in swept.items()])
    for item in parsed:
        points = [f"{item.key_or_group}={value}" for value in item.sweep_string_iterator()]
        assert len({config.identity(overlay(name, point)) for point in points}) == len(points) > 1


def test_the_augmented_loss_is_of_copies_as_those_that_guide(tmp_path: Path) -> None:
    job = preparation.prepare(overlay("lab/augmentations", f"outputs={tmp_path}", "table.copies=15"))
    scorer = job.scorers["blip2_augmented"]
    assert isinstance(scorer, Augmented) and isinstance(job.method, BlipInversion)
    assert scorer.augmentations == job.method.augmentations and job.method.mode == "referee_only"


def test_the_settings_are_the_paper_s() -> None:
    cfg, lab = overlay("compbench"), overlay("lab/compbench")
    assert {key: OmegaConf.to_container(cfg.method, resolve=True)[key] for key in APPENDIX_C} == APPENDIX_C
    assert cfg.method.optimizer == "sgd"  # the code's: see methods/blip_inversion.py
    assert cfg.method.augmentations.count == 30 and cfg.samples_per_prompt == 10
    per_element = [weight / 64**2 for weight in cfg.method.distill_weight]
    assert [weight / 16**2 for weight in lab.method.distill_weight] == per_element


@pytest.mark.parametrize(("row", "printed"), [("distill_only", 0.3793), ("referee_only", 0.8639), ("full", 0.8162)])
def test_published_figures_are_shown_next_to_the_published_setting_alone(row: str, printed: float) -> None:
    assert config.published(overlay("compbench", f"row=referee/{row}"))["blip_vqa"] == printed
    assert config.published(overlay("compbench", f"row=referee/{row}", "table.copies=10")) == {}
    assert config.published(overlay("compbench", f"row=referee/{row}", "dataset.category=shape")) == {}


def test_several_referees_are_blip2_and_another(tmp_path: Path) -> None:
    """Without the other it is the published setting, of which the figures are."""
    assert config.published(overlay("several"))["blip_vqa"] == 0.8162
    assert config.published(overlay("several", "reward.weights.vqa=1")) == {}
    alone, both = (
        preparation.prepare(overlay("lab/several", f"outputs={tmp_path}", f"reward.weights.vqa={weight}")).reward
        for weight in (0, 1)
    )
    assert alone is not None and alone.networks == ("lab-blip2",)
    assert both is not None and both.networks == ("lab-blip2", "lab-vqa")
