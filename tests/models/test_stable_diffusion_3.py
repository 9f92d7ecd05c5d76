"""Stable Diffusion 3: against diffusers' own pipeline on tiny folders of its own classes, and what is refused of a folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from every_method import METHODS, check_method
from torch import Tensor

from guidedgen.basics.attention import JointAttention
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.cli import command_line
from guidedgen.models import families, stable_diffusion_3
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_3 import StableDiffusion3
from guidedgen.process.formulas import from_velocity
from guidedgen.process.schedulers import Flow
from guidedgen.runs import composition, config, experiment, preparation

PROMPTS = ("a cat", "two dogs, red")
LENGTH = 12


@pytest.fixture(scope="session")
def folder(sd3_folder: Path) -> Path:
    return sd3_folder


def model(folder: Path, **options: Any) -> StableDiffusion3:
    return StableDiffusion3(path=str(folder), name="tiny", **options)


def pipeline(folder: Path, *, t5: bool = True) -> Any:
    from diffusers import StableDiffusion3Pipeline

    without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(sd: StableDiffusion3, x_T: Tensor, steps: int, prompts: Sequence[str] = PROMPTS) -> Tensor:  # noqa: N803
    """b c h w -> the chain's last latents."""
    scheduler, denoise, x = Flow(num_steps=steps), sd.denoiser(tasks(*prompts)), x_T[:, None]
    with torch.no_grad():
        for t, s in pairwise(scheduler.grid(sd.schedule)):
            x, std = scheduler.transition(x, denoise(x, t), t, s)
            assert std == 0
    return x[:, 0]


# Against diffusers


