"""What model.learned takes is used as diffusers' own loaders use it, or refused in one line before weights load."""

import copy
import functools
import json
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.models.stable_diffusion import StableDiffusion

PROMPT, RANK = "a cat", 2
Tried = Callable[..., None]
Tensors = dict[str, Tensor]
LORA, WORD = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


@pytest.fixture
def source(folders: dict[str, Path]) -> Path:
    return folders["epsilon"]


def pipeline(folder: Path) -> Any:
    """To be changed: a copy of what is loaded once."""
    return copy.deepcopy(loaded(folder))


@functools.lru_cache(maxsize=4)
def loaded(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


@functools.lru_cache(maxsize=8)
def unchanged(folder: Path, prompt: str) -> tuple[Tensor, Tensor]:
    return theirs(pipeline(folder), prompt)


def noise() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@torch.no_grad()
def theirs(pipe: Any, prompt: str = PROMPT) -> tuple[Tensor, Tensor]:
    """Text embedding and the UNet's prediction, by diffusers' pipeline, in float64."""
    pipe.to(torch.float64)
    embedding, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    return embedding, pipe.unet(noise(), 500, embedding.expand(2, -1, -1)).sample


@torch.no_grad()
def ours(folder: Path, learned: object, prompt: str = PROMPT) -> tuple[Tensor, Tensor]:
    """The same by this package. A word that the prompt does not hold comes to its beginning: prompts here hold them."""
    model = StableDiffusion(path=str(folder), name="tiny", learned=learned, dtype="float64")
    embedding = model.encode_prompts([model.words.expanded(prompt)])
    assert not any(value.requires_grad for network in (model.unet, model.text_encoder) for value in network.parameters())
    return embedding, model.unet(noise(), 500, embedding.expand(2, -1, -1)).sample


def assert_same(mine: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Equal but for the order of sums. In float64 that is far below any difference in what is read, on every processor."""
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11 * two.abs().max().item())


def changed(folder: Path, outputs: tuple[Tensor, Tensor], prompt: str = PROMPT) -> list[bool]:
    """Whether the text embedding and the prediction are other than without."""
    return [bool((one - two).norm() > 1e-3 * two.norm()) for one, two in zip(outputs, unchanged(folder, prompt), strict=True)]


def rand(*shape: int, seed: int = 0, size: float = 0.5) -> Tensor:
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halves(network: Any, ends: tuple[str, ...], rank: int = RANK) -> dict[str, tuple[Tensor, Tensor]]:
    """Two halves of a LoRA for each module whose name ends so, linear or convolution."""
    found = {}
    for i, (name, module) in enumerate(network.named_modules()):
        if name.endswith(ends) and hasattr(module, "weight"):
            out, *rest = module.weight.shape
            found[name] = rand(rank, *rest, seed=2 * i), rand(out, rank, *(1 for _ in rest[1:]), seed=2 * i + 1)
    return found


def peft_names(pairs: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "") -> Tensors:
    return {
        f"{prefix}{name}.lora_{half}.weight": value for name, pair in pairs.items() for half, value in zip("AB", pair, strict=True)
    }


def kohya_names(pairs: Mapping[str, tuple[Tensor, Tensor]], prefix: str, alpha: float | Callable[[int], float] | None) -> Tensors:
    found: Tensors = {}
    for i, (name, (down, up)) in enumerate(pairs.items()):
        key = prefix + name.replace(".", "_")
        found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            found[f"{key}.alpha"] = torch.tensor(float(alpha(i) if callable(alpha) else alpha))
    return found


TEXT_OF_2023 = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def replaced(name: str, word: str) -> str:
    return name.replace("lora_A", f"{word}.down").replace("lora_B", f"{word}.up")


def renamed(tensors: Tensors, change: Callable[[str], str]) -> Tensors:
    return {change(name): value for name, value in tensors.items()}


def old_names(pairs: Mapping[str, tuple[Tensor, Tensor]], prefix: str, projections: Mapping[str, str] | None = None) -> Tensors:
    """Those of diffusers in spring 2023: the attention's processor, and to_out without its number; text encoders' like UNets'."""
    found: Tensors = {}
    for name, pair in pairs.items():
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        for half, value in zip(("down", "up"), pair, strict=True):
            middle = f"processor.{projection}" if projections is None else projections[projection]
            found[f"{prefix}{attention}.{middle}_lora.{half}.weight"] = value
    return found


def write(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None, name: str = LORA) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / name, metadata)
    return folder


def peft_config(**options: Any) -> dict[str, Any]:
    from peft import LoraConfig

    config = LoraConfig(r=RANK, target_modules=list(ATTENTION), **options).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def header(config: Mapping[str, Any], prefix: str = "unet.") -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in config.items()})}


