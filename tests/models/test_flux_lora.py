"""The names that LoRA for FLUX have: each is converted as diffusers' loader does, with nothing left out, or refused in one line."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guidedgen.basics.errors import UsageError
from guidedgen.models import lora
from guidedgen.models.flux import Flux

Tensors = dict[str, Tensor]
Tried = Callable[..., None]
RANK = 2
FLUX = Flux.LEARNABLE
WIDTH, HIDDEN = 32, 128
# A block's modules by the original repository's names, their widths in and out, and diffusers' names for the rows of the latter.
DOUBLE: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "img_attn_qkv": (WIDTH, 3 * WIDTH, ("attn.to_q", "attn.to_k", "attn.to_v")),
    "txt_attn_qkv": (WIDTH, 3 * WIDTH, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "img_attn_proj": (WIDTH, WIDTH, ("attn.to_out.0",)), "txt_attn_proj": (WIDTH, WIDTH, ("attn.to_add_out",)),
    "img_mlp_0": (WIDTH, HIDDEN, ("ff.net.0.proj",)), "img_mlp_2": (HIDDEN, WIDTH, ("ff.net.2",)),
    "txt_mlp_0": (WIDTH, HIDDEN, ("ff_context.net.0.proj",)), "txt_mlp_2": (HIDDEN, WIDTH, ("ff_context.net.2",)),
    "img_mod_lin": (WIDTH, 6 * WIDTH, ("norm1.linear",)), "txt_mod_lin": (WIDTH, 6 * WIDTH, ("norm1_context.linear",)),
}  # fmt: skip
SINGLE = {"linear2": (WIDTH + HIDDEN, WIDTH, ("proj_out",)), "modulation_lin": (WIDTH, 3 * WIDTH, ("norm.linear",))}
ENDS = {
    "img_in": (4, WIDTH, "x_embedder"), "txt_in": (24, WIDTH, "context_embedder"),
    "time_in_in_layer": (256, WIDTH, "time_text_embed.timestep_embedder.linear_1"),
    "time_in_out_layer": (WIDTH, WIDTH, "time_text_embed.timestep_embedder.linear_2"),
    "vector_in_in_layer": (16, WIDTH, "time_text_embed.text_embedder.linear_1"),
    "vector_in_out_layer": (WIDTH, WIDTH, "time_text_embed.text_embedder.linear_2"),
    "guidance_in_in_layer": (256, WIDTH, "time_text_embed.guidance_embedder.linear_1"),
    "guidance_in_out_layer": (WIDTH, WIDTH, "time_text_embed.guidance_embedder.linear_2"),
    "final_layer_linear": (WIDTH, 4, "proj_out"), "final_layer_adaLN_modulation_1": (WIDTH, 2 * WIDTH, "norm_out.linear"),
}  # fmt: skip
TEXT = [f"encoder.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")]
TEXT_WIDTHS = {"q_proj": (16, 16), "out_proj": (16, 16), "fc1": (16, 32)}


def transformer(**options: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        **{
            "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
            "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 16, "axes_dims_rope": (4, 4, 8),
            "guidance_embeds": True,
        } | options
    )  # fmt: skip


@pytest.fixture(scope="module")
def made() -> Any:
    """A pipeline that has no more than what takes LoRA."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        return FluxPipeline(
            transformer=transformer(), text_encoder=CLIPTextModel(clip).eval(), scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        )  # fmt: skip


@pytest.fixture
def pipe(made: Any) -> Any:
    return copy.deepcopy(made)


def normal(*shape: int, seed: int = 0, size: float = 0.2) -> Tensor:
    return size * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(networks: Mapping[str, Any]) -> list[Tensor]:
    """What the two networks compute, in float64."""
    text = networks["text_encoder"].double()(torch.arange(20)[None]).last_hidden_state
    predicted = networks["transformer"].double()(
        hidden_states=normal(1, 6, 4, seed=1, size=1).double(), encoder_hidden_states=normal(1, 5, 24, seed=2, size=1).double(),
        pooled_projections=normal(1, 16, seed=3, size=1).double(), timestep=torch.tensor([0.5]).double(),
        guidance=torch.tensor([3.5]).double(), img_ids=normal(6, 3, seed=4, size=3), txt_ids=torch.zeros(5, 3), return_dict=False,
    )[0]  # fmt: skip
    return [text, predicted]


def loaded(pipe: Any, state: Tensors) -> list[Tensor]:
    """The networks' outputs with this LoRA, which goes in as from a file: by its header first."""
    networks = {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}
    header = {name: value if value.numel() < 2 else value.to("meta") for name, value in state.items()}
    lora.parse(header, {}, None, networks, FLUX, "learned")
    adapter = lora.parse(state, {}, None, networks, FLUX, "learned")
    for part, network in networks.items():
        lora.load(adapter, network, part, FLUX, "one", 1.0, "learned")
    return outputs(networks)


