"""Stable Diffusion XL: against diffusers' own pipeline on tiny folders of its own classes, and what is refused of a folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_xl import StableDiffusionXl
from guidedgen.process import Scheduler
from guidedgen.process.schedulers import Ddim, Euler
from guidedgen.runs import composition, config, experiment, preparation

PROMPTS = ("a cat", "two dogs, red")
LENGTH = 12
EULER = Euler(num_steps=5)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of numpy 2


def model(folder: Path, **options: Any) -> StableDiffusionXl:
    return StableDiffusionXl(path=str(folder), name="tiny", **options)


def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(sd: StableDiffusionXl, x_T: Tensor, scheduler: Scheduler = EULER, prompts: Sequence[str] = PROMPTS) -> Tensor:  # noqa: N803
    """b c h w -> the chain's last latents."""
    denoise, x = sd.denoiser(tasks(*prompts)), x_T[:, None]
    with torch.no_grad():
        for t, s in pairwise(scheduler.grid(sd.schedule)):
            x, std = scheduler.transition(x, denoise(x, t), t, s)
            assert std == 0
    return x[:, 0]


def changed(folder: Path, copy: Path, part: str, **values: Any) -> Path:
    """A copy whose config of a part has other values; None takes a key out of model_index.json."""
    copy = Path(shutil.copytree(folder, copy))
    name = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(part, f"{part}/config.json")
    (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | values))
    return copy


# Against diffusers


@pytest.mark.parametrize("negative", ["", "red"])
@pytest.mark.parametrize("zeros", [True, False])
def test_prompts_are_encoded_as_diffusers_does(xl_folder: Path, tmp_path: Path, negative: str, zeros: bool) -> None:
    folder = changed(xl_folder, tmp_path / "copy", "index", force_zeros_for_empty_prompt=zeros)
    cond, uncond, pooled, unpooled = pipeline(folder).encode_prompt(
        list(PROMPTS), device="cpu", do_classifier_free_guidance=True, negative_prompt=negative or None
    )
    ours, other = model(folder, negative_prompt=negative, dtype="float64").condition(tasks(*PROMPTS))
    torch.testing.assert_close(ours.tokens, cond, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.tokens.expand_as(uncond), uncond, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.pooled.expand_as(unpooled), unpooled, rtol=0, atol=1e-6)
    assert (not other.tokens.any() and not other.pooled.any()) == (zeros and not negative)


