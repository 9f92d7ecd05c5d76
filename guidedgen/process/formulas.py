"""The algebra of x_t = alpha x_0 + sigma eps and v = alpha eps - sigma x_0, with alpha^2 + sigma^2 = 1, and the steps of DDIM and
DDPM.

All take tensors of any one shape and Points, and are differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.process import Prediction
from guidedgen.process.grid import Point


def add_noise(x_0: Tensor, eps: Tensor, t: Point) -> Tensor:
    """x_t."""
    return t.alpha * x_0 + t.sigma * eps


def x0_from_eps(x_t: Tensor, eps: Tensor, t: Point) -> Tensor:
    """x_0, or its Tweedie estimate E[x_0 | x_t] where eps is a prediction."""
    return (x_t - t.sigma * eps) / t.alpha


def eps_from_x0(x_t: Tensor, x_0: Tensor, t: Point) -> Tensor:
    """eps; t.sigma must not be 0."""
    return (x_t - t.alpha * x_0) / t.sigma


def v_from_eps(x_t: Tensor, eps: Tensor, t: Point) -> Tensor:
    """v (Salimans & Ho 2022, arXiv:2202.00512, appendix D)."""
    return (eps - t.sigma * x_t) / t.alpha


def v_from(prediction: Prediction, t: Point) -> Tensor:
    """v of what is predicted, at any point."""
    return t.alpha * prediction.eps - t.sigma * prediction.x_0


def eps_from_v(x_t: Tensor, v: Tensor, t: Point) -> Tensor:
    """eps from the velocity."""
    return t.alpha * v + t.sigma * x_t


def x0_from_v(x_t: Tensor, v: Tensor, t: Point) -> Tensor:
    """x_0 from the velocity."""
    return t.alpha * x_t - t.sigma * v


def from_eps(x_t: Tensor, eps: Tensor, t: Point) -> Prediction:
    """The prediction of a network that predicts eps; t.alpha must not be 0."""
    return Prediction(x0_from_eps(x_t, eps, t), eps)


def from_x0(x_t: Tensor, x_0: Tensor, t: Point) -> Prediction:
    """The prediction of a network that predicts x_0; t.sigma must not be 0."""
    return Prediction(x_0, eps_from_x0(x_t, x_0, t))


def from_v(x_t: Tensor, v: Tensor, t: Point) -> Prediction:
    """The prediction of a network that predicts v, at any point."""
    return Prediction(x0_from_v(x_t, v, t), eps_from_v(x_t, v, t))


def from_velocity(x_t: Tensor, velocity: Tensor, t: Point) -> Prediction:
    """The prediction of a rectified flow's network, which predicts eps - x_0, at any point."""
    length = t.alpha + t.sigma
    u, own = t.sigma / length, x_t / length  # x = (1 - u) x_0 + u eps
    return Prediction(own - u * velocity, own + (1 - u) * velocity)


