"""Shared by the methods that guide single steps: which steps are guided, the predicted noise, the reward's gradient, the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.problem import Problem
from guidedgen.process import Prediction
from guidedgen.process.grid import Point
from guidedgen.process.windows import within


def check_counts(method: object, *names: str, least: int = 1) -> None:
    """Raises BadValue where an option of these names is not at least `least`."""
    for name in names:
        if not getattr(method, name) >= least:
            raise BadValue(name, getattr(method, name), f"must be at least {least}")


def check_positive(method: object, *names: str) -> None:
    """Raises BadValue where an option of these names is neither None nor above 0."""
    for name in names:
        value = getattr(method, name)
        if value is not None and not value > 0:
            raise BadValue(name, value, "must be above 0")


def inside(problem: Problem, i: int, window: Sequence[float]) -> bool:
    """Whether step i lies in a window [start, end] of noise ratios: with R of T steps left, itself included, end T < R <= start T.

    In a chain of 100 steps [0.7, 0.3] are the indices 69 to 30, counted down from 99, of the released code of FreeDoM and MPGD
    (SD_style/ldm/models/diffusion/ddim.py), and in one of 500 [0.6, 0] the steps at t <= 600 of CoDeX's.
    """
    return within(problem.noise_ratio(i), window)


def predicted(problem: Problem, x_t: Tensor, t: Point) -> tuple[Prediction, Tensor]:
    """The prediction u + w (c - u), and the correction w (c - u) in its noise: b n c h w as x_t, from 2 rows per latent.

    At w = 1 there is nothing to correct, as with few-step models and those that have guidance embedded: the prediction takes 1 row,
    and its noise, of about unit elements, stands in for the correction as the measure of a step. No paper says what to do there;
    the released codes would not guide at all.
    """
    if problem.denoise.scale_at(t) == 1:
        prediction = problem.denoise(x_t, t)
        return prediction, prediction.eps
    return problem.denoise.mixed(*problem.denoise.pair(x_t, t), t)


def pushed(prediction: Prediction, push: Tensor, t: Point) -> Prediction:
    """The prediction for the same x_t with `push` added to its noise; t.alpha must not be 0."""
    return Prediction(prediction.x_0 - t.sigma / t.alpha * push, prediction.eps + push)


def reward_gradient(
    problem: Problem, x_t: Tensor, look: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Rewards (b n) of the clean latents that `look` sees in x_t (b n c h w), and their gradients by x_t, through `look`.

    `look` maps latents to the clean ones and to whatever else is wanted of the same network call; all it returns is returned last,
    without its graph. The graphs of at most `batch_size` latents are held at once, or of one per sample where those are more.
    """
    size = max(1, problem.batch_size // len(problem))
    parts = [_pulled_back(problem, x, look) for x in x_t.split(size, 1)]
    rewards, gradients, seen = zip(*parts, strict=True)
    return torch.cat(rewards, 1), torch.cat(gradients, 1), tuple(torch.cat(kind, 1) for kind in zip(*seen, strict=True))


def _pulled_back(
    problem: Problem, x_t: Tensor, look: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        seen = look(x_t)
    rewards, by_x_0 = problem.score_and_gradient(seen[0])
    with problem.timed("backward"):
        (gradient,) = torch.autograd.grad(seen[0], x_t, by_x_0)
    return rewards, gradient, tuple(value.detach() for value in seen)


def zero_order(score: Callable[[Tensor], Tensor], x: Tensor, noise: Noise, samples: int, sigma: float) -> Tensor:
    """An estimate of the gradient of `score` (b n c h w -> b n) at x from 2 `samples` values per latent: Eq. 13 of the CoDeX
    thesis, sum of (f(x + sigma e) - f(x - sigma e)) e / (2 sigma) over standard normal e, divided by `samples`.

    The released code calls torchopt's antithetic estimator, which is the same formula for one scalar objective; here every latent
    has its own objective and its own noise, and all are scored together. Unbiased for the gradient of f smoothed by sigma.
    """
    n, total = x.shape[1], torch.zeros_like(x)
    for _ in range(samples):
        e = noise.draw(n, x.shape[2:])
        ahead, behind = score(torch.cat([x + sigma * e, x - sigma * e], 1)).split(n, 1)
        total += ((ahead - behind) / (2 * sigma))[..., None, None, None].to(e) * e
    return total / samples


def rms(x: Tensor) -> Tensor:
    """Root mean square of each latent: b n c h w -> b n 1 1 1."""
    return x.square().mean((2, 3, 4), keepdim=True).sqrt()


def ascent(
    gradient: Tensor, strength: float, correction: Tensor | None = None, cap: float | None = None, epsilon: float = 0.0
) -> Tensor:
    """The step along a gradient (b n c h w): strength * gradient, or with a correction, w (c - u) of classifier-free guidance,

        strength * rms(correction) / (rms(gradient) + epsilon) * gradient,

    the factor before the gradient at most `cap`. Without epsilon it is FreeDoM's and MPGD's released code's and does not depend on
    the reward's scale; with it, Eq. A.1 of the CoDeX thesis. It is taken latent by latent, where the codes take it over the batch,
    so that no sample depends on the others. A latent whose gradient is zero or not finite stays where it is.
    """
    gradient = torch.where(gradient.isfinite().all(-1).all(-1).all(-1)[..., None, None, None], gradient, 0)
    if correction is None:
        return strength * gradient
    length = rms(gradient) + epsilon
    factor = strength * rms(correction) / torch.where(length > 0, length, 1)
    return (factor if cap is None else factor.clamp(max=cap)) * gradient