@pytest.mark.parametrize("t5", [True, False])
def test_prompts_are_encoded_as_diffusers_does(folder: Path, t5: bool) -> None:
    cond, uncond, pooled, unpooled = (
        pipeline(folder, t5=t5)
        .to(torch.float64)
        .encode_prompt(list(PROMPTS), None, None, device="cpu", do_classifier_free_guidance=True, negative_prompt="red")
    )
    ours, other = model(folder, t5=t5, negative_prompt="red", dtype="float64").condition(tasks(*PROMPTS))
    zeros = 0 if t5 else 255  # more; the last stands for them
    torch.testing.assert_close(F.pad(ours.tokens, (0, 0, 0, zeros)), cond, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(F.pad(other.tokens, (0, 0, 0, zeros)).expand_as(uncond), uncond, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.pooled.expand_as(unpooled), unpooled, rtol=0, atol=1e-6)
    assert (ours.tokens[:, LENGTH:] == 0).all() != t5


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize(("guidance_scale", "negative_prompt"), [(1.0, ""), (7.0, ""), (3.0, "a cat")])
def test_a_chain_is_diffusers(folder: Path, t5: bool, guidance_scale: float, negative_prompt: str) -> None:
    """In float64, as rounding that guidance enlarges differs from machine to machine; diffusers' scheduler rounds to float32."""
    sd = model(folder, t5=t5, guidance_scale=guidance_scale, negative_prompt=negative_prompt, dtype="float64")
    x_T = normal(2, *sd.latent_shape).double()  # noqa: N806
    pipe = pipeline(folder, t5=t5).to(torch.float64)
    given = {"latents": x_T, "num_inference_steps": 6, "guidance_scale": guidance_scale, "negative_prompt": [negative_prompt] * 2}
    theirs = pipe(list(PROMPTS), **given, height=16, width=16, output_type="latent").images
    ours = sample(sd, x_T, 6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5, check_dtype=False)
    pictures = pipe(list(PROMPTS), **given, height=16, width=16, output_type="pt").images
    assert pictures.std() > 0.02
    torch.testing.assert_close(sd.decode(ours), pictures, rtol=0, atol=1 / 255, check_dtype=False)


@pytest.mark.parametrize(("zeros", "t5", "copies"), [(256, False, 256), (256, True, 1), (64, False, 64), (63, False, 1)])
def test_zeros_are_read_once_where_a_picture_has_no_more_tokens(
    folder: Path, zeros: int, t5: bool, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture has 64 tokens here."""
    monkeypatch.setattr(stable_diffusion_3, "_T5_TOKENS", zeros)
    sd = model(folder, t5=t5)
    assert sd.copies == copies and sd.encode_prompts(["a cat"]).tokens.shape[1] == LENGTH + zeros // copies


@pytest.mark.parametrize("copies", [1, 7, 256])
@pytest.mark.parametrize("options", [{}, {"qk_norm": "rms_norm"}, {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}], ids=str)
def test_one_token_stands_for_many_equal_ones(options: dict[str, Any], copies: int) -> None:
    """The values and gradients of diffusers' own attention over all of them, in Stable Diffusion 3's and 3.5's transformers."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=4, **options,
    ).double()  # fmt: skip
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    text, pooled = torch.randn(2, 9, 12, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)

    def found(count: int, **more: Any) -> tuple[Tensor, ...]:
        output = network(x, F.pad(text, (0, 0, 0, count)), pooled, torch.tensor([300.0, 990.0]), **more).sample
        return output.detach(), *torch.autograd.grad(output.square().sum(), x)

    expected = found(copies)
    network.set_attn_processor(JointAttention())
    for ours, theirs in zip(found(1, joint_attention_kwargs={"copies": copies}), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)


def test_prompts_scales_and_t5_matter(folder: Path) -> None:
    """Otherwise the comparison above would not see them mixed up."""
    x_T = normal(1, *model(folder).latent_shape)  # noqa: N806
    base = sample(model(folder), x_T, 3, ["a cat"])
    for other in (
        sample(model(folder), x_T, 3, ["two dogs, red"]), sample(model(folder, guidance_scale=2.0), x_T, 3, ["a cat"]),
        sample(model(folder, t5=False), x_T, 3, ["a cat"]), sample(model(folder, negative_prompt="red"), x_T, 3, ["a cat"]),
    ):  # fmt: skip
        assert (base - other).abs().max() > 1e-3


def test_encoding_undoes_decoding_s_scale(folder: Path) -> None:
    sd, pictures = model(folder), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    latent = sd.vae.encode(2 * pictures - 1).latent_dist.mean
    torch.testing.assert_close(sd.encode(pictures), (latent - 0.0609) * 1.5305)


# What the folder says of itself


def test_nothing_is_loaded_to_say_so(folder: Path) -> None:
    sd = model(folder)
    assert (sd.latent_shape, sd.image_size, sd.max_tokens, sd.schedule.shift) == ((4, 8, 8), (16, 16), LENGTH, 3.0)
    assert not {"transformer", "vae", "text_encoders", "tokenizers", "t5_encoder"} & set(vars(sd))
    names = {path.name for path in sd.files}
    assert names == {
        "transformer",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "scheduler",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    }
    assert "text_encoder_3" not in {path.name for path in model(folder, t5=False).files}


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("scheduler", {"use_dynamic_shifting": True}, "a scheduler with use_dynamic_shifting=True"),
        ("scheduler", {"use_karras_sigmas": True, "invert_sigmas": True}, "use_karras_sigmas=True, invert_sigmas=True"),
        ("scheduler", {"shift": 0}, "shift=0 is not a number above 0"),
        ("transformer", {"in_channels": 16}, "16 input and 4 output channels"),
        ("transformer", {"joint_attention_dim": 20}, "texts of 20 numbers a token with text encoders of 24"),
        ("transformer", {"pooled_projection_dim": 21}, "pooled texts of 21 numbers with text encoders of 20"),
        ("transformer", {"patch_size": 3}, "patches of 3 on latents of side 8"),
        ("vae", {"latent_channels": 3}, "a VAE of 3 latent channels"),
        ("text_encoder_2", {"architectures": ["CLIPTextModel"]}, "a text_encoder_2 of type clip_text_model"),
        ("text_encoder_3", {"d_model": 64}, "a T5 of 64 numbers a token"),
        ("transformer", {"quantization_config": {}}, "a quantised transformer"),
    ],
)
def test_folders_that_would_be_sampled_wrongly_are_refused(
    folder: Path, tmp_path: Path, part: str, change: dict[str, Any], why: str, tried: Callable[..., None]
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UsageError, match=f"model.path=.*{why}"):
        model(copy)
    tried("refused")


def test_a_folder_without_t5_says_how_to_do_without(folder: Path, tmp_path: Path, tried: Callable[..., None]) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3")))
    file = copy / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}))
    with pytest.raises(UsageError, match=r"names no text_encoder_3; .* unless model\.t5=false"):
        model(copy)
    x_T = normal(1, 4, 8, 8)  # noqa: N806
    assert torch.equal(sample(model(copy, t5=False), x_T, 2, ["a cat"]), sample(model(folder, t5=False), x_T, 2, ["a cat"]))
    tried("refused")
    tried("used")


def test_other_pipelines_are_refused(folder: Path, folders: dict[str, Path], tried: Callable[..., None]) -> None:
    with pytest.raises(UsageError, match="a StableDiffusionPipeline .* is not supported; supported: Stable Diffusion 3"):
        model(folders["epsilon"])
    with pytest.raises(UsageError, match="a StableDiffusion3Pipeline .* is not supported; supported: Stable Diffusion 1"):
        StableDiffusion(path=str(folder), name="x")
    with pytest.raises(UsageError, match=r"model\.learned=/no/such"):
        model(folder, learned="/no/such")
    tried("refused", 3)


