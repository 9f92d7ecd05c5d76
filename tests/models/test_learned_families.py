"""What model.learned takes on the families after Stable Diffusion 1 and 2: used as diffusers' own loaders use it, or refused in one
line before weights load.
"""

import copy
import dataclasses
import functools
import importlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.models.latent import LatentModel
from guidedgen.process import Scheduler
from guidedgen.process.schedulers import Ddim, Flow
from guidedgen.runs import composition, preparation

Tensors = dict[str, Tensor]
Pairs = Mapping[str, tuple[Tensor, Tensor]]
Tried = Callable[..., None]
LORA, WORD = "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"
PROMPTS, RANK = ("a cat", "two dogs, red"), 2
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # in diffusers, of numpy 2
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`"),  # of diffusers' loading of a second LoRA
]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A family as the tests use it. `modules` are those of its network that a LoRA is usually for, by how their names end."""

    fixture: str
    module: str
    kind: str
    pipeline: str
    config: str  # conf/model/
    scheduler: Scheduler
    denoiser: str = "transformer"
    encoders: tuple[str, ...] = ()
    modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    more: tuple[str, ...] = ()  # other modules, of which a LoRA may be of another rank
    guidance: float = 3.0
    theirs: tuple[str, dict[str, Any]] | None = None  # the scheduler of diffusers that is used in place of the folder's
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of the model


# Of those of its noise schedule, one whose steps are in the latents' own precision: Euler's round to float32 what is up to 40.
DDIM = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
    "steps_offset": 1,
}  # fmt: skip
FAMILIES = {
    "xl": Family(
        fixture="xl_folder", module="stable_diffusion_xl", kind="StableDiffusionXl", pipeline="StableDiffusionXLPipeline",
        config="sdxl", scheduler=Ddim(num_steps=3), theirs=("DDIMScheduler", DDIM), denoiser="unet", encoders=("text_encoder", "text_encoder_2"),
        more=("ff.net.2", "conv1", "conv_in", "time_emb_proj", "add_embedding.linear_1"),
    ),
    "sd3": Family(
        fixture="sd3_folder", module="stable_diffusion_3", kind="StableDiffusion3", pipeline="StableDiffusion3Pipeline",
        config="sd3_medium", scheduler=Flow(num_steps=3), encoders=("text_encoder", "text_encoder_2"),
        modules=("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
        more=("ff.net.2", "ff_context.net.0.proj", "norm1.linear", "proj_out", "context_embedder", "pos_embed.proj"),
    ),
    "flux": Family(
        fixture="flux_folder", module="flux", kind="Flux", pipeline="FluxPipeline", config="flux_dev", scheduler=Flow(num_steps=3),
        encoders=("text_encoder",), modules=("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj"),
        more=("ff.net.2", "ff_context.net.0.proj", "norm1.linear", "proj_mlp", "x_embedder", "context_embedder"), guidance=2.0,
        options={"size": 16, "t5_tokens": 16},
    ),
    "sana": Family(
        fixture="sana_folder", module="sana", kind="Sana", pipeline="SanaPipeline", config="sana", scheduler=Flow(num_steps=3),
        theirs=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        more=("conv_inverted", "conv_point", "linear_1", "time_embed.linear", "patch_embed.proj", "proj_out"),
    ),
}  # fmt: skip
TEXTUAL = [name for name, family in FAMILIES.items() if family.encoders]


@dataclasses.dataclass(frozen=True)
class Case:
    """A family and its tiny folder."""

    family: Family
    folder: Path

    def model(self, learned: object = None, **options: Any) -> LatentModel:
        kind = getattr(importlib.import_module(f"guidedgen.models.{self.family.module}"), self.family.kind)
        return kind(path=str(self.folder), name="tiny", learned=learned, **self.family.options | options)

    def pipeline(self) -> Any:
        """To be changed: a copy of what is loaded once."""
        return copy.deepcopy(loaded(self.family.pipeline, self.folder))

    def pairs(self, pipe: Any, part: str, rank: int = RANK) -> Pairs:
        ends = self.family.modules if part == self.family.denoiser else TEXT
        return halves(getattr(pipe, part), ends, rank, 1.0 if part == self.family.denoiser else 5.0)


@functools.lru_cache(maxsize=8)
def loaded(kind: str, folder: Path) -> Any:
    import diffusers

    pipe = getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if scheduler := next((family.theirs for family in FAMILIES.values() if family.pipeline == kind), None):
        pipe.scheduler = getattr(diffusers, scheduler[0])(**scheduler[1])
    return pipe


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return cased(request, request.param)


@pytest.fixture(params=TEXTUAL)
def textual(request: pytest.FixtureRequest) -> Case:
    """Of the families whose text encoders take LoRA."""
    return cased(request, request.param)


def cased(request: pytest.FixtureRequest, name: str) -> Case:
    return Case(FAMILIES[name], request.getfixturevalue(FAMILIES[name].fixture))


@pytest.fixture
def xl(request: pytest.FixtureRequest) -> Case:
    return cased(request, "xl")


# The two sides, both in float64


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def theirs(case: Case, pipe: Any, prompts: tuple[str, ...] = PROMPTS) -> list[Tensor]:
    """What the prompts are for the network, and latents after three steps."""
    pipe.to(torch.float64)
    read: list[Tensor] = []
    network = getattr(pipe, case.family.denoiser)
    whole = network.forward

    def noting(*args: Any, **options: Any) -> Any:
        if not read:
            more = options.get("added_cond_kwargs") or {}
            found = [options.get("encoder_hidden_states"), options.get("pooled_projections"), more.get("text_embeds")]
            read.extend(one for one in found if one is not None)
        return whole(*args, **options)

    network.forward = noting
    model = case.model()
    x_T, (height, width), given = start(model, len(prompts)), model.image_size, {"guidance_scale": case.family.guidance}  # noqa: N806
    flux = hasattr(pipe, "_pack_latents")  # its own form of latents, and classifier-free guidance besides what it calls so
    if flux:
        given = {
            "true_cfg_scale": case.family.guidance,
            "negative_prompt": [""] * len(prompts),
            "max_sequence_length": model.max_tokens,
        }
        x_T = pipe._pack_latents(x_T, *x_T.shape)  # noqa: N806
    if case.family.config == "sana":
        given["use_resolution_binning"] = False
    latents = pipe(
        list(prompts), latents=x_T, num_inference_steps=3, **given, height=height, width=width, output_type="latent"
    ).images
    latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor) if flux else latents
    network.forward = whole
    return [*(one[-len(prompts) :] for one in read), latents]


@torch.no_grad()
def ours(case: Case, learned: object, prompts: tuple[str, ...] = PROMPTS) -> list[Tensor]:
    """The same by this package."""
    model = case.model(learned, dtype="float64", guidance_scale=case.family.guidance)
    denoiser = model.denoiser([Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)])
    x = start(model, len(prompts))[:, None]
    for t, s in pairwise(case.family.scheduler.grid(model.schedule)):
        x, std = case.family.scheduler.transition(x, denoiser(x, t), t, s)
        assert std == 0
    network = getattr(model, case.family.denoiser)
    assert not network.training and not any(value.requires_grad for value in network.parameters())
    return [one for one in (denoiser.cond.tokens, denoiser.cond.pooled) if one is not None] + [x[:, 0]]


def start(model: LatentModel, count: int) -> Tensor:
    return normal(count, *model.latent_shape).double()


def assert_same(mine: list[Tensor], other: list[Tensor]) -> None:
    """Texts to 1e-6, latents to 1e-5 (of 1 and of 10), as diffusers' schedulers round to float32."""
    assert len(mine) == len(other) >= 2
    for one, two in zip(mine[:-1], other[:-1], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine[-1], other[-1], rtol=1e-6, atol=1e-5, check_dtype=False)


def changed(case: Case, outputs: list[Tensor], prompts: tuple[str, ...] = PROMPTS) -> list[bool]:
    """Whether texts, and latents, are other than without; each by far more than the tolerance."""
    return [bool((one - two).abs().max() > 1e-3) for one, two in zip(outputs, unchanged(case, prompts), strict=True)]


@functools.lru_cache(maxsize=16)
def unchanged(case: Case, prompts: tuple[str, ...]) -> list[Tensor]:
    return ours(case, None, prompts)


# Files


def halves(network: Any, ends: tuple[str, ...], rank: int = RANK, size: float = 1.0) -> dict[str, tuple[Tensor, Tensor]]:
    """Two halves of a LoRA for each module whose name ends so, linear or convolution: small, as a network of large numbers makes
    much of rounding.
    """
    found = {}
    for i, (name, module) in enumerate(network.named_modules()):
        if name.endswith(ends) and hasattr(module, "weight"):
            out, *rest = module.weight.shape
            inner = normal(rank, *rest, seed=2 * i, size=0.2 * size)
            found[name] = inner, normal(out, rank, *(1 for _ in rest[1:]), seed=2 * i + 1, size=0.2)
    assert found
    return found


def names(pairs: Pairs, prefix: str = "") -> Tensors:
    return {
        f"{prefix}{name}.lora_{half}.weight": value for name, pair in pairs.items() for half, value in zip("AB", pair, strict=True)
    }


def kohya(pairs: Pairs, prefix: str, alpha: Callable[[int], float] | None) -> Tensors:
    found: Tensors = {}
    for i, (name, (down, up)) in enumerate(pairs.items()):
        key = prefix + name.replace(".", "_")
        found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            found[f"{key}.alpha"] = torch.tensor(alpha(i))
    return found


def write(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None, name: str = LORA) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, folder / name, metadata)
    return folder


def settings(part: str, pairs: Pairs, **options: Any) -> dict[str, Any]:
    """diffusers' metadata of a LoRA: PEFT's options."""
    from peft import LoraConfig

    found = LoraConfig(r=RANK, target_modules=sorted(pairs), **options).to_dict()
    return {f"{part}.{key}": sorted(value) if isinstance(value, set) else value for key, value in found.items()}


def header(*parts: Mapping[str, Any]) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({key: value for part in parts for key, value in part.items()})}


def plain(case: Case, folder: Path) -> Path:
    """A LoRA of the denoising network, as diffusers' training scripts save it."""
    return write(folder, names(case.pairs(case.pipeline(), case.family.denoiser), f"{case.family.denoiser}."))


# LoRA


@pytest.mark.parametrize("kind", ["plain", "alpha", "rank-stabilised", "of two ranks", "in half precision", "of torch"])
def test_a_lora_acts_as_in_diffusers(case: Case, tmp_path: Path, kind: str, tried: Tried) -> None:
    pipe, part, folder = case.pipeline(), case.family.denoiser, tmp_path / "lora"
    pairs = case.pairs(pipe, part)
    match kind:
        case "plain":
            plain(case, folder)
        case "alpha":
            write(folder, names(pairs, f"{part}."), header(settings(part, pairs, lora_alpha=8)))
        case "rank-stabilised":
            write(folder, names(pairs, f"{part}."), header(settings(part, pairs, lora_alpha=3, use_rslora=True)))
        case "of two ranks":
            write(folder, names({**pairs, **halves(getattr(pipe, part), case.family.more, RANK + 1)}, f"{part}."))
        case "in half precision":
            write(folder, {name: value.half() for name, value in names(pairs, f"{part}.").items()})
        case "of torch":
            folder.mkdir()
            torch.save(names(pairs, f"{part}."), folder / "pytorch_lora_weights.bin")
    pipe.load_lora_weights(folder)
    mine = ours(case, str(folder))
    assert_same(mine, theirs(case, pipe))
    assert changed(case, mine) == [False] * (len(mine) - 1) + [True]
    (file,) = folder.iterdir()
    assert_same(ours(case, str(file)), mine)
    tried("used", 2)


def text_lora(case: Case, folder: Path, parts: tuple[str, ...]) -> Path:
    pipe, tensors = case.pipeline(), Tensors()
    for part in parts:
        tensors |= names(case.pairs(pipe, part), f"{part}.")
    return write(folder, tensors)


@pytest.mark.parametrize("which", ["first", "last", "all"])
def test_a_lora_of_text_encoders_acts_as_in_diffusers(textual: Case, tmp_path: Path, which: str, tried: Tried) -> None:
    encoders = textual.family.encoders
    parts = {"first": encoders[:1], "last": encoders[-1:], "all": (textual.family.denoiser, *encoders)}[which]
    folder, pipe = text_lora(textual, tmp_path / "lora", parts), textual.pipeline()
    pipe.load_lora_weights(folder)
    mine = ours(textual, str(folder))
    assert_same(mine, theirs(textual, pipe))
    *texts, latents = changed(textual, mine)
    assert any(texts) and latents
    tried("used")


def test_several_act_together_each_with_its_scale(case: Case, tmp_path: Path, tried: Tried) -> None:
    pipe, part = case.pipeline(), case.family.denoiser
    first = text_lora(case, tmp_path / "first", (part, *case.family.encoders))
    pairs = halves(getattr(pipe, part), case.family.more)
    second = write(tmp_path / "second", names(pairs, f"{part}."), header(settings(part, pairs, lora_alpha=4)))
    for name, folder in {"first": first, "second": second}.items():
        pipe.load_lora_weights(folder, adapter_name=name)
    pipe.set_adapters(["first", "second"], [0.7, -0.2])
    mine = ours(case, [{"path": str(first), "scale": 0.7}, {"path": str(second), "scale": -0.2}])
    assert_same(mine, theirs(case, pipe))
    pipe.set_adapters(["first"], [0.3])
    assert_same(ours(case, {"path": str(first), "scale": 0.3}), theirs(case, pipe))
    assert_same(ours(case, {"path": str(first), "scale": 0}), unchanged(case, PROMPTS))
    tried("used", 3)


def test_a_lora_of_one_network_alone_needs_no_prefix(case: Case, tmp_path: Path, tried: Tried) -> None:
    """As the network's own save_lora_adapter writes it; of two text encoders, the one whose shapes it has."""
    for part in (case.family.denoiser, *case.family.encoders):
        pairs = case.pairs(case.pipeline(), part)
        alone = write(tmp_path / part, names(pairs), header(settings("", pairs, lora_alpha=6)) if part == "" else None)
        full = write(tmp_path / f"{part} full", names(pairs, f"{part}."))
        mine = ours(case, str(alone))
        assert_same(mine, ours(case, str(full)))
        assert changed(case, mine)[-1]
        tried("used")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's use of transformers
def test_a_lora_in_peft_s_folders_acts_as_in_peft(case: Case, tmp_path: Path, tried: Tried) -> None:
    """One folder a network, called after it."""
    from peft import LoraConfig, PeftModel, get_peft_model

    parts = (case.family.denoiser, *case.family.encoders)
    pipe = case.pipeline()
    for part in parts:
        ends = case.family.modules if part == case.family.denoiser else TEXT
        adapted = get_peft_model(getattr(pipe, part), LoraConfig(r=RANK, lora_alpha=6, target_modules=list(ends)))
        for i, (name, value) in enumerate(adapted.named_parameters()):
            if "lora_" in name:  # of which B is zero at first
                value.data.copy_(normal(*value.shape, seed=i, size=0.2))
        adapted.save_pretrained(tmp_path / "lora" / part)
    pipe = case.pipeline()
    for part in parts:
        adapted = PeftModel.from_pretrained(getattr(pipe, part), tmp_path / "lora" / part)
        setattr(pipe, part, adapted.base_model.model.eval())
    mine = ours(case, str(tmp_path / "lora"))
    assert_same(mine, theirs(case, pipe))
    *texts, latents = changed(case, mine)
    assert latents and any(texts) == bool(case.family.encoders)
    tried("used")


# kohya's names, of Stable Diffusion XL


SGM = {
    "down_blocks_1_attentions_0": "input_blocks_3_1", "mid_block_attentions_0": "middle_block_1",
    "up_blocks_0_attentions_0": "output_blocks_0_1", "up_blocks_0_attentions_1": "output_blocks_1_1",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["with text encoders", "without alpha", "the original repository's blocks", "convolutions"])
def test_a_lora_of_kohya_for_xl_acts_as_in_diffusers(xl: Case, tmp_path: Path, kind: str, tried: Tried) -> None:
    pipe = xl.pipeline()
    unet = xl.pairs(pipe, "unet")
    tensors = kohya(unet, "lora_unet_", None if kind == "without alpha" else lambda _: 1.0)
    if kind == "with text encoders":
        one = {f"text_model.{name}": pair for name, pair in xl.pairs(pipe, "text_encoder").items()}
        tensors |= kohya(one, "lora_te1_", lambda _: 1.0) | kohya(xl.pairs(pipe, "text_encoder_2"), "lora_te2_", lambda _: 1.0)
    elif kind == "convolutions":
        tensors |= kohya(halves(pipe.unet, ("conv1", "conv2", "time_emb_proj", "ff.net.2")), "lora_unet_", lambda _: 1.0)
    elif kind.startswith("the original"):
        for ours_, sgm in SGM.items():
            tensors = {name.replace(f"lora_unet_{ours_}_", f"lora_unet_{sgm}_"): value for name, value in tensors.items()}
        assert not any("attentions" in name for name in tensors)
    folder = write(tmp_path / "lora", tensors)
    pipe.load_lora_weights(folder)
    mine = ours(xl, str(folder))
    assert_same(mine, theirs(xl, pipe))
    assert changed(xl, mine) == [kind == "with text encoders", kind == "with text encoders", True]
    tried("used")


def test_each_module_of_kohya_has_its_own_alpha(xl: Case, tmp_path: Path, tried: Tried) -> None:
    """Against weights to which B A alpha / rank is added: diffusers takes the most frequent alpha for all."""
    pipe = xl.pipeline()
    pairs = {part: dict(xl.pairs(pipe, part)) for part in ("unet", "text_encoder", "text_encoder_2")}

    def alpha(i: int) -> float:
        return 2.0 ** (i % 3 - 1)  # which float32 multiplies by without rounding

    one = {f"text_model.{name}": pair for name, pair in pairs["text_encoder"].items()}
    tensors = kohya(pairs["unet"], "lora_unet_", alpha) | kohya(one, "lora_te1_", alpha)
    folder = write(tmp_path / "lora", tensors | kohya(pairs["text_encoder_2"], "lora_te2_", alpha))
    pipe.to(torch.float64)
    for part, found in pairs.items():
        for i, (name, (down, up)) in enumerate(found.items()):
            getattr(pipe, part).get_submodule(name).weight.data += up.double() @ down.double() * alpha(i) / RANK
    assert_same(ours(xl, str(folder)), theirs(xl, pipe))
    tried("used")


def test_what_diffusers_leaves_out_of_kohya_s_names_is_refused(xl: Case, tmp_path: Path, tried: Tried) -> None:
    """Of a file with both the original repository's blocks and its own, it drops the former."""
    tensors = kohya(xl.pairs(xl.pipeline(), "unet"), "lora_unet_", None)
    more = {name.replace("down_blocks_1_attentions_0", "input_blocks_3_1"): value for name, value in tensors.items()}
    assert more.keys() - tensors.keys()
    refused(xl, str(write(tmp_path / "lora", tensors | more)), "would not use lora_unet_input_blocks_3_1.*leaves out")
    tried("refused")


# Words, of two text encoders


def embeddings(count: int) -> tuple[Tensor, Tensor]:
    """Of CLIP-L and CLIP-G."""
    return normal(count, 16, seed=1), normal(count, 8, seed=2)


def with_word(xl: Case, token: str, count: int) -> Any:
    pipe, (first, second) = xl.pipeline(), embeddings(count)
    pipe.load_textual_inversion(first, token=token, text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(second, token=token, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    return pipe


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["one file", "two files"])
def test_a_word_of_two_text_encoders_is_read_as_in_diffusers(xl: Case, tmp_path: Path, kind: str, count: int, tried: Tried) -> None:
    """In one file, of the word's name, as Civitai has them; or in two, as diffusers' training leaves them."""
    first, second = embeddings(count)
    if kind == "one file":
        token, learned = "zfx", write(tmp_path / "word", {"clip_g": second, "clip_l": first}, name="zfx.safetensors")
    else:
        token, learned = "<fx>", write(tmp_path / "word", {"<fx>": first}, name=WORD)
        write(learned, {"<fx>": second}, name="learned_embeds_2.safetensors")
        write(learned, {"<fx>": second + 1}, name="learned_embeds_2-steps-500.safetensors")
    prompts = (f"a {token} cat", f"{token}, red")
    mine = ours(xl, str(learned), prompts)
    assert_same(mine, theirs(xl, with_word(xl, token, count), prompts))
    assert all(changed(xl, mine, prompts))
    # A prompt that does not hold it gets it at its beginning.
    cat, other = (ours(xl, str(learned), (prompt,)) for prompt in ("cat", f"{token} cat"))
    assert_same(cat, other)
    tried("used", 2)


def test_a_word_and_loras_act_together(xl: Case, tmp_path: Path, tried: Tried) -> None:
    first, second = embeddings(2)
    word = write(tmp_path / "word", {"clip_g": second, "clip_l": first}, name="zfx.safetensors")
    lora = text_lora(xl, tmp_path / "lora", ("unet", "text_encoder", "text_encoder_2"))
    pipe = with_word(xl, "zfx", 2)
    pipe.load_lora_weights(lora)
    assert_same(ours(xl, [str(lora), str(word)], ("a zfx", "zfx cat")), theirs(xl, pipe, ("a zfx", "zfx cat")))
    tried("used")


def test_a_word_of_the_negative_prompt_is_used_there_alone(xl: Case, tmp_path: Path, tried: Tried) -> None:
    first, second = embeddings(3)
    word = write(tmp_path / "word", {"clip_g": second, "clip_l": first}, name="zfx.safetensors")
    model = xl.model(str(word), negative_prompt="zfx cat", dtype="float64")
    denoiser = model.denoiser([Task(id="0", prompt="a cat")])
    pipe = with_word(xl, "zfx", 3).to(torch.float64)
    cond, uncond, pooled, unpooled = pipe.encode_prompt("a cat", device="cpu", negative_prompt="zfx cat")
    for mine, other in zip(
        (denoiser.cond.tokens, denoiser.cond.pooled, denoiser.uncond.tokens, denoiser.uncond.pooled),
        (cond, pooled, uncond, unpooled),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)
    model.check([Task(id="0", prompt=" ".join(["cat"] * 10))])  # all tokens are the prompt's
    with pytest.raises(UsageError, match="reads 10"):
        xl.model(str(word), negative_prompt="zfx " + "cat " * 8).check([])
    with pytest.raises(UsageError, match="reads 10"):
        xl.model(str(word)).check([Task(id="0", prompt=" ".join(["cat"] * 8))])
    tried("used")


WRONG_WORDS: dict[str, tuple[dict[str, Tensors], str]] = {
    "one encoder's": ({WORD: {"<fx>": normal(1, 16)}}, "the word '<fx>' is for text_encoder alone; text_encoder_2 would not know"),
    "the other's": ({WORD: {"<fx>": normal(1, 8)}}, "the word '<fx>' is for text_encoder_2 alone; text_encoder would not know"),
    "one key": ({"zfx.safetensors": {"clip_l": normal(1, 16)}}, "holds clip_l, and clip_l and clip_g are what"),
    "one key more": (
        {"zfx.safetensors": {"clip_l": normal(1, 16), "clip_g": normal(1, 8), "t5": normal(1, 8)}}, "holds .*t5.*clip_l and clip_g",
    ),
    "the keys exchanged": ({"zfx.safetensors": {"clip_l": normal(1, 8), "clip_g": normal(1, 16)}}, "8 numbers; .* 16"),
    "another width": ({WORD: {"<fx>": normal(1, 24)}}, "24 numbers; these text encoders' have 16 and 8"),
    "no vector": ({"zfx.safetensors": {"clip_l": normal(0, 16), "clip_g": normal(0, 8)}}, "neither a UNet"),
    "a token": ({"cat.safetensors": {"clip_l": normal(1, 16), "clip_g": normal(1, 8)}}, "knows this word"),
    "twice": (
        {name: {"<fx>": normal(1, 16)} for name in ("a.safetensors", "b.safetensors")}, "which another file has added already",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_WORDS)
def test_words_that_not_every_encoder_reads_are_refused(xl: Case, tmp_path: Path, kind: str, tried: Tried) -> None:
    files, message = WRONG_WORDS[kind]
    for name, tensors in files.items():
        write(tmp_path / "word", tensors, name=name)
    refused(xl, str(tmp_path / "word"), message)
    tried("refused")


def test_words_are_refused_where_diffusers_pipeline_takes_none(case: Case, tmp_path: Path, tried: Tried) -> None:
    if hasattr(case.pipeline(), "load_textual_inversion"):
        assert case.model().LEARNABLE.readers
        return
    folder = write(tmp_path / "word", {"<fx>": normal(1, 16)}, name=WORD)
    refused(case, str(folder), r"is nothing that can be used; .* takes weights of its transformer \(transformer/\)")
    refused(case, {"path": str(folder), "scale": 0.5}, "nothing that can be used")
    tried("refused", 2)


# Whole networks


def perturbed(case: Case, folder: Path) -> Any:
    """The denoising network with other weights, saved as its own."""
    network = getattr(case.pipeline(), case.family.denoiser)
    for i, value in enumerate(network.parameters()):
        value.data += normal(*value.shape, seed=i, size=0.05)
    network.save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", ["its folder", "in a folder", "its file", "with a LoRA"])
def test_a_network_takes_the_place_of_the_model_s(case: Case, tmp_path: Path, kind: str, tried: Tried) -> None:
    part, pipe = case.family.denoiser, case.pipeline()
    setattr(pipe, part, perturbed(case, tmp_path / "other" / part))
    own = tmp_path / "other" / part
    learned: Any = str({"its folder": own, "its file": own / "diffusion_pytorch_model.safetensors"}.get(kind, own.parent))
    if kind == "with a LoRA":
        lora = plain(case, tmp_path / "lora")
        pipe.load_lora_weights(lora)
        learned = [str(lora), learned]
    mine = ours(case, learned)
    assert_same(mine, theirs(case, pipe))
    assert changed(case, mine)[-1]
    tried("used")


def wrong_network(case: Case, folder: Path, kind: str) -> Path:
    part = case.family.denoiser
    shutil.copytree(case.folder / part, folder / part)
    config, weights = folder / part / "config.json", folder / part / "diffusion_pytorch_model.safetensors"
    found, tensors = json.loads(config.read_text()), load_file(weights)
    some = sorted(tensors)[0]
    match kind:
        case "a whole pipeline":
            shutil.copy(case.folder / "model_index.json", folder)
        case "another class":
            config.write_text(json.dumps(found | {"_class_name": "AutoencoderKL"}))
        case "another config":
            config.write_text(json.dumps(found | ({"norm_eps": 1.0} if part == "unet" else {"num_layers": 1})))
        case "a key too many":
            write(folder / part, tensors | {"more.weight": normal(2)}, name=weights.name)
        case "a key too few":
            write(folder / part, {name: value for name, value in tensors.items() if name != some}, name=weights.name)
        case "cut off":
            weights.write_bytes(weights.read_bytes()[:-20])
        case "not finite":
            write(folder / part, tensors | {some: tensors[some] / 0}, name=weights.name)
        case "a VAE too":
            shutil.copytree(case.folder / "vae", folder / "vae")
        case "two":
            shutil.copytree(folder / part, folder / "two" / part)
    return folder


WRONG_NETWORKS = {
    "a whole pipeline": "is a whole pipeline, which model.path= takes", "another class": "is a AutoencoderKL",
    "another config": "model.path= takes a whole model|cannot be loaded", "a key too many": "would not use more.weight",
    "a key too few": "lacks", "cut off": "damaged", "not finite": "not finite",
    "a VAE too": r"has weights of a vae; .* takes weights of its", "two": "a second",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_NETWORKS)
def test_networks_that_do_not_fit_are_refused(case: Case, tmp_path: Path, kind: str, tried: Tried) -> None:
    folder = wrong_network(case, tmp_path / "other", kind)
    learned: Any = [str(folder), str(folder / "two")] if kind == "two" else str(folder)
    refused(case, learned, WRONG_NETWORKS[kind], late=kind == "not finite")
    tried("refused")


def test_networks_of_text_encoders_are_refused(textual: Case, tmp_path: Path, tried: Tried) -> None:
    for part in textual.family.encoders:
        shutil.copytree(textual.folder / part, tmp_path / part / part)
        refused(textual, str(tmp_path / part), f"has weights of a {part}; .* takes weights of its")
        tried("refused")


# What is refused


def refused(case: Case, learned: object, message: str, *, late: bool = False) -> None:
    """In one line that names the option, before a network is there unless only numbers tell."""
    with pytest.raises(UsageError, match=message) as caught:
        model = case.model(learned)
        assert late, "it was taken"
        model.load()
    assert str(caught.value).startswith("model.learned") and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def wrong_lora(case: Case, folder: Path, kind: str) -> None:
    part = case.family.denoiser
    pairs = dict(case.pairs(case.pipeline(), part))
    some, (inner, outer) = next(iter(pairs.items()))
    good, key = names(pairs, f"{part}."), f"{part}.{some}"
    match kind:
        case "another network's modules":
            write(folder, {name.replace("to_k", "to_x"): value for name, value in good.items()})
        case "one more key":
            write(folder, good | {f"{part}.more.diff": normal(3)})
        case "one more part":
            write(folder, good | {"prior.to_q.lora_A.weight": normal(2, 3), "prior.to_q.lora_B.weight": normal(3, 2)})
        case "half a pair":
            write(folder, {name: value for name, value in good.items() if name != f"{key}.lora_A.weight"})
        case "another width":
            write(folder, good | {f"{key}.lora_A.weight": normal(RANK, inner.shape[1] + 1)})
        case "a smaller width":  # which diffusers fills up with zeros on FLUX
            write(folder, good | {f"{key}.lora_A.weight": normal(RANK, inner.shape[1] - 1)})
        case "a bias":
            write(folder, good | {f"{key}.lora_B.bias": normal(len(outer))})
        case "DoRA":
            write(folder, good | {f"{key}.dora_scale": normal(1, 16)})
        case "LoKr":
            write(folder, {f"{key}.lokr_w1": normal(2, 2), f"{key}.lokr_w2": normal(2, 2)})
        case "not finite":
            write(folder, good | {f"{key}.lora_A.weight": inner * float("nan")})
        case "whole numbers":
            write(folder, good | {f"{key}.lora_A.weight": inner.to(torch.int32)})
        case "another rank in its metadata":
            write(folder, good, header({**settings(part, pairs), f"{part}.r": 7}))
        case "a start that changes the network":
            write(folder, good, header({**settings(part, pairs), f"{part}.init_lora_weights": "pissa"}))
        case "metadata of no JSON":
            write(folder, good, {"lora_adapter_metadata": "{"})
        case "kohya's of another network":
            write(folder, kohya({"nothing.like.it": (inner, outer)}, "lora_unet_", lambda _: 1.0))
        case "kohya's and others":
            write(folder, good | kohya({some: (inner, outer)}, "lora_unet_", lambda _: 1.0))
        case "kohya's alpha of 0":
            write(folder, kohya(pairs, "lora_unet_", lambda _: 0.0))
        case "a strength that is no number":
            write(folder, kohya(pairs, "lora_unet_", lambda _: float("nan")))
        case "a LoRA of a VAE":
            (folder / "vae").mkdir(parents=True)
            (folder / "vae" / "adapter_config.json").write_text("{}")
        case "of a second network":
            (folder / "controlnet").mkdir(parents=True)
        case _:
            raise AssertionError(kind)


WRONG_LORA = {
    "another network's modules": "would not use .*to_x", "one more key": "would not use more.diff",
    "one more part": "would not use prior", "half a pair": "only one of", "another width": "shapes .* do not fit",
    "a smaller width": "shapes .* do not fit", "a bias": "would not use .*bias", "DoRA": "dora_scale", "LoKr": "lokr",
    "not finite": "not finite", "whole numbers": "int32", "another rank in its metadata": "rank 7",
    "a start that changes the network": "pissa", "metadata of no JSON": "no JSON",
    "kohya's of another network": "would not use|does not know", "kohya's and others": "and others", "kohya's alpha of 0": "above 0",
    "a strength that is no number": "above 0", "a LoRA of a VAE": "has a LoRA of a vae", "of a second network": "has a controlnet",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG_LORA)
def test_a_lora_that_is_not_used_in_full_is_refused(case: Case, tmp_path: Path, kind: str, tried: Tried) -> None:
    wrong_lora(case, tmp_path / "lora", kind)
    refused(case, str(tmp_path / "lora"), WRONG_LORA[kind], late=kind == "not finite")
    tried("refused")


def test_a_lora_of_another_family_is_refused(
    request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path, tried: Tried
) -> None:
    sd = Family(
        fixture="", module="stable_diffusion", kind="StableDiffusion", pipeline="StableDiffusionPipeline", config="sd15",
        scheduler=Ddim(num_steps=3), denoiser="unet", encoders=("text_encoder",),
    )  # fmt: skip
    cases = {"sd": Case(sd, folders["epsilon"])} | {name: cased(request, name) for name in FAMILIES}
    loras = {name: plain(case, tmp_path / name) for name, case in cases.items()}
    for one in cases:
        for other in cases:
            if one != other:
                refused(cases[one], str(loras[other]), "would not use|do not fit")
                tried("refused")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("run",)


BYTES = {
    "empty.safetensors": (b"", "empty file"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS"),
    "page.safetensors": (b"<!DOCTYPE html><html>" * 20, "damaged"),
    "nothing.safetensors": (b"\x02\0\0\0\0\0\0\0{}", "no tensors"),
    "code.bin": (pickle.dumps(Code(), 2), "no pickled code"),
    "code.pt": (pickle.dumps({"transformer.x.lora_A.weight": Code()}, 2), "no pickled code"),
    "list.pt": (None, "nothing that can be used|neither"),
}


@pytest.mark.parametrize("name", BYTES)
def test_files_of_something_else_are_refused(
    case: Case, tmp_path: Path, name: str, tried: Tried, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BYTES[name]
    if content is None:
        torch.save([1, 2], tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    for learned in (tmp_path, tmp_path / name):
        refused(case, str(learned), message)
    assert capsys.readouterr().out == ""  # no code was run
    tried("refused", 2)


def test_what_names_nothing_is_refused(case: Case, tmp_path: Path, tried: Tried) -> None:
    lora = plain(case, tmp_path / "lora")
    (tmp_path / "empty").mkdir()
    for learned, message in (
        ("/no/such/folder", "no such folder or file"), (5, "expected a folder or file"), (str(tmp_path / "empty"), "holds no"),
        ({"path": str(lora), "scale": "much"}, "expected a finite number"), ({"path": str(lora), "weight": 1}, "no such option"),
    ):  # fmt: skip
        refused(case, learned, message)
        tried("refused")
    file = lora / LORA
    file.write_bytes(file.read_bytes()[:-50])
    refused(case, str(lora), "damaged")
    tried("refused")


# Which run it is


def test_learned_files_are_part_of_a_run(case: Case, tmp_path: Path, tried: Tried) -> None:
    def job(*more: str) -> Any:
        options = ["zoo=lab", "metrics=none", "device=cpu", "dataset=prompt", "dataset.prompt=a cat", "tracker=none"]
        given = [f"model={case.family.config}", f"model.path={case.folder}", *options, f"outputs={tmp_path}/out", *more]
        return preparation.prepare(composition.composed(given))

    lora = plain(case, tmp_path / "lora")
    bare, first = job(), job(f"model.learned={lora}")
    assert first.folder.path != bare.folder.path
    assert job(f"model.learned={lora}").folder.path == first.folder.path
    assert job(f"model.learned=[{{path:{lora},scale:0.5}}]").folder.path != first.folder.path
    file = lora / LORA
    tensors = load_file(file)
    write(lora, tensors | {name: 2 * value for name, value in list(tensors.items())[:1]})
    assert job(f"model.learned={lora}").folder.path not in (first.folder.path, bare.folder.path)
    tried("used", 3)
