"""A method alone is a command: it brings its sampler and, on each model, the settings that work there; what the user says wins."""

from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from guidedgen.cli import command_line, usage
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, experiment, preparation

METHODS = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))
OVERLAYS = sorted(path.relative_to(config.CONF / "experiment").with_suffix("").as_posix() for path in config.CONF.rglob("experiment/**/*.yaml"))  # fmt: skip
GENERATOR = WEIGHTS / "generator"
STABLE_DIFFUSION = ["model=sd15", "zoo=lab", "metrics=lab", f"model.path={GENERATOR}", "device=cpu"]
# Steps of the methods' papers and released codes (conf/settings); the others take the scheduler's own.
PUBLISHED_STEPS = {"code": 500, "codex": 500, "mpgd": 100, "freedom": 100, "universal": 100, "doodl": 50, "adjoint_dpm": 30,
                   "adjoint_tuning": 30, "fk_steering": 100, "tds": 100, "das": 100, "psi_sampler": 25, "demon": 64, "rbf": 10, "d_flow": 6,
                   "tfg": 100, "dps": 100, "lgd_mc": 100}  # fmt: skip
# Less than their settings say, which is enough to gain by.
FEWER = {
    "adjoint_dpm": "method.num_updates=4", "adjoint_tuning": "method.num_updates=3", "blip_inversion": "method.num_iterations=33",
    "doodl": "method.num_updates=6", "universal": "scheduler.num_steps=9",
}  # fmt: skip


def composed(*overrides: str) -> DictConfig:
    return composition.composed(list(overrides))


@pytest.fixture(autouse=True)
def lab_weights() -> None:
    if not (GENERATOR / "model_index.json").exists():
        pytest.skip("the lab's weights are missing")


