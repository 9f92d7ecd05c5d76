"""FLUX.1: against diffusers' own pipeline on tiny folders of its own classes, and what is refused of a folder."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from safetensors.torch import save_file
from tiny_flux import CLIP_LENGTH, save_flux
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.flux import Flux, packed, positions, unpacked
from guidedgen.models.flux_folder import FluxFolder
from guidedgen.process.schedulers import Flow
from guidedgen.runs import composition, config, experiment, preparation

PROMPTS = ("a cat", "two dogs, red")
KINDS = ("dev", "schnell")
SIZES = (16, (16, 24))
SCHEDULER = "scheduler/scheduler_config.json"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of numpy 2


@pytest.fixture(scope="session")
def made(flux_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds."""
    return {"dev": flux_folder, "schnell": save_flux(tmp_path_factory.mktemp("schnell"), "schnell")}


def model(folder: Path, **options: Any) -> Flux:
    return Flux(path=str(folder), name="tiny", **{"size": 16, "dtype": "float64", **options})


def pipeline(folder: Path) -> Any:
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float64)


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def sample(flux: Flux, x_T: Tensor, steps: int = 4, prompts: Sequence[str] = PROMPTS) -> Tensor:  # noqa: N803
    """b c h w -> the chain's last latents."""
    scheduler, denoise, x = Flow(num_steps=steps), flux.denoiser(tasks(*prompts)), x_T[:, None]
    with torch.no_grad():
        for t, s in pairwise(scheduler.grid(flux.schedule)):
            x, std = scheduler.transition(x, denoise(x, t), t, s)
            assert std == 0
    return x[:, 0]


def theirs(pipe: Any, flux: Flux, x_T: Tensor, steps: int = 4, **given: Any) -> tuple[Tensor, Tensor]:  # noqa: N803
    """The pipeline's latents b c h w, which it takes and gives as tokens, and its pictures in [0, 1]."""
    height, width = flux.image_size
    given |= {"height": height, "width": width, "num_inference_steps": steps}
    given |= {"latents": pipe._pack_latents(x_T, *x_T.shape), "max_sequence_length": flux.max_tokens}
    latents = pipe(list(PROMPTS), **given, output_type="latent").images
    pictures = pipe(list(PROMPTS), **given, output_type="pt").images
    return pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor), pictures


def changed(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy with other values in one of its configs."""
    copy = Path(shutil.copytree(folder, copy))
    (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | values))
    return copy


# Against diffusers


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_diffusers_does(made: dict[str, Path], kind: str) -> None:
    flux, pipe = model(made[kind], negative_prompt="red"), pipeline(made[kind])
    assert flux.max_tokens == {"dev": 512, "schnell": 256}[kind]
    for prompts, ours in zip((list(PROMPTS), ["red"]), flux.condition(tasks(*PROMPTS)), strict=True):
        tokens, pooled, _ = pipe.encode_prompt(prompts, device="cpu", max_sequence_length=flux.max_tokens)
        torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, ""), (2.0, ""), (3.0, "a cat")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_diffusers(made: dict[str, Path], kind: str, guidance_scale: float, negative_prompt: str, size: Any) -> None:
    """In float64; diffusers' scheduler rounds to float32."""
    flux = model(made[kind], guidance_scale=guidance_scale, negative_prompt=negative_prompt, size=size)
    x_T = normal(2, *flux.latent_shape)  # noqa: N806
    given = {"true_cfg_scale": guidance_scale, "negative_prompt": [negative_prompt] * 2}
    latents, pictures = theirs(pipeline(made[kind]), flux, x_T, **given)
    ours = sample(flux, x_T)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5, check_dtype=False)
    assert pictures.std() > 0.02 and pictures.shape[2:] == flux.image_size
    torch.testing.assert_close(flux.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)


@pytest.mark.parametrize("guidance", [None, 1.0, 6.5])
def test_the_embedded_guidance_is_the_pipeline_s(made: dict[str, Path], guidance: float | None) -> None:
    flux, x_T = model(made["dev"], embedded_guidance=guidance), normal(2, 4, 8, 8)  # noqa: N806
    latents, _ = theirs(pipeline(made["dev"]), flux, x_T, **({} if guidance is None else {"guidance_scale": guidance}))
    ours = sample(flux, x_T)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5, check_dtype=False)
    assert ((ours - sample(model(made["dev"]), x_T)).abs().max() > 1e-3) == (guidance is not None)


