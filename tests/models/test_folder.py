"""What a Stable Diffusion folder says of itself: kinds that are not supported, damaged files, and unusual ones that are used rightly."""

import inspect
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from steps import step
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_folder import StableDiffusionFolder
from guidedgen.zoo.needed import Needed

State = dict[str, Tensor]
Change = Callable[[Path], object]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 9\n"
DEEP = "[" * 100_000 + "]" * 100_000


def opened(path: object) -> StableDiffusion:
    return StableDiffusion(path=str(path), name="tiny", guidance_scale=2.0)


@pytest.fixture
def sd(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A folder to be changed."""
    return Path(shutil.copytree(folders["epsilon"], tmp_path / "sd"))


@pytest.fixture
def bare(sd: Path) -> Path:
    """One without any weights: what is refused here is refused before they are opened."""
    for part in StableDiffusionFolder.WEIGHTS:
        for file in (sd / part).glob("*.safetensors"):
            file.unlink()
    return sd


@pytest.fixture
def refused(tried: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Asserts that something ends in a UsageError of one line that is all there is, and returns that."""

    def check(act: Callable[[], object], expected: str) -> str:
        capfd.readouterr()
        with pytest.raises(UsageError, match=expected) as caught:
            act()
        message = str(caught.value)
        assert message.startswith("model.path=") and "\n" not in message and len(message) < 1000
        assert capfd.readouterr() == ("", "")
        tried("refused")
        return message

    return check


def changed(folder: Path, name: str, **changes: Any) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def part(folder: Path, name: str) -> Path:
    return folder / name / StableDiffusionFolder.WEIGHTS[name][0]


def rewritten(folder: Path, name: str, change: Callable[[State], State]) -> None:
    save_file(
        {key: value.contiguous() for key, value in change(load_file(part(folder, name))).items()},
        part(folder, name),
        {"format": "pt"},
    )


# Kinds of models, by their configs

UNET, VAE, TEXT, SCHEDULER, INDEX = StableDiffusionFolder.config_files().values()
KINDS: list[tuple[str, dict[str, Any], str]] = [
    (UNET, {"addition_embed_type": "text_time"}, "a UNet with addition_embed_type=text_time"),
    (UNET, {"class_embed_type": "timestep"}, "a UNet with class_embed_type=timestep"),
    (UNET, {"num_class_embeds": 10}, "a UNet with num_class_embeds=10"),
    (UNET, {"encoder_hid_dim_type": "text_proj"}, "a UNet with encoder_hid_dim_type"),
    (UNET, {"encoder_hid_dim": 32}, "a UNet with encoder_hid_dim"),
    (UNET, {"cross_attention_dim": 24}, "a UNet for texts of 24 numbers a token with a text encoder of 16"),
    (UNET, {"cross_attention_dim": [16, 24]}, r"a UNet for texts of \[16, 24\] numbers"),
    (UNET, {"in_channels": 9}, "a UNet of 9 input channels"),
    (UNET, {"in_channels": 5}, "a UNet of 5 input channels"),
    (UNET, {"in_channels": 8, "out_channels": 8}, "a VAE of 4 latent channels with a UNet of 8"),
    (UNET, {"_class_name": "UNetMotionModel"}, "a unet of class UNetMotionModel"),
    (UNET, {"quantization_config": {"quant_method": "bitsandbytes"}}, "a quantised unet"),
    (VAE, {"latent_channels": 8}, "a VAE of 8 latent channels with a UNet of 4"),
    (VAE, {"in_channels": 8, "out_channels": 8}, "a VAE of 8 input and 8 output channels"),
    (VAE, {"_class_name": "AutoencoderTiny"}, "a vae of class AutoencoderTiny"),
    (VAE, {"quantization_config": {}}, "a quantised vae"),
    (TEXT, {"model_type": "bert", "architectures": ["BertModel"]}, "a text encoder of type bert"),
    (TEXT, {"model_type": "clip", "architectures": ["CLIPModel"]}, "a text encoder of type clip"),
    (TEXT, {"architectures": ["BertModel"]}, "a text encoder of type clip_text_model"),
    (TEXT, {"quantization_config": {"bits": 4}}, "a quantised text_encoder"),
    (TEXT, {"use_attention_mask": True}, "a text encoder that masks padding"),
    (SCHEDULER, {"prediction_type": "sample"}, "prediction_type 'sample'"),
    (SCHEDULER, {"prediction_type": None}, "prediction_type None"),
    (SCHEDULER, {"prediction_type": ["epsilon"]}, "prediction_type"),
    (SCHEDULER, {"beta_schedule": "squaredcos_cap_v2"}, "squaredcos_cap_v2"),
    (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "beta_schedule"),
    (SCHEDULER, {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}, "zero terminal SNR"),
    (SCHEDULER, {"thresholding": True}, "thresholding"),
    (SCHEDULER, {"beta_start": 0.02}, "above its beta_end"),
    (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "a scheduler of class FlowMatchEulerDiscreteScheduler"),
    (INDEX, {"_class_name": "StableDiffusionXLPipeline"}, "a StableDiffusionXLPipeline"),
    (INDEX, {"_class_name": "LatentConsistencyModelPipeline"}, "a LatentConsistencyModelPipeline whose UNet takes no guidance"),
    (INDEX, {"_class_name": "StableDiffusionInpaintPipeline"}, "a StableDiffusionInpaintPipeline"),
    (INDEX, {"_class_name": ["StableDiffusionPipeline"]}, "StableDiffusionPipeline"),
    (INDEX, {"_class_name": None}, "a None"),
    (INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}, "a vae of class AutoencoderTiny"),
    (INDEX, {"text_encoder": ["transformers", "BertModel"]}, "a text_encoder of class BertModel"),
    (INDEX, {"scheduler": ["diffusers", "EDMEulerScheduler"]}, "a scheduler of class EDMEulerScheduler"),
    (INDEX, {"unet": ["my_code", "UNet2DConditionModel"]}, "code of its own"),
    (INDEX, {"tokenizer": [None, None]}, "names no tokenizer"),
    (INDEX, {"unet": 3}, "names no unet"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), KINDS, ids=lambda value: str(value)[:50])
