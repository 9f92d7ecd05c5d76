"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206): rectified flows by a transformer, on diffusers' own classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics.attention import JointAttention
from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.latent import Conditioning, LatentModel
from guidedgen.models.learnable import Learnable
from guidedgen.models.stable_diffusion_3_folder import CLIPS, StableDiffusion3Folder, WithT5
from guidedgen.models.texts import by_clip, by_t5
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_velocity
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

_T5_TOKENS = 256  # that T5 reads, by diffusers' default
_Network = TypeVar("_Network", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion3(LatentModel):
    """Stable Diffusion 3 or 3.5. Without `t5` zeros stand for what T5 says of a prompt, as diffusers' pipeline has it with
    text_encoder_3=None: T5 helps long prompts and text in pictures, and takes 9.5 GB in half precision.
    """

    t5: bool = True

    FOLDER: ClassVar = StableDiffusion3Folder
    LEARNABLE: ClassVar = Learnable(
        name="Stable Diffusion 3",
        networks={
            "transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModelWithProjection",
            "text_encoder_2": "CLIPTextModelWithProjection", "text_encoder_3": "T5EncoderModel",
        },
        adapted=("transformer", "text_encoder", "text_encoder_2"), loader="SD3LoraLoaderMixin", replaced=("transformer",),
    )  # fmt: skip
    GUIDANCE: ClassVar = 7.0
    READERS: ClassVar = ("tokenizers", "text_encoders", "t5_encoder")

    @classmethod
    def options_of(cls, index: Mapping[str, Any]) -> dict[str, Any]:
        entry = index.get("text_encoder_3")
        return {"t5": isinstance(entry, list) and entry[-1] is not None}

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.opened  # refused before anything is loaded

    # What the folder says of itself

    @classmethod
    def folder_of(cls, *, t5: bool = True, **options: Any) -> type[StableDiffusion3Folder]:
        del options
        return WithT5 if t5 else StableDiffusion3Folder

    @functools.cached_property
    def opened(self) -> StableDiffusion3Folder:
        return self.folder_of(t5=self.t5).open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        tokenizers = [part for part in self.opened.CLASSES if part.startswith("tokenizer")]
        parts = (*self.opened.WEIGHTS, "scheduler", *tokenizers)
        return (*(self.folder / part for part in parts), *self.additions.files)

    @functools.cached_property
    def copies(self) -> int:
        """How many of the zeros that stand for T5's tokens the network reads as one, which is exact: all of them where a picture
        has no more tokens than that. For larger ones fused attention, which has no such weights, is as fast.
        """
        _, height, width = self.latent_shape
        return _T5_TOKENS if not self.t5 and height * width <= _T5_TOKENS * self.opened.patch**2 else 1

    # Networks

    @functools.cached_property
    def transformer(self) -> SD3Transformer2DModel:
        """The denoising network."""
        from diffusers import SD3Transformer2DModel

        network = self.load_network(SD3Transformer2DModel, "transformer")
        if self.copies > 1:
            network.set_attn_processor(JointAttention())
        return network

    @functools.cached_property
    def text_encoders(self) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
        """CLIP-L and CLIP-G."""
        from transformers import CLIPTextModelWithProjection

        first, second = (self.load_network(CLIPTextModelWithProjection, encoder) for _, encoder in CLIPS)
        return first, second

    @functools.cached_property
    def tokenizers(self) -> tuple[CLIPTokenizer, CLIPTokenizer]:
        """Those of the two."""
        first, second = (self.opened.load_tokenizer(tokenizer, encoder) for tokenizer, encoder in CLIPS)
        return first, second

    @functools.cached_property
    def t5_encoder(self) -> tuple[Any, ...]:
        """T5, or nothing."""
        from transformers import T5EncoderModel

        return (self.load_network(T5EncoderModel, "text_encoder_3"),) if self.t5 else ()

    @functools.cached_property
    def t5_tokenizer(self) -> Any:
        """T5's."""
        return self.opened.load_t5_tokenizer("tokenizer_3")

    # Use

    def count_tokens(self, prompt: str) -> int:
        return max(len(each(prompt, add_special_tokens=False, verbose=False).input_ids) for each in self.tokenizers)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Tokens: the last but one layers of the CLIPs side by side, then T5's. Pooled: the CLIPs' projections."""
        with self.ledger.timed("text"), torch.no_grad():
            clips = zip(self.tokenizers, self.text_encoders, strict=True)
            read = [by_clip(prompts, tokenizer, encoder, self.max_tokens) for tokenizer, encoder in clips]
            tokens = torch.cat([output.hidden_states[-2] for output in read], -1)
            tokens = F.pad(tokens, (0, int(self.opened.configs["transformer"]["joint_attention_dim"]) - tokens.shape[-1]))
            rest = tokens.new_zeros(len(tokens), _T5_TOKENS // self.copies, tokens.shape[-1])
            for encoder in self.t5_encoder:
                rest, _ = by_t5(prompts, self.t5_tokenizer, encoder, _T5_TOKENS)
            tokens = torch.cat([tokens, rest.to(tokens.dtype)], 1)
            return Conditioning(tokens, torch.cat([output.text_embeds for output in read], -1))

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return self.encode_prompts([task.prompt for task in tasks])

    def unconditional(self) -> Conditioning:
        return self.encode_prompts([self.negative_prompt])

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        """The flow's velocity, eps - x_0."""
        assert conditioning.pooled is not None
        time = torch.full((len(x_t),), t.t, device=x_t.device)
        more = {"joint_attention_kwargs": {"copies": self.copies}} if self.copies > 1 else {}

        def call(x: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
            output: Tensor = self.transformer(
                hidden_states=x, timestep=time, encoder_hidden_states=tokens, pooled_projections=pooled, return_dict=False, **more
            )[0]
            return output

        own = x_t / (t.alpha + t.sigma)  # in the flow's own scale
        return run_in(self.network_dtype, call, own, conditioning.tokens, conditioning.pooled)

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return from_velocity(x_t, output, t)