@pytest.mark.parametrize(
    "scheduler",
    [
        {"use_dynamic_shifting": True, "base_shift": 0.2, "max_shift": 2.0, "base_image_seq_len": 10, "max_image_seq_len": 30},
        {"use_dynamic_shifting": False, "shift": 2.5}, {"num_train_timesteps": 500},
    ],
)  # fmt: skip
def test_other_shifts_are_diffusers(made: dict[str, Path], tmp_path: Path, scheduler: dict[str, Any]) -> None:
    folder = changed(made["dev"], tmp_path / "copy", SCHEDULER, **scheduler)
    flux = model(folder, size=(16, 24), t5_tokens=16)
    x_T = normal(2, *flux.latent_shape)  # noqa: N806
    latents, _ = theirs(pipeline(folder), flux, x_T)
    torch.testing.assert_close(sample(flux, x_T), latents, rtol=0, atol=1e-5, check_dtype=False)
    assert (latents - sample(model(made["dev"], size=(16, 24), t5_tokens=16), x_T)).abs().max() > 1e-3


def test_half_precision_rounds_as_diffusers_does(made: dict[str, Path]) -> None:
    """In bfloat16 the time itself is: 988.4 becomes 988. One call each, of the same inputs."""
    flux = model(made["dev"], dtype="bfloat16", t5_tokens=16)
    pipe, (t, *_) = pipeline(made["dev"]).to(torch.bfloat16), Flow(num_steps=28).grid(flux.schedule)[1:]
    x, cond = normal(2, 4, 8, 8).bfloat16(), flux.encode_prompts(PROMPTS)
    with torch.no_grad():
        ours = flux.predict(x * (t.alpha + t.sigma), t, cond)
        given = (x.double() * (t.alpha + t.sigma)).bfloat16() / (t.alpha + t.sigma)
        places = pipe._prepare_latent_image_ids(2, 4, 4, "cpu", torch.bfloat16)
        other = pipe.transformer(
            hidden_states=pipe._pack_latents(given, 2, 4, 8, 8), timestep=torch.tensor(t.t).expand(2).to(torch.bfloat16) / 1000,
            guidance=torch.full([2], 3.5), pooled_projections=cond.pooled, encoder_hidden_states=cond.tokens,
            txt_ids=torch.zeros(16, 3), img_ids=places, return_dict=False,
        )[0]  # fmt: skip
    assert torch.equal(ours, pipe._unpack_latents(other, 16, 16, 2))


def test_prompts_scales_and_places_matter(made: dict[str, Path]) -> None:
    """Otherwise the comparisons above would not see them mixed up."""
    x_T, folder = normal(1, 4, 8, 8), made["dev"]  # noqa: N806
    base = sample(model(folder, guidance_scale=2.0), x_T, 3, ["a cat"])
    others = {
        "prompt": sample(model(folder, guidance_scale=2.0), x_T, 3, ["two dogs, red"]),
        "scale": sample(model(folder), x_T, 3, ["a cat"]),
        "negative prompt": sample(model(folder, guidance_scale=2.0, negative_prompt="red"), x_T, 3, ["a cat"]),
        "tokens": sample(model(folder, guidance_scale=2.0, t5_tokens=20), x_T, 3, ["a cat"]),
        "place": sample(model(folder, guidance_scale=2.0), x_T.flip(-1), 3, ["a cat"]).flip(-1),
    }
    for name, other in others.items():
        assert (base - other).abs().max() > 1e-3, name
    flux = model(folder)
    one, two = flux.encode_prompts(PROMPTS).rows([0]), flux.encode_prompts(PROMPTS).rows([1])
    point = flux.schedule.at(700.0)
    mixed = type(one)(one.tokens, two.pooled), type(one)(two.tokens, one.pooled)
    for other in mixed:  # what T5 says, and what CLIP says
        assert (flux.predict(x_T, point, one) - flux.predict(x_T, point, other)).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (1, 16, 6, 10)])