def lora_file(kind: str, pipe: Any, folder: Path) -> Path:
    """A LoRA of random numbers, as one of the programs saves it."""
    unet, text = halves(pipe.unet, ATTENTION), halves(pipe.text_encoder, TEXT)
    old_text = {f"text_model.{name}": pair for name, pair in text.items()}
    match kind:
        case "plain":
            return write(folder, peft_names(unet, "unet."))
        case "alpha in its metadata":
            return write(folder, peft_names(unet, "unet."), header(peft_config(lora_alpha=8)))
        case "rank-stabilised":
            return write(folder, peft_names(unet, "unet."), header(peft_config(lora_alpha=3, use_rslora=True)))
        case "with its text encoder":
            return write(folder, peft_names(unet, "unet.") | peft_names(text, "text_encoder."))
        case "text encoder alone":
            return write(folder, peft_names(text, "text_encoder."))
        case "text encoder of earlier transformers":
            return write(folder, peft_names(old_text, "text_encoder."))
        case "of 2023":
            return write(folder, old_names(unet, "unet."))
        case "with other layers":
            more = halves(pipe.unet, ("ff.net.2", "proj_in", "conv1", "conv_in", "time_emb_proj"), rank=RANK + 1)
            return write(folder, peft_names(unet | more, "unet."))
        case "text encoder of 2023":
            return write(folder, old_names(unet, "unet.") | old_names(old_text, "text_encoder.", TEXT_OF_2023))
        case "text encoder of autumn 2023":
            text_names = renamed(peft_names(old_text, "text_encoder."), lambda name: replaced(name, "lora_linear_layer"))
            return write(folder, renamed(peft_names(unet, "unet."), lambda name: replaced(name, "lora")) | text_names)
        case "tensors of torch":
            folder.mkdir()
            torch.save(peft_names(unet, "unet."), folder / "pytorch_lora_weights.bin")
            return folder
        case "kohya":
            return write(
                folder, kohya_names(unet, "lora_unet_", 1) | kohya_names(old_text, "lora_te_", 1), name="style.safetensors"
            )
        case "kohya without alpha":
            return write(folder, kohya_names(unet, "lora_unet_", None))
        case "kohya with convolutions":
            more = halves(pipe.unet, ("conv1", "conv2", "time_emb_proj", "proj_out", "ff.net.2"))
            return write(folder, kohya_names(unet | more, "lora_unet_", 1))
    raise AssertionError(kind)


LORA_KINDS = [
    "plain", "alpha in its metadata", "rank-stabilised", "with its text encoder", "text encoder alone", "of 2023", "with other layers",
    "text encoder of earlier transformers", "text encoder of 2023", "text encoder of autumn 2023", "tensors of torch", "kohya", "kohya without alpha", "kohya with convolutions",
]  # fmt: skip


@pytest.mark.parametrize("kind", LORA_KINDS)
def test_a_lora_acts_as_in_diffusers(source: Path, tmp_path: Path, kind: str, tried: Tried) -> None:
    pipe = pipeline(source)
    folder = lora_file(kind, pipe, tmp_path / "lora")
    pipe.load_lora_weights(folder)
    mine = ours(source, str(folder))
    assert_same(mine, theirs(pipe))
    text_too = "text" in kind or kind == "kohya"
    assert changed(source, mine) == [text_too, True]
    (file,) = folder.iterdir()
    assert_same(ours(source, str(file)), mine)  # the file itself is as good as its folder
    tried("used")


def test_each_module_of_kohya_has_its_own_alpha(source: Path, tmp_path: Path, tried: Tried) -> None:
    """Against weights to which B A alpha / rank is added: diffusers takes the most frequent alpha for all."""
    pipe = pipeline(source)
    unet, text = halves(pipe.unet, ATTENTION), halves(pipe.text_encoder, (*TEXT, "fc1"))

    def alpha(i: int) -> float:
        return 2.0 ** (i % 3 - 1)  # which float32 multiplies by without rounding

    old = {f"text_model.{name}": pair for name, pair in text.items()}
    folder = write(tmp_path / "lora", kohya_names(unet, "lora_unet_", alpha) | kohya_names(old, "lora_te_", alpha))
    pipe.to(torch.float64)
    for network, pairs in ((pipe.unet, unet), (pipe.text_encoder, text)):
        for i, (name, (down, up)) in enumerate(pairs.items()):
            network.get_submodule(name).weight.data += up.double() @ down.double() * alpha(i) / RANK
    mine, other = ours(source, str(folder)), theirs(pipe)
    assert_same(mine, other)
    tried("used")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("alpha", [None, 8])
