"""Guidance by a weaker model ("autoguidance": Karras et al. 2024, arXiv:2406.02507).

    D(x) = weak(x) + w (strong(x) - weak(x))

Both predict for the prompt. The weaker model is one of the same kind with fewer parameters or a shorter training: it errs as the
strong one does, only more, so that the difference leads away from errors and not from other prompts, as classifier-free guidance's
does. A row of either model is counted as one; w = 1 is the strong model alone and costs no weak rows, so that the weaker one is
never asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.process import Denoiser, Prediction
from guidedgen.process.formulas import guided
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from guidedgen.models.latent import LatentModel


@dataclasses.dataclass(frozen=True)
class Autoguided:
    """What a model predicts for b prompts, guided by a weaker one that reads the same prompts. Its "unconditional" prediction, that
    of `pair` and of a guidance scale of 0, is the weaker model's.
    """

    strong: Denoiser
    weak: Denoiser

    @property
    def guidance_scale(self) -> float:
        return self.strong.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        if w == 1:
            return self.strong(x_t, t, 1)
        return self.weak(x_t, t, 1) if w == 0 else guided(*self.pair(x_t, t), w)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        return self.weak(x_t, t, 1), self.strong(x_t, t, 1)

    @property
    def conditioning(self) -> Tensor:
        return self.strong.conditioning

    def conditioned_on(self, conditioning: Tensor) -> Autoguided:
        """The weaker model goes on with the prompts as they were read."""
        return dataclasses.replace(self, strong=self.strong.conditioned_on(conditioning))

    def subset(self, rows: Sequence[int]) -> Autoguided:
        return Autoguided(self.strong.subset(rows), self.weak.subset(rows))


def opened(model: LatentModel) -> LatentModel:
    """The model that `model.weaker` names, with the other options of the strong one. Raises UsageError where it cannot be had or
    does not fit: it has to be of the same family, with latents and noise levels of the same kind.
    """
    source = f"model.weaker={model.weaker}"
    if not isinstance(model.weaker, str):
        raise BadValue("weaker", model.weaker, "must be a folder, a hub name (org/name) or null")
    if model.guidance_scale == 1:
        raise BadValue("weaker", model.weaker, "does nothing at model.guidance_scale=1; use another scale, or null")
    if model.negative_prompt:
        raise BadValue("negative_prompt", model.negative_prompt, 'must be "" with model.weaker, which takes its place')
    if model.offload:
        raise BadValue("weaker", model.weaker, "must be null with model.offload=true")
    if model.additions.words:
        raise BadValue("weaker", model.weaker, "must be null with learned words in model.learned, which it does not know")
    try:
        weak = dataclasses.replace(model, path=model.weaker, name=f"{model.name} (model.weaker)", weaker=None, learned=None)
        folder, own = weak.opened, model.opened
    except BadValue as error:
        raise UsageError(f"{source}: {error.name}={error.value}: {error.rule}") from error
    except UsageError as error:
        raise UsageError(f"{source}: {str(error).removeprefix(f'model.path={model.weaker}: ')}") from error
    for what, theirs, ours in (
        ("latents", folder.latent_shape, own.latent_shape),
        ("scaling of latents", *(each.configs["vae"].get("scaling_factor") for each in (folder, own))),
        ("noise levels", *([each.schedule.at(t) for t in range(len(each.schedule))] for each in (folder, own))),
    ):
        if theirs != ours:
            raise UsageError(f"{source}: has other {what} than model.path={model.path}; a weaker version of that model is needed")
    return weak
