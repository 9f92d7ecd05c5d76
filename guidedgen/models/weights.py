"""Weights that replace a network's own: what has to be true of them, and how they are loaded.

They come as a folder in diffusers' or transformers' layout, whole or in pieces, or as one file of the network's tensors.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guidedgen.basics.errors import UsageError
from guidedgen.models.learnable import Learnable
from guidedgen.models.tensors import check_numbers, first, read_tensors
from guidedgen.zoo.pretrained import load_pretrained
from guidedgen.zoo.weights import check_weights, choose, weight_files

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

Configs = Callable[[str], Mapping[str, Any]]  # of the model, by the folder of its part

# What a network computes does not depend on these keys of its config; a transformer's positions do on its sample_size.
_IDLE = {"unet": {"sample_size"}, "vae": {"sample_size", "force_upcast"}}
_TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_act",
         "layer_norm_eps", "vocab_size")  # fmt: skip
_PLAIN_SCHEDULE = {"prediction_type": "epsilon"}  # what a key means that is not there
_SCHEDULE = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "num_train_timesteps",
    "prediction_type",
    "trained_betas",
    "rescale_betas_zero_snr",
)


@functools.lru_cache(maxsize=8)
def skeleton(kind: str, config: str) -> Any:
    """A network of this class of diffusers' or transformers' and this configuration (JSON), without its weights."""
    import diffusers
    import transformers

    options = json.loads(config)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        if hasattr(diffusers, kind):
            return getattr(diffusers, kind).from_config(options)
        network = getattr(transformers, kind)
        return network(network.config_class.from_dict(options))


def shapes_of(state: object, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of tensors, as the network calls them: text encoders were saved with another name before, and positions."""
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)} if isinstance(state, Mapping) else {}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if part != "text_encoder":
        return shapes
    shapes = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    return {name: shape for name, shape in shapes.items() if name != "embeddings.position_ids"}


def check_shapes(part: str, shapes: Mapping[str, tuple[int, ...]], network: nn.Module, source: str) -> None:
    """Raises UsageError unless these are exactly the network's."""
    wanted = {name.removeprefix("text_model."): tuple(value.shape) for name, value in network.state_dict().items()}
    if part == "text_encoder":
        wanted.pop("embeddings.position_ids", None)
    if strange := [name for name in shapes if name not in wanted]:
        raise UsageError(f"{source}: would not use {first(strange)}: this model's {part} has no such tensors")
    if lacking := [name for name in wanted if name not in shapes]:
        raise UsageError(f"{source}: lacks {first(lacking)} of the {part}")
    if odd := [name for name, shape in shapes.items() if shape != wanted[name]]:
        raise UsageError(f"{source}: {odd[0]} has the shape {shapes[odd[0]]}, and {wanted[odd[0]]} in this model's {part}")


def check_network(
    folder: Path, part: str, takes: Learnable, configs: Configs, tokenizer: Callable[[], CLIPTokenizer], source: str
) -> None:
    """Raises UsageError unless a network's folder holds weights of the model's architecture."""
    if (folder.parent / "model_index.json").is_file():
        _check_pipeline(folder.parent, takes, configs, tokenizer, source)
    theirs = read_json(folder / "config.json", source)
    if (kind := theirs.get("_class_name")) not in (None, takes.networks[part]):
        raise UsageError(f"{source}: its {part} is a {kind}, and this model's a {takes.networks[part]}")
    with fitting(source):
        network, ours = (
            skeleton(takes.networks[part], json.dumps(config, sort_keys=True)) for config in (theirs, dict(configs(part)))
        )
    idle = _IDLE.get(part, set())
    for name in _TEXT if part == "text_encoder" else [key for key in ours.config if not key.startswith("_") and key not in idle]:
        found, wanted = getattr(network.config, name, None), getattr(ours.config, name, None)
        if _plain(found) != _plain(wanted):
            raise UsageError(f"{source}: its {part} has {name}={found}, and this model's {wanted}; model.path= takes a whole model")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in network_files(folder, takes.files(part), source):
        shapes |= shapes_of(read_tensors(file, source, values=False)[0], part)
    if part != "vae":  # diffusers renames what old ones call otherwise
        check_shapes(part, shapes, ours, source)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (list, tuple)) else value


def network_files(folder: Path, names: Sequence[str], source: str) -> list[Path]:
    """A network's weights: one file or the pieces that its index names, as safetensors before tensors of torch."""
    name = choose({file.name for file in folder.iterdir()}, names)
    if name is None:
        raise UsageError(f"{source}: {folder.name}/ has no {names[0]}")
    check_weights(folder, name, source)
    return weight_files(folder, name, source)


def _check_pipeline(folder: Path, takes: Learnable, configs: Configs, tokenizer: Callable[[], CLIPTokenizer], source: str) -> None:
    """Raises UsageError where a whole pipeline has another tokenizer or noise schedule than the model, whose own are used."""
    kind = read_json(folder / "model_index.json", source).get("_class_name")
    if kind not in takes.pipelines:
        wanted = f", not a {takes.pipelines[0]}" if takes.pipelines else ", a whole pipeline; model.path= takes a whole model"
        raise UsageError(f"{source}: is a {kind}{wanted}")
    if (file := folder / "scheduler" / "scheduler_config.json").is_file():
        theirs, ours = read_json(file, source), configs("scheduler")
        for name in _SCHEDULE:
            if (theirs.get(name) or _PLAIN_SCHEDULE.get(name)) != (ours.get(name) or _PLAIN_SCHEDULE.get(name)):
                raise UsageError(
                    f"{source}: has {name}={theirs.get(name)}, and this model {ours.get(name)}; model.path= takes a whole model"
                )
    if (folder / "tokenizer").is_dir():
        from transformers import CLIPTokenizer

        with fitting(source):
            vocabulary = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True).get_vocab()
        if vocabulary != tokenizer().get_vocab():
            raise UsageError(f"{source}: its tokenizer is not this model's; model.path= takes a whole model")


def replace(network: Any, part: str, path: Path, names: Sequence[str], source: str) -> None:
    """Replaces the network's weights, by the library that knows the files, which are called by one of these names."""
    with fitting(source):
        if path.is_file():
            state, _ = read_tensors(path, source)
            check_numbers(state, source)
            own = shapes_of(state, part)
            prefix = "text_model." if hasattr(network, "text_model") else ""
            state = {name.removeprefix("text_model."): value for name, value in state.items()} if part == "text_encoder" else state
            network.load_state_dict({f"{prefix}{name}": state[name] for name in own})
            return
        safe = network_files(path, names, source)[0].suffix == ".safetensors"
        other = load_pretrained(
            type(network),
            path,
            what=f"its {part}",
            safetensors=safe,
            device=torch.device("cpu"),
            dtype=network.dtype,
            source=source,
        )
        check_numbers(other.state_dict(), source)
        network.load_state_dict(other.state_dict())


@contextlib.contextmanager
def fitting(source: str) -> Iterator[None]:
    """Makes a UsageError of what diffusers, PEFT, transformers and torch raise for tensors that do not fit a network."""
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):  # callers go on with less where memory is short
        raise
    except Exception as error:  # theirs have no class in common
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise UsageError(f"{source}: cannot be loaded into this model ({reason})") from error


def read_json(file: Path, source: str) -> dict[str, Any]:
    """A JSON file's mapping. Raises UsageError where it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{source}: cannot read {file.name} ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{source}: {file.name} is no mapping")
    return found
