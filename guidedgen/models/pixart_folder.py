"""What a PixArt folder says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import LAYERS, NUMBER, Rule, TransformerFolder, whole
from guidedgen.models.noise_folder import SCHEDULERS, NoiseFolder

_SIGMA, _ALPHA = "PixArtSigmaPipeline", "PixArtAlphaPipeline"
_TOKENS = {_SIGMA: 300, _ALPHA: 120}  # of T5, that the pipelines read and the transformers were trained with
_CLASSES = {
    "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),  # the second: of the first repositories, the same network
    "vae": ("AutoencoderKL",),
    "text_encoder": ("T5EncoderModel",),
    "tokenizer": ("T5Tokenizer", "T5TokenizerFast"),
    "scheduler": SCHEDULERS,
}
_NORM = "ada_norm_single"
_MICRO = 128  # side of the latents for which a transformer is given the picture's size where its config does not say

_SWITCH: Rule = ("null, true or false", lambda value: value is None or isinstance(value, bool))
_MAYBE: Rule = ("null or a whole number above 0", lambda value: value is None or whole(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixArtFolder(TransformerFolder, NoiseFolder):
    """The folder of a PixArtSigmaPipeline or a PixArtAlphaPipeline."""

    SUPPORTED: ClassVar = f"supported: PixArt Sigma and alpha, a {_SIGMA} or {_ALPHA} of " + ", ".join(
        _CLASSES[part][0] for part in ("transformer", "vae", "text_encoder")
    )
    PIPELINES: ClassVar = (_SIGMA, _ALPHA)
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {"transformer": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS}
    VOCABULARIES: ClassVar = (("tokenizer/tokenizer.json",), ("tokenizer/spiece.model",))
    DEFAULTS: ClassVar = {
        "transformer": {
            "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "cross_attention_dim": 1152,
            "sample_size": _MICRO, "patch_size": 2, "norm_type": _NORM, "use_additional_conditions": None, "caption_channels": None,
        },
        "vae": {**folder.VAE_DEFAULTS, "force_upcast": False},
        "text_encoder": folder.T5_DEFAULTS,
        "scheduler": NoiseFolder.SCHEDULER_DEFAULTS,
    }  # fmt: skip
    RULES: ClassVar = {
        "transformer": {
            "num_attention_heads": NUMBER, "attention_head_dim": NUMBER, "in_channels": NUMBER, "out_channels": _MAYBE,
            "num_layers": LAYERS, "cross_attention_dim": NUMBER, "sample_size": NUMBER, "patch_size": NUMBER,
            "interpolation_scale": _MAYBE, "use_additional_conditions": _SWITCH, "caption_channels": _MAYBE,
        },
        "vae": folder.VAE_RULES,
        "text_encoder": folder.T5_RULES,
        "scheduler": NoiseFolder.SCHEDULER_RULES,
    }  # fmt: skip
    REQUIRED: ClassVar = {
        "transformer": ("sample_size", "caption_channels"), "vae": ("scaling_factor",), "scheduler": NoiseFolder.SCHEDULER_REQUIRED,
    }  # fmt: skip
    ENDS: ClassVar = 1  # T5's end

    @property
    def _pipeline(self) -> str:
        return str(self.configs["index"]["_class_name"])

    @property
    def max_tokens(self) -> int:
        """Tokens of a prompt that T5 reads, its end included."""
        return _TOKENS[self._pipeline]

    @property
    def sized(self) -> bool:
        """Whether the transformer is given the picture's height, width and the ratio of the two."""
        said = self.configs["transformer"]["use_additional_conditions"]
        return bool(self.latent_side == _MICRO if said is None else said)

    def unsupported(self) -> Mapping[str, Any]:
        transformer, vae, t5 = (self.configs[part] for part in ("transformer", "vae", "text_encoder"))
        takes, gives = transformer["in_channels"], transformer["out_channels"] or transformer["in_channels"]
        width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
        return {
            **self.unsupported_schedules(),
            "a scheduler that clips predictions (clip_sample)": self.clips,
            f"a transformer with norm_type={transformer['norm_type']} (only {_NORM})": transformer["norm_type"] != _NORM,
            # Twice as many: with a variance, which is not read.
            f"a transformer of {takes} input and {gives} output channels": gives not in (takes, 2 * takes),
            f"a transformer of {takes} channels with a VAE of {vae['latent_channels']}": takes != vae["latent_channels"],
            f"a transformer with cross_attention_dim={transformer['cross_attention_dim']} and states of {width} numbers": (
                transformer["cross_attention_dim"] != width
            ),
            f"a transformer for texts of {transformer['caption_channels']} numbers a token with a T5 of {t5['d_model']}": (
                transformer["caption_channels"] != t5["d_model"]
            ),
            f"a transformer of patches of {self.patch} on latents of side {self.latent_side}": self.latent_side % self.patch != 0,
            # diffusers' pipelines cannot run it either: they give a size to alpha's of this side alone.
            f"a {self._pipeline} on latents of side {self.latent_side} whose transformer is given the picture's size": (
                self.sized and (self._pipeline != _ALPHA or self.latent_side != _MICRO)
            ),
            "a VAE with a shift_factor": vae.get("shift_factor") not in (None, 0),
            f"a text_encoder of type {t5.get('model_type')}": t5.get("model_type", "t5") != "t5",
            **self.common(),
        }