def test_latents_are_packed_as_diffusers_does(shape: tuple[int, int, int, int]) -> None:
    from diffusers import FluxPipeline

    latents, (_, _, height, width) = normal(*shape), shape
    tokens = packed(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, *shape))
    assert torch.equal(unpacked(tokens, height, width), latents)
    places = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    assert torch.equal(positions(height // 2, width // 2), places)


def test_encoding_undoes_decoding_s_scale(made: dict[str, Path]) -> None:
    flux = model(made["dev"])
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    latent = flux.vae.encode(2 * pictures - 1).latent_dist.mean
    torch.testing.assert_close(flux.encode(pictures), (latent - 0.1159) * 0.3611, check_dtype=False)


# The grid


def test_grids_are_flux_s(made: dict[str, Path]) -> None:
    """The numbers that the pipeline has of the two repositories' schedulers: of dev for a picture of 1024 pixels, 64 x 64 tokens."""
    dev, schnell = model(made["dev"], size=None), model(made["schnell"], size=None)
    assert dev.latent_shape[1:] == schnell.latent_shape[1:] == (128, 128)
    assert math.log(dev.schedule.shift) == pytest.approx(1.15) and schnell.schedule.shift == 1
    grid = [point.t / 1000 for point in Flow(num_steps=28).grid(dev.schedule)]
    assert grid[:3] == pytest.approx([1, 0.988409, 0.976222], abs=1e-6)
    assert grid[-3:] == pytest.approx([0.195455, 0.104721, 0], abs=1e-6) and len(grid) == 29
    assert [point.t for point in Flow(num_steps=4).grid(schnell.schedule)] == [1000, 750, 500, 250, 0]


@pytest.mark.parametrize("size", [16, (16, 24), (64, 32), 256, (240, 288)])
def test_the_shift_follows_the_picture_s_size(made: dict[str, Path], size: Any) -> None:
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    flux, scheduler = model(made["dev"], size=size), FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    _, height, width = flux.latent_shape
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7), mu=calculate_shift(height * width // 4))
    assert [point.t / 1000 for point in Flow(num_steps=7).grid(flux.schedule)] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    assert len({model(made["dev"], size=each).schedule.shift for each in SIZES}) == 2


# What the folder says of itself


def test_nothing_is_loaded_to_say_so(made: dict[str, Path]) -> None:
    flux = model(made["dev"], size=None)
    assert (flux.latent_shape, flux.image_size, flux.max_tokens, flux.guidance_scale) == ((4, 128, 128), (256, 256), 512, 1.0)
    assert not {"transformer", "vae", "text_encoder", "tokenizer", "t5_encoder", "t5_tokenizer"} & set(vars(flux))
    parts = {"transformer", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2"}
    assert {path.name for path in flux.files} == parts


# What the configs of the two repositories say, but for what describes how they were made.
TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0", "attention_head_dim": 128, "in_channels": 64,
    "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
    "pooled_projection_dim": 768,
}  # fmt: skip
SHIFTS = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15, "num_train_timesteps": 1000}
CONFIGS: dict[str, dict[str, Any]] = {
    "vae/config.json": {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "force_upcast": True,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "in_channels": 3,
        "latent_channels": 16, "latents_mean": None, "latents_std": None, "layers_per_block": 2, "mid_block_add_attention": True,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_post_quant_conv": False, "use_quant_conv": False,
    },
    "text_encoder/config.json": {
        "architectures": ["CLIPTextModel"], "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
        "hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "vocab_size": 49408,
    },
    "text_encoder_2/config.json": {
        "architectures": ["T5EncoderModel"], "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0,
        "eos_token_id": 1, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "model_type": "t5", "num_heads": 64,
        "num_layers": 24, "pad_token_id": 0, "relative_attention_num_buckets": 32, "vocab_size": 32128,
    },
    "tokenizer/tokenizer_config.json": {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "scheduler", "guidance", "t5_tokens", "mu"),
    [
        ({"guidance_embeds": True}, {"shift": 3.0, "use_dynamic_shifting": True}, 3.5, 512, 1.15),
        ({"guidance_embeds": False}, {"shift": 1.0, "use_dynamic_shifting": False}, None, 256, 0.0),
        ({"guidance_embeds": False}, {"shift": 3.0, "use_dynamic_shifting": True}, None, 512, 1.15),  # dev without its guidance
    ],
)
def test_the_repositories_configs_are_taken(
    made: dict[str, Path],
    tmp_path: Path,
    own: dict[str, Any],
    scheduler: dict[str, Any],
    guidance: float | None,
    t5_tokens: int,
    mu: float,
) -> None:
    files = {**CONFIGS, "transformer/config.json": TRANSFORMER | own, SCHEDULER: SHIFTS | scheduler}
    files["model_index.json"] = json.loads((made["dev"] / "model_index.json").read_text())
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    found = FluxFolder(path=tmp_path, source="x")
    found.check()
    assert (found.latent_shape, found.image_size, found.clip_tokens) == ((16, 128, 128), (1024, 1024), 77)
    assert (found.guidance, found.max_tokens) == (guidance, t5_tokens)
    assert math.log(found.schedule.shift) == pytest.approx(mu)


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        (SCHEDULER, {"use_karras_sigmas": True, "invert_sigmas": True}, "use_karras_sigmas=True, invert_sigmas=True"),
        (SCHEDULER, {"stochastic_sampling": True}, "a scheduler with stochastic_sampling=True"),
        (SCHEDULER, {"shift_terminal": 0.02}, r"a scheduler with shift_terminal=0\.02"),
        (SCHEDULER, {"time_shift_type": "linear"}, "a scheduler with time_shift_type=linear"),
        (SCHEDULER, {"use_flow_sigmas": True}, "a scheduler with use_flow_sigmas=True"),
        (SCHEDULER, {"max_image_seq_len": 256}, r"a shift of e\^inf"),
        (SCHEDULER, {"max_shift": 9e9}, r"a shift of e\^.* at 256 x 256 pixels"),
        (SCHEDULER, {"base_shift": None}, "base_shift=None is not a number"),
        (SCHEDULER, {"shift": 0}, "shift=0 is not a number above 0"),
        (SCHEDULER, {"use_dynamic_shifting": "yes"}, "use_dynamic_shifting=yes is not true or false"),
        (SCHEDULER, {"_class_name": "FlowMatchHeunDiscreteScheduler"}, "of class FlowMatchHeunDiscreteScheduler"),
        ("transformer/config.json", {"in_channels": 96}, "96 input and 96 output channels, where latents have 16"),  # as Fill's
        ("transformer/config.json", {"in_channels": 32, "out_channels": 16}, "32 input and 16 output channels"),  # as Control's
        ("transformer/config.json", {"out_channels": 32}, "16 input and 32 output channels"),
        ("transformer/config.json", {"patch_size": 2}, "a transformer with patch_size=2"),
        ("transformer/config.json", {"axes_dims_rope": [4, 4, 4]}, r"axes_dims_rope=\[4, 4, 4\] and heads of 16"),
        ("transformer/config.json", {"axes_dims_rope": [3, 5, 8]}, r"axes_dims_rope=\[3, 5, 8\]"),
        ("transformer/config.json", {"axes_dims_rope": [8, 8]}, r"axes_dims_rope=\[8, 8\]"),
        ("transformer/config.json", {"joint_attention_dim": 20}, "texts of 20 numbers a token with a T5 of 24"),
        ("transformer/config.json", {"pooled_projection_dim": 21}, "pooled texts of 21 numbers with a CLIP of 16"),
        ("transformer/config.json", {"guidance_embeds": 1}, "guidance_embeds=1 is not true or false"),
        ("transformer/config.json", {"quantization_config": {}}, "a quantised transformer"),
        ("vae/config.json", {"latent_channels": 3}, "16 input and 16 output channels, where latents have 12"),
        ("vae/config.json", {"shift_factor": None}, "has no shift_factor"),
        ("text_encoder/config.json", {"architectures": ["CLIPVisionModel"]}, "a text_encoder of type clip_text_model"),
        ("text_encoder_2/config.json", {"model_type": "umt5"}, "a text_encoder_2 of type umt5"),
        ("model_index.json", {"text_encoder_2": [None, None]}, "names no text_encoder_2"),
        ("tokenizer/tokenizer_config.json", None, r"cannot read tokenizer/tokenizer_config\.json"),
    ],
)
def test_folders_that_would_be_sampled_wrongly_are_refused(
    made: dict[str, Path], tmp_path: Path, name: str, change: dict[str, Any] | None, why: str, tried: Callable[..., None]
) -> None:
    copy = changed(made["dev"], tmp_path / "copy", name, **(change or {}))
    if change is None:
        (copy / name).write_text("{")
    with pytest.raises(UsageError, match=f"model.path=.*{why}") as caught:
        model(copy, size=None)
    assert "\n" not in str(caught.value)
    tried("refused")


