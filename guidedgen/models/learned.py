"""Loads what was learned elsewhere into a model: networks, LoRA and textual inversions, as diffusers loads them.

    folder/unet/, folder/transformer/, or itself   a denoising network (guidedgen.models.weights)
    a whole pipeline's folder (DreamBooth)         of Stable Diffusion: its UNet, text encoder and autoencoder; the rest has to be
                                                   the model's
    LoRA in files, or in PEFT's folders            see guidedgen.models.lora
    textual inversions in files                    see guidedgen.models.words

What a family takes is its Learnable. Every key is used, or the file is refused in one line. Configs and headers of files are
checked when the model is built.
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
from guidedgen.models.learnable import Learnable
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
    from transformers import CLIPTokenizer

    from guidedgen.models.words import Words

Tokenizers = Callable[[str], "CLIPTokenizer"]  # of the model, by the text encoder
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "prior", "controlnet", "image_encoder")
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
    part: str = ""  # PEFT's: the part that its folder is called after


class Learned:
    """What one option names: a path, a mapping {path: ..., scale: ...}, or a list of these. `key` is the option, `takes` what the
    model's family takes.

    A scale is a LoRA's strength, 1 where none is given. Making one looks for files and opens none; `check` has to come before
    anything is put into a network.
    """

    def __init__(self, value: object, key: str, takes: Learnable) -> None:
        self._key, self._takes = key, takes
        self._pieces = [piece for path, scale in _entries(value, key) for piece in find(path, scale, f"{key}={path}", takes)]
        for part in takes.replaced:
            if len(same := [piece for piece in self._pieces if piece.kind == part]) > 1:
                raise UsageError(f"{same[1].source}: a second {part}, after that of {same[0].path}; a model has one")
        self._what: list[str] = []  # each piece: "adapter", "words", or the part whose weights it is
        self._networks: dict[str, nn.Module] = {}  # without their weights
        self._words: dict[str, dict[str, int]] = {reader.encoder: {} for reader in takes.readers}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and folders that it is made of; PEFT's configuration is next to its weights."""
        return tuple(piece.path.parent if piece.kind == "peft" else piece.path for piece in self._pieces)

    @property
    def words(self) -> Mapping[str, int]:
        """How many tokens each of the words is, of the text encoder that reads most."""
        names = {name: None for found in self._words.values() for name in found}
        return {name: max(found.get(name, 0) for found in self._words.values()) for name in names}

    @property
    def adapts(self) -> bool:
        """Whether a LoRA is among them."""
        return "adapter" in self._what

    def check(self, configs: Configs, tokenizer: Tokenizers) -> None:
        """Raises UsageError for whatever is wrong by configs and headers, without reading weights."""
        if self._pieces:
            self._networks = {
                part: skeleton(self._takes.networks[part], json.dumps(dict(configs(part)), sort_keys=True))
                for part in self._takes.checked
            }
        for piece in self._pieces:
            self._what.append(self._checked(piece, configs, tokenizer))
            if piece.scale is not None and self._what[-1] != "adapter":
                raise UsageError(f"{piece.source}: scale={piece.scale:g} is a LoRA's strength, and {piece.path.name} is none")
        for part in self._takes.replaced:
            if self._what.count(part) > 1:
                raise UsageError(f"{self._key}: weights of more than one {part}; a model has one")
        for encoder, found in self._words.items():
            if lacking := [name for name in self.words if name not in found]:
                others = " and ".join(other for other, known in self._words.items() if lacking[0] in known)
                raise UsageError(f"{self._key}: the word {lacking[0]!r} is for {others} alone; {encoder} would not know it")

    def _checked(self, piece: _Piece, configs: Configs, tokenizer: Tokenizers) -> str:
        """What a piece is."""
        if piece.kind in self._takes.replaced:
            readers = self._takes.readers
            check_network(piece.path, piece.kind, self._takes, configs, lambda: tokenizer(readers[0].encoder), piece.source)
            return piece.kind
        state, header = read_tensors(piece.path, piece.source, values=False)
        if isinstance(state, Mapping) and not state:
            raise UsageError(f"{piece.source}: {piece.path.name} holds no tensors")
        if piece.kind == "peft" or (isinstance(state, Mapping) and lora.is_adapter(state)):
            if not self._takes.adapted:
                raise UsageError(f"{piece.source}: {piece.path.name} is a LoRA; {self._takes.taken}")
            self._adapter(piece, state, header)
            return "adapter"
        for part, network in self._networks.items():
            shapes = shapes_of(state, part)
            if shapes.keys() & {name.removeprefix("text_model.") for name in network.state_dict()}:
                if part not in self._takes.replaced:
                    raise UsageError(f"{piece.source}: {piece.path.name} holds weights of a {part}; {self._takes.taken}")
                check_shapes(part, shapes, network, piece.source)
                return part
        self._check_words(self._parsed_words(piece, state), piece, tokenizer)
        return "words"

    def _parsed_words(self, piece: _Piece, state: Any) -> Mapping[str, Mapping[str, Tensor]]:
        """By text encoder."""
        if not self._takes.readers:
            raise UsageError(f"{piece.source}: {piece.path.name} is nothing that can be used; {self._takes.taken}")
        widths = {
            reader.encoder: int(self._networks[reader.encoder].config.hidden_size)  # type: ignore[union-attr, arg-type]
            for reader in self._takes.readers
        }
        return words.parse(state, piece.path, self._takes, widths, piece.source)

    def _check_words(self, found: Mapping[str, Mapping[str, Tensor]], piece: _Piece, tokenizer: Tokenizers) -> None:
        for encoder, embeddings in found.items():
            known = self._words[encoder]
            # diffusers reads <word> and <word>_1 as one.
            taken = {token.lower() for name, count in known.items() for token in words.tokens_of(name, max(2, count))}
            for name, embedding in embeddings.items():
                if reason := words.not_new(name, tokenizer(encoder)):
                    raise UsageError(f"{piece.source}: the word {name!r} of {piece.path.name}: {reason}")
                own = {token.lower() for token in words.tokens_of(name, max(2, len(embedding)))}
                if own & taken:
                    raise UsageError(
                        f"{piece.source}: {piece.path.name} adds the word {name!r}, which another file has added already"
                    )
                taken |= own
                known[name] = len(embedding)

    def _adapter(self, piece: _Piece, state: Mapping[str, Tensor], header: Mapping[str, str]) -> lora.Adapter:
        config = read_json(piece.path.parent / "adapter_config.json", piece.source) if piece.kind == "peft" else None
        return lora.parse(state, header, config, self._networks, self._takes, piece.source, piece.part)

    # Into networks

    def into(self, network: Any, part: str) -> None:
        """Puts in what is this part's, but for words. Raises UsageError where it does not fit."""
        if not self._pieces:
            return
        for piece in self._of(part):  # before what is added to them
            replace(network, part, piece.path, self._takes.files(part), piece.source)
        for index, piece in enumerate(self._of("adapter") if part in self._takes.adapted else ()):
            adapter = self._adapter(piece, *read_tensors(piece.path, piece.source))
            name, scale = f"{self._key.replace('.', '_')}_{index}", 1.0 if piece.scale is None else piece.scale
            with fitting(piece.source):
                lora.load(adapter, network, part, self._takes, name, scale, piece.source)
        network.requires_grad_(False)

    def into_words(self, vocabularies: Mapping[str, Words]) -> None:
        """Adds the words, by text encoder. Raises UsageError where they do not fit."""
        for piece in self._of("words"):
            state, _ = read_tensors(piece.path, piece.source)
            for encoder, found in self._parsed_words(piece, state).items():
                for name, embedding in found.items():
                    with fitting(piece.source):
                        vocabularies[encoder].add(name, embedding)

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


