"""Guidance by a weaker model: what it computes, what it costs, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from every_method import METHODS, check_method
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.latent import LatentModel
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process.schedulers import Ddim, Ddpm
from guidedgen.runs import composition, config, experiment, preparation, sampling

PROMPTS = ("a cat", "two dogs, red")
TASKS = [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(PROMPTS)]


def weakened(source: Path, folder: Path) -> Path:
    """A copy of a pipeline whose denoising network and text encoders have other weights."""
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(7)
    for file in (
        *folder.glob("unet/*.safetensors"),
        *folder.glob("transformer/*.safetensors"),
        *folder.glob("text*/*.safetensors"),
    ):
        state = {
            name: value + 0.05 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for name, value in load_file(file).items()
        }
        save_file(state, file, metadata={"format": "pt"})
    return folder


def rows(model: LatentModel, n: int = 3) -> Tensor:
    return torch.randn(len(TASKS), n, *model.latent_shape, generator=torch.Generator().manual_seed(3)).double()


def test_predictions_are_those_of_two_models(make: Callable[..., LatentModel], tmp_path: Path) -> None:
    """Of every family, and each reads the prompts with text encoders of its own."""
    plain = make(negative_prompt="", dtype="float64")
    folder = weakened(Path(plain.path), tmp_path / "weak")
    model = make(negative_prompt="", dtype="float64", weaker=str(folder), guidance_scale=3.0)
    alone = make(negative_prompt="", dtype="float64", path=str(folder))
    x_t, t = rows(model), model.schedule.at(600)
    strong, weak = (each.denoiser(TASKS)(x_t, t, 1.0) for each in (plain, alone))
    assert (strong.eps - weak.eps).abs().max() > 1e-3
    denoise = model.guided_denoiser(TASKS, (), 1)
    before = model.ledger.nfe
    found = denoise(x_t, t)
    assert model.ledger.nfe - before == 2 * 6
    for name in ("x_0", "eps"):
        expected = getattr(weak, name) + 3 * (getattr(strong, name) - getattr(weak, name))
        torch.testing.assert_close(getattr(found, name), expected, rtol=0, atol=1e-9)
        for one, other in zip(denoise.pair(x_t, t), (weak, strong), strict=True):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-12)
    torch.testing.assert_close(denoise.subset([1])(x_t[1:], t).eps, found.eps[1:], rtol=0, atol=1e-9)


def test_rows_of_both_models_are_counted_in_one_place(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = weakened(folders["epsilon"], tmp_path / "weak")
    model = StableDiffusion(path=str(folders["epsilon"]), name="tiny", guidance_scale=2.0, weaker=str(folder))
    denoise, x_t, t = model.guided_denoiser(TASKS, (), 1), rows(model).float(), model.schedule.at(600)
    for call, count in ((lambda: denoise(x_t, t), 12), (lambda: denoise(x_t, t, 1.0), 6), (lambda: denoise(x_t, t, 0.0), 6)):
        before = model.ledger.nfe
        call()
        assert model.ledger.nfe - before == count


def test_a_model_is_not_changed_by_itself(folders: dict[str, Path]) -> None:
    """The null test: where weak and strong agree, no scale makes a difference."""
    path = str(folders["epsilon"])
    model = StableDiffusion(path=path, name="tiny", guidance_scale=7.5, weaker=path, dtype="float64")
    plain = StableDiffusion(path=path, name="tiny", guidance_scale=1.0, dtype="float64")
    x_t, t = rows(model), model.schedule.at(300)
    torch.testing.assert_close(
        model.guided_denoiser(TASKS, (), 1)(x_t, t).x_0, plain.guided_denoiser(TASKS, (), 1)(x_t, t).x_0, rtol=0, atol=1e-10
    )


def test_gradients_are_those_of_both_models(folders: dict[str, Path], tmp_path: Path) -> None:
    """By x_t, against differences; by the conditioning, of the strong model alone."""
    folder = weakened(folders["epsilon"], tmp_path / "weak")
    model = StableDiffusion(path=str(folders["epsilon"]), name="tiny", guidance_scale=2.0, weaker=str(folder), dtype="float64")
    denoise, x_t, t = model.guided_denoiser(TASKS, (), 1), rows(model, 1), model.schedule.at(600)
    direction = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad(denoise(leaf := x_t.clone().requires_grad_(), t).x_0.square().sum(), leaf)
    ahead, behind = (denoise(x_t + h * direction, t).x_0.square().sum() for h in (1e-5, -1e-5))
    assert abs(float((gradient * direction).sum()) - float(ahead - behind) / 2e-5) < 1e-5 * float(gradient.norm())
    words = denoise.conditioning.clone().requires_grad_()
    (by_words,) = torch.autograd.grad(denoise.conditioned_on(words)(x_t, t).x_0.sum(), words)
    plain = StableDiffusion(path=str(folders["epsilon"]), name="tiny", guidance_scale=1.0, dtype="float64").denoiser(TASKS)
    (expected,) = torch.autograd.grad(2 * plain.conditioned_on(words)(x_t, t).x_0.sum(), words)
    torch.testing.assert_close(by_words, expected, rtol=0, atol=1e-9 * float(expected.abs().max()) + 1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = weakened(folders["epsilon"], tmp_path / "weak")
    model = StableDiffusion(path=str(folders["epsilon"]), name="tiny", guidance_scale=2.0, weaker=str(folder))
    check_method(name, model, Ddim(num_steps=4), Ddpm(num_steps=4), PROMPTS)


# Refusals


REFUSED: dict[str, tuple[dict[str, object], str]] = {  # and what is said of it
    "no guidance": ({"guidance_scale": 1.0}, r"guidance_scale=1\.0: must not be 1 \(no guidance\) with model\.weaker"),
    "negative prompt": ({"negative_prompt": "red"}, "negative_prompt='red': must be \"\" with model.weaker"),
    "no folder": ({"weaker": "no/such/folder"}, "model.weaker=no/such/folder: "),
    "no text": ({"weaker": 3}, "weaker=3: must be a folder"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_no_sense_is_refused(folders: dict[str, Path], kind: str) -> None:
    options, message = REFUSED[kind]
    given = {"path": str(folders["epsilon"]), "name": "tiny", "weaker": str(folders["epsilon"]), **options}
    with pytest.raises((UsageError, BadValue), match=rf"^{message}") as caught:
        StableDiffusion(**given)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def changed(source: Path, folder: Path, part: str, **values: object) -> Path:
    shutil.copytree(source, folder)
    file = folder / part
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    ("part", "values", "what"),
    [
        ("vae/config.json", {"scaling_factor": 0.5}, "scaling of latents"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "noise levels"),
        ("unet/config.json", {"sample_size": 16}, "latents"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    folders: dict[str, Path], tmp_path: Path, part: str, values: dict[str, object], what: str
):
    source = folders["epsilon"]
    weak = changed(source, tmp_path / "weak", part, **values)
    with pytest.raises(UsageError, match=rf"^model\.weaker={weak}: has other {what} than model\.path={source}"):
        StableDiffusion(path=str(source), name="tiny", weaker=str(weak))


def test_another_family_is_refused(folders: dict[str, Path], xl_folder: Path) -> None:
    with pytest.raises(UsageError, match=rf"^model\.weaker={xl_folder}: .*StableDiffusionXLPipeline"):
        StableDiffusion(path=str(folders["epsilon"]), name="tiny", weaker=str(xl_folder))


# Runs


def test_it_is_an_option_of_every_model() -> None:
    for file in sorted((config.CONF / "model").glob("*.yaml")):
        assert OmegaConf.load(file).weaker is None, file.name


def test_it_is_fetched_too() -> None:
    found = StableDiffusion.reads(path="a/b", weaker="c/d")
    assert [(needed.key, needed.name) for needed in found] == [("model.path", "a/b"), ("model.weaker", "c/d")]


def test_any_model_takes_it(folders: dict[str, Path]) -> None:
    path = str(folders["epsilon"])
    assert families.any_model(path=path, name="tiny", weaker=path, guidance_scale=2.0).weak is not None
    assert len(families.reads(path=path, weaker=path)) == 2


def test_runs_are_named_by_it_and_others_keep_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "model=lab", "metrics=none", "device=cpu", "dataset=prompt", "dataset.prompt=a red circle", "tracker=none",
        f"outputs={tmp_path}", "method=base", "scheduler.num_steps=4",
    ]  # fmt: skip
    plain = preparation.prepare(composition.composed(given))
    without = composition.composed(given)
    with open_dict(without):
        del without.model.weaker
    lacking = preparation.prepare(without)
    other = preparation.prepare(composition.composed([*given, "model.weaker=lab:turbo"]))
    assert plain.folder.path == lacking.folder.path != other.folder.path
    half = sampling.halved(other).model  # where memory runs out, both models take less at once
    assert half.weak is not None and half.batch_size == half.weak.batch_size == other.model.batch_size // 2
    assert other.model.weak is not None and other.model.weak.batch_size == other.model.batch_size
    metrics = experiment.run(other)
    first = sorted(other.folder.path.glob("images/*.png"))[0].read_bytes()
    experiment.run(plain)
    assert sorted(plain.folder.path.glob("images/*.png"))[0].read_bytes() != first
    assert metrics["cost"]["nfe"] == 2 * 4
    with pytest.raises(SystemExit) as left:
        command_line.preflight([*given, "model.weaker=lab:nothing"], preparation.prepare)
    assert left.value.code == 2 and "model.weaker=lab:nothing" in capsys.readouterr().err
    with pytest.raises(BadValue):
        StableDiffusion(path="lab", name="lab", guidance_scale=1.0, weaker="lab:turbo")