@pytest.mark.parametrize(
    "name", ["FluxFillPipeline", "FluxControlPipeline", "FluxKontextPipeline", "FluxPriorReduxPipeline", "FluxControlNetPipeline"]
)
def test_other_pipelines_are_refused(made: dict[str, Path], tmp_path: Path, name: str, tried: Callable[..., None]) -> None:
    copy = changed(made["dev"], tmp_path / "copy", "model_index.json", _class_name=name)
    with pytest.raises(UsageError, match=rf"a {name} .* is not supported; supported: FLUX\.1"):
        model(copy)
    with pytest.raises(UsageError, match=rf"a {name} .* is not supported; supported: .*FluxPipeline"):
        families.any_model(path=str(copy), name="x")
    tried("refused", 2)


def test_options_that_do_not_fit_are_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    for kind, options, why in (
        ("schnell", {"embedded_guidance": 3.5}, "not given its guidance; use null"), ("dev", {"embedded_guidance": -1.0}, "at least 0"),
        ("dev", {"embedded_guidance": math.inf}, "at least 0 and finite"), ("dev", {"embedded_guidance": math.nan}, "at least 0"),
        ("dev", {"t5_tokens": 513}, "must be from 2 to 512"), ("dev", {"t5_tokens": 1}, "must be from 2 to 512"),
        ("dev", {"t5_tokens": 20.5}, "must be from 2 to 512"), ("dev", {"size": 18}, "must be multiples of 4"),
        ("dev", {"size": [16, 22]}, "must be multiples of 4"), ("dev", {"path": "lab"}, "no such FluxPipeline is bundled"),
        ("dev", {"guidance_scale": -1.0}, "at least 0"),
    ):  # fmt: skip
        with pytest.raises(BadValue, match=why):
            Flux(**{"path": str(made[kind]), "name": "tiny", **options})
        tried("refused")