@pytest.mark.parametrize("size", [None, (24, 16)])
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, ""), (5.0, ""), (3.0, "a cat")])
@pytest.mark.parametrize("kind", ["euler", "ddim"])
def test_a_chain_is_diffusers(
    xl_folder: Path, kind: str, guidance_scale: float, negative_prompt: str, size: tuple[int, int] | None
) -> None:
    """In float64, as rounding that guidance enlarges differs from machine to machine; diffusers' schedulers round to float32,
    and latents are up to 40.
    """
    from diffusers import DDIMScheduler

    pipe = pipeline(xl_folder)
    scheduler: Scheduler = EULER
    if kind == "ddim":
        pipe.scheduler = DDIMScheduler(
            1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        scheduler = Ddim(num_steps=5)
    sd = model(
        xl_folder,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        dtype="float64",
        size=list(size) if size else None,
    )
    height, width = sd.image_size
    assert (height, width) == (size or (16, 16)) and sd.latent_shape == (4, height // 2, width // 2)
    x_T = normal(2, *sd.latent_shape).double()  # noqa: N806
    given = {
        "latents": x_T, "num_inference_steps": 5, "guidance_scale": guidance_scale, "height": height, "width": width,
        "negative_prompt": [negative_prompt] * 2 if negative_prompt else None,
    }  # fmt: skip
    theirs = pipe(list(PROMPTS), **given, output_type="latent").images
    ours = sample(sd, x_T, scheduler)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5, check_dtype=False)
    pictures = pipe(list(PROMPTS), **given, output_type="pt").images
    assert pictures.std() > 0.02
    torch.testing.assert_close(sd.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)


def test_a_v_prediction_is_diffusers(xl_folder: Path, tmp_path: Path) -> None:
    """On a schedule that ends without signal too."""
    folder = changed(xl_folder, tmp_path / "v", "scheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    sd = model(folder, dtype="float64", guidance_scale=3.0)
    x_T = normal(2, *sd.latent_shape).double()  # noqa: N806
    theirs = pipeline(folder)(list(PROMPTS), latents=x_T, num_inference_steps=5, guidance_scale=3.0, output_type="latent").images
    torch.testing.assert_close(sample(sd, x_T), theirs, rtol=1e-6, atol=1e-5, check_dtype=False)


def test_a_vae_with_statistics_is_diffusers(xl_folder: Path, tmp_path: Path) -> None:
    mean, std = [0.3, -0.2, 0.1, 0.5], [1.5, 0.8, 2.0, 1.1]
    folder = changed(xl_folder, tmp_path / "copy", "vae", latents_mean=mean, latents_std=std)
    sd, x_T = model(folder, dtype="float64"), normal(1, 4, 8, 8).double()  # noqa: N806
    given = {"latents": x_T, "num_inference_steps": 2, "guidance_scale": 5.0}
    pipe = pipeline(folder)
    pictures, latents = (pipe("a cat", **given, output_type=kind).images for kind in ("pt", "latent"))
    torch.testing.assert_close(sd.decode(latents), pictures, rtol=0, atol=1 / 255, check_dtype=False)
    assert (sd.decode(latents) - model(xl_folder, dtype="float64").decode(latents)).abs().max() > 0.05
    torch.testing.assert_close(sd.from_vae(sd.for_vae(latents)), latents, rtol=0, atol=1e-12)


def test_prompts_scales_and_sizes_matter(xl_folder: Path) -> None:
    """Otherwise the comparison above would not see them mixed up."""
    sd, x_T = model(xl_folder), normal(1, 4, 8, 8)  # noqa: N806
    base = sample(sd, x_T, prompts=["a cat"])
    for other in (
        sample(sd, x_T, prompts=["two dogs, red"]), sample(model(xl_folder, guidance_scale=2.0), x_T, prompts=["a cat"]),
        sample(model(xl_folder, negative_prompt="red"), x_T, prompts=["a cat"]),
    ):  # fmt: skip
        assert (base - other).abs().max() > 1e-3
    point, cond = sd.schedule.at(500), sd.condition(tasks("a cat"))[0]
    with torch.no_grad():
        told = [model(xl_folder, size=size).predict(x_T, point, cond) for size in (None, [24, 16], [16, 24])]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(told))


def test_the_autoencoder_computes_in_float32_where_float16_overflows(xl_folder: Path, tmp_path: Path) -> None:
    plain = changed(xl_folder, tmp_path / "copy", "vae", force_upcast=False)
    assert model(xl_folder, dtype="float16").vae.dtype == torch.float32 == model(xl_folder).vae.dtype
    assert model(plain, dtype="float16").vae.dtype == torch.float16
    assert model(xl_folder, dtype="bfloat16").vae.dtype == torch.bfloat16
    latents = normal(1, 4, 8, 8)
    torch.testing.assert_close(
        model(xl_folder, dtype="float16").decode(latents), model(xl_folder).decode(latents), rtol=0, atol=1 / 255
    )


# What the folder says of itself


def test_nothing_is_loaded_to_say_so(xl_folder: Path) -> None:
    sd = model(xl_folder)
    assert (sd.latent_shape, sd.image_size, sd.max_tokens, sd.predicts) == ((4, 8, 8), (16, 16), LENGTH, "epsilon")
    assert sd.guidance_scale == 7.5 and StableDiffusionXl.guidance_of(str(xl_folder)) == 5.0
    assert not {"unet", "vae", "text_encoders", "tokenizers"} & set(vars(sd))
    names = {path.name for path in sd.files}
    parts = {"unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    assert names == {"model_index.json", *parts} and all(path.exists() for path in sd.files)


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("index", {"requires_aesthetics_score": True}, "a refiner"),
        ("index", {"text_encoder": [None, None]}, "names no text_encoder;"),
        ("index", {"force_zeros_for_empty_prompt": "no"}, "force_zeros_for_empty_prompt=no is not true or false"),
        ("index", {"text_encoder": ["transformers", "CLIPTextModelWithProjection"]}, "of class CLIPTextModelWithProjection"),
        ("index", {"scheduler": ["diffusers", "EDMEulerScheduler"]}, "of class EDMEulerScheduler is not supported"),
        ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "of class EDMDPMSolverMultistepScheduler"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, r"a scheduler that clips predictions \(clip_sample\)"),
        ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type 'sample'"),
        ("scheduler", {"prediction_type": "v_prediction", "timestep_type": "continuous"}, "timestep_type=continuous"),
        ("unet", {"addition_embed_type": "text"}, "addition_embed_type=text"),
        ("unet", {"addition_embed_type": None}, "addition_embed_type=None"),
        ("unet", {"projection_class_embeddings_input_dim": 32}, "told 32 numbers of text and size, where they are 36"),
        ("unet", {"addition_time_embed_dim": None}, "told 36 numbers of text and size, where they are 12"),
        ("unet", {"in_channels": 9}, "a UNet of 9 input channels"),
        ("unet", {"cross_attention_dim": 16}, "texts of 16 numbers a token with a text encoder of 24"),
        ("unet", {"encoder_hid_dim_type": "ip_image_proj"}, "encoder_hid_dim_type"),
        ("unet", {"class_embed_type": "projection"}, "class_embed_type"),
        ("unet", {"time_cond_proj_dim": 3}, "time_cond_proj_dim=3 is not null or a whole number above 3"),
        ("unet", {"quantization_config": {}}, "a quantised unet"),
        ("vae", {"latent_channels": 3}, "a VAE of 3 latent channels"),
        ("vae", {"latents_mean": [0.0], "latents_std": [1.0]}, "latents_std of other than 4 channels"),
        ("vae", {"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]}, "a latents_std of 0"),
        ("vae", {"latents_mean": "0"}, "latents_mean=0 is not null or a list of numbers"),
        ("text_encoder_2", {"architectures": ["CLIPTextModel"]}, "a text_encoder_2 of type clip_text_model"),
        ("text_encoder_2", {"max_position_embeddings": 9}, "text encoders that read 12 and 9 tokens"),
    ],
)
def test_folders_that_would_be_sampled_wrongly_are_refused(
    xl_folder: Path, tmp_path: Path, part: str, change: dict[str, Any], why: str, tried: Callable[..., None]
) -> None:
    with pytest.raises(UsageError, match=f"model.path=.*{why}") as caught:
        model(changed(xl_folder, tmp_path / "copy", part, **change))
    assert "\n" not in str(caught.value)
    tried("refused")


def test_other_pipelines_are_refused(xl_folder: Path, folders: dict[str, Path], tried: Callable[..., None]) -> None:
    with pytest.raises(UsageError, match="a StableDiffusionPipeline .* is not supported; supported: Stable Diffusion XL"):
        model(folders["epsilon"])
    with pytest.raises(UsageError, match="a StableDiffusionXLPipeline .* is not supported; supported: Stable Diffusion 1"):
        StableDiffusion(path=str(xl_folder), name="x")
    with pytest.raises(UsageError, match=r"model\.learned=/no/such"):
        model(xl_folder, learned="/no/such")
    with pytest.raises(BadValue, match="embedded_guidance"):
        model(xl_folder, embedded_guidance=3.0)
    with pytest.raises(BadValue, match="multiples of 2"):
        model(xl_folder, size=[15, 16])
    tried("refused", 5)


def test_an_img2img_pipeline_of_the_same_parts_is_the_same_model(
    xl_folder: Path, tmp_path: Path, tried: Callable[..., None]
) -> None:
    folder = changed(
        xl_folder, tmp_path / "copy", "index", _class_name="StableDiffusionXLImg2ImgPipeline", requires_aesthetics_score=False
    )
    x_T = normal(1, 4, 8, 8)  # noqa: N806
    assert torch.equal(sample(model(folder), x_T, prompts=["a cat"]), sample(model(xl_folder), x_T, prompts=["a cat"]))
    tried("used")


def test_long_prompts_are_refused(xl_folder: Path) -> None:
    long = "cat " * 20
    with pytest.raises(UsageError, match="reads 10"):
        model(xl_folder).check(tasks("a cat", long))
    model(xl_folder, truncate_prompts=True).check(tasks(long))
    cond, *_ = pipeline(xl_folder).encode_prompt([long], device="cpu", do_classifier_free_guidance=False)
    ours = model(xl_folder, truncate_prompts=True, dtype="float64").encode_prompts([long])
    torch.testing.assert_close(ours.tokens, cond, rtol=0, atol=1e-6)


# Every method runs on it


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_it(xl_folder: Path, name: str) -> None:
    check_method(name, model(xl_folder, guidance_scale=2.0), Ddim(num_steps=4), Ddim(num_steps=4, eta=1.0))


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))


