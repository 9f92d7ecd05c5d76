"""What a Stable Diffusion folder says of itself.

Supported is what diffusers' StableDiffusionPipeline samples of a UNet that is given no more than a time and a text: Stable
Diffusion 1.x, 2.x and what was trained from them; and latent consistency models, whose UNet is given its guidance too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import texts
from guidedgen.models.noise_folder import SCHEDULERS
from guidedgen.models.unet_folder import UNetFolder

# What each part may be, by model_index.json.
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": SCHEDULERS,
}
_LCM = ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusionFolder(UNetFolder):
    """The folder of a StableDiffusionPipeline or a LatentConsistencyModelPipeline."""

    SUPPORTED: ClassVar = (
        "supported: Stable Diffusion 1.x and 2.x, a StableDiffusionPipeline or LatentConsistencyModelPipeline of "
        + ", ".join(_CLASSES[part][0] for part in ("unet", "vae", "text_encoder", "tokenizer"))
    )
    # Those of a pipeline and its Img2Img have the same parts; from noise they are one.
    PIPELINES: ClassVar = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", *_LCM)
    GUIDANCES: ClassVar = {"StableDiffusionPipeline": 7.5, "StableDiffusionImg2ImgPipeline": 7.5, **dict.fromkeys(_LCM, 8.5)}
    BUNDLED: ClassVar = {"lab": ("generator",), "lab:turbo": ("turbo", "generator")}
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {"unet": folder.DIFFUSERS, "vae": folder.DIFFUSERS, "text_encoder": folder.TRANSFORMERS}
    VOCABULARIES: ClassVar = (("tokenizer/tokenizer.json",), ("tokenizer/vocab.json", "tokenizer/merges.txt"))

    @property
    def text_width(self) -> int:
        return int(self.configs["text_encoder"]["hidden_size"])

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included: what the tokenizer says, and at most what the text encoder reads."""
        return self.max_tokens_of("tokenizer", self.configs["text_encoder"]["max_position_embeddings"])

    def unsupported(self) -> Mapping[str, Any]:
        unet, text, pipeline = self.configs["unet"], self.configs["text_encoder"], self.configs["index"]["_class_name"]
        kind = unet.get("addition_embed_type")
        return {
            **super().unsupported(),
            f"a UNet with addition_embed_type={kind}, which wants more than a text,": kind is not None,
            f"a {pipeline} whose UNet takes no guidance (time_cond_proj_dim)": pipeline in _LCM and self.guidance is None,
            # StableDiffusionPipeline turns it off by itself.
            "a scheduler that clips predictions (clip_sample)": pipeline in _LCM and self.clips,
            f"a text encoder of type {text.get('model_type')}": (
                text.get("model_type", "clip_text_model") != "clip_text_model"
                or not {"CLIPTextModel", "CLIPTextModelWithProjection"}.issuperset(texts(text.get("architectures")))
            ),
            "a text encoder that masks padding": text.get("use_attention_mask", False),
        }