# Long prompts


def test_prompts_may_be_longer_than_clip_reads(made: dict[str, Path]) -> None:
    """CLIP's vector is then of their beginning, as in the pipeline."""
    long = "two dogs, red and a cat, " * 4
    flux, pipe = model(made["dev"]), pipeline(made["dev"])
    flux.check(tasks(long))
    ours = flux.encode_prompts([long, long + "cat"])
    tokens, pooled, _ = pipe.encode_prompt([long, long + "cat"], device="cpu")
    torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)
    assert ours.pooled is not None and torch.equal(ours.pooled[0], ours.pooled[1])
    assert (ours.tokens[0] - ours.tokens[1]).abs().max() > 1e-3


def test_prompts_longer_than_t5_reads_are_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    letters = "abcdefghijklmnopqrs"
    fits, long = letters[:18], letters[:19]
    flux = model(made["dev"], t5_tokens=20)
    assert len(flux.t5_tokenizer(fits).input_ids) == 20  # a letter each, the word's beginning and the end
    flux.check(tasks("a cat", fits))
    for prompt in (long, "cat " * 600):
        with pytest.raises(UsageError, match="reads 19; shorten it"):
            flux.check(tasks("a cat", prompt))
        tried("refused")
    with pytest.raises(UsageError, match="reads 19"):
        model(made["dev"], t5_tokens=20, negative_prompt=long).check([])
    model(made["dev"], t5_tokens=21).check(tasks(long))
    cut = model(made["dev"], t5_tokens=20, truncate_prompts=True)
    cut.check(tasks(long))
    tokens, _, _ = pipeline(made["dev"]).encode_prompt([long], device="cpu", max_sequence_length=20)
    torch.testing.assert_close(cut.encode_prompts([long]).tokens, tokens, rtol=0, atol=1e-6)


# What was learned elsewhere; more of it in test_learned_families.py and test_flux_lora.py