def test_models_of_another_kind_are_refused(
    bare: Path, name: str, changes: dict[str, Any], expected: str, refused: Callable[..., str]
) -> None:
    changed(bare, name, **changes)
    assert "supported" in refused(lambda: opened(bare), expected)


VALUES: list[tuple[str, str, Any]] = [
    (UNET, "block_out_channels", "abc"),
    (UNET, "block_out_channels", []),
    (UNET, "block_out_channels", [8, "16"]),
    (UNET, "block_out_channels", [8, -16]),
    (UNET, "sample_size", "64"),
    (UNET, "sample_size", [8, 8]),
    (UNET, "sample_size", 10**12),
    (UNET, "sample_size", True),
    (UNET, "in_channels", None),
    (UNET, "cross_attention_dim", "16"),
    (UNET, "attention_head_dim", {"a": 1}),
    (UNET, "layers_per_block", 10**5),
    (UNET, "layers_per_block", [1, 10**5]),
    (UNET, "transformer_layers_per_block", [[1], [10**5]]),
    (UNET, "down_block_types", "DownBlock2D"),
    (UNET, "mid_block_scale_factor", "8"),
    (UNET, "norm_num_groups", "a"),
    (UNET, "downsample_padding", -1),
    (VAE, "norm_num_groups", True),
    (SCHEDULER, "num_train_timesteps", 1),
    (UNET, "freq_shift", ""),
    (UNET, "freq_shift", False),
    (TEXT, "eos_token_id", []),
    (VAE, "block_out_channels", "abc"),
    (VAE, "latent_channels", 4.5),
    (VAE, "scaling_factor", "0.18"),
    (VAE, "scaling_factor", float("nan")),
    (VAE, "scaling_factor", 0),
    (TEXT, "max_position_embeddings", "77"),
    (TEXT, "hidden_size", 0),
    (TEXT, "num_hidden_layers", 10**9),
    (TEXT, "vocab_size", [1]),
    (SCHEDULER, "beta_start", "0.1"),
    (SCHEDULER, "beta_end", float("inf")),
    (SCHEDULER, "num_train_timesteps", 1000.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "key", "value"), VALUES, ids=lambda value: str(value)[:30])
def test_values_of_another_type_are_refused(bare: Path, name: str, key: str, value: Any, refused: Callable[..., str]) -> None:
    changed(bare, name, **{key: value})
    refused(lambda: opened(bare), f"{name}: {key}=.* is not ")


