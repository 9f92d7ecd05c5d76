"""Rewards on networks of their published size: random weights, under the names and in the files that are published.

Run by `pytest -m slow`. Names, shapes and figures are written down here, not asked of the classes that load them:

    CLIP B/32, B/16, L/14    Radford et al. 2021, Table 20; config.json of openai/clip-vit-* on the hub
    CLIP RN50                the same, Table 19; openai/CLIP, clip/model.py, ModifiedResNet
    CLIP H/14, g/14          mlfoundations/open_clip, model_configs/ViT-H-14.json and ViT-g-14.json; config.json of
                             yuvalkirstain/PickScore_v1
    BLIP-2 ViT-g             Li et al. 2023, section 3.1; salesforce/LAVIS, lavis/models/blip2_models/blip2.py, Qformer.py and
                             lavis/models/eva_vit.py, create_eva_vit_g (39 blocks); names as in transformers' conversion of it
    BLIP for VQA             Li et al. 2022; salesforce/BLIP, models/vit.py and models/med.py, configs/med_config.json, configs/vqa.yaml
    VGG-16, ViT-B/16         torchvision's vgg16; config.json of google/vit-base-patch16-224 and its names in transformers 4

CLIPs' sizes are those of mlfoundations/open_clip, docs/model_profile.csv, in millions of parameters; exact ones name their source.
"""

import dataclasses
import gc
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from guidedgen.basics import images
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.runs import composition, config
from guidedgen.zoo import blip2, classifier, clip, feature_maps, openclip, vqa

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

Shapes = dict[str, tuple[int, ...]]

