"""From training parts to the shipped folder: trains what is asked for, in order, and writes fp16 safetensors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from guidedgen.lab import networks, training
from guidedgen.lab.networks import WEIGHTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def train(parts: Sequence[str], settings: training.Settings) -> None:
    """Trains parts (names of `scripts/train_lab.py`) and ships each as soon as it is done.

    The generator and the classifier need the shipped autoencoder, the aesthetic head the shipped guide CLIP.
    """
    settings.folder.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tokenizer = networks.train_tokenizer()
    ship_tokenizer(tokenizer)
    with Progress(*columns) as progress:
        for name in parts:
            random.seed(settings.seed)
            torch.manual_seed(int.from_bytes(f"{settings.seed}{name}".encode()[:7], "big"))  # initial weights
            if name == "vae":
                vae = training.fit(training.autoencoder(settings), settings, progress)
                training.standardise(vae, training.generator_for(settings.seed, "standardise"))
                ship(vae, "generator/vae")
            elif name == "generator":
                part = training.generator(settings, networks.load_vae(), tokenizer)
                both = training.fit(part, settings, progress)
                ship(both["unet"], "generator/unet")
                ship(both["text"], "generator/text_encoder")
                ship_pipeline()
            elif name == "classifier":
                save(training.fit(training.classifier(settings, networks.load_vae()), settings, progress), "classifier")
            elif name == "aesthetic":
                save(training.fit(training.aesthetic(settings, networks.load_clip("guide")), settings, progress), "aesthetic")
            else:
                part = training.clip(settings, name.removeprefix("clip-"), tokenizer)
                save(training.fit(part, settings, progress), name)


def save(network: nn.Module, name: str) -> None:
    """Writes a plain network as `weights/NAME.safetensors` in fp16."""
    from safetensors.torch import save_file

    WEIGHTS.mkdir(parents=True, exist_ok=True)
    state = {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, WEIGHTS / f"{name}.safetensors")


def ship(network: Any, folder: str) -> None:
    """Writes a diffusers or transformers network as the folder its own `from_pretrained` reads, in fp16."""
    network.half().save_pretrained(WEIGHTS / folder, safe_serialization=True)
    config = WEIGHTS / folder / "config.json"
    # transformers loads in the dtype the config names, diffusers in fp32: name fp32, or the parts would not fit together.
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def ship_tokenizer(tokenizer: Tokenizer) -> None:
    """Writes the tokenizer as transformers' CLIPTokenizer reads it."""
    from transformers import CLIPTokenizer

    end = "<|endoftext|>"
    CLIPTokenizer(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token=end, unk_token=end, pad_token=end,
        model_max_length=networks.MAX_TOKENS,
    ).save_pretrained(WEIGHTS / "generator" / "tokenizer")  # fmt: skip


def ship_pipeline() -> None:
    """Writes the scheduler and the index that make `weights/generator` a StableDiffusionPipeline."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    root = WEIGHTS / "generator"
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(root / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(root / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(root / "unet"),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_config(root)
    scheduler.save_pretrained(root / "scheduler")
