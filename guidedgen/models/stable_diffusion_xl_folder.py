"""What a Stable Diffusion XL folder says of itself."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import NUMBER, Rule, texts, whole
from guidedgen.models.noise_folder import SCHEDULERS
from guidedgen.models.unet_folder import UNetFolder

_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": SCHEDULERS,
}
CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_SIZES = 6  # numbers that the UNet is told of the picture: its size, where it was cut out, and the size that is wanted


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, int | float) and abs(each) < float("inf") for each in value)


_STATISTICS: Rule = ("null or a list of numbers", lambda value: value is None or _numbers(value))
_MAYBE: Rule = ("null or a whole number above 0", lambda value: value is None or whole(value))
_SWITCH: Rule = ("true or false", lambda value: isinstance(value, bool))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusionXlFolder(UNetFolder):
    """The folder of a StableDiffusionXLPipeline."""

    SUPPORTED: ClassVar = "supported: Stable Diffusion XL's base models, a StableDiffusionXLPipeline of " + ", ".join(
        _CLASSES[part][0] for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    )
    PIPELINES: ClassVar = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    GUIDANCES: ClassVar = dict.fromkeys(PIPELINES, 5.0)
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {
        "unet": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS,
        "text_encoder_2": folder.TRANSFORMERS,
    }  # fmt: skip
    VOCABULARIES: ClassVar = tuple(
        (*(f"tokenizer/{file}" for file in first), *(f"tokenizer_2/{file}" for file in second))
        for first, second in itertools.product((("tokenizer.json",), ("vocab.json", "merges.txt")), repeat=2)
    )
    DEFAULTS: ClassVar = {
        **UNetFolder.DEFAULTS,
        "vae": {**folder.VAE_DEFAULTS, "force_upcast": True, "latents_mean": None, "latents_std": None},
        "text_encoder_2": folder.TEXT_DEFAULTS,
        "index": {"force_zeros_for_empty_prompt": True},
    }
    RULES: ClassVar = {
        **UNetFolder.RULES,
        "unet": {
            **UNetFolder.RULES["unet"], "addition_time_embed_dim": _MAYBE, "projection_class_embeddings_input_dim": _MAYBE,
        },
        "vae": {**folder.VAE_RULES, "latents_mean": _STATISTICS, "latents_std": _STATISTICS, "force_upcast": _SWITCH},
        "text_encoder_2": {**folder.TEXT_RULES, "projection_dim": NUMBER},
        "index": {"force_zeros_for_empty_prompt": _SWITCH},
    }  # fmt: skip

    @property
    def text_width(self) -> int:
        return sum(int(self.configs[encoder]["hidden_size"]) for _, encoder in CLIPS)

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens per prompt that both CLIPs read, start and end included."""
        return min(self._lengths)

    @property
    def _lengths(self) -> list[int]:
        return [self.max_tokens_of(tokenizer, self.configs[encoder]["max_position_embeddings"]) for tokenizer, encoder in CLIPS]

    @property
    def empty_is_zero(self) -> bool:
        """Whether zeros stand for an empty negative prompt."""
        return bool(self.configs["index"]["force_zeros_for_empty_prompt"])

    @property
    def latent_statistics(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of the autoencoder's channels, which latents are given in, where there are both."""
        mean, std = (self.configs["vae"][f"latents_{name}"] for name in ("mean", "std"))
        return None if mean is None or std is None else (mean, std)

    def unsupported(self) -> Mapping[str, Any]:
        unet, vae, index = (self.configs[part] for part in ("unet", "vae", "index"))
        kind, told, pooled = unet.get("addition_embed_type"), unet.get("addition_time_embed_dim"), self.configs["text_encoder_2"]
        takes, given = unet.get("projection_class_embeddings_input_dim"), (told or 0) * _SIZES + pooled["projection_dim"]
        return {
            "a refiner (requires_aesthetics_score)": index.get("requires_aesthetics_score", False),
            f"a UNet with addition_embed_type={kind} (only text_time)": kind != "text_time",
            **super().unsupported(),
            f"a UNet that is told {takes} numbers of text and size, where they are {given}, as of a refiner,": (
                told is None or takes != given
            ),
            "a scheduler that clips predictions (clip_sample)": self.clips,
            f"text encoders that read {' and '.join(map(str, self._lengths))} tokens": len(set(self._lengths)) > 1,
            f"a VAE with latents_mean and latents_std of other than {vae['latent_channels']} channels": (
                self.latent_statistics is not None and any(len(each) != vae["latent_channels"] for each in self.latent_statistics)
            ),
            "a VAE with a latents_std of 0": self.latent_statistics is not None and not all(self.latent_statistics[1]),
            **{
                f"a {encoder} of type {self.configs[encoder].get('model_type')}": (
                    self.configs[encoder].get("model_type", "clip_text_model") != "clip_text_model"
                    or not known.issuperset(texts(self.configs[encoder].get("architectures")))
                )
                for (_, encoder), known in zip(
                    CLIPS, ({"CLIPTextModel", "CLIPTextModelWithProjection"}, {"CLIPTextModelWithProjection"}), strict=True
                )
            },
        }
