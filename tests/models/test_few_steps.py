"""Few-step models: latent consistency models and turbo models, against diffusers' own pipelines on tiny folders of its classes."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from tiny_xl import save_stable_diffusion_xl
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.latent import LatentModel
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_xl import StableDiffusionXl
from guidedgen.models.unet import embedding_of
from guidedgen.process import Scheduler
from guidedgen.process.schedulers import Ddim, Ddpm, Euler, Lcm
from guidedgen.runs import composition, config, experiment, preparation

PROMPTS = ("a cat", "two dogs, red")
BETAS = (1000, 0.00085, 0.012, "scaled_linear")
WIDTH = 10  # of the embedding of a guidance
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of numpy 2


@pytest.fixture(scope="session")
def lcm(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LatentConsistencyModelPipeline of the parts of a tiny Stable Diffusion and a UNet that is given its guidance."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    parts = StableDiffusionPipeline.from_pretrained(folders["epsilon"], local_files_only=True).components
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel.from_config({**parts["unet"].config, "time_cond_proj_dim": WIDTH})
        for parameter in unet.parameters():
            parameter.data.mul_(1.5)
    parts |= {"unet": unet, "scheduler": LCMScheduler(*BETAS, steps_offset=1), "requires_safety_checker": False}
    path = tmp_path_factory.mktemp("lcm")
    LatentConsistencyModelPipeline(**parts).save_pretrained(path)
    return path


def copied(folder: Path, copy: Path, name: str = "model_index.json", **values: Any) -> Path:
    """A copy with other values in one of its configs."""
    copy = Path(shutil.copytree(folder, copy))
    (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | values))
    return copy


def pipeline(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


def model(folder: Path, **options: Any) -> StableDiffusion:
    return StableDiffusion(path=str(folder), name="tiny", **{"guidance_scale": 1.0, "dtype": "float64", **options})


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Drawn:
    """Stands for diffusers' randn_tensor: other noise at each call, the same for equal calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, shape: Sequence[int], **_: object) -> Tensor:
        self.calls += 1
        return normal(*shape, seed=self.calls)


def sample(sd: LatentModel, x_T: Tensor, scheduler: Scheduler, prompts: Sequence[str] = PROMPTS) -> Tensor:  # noqa: N803
    """b c h w -> the chain's last latents, with the noise that `Drawn` draws."""
    denoise, x, noise = sd.denoiser(tasks(*prompts)), x_T[:, None], Drawn()
    with torch.no_grad():
        for t, s in pairwise(scheduler.grid(sd.schedule)):
            mean, std = scheduler.transition(x, denoise(x, t), t, s)
            x = mean + std * noise(x_T.shape)[:, None] if scheduler.stochastic else mean
    return x[:, 0]


