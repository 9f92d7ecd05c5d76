"""SANA (Xie et al. 2024, arXiv:2410.10629) and SANA 1.5 (Xie et al. 2025, arXiv:2501.18427): rectified flows by a transformer with
linear attention, on latents of a deep compression autoencoder, on diffusers' own classes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.latent import Conditioning, LatentModel
from guidedgen.models.learnable import Learnable
from guidedgen.models.sana_folder import SanaFolder
from guidedgen.models.texts import in_lower_case
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_velocity
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Model, GemmaTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sana(LatentModel):
    """SANA. Gemma reads a prompt in lower case and after an instruction, which asks for a detailed description of it: diffusers'
    complex_human_instruction, unless `instruct` is false. The transformer is given Gemma's last states at the start and at the last
    299 tokens, those of the prompt and what fills it up, and a mask of the latter. The negative prompt comes without instruction.

    As the pipeline without clean_caption and use_resolution_binning: a prompt is not cleaned of links and the like, and a picture
    has the `size` that is asked for. The pipeline's x_T has a standard deviation of 1 in the flow's own scale; here it is 1 in that
    in which alpha^2 + sigma^2 = 1, which differs by 0.03 % at the first point of scheduler=dpm_solver, and not of flow.

    In float16, Gemma computes in bfloat16 and the autoencoder in float32, as numbers in both are too large for it.
    """

    guidance_scale: float = 4.5
    instruct: bool = True

    FOLDER: ClassVar = SanaFolder
    LEARNABLE: ClassVar = Learnable(
        name="SANA",
        networks={"transformer": "SanaTransformer2DModel", "vae": "AutoencoderDC", "text_encoder": "Gemma2Model"},
        adapted=("transformer",), loader="SanaLoraLoaderMixin", replaced=("transformer",),
    )  # fmt: skip
    GUIDANCE: ClassVar = 4.5
    READERS: ClassVar = ("tokenizer", "text_encoder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.instruct, bool):
            raise BadValue("instruct", self.instruct, "must be true or false")

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> SanaFolder:
        return SanaFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*(self.folder / part for part in (*SanaFolder.WEIGHTS, "scheduler", "tokenizer")), *self.additions.files)

    # Networks

    @functools.cached_property
    def transformer(self) -> SanaTransformer2DModel:
        """The denoising network."""
        from diffusers import SanaTransformer2DModel

        return self.load_network(SanaTransformer2DModel, "transformer")

    @functools.cached_property
    def vae(self) -> AutoencoderDC:
        from diffusers import AutoencoderDC

        return self.load_network(AutoencoderDC, "vae", dtype=self.vae_dtype)

    @property
    def vae_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "float16" else super().vae_dtype

    @functools.cached_property
    def text_encoder(self) -> Gemma2Model:
        """Gemma 2, without what predicts the next token."""
        from transformers import Gemma2Model

        return self.load_network(Gemma2Model, "text_encoder", dtype=torch.bfloat16 if self.dtype == "float16" else None)

    @functools.cached_property
    def tokenizer(self) -> GemmaTokenizer:
        """Gemma's."""
        return self.opened.load_gemma_tokenizer()

    # Use

    @functools.cached_property
    def instruction(self) -> str:
        """What Gemma reads before a prompt: the pipeline's own text, or nothing."""
        from diffusers import SanaPipeline

        given = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
        return "\n".join(given) if self.instruct else ""

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """The same; prompts are counted with the instruction, the negative prompt is without."""
        if self.truncate_prompts:
            return
        room = self.max_tokens - self.FOLDER.ENDS - reserved
        counted = [(self.negative_prompt, self.tokens_without), *((task.prompt, self.count_tokens) for task in tasks)]
        for prompt, count in dict.fromkeys(counted):
            tokens = len(prompt.split())  # a token or more each: no need to load a tokenizer to refuse a very long prompt
            if tokens <= room:
                tokens = count(prompt)
            if tokens > room:
                self._refuse(prompt, tokens, room)

    def count_tokens(self, prompt: str) -> int:
        """As the pipeline counts: what comes after the instruction, whose last token may become one with the prompt's first."""
        if not self.instruction:
            return self.tokens_without(prompt)
        both, first = (
            len(self.tokenizer(text, verbose=False).input_ids)
            for text in (self.instruction + in_lower_case(prompt), self.instruction)
        )
        return both - first + 1

    def tokens_without(self, prompt: str) -> int:
        """A prompt's tokens without an instruction, the start left out."""
        return len(self.tokenizer(in_lower_case(prompt), add_special_tokens=False, verbose=False).input_ids)

    def encode_prompts(self, prompts: Sequence[str], instruction: str = "") -> Conditioning:
        """Tokens: Gemma's last states, and where there are any: b 300 d and b 300."""
        with self.ledger.timed("text"), torch.no_grad():
            length = self.max_tokens + (len(self.tokenizer(instruction).input_ids) - 2 if instruction else 0)
            texts = [instruction + in_lower_case(prompt) for prompt in prompts]
            ids = self.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            ids = ids.to(self.text_encoder.device)
            states = self.text_encoder(ids.input_ids, attention_mask=ids.attention_mask, use_cache=False)[0]
            kept = [0, *range(length - self.max_tokens + 1, length)]
            return Conditioning(states[:, kept], mask=ids.attention_mask[:, kept])

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return self.encode_prompts([task.prompt for task in tasks], self.instruction)

    def unconditional(self) -> Conditioning:
        return self.encode_prompts([self.negative_prompt])

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        """The flow's velocity, eps - x_0. Where the transformer predicts a variance too, that is left out."""
        assert conditioning.mask is not None
        time = torch.full((len(x_t),), t.t, device=x_t.device) * self.opened.configs["transformer"]["timestep_scale"]

        def call(x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
            output: Tensor = self.transformer(
                x, encoder_hidden_states=tokens, encoder_attention_mask=mask, timestep=time, return_dict=False
            )[0]
            return output[:, : x.shape[1]]

        own = x_t / (t.alpha + t.sigma)  # in the flow's own scale
        return run_in(self.network_dtype, call, own, conditioning.tokens, conditioning.mask)

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return from_velocity(x_t, output, t)

    def encoded(self, pictures: Tensor) -> Tensor:
        """The autoencoder has no posterior: it gives one latent."""
        latent: Tensor = self.vae.encode(pictures).latent
        return latent
