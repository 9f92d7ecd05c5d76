"""DiT (Peebles & Xie 2023, arXiv:2212.09748): latent diffusion of ImageNet's classes by a transformer of diffusers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.dit_folder import DitFolder
from guidedgen.models.folder import INDEX
from guidedgen.models.latent import Conditioning, PromptedDenoiser
from guidedgen.models.learnable import Learnable
from guidedgen.models.textless import TextlessModel
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_eps, from_v
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel

_SPARE = (r"^pos_embed\.pos_embed$",)  # the positions' sines, which are counted out anew


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dit(TextlessModel):
    """DiT. A prompt is a class: one of the model's labels ("golden retriever"), or its number ("207"); others are refused. The
    empty prompt is the class that stands for none, which the model was trained with for classifier-free guidance: with
    `guidance_scale` 1 it is never evaluated. A class as the negative prompt takes its place.

    Guided are all channels of the predicted noise, as in diffusers' pipeline (the released code has three of the four); the
    variance that the network predicts besides is not used.
    """

    guidance_scale: float = 4.0

    FOLDER: ClassVar = DitFolder
    LEARNABLE: ClassVar = Learnable(name="DiT", networks={"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL"})
    GUIDANCE: ClassVar = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.opened  # refused before anything is loaded

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> DitFolder:
        return DitFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        """The index too, whose labels say which class a prompt is."""
        return (*(self.folder / part for part in (INDEX, *DitFolder.WEIGHTS, "scheduler")), *self.additions.files)

    # Networks

    @functools.cached_property
    def transformer(self) -> DiTTransformer2DModel:
        """The denoising network, which takes classes (b), or embeddings of them (b l d)."""
        from diffusers import DiTTransformer2DModel

        network = self.load_network(DiTTransformer2DModel, "transformer", spare=_SPARE)
        for number, block in enumerate(network.transformer_blocks):
            block.norm1.emb.class_embedder = _Embedder(block.norm1.emb.class_embedder, number)
        return network

    # Use

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """Raises UsageError where a prompt is no class."""
        del reserved
        for prompt in dict.fromkeys([self.negative_prompt, *(task.prompt for task in tasks)]):
            self.opened.class_of(prompt, self.name)

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return self._numbers([task.prompt for task in tasks])

    def unconditional(self) -> Conditioning:
        return self._numbers([self.negative_prompt])

    def _numbers(self, prompts: Sequence[str]) -> Conditioning:
        """The numbers of the classes, b 1."""
        return Conditioning(torch.tensor([[self.opened.class_of(prompt, self.name)] for prompt in prompts], device=self.device))

    def denoiser(self, tasks: Sequence[Task]) -> ClassDenoiser:
        plain = super().denoiser(tasks)
        return ClassDenoiser(model=self, cond=plain.cond, uncond=plain.uncond)

    def embedded(self, classes: Tensor) -> Tensor:
        """The embeddings b l d of classes b 1: each of the transformer's l blocks has its own."""
        blocks = self.transformer.transformer_blocks
        return torch.stack([cast("_Embedder", block.norm1.emb.class_embedder).of(classes[:, 0]) for block in blocks], 1)

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        """Without the variance."""
        time, given = torch.full((len(x_t),), t.t, device=x_t.device), conditioning.tokens

        def call(x: Tensor, *embeddings: Tensor) -> Tensor:
            classes = embeddings[0] if embeddings else given[:, 0]
            output: Tensor = self.transformer(x, timestep=time, class_labels=classes, return_dict=False)[0]
            return output[:, : x.shape[1]]

        return run_in(self.network_dtype, call, x_t, *([given] if given.is_floating_point() else []))

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return (from_v if self.opened.prediction == "v_prediction" else from_eps)(x_t, output, t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassDenoiser(PromptedDenoiser):
    """What DiT predicts for b classes, or for embeddings of them."""

    model: Dit

    @property
    def conditioning(self) -> Tensor:
        """The classes' embeddings: b l d, of the transformer's l blocks."""
        return self._embedded(self.cond)

    def conditioned_on(self, conditioning: Tensor) -> ClassDenoiser:
        uncond = Conditioning(self._embedded(self.uncond).to(conditioning.dtype))
        return dataclasses.replace(self, cond=Conditioning(conditioning), uncond=uncond)

    def _embedded(self, given: Conditioning) -> Tensor:
        return given.tokens if given.tokens.is_floating_point() else self.model.embedded(given.tokens)


class _Embedder(torch.nn.Module):
    """The embeddings of classes in one of a transformer's blocks; of all blocks' embeddings, b l d, its own are passed on."""

    def __init__(self, table: torch.nn.Module, number: int) -> None:
        super().__init__()
        self.table, self.number = table, number
        self.eval()

    def forward(self, classes: Tensor) -> Tensor:
        """b or b l d -> b d."""
        if classes.is_floating_point():
            return classes[:, self.number]
        found: Tensor = self.table(classes)
        return found

    def of(self, classes: Tensor) -> Tensor:
        """The same of classes alone, wherever the weights are now."""
        device = next(self.table.parameters()).device
        found: Tensor = self.table(classes.to(device))
        return found.to(classes.device)