def classifier_free(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """u + w (c - u) (Ho & Salimans 2022, in SD's convention: w = 1 is no guidance)."""
    return uncond + guidance_scale * (cond - uncond)


def guided(uncond: Prediction, cond: Prediction, guidance_scale: float) -> Prediction:
    """The same of predictions of one x_t, of which x_0 and eps are linear functions."""
    return Prediction(classifier_free(uncond.x_0, cond.x_0, guidance_scale), classifier_free(uncond.eps, cond.eps, guidance_scale))


def joined(predictions: Sequence[Prediction], dim: int) -> Prediction:
    """Predictions at one point as one, along an axis; what was predicted before them is left out."""
    return Prediction(torch.cat([each.x_0 for each in predictions], dim), torch.cat([each.eps for each in predictions], dim))


def posterior_variance(t: Point, s: Point) -> float:
    """Variance of q(x_s | x_t, x_0) (Ho et al. 2020, Eq. 7): (sigma_s / sigma_t)^2 (1 - (alpha_t / alpha_s)^2)."""
    return (s.sigma / t.sigma) ** 2 * (1 - (t.alpha / s.alpha) ** 2)


def renoise(x_s: Tensor, s: Point, t: Point, noise: Tensor) -> Tensor:
    """x_t drawn from q(x_t | x_s), back from s to the noisier t."""
    keep = t.alpha / s.alpha
    return keep * x_s + math.sqrt(1 - keep**2) * noise


def ddim_transition(prediction: Prediction, t: Point, s: Point, *, eta: float = 0.0) -> tuple[Tensor, float]:
    """Mean and standard deviation of x_s (Song et al. 2021, arXiv:2010.02502, Eq. 12), with the noise's share eta of the posterior
    deviation (Eq. 16).
    """
    std = eta * math.sqrt(posterior_variance(t, s)) if eta else 0.0
    return s.alpha * prediction.x_0 + math.sqrt(max(s.sigma**2 - std**2, 0.0)) * prediction.eps, std


def dpm_solver_step(x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> Tensor:
    """x_s by DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, Algorithm 2), which extrapolates x_0 from the prediction and the
    one before it. Without that, and where the step ends clean, it is of first order, which is DDIM's.
    """
    keep = s.sigma / t.sigma
    x_0 = prediction.x_0
    if prediction.before is not None and s.sigma and t.alpha:
        x_0_before, before = prediction.before
        if before.alpha:
            step, last = _log_snr(s) - _log_snr(t), _log_snr(t) - _log_snr(before)
            x_0 = x_0 + step / (2 * last) * (x_0 - x_0_before)
    return keep * x_t + (s.alpha - t.alpha * keep) * x_0


def _log_snr(t: Point) -> float:
    """lambda, half the logarithm of the signal-to-noise ratio."""
    return math.log(t.alpha / t.sigma)


def flow_sde_transition(prediction: Prediction, t: Point, s: Point, a: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of a step of the flow's SDE, dx = (v + g^2 eps / (2 u)) du + g dw with g^2 = a^2 u / (1 - u), by
    Euler and Maruyama (Flow-GRPO, Liu et al. 2025, arXiv:2505.05470, Eq. 9). At u = 1 the u of
    the step's end stands in the denominator, as in the released code (yifan123/flow_grpo, sd3_sde_with_logprob.py).
    A step that ends clean draws nothing.
    """
    u, after = (point.sigma / (point.alpha + point.sigma) for point in (t, s))
    length = math.hypot(1 - after, after)
    x = (1 - u) * prediction.x_0 + u * prediction.eps
    mean = x + (after - u) * (prediction.eps - prediction.x_0)
    if not after:
        return mean / length, 0.0
    g2 = a**2 * u / (1 - (u if u < 1 else after))
    return (mean + (after - u) * g2 / (2 * u) * prediction.eps) / length, math.sqrt(g2 * (u - after)) / length


def consistency_transition(x_t: Tensor, prediction: Prediction, t: Point, s: Point, scaling: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of a step of a latent consistency model (Luo et al. 2023, arXiv:2310.04378): its clean latent,
    noised anew to s. The clean latent is c_out x_0 + c_skip x_t, which is x_t at t = 0; in these weights data have a standard
    deviation of 0.5 and times are multiplied by `scaling`.
    """
    deviation, time = 0.5, scaling * t.t
    skip, out = deviation**2 / (time**2 + deviation**2), time / math.hypot(time, deviation)
    return s.alpha * (out * prediction.x_0 + skip * x_t), s.sigma


def ddim_step(prediction: Prediction, t: Point, s: Point) -> Tensor:
    """x_s without noise."""
    return ddim_transition(prediction, t, s)[0]


def ddpm_transition(x_t: Tensor, prediction: Prediction, t: Point, s: Point, *, large: bool = False) -> tuple[Tensor, float]:
    """Mean and standard deviation of q(x_s | x_t, x_0 = its estimate) (Ho et al. 2020, arXiv:2006.11239, Eqs. 6 and 7). With
    `large` the variance is that of q(x_t | x_s), beta_t, the other choice of their section 3.2, but for a step that ends clean,
    which draws nothing.
    """
    keep = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2  # weight of x_t
    renew = s.alpha * (1 - (t.alpha / s.alpha) ** 2) / t.sigma**2  # weight of x_0
    variance = 1 - (t.alpha / s.alpha) ** 2 if large and s.sigma else posterior_variance(t, s)
    return renew * prediction.x_0 + keep * x_t, math.sqrt(variance)
