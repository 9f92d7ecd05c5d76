"""Any Stable Diffusion folder, against diffusers' own pipeline on the same latents."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from steps import step
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.lab.networks import WEIGHTS
from guidedgen.methods import Method
from guidedgen.methods.base import Base
from guidedgen.methods.classifier_guidance import ClassifierGuidance
from guidedgen.methods.codex import Codex
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.guidance import reward_gradient
from guidedgen.methods.mpgd import Mpgd
from guidedgen.methods.problem import Problem
from guidedgen.methods.universal import Universal
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process.formulas import x0_from_eps
from guidedgen.process.schedulers import Ddim, Ddpm

PROMPTS = ("a cat", "two dogs, red")
PREDICTIONS = ("epsilon", "v_prediction")


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def model(path: Path | str, **options: Any) -> StableDiffusion:
    return StableDiffusion(path=str(path), name="tiny", **options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(sd: StableDiffusion, x_T: Tensor, prompts: tuple[str, ...] = PROMPTS, steps: int = 4) -> Tensor:  # noqa: N803
    """b c h w -> images."""
    scheduler, denoise = Ddim(num_steps=steps), sd.denoiser(tasks(*prompts))
    x = x_T[:, None]
    with torch.no_grad():
        for t, s in pairwise(scheduler.grid(sd.schedule)):
            x = step(scheduler, x, denoise(x, t).eps, t, s, None)
        return sd.decode(x[:, 0])


def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# What the folder says of itself


def test_shapes_are_read_from_the_folder(folders: dict[str, Path]) -> None:
    small, large = (model(folders[prediction]) for prediction in PREDICTIONS)
    assert (small.latent_shape, small.image_size, small.max_tokens, small.predicts) == ((4, 8, 8), (32, 32), 12, "epsilon")
    assert (large.latent_shape, large.image_size, large.max_tokens, large.predicts) == ((3, 16, 16), (32, 32), 12, "v_prediction")


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_schedule_is_the_folder_s(folders: dict[str, Path], prediction: str) -> None:
    theirs = pipeline(folders[prediction]).scheduler.alphas_cumprod.double()
    torch.testing.assert_close(model(folders[prediction]).schedule.alphas_cumprod, theirs, rtol=1e-4, atol=0)


def test_nothing_is_loaded_to_say_so(folders: dict[str, Path]) -> None:
    sd = model(folders["epsilon"])
    assert (len(sd.schedule), sd.image_size, sd.max_tokens) == (1000, (32, 32), 12)
    assert not {"unet", "vae", "text_encoder", "tokenizer"} & set(vars(sd))


# Against diffusers


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, ""), (7.5, ""), (3.0, "a cat")])
def test_a_chain_is_diffusers(folders: dict[str, Path], prediction: str, guidance_scale: float, negative_prompt: str) -> None:
    """In float64, in which convolutions are computed in the pipeline's order; its scheduler rounds to float32."""
    sd = model(folders[prediction], guidance_scale=guidance_scale, negative_prompt=negative_prompt, dtype="float64")
    x_T = normal(2, *sd.latent_shape).double()  # noqa: N806
    theirs = pipeline(folders[prediction]).to(torch.float64)(
        list(PROMPTS), latents=x_T, num_inference_steps=4, guidance_scale=guidance_scale, negative_prompt=[negative_prompt] * 2,
        output_type="pt",
    ).images  # fmt: skip
    ours = sample(sd, x_T)
    assert ours.shape == (2, 3, 32, 32)
    assert ours.std() > 0.02  # there is something to compare
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_convolutions_have_channels_innermost_in_float32_on_a_cpu(folders: dict[str, Path], prediction: str) -> None:
    """Which changes nothing but rounding, and is not seen from outside."""
    single, double = (model(folders[prediction], dtype=dtype) for dtype in ("float32", "float64"))
    for sd, innermost in ((single, True), (double, False)):
        weights = [
            weight for network in sd.networks for weight in network.parameters() if weight.ndim == 4 and weight[0, 0].numel() > 1
        ]
        assert weights and all(weight.is_contiguous(memory_format=torch.channels_last) == innermost for weight in weights)
    x = normal(2, 1, *single.latent_shape)
    t = single.schedule.at(400.0)
    with torch.no_grad():
        eps, pictures = single.denoiser(tasks(*PROMPTS))(x, t).eps, single.decode(x[:, 0])
        assert eps.is_contiguous() and pictures.is_contiguous() and single.encode(pictures).is_contiguous()
        torch.testing.assert_close(eps.double(), double.denoiser(tasks(*PROMPTS))(x.double(), t).eps, rtol=0, atol=5e-5)
        torch.testing.assert_close(pictures.double(), double.decode(x[:, 0].double()), rtol=0, atol=5e-5, check_dtype=False)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_prompts_scales_and_negative_prompts_matter(folders: dict[str, Path], prediction: str) -> None:
    """Otherwise the comparison above would not see them mixed up."""
    x_T = normal(1, *model(folders[prediction]).latent_shape)  # noqa: N806
    base = sample(model(folders[prediction]), x_T, ("a cat",))
    for other in (
        sample(model(folders[prediction]), x_T, ("two dogs, red",)),
        sample(model(folders[prediction], guidance_scale=2.0), x_T, ("a cat",)),
        sample(model(folders[prediction], negative_prompt="red"), x_T, ("a cat",)),
    ):
        assert (base - other).abs().max() > 1e-3


