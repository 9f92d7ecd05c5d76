"""PixArt: against diffusers' own pipelines on tiny folders of their own classes, and what is refused of a folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import METHODS, check_method
from tiny_pixart import BETAS, save_pixart
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families
from guidedgen.models.pixart import PixArt
from guidedgen.models.pixart_folder import PixArtFolder
from guidedgen.process import Scheduler
from guidedgen.process.schedulers import Ddim, Ddpm, DpmSolver
from guidedgen.runs import composition, config, experiment, preparation

PROMPTS = ("a Cat ", "two dogs, red")
KINDS = ("sigma", "alpha")
SIZES = (16, (32, 16))
TRANSFORMER = "transformer/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
SAMPLERS: dict[str, type[DpmSolver] | type[Ddim]] = {"dpm_solver": DpmSolver, "ddim": Ddim}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers, of numpy 2


@pytest.fixture(scope="session")
def made(pixart_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds."""
    return {"sigma": pixart_folder, "alpha": save_pixart(tmp_path_factory.mktemp("alpha"), "alpha")}


def model(folder: Path, **options: Any) -> PixArt:
    return PixArt(path=str(folder), name="tiny", **{"dtype": "float64", "size": 16, **options})


def pipeline(folder: Path, sampler: str = "dpm_solver", dtype: torch.dtype = torch.float64) -> Any:
    from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    kind = DPMSolverMultistepScheduler if sampler == "dpm_solver" else DDIMScheduler
    more = (
        {}
        if sampler == "dpm_solver"
        else {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    )
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)
    return pipe


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def sample(pixart: PixArt, x_T: Tensor, scheduler: Scheduler | None = None, prompts: Sequence[str] = PROMPTS) -> Tensor:  # noqa: N803
    """b c h w -> the chain's last latents."""
    scheduler, past = scheduler or DpmSolver(num_steps=4), None
    grid, denoise, x = scheduler.grid(pixart.schedule), pixart.denoiser(tasks(*prompts)), x_T[:, None]
    with torch.no_grad():
        for t, s in pairwise(grid):
            prediction = denoise(x, t).after(past)
            past = prediction, t
            x, std = scheduler.transition(x, prediction, t, s)
            assert std == 0
    return x[:, 0]


def theirs(pipe: Any, pixart: PixArt, x_T: Tensor, steps: int = 4) -> tuple[Tensor, Tensor]:  # noqa: N803
    """The pipeline's latents b c h w and its pictures in [0, 1]."""
    height, width = pixart.image_size
    given = {
        "height": height, "width": width, "num_inference_steps": steps, "latents": x_T, "guidance_scale": pixart.guidance_scale,
        "negative_prompt": pixart.negative_prompt, "use_resolution_binning": False, "clean_caption": False,
    }  # fmt: skip
    return tuple(pipe(list(PROMPTS), **given, output_type=kind).images for kind in ("latent", "pt"))  # type: ignore[return-value]


def changed(folder: Path, copy: Path, name: str, **values: Any) -> Path:
    """A copy with other values in one of its configs; None takes a key out."""
    copy = Path(shutil.copytree(folder, copy))
    found = json.loads((copy / name).read_text()) | values
    (copy / name).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))
    return copy


def check_close(ours: Tensor, latents: Tensor) -> None:
    """To 1e-5 on values up to 10, and in proportion to the largest above: diffusers rounds every step to float32."""
    assert (ours - latents).abs().max() < 1e-6 * max(10.0, float(latents.abs().max()))