@pytest.mark.parametrize("model", [[], STABLE_DIFFUSION], ids=["lab", "stable diffusion"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_passes_every_check(method: str, model: list[str], tmp_path: Path) -> None:
    command_line.preflight([f"method={method}", *model, f"outputs={tmp_path}"], preparation.prepare)  # else SystemExit


@pytest.mark.parametrize("model", ["lab_flow", "lab_turbo"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_passes_every_check_on_the_other_labs(
    method: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the lab's settings for the method on the flow, in two steps on the few-step model, unless it needs more."""
    overrides = [f"method={method}", f"model={model}", "device=cpu", f"outputs={tmp_path}"]
    if (method, model) == ("adjoint_tuning", "lab_flow"):
        with pytest.raises(SystemExit):
            command_line.preflight(overrides, preparation.prepare)
        assert "learns for Stable Diffusion 1 and 2 alone" in capsys.readouterr().err
        return
    command_line.preflight(overrides, preparation.prepare)
    cfg, lab = composed(*overrides), composed(f"method={method}", "model=lab")
    if model == "lab_flow":
        weaker = {"strength": 0.1} if method == "codex" else {}
        assert cfg.scheduler.num_steps == lab.scheduler.num_steps and cfg.method == {**lab.method, **weaker}
    else:
        assert cfg.scheduler.num_steps == (10 if method.startswith("adjoint") else 2)


@pytest.mark.parametrize("method", METHODS)
def test_on_stable_diffusion_it_samples_as_published(method: str) -> None:
    cfg = composed(f"method={method}", *STABLE_DIFFUSION)
    assert cfg.scheduler.num_steps == PUBLISHED_STEPS.get(method, 50)
    own = yaml.safe_load((config.CONF / "method" / f"{method}.yaml").read_text(encoding="utf-8"))
    changed = {key for key, value in own.items() if key != "defaults" and cfg.method[key] != value}
    assert not changed  # the method's own values are its paper's


SCHEDULERS = sorted(path.stem for path in (config.CONF / "scheduler").glob("*.yaml"))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("method", METHODS)
def test_another_sampler_takes_its_own_times(method: str, scheduler: str) -> None:
    """The settings of a method name options of its own sampler; another one may have no such options."""
    for model in ([], STABLE_DIFFUSION):
        cfg = composed(f"method={method}", f"scheduler={scheduler}", *model)
        config.build(cfg.scheduler, "scheduler", ())
        own = yaml.safe_load((config.CONF / "scheduler" / f"{scheduler}.yaml").read_text(encoding="utf-8"))
        assert set(own) == set(cfg.scheduler)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (
            ["method=codex", "scheduler.num_steps=4", "method.gradient_block_size=4"],
            "method.gradient_block_size or method.window or",
        ),
        (["method=mpgd", "scheduler.num_steps=3", "method.window=[0.6,0.4]"], "method.window or scheduler.num_steps"),
    ],
)
def test_a_method_that_would_guide_at_no_step_is_refused(
    options: list[str], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.preflight([*options, f"outputs={tmp_path}"], preparation.prepare)
    message = capsys.readouterr().err
    assert left.value.code == 2 and "guides at none of the chain's" in message and hint in message
    command_line.preflight([*options, "method.strength=0", f"outputs={tmp_path}"], preparation.prepare)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where methods of the same sampler find their unguided run."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_alone_runs_on_the_lab(method: str, outputs: Path) -> None:
    fewer = [FEWER[method]] if method in FEWER else []
    given = ["dataset.limit=1", "metrics=none", "tracker=none", "device=cpu", f"outputs={outputs}"]
    job = preparation.prepare(composed(f"method={method}", *fewer, *given))
    metrics = experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()
    if method != "base":
        score = metrics["scores"][job.reward_name]
        # What the reward does not guide may lose by it. Distillation pulls away from what the referee is sure of; FK steering chooses
        # by look-aheads, which promises nothing of one picture; D-Flow's midpoint rule starts from another picture than DDIM.
        unsure = ("blip_inversion", "fk_steering", "d_flow")
        assert score["value"] > score["base"] or not job.method.needs.reward or method in unsure


@pytest.mark.parametrize(
    ("options", "process"),
    [
        ([], "ddim"), (["method/gradients=reversible"], "edict"), (["method/gradients=adjoint"], "ddim"),
        (["method.source_image=lab:night", "method.tied=false"], "edict"), (["method.process=edict"], "edict"),
    ],
)  # fmt: skip
def test_on_the_lab_doodl_takes_the_process_that_other_options_need(options: list[str], process: str, tmp_path: Path) -> None:
    job = preparation.prepare(composed("method=doodl", *options, "tracker=none", "device=cpu", f"outputs={tmp_path}"))
    assert job.method.process == process


def test_what_the_user_says_wins() -> None:
    cfg = composed("method=doodl", "scheduler.num_steps=7", "method.lr=3", "method.process=edict")
    assert (cfg.scheduler.num_steps, cfg.method.lr, cfg.method.process) == (7, 3, "edict")
    assert composed("method=universal", "scheduler=ddpm").scheduler._target_.endswith(".Ddpm")
    assert composed("method=blip_inversion", "reward=aesthetic").reward._target_.endswith(".Aesthetic")
    assert composed("method=sdedit", "dataset=lab").dataset._target_.endswith(".Lab")


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_experiment_keeps_what_it_says(name: str) -> None:
    written = yaml.safe_load((config.CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    cfg = composed(f"experiment={name}")
    for node in ("method", "scheduler", "dataset", "model", "reward"):
        for key, value in (written.get(node) or {}).items():
            found = OmegaConf.to_container(cfg, resolve=False)[node][key]
            if not isinstance(value, dict) and "${" not in str(value):
                assert found == value, f"{node}.{key}"


def test_help_says_which_sampler_a_method_brings() -> None:
    lines = usage.text(config.CONF, 100).splitlines()
    for method in METHODS:
        brought = composed(f"method={method}").scheduler._target_.rpartition(".")[2].lower()
        (line,) = (line for line in lines if line.startswith(f"  {method} "))
        # Of those that name none, the scheduler is the default one.
        assert f"scheduler={brought}" in line if "scheduler=" in line else brought == "ddpm"
        assert len(line) <= 100
