"""SANA: against diffusers' own pipeline on tiny folders of its own classes, and what is refused of a folder."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from tiny_sana import DPM, save_sana
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.sana import Sana
from guidedgen.models.sana_folder import SanaFolder
from guidedgen.process import Scheduler
from guidedgen.process.schedulers import DpmSolver, Flow
from guidedgen.runs import composition, config, experiment, preparation

PROMPTS = ("a Cat ", "two dogs, red")
KINDS = ("1.0", "1.5")
SCHEDULER = "scheduler/scheduler_config.json"
SAMPLERS: dict[str, type[DpmSolver] | type[Flow]] = {"dpm_solver": DpmSolver, "flow": Flow}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of numpy 2


@pytest.fixture(scope="session")
def made(sana_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds."""
    return {"1.0": sana_folder, "1.5": save_sana(tmp_path_factory.mktemp("sana15"), "1.5")}


def model(folder: Path, **options: Any) -> Sana:
    return Sana(path=str(folder), name="tiny", **{"dtype": "float64", **options})


def pipeline(folder: Path, sampler: str = "dpm_solver", dtype: torch.dtype = torch.float64) -> Any:
    """In half precision, what diffusers counts out anew stays in float32, as where a model is loaded in it."""
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SanaPipeline

    pipe = SanaPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32 if dtype == torch.float64 else dtype)
    pipe.set_progress_bar_config(disable=True)
    shift = pipe.scheduler.config.get("flow_shift") or pipe.scheduler.config.shift
    pipe.scheduler = (
        DPMSolverMultistepScheduler(**DPM | {"flow_shift": shift})
        if sampler == "dpm_solver" else FlowMatchEulerDiscreteScheduler(shift=shift)
    )  # fmt: skip
    return pipe.to(dtype) if dtype == torch.float64 else pipe


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def sample(sana: Sana, x_T: Tensor, scheduler: Scheduler | None = None, prompts: Sequence[str] = PROMPTS) -> Tensor:  # noqa: N803
    """b c h w, in the flow's own scale -> the chain's last latents."""
    scheduler, past = scheduler or DpmSolver(num_steps=4), None
    grid, denoise = scheduler.grid(sana.schedule), sana.denoiser(tasks(*prompts))
    x = x_T[:, None] * (grid[0].alpha + grid[0].sigma)
    with torch.no_grad():
        for t, s in pairwise(grid):
            prediction = denoise(x, t).after(past)
            past = prediction, t
            x, std = scheduler.transition(x, prediction, t, s)
            assert std == 0
    return x[:, 0]


def theirs(pipe: Any, sana: Sana, x_T: Tensor, steps: int = 4, **given: Any) -> tuple[Tensor, Tensor]:  # noqa: N803
    """The pipeline's latents b c h w and its pictures in [0, 1]."""
    height, width = sana.image_size
    given |= {"height": height, "width": width, "num_inference_steps": steps, "latents": x_T, "use_resolution_binning": False}
    given = {"guidance_scale": sana.guidance_scale, "negative_prompt": sana.negative_prompt, **given}
    return tuple(pipe(list(PROMPTS), **given, output_type=kind).images for kind in ("latent", "pt"))  # type: ignore[return-value]


def instruction() -> list[str]:
    """What the pipeline takes unless another is given."""
    import inspect

    from diffusers import SanaPipeline

    found: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return found