# Against diffusers


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_encoded_as_diffusers_does(made: dict[str, Path], kind: str) -> None:
    pixart, pipe = model(made[kind], negative_prompt="Red"), pipeline(made[kind])
    found = pipe.encode_prompt(list(PROMPTS), True, negative_prompt="Red", device="cpu")
    cond, uncond = pixart.condition(tasks(*PROMPTS))
    for ours, tokens, mask in ((cond, *found[:2]), (uncond, *(one[:1] for one in found[2:]))):
        assert ours.tokens.shape[1] == pixart.max_tokens == (300 if kind == "sigma" else 120) and ours.mask is not None
        assert torch.equal(ours.mask, mask)
        torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
    assert [int(row.sum()) for row in (*cond.mask, *uncond.mask)] == [  # type: ignore[misc, union-attr]
        1 + pixart.count_tokens(prompt) for prompt in (*PROMPTS, "red")
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, ""), (4.5, ""), (3.0, "a cat")])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_diffusers(
    made: dict[str, Path], kind: str, sampler: str, guidance_scale: float, negative_prompt: str, size: Any
) -> None:
    pixart = model(made[kind], guidance_scale=guidance_scale, negative_prompt=negative_prompt, size=size)
    x_T = normal(2, *pixart.latent_shape)  # noqa: N806
    latents, pictures = theirs(pipeline(made[kind], sampler), pixart, x_T)
    ours = sample(pixart, x_T, SAMPLERS[sampler](num_steps=4))
    check_close(ours, latents)
    assert pictures.std() > 0.02 and pictures.shape[2:] == pixart.image_size
    torch.testing.assert_close(pixart.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_diffusers(made: dict[str, Path], kind: str) -> None:
    """The pipeline's own sampler, number of steps and guidance."""
    pixart = model(made[kind])
    x_T = normal(2, *pixart.latent_shape)  # noqa: N806
    latents, _ = theirs(pipeline(made[kind]), pixart, x_T, steps=20)
    check_close(sample(pixart, x_T, DpmSolver(num_steps=20)), latents)


@pytest.mark.parametrize(
    "transformer", [{"out_channels": 4}, {"out_channels": None}, {"patch_size": 1}, {"interpolation_scale": 1}, {"attention_bias": False}]
)  # fmt: skip
def test_other_transformers_are_diffusers(made: dict[str, Path], tmp_path: Path, transformer: dict[str, Any]) -> None:
    folder = save_pixart(tmp_path / "made", "sigma", **transformer)
    pixart, pipe = model(folder), pipeline(folder)
    if transformer.get("out_channels", 8) is None:
        pipe.transformer.register_to_config(out_channels=4)  # which the pipeline needs
    x_T = normal(2, *pixart.latent_shape)  # noqa: N806
    latents, _ = theirs(pipe, pixart, x_T)
    check_close(sample(pixart, x_T), latents)


def test_other_schedules_are_diffusers(made: dict[str, Path], tmp_path: Path) -> None:
    for i, change in enumerate(({"prediction_type": "v_prediction"}, {"beta_schedule": "scaled_linear", "beta_end": 0.012})):
        folder = changed(made["sigma"], tmp_path / str(i), SCHEDULER, **change)
        pixart = model(folder)
        x_T = normal(2, *pixart.latent_shape)  # noqa: N806
        latents, _ = theirs(pipeline(folder), pixart, x_T)
        check_close(sample(pixart, x_T), latents)
        assert (latents - sample(model(made["sigma"]), x_T)).abs().max() > 1e-3


def test_half_precision_rounds_as_diffusers_does(made: dict[str, Path]) -> None:
    """One step of the same inputs in bfloat16."""
    pixart, pipe = model(made["sigma"], dtype="bfloat16", guidance_scale=1.0), pipeline(made["sigma"], dtype=torch.bfloat16)
    x = normal(2, *pixart.latent_shape).to(torch.bfloat16)
    (latents, _), (t, _) = theirs(pipe, pixart, x, steps=1), DpmSolver(num_steps=1).grid(pixart.schedule)
    with torch.no_grad():
        found = pixart.denoiser(tasks(*PROMPTS))(x.float()[:, None], t).x_0[:, 0]
    assert (found - latents).abs().max() < 2**-8 * found.abs().max()  # diffusers rounds x_0 too


def test_a_vae_that_overflows_computes_in_float32(made: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(made["sigma"], tmp_path / "copy", "vae/config.json", force_upcast=True)
    found = {dtype: model(folder, dtype=dtype).vae.dtype for dtype in ("float16", "bfloat16", "float64")}
    assert found == {"float16": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    plain = changed(made["sigma"], tmp_path / "plain", "vae/config.json", force_upcast=...)
    assert model(plain, dtype="float16").vae.dtype == torch.float16


def test_prompts_scales_positions_and_sizes_matter(made: dict[str, Path]) -> None:
    """Otherwise the comparisons above would not see them mixed up."""
    x_T, steps = normal(1, 4, 8, 8), DpmSolver(num_steps=3)  # noqa: N806
    for kind in KINDS:
        folder = made[kind]
        base = sample(model(folder), x_T, steps, ["a cat"])
        others = {
            "prompt": sample(model(folder), x_T, steps, ["two dogs, red"]),
            "scale": sample(model(folder, guidance_scale=1.0), x_T, steps, ["a cat"]),
            "negative prompt": sample(model(folder, negative_prompt="red"), x_T, steps, ["a cat"]),
            "position": sample(model(folder), x_T.flip(-1), steps, ["a cat"]).flip(-1),
        }
        for name, other in others.items():
            assert (base - other).abs().max() > 1e-3, (kind, name)
        assert torch.equal(base, sample(model(folder), x_T, steps, [" A CAT"]))  # as the pipeline reads it
        pixart = model(folder)
        cond, point = pixart.encode_prompts(["a cat"]), pixart.schedule.at(700.0)
        masked = type(cond)(cond.tokens, mask=torch.ones_like(cond.mask))
        assert (pixart.predict(x_T, point, cond) - pixart.predict(x_T, point, masked)).abs().max() > 1e-3
    wide = [model(made["alpha"], size=size) for size in ((16, 32), (32, 32))]
    cond, point = wide[0].encode_prompts(["a cat"]), wide[0].schedule.at(700.0)
    one, other = (pixart.predict(normal(1, 4, 8, 16), point, cond) for pixart in wide)
    assert (one - other).abs().max() > 1e-4  # the size that it is given


# What the folder says of itself


def test_nothing_is_loaded_to_say_so(made: dict[str, Path]) -> None:
    for kind, side, tokens in (("sigma", 8, 300), ("alpha", 128, 120)):
        pixart = model(made[kind], size=None)
        assert (pixart.latent_shape, pixart.image_size, pixart.max_tokens) == ((4, side, side), (2 * side, 2 * side), tokens)
        assert not {"transformer", "vae", "text_encoder", "tokenizer"} & set(vars(pixart))
        assert {path.name for path in pixart.files} == {"transformer", "vae", "text_encoder", "scheduler", "tokenizer"}


# What the configs of the repositories say, but for what describes how they were made.
REPOSITORY = {
    "activation_fn": "gelu-approximate", "attention_bias": True, "attention_head_dim": 72, "attention_type": "default",
    "caption_channels": 4096, "cross_attention_dim": 1152, "double_self_attention": False, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single",
    "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None,
    "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("pipeline_class", "own", "sized"),
    [
        ("PixArtSigmaPipeline", {"sample_size": 128, "interpolation_scale": 2, "use_additional_conditions": False}, False),
        ("PixArtSigmaPipeline", {"sample_size": 64, "interpolation_scale": 1, "use_additional_conditions": False}, False),
        ("PixArtSigmaPipeline", {"sample_size": 256, "interpolation_scale": 4, "use_additional_conditions": False}, False),
        ("PixArtAlphaPipeline", {"sample_size": 128}, True), ("PixArtAlphaPipeline", {"sample_size": 64}, False),
    ],
    ids=["Sigma 1024", "Sigma 512", "Sigma 2K", "alpha 1024", "alpha 512"],
)  # fmt: skip
def test_the_repositories_configs_are_taken(tmp_path: Path, pipeline_class: str, own: dict[str, Any], sized: bool) -> None:
    vae = {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 1024,
        "scaling_factor": 0.13025, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    t5 = {"architectures": ["T5EncoderModel"], "d_model": 4096, "model_type": "t5", "num_layers": 24, "vocab_size": 32128}
    index = {
        "_class_name": pipeline_class, "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "Transformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    files = {
        TRANSFORMER: {"_class_name": "Transformer2DModel", **REPOSITORY, **own}, "vae/config.json": vae, "text_encoder/config.json": t5,
        SCHEDULER: {"_class_name": "DPMSolverMultistepScheduler", **BETAS, "solver_order": 2, "prediction_type": "epsilon"},
        "model_index.json": index,
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    found = PixArtFolder(path=tmp_path, source="x")
    found.check()
    side = own["sample_size"]
    assert found.latent_shape == (4, side, side) and found.image_size == (8 * side, 8 * side) and found.sized == sized


def test_a_transformer_of_the_first_class_is_the_same(made: dict[str, Path], tmp_path: Path) -> None:
    """The repositories call it a Transformer2DModel, and name options that are not PixArt's."""
    copy = changed(
        made["sigma"], tmp_path / "copy", TRANSFORMER, _class_name="Transformer2DModel", num_vector_embeds=None,
        only_cross_attention=False, double_self_attention=False, use_linear_projection=False,
    )  # fmt: skip
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"transformer": ["diffusers", "Transformer2DModel"]}))
    x_T = normal(2, 4, 8, 8)  # noqa: N806
    latents, _ = theirs(pipeline(copy), model(copy), x_T)
    check_close(sample(model(copy), x_T), latents)


@pytest.mark.parametrize(
    ("kind", "name", "change", "why"),
    [
        ("sigma", SCHEDULER, {"prediction_type": "sample"}, "prediction_type 'sample'"),
        ("sigma", SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule 'squaredcos_cap_v2'"),
        ("sigma", SCHEDULER, {"thresholding": True}, r"clips predictions \(thresholding\)"),
        ("sigma", SCHEDULER, {"_class_name": "DDPMScheduler"}, r"clips predictions \(clip_sample\)"),
        ("sigma", SCHEDULER, {"beta_start": ...}, "has no beta_start"),
        ("sigma", TRANSFORMER, {"use_additional_conditions": True}, "side 8 whose transformer is given the picture's size"),
        ("sigma", TRANSFORMER, {"sample_size": 128, "use_additional_conditions": None}, "a PixArtSigmaPipeline on latents of side 128"),
        ("alpha", TRANSFORMER, {"sample_size": 64, "use_additional_conditions": True}, "a PixArtAlphaPipeline on latents of side 64"),
        ("sigma", TRANSFORMER, {"norm_type": "ada_norm_zero"}, "norm_type=ada_norm_zero"),
        ("sigma", TRANSFORMER, {"out_channels": 5}, "4 input and 5 output channels"),
        ("sigma", TRANSFORMER, {"in_channels": 8, "out_channels": 8}, "a transformer of 8 channels with a VAE of 4"),
        ("sigma", TRANSFORMER, {"cross_attention_dim": 20}, "cross_attention_dim=20 and states of 24 numbers"),
        ("sigma", TRANSFORMER, {"caption_channels": 20}, "texts of 20 numbers a token with a T5 of 16"),
        ("sigma", TRANSFORMER, {"caption_channels": None}, "has no caption_channels"),
        ("sigma", TRANSFORMER, {"patch_size": 3}, "patches of 3 on latents of side 8"),
        ("sigma", TRANSFORMER, {"sample_size": None}, "has no sample_size"),
        ("sigma", TRANSFORMER, {"quantization_config": {}}, "a quantised transformer"),
        ("sigma", TRANSFORMER, {"_class_name": "DiTTransformer2DModel"}, "of class DiTTransformer2DModel"),
        ("sigma", "vae/config.json", {"shift_factor": 0.1}, "a VAE with a shift_factor"),
        ("sigma", "text_encoder/config.json", {"model_type": "umt5"}, "a text_encoder of type umt5"),
        ("sigma", "model_index.json", {"tokenizer": [None, None]}, "names no tokenizer"),
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


@pytest.mark.parametrize("name", ["PixArtSigmaPAGPipeline", "HunyuanDiTPipeline"])
def test_other_pipelines_are_refused(made: dict[str, Path], tmp_path: Path, name: str, tried: Callable[..., None]) -> None:
    copy = changed(made["sigma"], tmp_path / "copy", "model_index.json", _class_name=name)
    with pytest.raises(UsageError, match=rf"a {name} .* is not supported; supported: PixArt"):
        model(copy)
    with pytest.raises(UsageError, match=rf"a {name} .* is not supported; supported: .*PixArtSigmaPipeline"):
        families.any_model(path=str(copy), name="x")
    tried("refused", 2)


def test_options_that_do_not_fit_are_refused(made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    for options, why in (
        ({"size": 18}, "must be multiples of 4"), ({"size": [32, 33]}, "must be multiples of 4"), ({"path": "lab"}, "no such PixArtSigmaPipeline is bundled"),
        ({"guidance_scale": -1.0}, "at least 0"),
    ):  # fmt: skip
        with pytest.raises(BadValue, match=why):
            PixArt(**{"path": str(made["sigma"]), "name": "tiny", **options})
        tried("refused")


def test_prompts_longer_than_the_pipeline_reads_are_refused(made: dict[str, Path], tried: Callable[..., None]) -> None:
    for kind, room in (("sigma", 299), ("alpha", 119)):
        pixart = model(made[kind])
        fits = "z" * (room - 1)  # a letter each, and the word's beginning
        assert pixart.count_tokens(fits) == room
        pixart.check(tasks("a cat", fits))
        for prompt in (fits + "z", "cat " * 600):
            with pytest.raises(UsageError, match=f"reads {room}; shorten it"):
                pixart.check(tasks("a cat", prompt))
            tried("refused")
        cut = model(made[kind], truncate_prompts=True)
        cut.check(tasks(fits + "z"))
        tokens, mask, *_ = pipeline(made[kind]).encode_prompt([fits + "z"], False, device="cpu")
        ours = cut.encode_prompts([fits + "z"])
        torch.testing.assert_close(ours.tokens, tokens, rtol=0, atol=1e-6)
        assert ours.mask is not None and torch.equal(ours.mask, mask) and mask.all()


# What was learned elsewhere


def test_another_transformer_is_taken(made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    """As diffusers' training scripts save it; the pipeline has no LoRA."""
    other = save_pixart(tmp_path / "other", "sigma")
    pipe = pipeline(other, dtype=torch.float32)
    for parameter in pipe.transformer.parameters():
        parameter.data.mul_(1.1)
    pipe.transformer.save_pretrained(tmp_path / "learned" / "transformer")
    x_T, learned = normal(2, 4, 8, 8), model(made["sigma"], learned=str(tmp_path / "learned"))  # noqa: N806
    latents, _ = theirs(pipe.to(torch.float64), learned, x_T)
    check_close(sample(learned, x_T), latents)
    assert (latents - sample(model(made["sigma"]), x_T)).abs().max() > 1e-3
    tried("used")


def test_a_lora_is_refused(made: dict[str, Path], tmp_path: Path, tried: Callable[..., None]) -> None:
    from safetensors.torch import save_file

    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 24), name.format("B"): torch.ones(24, 2)}, tmp_path / "pytorch_lora_weights.safetensors"
    )
    with pytest.raises(UsageError, match="PixArt takes weights of its transformer") as caught:
        model(made["sigma"], learned=str(tmp_path))
    assert "\n" not in str(caught.value)
    tried("refused")


# Every method runs on it


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_it(made: dict[str, Path], name: str) -> None:
    check_method(name, model(made["sigma"], dtype="float32"), Ddim(num_steps=4), Ddpm(num_steps=4))


@pytest.mark.parametrize("name", ["base", "mpgd", "freedom", "universal"])
def test_methods_run_on_its_own_sampler(made: dict[str, Path], name: str) -> None:
    check_method(name, model(made["alpha"], dtype="float32"), DpmSolver(num_steps=4), Ddpm(num_steps=4))


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))


def given(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "model=pixart_sigma", f"model.path={folder}", "zoo=lab", "metrics=lab", "device=cpu", "dataset=prompt",
        "dataset.prompt=a cat", "tracker=none", f"outputs={tmp_path}", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("method", NAMES)
def test_every_method_alone_is_a_command(
    made: dict[str, Path], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = given(made["sigma"], tmp_path, f"method={method}")
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
    assert isinstance(job.model, PixArt) and job.model.guidance_scale == 4.5


@pytest.mark.parametrize(
    "options",
    [
        ["method=base"], ["method=code", "method.num_particles=2"], ["method=doodl", "method.num_updates=1", "method.num_crops=0"],
        ["method=base", "model.negative_prompt=red", "model.vae_tiling=true", "model.vae_slicing=true", "model.size=[16,32]"],
    ],
)  # fmt: skip
def test_a_run_on_it(made: dict[str, Path], tmp_path: Path, options: list[str]) -> None:
    job = preparation.prepare(
        composition.composed(given(made["sigma"], tmp_path, *options, "scheduler.num_steps=4", "metrics=none"))
    )
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()


def test_a_run_s_sampler_is_its_own(made: dict[str, Path], tmp_path: Path) -> None:
    """DPM-Solver++ in 20 steps, at diffusers' times."""
    job = preparation.prepare(composition.composed(given(made["sigma"], tmp_path, "method=base")))
    pipe = pipeline(made["sigma"])
    pipe.scheduler.set_timesteps(20)
    assert isinstance(job.scheduler, DpmSolver) and [point.t for point in job.grid[:-1]] == pipe.scheduler.timesteps.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_known_by_the_folder(made: dict[str, Path], tmp_path: Path, kind: str, tried: Callable[..., None]) -> None:
    small = ["zoo=lab", "metrics=none", "device=cpu", f"outputs={tmp_path}", "method=base", "scheduler=dpm_solver"]
    cfg = composition.composed(["model=diffusers", f"model.path={made[kind]}", *small])
    pixart = preparation.prepare(cfg).model
    assert type(pixart) is PixArt and pixart.guidance_scale == 4.5
    with pytest.raises(BadValue, match="embedded_guidance.*not given its guidance"):
        families.any_model(path=str(made[kind]), name="x", embedded_guidance=4.5)
    assert families.reads(path=str(made[kind])) == (PixArtFolder.needed(str(made[kind])),)
    tried("used")
