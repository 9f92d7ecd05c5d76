"""Models without text: pixels (DDPM) and classes (DiT), against diffusers' own pipelines on tiny folders of its own classes."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from tiny_pixel import DDPM, LABELS, change, save_ddpm, save_dit
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.dit import Dit
from guidedgen.models.dit_folder import NULL, DitFolder
from guidedgen.models.latent import LatentModel
from guidedgen.models.pixel import Pixel
from guidedgen.models.pixel_folder import PixelFolder
from guidedgen.process import Scheduler
from guidedgen.process.schedulers import Ddim, Ddpm
from guidedgen.runs import composition, config, experiment, preparation

CLASSES = ("tench", "toilet paper")
UNSHIFTED: dict[str, Any] = {"spacing": "leading", "offset": 0, "end": "clean"}
SCHEDULER = "scheduler/scheduler_config.json"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of numpy 2


@pytest.fixture(scope="session")
def made(dit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both families, each as it is saved now and as the first repositories are."""
    return {
        "ddpm": save_ddpm(tmp_path_factory.mktemp("ddpm")), "loose": save_ddpm(tmp_path_factory.mktemp("loose"), loose=True),
        "dit": dit_folder, "first": save_dit(tmp_path_factory.mktemp("first"), first=True),
    }  # fmt: skip


def pixel(folder: Path, **options: Any) -> Pixel:
    return Pixel(path=str(folder), name="tiny", **{"dtype": "float64", **options})


def dit(folder: Path, **options: Any) -> Dit:
    return Dit(path=str(folder), name="tiny", **{"dtype": "float64", **options})


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def pipeline(folder: Path, kind: str, dtype: torch.dtype = torch.float64) -> Any:
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(model: LatentModel, scheduler: Scheduler, prompts: Sequence[str], seed: int = 0) -> Tensor:
    """b c h w: the chain's last latents, with noise from a generator in the order in which diffusers' pipelines draw it."""
    generator, shape = drawn(seed), (len(prompts), *model.latent_shape)

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, denoise = noise()[:, None], model.denoiser(tasks(*prompts))
    with torch.no_grad():
        for t, s in pairwise(scheduler.grid(model.schedule)):
            mean, std = scheduler.transition(x, denoise(x, t), t, s)
            x = mean + std * noise()[:, None] if std else mean
    return x[:, 0]