def test_a_lora_of_a_training_script_acts_as_in_diffusers(
    made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]
) -> None:
    """On both networks, saved by the pipeline's own save_lora_weights."""
    from diffusers import FluxPipeline

    def halves(network: Any, ends: tuple[str, ...]) -> dict[str, Tensor]:
        found = {}
        for i, (name, module) in enumerate(network.named_modules()):
            if name.endswith(ends):
                out, inner = module.weight.shape
                found[f"{name}.lora_A.weight"] = 0.3 * normal(2, inner, seed=2 * i).float()
                found[f"{name}.lora_B.weight"] = 0.3 * normal(out, 2, seed=2 * i + 1).float()
        return found

    pipe = pipeline(made["dev"])
    FluxPipeline.save_lora_weights(
        tmp_path / "lora", transformer_lora_layers=halves(pipe.transformer, ("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0")),
        text_encoder_lora_layers=halves(pipe.text_encoder, ("q_proj", "v_proj")),
    )  # fmt: skip
    flux, plain = (model(made["dev"], learned=learned, size=(16, 24)) for learned in (str(tmp_path / "lora"), None))
    x_T = normal(2, *flux.latent_shape)  # noqa: N806
    pipe.load_lora_weights(tmp_path / "lora")
    latents, _ = theirs(pipe.to(torch.float64), flux, x_T)
    ours = sample(flux, x_T)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5, check_dtype=False)
    assert (ours - sample(plain, x_T)).abs().max() > 1e-2
    tried("used")


def word(folder: Path, count: int) -> tuple[Path, Tensor]:
    """A textual inversion of CLIP, in a file of that name."""
    folder.mkdir()
    embedding = normal(count, 16, seed=5).float()
    save_file({"clip_l": embedding}, folder / "zfx.safetensors")
    return folder / "zfx.safetensors", embedding


@pytest.mark.parametrize("count", [1, 3])
def test_a_word_is_read_as_in_diffusers(made: dict[str, Path], tmp_path: Path, count: int, tried: Callable[..., None]) -> None:
    """By CLIP; T5 reads its letters."""
    file, embedding = word(tmp_path / "word", count)
    flux, pipe = model(made["dev"], learned=str(file), t5_tokens=32), pipeline(made["dev"])
    pipe.load_textual_inversion(embedding, token="zfx", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    prompts = ["a zfx cat", "zfx", "zfx cat"]
    tokens, pooled, _ = pipe.to(torch.float64).encode_prompt(prompts, device="cpu", max_sequence_length=32)
    ours, _ = flux.condition(tasks("a zfx cat", "zfx", "cat"))  # a prompt that does not hold it gets it at its beginning
    torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)
    assert ours.pooled is not None
    assert (ours.pooled - model(made["dev"]).encode_prompts(prompts).pooled).abs().amax(1).min() > 1e-3
    # Of the negative prompt alone, where that holds it.
    other = model(made["dev"], learned=str(file), t5_tokens=32, negative_prompt="zfx cat")
    cond, uncond = other.condition(tasks("a cat"))
    torch.testing.assert_close(uncond.pooled[0], pooled[2], rtol=0, atol=1e-6)  # type: ignore[index]
    assert torch.equal(cond.tokens, model(made["dev"], t5_tokens=32).encode_prompts(["a cat"]).tokens)
    tried("used", 2)


def test_a_word_that_clip_would_cut_off_is_refused(made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    file, _ = word(tmp_path / "word", 2)
    flux, room = model(made["dev"], learned=str(file), t5_tokens=80), CLIP_LENGTH - 2
    flux.check(tasks("cat " * (room - 2) + "zfx", "cat " * room))  # of the second, where the word comes first, only a cat is cut
    with pytest.raises(UsageError, match=f"CLIP, which knows the words of model.learned, reads {room}"):
        flux.check(tasks("cat " * (room - 1) + "zfx"))
    model(made["dev"], learned=str(file), t5_tokens=80, truncate_prompts=True).check(tasks("cat " * (room - 1) + "zfx"))
    long = model(made["dev"], learned=str(word(tmp_path / "long", room + 1)[0]), t5_tokens=80)
    with pytest.raises(UsageError, match=f"reads {room}"):
        long.check(tasks("a cat"))
    letters = len(flux.t5_tokenizer("zfx cat", add_special_tokens=False).input_ids)
    with pytest.raises(UsageError, match=f"prompt of {letters} tokens .* reads {letters - 1}"):  # T5 reads it too
        model(made["dev"], learned=str(file), t5_tokens=letters).check(tasks("cat"))
    model(made["dev"], learned=str(file), t5_tokens=letters + 1).check(tasks("cat"))
    tried("refused", 3)


# Every method runs on it


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_it(made: dict[str, Path], name: str, kind: str) -> None:
    flux = model(made[kind], dtype="float32", t5_tokens=16, guidance_scale=2.0 if kind == "dev" else 1.0)
    check_method(name, flux, Flow(num_steps=4), Flow(num_steps=4, eta=1.0))


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))


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
    return [f"model=flux_{kind}", f"model.path={made[kind]}", *small, *more]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", NAMES)
