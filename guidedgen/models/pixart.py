"""PixArt alpha (Chen et al. 2023, arXiv:2310.00426) and Sigma (Chen et al. 2024, arXiv:2403.04692): diffusion transformers that T5
reads prompts for, on diffusers' own classes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.latent import Conditioning, LatentModel
from guidedgen.models.learnable import Learnable
from guidedgen.models.pixart_folder import PixArtFolder
from guidedgen.models.texts import by_t5, in_lower_case
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_eps, from_v
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import PixArtTransformer2DModel
    from transformers import T5EncoderModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixArt(LatentModel):
    """PixArt Sigma or alpha. T5 reads prompts in lower case, and the transformer does not see the tokens that fill them up. Some
    transformers of alpha are also given the picture's size.

    As the pipelines without clean_caption and use_resolution_binning: a prompt is not cleaned of links and the like, and a picture
    has the `size` that is asked for.
    """

    guidance_scale: float = 4.5

    FOLDER: ClassVar = PixArtFolder
    LEARNABLE: ClassVar = Learnable(
        name="PixArt",
        networks={"transformer": "PixArtTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "T5EncoderModel"},
        replaced=("transformer",),
    )  # diffusers reads no LoRA for it
    GUIDANCE: ClassVar = 4.5
    UPCASTS: ClassVar = True
    READERS: ClassVar = ("tokenizer", "text_encoder")

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> PixArtFolder:
        return PixArtFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*(self.folder / part for part in (*PixArtFolder.WEIGHTS, "scheduler", "tokenizer")), *self.additions.files)

    # Networks

    @functools.cached_property
    def transformer(self) -> PixArtTransformer2DModel:
        """The denoising network."""
        from diffusers import PixArtTransformer2DModel

        return self.load_network(PixArtTransformer2DModel, "transformer")

    @functools.cached_property
    def text_encoder(self) -> T5EncoderModel:
        """T5."""
        from transformers import T5EncoderModel

        return self.load_network(T5EncoderModel, "text_encoder")

    @functools.cached_property
    def tokenizer(self) -> Any:
        """T5's."""
        return self.opened.load_t5_tokenizer("tokenizer")

    # Use

    def count_tokens(self, prompt: str) -> int:
        return len(self.tokenizer(in_lower_case(prompt), add_special_tokens=False, verbose=False).input_ids)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """T5's last states, and where there are tokens: b l d and b l."""
        with self.ledger.timed("text"), torch.no_grad():
            tokens, mask = by_t5(list(map(in_lower_case, prompts)), self.tokenizer, self.text_encoder, self.max_tokens, masked=True)
            return Conditioning(tokens, mask=mask)

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return self.encode_prompts([task.prompt for task in tasks])

    def unconditional(self) -> Conditioning:
        return self.encode_prompts([self.negative_prompt])

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        """The predicted noise, or v. Where the transformer predicts a variance too, that is left out."""
        assert conditioning.mask is not None
        rows, (height, width) = len(x_t), self.image_size
        time = torch.full((rows,), t.t, device=x_t.device)

        def call(x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
            sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
            if self.opened.sized:
                sizes = {
                    "resolution": x.new_tensor([[height, width]] * rows),
                    "aspect_ratio": x.new_tensor([[height / width]] * rows),
                }
            output: Tensor = self.transformer(
                x, encoder_hidden_states=tokens, encoder_attention_mask=mask, timestep=time, added_cond_kwargs=sizes,
                return_dict=False,
            )[0]  # fmt: skip
            return output[:, : x.shape[1]]

        return run_in(self.network_dtype, call, x_t, conditioning.tokens, conditioning.mask)

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return (from_v if self.opened.prediction == "v_prediction" else from_eps)(x_t, output, t)
