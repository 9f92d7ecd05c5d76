"""How near samplers come to the law that they aim at, p(x_0) exp(r(x_0) / kl_weight), where that law is known.

A denoiser that is exact (guidedgen.models.gaussian), and rewards under which the tilted law has a closed form:

normal    x_0 ~ N(0, 1), r = -(x - 2)^2 / (2 0.5^2): by DDIM-100 with eta = 1 the output is normal with a deviation that is computed
          step by step, and so the tilted law is normal too
mixture   x_0 is one of eight normal distributions on a circle, r is linear: the tilted law is the same mixture with other weights
          and moved means
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from guidedgen.basics.noise import Noise, generator
from guidedgen.basics.tasks import Task
from guidedgen.methods import Method
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.code import Code
from guidedgen.methods.das import Das
from guidedgen.methods.fk_steering import FkSteering
from guidedgen.methods.problem import Problem
from guidedgen.methods.psi_sampler import PsiSampler
from guidedgen.methods.svdd import Svdd
from guidedgen.methods.tds import Tds
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import NoiseSchedule
from guidedgen.process.schedulers import Ddim

WIDTH, CENTRE = 0.5, 2.0  # of the normal law's reward
RADIUS, SPREAD, SLOPE = 2.0, 0.3, 0.75  # of the mixture, and of its reward along the first axis
_STEPS = 100
_SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")  # Stable Diffusion's


class PooledNoise(Noise):
    """The noise of many samples from one generator, for statistics: much faster than a stream for each of them, but a sample cannot
    be made again by itself.
    """

    def __init__(self, samples: int, key: str) -> None:
        super().__init__([], dtype=torch.float64)
        self._samples, self._key = samples, key
        self._generator = generator(key)

    def draw(self, particles: int, shape: Sequence[int]) -> Tensor:
        return torch.randn(self._samples, particles, *shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, particles: int) -> Tensor:
        return torch.rand(self._samples, particles, generator=self._generator, dtype=torch.float64)

    def fork(self, purpose: str) -> PooledNoise:
        return PooledNoise(self._samples, f"{self._key}/{purpose}")


def normal(samples: int, seed: int = 0, num_steps: int = _STEPS) -> Problem:
    """The normal law's problem, in one dimension."""
    prior = GaussianMixture(means=torch.zeros(1, 1, 1, 1, dtype=torch.float64), std=1.0, weights=torch.ones(1, dtype=torch.float64))
    return _problem(prior, samples, seed, num_steps, lambda x: -(x[:, 0, 0, 0] - CENTRE).square() / (2 * WIDTH**2))


def mixture(samples: int, seed: int = 0) -> Problem:
    """The mixture's problem, in two dimensions."""
    means = _circle()
    prior = GaussianMixture(means=means.view(-1, 2, 1, 1), std=SPREAD, weights=torch.full((len(means),), 1 / len(means)).double())
    return _problem(prior, samples, seed, _STEPS, lambda x: SLOPE * x[:, 0, 0, 0])


def _circle() -> Tensor:
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)


def _problem(prior: GaussianMixture, samples: int, seed: int, num_steps: int, reward: Any) -> Problem:
    scheduler = Ddim(num_steps=num_steps, eta=1.0)
    grid = scheduler.grid(_SCHEDULE)
    return Problem(
        tasks=[Task(id=str(i), prompt="") for i in range(samples)], denoise=GaussianDenoiser(cond=prior, uncond=prior),
        scheduler=scheduler, grid=grid, schedule=_SCHEDULE, num_steps=num_steps, noise=PooledNoise(samples, str(seed)),
        latent_shape=tuple(prior.means.shape[1:]), decode=lambda x: x, reward=lambda x, _: reward(x), batch_size=2**62,  # type: ignore[arg-type]
    )  # fmt: skip


def normal_target(num_steps: int = _STEPS) -> tuple[float, float, float]:
    """Mean and deviation of the tilted normal law, and the logarithm of E[exp(r)], over the sampler's own output: every step is
    x_s = a x_t + std z, so that its variance follows from theirs.
    """
    problem, variance, one = normal(1, num_steps=num_steps), 1.0, torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    for t, s in pairwise(problem.grid):
        mean, std = problem.scheduler.transition(one, problem.denoise(one, t), t, s)
        variance = float(mean) ** 2 * variance + std**2
    precision = 1 / variance + 1 / WIDTH**2
    log_evidence = 0.5 * math.log(WIDTH**2 / (WIDTH**2 + variance)) - CENTRE**2 / (2 * (WIDTH**2 + variance))
    return CENTRE / WIDTH**2 / precision, precision**-0.5, log_evidence


def mixture_target() -> tuple[Tensor, Tensor]:
    """Weights (8) and means (8 2) of the tilted mixture; the deviation stays."""
    means, slope = _circle(), torch.tensor([SLOPE, 0.0], dtype=torch.float64)
    return (means @ slope).softmax(0), means + SPREAD**2 * slope


def samplers(n: int) -> Mapping[str, Method]:
    """What is compared, with N particles each. All aim at the law with kl_weight = 1 but those that the table marks."""
    some: dict[str, Any] = {"num_particles": n, "kl_weight": 1.0, "output": "draw"}
    steered = {**some, "interval": 1, "resampler": "ssp", "ess_threshold": 0.5}
    return {
        "fk_steering, difference": FkSteering(potential="difference", **steered),
        "fk_steering, max": FkSteering(potential="max", **{**steered, "interval": 20}),
        "fk_steering, sum": FkSteering(potential="sum", **{**steered, "interval": 20}),
        "tds": Tds(ess_threshold=0.5, **some),
        "das": Das(**some),
        "psi_sampler": PsiSampler(num_chains=n, burn_in=10, num_mcmc_steps=1, max_gradient=None, **some),
        "svdd, drawn": Svdd(num_candidates=n, kl_weight=1.0),
        "das, highest reward": Das(**{**some, "output": "reward"}),
        "svdd, highest reward": Svdd(num_candidates=n),
        "code": Code(num_particles=n),
        "best_of_n": BestOfN(num_particles=n),
    }  # fmt: skip


