"""What a Stable Diffusion folder of diffusers says of itself: checked before any of its weights is fetched or opened.

Supported is what diffusers' StableDiffusionPipeline samples of a UNet that takes no more than a time and a text: Stable Diffusion
1.x, 2.x and what was trained from them. Other kinds of models would fail late, or be sampled wrongly without a word.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidedgen.basics.errors import UsageError
from guidedgen.process.grid import NoiseSchedule
from guidedgen.zoo.files import locate_lab
from guidedgen.zoo.needed import Needed
from guidedgen.zoo.pretrained import load_processor
from guidedgen.zoo.weights import check_weights, choose, is_pointer, variants

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# The files of weights that are read of each part: the first that is there, whole or in pieces. No variants (fp16, non_ema) and no
# safety checker: they double the download.
WEIGHTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}
CONFIGS = {part: f"{part}/config.json" for part in WEIGHTS} | {
    "scheduler": "scheduler/scheduler_config.json",
    "index": "model_index.json",
}
_VOCABULARY = (("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt"))

# What each part may be, by model_index.json. The two pipelines have the same parts and sample alike from noise.
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    # diffusers' KarrasDiffusionSchedulers, which are on one noise schedule; EDM's, the last of them, is on another.
    "scheduler": (
        "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
        "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler",
        "UniPCMultistepScheduler", "DPMSolverSDEScheduler",
    ),
}  # fmt: skip
_SUPPORTED = "supported: Stable Diffusion 1.x and 2.x, a StableDiffusionPipeline of " + ", ".join(
    _CLASSES[part][0] for part in ("unet", "vae", "text_encoder", "tokenizer")
)

# What diffusers and transformers take where a config has no such key.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280},
    "vae": {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [64], "scaling_factor": 0.18215},
    "text_encoder": {"hidden_size": 512, "max_position_embeddings": 77, "vocab_size": 49408},
    "scheduler": {"prediction_type": "epsilon"},
    "index": {},
}
_MOST, _DEEPEST = 10**5, 10**3  # no network is wider or deeper; one that says so would take for ever to build


def _whole(value: Any, most: int = _MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= _DEEPEST and all(map(_whole, value))


def _layers(value: Any) -> bool:
    return all(map(_layers, value)) if isinstance(value, list) and value else _whole(value, _DEEPEST)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


_Rule = tuple[str, Callable[[Any], bool]]
_COUNT: _Rule = ("a whole number, at least 0", lambda value: (value == 0 and type(value) is int) or _whole(value))
_NUMBER: _Rule = ("a whole number above 0", _whole)
_NUMBERS: _Rule = ("a list of whole numbers above 0", _wholes)
_EITHER: _Rule = ("whole numbers above 0", lambda value: _whole(value) or _wholes(value))
_LAYERS: _Rule = (f"whole numbers from 1 to {_DEEPEST}", _layers)
_NAMES: _Rule = ("a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value))
_REAL: _Rule = ("a number above 0", _real)
_STEPS: _Rule = ("a whole number above 1", lambda value: _whole(value) and value > 1)
_SHARE: _Rule = ("a number between 0 and 1", lambda value: _real(value) and value < 1)
# What a key has to be where there is one. Whatever else is wrong with a config shows as the network is built of it.
_RULES: Mapping[str, Mapping[str, _Rule]] = {
    "unet": {
        "sample_size": _NUMBER, "in_channels": _NUMBER, "out_channels": _NUMBER, "cross_attention_dim": _EITHER,
        "block_out_channels": _NUMBERS, "attention_head_dim": _EITHER, "down_block_types": _NAMES, "up_block_types": _NAMES,
        "mid_block_scale_factor": _REAL, "resnet_out_scale_factor": _REAL, "norm_eps": _REAL, "freq_shift": _COUNT,
        "conv_in_kernel": _NUMBER, "conv_out_kernel": _NUMBER, "downsample_padding": _COUNT, "norm_num_groups": _NUMBER,
        "layers_per_block": _LAYERS, "transformer_layers_per_block": _LAYERS,
    },
    "vae": {
        "in_channels": _NUMBER, "out_channels": _NUMBER, "latent_channels": _NUMBER, "block_out_channels": _NUMBERS,
        "layers_per_block": _LAYERS, "down_block_types": _NAMES, "up_block_types": _NAMES, "scaling_factor": _REAL,
        "norm_num_groups": _NUMBER,
    },
    "text_encoder": {
        "vocab_size": _NUMBER, "hidden_size": _NUMBER, "intermediate_size": _NUMBER, "num_hidden_layers": _LAYERS,
        "eos_token_id": _COUNT, "num_attention_heads": _NUMBER, "max_position_embeddings": _NUMBER,
    },
    "scheduler": {"beta_start": _SHARE, "beta_end": _SHARE, "num_train_timesteps": _STEPS},
    "index": {},
}  # fmt: skip
_REQUIRED = {"unet": ("sample_size",), "scheduler": ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """A Stable Diffusion folder on this machine. `source` is what messages call it."""

    path: Path
    source: str

    # What is read

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder. Raises UsageError where it is no JSON object."""
        file = self.path / name
        try:
            if not file.is_file():  # a pipe would never end
                raise OSError("no such file")
            content = file.read_bytes()
            if is_pointer(content):
                raise OSError("it is a pointer of Git LFS and not the file itself; get that with: git lfs pull")
            found = json.loads(content.decode())
            if not isinstance(found, dict):
                raise ValueError(f"a JSON object is needed, not a {type(found).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{self.source}: cannot read {name} ({error})") from error
        return found

    @functools.cached_property
    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """By part, with what is taken for the keys that are left out."""
        return {part: {**DEFAULTS[part], **self.read(name)} for part, name in CONFIGS.items()}

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise levels the model was trained on."""
        c = self.configs["scheduler"]
        return NoiseSchedule.from_betas(
            c["beta_start"], c["beta_end"], c["num_train_timesteps"], c["beta_schedule"],
            zero_terminal_snr=bool(c.get("rescale_betas_zero_snr")),
        )  # fmt: skip

    @property
    def prediction(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return self.configs["scheduler"]["prediction_type"]

    @functools.cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """c h w."""
        unet = self.configs["unet"]
        side, written = unet["sample_size"], re.match(r"0\.(\d+)\.", str(unet.get("_diffusers_version")))
        if written and int(written[1]) < 9:  # the first configs said 32 and meant 64: diffusers corrects them too
            side = max(side, 64)
        return (unet["in_channels"], side, side)

    @property
    def image_size(self) -> int:
        """Pixels per side."""
        return self.latent_shape[1] * 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included: what the tokenizer says, and at most what the text encoder reads."""
        most = self.configs["text_encoder"]["max_position_embeddings"]
        name = "tokenizer/tokenizer_config.json"
        length = self.read(name).get("model_max_length") if (self.path / name).exists() else None
        return min(length, most) if _whole(length) else most

    # What is checked

    def check(self) -> None:
        """Raises UsageError where the folder is of a kind of model that would be sampled wrongly, or no model at all."""
        self._check_classes()
        for part, rules in _RULES.items():
            for key in _REQUIRED.get(part, ()):
                if self.configs[part].get(key) is None:
                    raise UsageError(f"{self.source}: {CONFIGS[part]} has no {key}, which is needed")
            for key, (what, fits) in rules.items():
                if key in self.configs[part] and not fits(self.configs[part][key]):
                    value = str(self.configs[part][key])[:60]
                    raise UsageError(f"{self.source}: {CONFIGS[part]}: {key}={value} is not {what}")
        for what, found in self._unsupported().items():
            if found:
                raise UsageError(f"{self.source}: {what} is not supported; {_SUPPORTED}")
        _ = self.max_tokens  # reads the tokenizer's config

    def _check_classes(self) -> None:
        index = self.configs["index"]
        if index.get("_class_name") not in _PIPELINES:
            raise UsageError(f"{self.source}: a {index.get('_class_name')} (model_index.json) is not supported; {_SUPPORTED}")
        for part, names in _CLASSES.items():
            entry = index.get(part)
            if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
                raise UsageError(f"{self.source}: model_index.json names no {part}; {_SUPPORTED}")
            stated = [entry[1], *([self.configs[part].get("_class_name")] if part in self.configs else [])]
            for name in stated:
                if name is not None and name not in names:
                    raise UsageError(
                        f"{self.source}: a {part} of class {name} is not supported, only {', '.join(names)}; {_SUPPORTED}"
                    )
            if entry[0] not in ("diffusers", "transformers"):
                raise UsageError(f"{self.source}: a {part} with code of its own ({entry[0]}) is not supported; {_SUPPORTED}")

    def _unsupported(self) -> dict[str, Any]:
        """Kinds of models that are not supported, and whether this is one."""
        scheduler, unet, vae, text = (self.configs[part] for part in ("scheduler", "unet", "vae", "text_encoder"))
        betas = scheduler["beta_schedule"]
        width, attends = text["hidden_size"], unet["cross_attention_dim"]
        extra = ("time_cond_proj_dim", "addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
        return {
            f"prediction_type {self.prediction!r} (only epsilon, v_prediction)": self.prediction not in ("epsilon", "v_prediction"),
            f"beta_schedule {betas!r} (only linear, scaled_linear)": (
                betas not in ("linear", "scaled_linear") or scheduler.get("trained_betas") is not None
            ),
            "a schedule whose beta_start is above its beta_end": scheduler["beta_start"] > scheduler["beta_end"],
            "epsilon predicted on a schedule rescaled to zero terminal SNR, where it says nothing of x_0,": (
                self.prediction == "epsilon" and scheduler.get("rescale_betas_zero_snr", False)
            ),
            "a scheduler that clips predictions (thresholding)": scheduler.get("thresholding", False),
            # An inpainting, depth or image-editing model's.
            f"a UNet of {unet['in_channels']} input channels": unet["in_channels"] != unet["out_channels"],
            **{f"a UNet with {key}={unet.get(key)}, which wants more than a text,": unet.get(key) is not None for key in extra},
            "a UNet with encoder_hid_dim": unet.get("encoder_hid_dim") is not None,
            f"a UNet for texts of {attends} numbers a token with a text encoder of {width}": (
                any(each != width for each in (attends if isinstance(attends, list) else [attends]))
            ),
            f"a VAE of {vae['latent_channels']} latent channels with a UNet of {unet['in_channels']}": (
                vae["latent_channels"] != unet["in_channels"]
            ),
            f"a VAE of {vae['in_channels']} input and {vae['out_channels']} output channels": (
                vae["in_channels"] != 3 or vae["out_channels"] != 3
            ),
            f"a text encoder of type {text.get('model_type')}": (
                text.get("model_type", "clip_text_model") != "clip_text_model"
                or not {"CLIPTextModel", "CLIPTextModelWithProjection"}.issuperset(_texts(text.get("architectures")))
            ),
            "a text encoder that masks padding": text.get("use_attention_mask", False),
            **{f"a quantised {part}": self.configs[part].get("quantization_config") is not None for part in WEIGHTS},
        }

    # What is fetched after that

    def weights(self, part: str) -> str | None:
        """The file of a part's weights that is read, or stands for its pieces; None where there is none."""
        return choose(self._files(part), WEIGHTS[part])

    def _files(self, part: str) -> set[str]:
        try:
            return set(os.listdir(self.path / part))
        except OSError:  # there is no such folder
            return set()

    def check_weights(self) -> None:
        """Raises UsageError where weights are missing, or their headers show that they cannot be read."""
        for part, names in WEIGHTS.items():
            there, name = self._files(part), self.weights(part)
            if name is None:
                others = variants(there, names)
                hint = f"; {others[0]} is another variant of them, which is read under that name alone" if others else ""
                raise UsageError(f"{self.source}: has no {part}/{names[0]}{hint}")
            if {name, f"{name}.index.json"} <= there:
                raise UsageError(f"{self.source}: has both {part}/{name} and pieces of it ({name}.index.json); remove one of them")
            check_weights(self.path / part, name, f"{self.source}: {part}")

    # Words

    def load_tokenizer(self) -> CLIPTokenizer:
        """The tokenizer. Raises UsageError where it has not all of its vocabulary, or more than the text encoder reads."""
        from transformers import CLIPTokenizer

        tokenizer = load_processor(CLIPTokenizer, self.path / "tokenizer", source=self.source, what="its tokenizer")
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        size, model = self.configs["text_encoder"]["vocab_size"], state["model"]
        if model["type"] != "BPE":
            raise UsageError(f"{self.source}: a tokenizer of type {model['type']} is not supported, only CLIP's, which is BPE")
        added = {token["content"]: token["id"] for token in state["added_tokens"]}
        ids = {*model["vocab"].values(), *added.values()}
        last = max(ids, default=-1)
        # A table of embeddings may be filled up to the next multiple of 128.
        if last >= size or len(ids) != last + 1 or size - len(ids) >= 128:
            raise UsageError(
                f"{self.source}: its tokenizer has {len(ids)} tokens, the last is number {last}; its text encoder has {size}"
            )
        made = {first + second for first, second in model["merges"]} | added.keys()
        unmade = [token for token in model["vocab"] if len(token.removesuffix("</w>")) > 1 and token not in made]
        if unmade:
            raise UsageError(
                f"{self.source}: its tokenizer's merges never make {len(unmade)} tokens of its vocabulary, {unmade[0]!r} first; "
                "fetch tokenizer/ again"
            )
        return tokenizer


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def needed(path: str, *, weights: bool = True) -> Needed:
    """What is read of a folder or of a repository of the hub; without the weights, what tells whether it is supported."""
    names = [tuple(f"{part}/{file}" for file in files) for part, files in WEIGHTS.items()]
    return Needed(
        name=path, key="model.path", files=(*CONFIGS.values(), "scheduler/*.json", "tokenizer/*"), required=tuple(CONFIGS.values()),
        one_of=_VOCABULARY, weights=tuple(names) if weights else (),
    )  # fmt: skip


def open_folder(path: str) -> Folder:
    """The folder of `model.path`: a folder, a repository of the hub, or "lab".

    Of a repository that is not on this machine, the configs are fetched and checked first, and then the weights. Raises UsageError
    where it cannot be had, or is not supported.
    """
    source = f"model.path={path}"
    if path == "lab":
        folder = Folder(path=locate_lab(f"generator/{CONFIGS['index']}", key=source, part="generator").parent, source=source)
    else:
        _check_path(path, source)
        small = needed(path, weights=False)
        folder = Folder(path=small.locate(), source=source)
        if small.local is None:
            folder.check()
            folder = Folder(path=needed(path).locate(), source=source)  # of a newer commit, it may be
    folder.check()
    folder.check_weights()
    return folder


def _check_path(path: str, source: str) -> None:
    """Raises UsageError where a path leads nowhere, so that it is not taken for a name of the hub."""
    try:
        given = Path(path).expanduser()
        if given.is_symlink() and not given.exists():
            raise UsageError(f"{source}: is a link that leads nowhere")
        given.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long; no such user; a NUL
        raise UsageError(f"{source[:200]}: no such path ({getattr(error, 'strerror', None) or error})") from error
