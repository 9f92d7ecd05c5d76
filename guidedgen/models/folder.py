"""A folder of diffusers: what its configs say, checked before any of its weights is fetched or opened.

A family's folder (StableDiffusionFolder, ...) names its parts, their classes and files, and what it cannot sample: other kinds of
models would fail late, or be sampled wrongly without a word.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.models import lent, quantization
from guidedgen.process.grid import Schedule
from guidedgen.zoo.files import locate_lab
from guidedgen.zoo.needed import Needed
from guidedgen.zoo.pretrained import load_processor
from guidedgen.zoo.weights import check_weights, choose, is_pointer, variants

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# How the files of weights are called, of diffusers' networks and of transformers': the first that is there is read, whole or in
# pieces. No variants (fp16, non_ema) and no safety checker: they double the download.
DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
INDEX = "model_index.json"

_MOST, _DEEPEST = 10**5, 10**3  # no network is wider or deeper; one that says so would take for ever to build


def whole(value: Any, most: int = _MOST) -> bool:
    """Whether a value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= _DEEPEST and all(map(whole, value))


def _layers(value: Any) -> bool:
    return all(map(_layers, value)) if isinstance(value, list) and value else whole(value, _DEEPEST)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


Rule = tuple[str, Callable[[Any], bool]]
COUNT: Rule = ("a whole number, at least 0", lambda value: (value == 0 and type(value) is int) or whole(value))
NUMBER: Rule = ("a whole number above 0", whole)
NUMBERS: Rule = ("a list of whole numbers above 0", _wholes)
EITHER: Rule = ("whole numbers above 0", lambda value: whole(value) or _wholes(value))
LAYERS: Rule = (f"whole numbers from 1 to {_DEEPEST}", _layers)
NAMES: Rule = ("a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value))
REAL: Rule = ("a number above 0", _real)
STEPS: Rule = ("a whole number above 1", lambda value: whole(value) and value > 1)
SHARE: Rule = ("a number between 0 and 1", lambda value: _real(value) and value < 1)

VAE_RULES: Mapping[str, Rule] = {
    "in_channels": NUMBER, "out_channels": NUMBER, "latent_channels": NUMBER, "block_out_channels": NUMBERS,
    "layers_per_block": LAYERS, "down_block_types": NAMES, "up_block_types": NAMES, "scaling_factor": REAL,
    "norm_num_groups": NUMBER,
}  # fmt: skip
TEXT_RULES: Mapping[str, Rule] = {
    "vocab_size": NUMBER, "hidden_size": NUMBER, "intermediate_size": NUMBER, "num_hidden_layers": LAYERS,
    "eos_token_id": COUNT, "num_attention_heads": NUMBER, "max_position_embeddings": NUMBER, "projection_dim": NUMBER,
}  # fmt: skip
T5_RULES: Mapping[str, Rule] = {"d_model": NUMBER, "vocab_size": NUMBER, "num_layers": LAYERS}
# What diffusers and transformers take where a config has no such key.
VAE_DEFAULTS = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [64], "scaling_factor": 0.18215}
TEXT_DEFAULTS = {"hidden_size": 512, "max_position_embeddings": 77, "vocab_size": 49408, "projection_dim": 512}
T5_DEFAULTS = {"d_model": 512, "vocab_size": 32128}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder(abc.ABC):
    """A folder on this machine. `source` is what messages call it."""

    path: Path
    source: str
    size: tuple[int, int] | None = None  # height and width of its pictures in pixels; None: those it was trained on
    rest: Path | None = None  # another folder, which has the parts that this one lacks; only of what is bundled

    SUPPORTED: ClassVar[str]  # in messages: what can be used instead
    PIPELINES: ClassVar[Sequence[str]]  # by model_index.json
    CLASSES: ClassVar[Mapping[str, Sequence[str]]]  # of each part, by model_index.json and its config
    WEIGHTS: ClassVar[Mapping[str, Sequence[str]]]  # files of each part that has any
    VOCABULARIES: ClassVar[Sequence[Sequence[str]]]  # groups of files, of which one is needed
    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]]
    RULES: ClassVar[Mapping[str, Mapping[str, Rule]]]  # what a key has to be where there is one
    REQUIRED: ClassVar[Mapping[str, Sequence[str]]]
    # By `model.path`: the lab's parts whose folders it is in; the second has what the first lacks.
    BUNDLED: ClassVar[Mapping[str, Sequence[str]]] = {}
    ENDS: ClassVar[int] = 2  # tokens that every prompt is read with: CLIP's start and end

    @classmethod
    def config_files(cls) -> dict[str, str]:
        """The file of each part's config."""
        scheduler = {"scheduler": "scheduler/scheduler_config.json"}
        return {part: f"{part}/config.json" for part in cls.WEIGHTS} | scheduler | {"index": INDEX}

    def config_file(self, part: str) -> str:
        """The file of a part's config in this folder."""
        return self.config_files()[part]

    def at(self, name: str) -> Path:
        """Where a part or a file of the folder is."""
        own = self.path / name
        return own if self.rest is None or own.exists() else self.rest / name

    def part_folder(self, part: str) -> Path:
        """Where a part's files are."""
        return self.at(part)

    # What is read

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder. Raises UsageError where it is no JSON object."""
        file = self.at(name)
        try:
            if not file.is_file():  # a pipe would never end
                raise OSError("no such file")
            content = file.read_bytes()
            if is_pointer(content):
                raise OSError("it is a pointer of Git LFS and not the file itself; bring that with: git lfs pull")
            found = json.loads(content.decode())
            if not isinstance(found, dict):
                raise ValueError(f"a JSON object is needed, not a {type(found).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{self.source}: cannot read {name} ({error})") from error
        return found

    @functools.cached_property
    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """By part, with what is taken for the keys that are left out."""
        return {part: {**self.DEFAULTS.get(part, {}), **self.read(self.config_file(part))} for part in self.config_files()}

    # What is checked

    def check(self) -> None:
        """Raises UsageError where the folder is of a kind of model that would be sampled wrongly, or no model at all."""
        self.check_index()
        self._check_classes()
        for part, rules in self.RULES.items():
            for key in self.REQUIRED.get(part, ()):
                if self.configs[part].get(key) is None:
                    raise UsageError(f"{self.source}: {self.config_file(part)} has no {key}, which is needed")
            for key, (what, fits) in rules.items():
                if key in self.configs[part] and not fits(self.configs[part][key]):
                    value = str(self.configs[part][key])[:60]
                    raise UsageError(f"{self.source}: {self.config_file(part)}: {key}={value} is not {what}")
        for what, found in self.unsupported().items():
            if found:
                raise UsageError(f"{self.source}: {what} is not supported; {self.SUPPORTED}")
        _ = self.max_tokens  # reads the tokenizers' configs
        self._check_size()

    def _check_size(self) -> None:
        """Raises BadValue where the model cannot make pictures of the size that is asked for."""
        if self.size is None:
            return
        multiple = self.vae_factor * self.patch
        if any(side % multiple for side in self.size):
            raise BadValue("size", list(self.size), f"must be multiples of {multiple} for this model")
        if (most := self.most_pixels) is not None and any(side > most for side in self.size):
            raise BadValue("size", list(self.size), f"must be at most {most} for this model")

    def check_index(self) -> None:
        """Raises UsageError where model_index.json names another pipeline, or lacks a part, or has one of another class."""
        index = self.read(INDEX)
        if index.get("_class_name") not in self.PIPELINES:
            raise UsageError(f"{self.source}: a {index.get('_class_name')} (model_index.json) is not supported; {self.SUPPORTED}")
        for part in self.CLASSES:
            entry = index.get(part)
            if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
                raise UsageError(f"{self.source}: model_index.json names no {part}; {self.SUPPORTED}")
            self._check_class(part, entry[1])
            if entry[0] not in ("diffusers", "transformers"):
                raise UsageError(f"{self.source}: a {part} with code of its own ({entry[0]}) is not supported; {self.SUPPORTED}")

    def _check_classes(self) -> None:
        """Raises UsageError where a part's own config is of another class."""
        for part in self.CLASSES.keys() & self.configs.keys():
            self._check_class(part, self.configs[part].get("_class_name"))

    def _check_class(self, part: str, name: object) -> None:
        names = self.CLASSES[part]
        if name is not None and name not in names:
            raise UsageError(f"{self.source}: a {part} of class {name} is not supported, only {', '.join(names)}; {self.SUPPORTED}")

    # What a family says

    @property
    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """The noise levels the model was trained on."""

    @property
    @abc.abstractmethod
    def latent_channels(self) -> int:
        """Channels of a latent."""

    @property
    @abc.abstractmethod
    def latent_side(self) -> int:
        """Height and width of the latents that the model was trained on."""

    @property
    @abc.abstractmethod
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included."""

    @property
    def vae_factor(self) -> int:
        """Pixels per side of a latent's number."""
        return 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)

    @property
    def patch(self) -> int:
        """Height and width, in numbers of a latent, of what the network takes for one token; 1 of a UNet, which takes any size."""
        return 1

    @property
    def most_pixels(self) -> int | None:
        """The greatest height and width that the network can be given; None where there is none."""
        return None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its pictures in pixels."""
        return self.size or (self.latent_side * self.vae_factor, self.latent_side * self.vae_factor)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c h w."""
        height, width = self.image_size
        return (self.latent_channels, height // self.vae_factor, width // self.vae_factor)

    @abc.abstractmethod
    def unsupported(self) -> Mapping[str, Any]:
        """Kinds of models that are not supported, and whether this is one."""

    def common(self) -> Mapping[str, Any]:
        """Those of any family: autoencoders that are not for pictures, and quantised parts."""
        takes = self.configs["vae"]["in_channels"]
        gives = self.configs["vae"].get("out_channels", takes)
        return {
            f"a VAE of {takes} input and {gives} output channels": takes != 3 or gives != 3,
            **{
                f"a quantised {part}" + (f" without the package {package} (pip install {package})" if package else ""): (
                    part == "vae" or not package or not quantization.installed(package)
                )
                for part, package in self.quantised.items()
            },
        }

    @functools.cached_property
    def quantised(self) -> Mapping[str, str]:
        """The parts whose weights are quantised, and the package that reads them; empty where none does."""
        found = {part: self.configs[part].get("quantization_config") for part in self.WEIGHTS}
        return {part: quantization.package_of(stored) for part, stored in found.items() if stored is not None}

    # What is fetched after that

    def weights(self, part: str) -> str | None:
        """The file of a part's weights that is read, or stands for its pieces; None where there is none."""
        return choose(self._files(part), self.WEIGHTS[part])

    def _files(self, part: str) -> set[str]:
        try:
            return set(os.listdir(self.part_folder(part)))
        except OSError:  # there is no such folder
            return set()

    def check_weights(self) -> None:
        """Raises UsageError where weights are missing, or their headers show that they cannot be read."""
        for part, names in self.WEIGHTS.items():
            there, name = self._files(part), self.weights(part)
            if name is None:
                others = variants(there, names)
                hint = f"; {others[0]} is another variant of them, which is read under that name alone" if others else ""
                raise UsageError(f"{self.source}: has no {part}/{names[0]}{hint}")
            if {name, f"{name}.index.json"} <= there:
                raise UsageError(f"{self.source}: has both {part}/{name} and pieces of it ({name}.index.json); remove one of them")
            check_weights(self.part_folder(part), name, f"{self.source}: {part}", quantised=part in self.quantised)

    # Tokenizers

    def load_tokenizer(self, part: str = "tokenizer", encoder: str = "text_encoder") -> CLIPTokenizer:
        """A CLIP's tokenizer. Raises UsageError where it has not all of its vocabulary, or more than its text encoder reads."""
        from transformers import CLIPTokenizer

        tokenizer = load_processor(CLIPTokenizer, self.part_folder(part), source=self.source, what=f"its {part}")
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        size, model = self.configs[encoder]["vocab_size"], state["model"]
        if model["type"] != "BPE":
            raise UsageError(f"{self.source}: a tokenizer of type {model['type']} is not supported, only CLIP's, which is BPE")
        added = {token["content"]: token["id"] for token in state["added_tokens"]}
        ids = {*model["vocab"].values(), *added.values()}
        last = max(ids, default=-1)
        # A table of embeddings may be filled up to the next multiple of 128.
        if last >= size or len(ids) != last + 1 or size - len(ids) >= 128:
            raise UsageError(
                f"{self.source}: its {part} has {len(ids)} tokens, the last is number {last}; its text encoder has {size}"
            )
        made = {first + second for first, second in model["merges"]} | added.keys()
        unmade = [token for token in model["vocab"] if len(token.removesuffix("</w>")) > 1 and token not in made]
        if unmade:
            raise UsageError(
                f"{self.source}: its {part}'s merges never make {len(unmade)} tokens of its vocabulary, {unmade[0]!r} first; "
                f"fetch {part}/ again"
            )
        return tokenizer

    def load_t5_tokenizer(self, part: str) -> Any:
        """A T5's tokenizer."""
        from transformers import T5TokenizerFast

        return load_processor(T5TokenizerFast, self.part_folder(part), source=self.source, what=f"its {part}")

    def max_tokens_of(self, tokenizer: str, most: int) -> int:
        """Tokens per prompt, start and end included: what a tokenizer's config says, and at most so many."""
        name = f"{tokenizer}/tokenizer_config.json"
        found = self.read(name).get("model_max_length") if self.at(name).exists() else None
        return min(int(found), most) if found is not None and whole(found) else most

    # Finding it

    @classmethod
    def needed(cls, path: str, *, weights: bool = True, key: str = "model.path") -> Needed:
        """What is read of a folder or of a repository of the hub; without the weights, what tells whether it is supported."""
        names = [tuple(f"{part}/{file}" for file in files) for part, files in cls.WEIGHTS.items()]
        configs = tuple(cls.config_files().values())
        tokenizers = tuple(f"{part}/*" for part in cls.CLASSES if part.startswith("tokenizer"))
        return Needed(
            name=path, key=key, files=(*configs, "scheduler/*.json", *tokenizers), required=configs,
            one_of=tuple(map(tuple, cls.VOCABULARIES)), weights=tuple(names) if weights else (),
        )  # fmt: skip

    @classmethod
    def reads(cls, path: str, key: str = "model.path") -> tuple[Needed, ...]:
        """What is read of the hub or of a folder that an option names: nothing of what is bundled."""
        return () if bundled(path) else (cls.needed(path, key=key),)

    @classmethod
    def open(cls, path: str, size: object = None) -> Self:
        """The folder of `model.path`: a folder, a repository of the hub, or what is bundled by that name; with pictures of
        `model.size`.

        Of a repository that is not on this machine, the configs are fetched and checked first, and then the weights. Raises
        UsageError where it cannot be had, or is not supported, and BadValue for a `size` that it cannot make and for what is not
        bundled.
        """
        source, sides = f"model.path={path}", height_and_width(size)
        if bundled(path):
            if path not in cls.BUNDLED:
                there = f"; path={' or path='.join(cls.BUNDLED)} is there" if cls.BUNDLED else ""
                raise BadValue(
                    "path", path, f"must be a folder or a hub name (org/name): no such {cls.PIPELINES[0]} is bundled{there}"
                )
            own, *rest = (locate_lab(f"{part}/{INDEX}", key=source, part=part).parent for part in cls.BUNDLED[path])
            folder = cls(path=own, source=source, size=sides, rest=rest[0] if rest else None)
        else:
            _check_path(path, source)
            if lent.networks(path) is not None:
                folder = cls(path=Path(path), source=source, size=sides)
                folder.check()
                return folder
            small = cls.needed(path, weights=False)
            if small.local is not None and (small.local / INDEX).is_file():
                cls(path=small.local, source=source).check_index()  # else it would be missing what another pipeline has not
            folder = cls(path=small.locate(), source=source, size=sides)
            if small.local is None:
                folder.check()
                folder = cls(path=cls.needed(path).locate(), source=source, size=sides)  # of a newer commit, it may be
        folder.check()
        folder.check_weights()
        return folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerFolder(Folder):
    """A folder whose denoising network is a transformer that cuts latents into patches."""

    @property
    def latent_channels(self) -> int:
        return int(self.configs["transformer"]["in_channels"])

    @property
    def latent_side(self) -> int:
        return int(self.configs["transformer"]["sample_size"])

    @property
    def patch(self) -> int:
        return int(self.configs["transformer"]["patch_size"])


def bundled(path: object) -> bool:
    """Whether `model.path` names something of this repository: "lab", or "lab:" and a name."""
    return isinstance(path, str) and (path == "lab" or path.startswith("lab:"))


def height_and_width(size: object) -> tuple[int, int] | None:
    """What an option says of a picture's size: a number of pixels for both, [height, width], or None. Raises BadValue."""
    sides = [size, size] if whole(size) else list(size) if isinstance(size, Sequence) and not isinstance(size, str) else size
    if sides is None:
        return None
    if not (isinstance(sides, list) and len(sides) == 2 and all(map(whole, sides))):
        raise BadValue(
            "size", size, "must be [height, width] in pixels, one number for both, or null for what the model was trained on"
        )
    return (sides[0], sides[1])


def texts(value: Any) -> list[str]:
    """The texts of a list; none of anything else."""
    return [str(one) for one in value] if isinstance(value, list) else []


def _check_path(path: str, source: str) -> None:
    """Raises UsageError where a path leads nowhere, so that it is not taken for a name of the hub."""
    try:
        given = Path(path).expanduser()
        if given.is_symlink() and not given.exists():
            raise UsageError(f"{source}: is a link that leads nowhere")
        given.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long; no such user; a NUL
        raise UsageError(f"{source[:200]}: no such path ({getattr(error, 'strerror', None) or error})") from error