def assert_same(mine: list[Tensor], other: list[Tensor]) -> None:
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def pair(inside: int, outside: int, seed: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    return normal(rank, inside, seed=2 * seed), normal(outside, rank, seed=2 * seed + 1)


def original(
    prefix: str, joint: str, alpha: Callable[[int], float] | None, ends: tuple[str, str] = ("lora_down", "lora_up")
) -> Tensors:
    """A LoRA of all blocks, but for the singles' linear1, whose rows are told apart by FLUX's own width."""
    found: Tensors = {}
    widths = {("double_blocks", i, name): shape[:2] for i in range(2) for name, shape in DOUBLE.items()}
    widths |= {("single_blocks", i, name): shape[:2] for i in range(2) for name, shape in SINGLE.items()}
    for seed, ((kind, i, name), (inside, outside)) in enumerate(widths.items()):
        key = f"{prefix}{joint.join([kind, str(i), *(name.split('_') if joint == '.' and kind == 'single_blocks' else dotted(name, joint))])}"
        down, up = pair(inside, outside, seed)
        found |= {f"{key}.{ends[0]}.weight": down, f"{key}.{ends[1]}.weight": up}
        if alpha is not None:
            found[f"{key}.alpha"] = torch.tensor(alpha(seed))
    return found


def dotted(name: str, joint: str) -> list[str]:
    """img_attn_qkv as img_attn.qkv where names are joined by dots."""
    parts = name.split("_")
    return [name] if joint == "_" or len(parts) < 3 else ["_".join(parts[:2]), *parts[2:]]


def text_names(prefix: str, joint: str, alpha: float | None = None) -> Tensors:
    found: Tensors = {}
    for seed, name in enumerate(TEXT):
        down, up = pair(*TEXT_WIDTHS[name.rpartition(".")[2]], 100 + seed)
        key = prefix + (name.replace(".", "_") if joint == "_" else name)
        found |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        if alpha is not None:
            found[f"{key}.alpha"] = torch.tensor(alpha)
    return found


def own(seed: int = 0) -> Tensors:
    """Under diffusers' names."""
    found: Tensors = {}
    for i in range(2):
        for j, name in enumerate(("attn.to_q", "attn.to_k", "attn.to_out.0", "attn.add_v_proj")):
            down, up = pair(WIDTH, WIDTH, seed + 10 * i + j)
            found |= {f"transformer_blocks.{i}.{name}.lora_A.weight": down, f"transformer_blocks.{i}.{name}.lora_B.weight": up}
        down, up = pair(WIDTH, HIDDEN, seed + 40 + i)
        found |= {f"single_transformer_blocks.{i}.proj_mlp.lora_A.weight": down}
        found |= {f"single_transformer_blocks.{i}.proj_mlp.lora_B.weight": up}
    return found


def xlabs() -> Tensors:
    found: Tensors = {}
    names = {f"double_blocks.{i}.processor.{name}": out for i in range(2) for name, out in (
        ("qkv_lora1", 3 * WIDTH), ("qkv_lora2", 3 * WIDTH), ("proj_lora1", WIDTH), ("proj_lora2", WIDTH),
    )}  # fmt: skip
    names |= {f"single_blocks.{i}.processor.qkv_lora": 3 * WIDTH for i in range(2)}
    for seed, (name, out) in enumerate(names.items()):
        found[f"{name}.down.weight"], found[f"{name}.up.weight"] = pair(WIDTH, out, seed)
    return found


def sparse() -> Tensors:
    """The outer half of qkv is of three blocks, as in a LoRA of q, k and v that was put together."""
    found: Tensors = {}
    for i in range(2):
        up = torch.block_diag(*(normal(WIDTH, RANK, seed=10 * i + j) for j in range(3)))
        key = f"lora_unet_double_blocks_{i}_img_attn_qkv"
        found |= {f"{key}.lora_down.weight": normal(3 * RANK, WIDTH, seed=50 + i), f"{key}.lora_up.weight": up}
    return found


def kinds(kind: str) -> Tensors:
    text = {f"text_encoder.text_model.{name}": value for name, value in text_names("", ".").items()}
    match kind:
        case "diffusers":
            renamed = {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for name, value in text.items()}
            return {f"transformer.{name}": value for name, value in own().items()} | renamed
        case "diffusers with alphas":
            found = {f"transformer.{name}": value for name, value in own().items()}
            modules = dict.fromkeys(name.partition(".lora_")[0] for name in found)
            return found | {f"{name}.alpha": torch.tensor(4.0) for name in modules}
        case "diffusers with kohya's halves":
            named = {f"transformer.{name}": value for name, value in own().items()}
            return {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): value for name, value in named.items()}
        case "kohya":
            blocks = original("lora_unet_", "_", lambda i: 2.0 ** (i % 3))
            return blocks | text_names("lora_te1_text_model_", "_", 1.0)
        case "kohya without alpha":
            return original("lora_unet_", "_", None)
        case "kohya, of joined q, k and v":
            return sparse()
        case "kohya on diffusers' blocks":
            found = {}
            for name, value in own().items():
                module, _, half = name.partition(".lora_")
                if "proj_mlp" in module:  # which diffusers does not know by this name
                    continue
                key = f"lora_transformer_{module.replace('.', '_')}"
                found[f"{key}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = value
                found[f"{key}.alpha"] = torch.tensor(4.0)
            return found | text_names("lora_te1_text_model_", "_", 1.0)
        case "ComfyUI":
            blocks = original("diffusion_model.", ".", lambda i: 2.0 ** (i % 3))
            return blocks | text_names("text_encoders.clip_l.transformer.text_model.", ".", 1.0)
        case "XLabs":
            return xlabs()
    raise AssertionError(kind)


KINDS = [
    "diffusers", "diffusers with alphas", "diffusers with kohya's halves", "kohya", "kohya without alpha",
    "kohya, of joined q, k and v", "kohya on diffusers' blocks", "ComfyUI", "XLabs",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_read_as_in_diffusers(made: Any, pipe: Any, kind: str, tried: Tried) -> None:
    state = kinds(kind)
    other = copy.deepcopy(made)
    other.load_lora_weights({name: value.clone() for name, value in state.items()})
    mine = loaded(pipe, state)
    assert_same(mine, outputs({"transformer": other.transformer, "text_encoder": other.text_encoder}))
    before = outputs({"transformer": copy.deepcopy(made.transformer), "text_encoder": copy.deepcopy(made.text_encoder)})
    text = any("te1" in name or "text" in name for name in state)
    assert [bool((one - two).abs().max() > 1e-3) for one, two in zip(mine, before, strict=True)] == [text, True]
    tried("used")


def added(network: nn.Module, name: str, change: Tensor) -> None:
    network.get_submodule(name).weight.data += change


def test_first_and_last_layers_are_read_too(made: Any, pipe: Any, tried: Tried) -> None:
    """Against weights to which B A alpha / rank is added: diffusers converts the names of these and then leaves them out. In its last
    layer shift and scale are in the other order.
    """
    state, expected = Tensors(), copy.deepcopy(made)
    expected.transformer.double()
    for seed, (name, (inside, outside, module)) in enumerate(ENDS.items()):
        down, up = pair(inside, outside, seed)
        key = f"lora_unet_{name}"
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        outer = torch.cat(up.chunk(2)[::-1]) if module == "norm_out.linear" else up
        added(expected.transformer, module, outer.double() @ down.double() / RANK)
    mine = loaded(pipe, state)
    assert_same(mine, outputs({"transformer": expected.transformer, "text_encoder": expected.text_encoder}))
    left_out = copy.deepcopy(made)
    left_out.load_lora_weights({name: value.clone() for name, value in state.items()})
    assert (outputs({"transformer": left_out.transformer, "text_encoder": left_out.text_encoder})[1] - mine[1]).abs().max() > 1e-3
    tried("used")


def test_single_blocks_of_flux_s_own_width_fit_by_their_header(tried: Tried) -> None:
    """Their first layer is q, k, v and a part of the MLP in one, which diffusers tells apart by the width of 3072."""
    with torch.device("meta"):
        whole = transformer(in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=128, num_attention_heads=24,
                            joint_attention_dim=4096, pooled_projection_dim=768, axes_dims_rope=(16, 56, 56))  # fmt: skip
    key, rank = "lora_unet_single_blocks_0_linear1", 16
    state = {
        f"{key}.lora_down.weight": torch.empty(rank, 3072, device="meta"), f"{key}.alpha": torch.tensor(8.0),
        f"{key}.lora_up.weight": torch.empty(3 * 3072 + 12288, rank, device="meta"),
    }  # fmt: skip
    adapter = lora.parse(state, {}, None, {"transformer": whole, "text_encoder": nn.Module()}, FLUX, "learned")
    block = "single_transformer_blocks.0"
    assert {name: tuple(value.shape) for name, value in adapter.tensors["transformer"].items()} == {
        f"{block}.{module}.lora_{half}.weight": (rank, 3072) if half == "A" else (12288 if module == "proj_mlp" else 3072, rank)
        for module in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp") for half in "AB"
    }  # fmt: skip
    tried("used")


def wrong(kind: str) -> Tensors:
    blocks = original("lora_unet_", "_", None)
    comfy = original("diffusion_model.", ".", None)
    good = {f"transformer.{name}": value for name, value in own().items()}
    some = "lora_unet_double_blocks_0_img_mlp_0"
    match kind:
        case "positions of CLIP":
            return comfy | {"text_encoders.clip_l.transformer.position_embedding.lora_down.weight": normal(2, 2)}
        case "T5":
            key = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
            return comfy | {f"{key}.lora_down.weight": normal(2, 24), f"{key}.lora_up.weight": normal(24, 2)}
        case "biases":
            return blocks | {f"{some}.diff_b": normal(HIDDEN)}
        case "norms":
            return comfy | {"diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": normal(16)}
        case "a projection of texts":
            return blocks | {
                "lora_te1_text_projection.lora_down.weight": normal(2, 16), "lora_te1_text_projection.lora_up.weight": normal(16, 2)
            }  # fmt: skip
        case "blocks that it has not":
            return {name.replace("blocks_1_", "blocks_7_"): value for name, value in blocks.items()}
        case "more blocks than FLUX has":
            return {name.replace("blocks_1_", "blocks_70_"): value for name, value in blocks.items()}
        case "half a pair":
            return {name: value for name, value in blocks.items() if name != f"{some}.lora_up.weight"}
        case "another width":
            return blocks | {f"{some}.lora_down.weight": normal(RANK, WIDTH + 1)}
        case "two ranks in one":
            return blocks | {f"{some}.lora_down.weight": normal(RANK + 1, WIDTH)}
        case "an alpha of 0":
            return blocks | {f"{some}.alpha": torch.tensor(0.0)}
        case "an alpha of nothing":
            return blocks | {"lora_unet_nothing.alpha": torch.tensor(1.0)}
        case "both":
            return blocks | {"lora_transformer_x_embedder.lora_down.weight": normal(2, 4),
                             "lora_transformer_x_embedder.lora_up.weight": normal(WIDTH, 2)}  # fmt: skip
        case "a control LoRA":
            return {"double_blocks.0.img_attn.norm.query_norm.scale": normal(16), "img_in.lora_A.weight": normal(2, 4),
                    "img_in.lora_B.weight": normal(WIDTH, 2)}  # fmt: skip
        case "a control LoRA of diffusers":
            return good | {
                "transformer.x_embedder.lora_A.weight": normal(2, 8),
                "transformer.x_embedder.lora_B.weight": normal(WIDTH, 2),
            }
        case "norms of diffusers":
            return good | {"transformer.transformer_blocks.0.attn.norm_q.weight": normal(16)}
        case "ComfyUI's of halves that diffusers does not convert":
            return {name.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): value for name, value in comfy.items()}
        case "of XLabs and others":
            return xlabs() | good
        case "CLIP-G":
            return blocks | {name.replace("te1", "te2"): value for name, value in text_names("lora_te1_text_model_", "_").items()}
        case "not finite":
            return blocks | {f"{some}.lora_down.weight": normal(RANK, WIDTH) / 0}
    raise AssertionError(kind)


WRONG = {
    "positions of CLIP": "position_embedding", "T5": "would not use .*t5xxl", "biases": "would not use .*diff_b",
    "norms": "would not use .*norm.diff", "a projection of texts": "would not use .*text_projection",
    "blocks that it has not": r"would not use .*blocks\.7", "more blocks than FLUX has": "does not know .*70",
    "half a pair": "would not use|does not know", "another width": "do not fit", "two ranks in one": "do not fit",
    "an alpha of 0": "above 0", "an alpha of nothing": "belongs to no", "both": "would not use lora_unet",
    "a control LoRA": "does not know", "a control LoRA of diffusers": "do not fit", "norms of diffusers": "would not use .*norm_q",
    "ComfyUI's of halves that diffusers does not convert": "would not use .*double_blocks", "of XLabs and others": "would not use|does not know",
    "CLIP-G": "SDXL", "not finite": "not finite",
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_would_not_be_used_in_full_is_refused(pipe: Any, kind: str, tried: Tried) -> None:
    state = wrong(kind)
    networks = {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}
    header = {name: value if value.numel() < 2 else value.to("meta") for name, value in state.items()}
    with pytest.raises(UsageError, match=WRONG[kind]) as caught:
        lora.parse(header if kind != "not finite" else state, {}, None, networks, FLUX, "learned")
    assert str(caught.value).startswith("learned: ") and "\n" not in str(caught.value) and len(str(caught.value)) < 600
    tried("refused")
