"""FLUX.1 (Black Forest Labs 2024): rectified flows by a transformer, distilled with guidance (dev) or to few steps (schnell), on
diffusers' own classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.flux_folder import FluxFolder
from guidedgen.models.folder import whole
from guidedgen.models.latent import Conditioning, LatentModel
from guidedgen.models.learnable import Learnable, Reader
from guidedgen.models.texts import by_t5
from guidedgen.models.words import Words, words_in
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_velocity
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

_SPARE = (r"^text_projection\.weight$",)  # of CLIP, of which only the pooled state is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flux(LatentModel):
    """FLUX.1. T5 reads `t5_tokens` tokens of a prompt, which is the limit on prompts; None is what the model was trained with. The
    transformer also sees the tokens that fill a prompt up: there is no mask.

    CLIP adds one vector of a prompt. It reads the first 77 tokens and no more, as when the model was trained, so longer prompts
    are not refused for it. Words that were learned are known to CLIP alone; T5 reads them as text, as in diffusers.

    dev is given its guidance as an input, `embedded_guidance`: None for the pipeline's 3.5; schnell is not. Classifier-free
    guidance can come on top of it, as diffusers' true_cfg_scale does.
    """

    guidance_scale: float = 1.0
    embedded_guidance: float | None = None
    t5_tokens: int | None = None

    FOLDER: ClassVar = FluxFolder
    LEARNABLE: ClassVar = Learnable(
        name="FLUX.1",
        networks={
            "transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
            "text_encoder_2": "T5EncoderModel",
        },
        adapted=("transformer", "text_encoder"), loader="FluxLoraLoaderMixin",
        readers=(Reader(encoder="text_encoder", tokenizer="tokenizer", key="clip_l"),), replaced=("transformer",),
    )  # fmt: skip
    GUIDANCE: ClassVar = 1.0
    READERS: ClassVar = ("tokenizer", "t5_tokenizer", "text_encoder", "t5_encoder", "words")

    def __post_init__(self) -> None:
        super().__post_init__()
        given, most = self.embedded_guidance, self.opened.most_tokens  # the folder is refused before anything is loaded
        if given is not None and self.opened.guidance is None:
            rule = "this model's transformer is not given its guidance; use null, and model.guidance_scale"
            raise BadValue("embedded_guidance", given, rule)
        if given is not None and not 0 <= given < math.inf:
            raise BadValue("embedded_guidance", given, "must be at least 0 and finite, or null")
        if self.t5_tokens is not None and not (whole(self.t5_tokens, most) and self.t5_tokens > self.FOLDER.ENDS):
            raise BadValue("t5_tokens", self.t5_tokens, f"must be from {self.FOLDER.ENDS + 1} to {most}, or null")

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> FluxFolder:
        return FluxFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        tokenizers = [part for part in FluxFolder.CLASSES if part.startswith("tokenizer")]
        parts = (*FluxFolder.WEIGHTS, "scheduler", *tokenizers)
        return (*(self.folder / part for part in parts), *self.additions.files)

    @property
    def max_tokens(self) -> int:
        """Tokens per prompt that T5 reads, its end included."""
        return self.opened.max_tokens if self.t5_tokens is None else self.t5_tokens

    # Networks

    @functools.cached_property
    def transformer(self) -> FluxTransformer2DModel:
        """The denoising network."""
        from diffusers import FluxTransformer2DModel

        return self.load_network(FluxTransformer2DModel, "transformer")

    @functools.cached_property
    def text_encoder(self) -> CLIPTextModel:
        """CLIP-L."""
        from transformers import CLIPTextModel

        return self.load_network(CLIPTextModel, "text_encoder", spare=_SPARE)

    @functools.cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """CLIP's."""
        return self.opened.load_tokenizer()

    @functools.cached_property
    def words(self) -> Words:
        """What CLIP has learned besides its vocabulary."""
        return self.vocabularies([self.tokenizer], [self.text_encoder])[0]

    @functools.cached_property
    def t5_encoder(self) -> T5EncoderModel:
        """T5."""
        from transformers import T5EncoderModel

        return self.load_network(T5EncoderModel, "text_encoder_2")

    @functools.cached_property
    def t5_tokenizer(self) -> Any:
        """T5's."""
        return self.opened.load_t5_tokenizer("tokenizer_2")

    # Use

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """The same, by what T5 reads; and where a learned word would be cut off, by what CLIP reads."""
        super().check(tasks, reserved)
        if self.truncate_prompts or not self.additions.words:
            return
        room = self.opened.clip_tokens - 2
        for prompt in dict.fromkeys([self.negative_prompt, *(task.prompt for task in tasks)]):
            plain, learned = super().without_learned(prompt)
            tokens = len(self.tokenizer(plain, add_special_tokens=False, verbose=False).input_ids) + learned
            if tokens > room and (learned > room or words_in(self.additions.words, prompt)):
                raise UsageError(
                    f"prompt of {tokens} tokens or more ({prompt[:40]!r}...): CLIP, which knows the words of model.learned, reads "
                    f"{room}; shorten it or set model.truncate_prompts=true"
                )

    def without_learned(self, prompt: str) -> tuple[str, int]:
        """T5, by which prompts are counted, reads learned words as text."""
        return prompt if prompt and prompt == self.negative_prompt else self.written(prompt), 0

    def written(self, prompt: str) -> str:
        """The prompt with every learned word in it; those that it lacks come first, but for the negative prompt's."""
        known = self.additions.words
        there = {*words_in(known, prompt), *words_in(known, self.negative_prompt)}
        return " ".join([*(name for name in reversed([*known]) if name not in there), prompt])

    def count_tokens(self, prompt: str) -> int:
        return len(self.t5_tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Tokens: T5's. Pooled: CLIP's last state at the prompt's end."""
        with self.ledger.timed("text"), torch.no_grad():
            pooled = self.words.read(list(map(self.words.with_tokens, prompts)), self.opened.clip_tokens).pooler_output
            tokens, _ = by_t5(prompts, self.t5_tokenizer, self.t5_encoder, self.max_tokens)
            return Conditioning(tokens, pooled)

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return self.encode_prompts([self.written(task.prompt) for task in tasks])

    def unconditional(self) -> Conditioning:
        return self.encode_prompts([self.negative_prompt])

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        """The flow's velocity, eps - x_0."""
        assert conditioning.pooled is not None
        rows, height, width = len(x_t), *x_t.shape[-2:]
        options: dict[str, Any] = {"dtype": self.network_dtype, "device": x_t.device}
        time = torch.full((rows,), t.t, **options) / 1000  # in this order, in which diffusers rounds it in half precision
        guidance = self.opened.guidance if self.embedded_guidance is None else self.embedded_guidance
        embedded = None if guidance is None else torch.full((rows,), guidance, device=x_t.device)
        image_positions = positions(height // self.opened.patch, width // self.opened.patch).to(x_t.device)
        text_positions = image_positions.new_zeros(conditioning.tokens.shape[1], 3)

        def call(x: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
            output: Tensor = self.transformer(
                hidden_states=packed(x), timestep=time, guidance=embedded, pooled_projections=pooled, encoder_hidden_states=tokens,
                txt_ids=text_positions, img_ids=image_positions, return_dict=False,
            )[0]  # fmt: skip
            return unpacked(output, height, width)

        own = x_t / (t.alpha + t.sigma)  # in the flow's own scale
        return run_in(self.network_dtype, call, own, conditioning.tokens, conditioning.pooled)

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return from_velocity(x_t, output, t)


def packed(latents: Tensor) -> Tensor:
    """Latents b c h w as tokens, one of every 2 x 2 numbers of each channel: b (h/2 w/2) 4c, row by row."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`, for latents of this height and width."""
    b, _, c = tokens.shape
    return tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def positions(rows: int, columns: int) -> Tensor:
    """The positions of a picture's tokens, as the transformer takes them, (rows columns) 3: 0, row and column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1).float()
