"""Parameters of a model that can be tuned, and the folders they are kept in, as diffusers itself loads them.

weights, attention   unet/ of a diffusers folder: UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
adapter              pytorch_lora_weights.safetensors (low-rank adapters, Hu et al. 2021, arXiv:2106.09685, by peft):
                     pipeline.load_lora_weights(folder)
token                learned_embeds.safetensors (textual inversion, Gal et al. 2022, arXiv:2208.01618):
                     pipeline.load_textual_inversion(folder, token=...)
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from guidedgen.types import Tuning, UsageError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from guidedgen.models.stable_diffusion import StableDiffusion
    from guidedgen.models.words import Words

_UNET, _ADAPTER, _WORDS = "unet", "pytorch_lora_weights.safetensors", "learned_embeds.safetensors"
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
    if what == "adapter" and importlib.util.find_spec("peft") is None:
        raise UsageError("method.what=adapter needs peft: pip install -c constraints.txt -e '.[adapters]'")
    # An update of a weight is often less than the last digit that 16 bits hold, and float16 gradients by weights are not scaled.
    if what in ("weights", "attention") and dtype not in ("float32", "float64"):
        raise UsageError(f"dtype={dtype}: tuning the network's own weights needs dtype=float32; method.what=adapter needs bfloat16")
    if dtype == "float16":
        raise UsageError(f"dtype={dtype}: method.what={what} needs dtype=bfloat16 or float32")
    if what == "token":
        _check_words(tuning, model)


def _check_words(tuning: Tuning, model: StableDiffusion) -> None:
    def length(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    if length(tuning.token) == 1:
        raise UsageError(f"method.token={tuning.token}: the model knows this word; choose a new one, as in <effect>")
    if tuning.initial is not None and length(tuning.initial) != 1:
        raise UsageError(
            f"method.initial={tuning.initial}: {length(tuning.initial)} tokens; it has to be one word that the model knows"
        )


def _weights(model: StableDiffusion, *, attention_only: bool) -> Tunable:
    """The denoising network's own weights, all of them or those of its attention layers."""
    unet = model.unet
    free = [value for name, value in unet.named_parameters() if not attention_only or ".attn1." in name or ".attn2." in name]
    for value in free:
        value.requires_grad_()
    return Tunable(free=free, save=lambda folder: unet.save_pretrained(folder / _UNET))


def _adapter(model: StableDiffusion, *, rank: int, seed: int) -> Tunable:
    """Low-rank adapters of the projections of all attention layers; they begin as the identity."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = model.unet
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_PROJECTIONS, init_lora_weights="gaussian"))

    def save(folder: Path) -> None:
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))

    return Tunable(free=[value for value in unet.parameters() if value.requires_grad], save=save)


def _word(model: StableDiffusion, *, name: str, vectors: int, initial: str | None) -> Tunable:
    """The embeddings of a new word, which is read at the beginning of every prompt that does not hold it.

    They begin at that of the word `initial`, or at the mean of all.
    """
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


def check_folder(folder: Path, key: str) -> None:
    """Raises UsageError unless the folder holds something that `load` reads."""
    if not any((folder / name).exists() for name in (_UNET, _ADAPTER, _WORDS)):
        raise UsageError(f"{key}={folder}: holds none of {_UNET}/, {_ADAPTER} and {_WORDS}")


def tokens(folder: Path) -> int:
    """How many tokens the folder's words add to a prompt."""
    if not (folder / _WORDS).exists():
        return 0
    with safe_open(folder / _WORDS, framework="pt") as file:
        return sum(file.get_slice(name).get_shape()[0] for name in file.keys())  # noqa: SIM118  it is no dictionary


def load(model: StableDiffusion, folder: Path, key: str) -> None:
    """Puts what the folder holds into a model. Raises UsageError where it does not fit."""
    load_network(model.unet, folder, key)
    load_words(model.words, folder, key)


def load_network(unet: UNet2DConditionModel, folder: Path, key: str) -> None:
    """Puts the folder's weights or adapters into the network. Raises UsageError where they do not fit."""
    with _fitting(folder, key):
        if (folder / _UNET).exists():
            (file,) = (folder / _UNET).glob("*.safetensors")
            unet.load_state_dict(load_file(file))
        if (folder / _ADAPTER).exists():
            unet.load_lora_adapter(load_file(folder / _ADAPTER), prefix="unet")
            unet.requires_grad_(False)


def load_words(words: Words, folder: Path, key: str) -> None:
    """Adds the folder's words. Raises UsageError where they do not fit."""
    with _fitting(folder, key):
        if (folder / _WORDS).exists():
            for name, embedding in load_file(folder / _WORDS).items():
                words.add(name, embedding)


@contextlib.contextmanager
def _fitting(folder: Path, key: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UsageError(f"{key}={folder}: cannot be loaded into this model ({str(error).splitlines()[0]})") from error
