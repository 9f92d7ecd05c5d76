"""What a Stable Diffusion folder says of itself.

Supported is what diffusers' StableDiffusionPipeline samples of a UNet that is given no more than a time and a text: Stable
Diffusion 1.x, 2.x and what was trained from them.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import COUNT, EITHER, LAYERS, NAMES, NUMBER, NUMBERS, REAL, SHARE, STEPS, Folder, texts
from guidedgen.process.grid import NoiseSchedule

# What each part may be, by model_index.json.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusionFolder(Folder):
    """The folder of a StableDiffusionPipeline."""

    SUPPORTED: ClassVar = "supported: Stable Diffusion 1.x and 2.x, a StableDiffusionPipeline of " + ", ".join(
        _CLASSES[part][0] for part in ("unet", "vae", "text_encoder", "tokenizer")
    )
    PIPELINES: ClassVar = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
    )  # of the same parts; from noise they are one
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {"unet": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS}
    VOCABULARIES: ClassVar = (("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt"))
    DEFAULTS: ClassVar = {
        "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280},
        "vae": folder.VAE_DEFAULTS,
        "text_encoder": folder.TEXT_DEFAULTS,
        "scheduler": {"prediction_type": "epsilon"},
    }
    RULES: ClassVar = {
        "unet": {
            "sample_size": NUMBER, "in_channels": NUMBER, "out_channels": NUMBER, "cross_attention_dim": EITHER,
            "block_out_channels": NUMBERS, "attention_head_dim": EITHER, "down_block_types": NAMES, "up_block_types": NAMES,
            "mid_block_scale_factor": REAL, "resnet_out_scale_factor": REAL, "norm_eps": REAL, "freq_shift": COUNT,
            "conv_in_kernel": NUMBER, "conv_out_kernel": NUMBER, "downsample_padding": COUNT, "norm_num_groups": NUMBER,
            "layers_per_block": LAYERS, "transformer_layers_per_block": LAYERS,
        },
        "vae": folder.VAE_RULES,
        "text_encoder": folder.TEXT_RULES,
        "scheduler": {"beta_start": SHARE, "beta_end": SHARE, "num_train_timesteps": STEPS},
    }  # fmt: skip
    REQUIRED: ClassVar = {
        "unet": ("sample_size",), "scheduler": ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps"),
    }  # fmt: skip

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

    @property
    def latent_channels(self) -> int:
        return int(self.configs["unet"]["in_channels"])

    @functools.cached_property
    def latent_side(self) -> int:
        unet = self.configs["unet"]
        side, written = unet["sample_size"], re.match(r"0\.(\d+)\.", str(unet.get("_diffusers_version")))
        if written and int(written[1]) < 9:  # the first configs said 32 and meant 64: diffusers corrects them too
            side = max(side, 64)
        return int(side)

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included: what the tokenizer says, and at most what the text encoder reads."""
        return self.max_tokens_of("tokenizer", self.configs["text_encoder"]["max_position_embeddings"])

    def unsupported(self) -> Mapping[str, Any]:
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
            f"a text encoder of type {text.get('model_type')}": (
                text.get("model_type", "clip_text_model") != "clip_text_model"
                or not {"CLIPTextModel", "CLIPTextModelWithProjection"}.issuperset(texts(text.get("architectures")))
            ),
            "a text encoder that masks padding": text.get("use_attention_mask", False),
            **self.common(),
        }