@pytest.mark.parametrize(
    ("name", "key"), [(UNET, "sample_size"), *((SCHEDULER, key) for key in StableDiffusionFolder.REQUIRED["scheduler"])]
)
def test_keys_that_are_needed(bare: Path, name: str, key: str, refused: Callable[..., str]) -> None:
    changed(bare, name, **{key: None})
    refused(lambda: opened(bare), f"{name} has no {key}, which is needed")
    file = bare / name
    file.write_text(json.dumps({k: value for k, value in json.loads(file.read_text()).items() if k != key}))
    refused(lambda: opened(bare), f"{name} has no {key}, which is needed")


CONTENTS = {
    "empty": "",
    "cut off": "{",
    "list": "[]",
    "null": "null",
    "text": '"abc"',
    "pointer": POINTER,
    "deep": DEEP,
    "bytes": "\udcff",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", StableDiffusionFolder.config_files().values())
def test_configs_that_are_none(bare: Path, name: str, content: str, refused: Callable[..., str]) -> None:
    (bare / name).write_text(CONTENTS[content], errors="surrogateescape")
    message = refused(lambda: opened(bare), f"cannot read {name}")
    assert ("git lfs pull" in message) == (content == "pointer")


def _loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("become", [Path.unlink, _loop, _pipe, _directory], ids=["missing", "loop", "pipe", "directory"])
@pytest.mark.parametrize(
    "name",
    [
        *StableDiffusionFolder.config_files().values(),
        *(f"{name}/{files[0]}" for name, files in StableDiffusionFolder.WEIGHTS.items()),
    ],
)
def test_files_that_are_none(sd: Path, name: str, become: Callable[[Path], None], refused: Callable[..., str]) -> None:
    become(sd / name)
    refused(lambda: opened(sd), name.rpartition("/")[2])


@pytest.mark.parametrize("kind", ["file", "loop", "dangling", "part", "long", "nobody", "nul", "none"])
def test_paths_that_are_no_folders(sd: Path, tmp_path: Path, kind: str, refused: Callable[..., str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    paths = {
        "file": part(sd, "unet"), "loop": tmp_path / "loop", "dangling": tmp_path / "dangling", "part": sd / "unet",
        "long": tmp_path / ("x" * 5000), "nobody": "~nobody-at-all/x", "nul": "a\0b", "none": tmp_path / "nothing",
    }  # fmt: skip
    refused(lambda: opened(paths[kind]), "a folder|leads nowhere|has no|no such path")


# Weights, by their headers


def _pickled(folder: Path) -> None:
    torch.save({"a": Path("x")}, part(folder, "unet").with_suffix(".bin"))
    part(folder, "unet").unlink()


def _in_pieces(folder: Path, suffix: str = ".safetensors") -> list[Path]:
    """The UNet in pieces of which each has a third of the tensors."""
    whole = part(folder, "unet")
    state, names, weight_map = load_file(whole), [], {}
    for i in range(3):
        own = {key: state[key] for key in sorted(state)[i::3]}
        name = f"{whole.stem}-0000{i + 1}-of-00003{suffix}"
        save_file(own, whole.with_name(name), {"format": "pt"}) if suffix == ".safetensors" else torch.save(
            own, whole.with_name(name)
        )
        weight_map |= dict.fromkeys(own, name)
        names.append(whole.with_name(name))
    whole.with_name(f"{whole.stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    whole.unlink()
    return names


def _index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    _in_pieces(folder)
    file = part(folder, "unet").with_name(f"{part(folder, 'unet').name}.index.json")
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "weight_map": change(content["weight_map"])}))


def _both(folder: Path) -> None:
    whole = part(folder, "unet").read_bytes()
    _in_pieces(folder)
    part(folder, "unet").write_bytes(whole)


def _quantised(folder: Path) -> None:
    rewritten(folder, "vae", lambda state: {key: value.to(torch.int8) for key, value in state.items()})


def _eighth(folder: Path) -> None:
    rewritten(folder, "unet", lambda state: {key: value.to(torch.float8_e4m3fn) for key, value in state.items()})


FILES: dict[str, tuple[Change, str]] = {
    "pointer": (lambda folder: part(folder, "unet").write_text(POINTER), "unet: .* is a pointer of Git LFS .*git lfs pull"),
    "pointer of text": (
        lambda folder: part(folder, "text_encoder").write_text(POINTER),
        "text_encoder: .* is a pointer of Git LFS",
    ),
    "empty": (lambda folder: part(folder, "vae").write_bytes(b""), "vae: .* is cut off or damaged"),
    "short": (lambda folder: part(folder, "unet").write_bytes(part(folder, "unet").read_bytes()[:1000]), "unet: .* is cut off"),
    "cut off": (lambda folder: part(folder, "unet").write_bytes(part(folder, "unet").read_bytes()[:-1]), "unet: .* is cut off"),
    "page": (lambda folder: part(folder, "unet").write_text("<html>404</html>"), "unet: .* is cut off or damaged"),
    "pickled": (_pickled, "unet: diffusion_pytorch_model.bin is not a state dict of tensors .*pickled objects are refused"),
    "variant": (
        lambda folder: part(folder, "unet").rename(part(folder, "unet").with_suffix(".fp16.safetensors")),
        "has no unet/diffusion_pytorch_model.safetensors; diffusion_pytorch_model.fp16.safetensors is another variant",
    ),
    "other name": (lambda folder: part(folder, "unet").rename(folder / "unet/model.ckpt"), "has no unet/diffusion_pytorch_model"),
    "lost piece": (lambda folder: _in_pieces(folder)[1].unlink(), "00002-of-00003.safetensors, which .* names, is not there"),
    "pointer piece": (
        lambda folder: _in_pieces(folder)[1].write_text(POINTER),
        "00002-of-00003.safetensors is a pointer of Git LFS",
    ),
    "cut piece": (lambda folder: _in_pieces(folder)[2].write_bytes(b"x" * 100), "00003-of-00003.safetensors is cut off"),
    "pieces elsewhere": (
        lambda folder: _index(folder, lambda placed: dict.fromkeys(placed, "../vae/x")),
        "which .* names, is not there",
    ),
    "pieces mixed up": (
        lambda folder: _index(folder, lambda placed: dict.fromkeys(placed, next(iter(placed.values())))),
        "tensors differ",
    ),
    "index of less": (lambda folder: _index(folder, lambda placed: dict(list(placed.items())[1:])), "1 tensors differ"),
    "index of none": (lambda folder: _index(folder, lambda placed: {}), "index.json cannot be read"),
    "index of a list": (lambda folder: _index(folder, lambda placed: list(placed)), "index.json cannot be read"),
    "both": (_both, "has both unet/diffusion_pytorch_model.safetensors and pieces of it"),
    "int8": (_quantised, "vae: .* is quantised: .* is of type I8"),
    "float8": (_eighth, "unet: .* is quantised: .* is of type F8_E4M3"),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_weights_are_refused_before_anything_is_loaded(sd: Path, kind: str, refused: Callable[..., str]) -> None:
    break_it, expected = FILES[kind]
    break_it(sd)
    refused(lambda: opened(sd), expected)


# Weights, against their networks

NETWORKS = ("unet", "vae", "text_encoder")
TENSORS: dict[str, tuple[Callable[[State], State], str]] = {
    "compiled": (
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
        r"saved under torch.compile: \d+ keys begin with _orig_mod\. \(_orig_mod.*save network._orig_mod",
    ),
    "parallel": (lambda state: {f"module.{key}": value for key, value in state.items()}, "saved under DataParallel"),
    "missing": (lambda state: {key: state[key] for key in sorted(state)[3:]}, "the weights lack 3 tensors of its"),
    "one missing": (lambda state: {key: state[key] for key in sorted(state)[:-1]}, "the weights lack 1 tensors of its"),
    "more": (lambda state: state | {"add_embedding.weight": torch.zeros(2)}, "hold 1 tensors that .* does not have, add_embedding.weight first"),
    "renamed": (
        lambda state: {f"x.{key}": value for key, value in state.items()},
        r"the weights lack \d+ tensors of its .* and hold \d+ tensors that .* does not have",
    ),
    "shape": (
        lambda state: state | {max(state): torch.zeros(1, 2, 3)},
        "the weights have 1 tensors of another shape|expected shape .* but got",
    ),
    "whole": (lambda state: {key: value.long() for key, value in state.items()}, "is quantised: .* is of type I64"),
    "empty": (lambda state: {}, "the weights lack"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_do_not_fit_are_refused(sd: Path, name: str, kind: str, refused: Callable[..., str]) -> None:
    change, expected = TENSORS[kind]
    rewritten(sd, name, change)
    message = refused(lambda: getattr(opened(sd), name), expected)
    assert name in message.partition(": ")[2]


BUILT = [
    (UNET, {"act_fn": "nothing"}), (UNET, {"down_block_types": ["DownBlock2D"]}), (UNET, {"down_block_types": ["Foo", "Bar"]}),
    (UNET, {"attention_head_dim": 3}), (VAE, {"up_block_types": ["UpBlock"]}),
    (VAE, {"norm_num_groups": 7}), (TEXT, {"hidden_act": "nothing"}), (TEXT, {"num_attention_heads": 3}), (TEXT, {"layer_norm_eps": "a"}),
    (UNET, {"block_out_channels": [8, 32]}), (VAE, {"block_out_channels": [8, 8, 32]}), (TEXT, {"intermediate_size": 64}),
    (UNET, {"layers_per_block": 2}), (TEXT, {"num_hidden_layers": 3}), (TEXT, {"num_hidden_layers": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), BUILT, ids=str)
def test_configs_that_describe_no_network_or_another(
    sd: Path, name: str, changes: dict[str, Any], refused: Callable[..., str]
) -> None:
    changed(sd, name, **changes)
    refused(lambda: opened(sd).load(), "cannot load it as its|the weights (lack|hold|have)")


# What is used


def picture(model: StableDiffusion) -> Tensor:
    """b 3 H W, of two steps of DDIM."""
    from guidedgen.process.schedulers import Ddim

    scheduler = Ddim(num_steps=2)
    grid = scheduler.grid(model.schedule)
    x = torch.randn(1, 1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    denoise = model.denoiser([Task(id="a", prompt="a cat")])
    with torch.no_grad():
        for t, s in pairwise(grid):
            x = step(scheduler, x, denoise(x, t).eps, t, s, None)
        return model.decode(x[:, 0])


def theirs(folder: Path, latent_shape: tuple[int, int, int]) -> Tensor:
    """The same by diffusers' pipeline."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(1, *latent_shape, generator=torch.Generator().manual_seed(0))
    return pipe(["a cat"], latents=x, num_inference_steps=2, guidance_scale=2.0, output_type="pt").images


def _old_text_encoder(folder: Path) -> None:
    """As Stable Diffusion 1.x was released: another prefix, and the numbers of the positions."""
    positions = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    rewritten(folder, "text_encoder", lambda state: {f"text_model.{key}": value for key, value in state.items()} | positions)


def _old_vae(folder: Path) -> None:
    """The names of attention before diffusers 0.13."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(key: str) -> str:
        return next((key.replace(new, old) for new, old in names.items() if f".attentions.0.{new}." in key), key)

    rewritten(folder, "vae", lambda state: {rename(key): value for key, value in state.items()})
    assert any(".query." in key for key in load_file(part(folder, "vae")))


def _tensors_only(folder: Path) -> None:
    for name, (safe, pickled) in StableDiffusionFolder.WEIGHTS.items():
        torch.save(load_file(folder / name / safe), folder / name / pickled)
        (folder / name / safe).unlink()


def _vocabulary_and_merges(folder: Path) -> None:
    file = folder / "tokenizer/tokenizer.json"
    model = json.loads(file.read_text())["model"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]))
    file.unlink()


def _older_index(folder: Path) -> None:
    changed(folder, INDEX, _class_name="StableDiffusionImg2ImgPipeline", tokenizer=["transformers", "CLIPTokenizerFast"])
    shutil.rmtree(folder / "scheduler")
    (folder / "scheduler").mkdir()
    old = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    more = {"num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}
    (folder / SCHEDULER).write_text(json.dumps(old | more))


USED: dict[str, Change] = {
    "plain": lambda folder: None,
    "old text encoder": _old_text_encoder,
    "text encoder with its projection": lambda folder: rewritten(
        folder, "text_encoder", lambda state: state | {"text_projection.weight": torch.zeros(16, 16)}
    ),
    "old vae": _old_vae,
    "tensors only": _tensors_only,
    "in pieces": _in_pieces,
    "tensors only, in pieces": lambda folder: _in_pieces(folder, ".bin"),
    "half precision": lambda folder: rewritten(folder, "unet", lambda state: {key: value.half() for key, value in state.items()}),
    "vocabulary and merges": _vocabulary_and_merges,
    "shorter prompts": lambda folder: changed(folder, "tokenizer/tokenizer_config.json", model_max_length=7),
    "unknown keys": lambda folder: changed(folder, UNET, something_new=None),
    "width by block": lambda folder: changed(folder, UNET, cross_attention_dim=[16, 16]),
    "older index": _older_index,
    "safety checker": lambda folder: (folder / "safety_checker").mkdir(),
}  # fmt: skip


@pytest.mark.parametrize("kind", USED)
def test_unusual_folders_are_sampled_as_diffusers_does(
    folders: dict[str, Path], sd: Path, kind: str, tried: Callable[..., None]
) -> None:
    USED[kind](sd)
    model = opened(sd)
    ours = picture(model)
    assert ours.std() > 0.02
    whole = sd if kind != "tensors only, in pieces" else folders["epsilon"]  # of which the pipeline makes nothing
    torch.testing.assert_close(ours, theirs(whole, model.latent_shape), rtol=0, atol=1e-5)
    tried("used")


_DOWN = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
_FIRST = {
    UNET: {
        "_diffusers_version": "0.6.0", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
        "down_block_types": _DOWN, "in_channels": 4, "layers_per_block": 2, "out_channels": 4, "sample_size": 64,
    },
    VAE: {"_diffusers_version": "0.6.0", "block_out_channels": [128, 256, 512, 512], "in_channels": 3, "latent_channels": 4},
    TEXT: {
        "architectures": ["CLIPTextModel"], "bos_token_id": 0, "eos_token_id": 2, "hidden_size": 768, "max_position_embeddings": 77,
        "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "vocab_size": 49408,
    },
    SCHEDULER: {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "skip_prk_steps": True, "trained_betas": None, "clip_sample": False,
    },
}  # fmt: skip
_SECOND = {
    UNET: {
        **_FIRST[UNET], "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
        "sample_size": 96, "use_linear_projection": True, "num_class_embeds": None, "dual_cross_attention": False,
    },
    VAE: _FIRST[VAE],
    TEXT: {**_FIRST[TEXT], "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 23, "intermediate_size": 4096},
    SCHEDULER: {**_FIRST[SCHEDULER], "_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "set_alpha_to_one": False},
}  # fmt: skip
_PARTS = {
    "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "feature_extractor": ["transformers", "CLIPImageProcessor"],
}  # fmt: skip


@pytest.mark.parametrize(("configs", "side", "prediction"), [(_FIRST, 64, "epsilon"), (_SECOND, 96, "v_prediction")])
def test_what_stable_diffusion_s_own_configs_say(
    tmp_path: Path, configs: dict[str, dict[str, Any]], side: int, prediction: str, tried: Callable[..., None]
) -> None:
    """1.5 and 2.1 as they were released: few keys, some of them with values that mean nothing (eos_token_id)."""
    for name, content in {**configs, INDEX: {"_class_name": "StableDiffusionPipeline", **_PARTS}}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    described = StableDiffusionFolder(path=tmp_path, source="x")
    described.check()
    assert (described.latent_shape, described.image_size) == ((4, side, side), (8 * side, 8 * side))
    assert (described.max_tokens, described.prediction, len(described.schedule)) == (77, prediction, 1000)
    tried("used")


def test_the_first_configs_meant_64(bare: Path, tried: Callable[..., None]) -> None:
    """diffusers' pipeline takes a sample_size below 64 for 64 where its own version of then wrote the config."""
    for version, side in (("0.2.2", 64), ("0.8.1", 64), ("0.9.0", 8), ("0.42.1", 8), ("1.0.0", 8), ("abc", 8)):
        changed(bare, UNET, _diffusers_version=version)
        described = StableDiffusionFolder(path=bare, source="x")
        described.check()
        assert described.latent_shape == (4, side, side)
        tried("used")


def test_defaults_are_those_of_diffusers_and_transformers() -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig

    for name, kind in {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": DDIMScheduler}.items():
        signature = inspect.signature(kind.__init__).parameters
        for key, value in StableDiffusionFolder.DEFAULTS[name].items():
            default = signature[key].default
            assert (list(default) if isinstance(default, tuple) else default) == value
    assert {
        key: getattr(CLIPTextConfig(), key) for key in StableDiffusionFolder.DEFAULTS["text_encoder"]
    } == StableDiffusionFolder.DEFAULTS["text_encoder"]


def test_schedulers_are_those_of_the_pipeline() -> None:
    from diffusers.schedulers import KarrasDiffusionSchedulers

    plain = {one.name for one in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}
    assert set(StableDiffusionFolder.CLASSES["scheduler"]) == plain | {"LCMScheduler"}


# Words


def _tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def _add(content: dict[str, Any]) -> None:
    last = content["added_tokens"][-1]
    content["added_tokens"].append({**last, "id": last["id"] + 1, "content": "<new>"})


def _without_merges(folder: Path) -> None:
    _vocabulary_and_merges(folder)
    (folder / "tokenizer/merges.txt").unlink()


def _with_empty_merges(folder: Path) -> None:
    _vocabulary_and_merges(folder)
    (folder / "tokenizer/merges.txt").write_text("")


WORDS: dict[str, tuple[Change, str]] = {
    "no vocabulary": (lambda folder: (folder / "tokenizer/tokenizer.json").unlink(), "has no tokenizer/tokenizer.json and no"),
    "no folder": (lambda folder: shutil.rmtree(folder / "tokenizer"), "has no tokenizer/tokenizer.json and no"),
    "no merges": (_without_merges, "has no tokenizer/tokenizer.json and no tokenizer/vocab.json with tokenizer/merges.txt"),
    "empty merges": (_with_empty_merges, "merges never make 2 tokens"),
    "half of the merges": (
        lambda folder: _tokenizer(folder, lambda content: content["model"]["merges"].pop()),
        "merges never make 1 tokens of its vocabulary, 'cat</w>' first",
    ),
    "pointer": (lambda folder: (folder / "tokenizer/tokenizer.json").write_text(POINTER), "cannot load its tokenizer"),
    "cut off": (lambda folder: (folder / "tokenizer/tokenizer.json").write_text("{"), "cannot load its tokenizer"),
    "list": (lambda folder: (folder / "tokenizer/tokenizer.json").write_text("[]"), "cannot load its tokenizer"),
    "too many": (lambda folder: _tokenizer(folder, _add), "has 517 tokens, the last is number 516; its text encoder has 516"),
    "too few": (lambda folder: changed(folder, TEXT, vocab_size=1000), "has 516 tokens, the last is number 515; its text encoder has 1000"),
    "a hole": (
        lambda folder: _tokenizer(folder, lambda content: (content["model"]["vocab"].pop("!"))),
        "has 515 tokens, the last is number 515",
    ),
    "config of a list": (lambda folder: (folder / "tokenizer/tokenizer_config.json").write_text("[]"), "tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
def test_tokenizers_that_would_read_prompts_wrongly(sd: Path, kind: str, refused: Callable[..., str]) -> None:
    break_it, expected = WORDS[kind]
    break_it(sd)
    refused(lambda: opened(sd).check([Task(id="a", prompt="a cat")]), expected)
    with pytest.raises(UsageError, match=expected):  # where no prompt is measured, too
        StableDiffusion(path=str(sd), name="tiny", truncate_prompts=True).load()


# The hub


def test_configs_are_fetched_and_checked_before_weights(
    bare: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    asked: list[tuple[tuple[str, ...], ...]] = []

    def locate(self: Needed) -> Path:
        asked.append(self.weights)
        if self.weights:
            raise UsageError("model.path=org/tiny: not today")
        return bare

    monkeypatch.setattr(Needed, "locate", locate)
    refused(lambda: opened("org/tiny"), "not today")
    assert asked[0] == () and len(asked[1]) == 3
    assert all(first.endswith(".safetensors") and second.endswith(".bin") for first, second in asked[1])
    asked.clear()
    changed(bare, UNET, class_embed_type="timestep")
    refused(lambda: opened("org/tiny"), "class_embed_type")
    assert len(asked) == 1