# Latent consistency models


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("guidance", [None, 1.0, 3.5])
def test_a_consistency_model_is_diffusers(lcm: Path, steps: int, guidance: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.schedulers import scheduling_lcm

    sd, x_T = model(lcm, embedded_guidance=guidance), normal(2, 4, 8, 8)  # noqa: N806
    given = {"latents": x_T, "num_inference_steps": steps, **({} if guidance is None else {"guidance_scale": guidance})}

    def theirs(kind: str) -> Tensor:
        monkeypatch.setattr(scheduling_lcm, "randn_tensor", Drawn())
        return pipeline(lcm)(list(PROMPTS), **given, output_type=kind).images

    ours = sample(sd, x_T, Lcm(num_steps=steps))
    torch.testing.assert_close(ours, theirs("latent"), rtol=1e-6, atol=1e-5, check_dtype=False)
    pictures = theirs("pt")
    assert pictures.std() > 0.02
    torch.testing.assert_close(sd.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)


@pytest.mark.parametrize("guidance", [None, 3.5])
def test_a_plain_pipeline_with_such_a_unet_is_diffusers(
    lcm: Path, tmp_path: Path, guidance: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives 7.5 unless told otherwise, and has no classifier-free guidance."""
    from diffusers.schedulers import scheduling_lcm

    folder = copied(lcm, tmp_path / "copy", _class_name="StableDiffusionPipeline")
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", Drawn())
    x_T, given = normal(2, 4, 8, 8), {} if guidance is None else {"guidance_scale": guidance}  # noqa: N806
    theirs = pipeline(folder)(list(PROMPTS), latents=x_T, num_inference_steps=3, **given, output_type="latent").images
    ours = sample(model(folder, embedded_guidance=guidance), x_T, Lcm(num_steps=3))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5, check_dtype=False)
    found = families.any_model(path=str(folder), name="x", embedded_guidance=guidance)
    assert isinstance(found, StableDiffusion) and (found.guidance_scale, found.embedded_guidance) == (1.0, guidance)


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_an_xl_with_such_a_unet_is_diffusers(tmp_path: Path, guidance: float | None) -> None:
    """The same, with 5."""
    folder = save_stable_diffusion_xl(tmp_path / "xl", time_cond_proj_dim=WIDTH + 1)
    sd = StableDiffusionXl(path=str(folder), name="x", dtype="float64", guidance_scale=1.0, embedded_guidance=guidance)
    x_T, given = normal(2, 4, 8, 8), {} if guidance is None else {"guidance_scale": guidance}  # noqa: N806
    theirs = pipeline(folder)(list(PROMPTS), latents=x_T, num_inference_steps=3, **given, output_type="latent").images
    torch.testing.assert_close(sample(sd, x_T, Euler(num_steps=3)), theirs, rtol=1e-6, atol=1e-5, check_dtype=False)
    assert families.any_model(path=str(folder), name="x").guidance_scale == 1.0


@pytest.mark.parametrize("width", [4, 5, 256])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 8.5])
def test_a_guidance_is_embedded_as_diffusers_does(guidance: float, width: int) -> None:
    from diffusers import LatentConsistencyModelPipeline

    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([guidance - 1]), width)
    torch.testing.assert_close(embedding_of(guidance, width), theirs, rtol=0, atol=1e-6)


def test_the_guidance_matters(lcm: Path) -> None:
    """Otherwise the comparison above would not see it missing; null is the pipeline's 8.5."""
    x_T = normal(1, 4, 8, 8)  # noqa: N806
    none, own, other = (
        sample(model(lcm, embedded_guidance=w), x_T, Lcm(num_steps=1), ["a cat"]) for w in (None, 8.5, 8.0)
    )  # fmt: skip
    assert torch.equal(none, own) and (none - other).abs().max() > 1e-3


def test_what_goes_with_such_a_unet(lcm: Path, folders: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    with pytest.raises(BadValue, match=r"guidance_scale.*must be 1: .* model\.embedded_guidance"):
        model(lcm, guidance_scale=7.5)
    with pytest.raises(BadValue, match="embedded_guidance.*not given its guidance"):
        model(folders["epsilon"], embedded_guidance=3.0)
    for value in (-1.0, float("inf"), float("nan")):
        with pytest.raises(BadValue, match="embedded_guidance"):
            model(lcm, embedded_guidance=value)
    for name, change, why in (
        ("unet/config.json", {"time_cond_proj_dim": None}, "whose UNet takes no guidance"),
        ("unet/config.json", {"time_cond_proj_dim": 2}, "time_cond_proj_dim=2 is not null or a whole number above 3"),
        ("unet/config.json", {"addition_embed_type": "text"}, "addition_embed_type=text, which wants more than a text"),
        ("scheduler/scheduler_config.json", {"clip_sample": True}, r"clips predictions \(clip_sample\)"),
    ):
        with pytest.raises(UsageError, match=why):
            model(copied(lcm, tmp_path / str(len(list(tmp_path.iterdir()))), name, **change))
    with pytest.raises(BadValue, match="embedded_guidance"):
        families.any_model(path=str(folders["epsilon"]), name="x", embedded_guidance=3.0)
    found = families.any_model(path=str(lcm), name="x")
    assert isinstance(found, StableDiffusion) and found.guidance_scale == 1.0
    assert lcm / "model_index.json" in found.files  # its pipeline says which guidance null is
    tried("refused", 10)
    tried("used")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_a_consistency_model(lcm: Path, name: str) -> None:
    own = Lcm(num_steps=3)
    check_method(name, model(lcm, dtype="float32"), Ddim(num_steps=3, spacing="trailing", offset=0, end="clean"), own)


# Turbo models


def start_of(scheduler: Scheduler, sd: LatentModel, x_T: Tensor) -> Tensor:  # noqa: N803
    """Where diffusers begins on trailing times: at x_T without the part of a clean latent, sigma x_T."""
    return scheduler.grid(sd.schedule)[0].sigma * x_T


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_s_ancestral_steps_are_ddpm_s(xl_folder: Path, tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SDXL-Turbo's scheduler has it; diffusers' latents are x / alpha, so its noise is drawn in that scale too."""
    from diffusers import EulerAncestralDiscreteScheduler
    from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral

    pipe = pipeline(xl_folder)
    pipe.scheduler = EulerAncestralDiscreteScheduler(*BETAS, timestep_spacing="trailing", steps_offset=1)
    sd = StableDiffusionXl(path=str(xl_folder), name="x", dtype="float64", guidance_scale=1.0)
    monkeypatch.setattr(ancestral, "randn_tensor", Drawn())
    x_T, scheduler = normal(2, 4, 8, 8), Ddpm(num_steps=steps)  # noqa: N806
    theirs = pipe(list(PROMPTS), latents=x_T, num_inference_steps=steps, guidance_scale=0.0, output_type="latent").images
    ours = sample(sd, start_of(scheduler, sd, x_T), scheduler)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-5, check_dtype=False)
    by_eta = sample(sd, start_of(scheduler, sd, x_T), Ddim(num_steps=steps, eta=1.0, spacing="trailing", offset=0, end="clean"))
    torch.testing.assert_close(ours, by_eta, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 4])
def test_sd_turbo_s_steps_are_euler_s(folders: dict[str, Path], steps: int) -> None:
    """As SD-Turbo's scheduler has it."""
    from diffusers import EulerDiscreteScheduler

    pipe, sd, x_T = pipeline(folders["epsilon"]), model(folders["epsilon"]), normal(2, 4, 8, 8)  # noqa: N806
    pipe.scheduler = EulerDiscreteScheduler(*BETAS, timestep_spacing="trailing", steps_offset=1)
    scheduler = Euler(num_steps=steps, spacing="trailing", offset=0)
    theirs = pipe(list(PROMPTS), latents=x_T, num_inference_steps=steps, guidance_scale=0.0, output_type="latent").images
    ours = sample(sd, start_of(scheduler, sd, x_T), scheduler)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-5, check_dtype=False)


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))


@pytest.fixture
def tiny(lcm: Path, xl_folder: Path, folders: dict[str, Path]) -> dict[str, Path]:
    """By the model that it stands for."""
    return {"lcm": lcm, "sd_turbo": folders["epsilon"], "sdxl_turbo": xl_folder}


def given(name: str, folder: Path, tmp_path: Path, *more: str) -> list[str]:
    small = [
        f"model={name}",
        f"model.path={folder}",
        "zoo=lab",
        "metrics=lab",
        "device=cpu",
        "dataset=prompt",
        "dataset.prompt=a cat",
    ]
    return [*small, "tracker=none", f"outputs={tmp_path}", *more]


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("name", ["lcm", "sd_turbo", "sdxl_turbo"])
def test_every_method_alone_is_a_command(
    tiny: dict[str, Path], tmp_path: Path, name: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In four steps from pure noise to a clean latent."""
    overrides = given(name, tiny[name], tmp_path, f"method={method}", "model.truncate_prompts=true")
    if method == "sdedit":
        overrides = [override for override in overrides if not override.startswith("dataset")]
        overrides += ["dataset=lab_pictures", "dataset.limit=1"]
    refusals = {"adjoint_dpm": "few for it (at least 5): method/gradients=checkpoint"}
    if name == "sdxl_turbo":
        refusals["adjoint_tuning"] = "learns for Stable Diffusion 1 and 2 alone"
    if method in refusals:
        with pytest.raises(SystemExit) as left:
            command_line.preflight(overrides, preparation.prepare)
        assert left.value.code == 2 and refusals[method] in capsys.readouterr().err
        if method == "adjoint_tuning":
            return
        overrides.append("method/gradients=checkpoint")
    command_line.preflight(overrides, preparation.prepare)
    job = preparation.prepare(composition.composed(overrides))
    steps = 1 if method == "reno" and name != "lcm" else 4  # ReNO's own on turbo models
    assert len(job.grid) == steps + 1 and job.grid[0].t == 999 and not job.grid[-1].sigma
    assert job.model.guidance_scale == 1


@pytest.mark.parametrize(
    ("name", "sampler"),
    [("lcm", Lcm()), ("sd_turbo", Euler(num_steps=4, spacing="trailing", offset=0)), ("sdxl_turbo", Ddpm(num_steps=4))],
)
def test_each_brings_its_sampler_which_others_replace(tiny: dict[str, Path], tmp_path: Path, name: str, sampler: Scheduler) -> None:
    for more, wanted in (([], sampler), (["scheduler=lcm"], Lcm()), (["scheduler.num_steps=1"], None)):
        for method in ("base", "freedom"):
            cfg = composition.composed(given(name, tiny[name], tmp_path, f"method={method}", "metrics=none", *more))
            job = preparation.prepare(cfg)
            if wanted is None:
                assert len(job.grid) == 2 and job.grid[0].t == 999
            elif method == "base" or more:
                assert job.scheduler == wanted


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lcm", ["method=base"]), ("lcm", ["method=freedom", "scheduler=lcm"]), ("sd_turbo", ["method=code"]),
        ("lcm", ["method=doodl", "method.num_updates=1", "method.num_crops=0"]), ("sdxl_turbo", ["method=base"]),
        ("sdxl_turbo", ["method=mpgd", "scheduler.num_steps=1"]),
    ],
)  # fmt: skip
def test_a_run(tiny: dict[str, Path], tmp_path: Path, name: str, options: list[str]) -> None:
    job = preparation.prepare(composition.composed(given(name, tiny[name], tmp_path, *options, "metrics=none")))
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()


def test_the_embedded_guidance_decides_a_sample(lcm: Path, tmp_path: Path) -> None:
    found = {
        preparation.prepare(
            composition.composed(given("lcm", lcm, tmp_path, "method=base", "metrics=none", f"model.embedded_guidance={value}"))
        ).folder.path
        for value in ("8.5", "4", "null")
    }
    assert len(found) == 3
