"""What a FLUX.1 folder says of itself."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import LAYERS, NUMBER, NUMBERS, REAL, STEPS, Folder, Rule, texts, whole
from guidedgen.process.grid import FlowSchedule

_CLASSES = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("T5Tokenizer", "T5TokenizerFast"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
# Options of the scheduler that change its grid or its step, and the values with which they do not.
_PLAIN = {
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False, "use_flow_sigmas": False,
    "invert_sigmas": False, "stochastic_sampling": False, "shift_terminal": None, "time_shift_type": "exponential",
}  # fmt: skip
_CLIPS = {"CLIPTextModel", "CLIPTextModelWithProjection"}  # whose weights hold a CLIPTextModel
_SIDE = 128  # of the latents of the pipeline's pictures; no config says so
_PATCH = 2  # height and width, in numbers of a latent, of what is one token
_AXES = 3  # of a token's position: a number that is always 0, row and column
_GUIDANCE = 3.5  # that the pipeline gives a transformer that takes any
_T5_TOKENS, _T5_TOKENS_SCHNELL = 512, 256  # that they were trained with, by the authors' code and schnell's card
_MOST_SHIFT = 20.0  # as the power of e: beyond it all but the last step would be at pure noise

_SWITCH: Rule = ("true or false", lambda value: isinstance(value, bool))
_MAYBE: Rule = ("null or a whole number above 0", lambda value: value is None or whole(value))
_FINITE: Rule = (
    "a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxFolder(Folder):
    """The folder of a FluxPipeline: FLUX.1 dev or schnell, or what was trained from them."""

    SUPPORTED: ClassVar = "supported: FLUX.1's text-to-image models (dev, schnell), a FluxPipeline of " + ", ".join(
        _CLASSES[part][0] for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "scheduler")
    )
    PIPELINES: ClassVar = ("FluxPipeline",)
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {
        "transformer": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS,
        "text_encoder_2": folder.TRANSFORMERS,
    }  # fmt: skip
    VOCABULARIES: ClassVar = tuple(
        (*(f"tokenizer/{file}" for file in first), f"tokenizer_2/{second}")
        for first, second in itertools.product(
            (("tokenizer.json",), ("vocab.json", "merges.txt")), ("tokenizer.json", "spiece.model")
        )
    )
    DEFAULTS: ClassVar = {
        "transformer": {
            "patch_size": 1, "in_channels": 64, "out_channels": None, "attention_head_dim": 128, "joint_attention_dim": 4096,
            "pooled_projection_dim": 768, "guidance_embeds": False, "axes_dims_rope": [16, 56, 56],
        },
        "vae": folder.VAE_DEFAULTS,
        "text_encoder": folder.TEXT_DEFAULTS,
        "text_encoder_2": folder.T5_DEFAULTS,
        "scheduler": {
            "shift": 1.0, "num_train_timesteps": 1000, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096,
        },
    }  # fmt: skip
    RULES: ClassVar = {
        "transformer": {
            "patch_size": NUMBER, "in_channels": NUMBER, "out_channels": _MAYBE, "num_layers": LAYERS, "num_single_layers": LAYERS,
            "attention_head_dim": NUMBER, "num_attention_heads": NUMBER, "joint_attention_dim": NUMBER,
            "pooled_projection_dim": NUMBER, "guidance_embeds": _SWITCH, "axes_dims_rope": NUMBERS,
        },
        "vae": {**folder.VAE_RULES, "shift_factor": _FINITE},
        "text_encoder": folder.TEXT_RULES,
        "text_encoder_2": folder.T5_RULES,
        "scheduler": {
            "shift": REAL, "num_train_timesteps": STEPS, "use_dynamic_shifting": _SWITCH, "base_shift": _FINITE,
            "max_shift": _FINITE, "base_image_seq_len": NUMBER, "max_image_seq_len": NUMBER,
        },
    }  # fmt: skip
    REQUIRED: ClassVar = {"vae": ("shift_factor",)}
    ENDS: ClassVar = 1  # T5's end

    def check(self) -> None:
        super().check()
        _ = self.clip_tokens  # reads its tokenizer's config

    @property
    def schedule(self) -> FlowSchedule:
        """The flow, with the shift of its grids: a fixed one, or e^mu, which grows with the picture's size."""
        scheduler = self.configs["scheduler"]
        shift = math.exp(self._mu) if scheduler["use_dynamic_shifting"] else float(scheduler["shift"])
        return FlowSchedule(shift=shift, even=True, steps=scheduler["num_train_timesteps"])

    @property
    def _mu(self) -> float:
        """A line in the number of the picture's tokens, through `base_shift` and `max_shift` at two such numbers."""
        scheduler, (_, height, width) = self.configs["scheduler"], self.latent_shape
        (few, low), (many, high) = (
            (scheduler[f"{name}_image_seq_len"], scheduler[f"{name}_shift"]) for name in ("base", "max")
        )  # fmt: skip
        if few == many:
            return math.inf
        tokens = (height // _PATCH) * (width // _PATCH)
        return float(low + (tokens - few) * (high - low) / (many - few))

    @property
    def guidance(self) -> float | None:
        """The guidance that the pipeline gives the transformer as an input; None where it takes none."""
        return _GUIDANCE if self.configs["transformer"]["guidance_embeds"] else None

    @property
    def latent_channels(self) -> int:
        return int(self.configs["vae"]["latent_channels"])

    @property
    def latent_side(self) -> int:
        return _SIDE

    @property
    def patch(self) -> int:
        return _PATCH

    @property
    def max_tokens(self) -> int:
        """Tokens of T5 that the model was trained with, the end included: fewer of schnell, which has neither an input for its
        guidance nor a shift that depends on the picture's size.
        """
        schnell = self.guidance is None and not self.configs["scheduler"]["use_dynamic_shifting"]
        return _T5_TOKENS_SCHNELL if schnell else _T5_TOKENS

    @property
    def most_tokens(self) -> int:
        """The greatest number of tokens that the pipeline takes of T5."""
        return _T5_TOKENS

    @functools.cached_property
    def clip_tokens(self) -> int:
        """Tokens that CLIP reads, start and end included."""
        return self.max_tokens_of("tokenizer", self.configs["text_encoder"]["max_position_embeddings"])

    def unsupported(self) -> Mapping[str, Any]:
        transformer, vae, scheduler, clip, t5 = (
            self.configs[part] for part in ("transformer", "vae", "scheduler", "text_encoder", "text_encoder_2")
        )
        odd = [f"{key}={scheduler[key]}" for key, plain in _PLAIN.items() if scheduler.get(key, plain) != plain]
        takes, gives = transformer["in_channels"], transformer["out_channels"] or transformer["in_channels"]
        wanted, axes = _PATCH**2 * vae["latent_channels"], transformer["axes_dims_rope"]
        pooled = transformer["pooled_projection_dim"]
        return {
            f"a scheduler with {', '.join(odd)}": odd,
            f"a scheduler with a shift of e^{self._mu:g} at {' x '.join(map(str, self.image_size))} pixels": (
                scheduler["use_dynamic_shifting"] and not abs(self._mu) <= _MOST_SHIFT
            ),
            # Those of Fill and Control are given a picture too.
            f"a transformer of {takes} input and {gives} output channels, where latents have {wanted} a token": (
                (takes, gives) != (wanted, wanted)
            ),
            f"a transformer with patch_size={transformer['patch_size']}": transformer["patch_size"] != 1,
            f"a transformer with axes_dims_rope={axes} and heads of {transformer['attention_head_dim']}": (
                len(axes) != _AXES or sum(axes) != transformer["attention_head_dim"] or any(axis % 2 for axis in axes)
            ),
            f"a transformer for texts of {transformer['joint_attention_dim']} numbers a token with a T5 of {t5['d_model']}": (
                transformer["joint_attention_dim"] != t5["d_model"]
            ),
            f"a transformer for pooled texts of {pooled} numbers with a CLIP of {clip['hidden_size']}": pooled
            != clip["hidden_size"],
            f"a text_encoder of type {clip.get('model_type')}": (
                clip.get("model_type", "clip_text_model") != "clip_text_model"
                or not _CLIPS.issuperset(texts(clip.get("architectures")))
            ),
            f"a text_encoder_2 of type {t5.get('model_type')}": t5.get("model_type", "t5") != "t5",
            **self.common(),
        }