def changed(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy with other values in one of its configs."""
    copy = Path(shutil.copytree(folder, copy))
    (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | values))
    return copy


# Against diffusers


@pytest.mark.parametrize("instruct", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_diffusers_does(made: dict[str, Path], kind: str, instruct: bool) -> None:
    sana, pipe = model(made[kind], negative_prompt="Red", instruct=instruct), pipeline(made[kind])
    given = instruction() if instruct else None
    found = pipe.encode_prompt(list(PROMPTS), True, negative_prompt="Red", device="cpu", complex_human_instruction=given)
    cond, uncond = sana.condition(tasks(*PROMPTS))
    for ours, tokens, mask in ((cond, *found[:2]), (uncond, *(one[:1] for one in found[2:]))):
        assert ours.tokens.shape[1] == sana.max_tokens == 300 and ours.mask is not None
        assert torch.equal(ours.mask, mask)
        torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
    assert [int(row.sum()) for row in (*cond.mask, *uncond.mask)] == [  # type: ignore[misc, union-attr]
        1 + max(sana.count_tokens(prompt), 1) for prompt in PROMPTS
    ] + [4]


@pytest.mark.parametrize(
    ("size", "guidance_scale", "negative_prompt"),
    [(32, 1.0, ""), ((32, 64), 4.5, ""), (32, 3.0, "a cat"), ((32, 64), 3.0, "a cat")],
)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_diffusers(
    made: dict[str, Path], kind: str, sampler: str, size: Any, guidance_scale: float, negative_prompt: str
) -> None:
    """In float64; diffusers' schedulers round to float32."""
    sana = model(made[kind], guidance_scale=guidance_scale, negative_prompt=negative_prompt, size=size)
    x_T = normal(2, *sana.latent_shape)  # noqa: N806
    latents, pictures = theirs(pipeline(made[kind], sampler), sana, x_T)
    ours = sample(sana, x_T, SAMPLERS[sampler](num_steps=4))
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5, check_dtype=False)
    assert pictures.std() > 0.02 and pictures.shape[2:] == sana.image_size
    torch.testing.assert_close(sana.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_twenty_steps_are_diffusers(made: dict[str, Path], sampler: str, kind: str) -> None:
    """The pipeline's own number of steps and guidance, whatever the folder's scheduler: both have its shift."""
    sana = model(made[kind])
    x_T = normal(2, *sana.latent_shape)  # noqa: N806
    latents, _ = theirs(pipeline(made[kind], sampler), sana, x_T, steps=20)
    torch.testing.assert_close(sample(sana, x_T, SAMPLERS[sampler](num_steps=20)), latents, rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize(
    ("transformer", "scheduler"),
    [
        ({"timestep_scale": 0.5}, {}), ({"out_channels": 8}, {}), ({"patch_size": 2}, {}), ({"out_channels": None}, {}),
        ({"norm_elementwise_affine": True, "attention_bias": True}, {}), ({}, {"flow_shift": 6.0}), ({}, {"num_train_timesteps": 500}),
    ],
)  # fmt: skip
def test_other_configs_are_diffusers(
    made: dict[str, Path], tmp_path: Path, transformer: dict[str, Any], scheduler: dict[str, Any]
) -> None:
    folder = save_sana(tmp_path / "made", "1.0", **transformer)
    folder = changed(folder, tmp_path / "copy", SCHEDULER, **scheduler)
    sana, pipe = model(folder, size=(32, 64)), pipeline(folder)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **scheduler)
    if "out_channels" in transformer:
        pipe.transformer.register_to_config(out_channels=transformer["out_channels"] or 4)  # which the pipeline needs
    x_T = normal(2, *sana.latent_shape)  # noqa: N806
    latents, _ = theirs(pipe, sana, x_T)
    torch.testing.assert_close(sample(sana, x_T), latents, rtol=0, atol=1e-5, check_dtype=False)
    same = transformer == {"out_channels": None}
    assert ((latents - sample(model(made["1.0"], size=(32, 64)), x_T)).abs().max() < 1e-5) == same


def test_half_precision_rounds_as_diffusers_does(made: dict[str, Path]) -> None:
    """In bfloat16 the time is not rounded, and guidance is in float32. One step of the same inputs."""
    sana, pipe = model(made["1.0"], dtype="bfloat16"), pipeline(made["1.0"], dtype=torch.bfloat16)
    x = normal(2, *sana.latent_shape).float()
    (latents, _), (t, s) = theirs(pipe, sana, x, steps=1), DpmSolver(num_steps=1).grid(sana.schedule)
    assert s.sigma == 0
    with torch.no_grad():
        found = sana.denoiser(tasks(*PROMPTS))((x * (t.alpha + t.sigma))[:, None], t)
    torch.testing.assert_close(found.x_0[:, 0], latents, rtol=0, atol=1e-5)
    assert {getattr(sana, part).dtype for part in ("transformer", "text_encoder", "vae")} == {torch.bfloat16}


def test_what_float16_cannot_hold_is_computed_in_other_precision(made: dict[str, Path]) -> None:
    sana = model(made["1.0"], dtype="float16")
    found = {part: getattr(sana, part).dtype for part in ("transformer", "text_encoder", "vae")}
    assert found == {"transformer": torch.float16, "text_encoder": torch.bfloat16, "vae": torch.float32}
    x = normal(1, 1, *sana.latent_shape).float().requires_grad_()
    prediction = sana.denoiser(tasks("a cat"))(x, sana.schedule.at(700.0))
    (gradient,) = torch.autograd.grad(sana.decode(prediction.x_0[:, 0])[:, 0].mean(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_prompts_scales_and_places_matter(made: dict[str, Path]) -> None:
    """Otherwise the comparisons above would not see them mixed up."""
    x_T, steps = normal(1, 4, 8, 8), DpmSolver(num_steps=3)  # noqa: N806
    for kind in KINDS:
        folder = made[kind]
        base = sample(model(folder), x_T, steps, ["a cat"])
        others = {
            "prompt": sample(model(folder), x_T, steps, ["two dogs, red"]),
            "scale": sample(model(folder, guidance_scale=1.0), x_T, steps, ["a cat"]),
            "negative prompt": sample(model(folder, negative_prompt="red"), x_T, steps, ["a cat"]),
            "instruction": sample(model(folder, instruct=False), x_T, steps, ["a cat"]),
            "place": sample(model(folder), x_T.flip(-1), steps, ["a cat"]).flip(-1),
            "sampler": sample(model(folder), x_T, Flow(num_steps=3), ["a cat"]),
        }
        for name, other in others.items():
            assert (base - other).abs().max() > 1e-3, (kind, name)
        assert torch.equal(base, sample(model(folder), x_T, steps, [" A CAT"]))  # as the pipeline reads it
    sana = model(made["1.0"])
    cond, point = sana.encode_prompts(["a cat"]), sana.schedule.at(700.0)
    masked = type(cond)(cond.tokens, mask=torch.ones_like(cond.mask))
    assert (sana.predict(x_T, point, cond) - sana.predict(x_T, point, masked)).abs().max() > 1e-3


def test_encoding_is_the_autoencoder_s(made: dict[str, Path]) -> None:
    sana = model(made["1.0"])
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double().requires_grad_()
    found = sana.encode(pictures)
    torch.testing.assert_close(found, 0.41407 * sana.vae.encode(2 * pictures - 1).latent, check_dtype=False)
    (gradient,) = torch.autograd.grad(found.sum(), pictures)
    assert found.shape == (2, *sana.latent_shape) and gradient.abs().max() > 0


# What the folder says of itself


def test_nothing_is_loaded_to_say_so(made: dict[str, Path]) -> None:
    sana = model(made["1.0"])
    assert (sana.latent_shape, sana.image_size, sana.max_tokens, sana.guidance_scale) == ((4, 8, 8), (32, 32), 300, 4.5)
    assert not {"transformer", "vae", "text_encoder", "tokenizer"} & set(vars(sana))
    assert {path.name for path in sana.files} == {"transformer", "vae", "text_encoder", "scheduler", "tokenizer"}


# What the configs of the repositories say, but for what describes how they were made.
TRANSFORMER = {
    "_class_name": "SanaTransformer2DModel", "attention_bias": False, "attention_head_dim": 32, "caption_channels": 2304,
    "cross_attention_dim": 2240, "cross_attention_head_dim": 112, "dropout": 0.0, "in_channels": 32, "mlp_ratio": 2.5,
    "norm_elementwise_affine": False, "norm_eps": 1e-06, "num_attention_heads": 70, "num_cross_attention_heads": 20,
    "num_layers": 20, "out_channels": 32, "patch_size": 1, "sample_size": 32,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "vae/config.json": {
        "_class_name": "AutoencoderDC", "attention_head_dim": 32, "decoder_act_fns": "silu",
        "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "decoder_layers_per_block": [3] * 6,
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, "decoder_norm_types": "rms_norm",
        "decoder_qkv_multiscales": [[], [], [], [5], [5], [5]], "downsample_block_type": "conv",
        "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024], "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, "in_channels": 3,
        "encoder_qkv_multiscales": [[], [], [], [5], [5], [5]], "latent_channels": 32, "scaling_factor": 0.41407,
        "upsample_block_type": "interpolate",
    },
    "text_encoder/config.json": {
        "architectures": ["Gemma2Model"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 107], "final_logit_softcapping": 30.0,
        "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
        "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
        "sliding_window": 4096, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 256000,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "shift", "side"),
    [
        ({}, 3.0, 1024), ({"sample_size": 16}, 3.0, 512), ({"sample_size": 64, "interpolation_scale": 1.0}, 3.0, 2048),
        ({"sample_size": 128, "interpolation_scale": 2.0}, 6.0, 4096),
        ({"num_attention_heads": 36, "num_layers": 28, "cross_attention_dim": 1152, "num_cross_attention_heads": 16,
          "cross_attention_head_dim": 72}, 3.0, 1024),
        ({"num_layers": 60, "qk_norm": "rms_norm_across_heads", "timestep_scale": 1.0, "guidance_embeds": False}, 3.0, 1024),
    ],
    ids=["1.6B", "512", "2K", "4K", "0.6B", "1.5 4.8B"],
)  # fmt: skip
def test_the_repositories_configs_are_taken(
    made: dict[str, Path], tmp_path: Path, own: dict[str, Any], shift: float, side: int
) -> None:
    scheduler = json.loads((made["1.0"] / SCHEDULER).read_text()) | {"flow_shift": shift}
    files = {**CONFIGS, "transformer/config.json": TRANSFORMER | own, SCHEDULER: scheduler}
    files["model_index.json"] = json.loads((made["1.0"] / "model_index.json").read_text())
    files["model_index.json"]["tokenizer"] = ["transformers", "GemmaTokenizerFast"]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    found = SanaFolder(path=tmp_path, source="x")
    found.check()
    assert found.latent_shape == (32, side // 32, side // 32) and found.image_size == (side, side)
    assert (found.schedule.shift, found.schedule.steps, found.schedule.even) == (shift, 1000, False)


@pytest.mark.parametrize(
    ("kind", "name", "change", "why"),
    [
        ("1.0", SCHEDULER, {"use_flow_sigmas": False}, "a DPMSolverMultistepScheduler with use_flow_sigmas=False"),
        ("1.0", SCHEDULER, {"prediction_type": "v_prediction", "solver_order": 3}, "with prediction_type=v_prediction, solver_order=3"),
        ("1.0", SCHEDULER, {"algorithm_type": "sde-dpmsolver++"}, r"with algorithm_type=sde-dpmsolver\+\+"),
        ("1.0", SCHEDULER, {"solver_type": "heun"}, "with solver_type=heun"),
        ("1.0", SCHEDULER, {"final_sigmas_type": "sigma_min"}, "with final_sigmas_type=sigma_min"),
        ("1.0", SCHEDULER, {"use_karras_sigmas": True, "use_lu_lambdas": True}, "use_karras_sigmas=True, use_lu_lambdas=True"),
        ("1.0", SCHEDULER, {"thresholding": True}, "with thresholding=True"),
        ("1.0", SCHEDULER, {"use_dynamic_shifting": True}, "with use_dynamic_shifting=True"),
        ("1.0", SCHEDULER, {"flow_shift": 0}, "flow_shift=0 is not a number above 0"),
        ("1.0", SCHEDULER, {"_class_name": "SCMScheduler"}, "a scheduler of class SCMScheduler"),  # SANA-Sprint's
        ("1.5", SCHEDULER, {"use_dynamic_shifting": True}, "a FlowMatchEulerDiscreteScheduler with use_dynamic_shifting=True"),
        ("1.5", SCHEDULER, {"stochastic_sampling": True, "shift_terminal": 0.1}, "stochastic_sampling=True, shift_terminal=0.1"),
        ("1.5", SCHEDULER, {"shift": None}, "shift=None is not a number above 0"),
        ("1.0", "transformer/config.json", {"guidance_embeds": True}, r"given its guidance \(guidance_embeds=true, as SANA-Sprint"),
        ("1.0", "transformer/config.json", {"out_channels": 5}, "a transformer of 4 input and 5 output channels"),
        ("1.0", "transformer/config.json", {"in_channels": 8, "out_channels": 8}, "a transformer of 8 channels with a VAE of 4"),
        ("1.0", "transformer/config.json", {"cross_attention_dim": 24}, "cross_attention_dim=24 and states of 16 numbers"),
        ("1.0", "transformer/config.json", {"cross_attention_dim": None}, "cross_attention_dim=None is not a whole number"),
        ("1.0", "transformer/config.json", {"caption_channels": 20}, "texts of 20 numbers a token with a Gemma of 24"),
        ("1.0", "transformer/config.json", {"patch_size": 3}, "patches of 3 on latents of side 8"),
        ("1.0", "transformer/config.json", {"sample_size": None}, "has no sample_size"),
        ("1.0", "transformer/config.json", {"quantization_config": {}}, "a quantised transformer"),
        ("1.0", "vae/config.json", {"in_channels": 4}, "a VAE of 4 input and 4 output channels"),
        ("1.0", "vae/config.json", {"decoder_block_out_channels": [8, 16]}, "a VAE of 3 blocks to encode and 2 to decode"),
        ("1.0", "vae/config.json", {"_class_name": "AutoencoderKL"}, "a vae of class AutoencoderKL"),
        ("1.0", "text_encoder/config.json", {"model_type": "gemma3_text"}, "a text_encoder of type gemma3_text"),
        ("1.0", "text_encoder/config.json", {"architectures": ["Gemma2ForTokenClassification"]}, "a text_encoder of type gemma2"),
        ("1.0", "model_index.json", {"text_encoder": ["transformers", "Gemma2ForCausalLM"]}, "of class Gemma2ForCausalLM"),
        ("1.0", "model_index.json", {"tokenizer": [None, None]}, "names no tokenizer"),
    ],
)  # fmt: skip
def test_folders_that_would_be_sampled_wrongly_are_refused(
    made: dict[str, Path], tmp_path: Path, kind: str, name: str, change: dict[str, Any], why: str, tried: Callable[..., None]
) -> None:
    copy = changed(made[kind], tmp_path / "copy", name, **change)
    with pytest.raises(UsageError, match=f"model.path=.*{why}") as caught:
        model(copy)
    assert "\n" not in str(caught.value)
    tried("refused")


@pytest.mark.parametrize("name", ["SanaSprintPipeline", "SanaPAGPipeline", "SanaControlNetPipeline", "SanaVideoPipeline"])
def test_other_pipelines_are_refused(made: dict[str, Path], tmp_path: Path, name: str, tried: Callable[..., None]) -> None:
    copy = changed(made["1.0"], tmp_path / "copy", "model_index.json", _class_name=name)
    with pytest.raises(UsageError, match=rf"a {name} .* is not supported; supported: SANA's"):
        model(copy)
    with pytest.raises(UsageError, match=rf"a {name} .* is not supported; supported: .*SanaPipeline"):
        families.any_model(path=str(copy), name="x")
    tried("refused", 2)


def test_the_scheduler_is_what_the_index_makes_of_its_config(made: dict[str, Path], tmp_path: Path) -> None:
    """As diffusers has it: of another scheduler's config, keys that are not its own are not read."""
    copy = Path(shutil.copytree(made["1.0"], tmp_path / "copy"))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}))
    from diffusers import SanaPipeline

    assert model(copy).schedule.shift == SanaPipeline.from_pretrained(copy).scheduler.config.shift == 1


def test_a_gemma_that_was_saved_whole_is_taken(made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    """With what predicts the next token, whose weights are those of the embedding."""
    from transformers import Gemma2ForCausalLM

    sana, copy = model(made["1.0"]), Path(shutil.copytree(made["1.0"], tmp_path / "copy"))
    whole = Gemma2ForCausalLM(sana.text_encoder.config)
    whole.model.load_state_dict(sana.text_encoder.state_dict())
    shutil.rmtree(copy / "text_encoder")
    whole.float().save_pretrained(copy / "text_encoder")
    assert json.loads((copy / "text_encoder" / "config.json").read_text())["architectures"] == ["Gemma2ForCausalLM"]
    for ours, other in zip(model(copy).condition(tasks("a cat")), sana.condition(tasks("a cat")), strict=True):
        assert torch.equal(ours.tokens, other.tokens)
    tried("used")


def test_tokenizers_that_would_be_read_wrongly_are_refused(
    made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]
) -> None:
    name = "tokenizer/tokenizer.json"
    without = changed(made["1.0"], tmp_path / "without", name, post_processor=None)
    with pytest.raises(UsageError, match="its tokenizer does not begin texts with a start"):
        model(without).check(tasks("a cat"))
    more = {
        "id": 497,
        "content": "<more>",
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    added = json.loads((made["1.0"] / name).read_text())["added_tokens"]
    large = changed(made["1.0"], tmp_path / "large", name, added_tokens=[*added, more])
    with pytest.raises(UsageError, match="its tokenizer has 498 tokens; its text encoder has 497"):
        model(large).check(tasks("a cat"))
    tried("refused", 2)


def test_options_that_do_not_fit_are_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    options: Sequence[tuple[Mapping[str, Any], str]] = (
        ({"size": 30}, "must be multiples of 4"), ({"size": [32, 33]}, "must be multiples of 4"), ({"path": "lab"}, "no such SanaPipeline is bundled"),
        ({"guidance_scale": -1.0}, "at least 0"), ({"instruct": "no"}, "must be true or false"),
    )  # fmt: skip
    for given, why in options:
        with pytest.raises(BadValue, match=why):
            Sana(**{"path": str(made["1.0"]), "name": "tiny", **given})
        tried("refused")


# Long prompts


@pytest.mark.parametrize("first", ["a", "z"])
@pytest.mark.parametrize("instruct", [True, False])
def test_prompts_longer_than_the_pipeline_reads_are_refused(
    made: dict[str, Path], instruct: bool, first: str, tried: Callable[..., None]
) -> None:
    """To the token, whether or not the instruction's last token becomes one with the prompt's first."""
    sana, pipe = model(made["1.0"], instruct=instruct), pipeline(made["1.0"])
    room = 298 if instruct and first == "z" else 299
    fits, long = (first + "x" * (count - 1) for count in (room, room + 1))
    given = instruction() if instruct else None

    def ends_in(prompt: str) -> bool:
        """Whether another last letter is another text to the pipeline."""
        two = [prompt, prompt[:-1] + "y"]
        tokens, *_ = pipe.encode_prompt(two, False, device="cpu", complex_human_instruction=given)
        return bool((tokens[0] - tokens[1]).abs().max() > 1e-6)

    assert ends_in(fits) and not ends_in(long)
    sana.check(tasks("a cat", fits))
    for prompt in (long, "cat " * 600):
        with pytest.raises(UsageError, match="reads 299; shorten it"):
            sana.check(tasks("a cat", prompt))
        tried("refused")
    cut = model(made["1.0"], instruct=instruct, truncate_prompts=True)
    cut.check(tasks(long))
    tokens, mask, *_ = pipe.encode_prompt([long], False, device="cpu", complex_human_instruction=given)
    ours = cut.encode_prompts([long], cut.instruction)
    torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
    assert ours.mask is not None and torch.equal(ours.mask, mask) and mask.all()


def test_negative_prompts_are_counted_without_the_instruction(made: dict[str, Path], tried: Callable[..., None]) -> None:
    fits, long = "z" * 299, "z" * 300
    model(made["1.0"], negative_prompt=fits).check(tasks("a cat"))
    with pytest.raises(UsageError, match="prompt of 300 tokens .* reads 299"):
        model(made["1.0"], negative_prompt=long).check(tasks("a cat"))
    with pytest.raises(UsageError, match="prompt of 300 tokens .* reads 299"):  # as a prompt it is longer
        model(made["1.0"], negative_prompt=fits).check(tasks(fits))
    tried("refused", 2)


# What was learned elsewhere; more of it in test_learned_families.py


def test_a_lora_of_a_training_script_acts_as_in_diffusers(
    made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]
) -> None:
    """Saved by the pipeline's own save_lora_weights."""
    from diffusers import SanaPipeline

    pipe, halves = pipeline(made["1.0"]), {}
    for i, (name, module) in enumerate(pipe.transformer.named_modules()):
        if name.endswith(("to_k", "to_q", "to_v", "to_out.0", "conv_point")):
            out, inner, *rest = module.weight.shape
            halves[f"{name}.lora_A.weight"] = 0.3 * normal(2, inner, *rest, seed=2 * i).float()
            halves[f"{name}.lora_B.weight"] = 0.3 * normal(out, 2, *rest, seed=2 * i + 1).float()
    SanaPipeline.save_lora_weights(tmp_path / "lora", transformer_lora_layers=halves)
    sana, plain = (model(made["1.0"], learned=learned, size=(32, 64)) for learned in (str(tmp_path / "lora"), None))
    x_T = normal(2, *sana.latent_shape)  # noqa: N806
    pipe.load_lora_weights(tmp_path / "lora")
    latents, _ = theirs(pipe.to(torch.float64), sana, x_T)
    ours = sample(sana, x_T)
    torch.testing.assert_close(ours, latents, rtol=0, atol=1e-5, check_dtype=False)
    assert (ours - sample(plain, x_T)).abs().max() > 1e-2
    tried("used")


# Every method runs on it


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_it(made: dict[str, Path], name: str) -> None:
    sana = model(made["1.0"], dtype="float32")
    check_method(name, sana, Flow(num_steps=4), Flow(num_steps=4, eta=1.0))


@pytest.mark.parametrize("name", ["base", "mpgd", "freedom", "universal"])
def test_methods_run_on_its_own_sampler(made: dict[str, Path], name: str) -> None:
    check_method(name, model(made["1.0"], dtype="float32"), DpmSolver(num_steps=4), Flow(num_steps=4, eta=1.0))


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))


