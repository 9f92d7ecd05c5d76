"""What a Stable Diffusion 3 or 3.5 folder says of itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import LAYERS, NUMBER, REAL, STEPS, TransformerFolder, texts
from guidedgen.process.grid import FlowSchedule

_CLASSES = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModelWithProjection",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
# Options of the scheduler that change its grid or its step, and the values with which they do not.
_PLAIN = {
    "use_dynamic_shifting": False, "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "invert_sigmas": False, "stochastic_sampling": False, "shift_terminal": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion3Folder(TransformerFolder):
    """The folder of a StableDiffusion3Pipeline, whose T5 (text_encoder_3) is not read."""

    SUPPORTED: ClassVar = "supported: Stable Diffusion 3 and 3.5, a StableDiffusion3Pipeline of " + ", ".join(
        _CLASSES[part][0] for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "scheduler")
    )
    PIPELINES: ClassVar = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    BUNDLED: ClassVar = {"lab": ("flow",)}
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {
        "transformer": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS,
        "text_encoder_2": folder.TRANSFORMERS,
    }  # fmt: skip
    VOCABULARIES: ClassVar[Sequence[Sequence[str]]] = (
        ("tokenizer/tokenizer.json",),
        ("tokenizer/vocab.json", "tokenizer/merges.txt"),
    )
    DEFAULTS: ClassVar = {
        "transformer": {"in_channels": 16, "out_channels": 16, "sample_size": 128, "joint_attention_dim": 4096,
                        "pooled_projection_dim": 2048, "patch_size": 2, "pos_embed_max_size": 96},
        "vae": {**folder.VAE_DEFAULTS, "shift_factor": None},
        "text_encoder": folder.TEXT_DEFAULTS,
        "text_encoder_2": folder.TEXT_DEFAULTS,
        "scheduler": {"shift": 1.0, "num_train_timesteps": 1000},
    }  # fmt: skip
    RULES: ClassVar = {
        "transformer": {
            "sample_size": NUMBER, "in_channels": NUMBER, "out_channels": NUMBER, "joint_attention_dim": NUMBER,
            "pooled_projection_dim": NUMBER, "caption_projection_dim": NUMBER, "patch_size": NUMBER, "num_layers": LAYERS,
            "num_attention_heads": NUMBER, "attention_head_dim": NUMBER, "pos_embed_max_size": NUMBER,
        },
        "vae": folder.VAE_RULES,
        "text_encoder": folder.TEXT_RULES,
        "text_encoder_2": folder.TEXT_RULES,
        "scheduler": {"shift": REAL, "num_train_timesteps": STEPS},
    }  # fmt: skip
    REQUIRED: ClassVar = {"transformer": ("sample_size",)}

    @property
    def schedule(self) -> FlowSchedule:
        """The flow, with the shift of its grids."""
        scheduler = self.configs["scheduler"]
        return FlowSchedule(shift=float(scheduler["shift"]), steps=scheduler["num_train_timesteps"])

    @property
    def most_pixels(self) -> int:
        """Of the positions, which are cut out of a table's middle."""
        return int(self.configs["transformer"]["pos_embed_max_size"]) * self.patch * self.vae_factor

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens per prompt that both CLIPs read, start and end included: the first tokenizer's, as in diffusers' pipeline."""
        most = min(self.configs[encoder]["max_position_embeddings"] for _, encoder in CLIPS)
        return self.max_tokens_of("tokenizer", most)

    def unsupported(self) -> Mapping[str, Any]:
        transformer, vae, scheduler = (self.configs[part] for part in ("transformer", "vae", "scheduler"))
        clips = [self.configs[encoder] for _, encoder in CLIPS]
        widths, pooled = sum(clip["hidden_size"] for clip in clips), sum(clip["projection_dim"] for clip in clips)
        odd = [f"{key}={scheduler[key]}" for key, plain in _PLAIN.items() if scheduler.get(key, plain) != plain]
        side, patch = transformer["sample_size"], transformer["patch_size"]
        return {
            f"a scheduler with {', '.join(odd)}": odd,
            f"a transformer of {transformer['in_channels']} input and {transformer['out_channels']} output channels": (
                transformer["in_channels"] != transformer["out_channels"]
            ),
            f"a VAE of {vae['latent_channels']} latent channels with a transformer of {transformer['in_channels']}": (
                vae["latent_channels"] != transformer["in_channels"]
            ),
            f"a transformer for texts of {transformer['joint_attention_dim']} numbers a token with text encoders of {widths}": (
                transformer["joint_attention_dim"] < widths
            ),
            f"a transformer for pooled texts of {transformer['pooled_projection_dim']} numbers with text encoders of {pooled}": (
                transformer["pooled_projection_dim"] != pooled
            ),
            f"a transformer of patches of {patch} on latents of side {side}": side % patch != 0,
            **{
                f"a {encoder} of type {clip.get('model_type')}": clip.get("model_type", "clip_text_model") != "clip_text_model"
                or not {"CLIPTextModelWithProjection"}.issuperset(texts(clip.get("architectures")))
                for (_, encoder), clip in zip(CLIPS, clips, strict=True)
            },
            **self.common(),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithT5(StableDiffusion3Folder):
    """The folder of a StableDiffusion3Pipeline with its T5."""

    CLASSES: ClassVar = {
        **StableDiffusion3Folder.CLASSES, "text_encoder_3": ("T5EncoderModel",), "tokenizer_3": ("T5Tokenizer", "T5TokenizerFast"),
    }  # fmt: skip
    SUPPORTED: ClassVar = f"{StableDiffusion3Folder.SUPPORTED}, with a T5EncoderModel as text_encoder_3 unless model.t5=false"
    WEIGHTS: ClassVar = {**StableDiffusion3Folder.WEIGHTS, "text_encoder_3": folder.TRANSFORMERS}
    VOCABULARIES: ClassVar[Sequence[Sequence[str]]] = (("tokenizer_3/tokenizer.json",), ("tokenizer_3/spiece.model",))
    DEFAULTS: ClassVar = {**StableDiffusion3Folder.DEFAULTS, "text_encoder_3": folder.T5_DEFAULTS}
    RULES: ClassVar = {**StableDiffusion3Folder.RULES, "text_encoder_3": folder.T5_RULES}

    def unsupported(self) -> Mapping[str, Any]:
        width, wanted = self.configs["text_encoder_3"]["d_model"], self.configs["transformer"]["joint_attention_dim"]
        return {
            **super().unsupported(),
            f"a T5 of {width} numbers a token with a transformer for texts of {wanted}": width != wanted,
        }