def test_long_prompts_are_refused(folder: Path) -> None:
    long = "cat " * 20
    with pytest.raises(UsageError, match="reads 10"):
        model(folder).check(tasks("a cat", long))
    model(folder, truncate_prompts=True).check(tasks(long))
    cond, *_ = pipeline(folder).to(torch.float64).encode_prompt([long], None, None, device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(
        model(folder, truncate_prompts=True, dtype="float64").encode_prompts([long]).tokens, cond, rtol=0, atol=1e-6
    )


# Every method runs on it


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_it(folder: Path, name: str) -> None:
    check_method(name, model(folder, guidance_scale=2.0, t5=False), Flow(num_steps=4), Flow(num_steps=4, eta=1.0))


def test_the_edict_pair_inverts_a_picture_on_a_flow(folder: Path) -> None:
    """Its steps by velocities are undone to rounding, from a latent to pure noise and back."""
    from guidedgen.process.chains import EdictChain, walk

    sd = model(folder, guidance_scale=2.0, t5=False, dtype="float64")
    grid = Flow(num_steps=6).grid(sd.schedule)
    chain = EdictChain(denoise=sd.denoiser(tasks(*PROMPTS)), grid=grid, by_velocity=True)
    start = chain.start(normal(2, 1, *sd.latent_shape).double())
    with torch.no_grad():
        state = start
        for i in reversed(range(len(chain))):
            state = chain.unstep(state, i)
        again = walk(chain, state)
    for ours, theirs in zip(again, start, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_velocities_say_what_latents_are_made_of() -> None:
    from guidedgen.process.grid import FlowSchedule

    x_0, eps = normal(2, 1, 4, 8, 8).double(), normal(2, 1, 4, 8, 8, seed=1).double()
    for t in (1000.0, 700.0, 20.0, 0.0):
        point = FlowSchedule().at(t)
        prediction = from_velocity(point.alpha * x_0 + point.sigma * eps, eps - x_0, point)
        torch.testing.assert_close(prediction.x_0, x_0, rtol=0, atol=1e-12)
        torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-12)


# As commands


NAMES = sorted(path.stem for path in (config.CONF / "method").glob("*.yaml"))


def given(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    small = [
        "model=sd3_medium",
        f"model.path={folder}",
        "zoo=lab",
        "metrics=lab",
        "device=cpu",
        "dataset=prompt",
        "dataset.prompt=a cat",
    ]
    return [*small, "tracker=none", f"outputs={tmp_path}", *more]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_alone_is_a_command(folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["dataset=lab_pictures", "dataset.limit=1", "model.truncate_prompts=true", "~dataset.prompt"] if name == "sdedit" else []
    overrides = given(folder, tmp_path, f"method={name}")
    if own:
        overrides = [override for override in overrides if not override.startswith("dataset")] + own[:3]
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
def test_a_run_on_it(folder: Path, tmp_path: Path, options: list[str]) -> None:
    cfg = composition.composed(given(folder, tmp_path, *options, "scheduler.num_steps=4", "metrics=none"))
    job = preparation.prepare(cfg)
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 1 and not job.folder.failures()
    again = preparation.prepare(
        composition.composed(given(folder, tmp_path, *options, "scheduler.num_steps=4", "metrics=none", "model.t5=false"))
    )
    assert again.folder.path != job.folder.path  # T5 decides a sample
    assert any("text_encoder_3" in name for name in job.contents["model"])


# By what the folder says


def test_the_family_is_known_by_the_folder(
    folder: Path, folders: dict[str, Path], tmp_path: Path, tried: Callable[..., None]
) -> None:
    for path, kind, scale in ((folder, StableDiffusion3, 7.0), (folders["epsilon"], StableDiffusion, 7.5)):
        cfg = composition.composed(
            [
                "model=diffusers",
                f"model.path={path}",
                "zoo=lab",
                "metrics=none",
                "device=cpu",
                f"outputs={tmp_path}",
                "model.truncate_prompts=true",
            ]
        )
        job = preparation.prepare(cfg)
        assert type(job.model) is kind and job.model.guidance_scale == scale
        tried("used")
    without = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3")))
    file = without / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}))
    assert families.any_model(path=str(without), name="x", guidance_scale=2.0).guidance_scale == 2.0
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "KolorsPipeline"}))
    with pytest.raises(UsageError, match="a KolorsPipeline .* supported: StableDiffusionPipeline, .*StableDiffusion3Pipeline"):
        families.any_model(path=str(without), name="x")
    for content in ("[1]", "{", ""):
        file.write_text(content)
        with pytest.raises(UsageError, match=r"model_index\.json"):
            families.any_model(path=str(without), name="x")
    with pytest.raises(BadValue, match="path"):
        families.any_model(path="", name="x")
    tried("refused", 5)


def test_a_folder_s_files_are_known_by_its_family(folder: Path, folders: dict[str, Path]) -> None:
    assert {"text_encoder_3/config.json"} <= set(families.reads(path=str(folder))[0].required)
    assert "unet/config.json" in families.reads(path=str(folders["epsilon"]))[0].required