def given(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "model=sana", f"model.path={folder}", "zoo=lab", "metrics=lab", "device=cpu", "dataset=prompt", "dataset.prompt=a cat",
        "tracker=none", f"outputs={tmp_path}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("method", NAMES)
def test_every_method_alone_is_a_command(
    made: dict[str, Path], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = given(made["1.0"], tmp_path, f"method={method}")
    if method == "sdedit":
        overrides = [override for override in overrides if not override.startswith("dataset")]
        overrides += ["dataset=lab_pictures", "dataset.limit=1"]
    if method == "adjoint_tuning":
        with pytest.raises(SystemExit) as left:
            command_line.preflight(overrides, preparation.prepare)
        assert left.value.code == 2 and "learns for Stable Diffusion 1 and 2 alone" in capsys.readouterr().err
        return
    command_line.preflight(overrides, preparation.prepare)
    job = preparation.prepare(composition.composed(overrides))
    assert isinstance(job.model, Sana) and job.model.guidance_scale == 4.5
    assert len(job.grid) == 21 and not job.grid[-1].sigma


@pytest.mark.parametrize(
    "options",
    [
        ["method=base"], ["method=code", "method.num_particles=2"], ["method=doodl", "method.num_updates=1", "method.num_crops=0"],
        ["method=base", "scheduler=flow", "model.negative_prompt=red", "model.vae_tiling=true", "model.vae_slicing=true"],
    ],
)  # fmt: skip
def test_a_run_on_it(made: dict[str, Path], tmp_path: Path, options: list[str]) -> None:
    small = ["scheduler.num_steps=4", "metrics=none", "model.size=[32,64]"]
    job = preparation.prepare(composition.composed(given(made["1.0"], tmp_path, *options, *small)))
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()


def test_a_run_s_sampler_is_its_own(made: dict[str, Path], tmp_path: Path) -> None:
    """DPM-Solver++ on the flow's grid."""
    job = preparation.prepare(composition.composed(given(made["1.0"], tmp_path, "method=base")))
    assert isinstance(job.scheduler, DpmSolver) and [point.t for point in job.grid[:3]] == [999, 982, 963] and job.grid[-2].t == 136


def test_what_decides_a_sample_is_another_run(made: dict[str, Path], tmp_path: Path) -> None:
    options = (
        "",
        "model.instruct=false",
        "model.size=64",
        "model.guidance_scale=2.0",
        "model.negative_prompt=red",
        "scheduler=flow",
    )
    jobs = [
        preparation.prepare(composition.composed(given(made["1.0"], tmp_path, "method=base", *([more] if more else []))))
        for more in options
    ]
    assert len({job.folder.path for job in jobs}) == len(options)
    assert any("text_encoder" in name for name in jobs[0].contents["model"])


# By what the folder says


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_known_by_the_folder(made: dict[str, Path], tmp_path: Path, kind: str, tried: Callable[..., None]) -> None:
    small = ["zoo=lab", "metrics=none", "device=cpu", f"outputs={tmp_path}", "method=base", "scheduler=dpm_solver"]
    cfg = composition.composed(["model=diffusers", f"model.path={made[kind]}", *small])
    sana = preparation.prepare(cfg).model
    assert type(sana) is Sana and (sana.guidance_scale, sana.instruct) == (4.5, True)
    with pytest.raises(BadValue, match="embedded_guidance.*not given its guidance"):
        families.any_model(path=str(made[kind]), name="x", embedded_guidance=4.5)
    assert families.reads(path=str(made[kind])) == (SanaFolder.needed(str(made[kind])),)
    tried("used")
