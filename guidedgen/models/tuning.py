"""Parameters of a model that can be tuned, and the folders they are kept in, as diffusers itself loads them (see
guidedgen.models.learned).

weights, attention   unet/ of a diffusers folder: UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
adapter              pytorch_lora_weights.safetensors (low-rank adapters, Hu et al. 2021, arXiv:2106.09685, by peft):
                     pipeline.load_lora_weights(folder)
token                learned_embeds.safetensors (textual inversion, Gal et al. 2022, arXiv:2208.01618):
                     pipeline.load_textual_inversion(folder, token=...)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.models import lora, words
from guidedgen.models.learned import Learned
from guidedgen.process import Tuning

if TYPE_CHECKING:
    from guidedgen.models.stable_diffusion import StableDiffusion

_UNET, _ADAPTER, _WORDS = "unet", "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"
_FILES = {"weights": _UNET, "attention": _UNET, "adapter": _ADAPTER, "token": _WORDS}
_TUNED = "default"  # the adapter's name, which diffusers' own training gives it too
_PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]  # of attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tunable:
    """`free` are leaves that require gradients: an optimiser may change them in place, and the model's predictions follow."""

    free: Sequence[Tensor]
    save: Callable[[Path], None]  # into a folder, which is made

    def freeze(self) -> None:
        """Gradients are no longer asked for."""
        for value in self.free:
            value.requires_grad_(False)


def tunable(model: StableDiffusion, tuning: Tuning) -> Tunable:
    """What a tuning that `check` has passed changes."""
    match tuning.what:
        case "adapter":
            return _adapter(model, rank=tuning.rank, seed=tuning.seed)
        case "token":
            return _word(model, name=tuning.token, vectors=tuning.num_vectors, initial=tuning.initial)
        case _:
            return _weights(model, attention_only=tuning.what == "attention")


def check(tuning: Tuning, model: StableDiffusion) -> None:
    """Raises UsageError where these parameters cannot be tuned; needs the tokenizer at most."""
    what, dtype = tuning.what, model.dtype
    model.check_plain(f"method.what={what}")
    if model.offload:
        raise UsageError("model.offload=true: what is learned has to stay on the device; use model.offload=false")
    # An update of a weight is often less than the last digit that 16 bits hold, and float16 gradients by weights are not scaled.
    if what in ("weights", "attention") and dtype not in ("float32", "float64"):
        raise UsageError(f"dtype={dtype}: tuning the network's own weights needs dtype=float32; method.what=adapter needs bfloat16")
    if dtype == "float16":
        raise UsageError(f"dtype={dtype}: method.what={what} needs dtype=bfloat16 or float32")
    if what in ("weights", "attention") and model.additions.adapts:
        raise UsageError(f"method.what={what}: not on a model with a LoRA (model.learned), but method.what=adapter")
    if what == "token":
        _check_words(tuning, model)


def _check_words(tuning: Tuning, model: StableDiffusion) -> None:
    if reason := words.not_new(tuning.token, model.tokenizer):
        raise UsageError(f"method.token={tuning.token}: {reason}")
    known = {token.lower() for name, count in model.additions.words.items() for token in words.tokens_of(name, count)}
    if known & {token.lower() for token in words.tokens_of(tuning.token, tuning.num_vectors)}:
        raise UsageError(f"method.token={tuning.token}: model.learned has this word already; choose a new one")
    if words.words_in([tuning.token], model.negative_prompt):  # nowhere else would it be read
        raise UsageError(f"method.token={tuning.token}: model.negative_prompt holds this word; choose a new one")
    if tuning.initial is not None:
        count = len(model.tokenizer(tuning.initial, add_special_tokens=False).input_ids)
        if count != 1:
            raise UsageError(f"method.initial={tuning.initial}: {count} tokens; it has to be one word that the model knows")


def _weights(model: StableDiffusion, *, attention_only: bool) -> Tunable:
    """The denoising network's own weights, all of them or those of its attention layers."""
    unet = model.unet
    free = [value for name, value in unet.named_parameters() if not attention_only or ".attn1." in name or ".attn2." in name]
    for value in free:
        value.requires_grad_()
    return Tunable(free=free, save=lambda folder: unet.save_pretrained(folder / _UNET))


def _adapter(model: StableDiffusion, *, rank: int, seed: int) -> Tunable:
    """Low-rank adapters of the projections of all attention layers; they begin as the identity.

    They are in float32 whatever the network is in: in bfloat16 most of their updates would be rounded away.
    """
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = model.unet
    with torch.random.fork_rng(devices=[]), lora.several():  # peft draws from the global generator
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_PROJECTIONS, init_lora_weights="gaussian"), _TUNED)
    lora.settle(unet, _TUNED, scale=1.0)

    def save(folder: Path) -> None:
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(unet, adapter_name=_TUNED),
            unet_lora_adapter_metadata=unet.peft_config[_TUNED].to_dict(),
        )

    free = [value for name, value in unet.named_parameters() if ".lora_" in name and f".{_TUNED}." in name]
    for value in free:
        value.requires_grad_()
    return Tunable(free=free, save=save)


def _word(model: StableDiffusion, *, name: str, vectors: int, initial: str | None) -> Tunable:
    """The embeddings of a new word, which is read at the beginning of every prompt that does not hold it.

    They begin at that of the word `initial`, or at the mean of all.
    """
    model.keep_readers()
    table = model.text_encoder.get_input_embeddings().weight
    begin = table.float().mean(0)
    if initial is not None:
        (known,) = model.tokenizer(initial, add_special_tokens=False).input_ids
        begin = table[known].float()
    embedding = begin.expand(vectors, -1).detach().clone().requires_grad_()
    model.words.add(name, embedding)

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: embedding.detach().cpu()}, folder / _WORDS)

    return Tunable(free=[embedding], save=save)


def load(model: StableDiffusion, folder: Path, what: str, key: str) -> None:
    """Puts into a model what a tuning of this kind has saved. Raises UsageError where it is not there, or does not fit."""
    if not (folder / _FILES[what]).exists():
        raise UsageError(
            f"{key}={folder}: has no {_FILES[what]}, which method.what={what} leaves there; run.fresh=true learns it again"
        )
    learned = Learned(str(folder / _FILES[what]), key, model.LEARNABLE)
    learned.check(model.config, lambda _: model.tokenizer)
    learned.into(model.unet, "unet")
    if what == "token":
        model.keep_readers()
        learned.into_words({"text_encoder": model.words})