def find(name: str, scale: float | None, source: str, takes: Learnable) -> list[_Piece]:
    """What there is to load at a path. Raises UsageError where there is nothing, or something that the family does not take."""
    path = Path(name).expanduser()
    make = functools.partial(_Piece, scale=scale, source=source)
    if path.is_file():
        has_config = (path.parent / "adapter_config.json").is_file() and path.stem == _PEFT
        return [make(kind="peft" if has_config else "file", path=path)]
    if not path.is_dir():
        raise UsageError(f"{source}: no such folder or file")
    if foreign := [part for part in _PARTS if part not in takes.networks and (path / part).is_dir()]:
        raise UsageError(f"{source}: has a {foreign[0]}, which no {takes.name} has")
    whole = (path / "model_index.json").is_file()
    if whole and not takes.pipelines:
        raise UsageError(f"{source}: is a whole pipeline, which model.path= takes; {takes.taken}")
    pieces = []
    for folder, part in [(path, _own_part(path, source, takes)), *((path / part, part) for part in takes.networks)]:
        if not part or not folder.is_dir():
            continue
        peft = (folder / "adapter_config.json").is_file()
        if part not in (takes.adapted if peft else takes.replaced):
            raise UsageError(f"{source}: has {'a LoRA' if peft else 'weights'} of a {part}; {takes.taken}")
        if peft:
            pieces += [make(kind="peft", path=file, part="" if folder == path else part) for file in _weights(folder)]
        elif part != "vae" or whole or folder == path:
            pieces.append(make(kind=part, path=folder))
    if not any(piece.path == path for piece in pieces):  # a network's files are its own
        peft = (path / "adapter_config.json").is_file()
        pieces += [make(kind="peft" if peft and file.stem == _PEFT else "file", path=file) for file in _weights(path)]
    if not pieces:
        kinds = {"UNet" if takes.denoiser == "unet" else takes.denoiser: f"{takes.denoiser}/"}
        kinds |= {"LoRA": f"{_LORA}.safetensors"} if takes.adapted else {}
        kinds |= {"textual inversion": f"{_EMBEDDINGS}.safetensors"} if takes.readers else {}
        names = [f"{kind} ({file})" for kind, file in kinds.items()]
        raise UsageError(f"{source}: holds no {' or '.join([', '.join(names[:-1]), names[-1]] if names[1:] else names)}")
    return pieces


def _own_part(folder: Path, source: str, takes: Learnable) -> str:
    """Which part of a model the folder itself is, or an empty string."""
    if not (folder / "config.json").is_file():
        return ""
    config = read_json(folder / "config.json", source)
    kind = config.get("_class_name") or (config.get("architectures") or [""])[0]
    return next((part for part in takes.replaced if takes.networks[part] == kind), "")


def _weights(folder: Path) -> list[Path]:
    """Files that may be a LoRA or a textual inversion: not those of a training that is under way, nor duplicates."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    files = [file for file in files if not _NOT_WEIGHTS.search(file.name)]
    safe = {file.stem for file in files if file.suffix == ".safetensors"}
    files = [file for file in files if file.suffix == ".safetensors" or file.stem not in safe]
    # diffusers' training leaves earlier states of a word next to it.
    last = {file.stem for file in files}
    words = [name for name in (_EMBEDDINGS, f"{_EMBEDDINGS}_2") if name in last]
    return [file for file in files if not any(file.stem.startswith(f"{name}-steps-") for name in words)]
