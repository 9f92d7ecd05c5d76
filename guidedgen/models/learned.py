"""Loads what was learned elsewhere into a model: UNets, text encoders, LoRA and textual inversions, as diffusers loads them.

    folder/unet/, folder/text_encoder/, a UNet's own folder   see guidedgen.models.weights
    a whole pipeline's folder (DreamBooth)                    its UNet, text encoder and autoencoder; the rest has to be the model's
    LoRA in files, or in PEFT's folders                       see guidedgen.models.lora
    textual inversions in files                               see guidedgen.models.words

Every key is used, or the file is refused in one line. Configs and headers of files are checked when the model is built.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from guidedgen.basics.errors import UsageError
from guidedgen.models import lora, words
from guidedgen.models.stable_diffusion_folder import StableDiffusionFolder
from guidedgen.models.tensors import SUFFIXES, first, read_tensors
from guidedgen.models.weights import (
    Configs,
    check_network,
    check_shapes,
    fitting,
    read_json,
    replace,
    shapes_of,
    skeleton,
)  # fmt: skip

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from guidedgen.models.words import Words

_FOREIGN = ("text_encoder_2", "text_encoder_3", "transformer", "prior", "controlnet", "image_encoder")
_LORA, _PEFT, _EMBEDDINGS = "pytorch_lora_weights", "adapter_model", "learned_embeds"
_NOT_WEIGHTS = re.compile(r"optimizer|scheduler|checkpoint|training_args|random_states|scaler")  # of a training that is under way


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Piece:
    """One thing that was learned: the folder of a network (`kind` is its part of the model), or a file ("file", or "peft" with a
    configuration next to it).
    """

    kind: str
    path: Path
    scale: float | None  # None is not given
    source: str  # what messages call it


class Learned:
    """What one option names: a path, a mapping {path: ..., scale: ...}, or a list of these. `key` is the option.

    A scale is a LoRA's strength, 1 where none is given. Making one looks for files and opens none; `check` has to come before
    anything is put into a network.
    """

    def __init__(self, value: object, key: str) -> None:
        self._key = key
        self._pieces = [piece for path, scale in _entries(value, key) for piece in find(path, scale, f"{key}={path}")]
        for part in StableDiffusionFolder.WEIGHTS:
            if len(same := [piece for piece in self._pieces if piece.kind == part]) > 1:
                raise UsageError(f"{same[1].source}: a second {part}, after that of {same[0].path}; a model has one")
        self._what: list[str] = []  # each piece: "adapter", "words", or the part whose weights it is
        self._networks: dict[str, nn.Module] = {}  # without their weights
        self._words: dict[str, int] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and folders that it is made of; PEFT's configuration is next to its weights."""
        return tuple(piece.path.parent if piece.kind == "peft" else piece.path for piece in self._pieces)

    @property
    def words(self) -> Mapping[str, int]:
        """How many tokens each of the words is."""
        return self._words

    @property
    def adapts_unet(self) -> bool:
        """Whether a LoRA is among them."""
        return "adapter" in self._what

    def check(self, configs: Configs, tokenizer: Callable[[], CLIPTokenizer]) -> None:
        """Raises UsageError for whatever is wrong by configs and headers, without reading weights."""
        if self._pieces:
            self._networks = {part: skeleton(part, json.dumps(configs(part), sort_keys=True)) for part in lora.PARTS}
        for piece in self._pieces:
            self._what.append(self._checked(piece, configs, tokenizer))
            if piece.scale is not None and self._what[-1] != "adapter":
                raise UsageError(f"{piece.source}: scale={piece.scale:g} is a LoRA's strength, and {piece.path.name} is none")
        for part in StableDiffusionFolder.WEIGHTS:
            if self._what.count(part) > 1:
                raise UsageError(f"{self._key}: weights of more than one {part}; a model has one")

    def _checked(self, piece: _Piece, configs: Configs, tokenizer: Callable[[], CLIPTokenizer]) -> str:
        """What a piece is."""
        if piece.kind in StableDiffusionFolder.WEIGHTS:
            check_network(piece.path, piece.kind, configs, tokenizer, piece.source)
            return piece.kind
        state, header = read_tensors(piece.path, piece.source, values=False)
        if isinstance(state, Mapping) and not state:
            raise UsageError(f"{piece.source}: {piece.path.name} holds no tensors")
        if _is_adapter(piece, state):
            self._adapter(piece, state, header)
            return "adapter"
        for part, network in self._networks.items():
            shapes = shapes_of(state, part)
            if shapes.keys() & network.state_dict().keys():
                check_shapes(part, shapes, network, piece.source)
                return part
        self._check_words(words.parse(state, piece.path, self._width, piece.source), piece, tokenizer())
        return "words"

    def _check_words(self, found: Mapping[str, Tensor], piece: _Piece, tokenizer: CLIPTokenizer) -> None:
        # diffusers reads <word> and <word>_1 as one.
        taken = {token.lower() for name, count in self._words.items() for token in words.tokens_of(name, max(2, count))}
        for name, embedding in found.items():
            if reason := words.not_new(name, tokenizer):
                raise UsageError(f"{piece.source}: the word {name!r} of {piece.path.name}: {reason}")
            own = {token.lower() for token in words.tokens_of(name, max(2, len(embedding)))}
            if own & taken:
                raise UsageError(f"{piece.source}: {piece.path.name} adds the word {name!r}, which another file has added already")
            taken |= own
            self._words[name] = len(embedding)

    @property
    def _width(self) -> int:
        return int(self._networks["text_encoder"].config.hidden_size)  # type: ignore[union-attr, arg-type]

    def _adapter(self, piece: _Piece, state: Mapping[str, Tensor], header: Mapping[str, str]) -> lora.Adapter:
        config = read_json(piece.path.parent / "adapter_config.json", piece.source) if piece.kind == "peft" else None
        return lora.parse(state, header, config, self._networks, piece.source)

    # Into networks

    def into_unet(self, unet: UNet2DConditionModel) -> None:
        """Puts in what is the UNet's. Raises UsageError where it does not fit."""
        self._into(unet, "unet", lora.load_into_unet)

    def into_text_encoder(self, text_encoder: CLIPTextModel) -> None:
        """Puts in what is the text encoder's, but for words. Raises UsageError where it does not fit."""
        self._into(text_encoder, "text_encoder", lora.load_into_text_encoder)

    def into_vae(self, vae: AutoencoderKL) -> None:
        """Puts in the autoencoder of a whole pipeline. Raises UsageError where it does not fit."""
        self._into(vae, "vae", None)

    def into_words(self, vocabulary: Words) -> None:
        """Adds the words. Raises UsageError where they do not fit."""
        for piece in self._of("words"):
            state, _ = read_tensors(piece.path, piece.source)
            for name, embedding in words.parse(state, piece.path, self._width, piece.source).items():
                with fitting(piece.source):
                    vocabulary.add(name, embedding)

    def _into(self, network: Any, part: str, load_adapter: Callable[..., None] | None) -> None:
        for piece in self._of(part):  # before what is added to them
            replace(network, part, piece.path, piece.source)
        for index, piece in enumerate(self._of("adapter") if load_adapter is not None else ()):
            adapter = self._adapter(piece, *read_tensors(piece.path, piece.source))
            name, scale = f"{self._key.replace('.', '_')}_{index}", 1.0 if piece.scale is None else piece.scale
            with fitting(piece.source):
                assert load_adapter is not None
                load_adapter(adapter, network, name, scale, piece.source)
        network.requires_grad_(False)

    def _of(self, what: str) -> list[_Piece]:
        return [piece for piece, found in zip(self._pieces, self._what, strict=True) if found == what]