def test_a_lora_of_one_network_alone_needs_no_prefix(
    source: Path, tmp_path: Path, part: str, alpha: int | None, tried: Tried
) -> None:
    """The UNet's as its save_lora_adapter writes it; the reference is the same file with a prefix."""
    pipe = pipeline(source)
    pairs = halves(getattr(pipe, part), ATTENTION if part == "unet" else TEXT)
    targets = sorted({name.removesuffix(".0").rpartition(".")[2] + (".0" if name.endswith(".0") else "") for name in pairs})
    config = peft_config() if alpha is None else {**peft_config(lora_alpha=alpha), "target_modules": targets}
    plain = write(tmp_path / "plain", peft_names(pairs), None if alpha is None else header(config, ""))
    full = write(tmp_path / "full", peft_names(pairs, f"{part}."), None if alpha is None else header(config, f"{part}."))
    if part == "unet":
        pipe.unet.load_lora_adapter(plain, prefix=None, weight_name=LORA)
    else:
        pipe.load_lora_weights(full)
    mine = ours(source, str(plain))
    assert_same(mine, theirs(pipe))
    assert changed(source, mine) == [part == "text_encoder", True]
    tried("used")


def test_an_old_lora_of_the_unet_alone_acts_as_with_its_prefix(source: Path, tmp_path: Path, tried: Tried) -> None:
    """What diffusers' first training scripts left, for unet.load_attn_procs."""
    pipe = pipeline(source)
    folder = tmp_path / "lora"
    folder.mkdir()
    torch.save(old_names(halves(pipe.unet, ATTENTION), ""), folder / "pytorch_lora_weights.bin")
    pipe.load_lora_weights(lora_file("of 2023", pipe, tmp_path / "prefixed"))
    assert_same(ours(source, str(folder)), theirs(pipe))
    tried("used")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's use of transformers