SIDE = 512
TASKS = [Task(id="a", prompt="a photo of a tabby"), Task(id="b", prompt="a golden retriever on a beach")]
WORDS = 49408


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """A CLIP with a vision transformer."""

    width: int
    layers: int
    heads: int
    patch: int
    hidden: int
    text_width: int
    text_layers: int
    text_heads: int
    dim: int
    activation: str = "quick_gelu"  # what OpenAI trained with

    @property
    def tokens(self) -> int:
        return (224 // self.patch) ** 2 + 1


SMALL_TEXT: dict[str, Any] = {"text_width": 512, "text_layers": 12, "text_heads": 8, "dim": 512}
LARGE_TEXT: dict[str, Any] = {"text_width": 1024, "text_layers": 24, "text_heads": 16, "dim": 1024, "activation": "gelu"}
B32 = Figures(width=768, layers=12, heads=12, patch=32, hidden=3072, **SMALL_TEXT)
B16 = Figures(width=768, layers=12, heads=12, patch=16, hidden=3072, **SMALL_TEXT)
L14 = Figures(width=1024, layers=24, heads=16, patch=14, hidden=4096, text_width=768, text_layers=12, text_heads=12, dim=768)
H14 = Figures(width=1280, layers=32, heads=16, patch=14, hidden=5120, **LARGE_TEXT)
G14 = Figures(width=1408, layers=40, heads=16, patch=14, hidden=6144, **LARGE_TEXT)


# What checkpoints hold: names and shapes


def linear(name: str, out: int, fan_in: int) -> Shapes:
    return {f"{name}.weight": (out, fan_in), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Shapes:
    running: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": ()}
    return norm(name, width) | running


def hub_shapes(f: Figures) -> Shapes:
    """As transformers' CLIPModel, which kept the positions' numbers as buffers when the checkpoints were made."""
    shapes: Shapes = {"logit_scale": ()}
    for part, width, layers, hidden, tokens in (
        ("text_model", f.text_width, f.text_layers, 4 * f.text_width, 77),
        ("vision_model", f.width, f.layers, f.hidden, f.tokens),
    ):
        shapes |= {f"{part}.embeddings.position_embedding.weight": (tokens, width), f"{part}.embeddings.position_ids": (1, tokens)}
        for block in (f"{part}.encoder.layers.{i}" for i in range(layers)):
            for name in "qkv":
                shapes |= linear(f"{block}.self_attn.{name}_proj", width, width)
            shapes |= linear(f"{block}.self_attn.out_proj", width, width)
            shapes |= linear(f"{block}.mlp.fc1", hidden, width) | linear(f"{block}.mlp.fc2", width, hidden)
            shapes |= norm(f"{block}.layer_norm1", width) | norm(f"{block}.layer_norm2", width)
    shapes |= {"text_model.embeddings.token_embedding.weight": (WORDS, f.text_width)}
    shapes |= {"vision_model.embeddings.class_embedding": (f.width,)}
    shapes |= {"vision_model.embeddings.patch_embedding.weight": (f.width, 3, f.patch, f.patch)}
    shapes |= norm("text_model.final_layer_norm", f.text_width)
    shapes |= norm("vision_model.pre_layrnorm", f.width) | norm("vision_model.post_layernorm", f.width)
    return shapes | {"text_projection.weight": (f.dim, f.text_width), "visual_projection.weight": (f.dim, f.width)}


def open_blocks(part: str, width: int, layers: int, hidden: int) -> Shapes:
    shapes: Shapes = {}
    for block in (f"{part}.resblocks.{i}" for i in range(layers)):
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= linear(f"{block}.attn.out_proj", width, width) | norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        shapes |= linear(f"{block}.mlp.c_fc", hidden, width) | linear(f"{block}.mlp.c_proj", width, hidden)
    return shapes


def open_text(width: int, layers: int, dim: int) -> Shapes:
    shapes = open_blocks("transformer", width, layers, 4 * width) | norm("ln_final", width)
    shapes |= {"logit_scale": (), "token_embedding.weight": (WORDS, width), "positional_embedding": (77, width)}
    return shapes | {"text_projection": (width, dim)}


def open_shapes(f: Figures) -> Shapes:
    """As open_clip's CLIP with a vision transformer."""
    shapes = open_text(f.text_width, f.text_layers, f.dim) | open_blocks("visual.transformer", f.width, f.layers, f.hidden)
    shapes |= {"visual.conv1.weight": (f.width, 3, f.patch, f.patch), "visual.class_embedding": (f.width,)}
    shapes |= {"visual.positional_embedding": (f.tokens, f.width), "visual.proj": (f.width, f.dim)}
    return shapes | norm("visual.ln_pre", f.width) | norm("visual.ln_post", f.width)


def rn50_shapes() -> Shapes:
    """As OpenAI's CLIP RN50: a stem of three convolutions, (3, 4, 6, 3) bottlenecks, attention pooling."""
    shapes = open_text(512, 12, 1024)
    for i, (out, fan_in) in enumerate([(32, 3), (32, 32), (64, 32)], start=1):
        shapes |= {f"visual.conv{i}.weight": (out, fan_in, 3, 3)} | batch_norm(f"visual.bn{i}", out)
    fan_in = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        planes = 64 * 2**stage
        for block in (f"visual.layer{stage + 1}.{i}" for i in range(blocks)):
            convolutions = ((planes, fan_in, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for i, shape in enumerate(convolutions, start=1):
                shapes |= {f"{block}.conv{i}.weight": shape} | batch_norm(f"{block}.bn{i}", shape[0])
            if fan_in != 4 * planes:
                shapes |= {f"{block}.downsample.0.weight": (4 * planes, fan_in, 1, 1)}
                shapes |= batch_norm(f"{block}.downsample.1", 4 * planes)
            fan_in = 4 * planes
    shapes |= {"visual.attnpool.positional_embedding": (7 * 7 + 1, 2048)} | linear("visual.attnpool.c_proj", 1024, 2048)
    for name in "qkv":
        shapes |= linear(f"visual.attnpool.{name}_proj", 2048, 2048)
    return shapes


def vit_shapes() -> Shapes:
    """As transformers 4 named ViTForImageClassification, 12 blocks of width 768 and 1000 classes."""
    shapes: Shapes = {"vit.embeddings.cls_token": (1, 1, 768), "vit.embeddings.position_embeddings": (1, 197, 768)}
    patches = "vit.embeddings.patch_embeddings.projection"
    shapes |= {f"{patches}.weight": (768, 3, 16, 16), f"{patches}.bias": (768,)}
    for block in (f"vit.encoder.layer.{i}" for i in range(12)):
        for name in ("query", "key", "value"):
            shapes |= linear(f"{block}.attention.attention.{name}", 768, 768)
        shapes |= linear(f"{block}.attention.output.dense", 768, 768)
        shapes |= linear(f"{block}.intermediate.dense", 3072, 768) | linear(f"{block}.output.dense", 768, 3072)
        shapes |= norm(f"{block}.layernorm_before", 768) | norm(f"{block}.layernorm_after", 768)
    return shapes | norm("vit.layernorm", 768) | linear("classifier", 1000, 768)


def blip2_shapes() -> Shapes:
    """As transformers' Blip2ForImageTextRetrieval: a ViT-g of 39 blocks, a Q-Former on BERT-base with 32 queries."""
    tower, former = "vision_model", "qformer.encoder.layer"
    shapes: Shapes = {"query_tokens": (1, 32, 768), "embeddings.word_embeddings.weight": (30523, 768)}
    shapes |= {f"{tower}.embeddings.class_embedding": (1, 1, 1408), f"{tower}.embeddings.position_embedding": (1, 257, 1408)}
    shapes |= {f"{tower}.embeddings.patch_embedding.weight": (1408, 3, 14, 14), f"{tower}.embeddings.patch_embedding.bias": (1408,)}
    for block in (f"{tower}.encoder.layers.{i}" for i in range(39)):
        shapes |= linear(f"{block}.self_attn.qkv", 3 * 1408, 1408) | linear(f"{block}.self_attn.projection", 1408, 1408)
        shapes |= linear(f"{block}.mlp.fc1", 6144, 1408) | linear(f"{block}.mlp.fc2", 1408, 6144)
        shapes |= norm(f"{block}.layer_norm1", 1408) | norm(f"{block}.layer_norm2", 1408)
    for i in range(12):
        for part, seen in [("attention", 768), ("crossattention", 1408)][: 1 + (i % 2 == 0)]:
            shapes |= linear(f"{former}.{i}.{part}.attention.query", 768, 768) | linear(
                f"{former}.{i}.{part}.output.dense", 768, 768
            )
            shapes |= linear(f"{former}.{i}.{part}.attention.key", 768, seen) | linear(
                f"{former}.{i}.{part}.attention.value", 768, seen
            )
            shapes |= norm(f"{former}.{i}.{part}.output.LayerNorm", 768)
        for kind in ("", "_query"):
            shapes |= linear(f"{former}.{i}.intermediate{kind}.dense", 3072, 768) | norm(
                f"{former}.{i}.output{kind}.LayerNorm", 768
            )
            shapes |= linear(f"{former}.{i}.output{kind}.dense", 768, 3072)
    shapes |= (
        {"embeddings.position_embeddings.weight": (512, 768)}
        | norm("qformer.layernorm", 768)
        | norm(f"{tower}.post_layernorm", 1408)
    )
    return shapes | linear("vision_projection", 256, 768) | linear("text_projection", 256, 768) | linear("itm_head", 2, 768)


def vqa_shapes() -> Shapes:
    """As the authors name BLIP's question answering: a ViT-B/16 for 480 px, and BERT-base twice, with attention to the image."""
    shapes: Shapes = {"visual_encoder.cls_token": (1, 1, 768), "visual_encoder.pos_embed": (1, 901, 768)}
    shapes |= {"visual_encoder.patch_embed.proj.weight": (768, 3, 16, 16), "visual_encoder.patch_embed.proj.bias": (768,)}
    for block in (f"visual_encoder.blocks.{i}" for i in range(12)):
        shapes |= linear(f"{block}.attn.qkv", 3 * 768, 768) | linear(f"{block}.attn.proj", 768, 768)
        shapes |= linear(f"{block}.mlp.fc1", 3072, 768) | linear(f"{block}.mlp.fc2", 768, 3072)
        shapes |= norm(f"{block}.norm1", 768) | norm(f"{block}.norm2", 768)
    for part in ("text_encoder", "text_decoder.bert"):
        words = f"{part}.embeddings"
        shapes |= {f"{words}.word_embeddings.weight": (30524, 768), f"{words}.position_embeddings.weight": (512, 768)}
        shapes |= {f"{words}.position_ids": (1, 512)} | norm(f"{words}.LayerNorm", 768)
        for layer in (f"{part}.encoder.layer.{i}" for i in range(12)):
            for attention in (f"{layer}.attention", f"{layer}.crossattention"):
                for name in ("self.query", "self.key", "self.value", "output.dense"):
                    shapes |= linear(f"{attention}.{name}", 768, 768)
                shapes |= norm(f"{attention}.output.LayerNorm", 768)
            shapes |= linear(f"{layer}.intermediate.dense", 3072, 768) | linear(f"{layer}.output.dense", 768, 3072)
            shapes |= norm(f"{layer}.output.LayerNorm", 768)
    head = "text_decoder.cls.predictions"
    shapes |= linear(f"{head}.transform.dense", 768, 768) | norm(f"{head}.transform.LayerNorm", 768)
    return shapes | norm("visual_encoder.norm", 768) | {f"{head}.bias": (30524,)} | linear(f"{head}.decoder", 30524, 768)


def vgg16_shapes() -> Shapes:
    """As torchvision's vgg16: thirteen convolutions, counted with the activations and poolings between them, and three layers."""
    shapes, index, fan_in = {}, 0, 3
    for out, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            shapes |= {f"features.{index}.weight": (out, fan_in, 3, 3), f"features.{index}.bias": (out,)}
            index, fan_in = index + 2, out
        index += 1
    for index, out, fan_in in ((0, 4096, 512 * 49), (3, 4096, 4096), (6, 1000, 4096)):
        shapes |= linear(f"classifier.{index}", out, fan_in)
    return shapes


def head_shapes() -> Shapes:
    """As LAION's v2 head."""
    shapes, widths = {}, (768, 1024, 128, 64, 16, 1)
    for index, fan_in, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        shapes |= linear(f"layers.{index}", out, fan_in)
    return shapes


# Checkpoints


def randomly(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Random numbers in half precision, of a size that activations keep from layer to layer: 1/fan_in variance (2/fan_in before a
    rectifier), norms of 1 (a tenth where a bottleneck is added to its input), biases of 0.02.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        fan_in = math.prod(shape[1:]) / (2 if len(shape) == 4 else 1)
        if name.endswith("position_ids"):
            state[name] = torch.arange(shape[1])[None]
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1)
        elif name == "logit_scale":
            state[name] = torch.tensor(100.0).log()
        elif name.endswith(("running_var", ".weight")) and len(shape) == 1:
            state[name] = torch.full(shape, 0.1 if "bn3.weight" in name and "layer" in name else 1.0)
        else:
            scale = 0.02 if len(shape) == 1 else fan_in**-0.5
            state[name] = (torch.randn(shape, generator=generator) * scale).half()
    return state


def save(state: Mapping[str, Any], file: Path) -> Path:
    """The checkpoint's folder."""
    from safetensors.torch import save_file

    file.parent.mkdir(exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(dict(state), file, metadata={"format": "pt"})
    else:
        torch.save(dict(state), file)
    return file.parent


def save_hub_clip(f: Figures, folder: Path, weights: str) -> Path:
    """A folder of transformers' CLIPModel. `eos_token_id` 2 is in the published configs, and stands for the highest token."""
    vision = {"hidden_size": f.width, "intermediate_size": f.hidden, "num_hidden_layers": f.layers, "num_attention_heads": f.heads}
    text = {"hidden_size": f.text_width, "intermediate_size": 4 * f.text_width, "num_hidden_layers": f.text_layers}
    text |= {"num_attention_heads": f.text_heads, "vocab_size": WORDS, "max_position_embeddings": 77, "eos_token_id": 2}
    vision |= {"image_size": 224, "patch_size": f.patch}
    settings = {"model_type": "clip", "projection_dim": f.dim, "architectures": ["CLIPModel"]}
    for part, numbers in (("vision_config", vision), ("text_config", text)):
        settings[part] = {**numbers, "hidden_act": f.activation, "projection_dim": f.dim}
    save(randomly(hub_shapes(f)), folder / weights)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def save_words(folder: Path) -> Path:
    """CLIP's tokenizer, whose 48894 merges come with open_clip."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    known = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(token, token): number for token, number in known.encoder.items()}
    CLIPTokenizer(vocab=vocabulary, merges=list(known.bpe_ranks)).save_pretrained(folder)
    return folder


def save_classifier(folder: Path) -> Path:
    from torchvision.models import ViT_B_16_Weights

    labels = dict(enumerate(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]))
    figures = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    settings = {"model_type": "vit", "image_size": 224, "patch_size": 16, "architectures": ["ViTForImageClassification"], **figures}
    preparation = {"do_resize": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
    save(randomly(vit_shapes()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**settings, "id2label": labels}))
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation))
    return folder


def berts_words(*more: str) -> list[str]:
    """As many as BERT has, 30522, of which only the tasks' words and `more` are of any language."""
    words = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += sorted({word for task in TASKS for word in task.prompt.split()} | {*more})
    return words + [f"[word{i}]" for i in range(30522 - len(words))]


def save_blip2(folder: Path) -> Path:
    """The network, its captioning head, and its tokenizer, in which [DEC] comes after BERT's words."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(berts_words())})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    settings = {"model_type": "blip-2", "num_query_tokens": 32, "image_text_hidden_size": 256}
    settings |= {"qformer_config": {"vocab_size": 30523, "use_qformer_text_input": True}}
    save(randomly(blip2_shapes()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer.save_pretrained(folder)
    head: Shapes = linear("transform.dense", 768, 768) | norm("transform.LayerNorm", 768) | {"bias": (30523,)}
    state = randomly({f"Qformer.cls.predictions.{name}": shape for name, shape in head.items()})
    save(blip2.convert_head(state, "?"), folder / "head.safetensors")
    return folder


def save_vqa(folder: Path) -> Path:
    """The authors' checkpoint, and what transformers' repository has besides weights."""
    from transformers import BertTokenizer

    state = randomly(vqa_shapes())
    state["text_decoder.cls.predictions.decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state["text_decoder.cls.predictions.decoder.bias"] = state["text_decoder.cls.predictions.bias"]
    save({"model": state}, folder / "model_base_vqa_capfilt_large.pth")
    settings = {"model_type": "blip", "vision_config": {"image_size": 384}, "text_config": {"num_attention_heads": 12}}
    (folder / "config.json").write_text(json.dumps(settings))
    BertTokenizer(vocab={word: i for i, word in enumerate(berts_words("yes", "no", "?"))}).save_pretrained(folder)
    return folder


# The checks


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where checkpoints go. They and the networks that were read from them are gone when the test is over."""
    yield tmp_path
    for cached in (clip._load_hub, openclip._load, classifier._load, feature_maps._load_vgg, blip2._load_hub, vqa._load_blip):
        cached.cache_clear()
    gc.collect()
    shutil.rmtree(tmp_path)


def pictures(seed: int = 0) -> torch.Tensor:
    """Two, waves with some noise: 2 3 512 512 in [0.2, 0.8]."""
    y, x = torch.meshgrid(torch.linspace(0, 9, SIDE), torch.linspace(0, 7, SIDE), indexing="ij")
    waves = torch.stack([torch.stack([(x + k * y).sin(), (x * y / k).cos(), (k * x - y).sin()]) for k in (1, 3 + seed)])
    noise = torch.rand(waves.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return 0.5 + 0.25 * waves + 0.1 * noise


@pytest.fixture
def reference(folder: Path) -> str:
    file = folder / "reference.png"
    file.write_bytes(images.png(pictures(seed=1)[1]))
    return str(file)


def build(name: str, options: Mapping[str, object]) -> Any:
    """The reward that `run.py reward=NAME zoo=hub` and these options make."""
    overrides = [f"reward={name}", "zoo=hub", "device=cpu", "dtype=float32"]
    cfg = composition.composed([*overrides, *(f"{key}={value}" for key, value in options.items())])
    OmegaConf.resolve(cfg)
    return config.build(config.without_weightless(cfg.reward), "reward")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def millions(network: nn.Module) -> float:
    """As open_clip's docs/model_profile.csv gives them."""
    return round(parameters(network) / 1e6, 2)


def check(reward: Reward, networks: Sequence[nn.Module], low: float, high: float, *, reach: slice = slice(0, SIDE)) -> None:
    """Scores of two pictures, in [low, high] and other than each other's; what reaches the pixels and what the weights.

    Scores are to be those of each picture alone, to a thousandth of what sets the two apart (rounding of fp32 is far below), and
    the gradient other than 0 at every pixel within `reach`, in both directions, and 0 beyond.
    """
    x = pictures().requires_grad_()
    scores = reward(x, TASKS)
    assert scores.shape == (2,) and scores.isfinite().all()
    assert low <= scores.min() and scores.max() <= high
    scores.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    reached = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    reached[reach, reach] = True
    assert torch.equal(x.grad != 0, reached.expand_as(x))
    for network in networks:
        assert not network.training
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    scores = scores.detach()
    apart = abs(scores[0] - scores[1]).item()
    assert apart > 1e-4 * scores.abs().max()
    with torch.no_grad():
        alone = torch.cat([reward(x[i : i + 1], TASKS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(alone, scores, rtol=0, atol=1e-3 * apart)


def test_aesthetic(folder: Path):
    from guidedgen.zoo.aesthetic import FILE

    options = {
        "zoo.clip.path": save_hub_clip(L14, folder / "l14", "model.safetensors"),
        "zoo.aesthetic.path": save(randomly(head_shapes()), folder / "head" / FILE),
    }
    reward = build("aesthetic", options)
    assert (millions(reward.clip.network), parameters(reward.head.network)) == (427.62, 927_969)
    check(reward, [reward.clip.network, reward.head.network], -math.inf, math.inf)


def test_aesthetic_v1(folder: Path):
    options: dict[str, object] = {
        "zoo.clip.path": save_hub_clip(L14, folder / "l14", "model.safetensors"),
        "zoo.clip_b32.path": save_hub_clip(B32, folder / "b32", "pytorch_model.bin"),
    }
    for name, letter, dim in (("l14", "l_14", 768), ("b32", "b_32", 512)):
        file = folder / f"sa_0_4_vit_{letter}_linear.pth"
        save(randomly({"weight": (1, dim), "bias": (1,)}), file)
        options |= {f"reward.predictors.{name}.head.path": file}
    reward = build("aesthetic_v1", options)
    parts = reward.predictors
    assert {name: millions(part.clip.network) for name, part in parts.items()} == {"l14": 427.62, "b32": 151.28}
    assert {name: parameters(part.head.network) for name, part in parts.items()} == {"l14": 769, "b32": 513}
    networks = [network for part in parts.values() for network in (part.clip.network, part.head.network)]
    check(reward, networks, -math.inf, math.inf)


def test_pickscore(folder: Path):
    options = {
        "zoo.preference.path": save_hub_clip(H14, folder / "h14", "model.safetensors"),
        "zoo.preference.tokenizer": save_words(folder / "words"),
    }
    reward = build("pickscore", options)
    assert millions(reward.clip.network) == 986.11
    assert reward.clip.logit_scale == pytest.approx(100, rel=1e-3)
    check(reward, [reward.clip.network], -1, 1)


def test_hps(folder: Path):
    state = {"epoch": 1, "state_dict": randomly(open_shapes(H14))}
    options = {"zoo.hps.path": save(state, folder / "hps" / "HPS_v2.1_compressed.pt")}
    del state
    reward = build("hps", options)
    assert millions(reward.clip.network) == 986.11
    check(reward, [reward.clip.network], -1, 1)


def test_clip_text(folder: Path):
    words = save_words(save_hub_clip(L14, folder / "l14", "model.safetensors"))
    for distance, low, high in (("cosine", -1, 1), ("spherical", -(math.pi**2) / 2, 0)):
        reward = build("clip_text", {"zoo.clip.path": words, "reward.distance": distance})
        assert millions(reward.clip.network) == 427.62
        check(reward, [reward.clip.network], low, high)
    # "a photo of a cat", as the documentation of transformers' CLIP has it
    assert reward.clip._tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_clip_image(folder: Path, reference: str):
    options: dict[str, object] = {"reward.image": reference}
    for name, figures in (("b32", B32), ("l14", L14), ("g14", G14)):
        file = folder / name / "open_clip_model.safetensors"
        options[f"zoo.laion_{name}.path"] = save(randomly(open_shapes(figures)), file)
    reward = build("clip_image", options)
    sizes = {name: millions(part.network) for name, part in reward.clips.items()}
    assert sizes == {"b32": 151.28, "l14": 427.62, "g14": 1366.68}
    check(reward, [part.network for part in reward.clips.values()], -(math.pi**2) / 2, 0)


def test_classifier(folder: Path):
    reward = build("classifier", {"zoo.classifier.path": save_classifier(folder / "vit")})
    assert parameters(reward.classifier.network) == 86_567_656  # torchvision's ViT_B_16_Weights, which counts the same network
    assert [reward.classifier.label_in(task.prompt) for task in TASKS] == [281, 207]  # of ImageNet's classes
    check(reward, [reward.classifier.network], -math.inf, 0)


def test_blip2(folder: Path):
    path = save_blip2(folder / "blip2")
    reward = build("blip2", {"zoo.blip2.path": path, "zoo.blip2.head": path / "head.safetensors"})
    network = reward.matcher.network
    tower = parameters(network.network.vision_model)
    assert parameters(network.network) == sum(math.prod(shape) for shape in blip2_shapes().values())
    assert millions(network.network.vision_model) == 985.95  # as LAVIS' ViT-g of 39 blocks
    assert (parameters(network) - tower) / 188e6 == pytest.approx(1, abs=0.01)  # "In total, Q-Former contains 188M parameters"
    check(reward, [network], -math.inf, 0)
    assert reward.matcher._tokenizer.bos_token_id == 30522
    matching, caption = reward.losses(pictures(), TASKS)
    assert matching.min() > 0 and caption.min() > 0


def test_vqa(folder: Path):
    path = save_vqa(folder / "vqa")
    reward = build("vqa", {"zoo.vqa.path": path, "zoo.vqa.checkpoint": path / "model_base_vqa_capfilt_large.pth"})
    network, written = reward.model.network, vqa_shapes()
    counted = {name: math.prod(shape) for name, shape in written.items() if "decoder." not in name.partition("cls")[2]}
    assert parameters(network) == sum(number for name, number in counted.items() if not name.endswith("position_ids"))
    check(reward, [network], -math.inf, 0)
    tokenizer = reward.model._tokenizer
    assert network.config.text_config.vocab_size - 2 == len(tokenizer) == 30522  # [DEC], and then [ENC]


def test_style_gram_clip(folder: Path, reference: str):
    options = {"zoo.clip_b16.clip.path": save_hub_clip(B16, folder / "b16", "pytorch_model.bin"), "reward.image": reference}
    reward = build("style_gram_clip", options)
    network = reward.features._clip.network
    assert millions(network) == 149.62
    assert reward.features(pictures()).shape == (2, 196, 768)
    check(reward, [network], -math.inf, 0)


def test_style_gram_vgg16(folder: Path, reference: str):
    shapes = vgg16_shapes()
    classifier = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("classifier"))
    options = {
        "zoo.vgg16.path": save(randomly(shapes), folder / "vgg" / feature_maps.DOWNLOADS["vgg16"].file),
        "reward.image": reference,
    }
    reward = build("style_gram_vgg16", options)
    assert parameters(reward.features.network) + classifier == 138_357_544  # torchvision's VGG16_Weights
    assert reward.features(pictures()).shape == (2, 49, 512)
    # Of 256 pixels the middle 224 are kept, 32 to 480 of 512, and bilinear interpolation reaches one pixel and a half further.
    check(reward, [reward.features.network], 0, 1, reach=slice(31, 481))


def test_style_clip_rn50(folder: Path, reference: str):
    path = save(randomly(rn50_shapes()), folder / "rn50" / "open_clip_model.safetensors")
    for published in (False, True):
        options = {"zoo.rn50.path": path, "reward.image": reference, "reward.published_code_range": published}
        reward = build("style_clip_rn50", options)
        assert millions(reward.clip.network) == 102.01
        check(reward, [reward.clip.network], -100, 100)