def changed(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    copy = Path(shutil.copytree(folder, copy))
    change(copy / name, **values)
    return copy


# Pixels, against diffusers


def last_state(pipe: Any, **given: Any) -> tuple[Tensor, Tensor]:
    """A pipeline's last state before it is made a picture, and the picture."""
    states, step = [], pipe.scheduler.step

    def noted(*positional: Any, **named: Any) -> Any:
        found = step(*positional, **named)
        states.append(found.prev_sample)
        return found

    pipe.scheduler.step = noted
    pictures = pipe(generator=drawn(), output_type="pt", **given).images
    return states[-1], pictures


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["ddpm", "loose"])
def test_a_chain_of_pixels_is_ddim_s(made: dict[str, Path], kind: str, eta: float) -> None:
    """Whose predictions are clipped, as the scheduler says."""
    theirs, pictures = last_state(pipeline(made[kind], "DDIMPipeline"), batch_size=2, eta=eta, num_inference_steps=6)
    model = pixel(made[kind])
    ours = sample(model, Ddim(num_steps=6, eta=eta, **UNSHIFTED), ["", "a cat"])
    assert model.clip == 1 and model.latent_shape == (3, 16, 16) and model.image_size == (16, 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(model.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)
    assert pictures.std() > 0.02


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize(("trained", "steps"), [(20, 20), (1000, 8)])
def test_a_chain_of_pixels_is_ddpm_s(made: dict[str, Path], tmp_path: Path, variance: Any, trained: int, steps: int) -> None:
    options = {"variance_type": f"fixed_{variance}", "num_train_timesteps": trained}
    folder = changed(made["ddpm"], tmp_path / "copy", SCHEDULER, **options)
    theirs, pictures = last_state(pipeline(folder, "DDPMPipeline"), batch_size=2, num_inference_steps=steps)
    model = pixel(folder)
    ours = sample(model, Ddpm(num_steps=steps, variance=variance, **UNSHIFTED), ["", ""])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(model.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)
    other = sample(model, Ddpm(num_steps=steps, variance="large" if variance == "small" else "small", **UNSHIFTED), ["", ""])
    assert (ours - other).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("unet", "scheduler"),
    [
        ({}, {"clip_sample": False}), ({}, {"clip_sample_range": 0.5}), ({"center_input_sample": True}, {}),
        ({}, {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "beta_end": 0.03}),
        ({}, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ({"sample_size": [16, 24], "attention_head_dim": 4, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1}, {}),
    ],
)  # fmt: skip
def test_other_models_of_pixels_are_diffusers(tmp_path: Path, unet: dict[str, Any], scheduler: dict[str, Any]) -> None:
    folder = save_ddpm(tmp_path / "made", unet=unet, **scheduler)
    theirs, pictures = last_state(pipeline(folder, "DDIMPipeline"), batch_size=2, num_inference_steps=5)
    model = pixel(folder)
    ours = sample(model, Ddim(num_steps=5, **UNSHIFTED), ["", ""])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(model.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)
    assert pictures.shape[2:] == model.image_size and len(theirs.unique()) > 100


def test_clipping_can_be_chosen(made: dict[str, Path], tmp_path: Path) -> None:
    scheduler = Ddim(num_steps=5, **UNSHIFTED)
    plain = changed(made["ddpm"], tmp_path / "plain", SCHEDULER, clip_sample=False)
    found = {
        (name, clips): sample(pixel(folder, clip_sample=clips), scheduler, [""])
        for name, folder in (("clips", made["ddpm"]), ("plain", plain)) for clips in (None, True, False)
    }  # fmt: skip
    for same in ((("clips", None), ("clips", True)), (("plain", None), ("plain", False)), (("clips", True), ("plain", True))):
        assert torch.equal(found[same[0]], found[same[1]])
    assert torch.equal(found["clips", False], found["plain", False])
    assert (found["clips", True] - found["plain", False]).abs().max() > 1e-2
    assert found["clips", True].abs().max() <= 1 < found["plain", False].abs().max()


def test_a_picture_s_latents_are_its_pixels(made: dict[str, Path]) -> None:
    model, pictures = pixel(made["ddpm"], dtype="float32"), torch.rand(2, 3, 16, 16, generator=drawn(3))
    latents = model.encode(pictures)
    torch.testing.assert_close(latents, 2 * pictures - 1)
    torch.testing.assert_close(model.decode(latents), pictures)
    assert model.decode(torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)).flatten().tolist() == [0, 1, 0.5]
    assert model.ledger.decodes == 3


def test_prompts_and_guidance_make_no_difference_to_pixels(made: dict[str, Path]) -> None:
    """One row each, whatever is asked for; the network is called with no more than `batch_size` rows."""
    model = pixel(made["ddpm"], batch_size=2)
    point, x = model.schedule.at(500.0), torch.randn(2, 3, 3, 16, 16, generator=drawn()).double()
    model.check(tasks("a" * 10_000, ""))
    with torch.no_grad():
        denoise = model.denoiser(tasks("a cat", "two dogs, red"))
        plain = denoise(x, point)
        for scale in (0.0, 1.0, 7.5):
            assert torch.equal(denoise(x, point, scale).eps, plain.eps)
        for found in denoise.pair(x, point):
            assert torch.equal(found.x_0, plain.x_0)
        assert model.ledger.nfe == 5 * 6
        alone = denoise.subset([1])(x[1:], point)
        torch.testing.assert_close(alone.eps, plain.eps[1:], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="no conditioning"):
        _ = denoise.conditioning
    with pytest.raises(ValueError, match="no conditioning"):
        denoise.conditioned_on(torch.zeros(2, 0))