def test_every_method_alone_is_a_command(
    made: dict[str, Path], tmp_path: Path, kind: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = given(kind, made, tmp_path, f"method={method}")
    if method == "sdedit":
        overrides = [override for override in overrides if not override.startswith("dataset")]
        overrides += ["dataset=lab_pictures", "dataset.limit=1"]
    refusals = {"adjoint_tuning": "learns for Stable Diffusion 1 and 2 alone"}
    if kind == "schnell":
        refusals["adjoint_dpm"] = "few for it (at least 5): method/gradients=checkpoint"
    if method in refusals:
        with pytest.raises(SystemExit) as left:
            command_line.preflight(overrides, preparation.prepare)
        assert left.value.code == 2 and refusals[method] in capsys.readouterr().err
        if method == "adjoint_tuning":
            return
        overrides.append("method/gradients=checkpoint")
    command_line.preflight(overrides, preparation.prepare)
    job = preparation.prepare(composition.composed(overrides))
    assert isinstance(job.model, Flux) and job.model.guidance_scale == 1
    # Published for this model: EvoSearch's 50 steps, RBF's 10, the Psi-Sampler's 25, ReNO's single one.
    own = {("dev", "evosearch"): 50, ("schnell", "rbf"): 10, ("schnell", "psi_sampler"): 25, ("schnell", "reno"): 1}
    steps = own.get((kind, method), {"dev": 28, "schnell": 4}[kind])
    assert len(job.grid) == steps + 1 and job.grid[0].t == 1000 and not job.grid[-1].sigma


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dev", ["method=base"]), ("schnell", ["method=code", "method.num_particles=2"]),
        ("dev", ["method=doodl", "method.num_updates=1", "method.num_crops=0"]),
        ("schnell", ["method=classifier_guidance"]), ("dev", ["method=base", "model.guidance_scale=2", "model.negative_prompt=red"]),
    ],
)  # fmt: skip
def test_a_run_on_it(made: dict[str, Path], tmp_path: Path, kind: str, options: list[str]) -> None:
    small = ["scheduler.num_steps=4", "metrics=none", "model.size=[16,24]", "model.t5_tokens=16"]
    job = preparation.prepare(composition.composed(given(kind, made, tmp_path, *options, *small)))
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()


def test_what_decides_a_sample_is_another_run(made: dict[str, Path], tmp_path: Path) -> None:
    options = ("", "model.t5_tokens=128", "model.embedded_guidance=2.0", "model.size=128", "model.guidance_scale=2.0")
    jobs = [
        preparation.prepare(composition.composed(given("dev", made, tmp_path, "method=base", *([more] if more else []))))
        for more in options
    ]
    assert len({job.folder.path for job in jobs}) == len(options)
    assert any("text_encoder_2" in name for name in jobs[0].contents["model"])


def test_dev_s_guidance_is_refused_of_schnell_s_folder(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    overrides = given("dev", {"dev": made["schnell"]}, tmp_path, "method=base")
    with pytest.raises(SystemExit) as left:
        command_line.preflight(overrides, preparation.prepare)
    assert left.value.code == 2 and "not given its guidance; use null" in capsys.readouterr().err
    command_line.preflight([*overrides, "model.embedded_guidance=null"], preparation.prepare)
    tried("refused")
    tried("used")


# By what the folder says


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_known_by_the_folder(made: dict[str, Path], tmp_path: Path, kind: str, tried: Callable[..., None]) -> None:
    small = ["zoo=lab", "metrics=none", "device=cpu", f"outputs={tmp_path}", "model.size=16", "method=base"]

    def found(*more: str) -> Any:
        cfg = composition.composed(["model=diffusers", f"model.path={made[kind]}", *small, "scheduler=flow", *more])
        return preparation.prepare(cfg).model

    flux = found()
    assert type(flux) is Flux and (flux.guidance_scale, flux.embedded_guidance) == (1.0, None)
    assert flux.max_tokens == {"dev": 512, "schnell": 256}[kind]
    if kind == "dev":
        assert found("model.embedded_guidance=2.5").embedded_guidance == 2.5
    else:
        with pytest.raises(UsageError, match="not given its guidance"):
            found("model.embedded_guidance=2.5")
    assert families.reads(path=str(made[kind])) == (FluxFolder.needed(str(made[kind])),)
    tried("used")
