"""What a folder of diffusers with a UNet2DConditionModel says of itself: what Stable Diffusion and XL have in common."""

from __future__ import annotations

import abc
import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import COUNT, EITHER, LAYERS, NAMES, NUMBER, NUMBERS, REAL, Rule, whole
from guidedgen.models.noise_folder import NoiseFolder

_GUIDED: Rule = ("null or a whole number above 3", lambda value: value is None or (whole(value) and value > 3))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetFolder(NoiseFolder):
    """A folder with a UNet and its noise schedule."""

    GUIDANCES: ClassVar[Mapping[str, float]]  # by pipeline: the guidance that it gives a UNet that takes any as an input

    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "unet": {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 1280, "time_cond_proj_dim": None},
        "vae": folder.VAE_DEFAULTS,
        "text_encoder": folder.TEXT_DEFAULTS,
        "scheduler": NoiseFolder.SCHEDULER_DEFAULTS,
    }
    RULES: ClassVar[Mapping[str, Mapping[str, Rule]]] = {
        "unet": {
            "sample_size": NUMBER, "in_channels": NUMBER, "out_channels": NUMBER, "cross_attention_dim": EITHER,
            "block_out_channels": NUMBERS, "attention_head_dim": EITHER, "down_block_types": NAMES, "up_block_types": NAMES,
            "mid_block_scale_factor": REAL, "resnet_out_scale_factor": REAL, "norm_eps": REAL, "freq_shift": COUNT,
            "conv_in_kernel": NUMBER, "conv_out_kernel": NUMBER, "downsample_padding": COUNT, "norm_num_groups": NUMBER,
            "layers_per_block": LAYERS, "transformer_layers_per_block": LAYERS, "time_cond_proj_dim": _GUIDED,
        },
        "vae": folder.VAE_RULES,
        "text_encoder": folder.TEXT_RULES,
        "scheduler": NoiseFolder.SCHEDULER_RULES,
    }  # fmt: skip
    REQUIRED: ClassVar = {"unet": ("sample_size",), "scheduler": NoiseFolder.SCHEDULER_REQUIRED}

    @property
    def guidance(self) -> float | None:
        """The guidance that its pipeline gives the UNet as an input; None where the UNet takes none."""
        given = self.configs["unet"]["time_cond_proj_dim"] is not None
        return self.GUIDANCES[self.configs["index"]["_class_name"]] if given else None

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

    @property
    @abc.abstractmethod
    def text_width(self) -> int:
        """Numbers a token of what the text encoders say."""

    def unsupported(self) -> Mapping[str, Any]:
        """Kinds of models that are not supported, and whether this is one."""
        unet, vae = self.configs["unet"], self.configs["vae"]
        attends = unet["cross_attention_dim"]
        extra = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
        return {
            **self.unsupported_schedules(),
            # An inpainting, depth or image-editing model's.
            f"a UNet of {unet['in_channels']} input channels": unet["in_channels"] != unet["out_channels"],
            **{f"a UNet with {key}={unet.get(key)}, which wants more than a text,": unet.get(key) is not None for key in extra},
            "a UNet with encoder_hid_dim": unet.get("encoder_hid_dim") is not None,
            f"a UNet for texts of {attends} numbers a token with a text encoder of {self.text_width}": (
                any(each != self.text_width for each in (attends if isinstance(attends, list) else [attends]))
            ),
            f"a VAE of {vae['latent_channels']} latent channels with a UNet of {unet['in_channels']}": (
                vae["latent_channels"] != unet["in_channels"]
            ),
            **self.common(),
        }