def test_truncated_prompts_are_cut_as_diffusers_does(folders: dict[str, Path]) -> None:
    long = ["a red cat and " * 5, "cat"]
    sd = model(folders["epsilon"], truncate_prompts=True)
    sd.check(tasks(*long))
    cond, uncond = pipeline(folders["epsilon"]).encode_prompt(long, "cpu", 1, True)
    torch.testing.assert_close(sd.encode_prompts(long), cond, rtol=0, atol=1e-6)
    torch.testing.assert_close(sd.encode_prompts([""]).expand_as(uncond), uncond, rtol=0, atol=1e-6)


def lab() -> Path:
    """The bundled model, or a skip where it has not been trained."""
    folder = WEIGHTS / "generator"
    for part in ("unet", "vae", "text_encoder"):
        if not list((folder / part).glob("*.safetensors")):
            pytest.skip(f"{folder / part} has no weights: python scripts/train_lab.py")
    return folder


def test_the_bundled_model_is_a_plain_diffusers_folder() -> None:
    folder, sd = lab(), model("lab")
    x_T = normal(2, *sd.latent_shape)  # noqa: N806
    prompts = ("a red circle", "a blue square and a green circle")
    sd.check(tasks(*prompts))
    theirs = pipeline(folder)(list(prompts), latents=x_T, num_inference_steps=3, guidance_scale=7.5, output_type="pt").images
    torch.testing.assert_close(sample(sd, x_T, prompts, steps=3), theirs, rtol=0, atol=1e-4)
    assert theirs.shape[-2:] == sd.image_size


# Batches and particles


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_rows_per_call_change_nothing_but_round_off(folders: dict[str, Path], guidance_scale: float) -> None:
    x, results = normal(2, 3, 4, 8, 8).double(), []
    for size in (1, 4, 8):
        sd = model(folders["epsilon"], guidance_scale=guidance_scale, batch_size=size, dtype="float64")
        with torch.no_grad():
            results.append(sd.denoiser(tasks(*PROMPTS))(x, sd.schedule.at(500)).eps)
    assert results[0].shape == x.shape
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-9, atol=1e-9)


