"""Twisted sequential Monte Carlo, the loop that TDS, DAS and the Psi-Sampler share: the proposals follow the gradient of the
look-ahead's reward, and the weights correct for it (see guidedgen.methods.particles).

    phi(x_t) = lambda_t r(D(x0_hat(x_t))) / kl_weight,    h = lambda_s grad_{x_t} r(D(x0_hat(x_t))) / kl_weight

where lambda rises to 1, which it is at x_0. A last step that ends clean draws nothing, so that no gradient is taken there, and its
look-ahead is what it steps to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from guidedgen.methods import Observer
from guidedgen.methods.guidance import ascent, reward_gradient, rms
from guidedgen.methods.particles import Output, Particles, Resampler, output, propose, resample
from guidedgen.methods.problem import Problem
from guidedgen.process import Prediction
from guidedgen.process.grid import Point

# Step i, log-weights without the potential that they hold, and r / kl_weight (b n) -> lambda_t and lambda_s, b 1 or numbers.
Tempering = Callable[[int, Tensor, Tensor], tuple[Tensor | float, Tensor | float]]


def untempered(i: int, held: Tensor, log_rewards: Tensor) -> tuple[float, float]:
    """lambda = 1 throughout."""
    del i, held, log_rewards
    return 1.0, 1.0


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of particles at a point: rewards b n, their gradients by x_t, b n c h w, and the network's prediction."""

    rewards: Tensor
    gradient: Tensor
    prediction: Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwistedSmc:
    """`max_gradient` is the largest root mean square of a reward's gradient: longer ones are shortened to it."""

    kl_weight: float
    resampler: Resampler
    ess_threshold: float | None
    output: Output
    max_gradient: float | None = None

    def look(self, problem: Problem, x_t: Tensor, t: Point) -> Look:
        """The particles' rewards and gradients; a gradient that is not finite is 0."""

        def seen(x: Tensor) -> tuple[Tensor, ...]:
            prediction = problem.denoise(x, t)
            return prediction.x_0, prediction.eps

        rewards, gradient, (x_0, eps) = reward_gradient(problem, x_t, seen)
        gradient = ascent(gradient, 1.0)
        if self.max_gradient is not None:
            gradient = gradient * (self.max_gradient / rms(gradient).clamp(min=1e-30)).clamp(max=1)
        return Look(rewards, gradient, Prediction(x_0, eps))

    def __call__(
        self, problem: Problem, particles: Particles, tempering: Tempering, observe: Observer, first: Look | None = None
    ) -> Tensor:
        """x_0, b c h w, from particles at the first point; `first` is what is known of them, if it is."""
        draws, past, last = problem.noise.fork("resample"), None, len(problem.grid) - 2
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            if s.sigma:
                look = first if i == 0 and first is not None else self.look(problem, particles.x_t, t)
                observe("select", i, {"scores": look.rewards})
                log_rewards = look.rewards.double() / self.kl_weight
                now, after = tempering(i, particles.log_weights - particles.potential, log_rewards)
                push = (_spread(after, look.gradient) / self.kl_weight * look.gradient).to(look.gradient)
                prediction = look.prediction.after(past)
                particles = dataclasses.replace(particles.weighted(now * log_rewards), prediction=prediction, push=push)
                particles = resample(particles, self.resampler, self.ess_threshold, draws)
            else:
                particles = dataclasses.replace(particles, prediction=problem.denoise(particles.x_t, t).after(past))
            past = None if particles.prediction is None else (particles.prediction, t)
            particles = propose(problem, particles, t, s)
            observe("step", i, {})
        rewards = problem.score(particles.x_t)
        observe("select", last, {"scores": rewards})
        return output(particles.weighted(rewards.double() / self.kl_weight), rewards, self.output, draws, observe)


def _spread(value: Tensor | float, x: Tensor) -> Tensor | float:
    """A number per sample (b 1) as b 1 1 1 1."""
    return value[..., None, None, None].to(x) if isinstance(value, Tensor) else value