# What an option names


def _entries(value: Any, key: str) -> Iterator[tuple[str, float | None]]:
    """Paths and scales."""
    if value is None:
        return
    many = not isinstance(value, (str, Mapping)) and isinstance(value, Sequence)
    for entry in value if many else [value]:
        path, scale = (entry.get("path"), entry.get("scale")) if isinstance(entry, Mapping) else (entry, None)
        if not isinstance(path, str) or not path:
            raise UsageError(f"{key}={value}: expected a folder or file, {{path: ..., scale: ...}}, or a list of these")
        if isinstance(entry, Mapping) and (odd := set(entry) - {"path", "scale"}):
            raise UsageError(f"{key}={value}: {first(sorted(map(str, odd)))}: no such option; there are path and scale")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale)):
            raise UsageError(f"{key}={path}: scale={scale}: expected a finite number")
        yield path, scale


def find(name: str, scale: float | None, source: str) -> list[_Piece]:
    """What there is to load at a path. Raises UsageError where there is nothing."""
    path = Path(name).expanduser()
    make = functools.partial(_Piece, scale=scale, source=source)
    if path.is_file():
        has_config = (path.parent / "adapter_config.json").is_file() and path.stem == _PEFT
        return [make(kind="peft" if has_config else "file", path=path)]
    if not path.is_dir():
        raise UsageError(f"{source}: no such folder or file")
    if foreign := [part for part in _FOREIGN if (path / part).is_dir()]:
        raise UsageError(f"{source}: has a {foreign[0]}, which no Stable Diffusion 1 or 2 has")
    pieces = []
    for folder, part in [(path, _own_part(path, source)), *((path / part, part) for part in StableDiffusionFolder.WEIGHTS)]:
        if part and folder.is_dir() and (folder / "adapter_config.json").is_file():
            pieces += [make(kind="peft", path=file) for file in _weights(folder)]
        elif part and folder.is_dir() and not (part == "vae" and not (path / "model_index.json").is_file()):
            pieces.append(make(kind=part, path=folder))
    if not any(piece.path == path for piece in pieces):  # a network's files are its own
        peft = (path / "adapter_config.json").is_file()
        pieces += [make(kind="peft" if peft and file.stem == _PEFT else "file", path=file) for file in _weights(path)]
    if not pieces:
        raise UsageError(
            f"{source}: holds no UNet (unet/), LoRA ({_LORA}.safetensors) or textual inversion ({_EMBEDDINGS}.safetensors)"
        )
    return pieces


def _own_part(folder: Path, source: str) -> str:
    """Which part of a model the folder itself is, or an empty string."""
    if not (folder / "config.json").is_file():
        return ""
    config = read_json(folder / "config.json", source)
    kind = config.get("_class_name") or (config.get("architectures") or [""])[0]
    return {"UNet2DConditionModel": "unet", "CLIPTextModel": "text_encoder", "AutoencoderKL": "vae"}.get(kind, "")


def _weights(folder: Path) -> list[Path]:
    """Files that may be a LoRA or a textual inversion: not those of a training that is under way, nor duplicates."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    files = [file for file in files if not _NOT_WEIGHTS.search(file.name)]
    safe = {file.stem for file in files if file.suffix == ".safetensors"}
    files = [file for file in files if file.suffix == ".safetensors" or file.stem not in safe]
    # diffusers' training leaves earlier states of a word next to it.
    last = {file.stem for file in files}
    return [file for file in files if not (_EMBEDDINGS in last and file.stem.startswith(f"{_EMBEDDINGS}-steps-"))]


def _is_adapter(piece: _Piece, state: object) -> bool:
    return piece.kind == "peft" or (isinstance(state, Mapping) and lora.is_adapter(state))