def test_what_makes_no_sense_of_pixels_is_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    for options, why in (
        ({"guidance_scale": 2.0}, "must be 1: this model is not conditioned"), ({"negative_prompt": "red"}, 'must be "": this model'),
        ({"truncate_prompts": True}, "must be false: this model"), ({"size": 32}, r"must be null or \[16, 16\]"),
        ({"offload": True}, "must be false: this model has one small network"), ({"vae_tiling": True}, "must be false"),
        ({"vae_slicing": True}, "must be false"), ({"quantization": "bnb_nf4"}, "must be null"), ({"clip_sample": 1}, "true, false"),
        ({"path": "lab"}, "no such DDPMPipeline is bundled"), ({"batch_size": 0}, "at least 1"),
    ):  # fmt: skip
        with pytest.raises(BadValue, match=why):
            pixel(**{"folder": made["ddpm"]} | options) if "path" not in options else Pixel(name="tiny", **options)
        tried("refused")
    pixel(made["ddpm"], size=16)
    pixel(made["ddpm"], size=[16, 16])
    with pytest.raises(UsageError, match="an unconditional model takes nothing that was learned elsewhere"):
        pixel(made["ddpm"], learned=str(made["ddpm"] / "unet/diffusion_pytorch_model.safetensors"))
    tried("refused")


@pytest.mark.parametrize("kind", ["ddpm", "loose"])
@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("unet", {"in_channels": 1}, "a UNet of 1 input and 3 output channels"), ("unet", {"out_channels": 6}, "3 input and 6 output"),
        ("unet", {"num_class_embeds": 10}, "num_class_embeds=10, which wants classes"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type=timestep, which wants classes"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type=fourier"),
        ("unet", {"sample_size": 15}, "halves pictures of 15 x 15"), ("unet", {"sample_size": None}, "has no sample_size"),
        ("unet", {"sample_size": [16, 16, 16]}, "is not a whole number above 0, or two"),
        ("unet", {"_class_name": "UNet2DConditionModel"}, "a unet of class UNet2DConditionModel"),
        ("unet", {"quantization_config": {}}, "a quantised unet"), ("scheduler", {"clip_sample_range": 0}, "clip_sample_range=0"),
        ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type 'sample'"), ("scheduler", {"thresholding": True}, "thresholding"),
        ("scheduler", {"trained_betas": [0.1]}, "beta_schedule"), ("scheduler", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("scheduler", {"_class_name": "PNDMScheduler"}, "a scheduler of class PNDMScheduler"),
        ("index", {"unet": [None, None]}, "names no unet"), ("index", {"_class_name": "ScoreSdeVePipeline"}, "a ScoreSdeVePipeline"),
    ],
)  # fmt: skip
def test_folders_of_pixels_that_would_be_sampled_wrongly_are_refused(
    made: dict[str, Path], tmp_path: Path, kind: str, part: str, change: dict[str, Any], why: str, tried: Callable[..., None]
) -> None:
    names = {"unet": "config.json", "scheduler": "scheduler_config.json", "index": "model_index.json"}
    place = "" if part == "index" or kind == "loose" else f"{part}/"
    copy = changed(made[kind], tmp_path / "copy", place + names[part], **change)
    with pytest.raises(UsageError, match=f"model.path=.*{why}") as caught:
        pixel(copy)
    assert "\n" not in str(caught.value)
    tried("refused")


