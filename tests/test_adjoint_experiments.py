"""AdjointDPM's applications: every overlay makes a job, what it holds is what paper and code say, and the lab's twins run."""

from pathlib import Path

import pytest
import tiny_pixel
from omegaconf import DictConfig, OmegaConf

from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, experiment, preparation

LAB = ["model=lab", "zoo=lab", "metrics=lab", "dtype=float32"]  # in place of weights that are not here
PROVIDED = {  # what the user has to provide, and what stands in for it
    "vocabulary": ["dataset=lab", "dataset.category=fine", "metrics.per_class=null"],
    "stylise": ["dataset.images=['lab:night']", "dataset@dataset.prompts=lab", "dataset@method.prompts.prompts=lab"],
    "effect": ["dataset=lab", "method.prompts.prompt='a red circle'", "method.target='striped {prompt}'"],
    "audit": ["dataset=lab"],
}
FULL = {  # method, and what the paper or the released code says (see the overlays)
    "vocabulary": {"method.what": "trajectory", "method.lr": 0.01, "method.num_updates": 30, "scheduler.num_steps": 30},
    "stylise": {"method.noises_per_prompt": 10, "method.prompts.prompts.limit": 10},
    "effect": {"method.what": "token", "method.num_updates": 50, "scheduler.num_steps": 50},
    "audit": {"method.what": "noise", "method.epsilon": 0.1, "method.num_updates": 30},
}
QUICK = {
    "vocabulary": ["method.num_updates=1", "dataset.limit=1", "samples_per_prompt=2"],
    "stylise": [
        "samples_per_prompt=1",
        "method.num_updates=1",
        "method.noises_per_prompt=1",
        "method.prompts.prompts.limit=1",
        "dataset.prompts.limit=1",
    ],
    "effect": [
        "samples_per_prompt=1",
        "method.num_updates=1",
        "method.noises_per_prompt=1",
        "method.prompts.limit=1",
        "dataset.limit=1",
    ],
    "audit": ["samples_per_prompt=1", "method.num_updates=1", "dataset.limit=1"],
}
STUDIES = ["solvers", "solvers_sd15", "lab/solvers", "audit_imagenet"]  # see test_solver_study.py and below


def overlay(application: str, *overrides: str) -> DictConfig:
    return composition.composed([f"experiment=adjoint/{application}", "device=cpu", "tracker=none", *overrides])


def test_every_application_has_a_twin_in_the_lab() -> None:
    found = [option for option in config.groups([config.CONF])["experiment"] if option.startswith("adjoint/")]
    twins = [f"adjoint/{folder}{name}" for name in PROVIDED for folder in ("", "lab/")]
    assert sorted(found) == sorted([*twins, *(f"adjoint/{name}" for name in STUDIES)])


@pytest.mark.parametrize("name", PROVIDED)
def test_every_application_makes_a_job(name: str, tmp_path: Path) -> None:
    cfg = overlay(name, f"outputs={tmp_path}", *LAB, *PROVIDED[name])
    job = preparation.prepare(cfg)
    assert job.method.needs.gradient and job.reward is not None and job.reward.differentiable
    assert job.base is not None and (job.originals is None) == (name in ("vocabulary", "audit"))
    assert OmegaConf.select(overlay(name, *PROVIDED[name]), "model.guidance_scale") == 7.5
    for key, value in FULL[name].items():
        assert OmegaConf.select(cfg, key) == value


@pytest.mark.parametrize("name", PROVIDED)
def test_every_twin_makes_a_job_of_the_same_kind(name: str, tmp_path: Path) -> None:
    cfg, full = overlay(f"lab/{name}", f"outputs={tmp_path}"), overlay(name, *PROVIDED[name])
    preparation.prepare(cfg)
    assert cfg.model.name == "lab"
    for key in ("method._target_", "reward._target_"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(full, key)


@pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
@pytest.mark.parametrize("name", PROVIDED)
def test_every_twin_runs(name: str, tmp_path: Path) -> None:
    job = preparation.prepare(overlay(f"lab/{name}", f"outputs={tmp_path}", "scheduler.num_steps=2", *QUICK[name]))
    metrics = experiment.run(job)
    assert metrics["samples"] == len(job.samples) <= 2 and (job.folder.path / "images" / "grid.png").exists()


def test_the_lab_s_effect_is_judged_on_what_it_was_not_learned_from(tmp_path: Path) -> None:
    job = preparation.prepare(overlay("lab/effect", f"outputs={tmp_path}"))
    learned = {(lesson.task.prompt, lesson.seed) for lesson in job.lessons}
    assert not {prompt for prompt, _ in learned} & {sample.task.prompt for sample in job.samples}
    assert not {seed for _, seed in learned} & {sample.seed for sample in job.samples}
    assert job.originals is not None
    assert {sample.task.prompt for sample in job.originals.samples} == {f"striped {prompt}" for prompt, _ in learned}


def test_the_lab_s_style_is_judged_on_what_it_was_not_learned_from(tmp_path: Path) -> None:
    job = preparation.prepare(overlay("lab/stylise", f"outputs={tmp_path}"))
    assert not {lesson.task.prompt for lesson in job.lessons} & {sample.task.prompt for sample in job.samples}
    assert {task.reference for task in (job.lessons[0].task, job.samples[0].task)} == {
        str((WEIGHTS / "styles/mosaic.png").absolute())
    }


def test_table_3_is_swept_over_its_five_classes() -> None:
    """The paper's indices 242, 430, 779, 859 and 895; pictures of a class, audited by the classifier's own label of it."""
    params = composition.settings(["experiment=adjoint/audit_imagenet"]).sweeper.params
    (item,) = composition.parse([f"table.class={params['table.class']}"])
    swept = [overlay("audit_imagenet", f"table.class={value}") for value in item.sweep_string_iterator()]
    assert [cfg.dataset.prompt for cfg in swept] == ["boxer", "basketball", "school bus", "toaster", "warplane"]
    for cfg in swept:
        assert cfg.reward.filter.label == cfg.dataset.prompt and cfg.reward.filter._target_.endswith("ClassifierFilter")
        assert (cfg.model.name, cfg.samples_per_prompt) == ("dit_xl_256", 100)
        assert {key: OmegaConf.select(cfg, key) for key in FULL["audit"]} == FULL["audit"]


def test_table_3_makes_a_job(tmp_path: Path) -> None:
    """Of a tiny DiT, whose labels are others, with the lab's classifier for the filter."""
    folder = tiny_pixel.save_dit(tmp_path / "dit")
    lab = ["zoo=lab", "metrics=lab", "dtype=float32", "reward.filter.label='red circle'"]
    cfg = overlay("audit_imagenet", "table.class='a cat'", f"model.path={folder}", f"outputs={tmp_path}", *lab)
    job = preparation.prepare(cfg)
    assert len(job.samples) == 100 and len(job.grid) == 31 and job.method.needs.gradient
    assert job.samples[0].task.prompt == "a cat"
