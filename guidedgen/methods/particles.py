"""Particles with weights: sequential Monte Carlo along a chain (Doucet & Johansen 2009, "A tutorial on particle filtering and
smoothing"), which FK steering, TDS, DAS and the Psi-Sampler share.

The law that is aimed at is p(x_0) exp(r(x_0) / kl_weight), p being the model's. On the way to it N particles x_t have potentials
phi(x_t), guesses of r / kl_weight whose last one is r(x_0) / kl_weight itself. A step proposes, with the mean and the deviation of
the sampler's transition and any push h that depends on x_t alone,

    x_s = mean + std z + std^2 h,    L <- L + log p(x_s | x_t) - log q(x_s | x_t) + phi(x_s) - phi(x_t)
    log p - log q = -std <z, h> - std^2 |h|^2 / 2

so that the weights exp(L) correct exactly for what the push and the potentials have done. Particles are resampled in proportion to
their weights, which are then equal again.

One particle of N, drawn by its weight, has that law only as N grows: the bias is of order 1 / N, and large where the potentials
that count on the way are bad guesses. What has no bias at any N is the sum of all weights times any function of the particles.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods import Observer
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, known, multinomial, take
from guidedgen.process import Prediction
from guidedgen.process.grid import Point

Resampler = Literal["multinomial", "systematic", "residual", "ssp"]
Output = Literal["reward", "weight", "draw"]  # the particle of the highest reward, of the highest weight, or drawn by weight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Particles:
    """N particles of each of b samples. Every field is b n ..., and all of them are resampled together by `take`."""

    x_t: Tensor
    log_weights: Tensor  # float64
    potential: Tensor  # float64: log of the potential that the weights hold already
    log_evidence: Tensor  # float64, the same for all N: log of the mean weights that resampling has set back
    prediction: Prediction | None = None  # of x_t
    push: Tensor | None = None  # h of the next step

    @classmethod
    def begin(cls, x_t: Tensor) -> Self:
        """Particles of equal weights that hold no potential yet."""
        zeros = torch.zeros(x_t.shape[:2], dtype=torch.float64, device=x_t.device)
        return cls(x_t=x_t, log_weights=zeros, potential=zeros, log_evidence=zeros)

    def take(self, index: Tensor) -> Self:
        """Particles index[i] of sample i (b k): of every field, so that none is left behind."""
        fields: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: _taken(value, index) for name, value in fields.items()})

    def weighted(self, potential: Tensor) -> Self:
        """The same with this potential (b n) in place of the one that the weights hold. A potential that is not a number gives a
        weight of 0, which resampling then drops.
        """
        potential = known(potential.double())
        held = torch.where(self.potential.isfinite(), self.potential, 0.0)
        return dataclasses.replace(self, log_weights=self.log_weights + potential - held, potential=potential)


_Particles = TypeVar("_Particles", bound=Particles)


def _taken(value: Any, index: Tensor) -> Any:
    if value is None:
        return None
    return value.map(take, index) if isinstance(value, Prediction) else take(value, index)


def propose(problem: Problem, particles: _Particles, t: Point, s: Point) -> _Particles:
    """The particles at s, by the sampler's transition and their push, with the weights that belong to them."""
    assert particles.prediction is not None
    mean, std = problem.scheduler.transition(particles.x_t, particles.prediction, t, s)
    noise = problem.noise.draw(mean.shape[1], problem.latent_shape)
    x_s, weights, h = mean + std * noise, particles.log_weights, particles.push
    if h is not None:
        x_s = x_s + std**2 * h
        weights = weights - (std * (noise * h).double() + std**2 / 2 * h.double().square()).flatten(2).sum(2)
    return dataclasses.replace(particles, x_t=x_s, log_weights=weights, prediction=None, push=None)


def normalised(log_weights: Tensor) -> Tensor:
    """Weights (b n, summing to 1 over n); equal ones where all are 0."""
    log_weights = known(log_weights)
    dead = (log_weights == -torch.inf).all(1, keepdim=True)
    return torch.where(dead, 0.0, log_weights).softmax(1)


def effective_size(log_weights: Tensor) -> Tensor:
    """Effective sample size (b), from 1 to n: 1 / sum of the squared weights."""
    return 1 / normalised(log_weights).square().sum(1)


def mean_weight(log_weights: Tensor) -> Tensor:
    """Logarithm (b 1) of the mean of the weights (b n)."""
    return torch.logsumexp(log_weights, 1, keepdim=True) - math.log(log_weights.shape[1])


def resample(particles: _Particles, resampler: Resampler, threshold: float | None, noise: Noise) -> _Particles:
    """The particles of those samples resampled whose effective size is below `threshold` n, or of all of them without one."""
    n = particles.x_t.shape[1]
    index = resampled(normalised(particles.log_weights), resampler, noise.uniform(n))
    keep = torch.arange(n, device=index.device).expand_as(index)
    if threshold is None:
        due = torch.ones(len(index), 1, dtype=torch.bool, device=index.device)
    else:
        due = (effective_size(particles.log_weights) < threshold * n).unsqueeze(1)
    chosen, evidence = particles.take(torch.where(due, index, keep)), particles.log_evidence
    return dataclasses.replace(
        chosen, log_weights=torch.where(due, 0.0, chosen.log_weights),
        log_evidence=torch.where(due, evidence + mean_weight(particles.log_weights), evidence),
    )  # fmt: skip