# Those that are known to reach the law as N grows.
EXACT = ("fk_steering, difference", "fk_steering, max", "fk_steering, sum", "tds", "das", "psi_sampler")


@dataclasses.dataclass(frozen=True)
class Row:
    """Moments of a sampler's output, and of it weighted by the evidence of its particles, which has no bias at any N."""

    name: str
    particles: int
    runs: int
    mean: float
    deviation: float
    weighted_mean: float | None = None
    evidence: float | None = None  # mean of its estimate, over the true one
    evidence_error: float | None = None  # standard error of that

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.deviation / math.sqrt(self.runs)


def drawn(method: Method, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Outputs (b c h w) and log-evidences (b), where the method reports any."""
    seen: list[Tensor] = []

    def observe(event: str, _: int, values: Mapping[str, Any]) -> None:
        if event == "particles":
            seen.append(values["log_evidence"])

    with torch.no_grad():
        x_0 = method(problem, observe)
    return x_0, seen[0] if seen else None


def measured(name: str, method: Method, particles: int, runs: int, seed: int = 0) -> Row:
    """A row of the normal law's table."""
    parts = [drawn(method, normal(count, seed + k)) for k, count in enumerate(_chunks(runs, particles))]
    x, found = torch.cat([x_0.flatten() for x_0, _ in parts]), [evidence for _, evidence in parts if evidence is not None]
    log_evidence = torch.cat(found) if found else None
    plain = Row(name, particles, runs, float(x.mean()), float(x.std()))
    if log_evidence is None or name.startswith("psi"):  # the chains' own law has an evidence that is not known
        return plain
    ratio = (log_evidence - normal_target()[2]).exp()
    return dataclasses.replace(
        plain, weighted_mean=float((ratio * x).mean() / ratio.mean()), evidence=float(ratio.mean()),
        evidence_error=float(ratio.std() / math.sqrt(runs)),
    )  # fmt: skip


def _chunks(runs: int, particles: int) -> list[int]:
    """Runs in parts of about 20,000 particles, which fit a processor's cache."""
    size = max(1, 20_000 // particles)
    return [min(size, runs - start) for start in range(0, runs, size)]


def runs_of(particles: int, most: int) -> int:
    """How many runs are made with so many particles each: fewer of the larger ones."""
    return max(200, min(most, 20 * most // particles))


def normal_table(counts: Sequence[int], most: int = 20_000) -> str:
    """The normal law's table in Markdown."""
    mean, deviation, _ = normal_target()
    lines = [
        "| method | N | mean | sd | standard error | target mean | target sd | mean weighted by evidence | evidence / true |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [measured("base", Base(), 1, most)]
    rows += [measured(name, method, n, runs_of(n, most)) for n in counts for name, method in samplers(n).items()]
    for row in rows:
        more = "" if row.weighted_mean is None else f"{row.weighted_mean:.3f}"
        evidence = "" if row.evidence is None else f"{row.evidence:.3f} ± {row.evidence_error:.3f}"
        target = (f"{mean:.3f}", f"{deviation:.3f}") if row.name in EXACT or row.name == "svdd, drawn" else ("", "")
        lines.append(
            f"| {row.name} | {row.particles} | {row.mean:.3f} | {row.deviation:.3f} | {row.error:.3f} | {target[0]} | {target[1]} "
            f"| {more} | {evidence} |"
        )
    return "\n".join(lines)


def shares(x_0: Tensor) -> Tensor:
    """Which part of the outputs (b 2 1 1) lies nearest to each of the mixture's means (8)."""
    nearest = torch.cdist(x_0.flatten(1), mixture_target()[1]).argmin(1)
    return torch.bincount(nearest, minlength=8).double() / len(x_0)


def mixture_outputs(particles: int, runs: int, seed: int = 0) -> Mapping[str, Tensor]:
    """Outputs (b 2) on the mixture by sampler, and draws from the law itself as "target"."""
    generator = torch.Generator().manual_seed(seed)
    weights, means = mixture_target()
    which = torch.multinomial(weights, runs, replacement=True, generator=generator)
    found = {"target": means[which] + SPREAD * torch.randn(runs, 2, generator=generator, dtype=torch.float64)}
    for name, method in {"base": Base(), **samplers(particles)}.items():
        parts = [drawn(method, mixture(count, seed + k))[0] for k, count in enumerate(_chunks(runs, particles))]
        found[name] = torch.cat(parts).flatten(1)
    return found


def mixture_table(particles: int, runs: int = 5_000) -> str:
    """The mixture's table in Markdown: how far the shares of the eight parts are from the target's, and the mean reward."""
    target, means = mixture_target()
    columns = ("method", "N", "distance of the parts' shares (total variation)", "mean reward", "target mean reward")
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|---|---|"]
    wanted = float(SLOPE * (target @ means)[0])
    for name, x in mixture_outputs(particles, runs).items():
        distance = float((shares(x) - target).abs().sum() / 2)
        n = "" if name == "target" else 1 if name == "base" else particles
        lines.append(f"| {name} | {n} | {distance:.3f} | {float(SLOPE * x[:, 0].mean()):.3f} | {wanted:.3f} |")
    return "\n".join(lines)