def test_what_is_missing_of_pixels_is_named(made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    for kind, file, why in (
        ("ddpm", "unet/config.json", "has no unet/config.json"), ("loose", "config.json", "config.json"),
        ("loose", "scheduler_config.json", "scheduler_config.json"),
        ("ddpm", "unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
        ("loose", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin"),
    ):  # fmt: skip
        copy = Path(shutil.copytree(made[kind], tmp_path / f"{kind}{file.replace('/', '-')}"))
        (copy / file).unlink()
        with pytest.raises(UsageError, match=why) as caught:
            pixel(copy)
        assert "\n" not in str(caught.value)
        tried("refused")


# DiT, against diffusers


def latents_of(pipe: Any, classes: Sequence[int], guidance_scale: float, steps: int) -> tuple[Tensor, Tensor]:
    """The pipeline's last latents and its pictures."""
    found, decode = [], pipe.vae.decode

    def noted(latents: Tensor) -> Any:
        found.append(latents * pipe.vae.config.scaling_factor)
        return decode(latents)

    pipe.vae.decode = noted
    pictures = pipe(
        list(classes), guidance_scale=guidance_scale, generator=drawn(), num_inference_steps=steps, output_type="pt"
    ).images
    return found[0], pictures


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("kind", ["dit", "first"])
def test_a_chain_of_classes_is_diffusers(made: dict[str, Path], kind: str, guidance_scale: float) -> None:
    pipe, model = pipeline(made[kind], "DiTPipeline"), dit(made[kind], guidance_scale=guidance_scale)
    latents, pictures = latents_of(pipe, pipe.get_label_ids(list(CLASSES)), guidance_scale, 6)
    ours = sample(model, Ddim(num_steps=6, **UNSHIFTED), CLASSES)
    torch.testing.assert_close(ours, latents, rtol=2e-7, atol=1e-5, check_dtype=False)  # of up to 150, from alphas in float32
    torch.testing.assert_close(model.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)
    assert pictures.std() > 0.02 and pictures.shape[2:] == model.image_size == (16, 16)
    assert model.ledger.nfe == 2 * 6 * (1 if guidance_scale == 1 else 2)


def test_a_transformer_without_a_variance_is_diffusers(tmp_path: Path) -> None:
    folder = save_dit(tmp_path / "made", out_channels=4)
    latents, _ = latents_of(pipeline(folder, "DiTPipeline"), [5, 999], 3.0, 4)
    ours = sample(dit(folder, guidance_scale=3.0), Ddim(num_steps=4, **UNSHIFTED), ("5", "999"))
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5, check_dtype=False)


def test_classes_scales_and_places_matter(made: dict[str, Path]) -> None:
    """Otherwise the comparisons above would not see them mixed up."""
    scheduler = Ddim(num_steps=3, **UNSHIFTED)
    base = sample(dit(made["dit"]), scheduler, ["tench"])
    others = {
        "class": sample(dit(made["dit"]), scheduler, ["red"]), "none": sample(dit(made["dit"]), scheduler, [""]),
        "scale": sample(dit(made["dit"], guidance_scale=1.0), scheduler, ["tench"]),
        "negative prompt": sample(dit(made["dit"], negative_prompt="red"), scheduler, ["tench"]),
    }  # fmt: skip
    for name, other in others.items():
        assert (base - other).abs().max() > 1e-3, name
    assert torch.equal(base, sample(dit(made["dit"]), scheduler, ["5"]))


def test_a_negative_class_takes_the_place_of_none(made: dict[str, Path]) -> None:
    """u + w (c - u) of two chains of classes, held against the pipeline's own network."""
    model, w = dit(made["dit"], guidance_scale=2.5, negative_prompt="cat cat"), 2.5
    network = pipeline(made["dit"], "DiTPipeline").transformer
    x, point = torch.randn(1, 4, 8, 8, generator=drawn()).double(), model.schedule.at(400.0)
    with torch.no_grad():
        u, c = (network(x, torch.tensor([400]), torch.tensor([number])).sample[:, :4] for number in (3, 5))
        ours = model.denoiser(tasks("tench"))(x[:, None], point)
        pair = model.denoiser(tasks("tench")).pair(x[:, None], point)
    torch.testing.assert_close(ours.eps[:, 0], u + w * (c - u), rtol=0, atol=1e-9)
    for found, theirs in zip(pair, (u, c), strict=True):
        torch.testing.assert_close(found.eps[:, 0], theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["dit", "ddpm"])
def test_half_precision_rounds_as_diffusers_does(made: dict[str, Path], kind: str, dtype: str) -> None:
    """The time is never rounded: in bfloat16 401 would be 400. On some processors the same sums differ by a last digit."""
    own = torch.float16 if dtype == "float16" else torch.bfloat16
    x = torch.randn(2, *(4, 8, 8) if kind == "dit" else (3, 16, 16), generator=drawn()).to(own)
    time = torch.tensor([401, 401])
    with torch.no_grad():
        if kind == "dit":
            model: LatentModel = dit(made[kind], dtype=dtype, guidance_scale=1.0)
            network = pipeline(made[kind], "DiTPipeline", own).transformer
            theirs, rounded = (network(x, t, torch.tensor([5, 999])).sample[:, :4] for t in (time, time - 1))
        else:
            model = pixel(made[kind], dtype=dtype)
            unet = pipeline(made[kind], "DDPMPipeline", own).unet
            theirs, rounded = unet(x, time).sample, unet(x, time - 1).sample
        ours = model.predict(x, model.schedule.at(401.0), model.condition(tasks(*CLASSES))[0])
    assert ours.dtype == theirs.dtype == own
    digit = torch.finfo(own).eps * theirs.abs().max()
    assert (ours - theirs).abs().max() <= digit < (ours - rounded).abs().max() / 3


def test_classes_can_be_embeddings(made: dict[str, Path]) -> None:
    """Those of the classes give the same; others, differentiably, others."""
    model = dit(made["dit"], guidance_scale=3.0)
    denoise, point = model.denoiser(tasks(*CLASSES)), model.schedule.at(300.0)
    x, given = torch.randn(2, 1, 4, 8, 8, generator=drawn()).double(), denoise.conditioning
    assert given.shape == (2, 3, 16)
    assert torch.equal(denoise.conditioned_on(given)(x, point).eps, denoise(x, point).eps)
    assert torch.equal(denoise.conditioned_on(given).conditioning, given)
    free = given.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(denoise.conditioned_on(free)(x, point).x_0.square().sum(), free)
    assert gradient.abs().amax(2).min() > 0  # of every block
    step = 1e-5 * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (denoise.conditioned_on(given + way * step)(x, point).x_0.square().sum() for way in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2e-5, gradient.norm(), rtol=1e-5, atol=0)
    one = denoise.subset([1]).conditioned_on(given[1:].float())(x[1:], point)
    torch.testing.assert_close(one.eps, denoise(x, point).eps[1:], rtol=0, atol=1e-5)


# Prompts are classes


def test_every_label_of_the_pipeline_is_a_class(made: dict[str, Path]) -> None:
    pipe, folder = pipeline(made["dit"], "DiTPipeline"), dit(made["dit"]).opened
    for label, number in pipe.labels.items():
        if label != "crane":  # of several classes, of which the pipeline takes the last
            assert folder.class_of(label, "tiny") == number
    for number, written in LABELS.items():
        if number not in ("6", "8"):
            assert folder.class_of(written, "tiny") == int(number)
    assert [folder.class_of(prompt, "tiny") for prompt in ("", "0", "999", "6")] == [NULL, 0, 999, 6]


def test_prompts_that_are_no_class_are_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    model = dit(made["dit"])
    model.check(tasks("tench", "", "7", "man-eating shark"))
    for prompt, why in (
        ("tensh", "draws classes, and this is the label of none; labels like it: 'tench'"),
        ("Tench", "labels like it: 'tench'"), ("a photo of a shark", "labels like it: .*'white shark'"),
        ("xyzzy", "give a label of its classes"), ("1000", "or a number from 0 to 999"), ("-1", "a number from 0 to 999"),
        ("crane", "has this label for classes 6 and 8; give one of the numbers"), ("\u0663", "a number"), ("x" * 10_000, "a number"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"prompt .*: model=tiny .*{why}") as caught:
            model.check(tasks("tench", prompt))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        tried("refused")
    with pytest.raises(UsageError, match="model=tiny draws classes"):
        dit(made["dit"], negative_prompt="ugly").check(tasks("tench"))
    tried("refused")


def test_without_labels_prompts_are_numbers(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["dit"], tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    del index["id2label"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = dit(folder)
    model.check(tasks("", "0", "999"))
    with pytest.raises(UsageError, match="the label of none; give a number from 0 to 999"):
        model.check(tasks("tench"))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("transformer/config.json", {"norm_type": "ada_norm"}, "norm_type=ada_norm"),
        ("transformer/config.json", {"num_embeds_ada_norm": 10}, "a transformer of 10 classes"),
        ("transformer/config.json", {"num_embeds_ada_norm": None}, "a transformer of None classes"),
        ("transformer/config.json", {"out_channels": 6}, "4 input and 6 output channels"),
        ("transformer/config.json", {"sample_size": 7}, "patches of 2 on latents of side 7"),
        ("transformer/config.json", {"in_channels": 3}, "of 3 channels with a VAE of 4|3 input and 8 output"),
        ("transformer/config.json", {"cross_attention_dim": 16}, "cross_attention_dim=16"),
        ("transformer/config.json", {"_class_name": "PixArtTransformer2DModel"}, "of class PixArtTransformer2DModel"),
        ("vae/config.json", {"shift_factor": 0.1}, "a VAE with a shift_factor"), ("vae/config.json", {"in_channels": 1}, "a VAE of 1 input"),
        (SCHEDULER, {"clip_sample": True}, "clips predictions"), (SCHEDULER, {"prediction_type": "sample"}, "prediction_type"),
        ("model_index.json", {"id2label": {"0": 3}}, "id2label=.* is not labels of classes from 0 to 999"),
        ("model_index.json", {"id2label": {"1000": "x"}}, "id2label"), ("model_index.json", {"id2label": ["x"]}, "id2label"),
        ("model_index.json", {"vae": [None, None]}, "names no vae"),
    ],
)  # fmt: skip
def test_folders_of_classes_that_would_be_sampled_wrongly_are_refused(
    made: dict[str, Path], tmp_path: Path, name: str, change: dict[str, Any], why: str, tried: Callable[..., None]
) -> None:
    copy = changed(made["first"], tmp_path / "copy", name, **change)
    with pytest.raises(UsageError, match=f"model.path=.*({why})") as caught:
        dit(copy)
    assert "\n" not in str(caught.value)
    tried("refused")


def test_what_makes_no_sense_of_classes_is_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    for options, why in (
        ({"truncate_prompts": True}, "must be false: this model reads no text"), ({"size": 32}, r"must be null or \[16, 16\]"),
        ({"guidance_scale": -1.0}, "at least 0"), ({"offload": True}, "no other memory"),
    ):  # fmt: skip
        with pytest.raises(BadValue, match=why):
            dit(made["dit"], **options)
        tried("refused")
    with pytest.raises(BadValue, match="no such DiTPipeline is bundled"):
        Dit(path="lab", name="tiny")
    with pytest.raises(UsageError, match="DiT takes nothing that was learned elsewhere"):
        dit(made["dit"], learned=str(made["dit"] / "transformer/diffusion_pytorch_model.safetensors"))
    tried("refused", 2)


def test_a_table_of_positions_in_the_file_is_counted_out_anew(made: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(made["first"], tmp_path / "copy"))
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"pos_embed.pos_embed": torch.zeros(1, 16, 16)}, weights)
    scheduler = Ddim(num_steps=2, **UNSHIFTED)
    assert torch.equal(sample(dit(folder), scheduler, ["tench"]), sample(dit(made["dit"]), scheduler, ["tench"]))


# Every method runs on them, or is refused


UNPROMPTED = {"adjoint_dpm, embedding", "blip_inversion"}


@pytest.mark.parametrize(
    ("name", "clips"),
    [
        (name, clips)
        for name, method in METHODS.items()
        for clips in (True, False)
        if name not in UNPROMPTED and not (clips and method.needs.flow)  # those are refused, below
    ],
)
def test_every_method_runs_on_pixels(made: dict[str, Path], name: str, clips: bool) -> None:
    model = pixel(made["ddpm"], dtype="float32", clip_sample=clips)
    check_method(name, model, Ddim(num_steps=4, **UNSHIFTED), Ddim(num_steps=4, eta=1.0, **UNSHIFTED))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_classes(made: dict[str, Path], name: str) -> None:
    model = dit(made["dit"], dtype="float32", guidance_scale=2.0)
    check_method(name, model, Ddim(num_steps=4, **UNSHIFTED), Ddim(num_steps=4, eta=1.0, **UNSHIFTED))


def test_methods_say_what_they_need_of_a_model() -> None:
    assert {name for name, method in METHODS.items() if method.needs.prompted} == UNPROMPTED
    assert {name.partition(",")[0] for name, method in METHODS.items() if method.needs.flow} == {"doodl", "adjoint_dpm"}


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))
MODELS = {"ddpm": "ddpm_cifar10", "loose": "ddpm_cifar10", "dit": "dit_xl_256"}