def given(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    small = ["model=sdxl", f"model.path={folder}", "zoo=lab", "metrics=lab", "device=cpu", "dataset=prompt", "dataset.prompt=a cat"]
    return [*small, "tracker=none", f"outputs={tmp_path}", *more]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_alone_is_a_command(xl_folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = given(xl_folder, tmp_path, f"method={name}")
    if name == "sdedit":
        own = ["dataset=lab_pictures", "dataset.limit=1", "model.truncate_prompts=true"]
        overrides = [override for override in overrides if not override.startswith("dataset")] + own
    if name == "adjoint_tuning":
        with pytest.raises(SystemExit) as left:
            command_line.preflight(overrides, preparation.prepare)
        assert left.value.code == 2 and "learns for Stable Diffusion 1 and 2 alone" in capsys.readouterr().err
        return
    command_line.preflight(overrides, preparation.prepare)


@pytest.mark.parametrize(
    "options",
    [["method=base"], ["method=code", "method.num_particles=2"], ["method=doodl", "method.num_updates=1", "method.num_crops=0"]],
)
def test_a_run_on_it(xl_folder: Path, tmp_path: Path, options: list[str]) -> None:
    job = preparation.prepare(composition.composed(given(xl_folder, tmp_path, *options, "scheduler.num_steps=4", "metrics=none")))
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()
    assert any("model_index.json" in name for name in job.contents["model"])


def test_the_model_s_own_sampler_is_the_pipeline_s(xl_folder: Path, tmp_path: Path) -> None:
    """50 of Euler's steps, as the pipeline takes them by default."""
    job = preparation.prepare(composition.composed(given(xl_folder, tmp_path, "method=base", "metrics=none")))
    theirs = pipeline(xl_folder).scheduler
    theirs.set_timesteps(50)
    assert [point.t for point in job.grid[:-1]] == theirs.timesteps.tolist()
    assert not job.grid[-1].sigma and not job.scheduler.stochastic and job.model.guidance_scale == 5.0
    torch.testing.assert_close(
        torch.tensor([point.sigma / point.alpha for point in job.grid]), theirs.sigmas, rtol=1e-4, atol=1e-6, check_dtype=False
    )


def test_the_family_is_known_by_the_folder(xl_folder: Path, tried: Callable[..., None]) -> None:
    found = families.any_model(path=str(xl_folder), name="x")
    assert type(found) is StableDiffusionXl and found.guidance_scale == 5.0
    assert "text_encoder_2/config.json" in families.reads(path=str(xl_folder))[0].required
    tried("used")