@pytest.mark.parametrize("layout", ["root", "parts"])
def test_a_lora_of_peft_acts_as_in_peft(source: Path, tmp_path: Path, layout: str, tried: Tried) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    parts = {"unet": ATTENTION, "text_encoder": TEXT} if layout == "parts" else {"unet": ATTENTION}
    pipe = pipeline(source)
    for part, ends in parts.items():
        adapted = get_peft_model(getattr(pipe, part), LoraConfig(r=RANK, lora_alpha=6, target_modules=list(ends)))
        for i, (name, value) in enumerate(adapted.named_parameters()):
            if "lora_B" in name:  # zero at first
                value.data.copy_(rand(*value.shape, seed=i))
        adapted.save_pretrained(tmp_path / "lora" / part if layout == "parts" else tmp_path / "lora")
    pipe = pipeline(source)
    for part in parts:
        adapted = PeftModel.from_pretrained(
            getattr(pipe, part), tmp_path / "lora" / part if layout == "parts" else tmp_path / "lora"
        )
        setattr(pipe, part, adapted.base_model.model.eval())
    mine = ours(source, str(tmp_path / "lora"))
    assert_same(mine, theirs(pipe))
    assert changed(source, mine) == [layout == "parts", True]
    tried("used")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_act_together_each_with_its_scale(source: Path, tmp_path: Path, tried: Tried) -> None:
    pipe = pipeline(source)
    first = lora_file("with its text encoder", pipe, tmp_path / "first")
    second = lora_file("alpha in its metadata", pipe, tmp_path / "second")
    third = lora_file("kohya", pipe, tmp_path / "third")
    word = write(tmp_path / "word", {"<fx>": rand(1, 16)}, name=WORD)
    for name, folder in {"first": first, "second": second, "third": third}.items():
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.load_textual_inversion(word)
    learned = [{"path": str(first), "scale": 0.7}, str(word), {"path": str(second), "scale": -0.2}, {"path": str(third)}]
    pipe.set_adapters(["first", "second", "third"], [0.7, -0.2, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # diffusers' own loaders warn of a second LoRA
        mine = ours(source, learned, "a <fx> cat")
    assert_same(mine, theirs(pipe, "a <fx> cat"))
    pipe.set_adapters(["first"], [0.3])
    assert_same(ours(source, {"path": str(first), "scale": 0.3}), theirs(pipe))
    tried("used", 2)


# Whole networks


def perturbed(source: Path, folder: Path, *, pieces: bool = False, safe: bool = True) -> Path:
    """The pipeline with other weights."""
    pipe = pipeline(source)
    for network in (pipe.unet, pipe.text_encoder, pipe.vae):
        for i, value in enumerate(network.parameters()):
            value.data += rand(*value.shape, seed=i, size=0.05)
    size = {"max_shard_size": "20KB"} if pieces else {}
    pipe.unet.save_pretrained(folder / "unet", safe_serialization=safe, **size)
    pipe.text_encoder.save_pretrained(folder / "text_encoder", **size)
    if not safe:
        (folder / "text_encoder" / "model.safetensors").unlink()
        torch.save(pipe.text_encoder.state_dict(), folder / "text_encoder" / "pytorch_model.bin")
    pipe.vae.save_pretrained(folder / "vae")
    for name in ("scheduler", "tokenizer"):
        shutil.copytree(source / name, folder / name)
    shutil.copy(source / "model_index.json", folder)
    return folder


@pytest.mark.parametrize("kind", ["pieces", "tensors of torch", "whole pipeline", "two parts", "unet's own folder", "unet's file"])
def test_networks_take_the_place_of_the_model_s(source: Path, tmp_path: Path, kind: str, tried: Tried) -> None:
    folder = perturbed(source, tmp_path / "other", pieces=kind == "pieces", safe=kind != "tensors of torch")
    if kind == "pieces":
        assert len(list((folder / "unet").glob("*.safetensors"))) > 2
    pipe, other = pipeline(source), pipeline(folder)
    learned = folder
    if kind == "whole pipeline":
        pipe = other
    elif kind.startswith("unet"):
        learned = folder / "unet" if kind.endswith("folder") else folder / "unet" / "diffusion_pytorch_model.safetensors"
        pipe.unet = other.unet
    else:
        (folder / "model_index.json").unlink()
        pipe.unet, pipe.text_encoder = other.unet, other.text_encoder
    mine = ours(source, str(learned))
    assert_same(mine, theirs(pipe))
    assert changed(source, mine) == [not kind.startswith("unet"), True]
    model = StableDiffusion(path=str(source), name="tiny", learned=str(learned), dtype="float64")
    with torch.no_grad():
        z = noise()
        torch.testing.assert_close(model.vae.decode(z).sample, pipe.vae.decode(z).sample, rtol=0, atol=1e-11)
    tried("used")


# Words


WORD_KINDS = ["diffusers", "torch", "AUTOMATIC1111", "emb_params", "original", "bare tensor"]


@pytest.mark.parametrize(("kind", "count"), [("one axis", 1), *((kind, count) for kind in WORD_KINDS for count in (1, 3))])
def test_a_word_is_read_as_in_diffusers(source: Path, tmp_path: Path, kind: str, count: int, tried: Tried) -> None:
    embedding = rand(count, 16)
    folder = tmp_path / "word"
    folder.mkdir()
    file, token = folder / "zfx.pt", None
    match kind:
        case "diffusers" | "one axis":
            file = folder / WORD
            save_file({"<fx>": embedding[0].clone() if kind == "one axis" else embedding}, file)
        case "torch":
            file = folder / "learned_embeds.bin"
            torch.save({"<fx>": torch.nn.Parameter(embedding)}, file)
        case "AUTOMATIC1111":
            more = {"string_to_token": {"*": 265}, "step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None}
            torch.save({"string_to_param": {"*": embedding}, "name": "<fx>", **more}, file)
        case "emb_params":
            file, token = folder / "zfx.safetensors", "zfx"
            save_file({"emb_params": embedding}, file)
        case "original":
            token = "zfx"
            torch.save(
                {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": embedding})}, file
            )
        case "bare tensor":
            token = "zfx"
            torch.save(embedding, file)
    pipe, prompt = pipeline(source), f"a {token or '<fx>'} cat"
    if kind == "original":  # which diffusers takes as numbers alone
        pipe.load_textual_inversion({token: embedding}, token=token)
    else:
        pipe.load_textual_inversion(file.parent, weight_name=file.name, token=token)
    for learned in (folder, file):
        assert_same(ours(source, str(learned), prompt), theirs(pipe, prompt))
    assert changed(source, theirs(pipe, prompt), "a cat cat") == [True, True]
    tried("used")


def test_words_of_several_files_and_words_in_words_are_each_read(source: Path, tmp_path: Path, tried: Tried) -> None:
    embeddings = {"<fx>": rand(2, 16, seed=1), "<fx>er": rand(3, 16, seed=2), "zz9": rand(1, 16, seed=3)}
    for i, (name, value) in enumerate(embeddings.items()):
        write(tmp_path, {name: value}, name=f"{i}.safetensors")
    pipe = pipeline(source)
    for name, value in embeddings.items():
        pipe.load_textual_inversion({name: value})
    # Spelt out and past its pipeline, as diffusers would put <fx>'s second token into <fx>er.
    with_tokens = "a <fx> <fx>_1 zz9 <fx>er <fx>er_1 <fx>er_2"
    ids = pipe.tokenizer(with_tokens, padding="max_length", max_length=12, return_tensors="pt").input_ids
    assert ids.shape == (1, 12)
    with torch.no_grad():
        embedding = pipe.text_encoder.double()(ids).last_hidden_state
    for prompt in ("a <fx> zz9 <fx>er", "a <FX> ZZ9 <Fx>ER"):  # the tokenizer knows no upper case
        torch.testing.assert_close(ours(source, str(tmp_path), prompt)[0], embedding, rtol=0, atol=1e-11)
    tried("used")


def test_a_word_of_the_negative_prompt_is_used_there_and_nowhere_else(source: Path, tmp_path: Path, tried: Tried) -> None:
    from guidedgen.basics.tasks import Task

    folder = write(tmp_path / "word", {"<bad>": rand(3, 16)}, name=WORD)
    model = StableDiffusion(path=str(source), name="tiny", learned=str(folder), negative_prompt="<bad> cat", dtype="float64")
    denoiser = model.denoiser([Task(id="0", prompt=PROMPT)])
    pipe = pipeline(source)
    pipe.load_textual_inversion(folder)
    pipe.to(torch.float64)
    cond, uncond = pipe.encode_prompt(PROMPT, "cpu", 1, True, "<bad> cat")
    torch.testing.assert_close(denoiser.cond.tokens, cond, rtol=0, atol=1e-11)
    torch.testing.assert_close(denoiser.uncond.tokens, uncond, rtol=0, atol=1e-11)
    model.check([Task(id="0", prompt=" ".join(["cat"] * 10))])  # all tokens are the prompt's
    with pytest.raises(UsageError, match="reads 10"):
        StableDiffusion(path=str(source), name="tiny", learned=str(folder), negative_prompt="<bad> " + "cat " * 8).check([])
    tried("used")


# What is refused


def wrong_lora(kind: str, pipe: Any, folder: Path) -> None:
    pairs = halves(pipe.unet, ATTENTION)
    plain, kohya = peft_names(pairs, "unet."), kohya_names(pairs, "lora_unet_", 1)
    some = next(iter(pairs))
    match kind:
        case "another network's modules":
            write(folder, renamed(plain, lambda name: name.replace("attn1", "attn3")))
        case "one more key":
            write(folder, plain | {"unet.conv_in.diff": rand(3)})
        case "half a pair":
            write(folder, {name: value for name, value in plain.items() if name != f"unet.{some}.lora_A.weight"})
        case "another width":
            write(folder, plain | {f"unet.{some}.lora_A.weight": rand(RANK, 5)})
        case "two ranks in one":
            write(folder, plain | {f"unet.{some}.lora_A.weight": rand(RANK + 1, pairs[some][0].shape[1])})
        case "no rank":
            inner, outer = pairs[some]
            write(folder, plain | {f"unet.{some}.lora_A.weight": inner[:0], f"unet.{some}.lora_B.weight": outer[:, :0]})
        case "kohya's of another network":
            write(folder, renamed(kohya, lambda name: name.replace("_blocks_", "_bricks_")))
        case "kohya's and others":
            write(folder, kohya | plain)
        case "kohya's alone alpha":
            write(folder, kohya | {"lora_unet_nothing.alpha": torch.tensor(1.0)})
        case "kohya's alpha of 0":
            write(folder, kohya_names(pairs, "lora_unet_", 0))
        case "second text encoder":
            text = kohya_names({"text_model.encoder.layers.0.mlp.fc1": (rand(2, 16), rand(32, 2))}, "lora_te2_", 1)
            write(folder, kohya | text)
        case "second text encoder of diffusers":
            write(
                folder,
                plain | {f"text_encoder_2.{name}": value for name, value in peft_names(halves(pipe.text_encoder, TEXT)).items()},
            )
        case "transformer":
            write(
                folder,
                {"transformer.blocks.0.to_q.lora_A.weight": rand(2, 16), "transformer.blocks.0.to_q.lora_B.weight": rand(16, 2)},
            )
        case "DoRA":
            write(folder, kohya | {f"lora_unet_{some.replace('.', '_')}.dora_scale": rand(1, 16)})
        case "DoRA of PEFT":
            write(folder, plain | {f"unet.{some}.lora_magnitude_vector.weight": rand(16)}, header(peft_config(use_dora=True)))
        case "LoHa":
            write(folder, {f"lora_unet_{some.replace('.', '_')}.hada_w1_a": rand(2, 16)})
        case "LoKr":
            write(folder, {f"unet.{some}.lokr_w1": rand(2, 2), f"unet.{some}.lokr_w2": rand(2, 2)})
        case "Tucker's":
            write(folder, kohya | {f"lora_unet_{some.replace('.', '_')}.lora_mid.weight": rand(2, 2)})
        case "not finite":
            write(folder, plain | {f"unet.{some}.lora_A.weight": pairs[some][0] * float("nan")})
        case "whole numbers":
            write(folder, plain | {f"unet.{some}.lora_A.weight": pairs[some][0].to(torch.int32)})
        case "metadata of no JSON":
            write(folder, plain, {"lora_adapter_metadata": "{"})
        case "metadata of a list":
            write(folder, plain, {"lora_adapter_metadata": "[1]"})
        case "unknown metadata":
            write(folder, plain, header({**peft_config(), "use_magic": True}))
        case "another rank in its metadata":
            write(folder, plain, header({**peft_config(), "r": 7}))
        case "a start that changes the network":
            write(folder, plain, header({**peft_config(), "init_lora_weights": "pissa"}))
        case "other biases":
            write(folder, plain, header({**peft_config(), "bias": "all"}))
        case "text for alpha":
            write(folder, plain, header({**peft_config(), "lora_alpha": "16"}))
        case "no configuration of PEFT":
            write(folder, peft_names(pairs, "base_model.model."), name="adapter_model.safetensors")
            (folder / "adapter_config.json").write_text("[]")
        case "another kind of PEFT":
            write(folder, peft_names(pairs, "base_model.model."), name="adapter_model.safetensors")
            (folder / "adapter_config.json").write_text(json.dumps({**peft_config(), "peft_type": "LOHA"}))
        case _:
            raise AssertionError(kind)


WRONG_LORA = {
    "another network's modules": "would not use .*attn3", "one more key": "would not use conv_in.diff", "half a pair": "only one of",
    "another width": "shapes .* do not fit", "two ranks in one": "do not fit", "no rank": "do not fit",
    "kohya's of another network": "would not use .*bricks", "kohya's and others": "and others", "kohya's alone alpha": "nothing.alpha",
    "kohya's alpha of 0": "above 0", "second text encoder": "SDXL", "second text encoder of diffusers": "SDXL",
    "transformer": "would not use .*transformer", "DoRA": "dora_scale", "DoRA of PEFT": "lora_magnitude_vector|use_dora", "LoHa": "hada",
    "LoKr": "lokr", "Tucker's": "lora_mid", "not finite": "not finite", "whole numbers": "int32", "metadata of no JSON": "no JSON",
    "metadata of a list": "no mapping", "unknown metadata": "use_magic", "another rank in its metadata": "rank 7",
    "text for alpha": "16 for a rank or an alpha", "a start that changes the network": "pissa",
    "other biases": "bias=all", "no configuration of PEFT": "no mapping", "another kind of PEFT": "LOHA",
}  # fmt: skip
LATE = {"not finite"}  # what the header cannot tell


def refused(source: Path, learned: object, message: str, *, late: bool = False) -> None:
    """In one line that names the option, before a network is there unless only numbers tell."""
    with pytest.raises(UsageError, match=message) as caught:
        model = StableDiffusion(path=str(source), name="tiny", learned=learned)
        assert late, "it was taken"
        _ = model.unet, model.text_encoder, model.words
    assert str(caught.value).startswith("model.learned") and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", WRONG_LORA)
def test_a_lora_that_is_not_used_in_full_is_refused(source: Path, tmp_path: Path, kind: str, tried: Tried) -> None:
    wrong_lora(kind, loaded(source), tmp_path / "lora")
    refused(source, str(tmp_path / "lora"), WRONG_LORA[kind], late=kind in LATE)
    tried("refused")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


BYTES = {
    "empty.safetensors": (b"", "empty file"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
    "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
    "page.safetensors": (b"<!DOCTYPE html><html>" * 20, "damaged"),
    "page.bin": (b"<!DOCTYPE html><html>" * 20, "damaged"),
    "text.pt": (b"hello", "damaged"),
    "nothing.safetensors": (b"\x02\0\0\0\0\0\0\0{}", "no tensors"),
    "long.safetensors": (b"\xff" * 8 + b"{}", "damaged"),
    "protocol.bin": (pickle.dumps(Code(), 5), "damaged"),
    "code.bin": (pickle.dumps(Code(), 2), "no pickled code"),
    "code.pt": (pickle.dumps({"<fx>": Code()}, 2), "no pickled code"),
}


@pytest.mark.parametrize("name", BYTES)
def test_files_of_something_else_are_refused(source: Path, tmp_path: Path, name: str, tried: Tried, capsys: Any) -> None:
    content, message = BYTES[name]
    (tmp_path / name).write_bytes(content)
    for learned in (tmp_path, tmp_path / name):
        refused(source, str(learned), message)
    assert capsys.readouterr().out == ""  # no code was run
    tried("refused")


@pytest.mark.parametrize("name", [LORA, WORD, "learned_embeds.bin", "unet/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("left", [0.3, 0.98])
def test_files_that_were_cut_off_are_refused(source: Path, tmp_path: Path, name: str, left: float, tried: Tried) -> None:
    folder, file = tmp_path / "cut", tmp_path / "cut" / name
    if name == LORA:
        lora_file("plain", loaded(source), folder)
    elif name.startswith("unet"):
        shutil.copytree(source / "unet", folder / "unet")
    elif name == WORD:
        write(folder, {"<fx>": rand(3, 16)}, name=WORD)
    else:
        folder.mkdir()
        torch.save({"<fx>": rand(3, 16)}, file)
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    refused(source, str(folder), "damaged")
    tried("refused")


WRONG_WORDS: dict[str, tuple[Tensors, str]] = {
    "another width": ({"<fx>": rand(1, 24)}, "24 numbers; this text encoder's have 16"),
    "another width on one axis": ({"<fx>": rand(24)}, "24 numbers"),
    "a picture": ({"<fx>": rand(1, 1, 16)}, "neither a UNet"),
    "no vector": ({"<fx>": rand(0, 16)}, "neither a UNet"),
    "a number": ({"<fx>": torch.tensor(1.0)}, "neither a UNet"),
    "a token": ({"cat": rand(1, 16)}, "knows this word"),
    "a piece of the vocabulary": ({"ca": rand(1, 16)}, "piece of words"),
    "a piece in upper case": ({"CA": rand(1, 16)}, "piece of words"),
    "a letter": ({"q": rand(1, 16)}, "piece of words"),
    "an end": ({"<|endoftext|>": rand(1, 16)}, "knows this word"),
    "no name": ({"": rand(1, 16)}, "no word"),
    "a line's end": ({"a\nb": rand(1, 16)}, "no word"),
    "emb_params and more": ({"emb_params": rand(1, 16), "step": rand(1, 16)}, "would not use step"),
    "SDXL's": ({"clip_g": rand(1, 32), "clip_l": rand(1, 16)}, "SDXL"),
    "one of two of another width": ({"<a>": rand(1, 16), "<b>": rand(1, 8)}, "8 numbers"),
    "whole numbers": ({"<fx>": torch.ones(2, 16, dtype=torch.int32)}, "int"),
    "a whole checkpoint": ({"model.diffusion_model.out.weight": rand(4, 4, 3, 3)}, "neither a UNet"),
}


@pytest.mark.parametrize("kind", WRONG_WORDS)
def test_words_that_would_not_be_read_are_refused(source: Path, tmp_path: Path, kind: str, tried: Tried) -> None:
    tensors, message = WRONG_WORDS[kind]
    refused(source, str(write(tmp_path / "word", tensors, name=WORD)), message)
    tried("refused")


def test_words_diffusers_refuses_are_refused(source: Path, tmp_path: Path, tried: Tried) -> None:
    folder = write(tmp_path / "word", {"ca": rand(1, 16)}, name=WORD)
    with pytest.raises(ValueError, match="already in tokenizer vocabulary"):
        pipeline(source).load_textual_inversion(folder)
    refused(source, str(folder), "the word 'ca'")
    tried("refused")


@pytest.mark.parametrize(("one", "two"), [("<fx>", "<fx>"), ("<fx>", "<FX>"), ("<fx>", "<fx>_1"), ("<fx>_1", "<fx>")])
@pytest.mark.parametrize("together", [True, False])
def test_a_word_that_two_files_bring_is_refused(
    source: Path, tmp_path: Path, one: str, two: str, together: bool, tried: Tried
) -> None:
    first = write(tmp_path / "a", {one: rand(2, 16)}, name="a.safetensors")
    second = write(tmp_path / ("a" if together else "b"), {two: rand(1, 16)}, name="b.safetensors")
    refused(source, str(first) if together else [str(first), str(second)], "has brought already")
    tried("refused")


def test_not_finite_words_and_networks_are_refused(source: Path, tmp_path: Path, tried: Tried) -> None:
    refused(source, str(write(tmp_path / "word", {"<fx>": rand(1, 16) / 0}, name=WORD)), "not finite", late=True)
    shutil.copytree(source / "unet", tmp_path / "net" / "unet")
    weights = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_in.bias"][0] = torch.inf
    write(tmp_path / "net" / "unet", weights, name="diffusion_pytorch_model.safetensors")
    refused(source, str(tmp_path / "net"), "conv_in.bias .*not finite", late=True)
    tried("refused", 2)


def edited(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def wrong_network(kind: str, folders: Mapping[str, Path], folder: Path) -> None:
    source, weights = folders["epsilon"], folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copytree(source, folder)
    tensors = load_file(weights)
    match kind:
        case "another shape":
            shutil.rmtree(folder / "unet")
            shutil.copytree(folders["v_prediction"] / "unet", folder / "unet")
        case "compiled":
            write(folder / "unet", renamed(tensors, lambda name: f"_orig_mod.{name}"), name=weights.name)
        case "a key too many":
            write(folder / "unet", tensors | {"time_embedding.cond_proj.weight": rand(4, 4)}, name=weights.name)
        case "a key too few":
            write(folder / "unet", {name: value for name, value in tensors.items() if name != "conv_in.bias"}, name=weights.name)
        case "heads":  # which no shape tells
            edited(folder / "unet" / "config.json", attention_head_dim=8)
        case "activation":
            edited(folder / "unet" / "config.json", act_fn="gelu")
        case "no weights":
            weights.unlink()
        case "no configuration":
            (folder / "unet" / "config.json").unlink()
        case "a piece too few":
            index = {"weight_map": dict.fromkeys(tensors, "diffusion_pytorch_model-00001-of-00002.safetensors")}
            (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
            weights.unlink()
        case "an index of nothing":
            (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": 3}')
            weights.unlink()
        case "half precision under another name":
            weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
        case "text encoder too small":
            text = load_file(folder / "text_encoder" / "model.safetensors")
            small = {name: value for name, value in text.items() if "layers.1." not in name}
            write(folder / "text_encoder", small, name="model.safetensors")
        case "text encoder of more words":
            edited(folder / "text_encoder" / "config.json", vocab_size=999)
        case "SDXL":
            (folder / "text_encoder_2").mkdir()
        case "SDXL by its name":
            edited(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
        case "trained on v":
            edited(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
        case "another schedule":
            edited(folder / "scheduler" / "scheduler_config.json", beta_end=0.02)
        case "another tokenizer":
            shutil.rmtree(folder / "tokenizer")
            shutil.copytree(source / "tokenizer", folder / "tokenizer")
            file = folder / "tokenizer" / "tokenizer.json"
            tokenizer = json.loads(file.read_text())
            tokenizer["model"]["vocab"]["dog</w>"] = len(tokenizer["model"]["vocab"])
            file.write_text(json.dumps(tokenizer))
        case "another scaling":
            edited(folder / "vae" / "config.json", scaling_factor=0.5)
        case _:
            raise AssertionError(kind)


WRONG_NETWORKS = {
    "another shape": "block_out_channels|in_channels|sample_size|shape", "compiled": "would not use _orig_mod",
    "a key too many": "would not use time_embedding.cond_proj", "a key too few": "lacks conv_in.bias", "heads": "attention_head_dim=8",
    "activation": "act_fn=gelu", "no weights": "no diffusion_pytorch_model", "no configuration": "cannot read config.json",
    "a piece too few": "00001-of-00002.*is not there", "an index of nothing": "index.json cannot be read",
    "half precision under another name": "no diffusion_pytorch_model.safetensors", "text encoder too small": "lacks encoder.layers.1",
    "text encoder of more words": "vocab_size=999", "SDXL": "text_encoder_2", "SDXL by its name": "StableDiffusionXLPipeline",
    "trained on v": "prediction_type=v_prediction", "another schedule": "beta_end=0.02", "another tokenizer": "tokenizer is not",
    "another scaling": "scaling_factor=0.5",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_NETWORKS)
def test_networks_of_another_kind_are_refused(folders: dict[str, Path], tmp_path: Path, kind: str, tried: Tried) -> None:
    wrong_network(kind, folders, tmp_path / "other")
    refused(folders["epsilon"], str(tmp_path / "other"), WRONG_NETWORKS[kind])
    tried("refused")


def test_two_networks_for_one_place_are_refused(source: Path, tmp_path: Path, tried: Tried) -> None:
    shutil.copytree(source / "unet", tmp_path / "unet")
    refused(source, [str(tmp_path), str(source / "unet")], "second unet")
    refused(source, [str(tmp_path), str(source / "unet" / "diffusion_pytorch_model.safetensors")], "more than one unet")
    tried("refused", 2)


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        ("/no/such/folder", "no such folder or file"),
        ("/dev/zero", "no such folder or file"),
        ("", "expected a folder or file"),
        (5, "expected a folder or file"),
        ([["a"]], "expected a folder or file"),
        ([None], "expected a folder or file"),
        ({"scale": 1}, "expected a folder or file"),
        ({"path": "LORA", "weight": 1}, "weight: no such option"),
        ({"path": "LORA", "scale": "much"}, "scale=much: expected a finite number"),
        ({"path": "LORA", "scale": float("nan")}, "finite"),
        ({"path": "LORA", "scale": float("inf")}, "finite"),
        ({"path": "LORA", "scale": True}, "finite"),
        ({"path": "WORD", "scale": 0.5}, "is a LoRA's strength"),
        ("EMPTY", "holds no UNet"),
        ("TRAINING", "holds no UNet"),
    ],
)
def test_options_that_name_nothing_are_refused(source: Path, tmp_path: Path, learned: Any, message: str, tried: Tried) -> None:
    write(tmp_path / "WORD", {"<fx>": rand(1, 16)}, name=WORD)
    lora_file("plain", loaded(source), tmp_path / "LORA")
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "TRAINING").mkdir()  # as method=adjoint_tuning leaves it while it learns
    torch.save({}, tmp_path / "TRAINING" / "checkpoint.pt")
    if isinstance(learned, dict) and "path" in learned:
        learned = {**learned, "path": str(tmp_path / learned["path"])}
    elif learned in ("EMPTY", "TRAINING"):
        learned = str(tmp_path / learned)
    refused(source, learned, message)
    tried("refused")


def test_what_stands_in_a_folder_twice_is_read_once(source: Path, tmp_path: Path, tried: Tried) -> None:
    """As diffusers' training and its hub repositories leave folders: earlier states, the same as tensors of torch, pictures."""
    write(tmp_path, {"<fx>": rand(2, 16)}, name=WORD)
    write(tmp_path, {"<fx>": rand(2, 16, seed=1)}, name="learned_embeds-steps-500.safetensors")
    torch.save({"<fx>": rand(2, 16)}, tmp_path / "learned_embeds.bin")
    (tmp_path / "token_identifier.txt").write_text("<fx>")
    (tmp_path / "concept_images").mkdir()
    torch.save({}, tmp_path / "optimizer.bin")
    pipe = pipeline(source)
    pipe.load_textual_inversion(tmp_path)
    assert_same(ours(source, str(tmp_path), "a <fx>"), theirs(pipe, "a <fx>"))
    tried("used")