def given(kind: str, made: dict[str, Path], tmp_path: Path, *more: str) -> list[str]:
    small = [
        "zoo=lab",
        "metrics=lab",
        "device=cpu",
        "dataset=prompt",
        "dataset.prompt=a cat",
        "tracker=none",
        f"outputs={tmp_path}",
    ]
    return [f"model={MODELS[kind]}", f"model.path={made[kind]}", *small, *more]


def refused(overrides: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command_line.preflight(overrides, preparation.prepare)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1, said


@pytest.mark.parametrize("kind", ["ddpm", "dit"])
@pytest.mark.parametrize("method", NAMES)
def test_every_method_alone_is_a_command(
    made: dict[str, Path], tmp_path: Path, kind: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = given(kind, made, tmp_path, f"method={method}")
    if method == "sdedit":
        overrides = [override for override in overrides if not override.startswith("dataset")]
        overrides += ["dataset=lab_pictures", "dataset.limit=1"]
        if kind == "dit":
            return  # whose pictures' prompts are no classes: below
    if method == "adjoint_tuning":
        refused(overrides, "learns for Stable Diffusion 1 and 2 alone", capsys)
        return
    if method == "blip_inversion" and kind == "ddpm":
        refused(overrides, "needs a model with prompts, which model=ddpm_cifar10 is not: method.mode=referee_only", capsys)
        overrides.append("method.mode=referee_only")
    command_line.preflight(overrides, preparation.prepare)
    job = preparation.prepare(composition.composed(overrides))
    assert type(job.model) is (Dit if kind == "dit" else Pixel)
    assert job.model.clips == (kind == "ddpm" and method not in ("doodl", "adjoint_dpm", "d_flow"))
    if method in ("base", "best_of_n", "doodl", "classifier_guidance", "universal"):
        steps = len(job.grid) - 1
        assert [point.t for point in job.grid[:-1]] == [i * (1000 // steps) for i in reversed(range(steps))]
        assert job.grid[-1].sigma == 0 and steps == (100 if method == "universal" else 50)
    if method == "adjoint_dpm":
        assert job.grid[0].t == 999 and len(job.grid) == 31


def test_embeddings_of_prompts_and_the_flow_of_clipped_predictions_are_refused(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    refused(given("ddpm", made, tmp_path, "method=adjoint_dpm", "method.what=embedding"), "is not: method.what=noise", capsys)
    for method in ("adjoint_dpm", "doodl"):
        refused(given("ddpm", made, tmp_path, f"method={method}", "model.clip_sample=true"), "model.clip_sample=false", capsys)
    refused(
        given("ddpm", made, tmp_path, "method=base", "model.vae_tiling=true"), "must be false: this model has one small", capsys
    )
    command_line.preflight(given("dit", made, tmp_path, "method=adjoint_dpm", "method.what=embedding"), preparation.prepare)
    refused(given("dit", made, tmp_path, "method=base", "dataset.prompt=a dog"), "draws classes", capsys)
    tried("refused", 5)
    tried("used")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ddpm", ["method.num_updates=0", "method.gradients.solver=explicit_adams", "method.reparameterise=true"]),
        ("ddpm", ["method.num_updates=0", "method.gradients.solver=explicit_adams", "method.reparameterise=false"]),
        ("dit", ["method.epsilon=0.1", "reward=evasion_classifier", "reward.filter.label=a red circle", 'dataset.prompt="242"']),
    ],
)
def test_the_papers_tables_are_commands(made: dict[str, Path], tmp_path: Path, kind: str, options: list[str]) -> None:
    """AdjointDPM's Table 1, a comparison of solvers, and Table 3, a classifier that is slipped past."""
    overrides = given(kind, made, tmp_path, "method=adjoint_dpm", *options)
    command_line.preflight(overrides, preparation.prepare)
    job = preparation.prepare(composition.composed(overrides))
    assert [sample.task.prompt for sample in job.samples] == ["a cat" if kind == "ddpm" else "242"]
    assert job.model.clips is False and job.grid[0].t == 999 and job.grid[-1].t == 0


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ddpm", ["method=base", "scheduler=ddpm", "scheduler.variance=large"]), ("loose", ["method=code", "method.num_particles=2"]),
        ("ddpm", ["method=doodl", "method.num_updates=1", "method.num_crops=0"]), ("ddpm", ["method=classifier_guidance"]),
        ("ddpm", ["method=adjoint_dpm", "method.num_updates=1", "scheduler.num_steps=5"]),
        ("ddpm", ["method=blip_inversion", "method.mode=referee_only", "method.num_iterations=2", "method.augmentations.count=1"]),
        ("dit", ["method=base", "model.negative_prompt=red"]), ("dit", ["method=classifier_guidance", "model.guidance_scale=1"]),
        ("dit", ["method=adjoint_dpm", "method.what=embedding", "method.num_updates=1", "scheduler.num_steps=5"]),
        ("dit", ["method=codex", "method.num_particles=2", "method.block_size=2", "method.gradient_block_size=1", "method.window=[1,0]"]),
    ],
)  # fmt: skip
def test_a_run_on_them(made: dict[str, Path], tmp_path: Path, kind: str, options: list[str]) -> None:
    small = ["scheduler.num_steps=4", "metrics=none"]
    job = preparation.prepare(composition.composed(given(kind, made, tmp_path, *small, *options)))
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()


def test_a_picture_of_the_lab_is_edited_in_pixels(made: dict[str, Path], tmp_path: Path) -> None:
    overrides = [o for o in given("ddpm", made, tmp_path, "method=sdedit", "metrics=none") if not o.startswith("dataset")]
    job = preparation.prepare(
        composition.composed([*overrides, "dataset=lab_pictures", "dataset.limit=1", "scheduler.num_steps=4"])
    )
    experiment.run(job)
    assert job.folder.done and not job.folder.failures()


def test_what_decides_a_sample_is_another_run(made: dict[str, Path], tmp_path: Path) -> None:
    def prepared(kind: str, *more: str) -> Any:
        return preparation.prepare(composition.composed(given(kind, made, tmp_path, "method=base", *more)))

    pixels = [prepared("ddpm", *more) for more in ((), ("model.clip_sample=false",), ("scheduler=ddpm",))]
    pixels += [prepared("ddpm", "scheduler=ddpm", "scheduler.variance=large"), prepared("loose")]
    classes = [prepared("dit", *more) for more in ((), ("model.guidance_scale=2",), ("model.negative_prompt=red",))]
    assert len({job.folder.path for job in (*pixels, *classes)}) == 8
    assert {*pixels[-1].contents["model"]} == {"config.json", "diffusion_pytorch_model.bin", "scheduler_config.json"}
    other = changed(made["dit"], tmp_path / "other", "model_index.json", id2label={"7": "a cat"})
    assert prepared("dit", f"model.path={other}").folder.path != classes[0].folder.path
    # What older runs lack: they were of this kind.
    from guidedgen.runs import older

    stored = older.first({"model": {"clip_sample": None, "path": "x"}, "scheduler": {"variance": "small", "num_steps": 4}})
    assert stored == {"model": {"path": "x"}, "scheduler": {"num_steps": 4}}


# By what the folder says


@pytest.mark.parametrize("kind", ["ddpm", "loose", "dit"])
def test_the_family_is_known_by_the_folder(made: dict[str, Path], tmp_path: Path, kind: str, tried: Callable[..., None]) -> None:
    small = [
        "zoo=lab",
        "metrics=none",
        "device=cpu",
        f"outputs={tmp_path}",
        "method=base",
        "dataset=prompt",
        "dataset.prompt=a cat",
    ]

    def found(*more: str) -> Any:
        return preparation.prepare(composition.composed(["model=diffusers", f"model.path={made[kind]}", *small, *more])).model

    model = found()
    assert type(model) is (Dit if kind == "dit" else Pixel) and model.guidance_scale == (4.0 if kind == "dit" else 1.0)
    if kind == "dit":
        with pytest.raises(UsageError, match="is for models of pixels, and this model has latents"):
            found("model.clip_sample=false")
    else:
        assert not found("model.clip_sample=false").clips
        with pytest.raises(UsageError, match="must be 1: this model is not conditioned"):
            found("model.guidance_scale=3")
    assert families.reads(path=str(made[kind])) == ((DitFolder if kind == "dit" else PixelFolder).needed(str(made[kind])),)
    tried("refused")
    tried("used")


def test_the_noise_levels_are_the_repository_s(made: dict[str, Path]) -> None:
    from diffusers import DDPMScheduler

    ours = pixel(made["loose"]).schedule.alphas_cumprod
    torch.testing.assert_close(ours, DDPMScheduler(**DDPM).alphas_cumprod.double(), rtol=1e-4, atol=0)
