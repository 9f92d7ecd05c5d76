"""Variants of classifier-free guidance, u + w (c - u) (Ho & Salimans 2022, arXiv:2207.12598): how the unconditional prediction u
and the conditional one c are mixed, for every method, through the denoiser.

All have two options besides their own. `interval` is the part of the chain that is guided, as noise ratios (Kynkäänniemi et al.
2024, arXiv:2404.07724): outside of it c alone is evaluated, one row instead of two. `rescale` moves the deviation of what is
predicted towards that of c (Lin et al. 2023, arXiv:2305.08891, section 3.4).

A denoiser is a function of x_t and t alone, because particles are resampled, chains differentiated and runs resumed: so none of
them has the running mean ("momentum") that APG's paper offers.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.process import Denoiser, Prediction
from guidedgen.process.formulas import from_eps, from_v, from_velocity, guided, v_from
from guidedgen.process.grid import Grid, Point
from guidedgen.process.windows import check_window, within

Output = Literal["epsilon", "v_prediction", "velocity"]  # what a network predicts: eps, v, or eps - x_0 of a flow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance(abc.ABC):
    """What all variants have. `decouples`: x_t is no longer alpha x_0 + sigma eps of what is predicted."""

    decouples: ClassVar[bool] = False

    interval: Sequence[float] = (1.0, 0.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        check_window("interval", self.interval)
        if not 0 <= self.rescale <= 1:
            raise BadValue("rescale", self.rescale, "must be from 0 to 1")

    def check(self, scale: float, kind: Output) -> None:
        """Raises BadValue where it would do nothing with a model of this guidance scale and output."""
        del kind
        if scale == 1 and not self.decouples:
            raise BadValue("guidance_scale", scale, "must not be 1 with model.guidance: nothing is guided then")

    @abc.abstractmethod
    def mix(self, uncond: Prediction, cond: Prediction, scale: float, t: Point, kind: Output, noise_ratio: float) -> Prediction:
        """What is predicted of x_t (b n c h w), of which u and c are predictions. `scale` is w."""

    def __call__(
        self, uncond: Prediction, cond: Prediction, scale: float, t: Point, kind: Output, noise_ratio: float
    ) -> Prediction:
        """The mix, rescaled."""
        mixed = self.mix(uncond, cond, scale, t, kind, noise_ratio)
        if not self.rescale:
            return mixed
        given, own = output_of(mixed, t, kind), output_of(cond, t, kind)
        factor = own.std((2, 3, 4), keepdim=True) / given.std((2, 3, 4), keepdim=True)
        return prediction_of(cond, (self.rescale * factor + 1 - self.rescale) * given, t, kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFree(Guidance):
    """u + w (c - u)."""

    def mix(self, uncond: Prediction, cond: Prediction, scale: float, t: Point, kind: Output, noise_ratio: float) -> Prediction:
        del t, kind, noise_ratio
        return guided(uncond, cond, scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projected(Guidance):
    """APG, adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416, Algorithm 1), on clean estimates:

        d = (c - u) min(1, norm_threshold / |c - u|),   x_0 = c + (w - 1) (d_orthogonal + eta d_parallel)

    parallel being along c: large scales then saturate less. `norm_threshold` 0 leaves the length as it is; 15 is the paper's for
    SDXL, whose latents have 65,536 numbers. With eta = 1 and no threshold it is classifier-free guidance.
    """

    eta: float = 0.0
    norm_threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("eta", "norm_threshold"):
            if not getattr(self, name) >= 0:
                raise BadValue(name, getattr(self, name), "must be at least 0")

    def mix(self, uncond: Prediction, cond: Prediction, scale: float, t: Point, kind: Output, noise_ratio: float) -> Prediction:
        del kind, noise_ratio
        apart = cond.x_0 - uncond.x_0
        if self.norm_threshold:
            length = apart.flatten(2).norm(dim=2)[..., None, None, None]
            apart = apart * (self.norm_threshold / length.clamp(min=1e-30)).clamp(max=1)
        along = cond.x_0.double()
        along = along / along.flatten(2).norm(dim=2)[..., None, None, None].clamp(min=1e-30)
        parallel = ((apart.double() * along).flatten(2).sum(2)[..., None, None, None] * along).to(apart)
        moved = (scale - 1) * (apart - parallel + self.eta * parallel)
        return Prediction(cond.x_0 + moved, cond.eps - t.alpha / t.sigma * moved)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroStar(Guidance):
    """CFG-Zero* (Fan et al. 2025, arXiv:2503.18886, Algorithm 1), on what the network predicts, which is a flow's velocity:

        k u + w (c - k u),   k = <c, u> / |u|^2

    `zero_share`: over this share of the steps, the first ones, a flow's velocity is 0, so that x stays as it is.
    """

    zero_share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.zero_share <= 1:
            raise BadValue("zero_share", self.zero_share, "must be from 0 to 1")

    def check(self, scale: float, kind: Output) -> None:
        super().check(scale, kind)
        if self.zero_share and kind != "velocity":
            rule = "must be 0: this model is no rectified flow, whose velocity could be 0"
            raise BadValue("guidance.zero_share", self.zero_share, rule)

    def mix(self, uncond: Prediction, cond: Prediction, scale: float, t: Point, kind: Output, noise_ratio: float) -> Prediction:
        u, c = output_of(uncond, t, kind), output_of(cond, t, kind)
        if noise_ratio > 1 - self.zero_share + 1e-9:
            return prediction_of(cond, torch.zeros_like(c), t, kind)
        k = (c * u).flatten(2).float().sum(2) / (u.flatten(2).float().square().sum(2) + 1e-8)
        u = k.to(u)[..., None, None, None] * u
        return prediction_of(cond, u + scale * (c - u), t, kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlusPlus(Guidance):
    """CFG++ (Chung et al. 2024, arXiv:2406.08070, Algorithm 2): x_0 of u + scale (c - u), with a `scale` of its own from 0 to 1,
    and eps of u, which the step noises anew with. The model's guidance scale has no part in it.
    """

    decouples: ClassVar[bool] = True

    scale: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.scale <= 1:
            raise BadValue("scale", self.scale, "must be from 0 to 1")
        if self.rescale:
            raise BadValue("rescale", self.rescale, "must be 0 with CFG++, which keeps the unconditional noise")

    def mix(self, uncond: Prediction, cond: Prediction, scale: float, t: Point, kind: Output, noise_ratio: float) -> Prediction:
        del scale, t, kind, noise_ratio
        return Prediction(uncond.x_0 + self.scale * (cond.x_0 - uncond.x_0), uncond.eps)


def output_of(prediction: Prediction, t: Point, kind: Output) -> Tensor:
    """What a network of this kind has predicted."""
    if kind == "epsilon":
        return prediction.eps
    return prediction.eps - prediction.x_0 if kind == "velocity" else v_from(prediction, t)


def prediction_of(same: Prediction, output: Tensor, t: Point, kind: Output) -> Prediction:
    """The prediction that such an output is of the x_t that `same` is a prediction of."""
    x_t = t.alpha * same.x_0 + t.sigma * same.eps
    return {"epsilon": from_eps, "v_prediction": from_v, "velocity": from_velocity}[kind](x_t, output, t)


class PlainlyGuided(abc.ABC):
    """What denoisers have that mix by u + w (c - u), with one w along the whole chain."""

    @property
    @abc.abstractmethod
    def guidance_scale(self) -> float:
        """w."""

    def scale_at(self, t: Point) -> float:
        del t
        return self.guidance_scale

    def mixed(self, uncond: Prediction, cond: Prediction, t: Point) -> tuple[Prediction, Tensor]:
        del t
        prediction = guided(uncond, cond, self.guidance_scale)
        return prediction, prediction.eps - uncond.eps


@dataclasses.dataclass(frozen=True)
class Guided:
    """Another denoiser with a variant of guidance along a grid, `num_steps` being those of the whole chain, of which the grid is
    the end where it starts from references. What is asked for with a scale of its own is plain.
    """

    inner: Denoiser
    guidance: Guidance
    kind: Output
    grid: Grid
    num_steps: int

    @property
    def guidance_scale(self) -> float:
        return self.inner.guidance_scale

    def scale_at(self, t: Point) -> float:
        return self.guidance_scale if within(self._noise_ratio(t), self.guidance.interval) else 1.0

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        if guidance_scale is not None:
            return self.inner(x_t, t, guidance_scale)
        return self.inner(x_t, t, 1.0) if self.scale_at(t) == 1 else self.mixed(*self.inner.pair(x_t, t), t)[0]

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        return self.inner.pair(x_t, t)

    def mixed(self, uncond: Prediction, cond: Prediction, t: Point) -> tuple[Prediction, Tensor]:
        w = self.scale_at(t)
        if w == 1:
            return cond, cond.eps - uncond.eps
        prediction = self.guidance(uncond, cond, w, t, self.kind, self._noise_ratio(t))
        return prediction, w * (cond.eps - uncond.eps)

    @property
    def conditioning(self) -> Tensor:
        return self.inner.conditioning

    def conditioned_on(self, conditioning: Tensor) -> Guided:
        return dataclasses.replace(self, inner=self.inner.conditioned_on(conditioning))

    def subset(self, rows: Sequence[int]) -> Guided:
        return dataclasses.replace(self, inner=self.inner.subset(rows))

    @functools.cached_property
    def _steps(self) -> dict[Point, int]:
        """The first step from each of the grid's points."""
        return {point: i for i, point in reversed(list(enumerate(self.grid)))}

    def _noise_ratio(self, t: Point) -> float:
        """The share of the chain that is left at the step that a point lies in; the last point belongs to the last step."""
        last, step = len(self.grid) - 2, self._steps.get(t)
        if step is None:  # between points, as solvers of higher order ask
            step = max((i for i, point in enumerate(self.grid) if point.t >= t.t), default=0)
        return (last + 1 - min(step, last)) / self.num_steps