def resampled(weights: Tensor, resampler: Resampler, uniform: Tensor) -> Tensor:
    """Indices (b n) of particles drawn in proportion to their weights (b n, summing to 1), from numbers in [0, 1) (b n, of which
    some use only the first). Particle k is drawn n weights[k] times on average.

    multinomial: n independent draws. systematic: one draw, n evenly spaced points. residual: the whole parts of n weights[k] for
    certain, the rest by independent draws (Liu & Chen 1998). ssp: Srinivasan's sampling (Gerber, Chopin & Whiteley 2019,
    arXiv:1812.02849, section 5): n weights[k], rounded up or down, and consistent, which systematic draws are not known to be.
    """
    n = weights.shape[1]
    points = torch.arange(n, device=weights.device)
    if resampler == "multinomial":
        return multinomial(weights.log(), 1.0, uniform)
    if resampler == "systematic":
        return multinomial(weights.log(), 1.0, (points + uniform[:, :1]) / n)
    if resampler == "residual":
        whole = _whole(n * weights)
        certain = torch.searchsorted(whole.cumsum(1), points.expand_as(weights).contiguous(), right=True).clamp(max=n - 1)
        rest = multinomial((n * weights - whole).clamp(min=0).log(), 1.0, uniform)
        return torch.where(points < whole.sum(1, keepdim=True), certain, rest)
    counts = _srinivasan(n * weights, uniform)
    return torch.searchsorted(counts.cumsum(1), points.expand_as(weights).contiguous(), right=True).clamp(max=n - 1)


def _whole(expected: Tensor) -> Tensor:
    """The whole parts of expected counts, those that are whole but for rounding included."""
    return (expected + 1e-9).floor()


def _srinivasan(expected: Tensor, uniform: Tensor) -> Tensor:
    """Counts (b n) of these expectations, which sum to n: pairs of particles settle their fractions, one pair after the other.

    Particle `a` waits with a fraction; each next particle `c` meets it, and a draw that leaves both expectations as they are makes
    one of the two whole: either one gives all of its fraction to the other, or takes what the other lacks to 1. The one that is
    not whole waits on.
    """
    b, n = expected.shape
    rows, counts = torch.arange(b, device=expected.device), _whole(expected)
    fraction = (expected - counts).clamp(0, 1)
    a = torch.zeros(b, dtype=torch.long, device=expected.device)
    for c in range(1, n):
        first, second = fraction[rows, a], fraction[:, c]
        total = first + second
        over = total > 1  # one of them is rounded up, else one of them down
        # Of a total below 1 the one that wins holds it all; above 1 the one that wins is whole and the other holds the rest.
        chance = torch.where(over, (1 - second) / (2 - total).clamp(min=1e-300), first / total.clamp(min=1e-300))
        a_wins = uniform[:, c] < chance
        winner, loser = torch.where(a_wins, a, c), torch.where(a_wins, c, a)
        counts[rows, winner] += over.to(counts)
        fraction[rows, winner] = torch.where(over, 0.0, total)
        fraction[rows, loser] = torch.where(over, total - 1, 0.0)
        a = torch.where(over, loser, winner)
    counts[rows, a] += (n - counts.sum(1)).clamp(0, 1)  # what is left of the last fraction is 0 or 1 but for rounding
    return counts


def output(particles: Particles, rewards: Tensor, rule: Output, noise: Noise, observe: Observer) -> Tensor:
    """x_0 of the particle that is returned of each sample: b c h w. Reports the effective sample size at the end, and the estimate
    of log E[exp(r(x_0) / kl_weight)] over the model's pictures, whose exponential has no bias, whatever N (Del Moral 2004, Theorem
    7.4.2).
    """
    evidence = particles.log_evidence[:, 0] + mean_weight(particles.log_weights)[:, 0]
    observe("particles", 0, {"effective_size": effective_size(particles.log_weights), "log_evidence": evidence})
    # Where every particle was without a reward at some look-ahead all weights are 0: what counts is the reward at the end.
    dead = (particles.log_weights == -torch.inf).all(1, keepdim=True)
    weights = torch.where(dead, rewards.double(), particles.log_weights)
    if rule == "draw":
        index = multinomial(weights, 1.0, noise.uniform(1))
    else:
        index = best(rewards if rule == "reward" else weights).unsqueeze(1)
    return take(particles.x_t, index)[:, 0]


class _Weighted(Protocol):
    """The options that these methods share."""

    @property
    def num_particles(self) -> int: ...

    @property
    def kl_weight(self) -> float: ...

    @property
    def ess_threshold(self) -> float | None: ...


def check_particles(method: _Weighted) -> None:
    """Raises BadValue where an option that these methods share is out of range."""
    check_counts(method, "num_particles")
    check_positive(method, "kl_weight")
    if method.ess_threshold is not None and not 0 <= method.ess_threshold <= 1:
        raise BadValue("ess_threshold", method.ess_threshold, "must be from 0 to 1, or null for resampling every time")