def test_particles_share_the_prompt_of_their_sample(folders: dict[str, Path]) -> None:
    sd = model(folders["epsilon"], batch_size=4, dtype="float64")  # a call holds particles of two samples
    x, t = normal(2, 3, 4, 8, 8).double(), sd.schedule.at(300)
    with torch.no_grad():
        together = sd.denoiser(tasks(*PROMPTS))(x, t).eps
        for i, prompt in enumerate(PROMPTS):
            alone = sd.denoiser(tasks(prompt))
            for k in range(3):
                torch.testing.assert_close(together[i, k], alone(x[i : i + 1, k : k + 1], t).eps[0, 0], rtol=1e-9, atol=1e-9)
        swapped = sd.denoiser(tasks(*PROMPTS[::-1]))(x, t).eps
    assert (together - swapped).abs().amax((1, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize(("guidance_scale", "rows"), [(1.0, 1), (7.5, 2)])
def test_the_ledger_counts_rows(folders: dict[str, Path], guidance_scale: float, rows: int) -> None:
    sd = model(folders["epsilon"], guidance_scale=guidance_scale, batch_size=4)
    denoise, t = sd.denoiser(tasks(*PROMPTS)), sd.schedule.at(300)
    assert sd.ledger.counts() == {"nfe": 0, "nfe_backward": 0, "decodes": 0, "reward_calls": 0}
    with torch.no_grad():
        denoise(normal(2, 3, 4, 8, 8), t)
    assert sd.ledger.counts() == {"nfe": 6 * rows, "nfe_backward": 0, "decodes": 0, "reward_calls": 0}
    x = normal(2, 3, 4, 8, 8).requires_grad_()
    eps = denoise(x, t).eps
    assert sd.ledger.nfe_backward == 0
    torch.autograd.grad(eps.square().sum(), x)
    assert sd.ledger.counts() == {"nfe": 12 * rows, "nfe_backward": 6 * rows, "decodes": 0, "reward_calls": 0}
    sd.decode(normal(3, 4, 8, 8))
    assert sd.ledger.decodes == 3
    assert {"text", "denoise", "decode"} <= set(sd.ledger.seconds)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_networks_are_frozen_and_gradients_flow_through(folders: dict[str, Path], prediction: str) -> None:
    """d eps / d x_t and d image / d x_0 against finite differences, in double precision."""
    sd = model(folders[prediction], dtype="float64", guidance_scale=2.0)
    sd.load()
    for network in (sd.unet, sd.vae, sd.text_encoder):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float64}
    denoise, t = sd.denoiser(tasks("a cat")), sd.schedule.at(300)
    x, direction = (normal(1, 1, *sd.latent_shape, seed=i).double() for i in (0, 1))
    leaf = x.clone().requires_grad_()
    weight = normal(1, 1, *sd.latent_shape, seed=2).double()
    (gradient,) = torch.autograd.grad((denoise(leaf, t).eps * weight).sum(), leaf)
    length = 1e-5
    with torch.no_grad():
        numeric = ((denoise(x + length * direction, t).eps - denoise(x - length * direction, t).eps) * weight).sum() / (2 * length)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-9)
    leaf = x[:, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(sd.decode(leaf).mean(), leaf)
    assert gradient.abs().max() > 0


# The two predictions of a pair, and what methods spend


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_pair_and_the_scales(folders: dict[str, Path], prediction: str) -> None:
    """u and c of a pair are what scales 0 and 1 evaluate alone; any other scale mixes them, and none is the model's."""
    sd = model(folders[prediction], dtype="float64", guidance_scale=3.0, batch_size=4, negative_prompt="red")
    denoise, plain = sd.denoiser(tasks(*PROMPTS)), model(folders[prediction], dtype="float64", negative_prompt="a cat")
    x, t = normal(2, 3, *sd.latent_shape).double(), sd.schedule.at(400)
    with torch.no_grad():
        u, c = (prediction.eps for prediction in denoise.pair(x, t))
        assert u.shape == c.shape == x.shape
        for scale, expected in ((0, u), (0.0, u), (1, c), (None, u + 3 * (c - u)), (7.5, u + 7.5 * (c - u)), (-1.0, 2 * u - c)):
            prediction = denoise(x, t, scale)
            torch.testing.assert_close(prediction.eps, expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(prediction.x_0, x0_from_eps(x, expected, t), rtol=1e-9, atol=1e-9)
        assert denoise.guidance_scale == 3.0
        assert (u - c).abs().amax((2, 3, 4)).min() > 1e-4
        # "a cat" as the negative prompt is what it is as the prompt of the first task, for every task
        other, _ = plain.denoiser(tasks(*PROMPTS)).pair(x, t)
        torch.testing.assert_close(other.eps[0], c[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(other.eps[1], denoise.subset([0])(x[1:], t, 1).eps[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
def test_a_subset_is_the_denoiser_of_some_of_the_tasks(folders: dict[str, Path], guidance_scale: float) -> None:
    sd = model(folders["epsilon"], dtype="float64", guidance_scale=guidance_scale)
    prompts, x, t = ("a cat", "two dogs, red", "red"), normal(3, 2, 4, 8, 8).double(), sd.schedule.at(400)
    whole = sd.denoiser(tasks(*prompts))
    with torch.no_grad():
        everything, pair = whole(x, t), whole.pair(x, t)
        for rows in ([2, 0], [1], [0, 1, 2]):
            part = whole.subset(rows)
            torch.testing.assert_close(part(x[rows], t).eps, everything.eps[rows], rtol=1e-9, atol=1e-9)
            for ours, theirs in zip(part.pair(x[rows], t), pair, strict=True):
                torch.testing.assert_close(ours.x_0, theirs.x_0[rows], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("call", "rows"), [("pair", 2), (0, 1), (1, 1), (2.5, 2), (None, 2)])
def test_the_ledger_counts_rows_forward_and_backward(folders: dict[str, Path], call: str | float | None, rows: int) -> None:
    """Each call's rows, and those of it whose gradient is taken, in the middle of a call's chunks too."""
    sd = model(folders["epsilon"], guidance_scale=7.5, batch_size=4)
    denoise, t = sd.denoiser(tasks(*PROMPTS)), sd.schedule.at(300)
    x = normal(2, 3, 4, 8, 8).requires_grad_()
    if call == "pair":
        u, c = denoise.pair(x, t)
        eps = u.eps + 3 * (c.eps - u.eps)
    else:
        eps = denoise(x, t, call).eps
    assert (sd.ledger.nfe, sd.ledger.nfe_backward) == (6 * rows, 0)
    torch.autograd.grad(eps.square().sum(), x)
    assert (sd.ledger.nfe, sd.ledger.nfe_backward) == (6 * rows, 6 * rows)


METHODS = [  # T = 4, b = 2, N = 3: rows forward, rows backward, decodes and reward calls of one sample
    (Base(), 8, 0, 0),
    (ClassifierGuidance(strength=0.1), 8, 4, 4),
    (ClassifierGuidance(strength=0.1, source="cfg"), 8, 8, 4),
    (Mpgd(strength=0.1, window=(1.0, 0.5), num_repeats=2, repeat_window=(1.0, 0.5)), 2 * 6, 0, 4),
    (FreeDom(window=(1.0, 0.5), num_repeats=3, repeat_window=(1.0, 0.75)), 2 * 6, 2 * 4, 4),
    (Universal(strength=0.1, num_repeats=2, backward_steps=1, backward_lr=0.1), 2 * 8, 2 * 8, 2 * 8),
    (Codex(num_particles=3, block_size=2, gradient_block_size=1), 2 * 3 * 4 + 2 * 3 * 3, 2 * 3 * 3, 3 * 2 + 3 * 3),
    (
        Codex(num_particles=3, block_size=2, gradient_block_size=1, through="decoder", shared_start=True),
        2 * 3 * 3 + 2 + 2 * 9,
        0,
        6 + 9,
    ),
    (Codex(num_particles=4, block_size=4, gradient_block_size=2, cluster=True), 2 * 4 * 4 + 2 * 2, 2 * 2, 4 + 2),
]


@pytest.mark.parametrize(("method", "forward", "backward", "calls"), METHODS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("batch_size", [2, 5])
def test_methods_spend_on_a_network_what_they_say(
    folders: dict[str, Path], method: Method, forward: int, backward: int, calls: int, batch_size: int
) -> None:
    """The docstrings' formulas on a UNet and its autoencoder, with the ledger's counts; the decoder never sees more than batch_size."""
    sd, scheduler, sizes = model(folders["epsilon"], batch_size=batch_size), Ddpm(num_steps=4), []
    grid = scheduler.grid(sd.schedule)

    def reward(pictures: Tensor, owners: Sequence[Task]) -> Tensor:
        sizes.append(len(pictures))
        sd.ledger.reward_calls += len(pictures)
        return pictures[:, 0].mean((1, 2))

    problem = Problem(
        tasks=tasks(*PROMPTS), denoise=sd.denoiser(tasks(*PROMPTS)), scheduler=scheduler, grid=grid, schedule=sd.schedule, num_steps=4,
        noise=Noise(["a", "b"]), latent_shape=sd.latent_shape, decode=sd.decode, reward=reward, batch_size=batch_size,
    )  # fmt: skip
    with torch.no_grad():
        x_0 = method(problem)
    assert x_0.shape == (2, 4, 8, 8)
    assert x_0.isfinite().all() and not x_0.requires_grad
    assert sd.ledger.counts() == {"nfe": 2 * forward, "nfe_backward": 2 * backward, "decodes": 2 * calls, "reward_calls": 2 * calls}
    assert max(sizes, default=0) <= batch_size


def test_a_gradient_through_unet_and_decoder_is_that_of_finite_differences(folders: dict[str, Path]) -> None:
    """d reward / d x_t of every latent of a batch, in chunks, in double precision and without the clamp's kinks."""
    sd = model(folders["epsilon"], dtype="float64", guidance_scale=2.0, batch_size=2)
    grid, shape = Ddpm(num_steps=4).grid(sd.schedule), sd.latent_shape
    problem = Problem(
        tasks=tasks(*PROMPTS), denoise=sd.denoiser(tasks(*PROMPTS)), scheduler=Ddpm(num_steps=4), grid=grid, schedule=sd.schedule, num_steps=4,
        noise=Noise(["a", "b"]), latent_shape=shape, decode=lambda x: sd.vae.decode(x / 0.31).sample,
        reward=lambda rows, _: rows.sin().mean((1, 2, 3)), batch_size=3,
    )  # fmt: skip
    t, x, direction = grid[2], normal(2, 2, *shape).double(), normal(2, 2, *shape, seed=1).double()

    def look(z: Tensor) -> tuple[Tensor, ...]:
        return (problem.denoise(z, t).x_0,)

    _, gradient, _ = reward_gradient(problem, x, look)
    with torch.no_grad():
        ahead, behind = (problem.score(look(x + step * direction)[0]) for step in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * direction).sum((2, 3, 4)), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)
    assert gradient.flatten(2).norm(dim=2).min() > 1e-4


# The autoencoder


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_encode_and_decode(folders: dict[str, Path], prediction: str) -> None:
    sd = model(folders[prediction])
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = sd.encode(pictures)
        back = sd.decode(latents)
        posterior = pipeline(folders[prediction]).vae.encode(2 * pictures - 1).latent_dist
    assert latents.shape == (2, *sd.latent_shape)
    torch.testing.assert_close(latents, 0.31 * posterior.mode(), rtol=1e-5, atol=1e-6)
    assert back.shape == pictures.shape
    assert back.dtype == torch.float32
    assert 0 <= float(back.min()) < float(back.max()) <= 1


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_infinite_is_no_picture(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, value: float, dtype: str, tried: Callable[..., None]
) -> None:
    """The picture is NaN where the decoder's numbers are not finite, and nowhere else; other samples' gradients stay as they are."""
    sd = model(folders["epsilon"], dtype=dtype)
    latents, decode = normal(2, *sd.latent_shape).requires_grad_(), sd.vae.decode
    whole = sd.decode(latents)
    mask = torch.zeros_like(whole, dtype=torch.bool)
    mask[0, 1, 2, 3] = True

    def overflowing(z: Tensor) -> Any:
        return SimpleNamespace(sample=decode(z).sample.masked_fill(mask, value))

    monkeypatch.setattr(sd.vae, "decode", overflowing)
    spoiled = sd.decode(latents)
    assert torch.equal(spoiled.isnan(), mask)
    assert torch.equal(spoiled[~mask], whole[~mask])
    ours, theirs = (torch.autograd.grad(rows[1].sum(), latents)[0] for rows in (spoiled, whole))
    torch.testing.assert_close(ours, theirs)
    assert theirs[1].abs().max() > 0
    tried("refused")


# Errors


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize(
    "part",
    [
        "unet", "vae", "text_encoder", "tokenizer", "scheduler", "unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
        "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_a_missing_part_is_one_line(folders: dict[str, Path], part: str, tmp_path: Path) -> None:
    folder = copy(folders["epsilon"], tmp_path / "sd")
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    with pytest.raises(UsageError) as error:
        model(folder)
    message = str(error.value)
    assert message.startswith(f"model.path={folder}: ")
    assert part.split("/")[0] in message
    assert "\n" not in message


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none", "./none"):
        with pytest.raises(UsageError, match=f"^model.path={path}: no such path"):
            model(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype='float8': choose from"),
        ({"guidance_scale": -1.0}, "at least 0"),
        *(({"path": path}, "path=.*: must be a folder, a hub name") for path in ("", None, 5, ["a"])),
    ],
)
def test_wrong_options(folders: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        StableDiffusion(**{"path": str(folders["epsilon"]), "name": "tiny", **options})


def test_a_prompt_may_be_as_long_as_the_encoder_reads(folders: dict[str, Path]) -> None:
    sd = model(folders["epsilon"])
    sd.check(tasks("cat " * 10, "", "c" + "x" * 9))  # ten tokens, none, ten
    for prompt, count in (("cat " * 11, 11), ("x" * 11, 11), ("cat " * 500, 500)):
        with pytest.raises(UsageError, match=f"^prompt of {count} tokens.*model=tiny reads 10.*model.truncate_prompts=true$"):
            sd.check(tasks("cat", prompt))
    assert "text_encoder" not in vars(sd)  # the tokenizer was enough


def test_the_hub_s_cache_is_found_by_name(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a download leaves it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # which the client reads of its environment when imported
    repository, revision = tmp_path / "models--org--tiny", "0123456789" * 4
    copy(folders["epsilon"], repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    found = StableDiffusion(path="org/tiny", name="tiny")
    found.load()
    assert (found.folder.name, found.latent_shape) == (revision, (4, 8, 8))
    with pytest.raises(UsageError, match=r"^model\.path=org/other: not on this machine and the hub is offline"):
        StableDiffusion(path="org/other", name="other")


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_a_gradient_by_the_embeddings_is_that_of_finite_differences(folders: dict[str, Path], guidance_scale: float) -> None:
    sd = model(folders["epsilon"], dtype="float64", guidance_scale=guidance_scale, batch_size=3)
    denoise, t = sd.denoiser(tasks(*PROMPTS)), sd.schedule.at(500.5)
    x_t, towards = (normal(2, 1, *sd.latent_shape, seed=i).double() for i in range(2))
    embedding = denoise.conditioning.clone().requires_grad_()
    assert embedding.shape == (2, 12, 16)
    assert torch.equal(denoise.conditioned_on(embedding)(x_t, t).eps, denoise(x_t, t).eps)
    (gradient,) = torch.autograd.grad((denoise.conditioned_on(embedding)(x_t, t).eps * towards).sum(), embedding)
    direction = normal(*embedding.shape, seed=3).double()
    with torch.no_grad():
        ahead, behind = (denoise.conditioned_on(embedding + s * 1e-5 * direction)(x_t, t).eps for s in (1, -1))
    for i in range(2):  # each prompt's from its own picture
        difference = ((ahead - behind)[i] * towards[i]).sum() / 2e-5
        assert float((gradient[i] * direction[i]).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_embeddings_may_be_finer_than_the_network(folders: dict[str, Path]) -> None:
    """float32 variables of a bfloat16 network: the same picture, and gradients that come back in float32."""
    sd = model(folders["epsilon"], dtype="bfloat16", guidance_scale=2.0)
    denoise, x_t, t = sd.denoiser(tasks(*PROMPTS)), normal(2, 1, *sd.latent_shape), sd.schedule.at(500)
    fine = denoise.conditioning.float().requires_grad_()
    predicted = denoise.conditioned_on(fine)(x_t, t).eps
    assert torch.equal(predicted, denoise(x_t, t).eps)
    (gradient,) = torch.autograd.grad(predicted.square().sum(), fine)
    assert gradient.dtype == torch.float32 and gradient.abs().amax((1, 2)).min() > 0


# Zero terminal SNR


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_chain_from_pure_noise_is_diffusers(folders: dict[str, Path], tmp_path: Path, eta: float) -> None:
    """Lin et al. 2024: a model of v whose last trained step has no signal; alpha is 0 at the chain's start."""
    from diffusers import DDIMScheduler

    folder = Path(shutil.copytree(folders["v_prediction"], tmp_path / "zero"))
    file = folder / "scheduler" / "scheduler_config.json"
    settings = json.loads(file.read_text()) | {
        "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True,
    }  # fmt: skip
    file.write_text(json.dumps(settings))
    sd, pipe = model(folder, guidance_scale=3.0), pipeline(folder)
    assert isinstance(pipe.scheduler, DDIMScheduler) and float(pipe.scheduler.alphas_cumprod[-1]) == 0
    torch.testing.assert_close(sd.schedule.alphas_cumprod, pipe.scheduler.alphas_cumprod.double(), rtol=1e-4, atol=1e-9)
    scheduler = Ddim(num_steps=4, spacing="trailing", offset=0, end="clean", eta=eta)
    grid = scheduler.grid(sd.schedule)
    assert (grid[0].t, grid[0].alpha, grid[0].sigma) == (999, 0, 1)
    x_T, noises = normal(2, *sd.latent_shape), [normal(2, *sd.latent_shape, seed=10 + i) for i in range(4)]  # noqa: N806
    x, denoise = x_T[:, None], sd.denoiser(tasks(*PROMPTS))
    with torch.no_grad():
        for (t, s), noise in zip(pairwise(grid), noises, strict=True):
            mean, std = scheduler.transition(x, denoise(x, t), t, s)
            x = mean + std * noise[:, None]
    drawn = iter(noises)
    inner = type(pipe.scheduler).step
    pipe.scheduler.step = lambda *given, **named: inner(
        pipe.scheduler, *given, **{**named, "generator": None, "eta": eta, "variance_noise": next(drawn) if eta else None}
    )
    theirs = pipe(
        list(PROMPTS), latents=x_T, num_inference_steps=4, guidance_scale=3.0, eta=eta, output_type="latent"
    ).images  # fmt: skip
    assert theirs.isfinite().all()
    torch.testing.assert_close(x[:, 0], theirs, rtol=1e-4, atol=1e-4)
