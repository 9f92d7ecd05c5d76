"""CoDeX: CoDe with the reward's gradient (Goyal 2025, "Controlling Diffusion Models Through Blockwise Gradient Guidance and
Sampling", thesis, TU Delft; Algorithms 1 to 3). N streams; every B_g steps, inside a window, each stream moves along the gradient
of its look-ahead's reward; every B_s steps the streams are resampled by reward, greedily or by a softmax. Blocks count from where
the chain starts: from a reference image too, where the released code also counts the steps it skips (which is the same where B
divides them, as in the thesis).

    x_s <- step(x_t);   x_s <- x_s + scale * grad_{x_s} r(D(x0_hat(x_s)));   {x_s} <- Sample({x_s}, r(D(x0_hat)), tau)

Cost, with G gradient steps and k clusters (k = N without clustering): as in CoDe the look-ahead's noise prediction is the next
step's, so the rows are 2N(T-1) + 2 with one shared x_T, 2NT with independent ones, and 2kG more; 2kG of them backward where the
gradient goes through the UNet. Decodes and reward calls: N ceil(T/B_s) + kG, or + 2N'kG with zero-order gradients; one decode of
the finished image. N = 1 chooses nothing: no look-ahead but the gradient's. Where N follows a schedule, N is that of each step.
The released code spends 2N(T + T/B_s - 1 + G). Null setting: strength = 0 and N = 1; with strength = 0 it is CoDe.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.clustering import kmeans
from guidedgen.methods.guidance import ascent, check_counts, check_positive, predicted, reward_gradient, rms, zero_order
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, multinomial, spread_over, take
from guidedgen.process.grid import Point
from guidedgen.process.windows import check_window, within

_EPSILON = 1e-8  # of Eq. A.1, added to a gradient's length: the released code's (guidance_scaling/scaling_guidance.py:11)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codex:
    """Where thesis and released code (maurya-goyal10/CoDe_ext, BoN/src_sd/pipelines/cd_grad_final_general.py) differ, the defaults
    are the thesis':

    through: "unet" differentiates the look-ahead as Algorithm 2 has it; "decoder" holds the noise prediction constant, as the code.
    shared_start: the code starts all streams from one x_T, Algorithm 1 (line 1) from N.
    max_scale: the code caps the rescaled step's factor at 150, which the thesis does not say.

    A list of `num_particles` holds over equal segments of the chain and takes effect at the next block: the first streams are kept,
    or all are repeated. With `zero_order_samples` the gradient is estimated (Eq. 13), the noise prediction held constant. With
    `cluster` k = N // 2 (N from 4 on) gradients are taken at the means of KMeans clusters.

    Two extensions the thesis asks for (section 7), both off by default. `final_temperature`: tau falls geometrically from
    `temperature` to it over the chain. `min_particles`: a block has N' = N spread / (largest spread so far) streams, rounded up,
    from `min_particles` to N; the spread is the standard deviation of the last selection's rewards, so streams are not spent where
    they agree. One that is alone stays alone.

    `guide` selected takes the gradient after the selection, of the stream that is kept alone, as the thesis tried first (section
    7.2): 4 rows for each of the G gradients. It needs selection=greedy, and gradients where there is a selection.

    What they do on the lab (experiment=codex/lab/aesthetic samples_per_prompt=1, rows annealed and adaptive, 64 pictures): with tau
    falling from 0.5 to 0.02 the reward is 8.71, against 8.67 at 0.02; with 1 to 4 streams 8.53, against 8.65 with 4, for 174 rows
    against 306.
    """

    num_particles: int | Sequence[int] = 4
    block_size: int = 5
    gradient_block_size: int = 5
    window: Sequence[float] = (1.0, 0.0)
    strength: float = 0.2
    rescale: bool = True
    max_scale: float | None = None
    through: Literal["unet", "decoder"] = "unet"
    zero_order_samples: int = 0
    zero_order_sigma: float = 1.0
    cluster: bool = False
    selection: Literal["greedy", "multinomial"] = "greedy"
    temperature: float = 0.001
    final_temperature: float | None = None
    shared_start: bool = False
    min_particles: int | None = None
    guide: Literal["all", "selected"] = "all"

    def __post_init__(self) -> None:
        counts = self._schedule
        if not counts or not all(isinstance(n, int) and n >= 1 for n in counts):
            raise BadValue("num_particles", self.num_particles, "must be at least 1, or a list of such numbers")
        check_counts(self, "block_size", "gradient_block_size")
        check_counts(self, "zero_order_samples", least=0)
        check_window("window", self.window)
        check_positive(self, "zero_order_sigma", "temperature", "final_temperature", "max_scale")
        if self.guide == "selected" and self.selection != "greedy":
            raise BadValue("guide", self.guide, "needs selection=greedy, which keeps one stream")
        if self.guide == "selected" and self.gradient_block_size % self.block_size:
            rule = f"must be a multiple of block_size={self.block_size} with guide=selected"
            raise BadValue("gradient_block_size", self.gradient_block_size, rule)
        if self.min_particles is not None and not 1 <= self.min_particles <= min(counts):
            raise BadValue("min_particles", self.min_particles, f"must be from 1 to the fewest particles, {min(counts)}")

    @property
    def needs(self) -> Needs:
        differentiates = bool(self.strength) and not self.zero_order_samples
        return Needs(gradient=differentiates, sampler="stochastic", one_sample=self.min_particles is not None)

    @property
    def _schedule(self) -> Sequence[int]:
        return [self.num_particles] if isinstance(self.num_particles, int) else list(self.num_particles)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        if self.needs.one_sample and len(problem) > 1:
            raise ValueError("min_particles: samples differ in what they cost, so they are made one at a time")
        forks = {purpose: problem.noise.fork(purpose) for purpose in ("select", "cluster", "zero-order")}
        last, agreement = len(problem.grid) - 2, _Agreement()
        n = self._particles(0, last, agreement)
        x_t = problem.start(1 if self.shared_start else n)  # b 1 c h w may stand for n equal streams
        prediction = problem.denoise(x_t, problem.grid[0])
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            if i % self.block_size == 0:
                n = self._particles(i, last, agreement)
            prediction = prediction.map(spread_over, n)
            x_t = problem.step(spread_over(x_t, n), prediction, t, s)
            guides = self.guides(i, last + 1, problem.noise_ratio(i))
            if guides and (self.guide == "all" or n == 1):
                x_t, seen = self._guided(problem, x_t, s, forks)
                observe("guide", i, seen)
            if i < last:
                prediction = problem.denoise(x_t, s).after((prediction, t))
            if n > 1 and ((i + 1) % self.block_size == 0 or i == last):
                scores = problem.score(prediction.x_0 if i < last else x_t)
                observe("select", i, {"scores": scores})
                if self.min_particles is not None:  # else nothing waits for the device
                    agreement.see(scores)
                index = self._selected(scores, i / last if last else 1, forks["select"])
                x_t, prediction = take(x_t, index), prediction.map(take, index) if i < last else prediction
                if guides and self.guide == "selected":
                    x_t, seen = self._guided(problem, x_t, s, forks)
                    observe("guide", i, seen)
                    prediction = problem.denoise(x_t, s)
            observe("step", i, {})
        return x_t[:, 0]

    def _particles(self, i: int, last: int, agreement: _Agreement) -> int:
        """N of the block that begins at step i."""
        counts = self._schedule
        n = counts[i * len(counts) // (last + 1)]
        return n if self.min_particles is None else max(self.min_particles, min(n, math.ceil(n * agreement.share)))

    def guides(self, i: int, steps: int, noise_ratio: float) -> bool:
        due = i < steps - 1 and (i + 1) % self.gradient_block_size == 0
        return bool(self.strength) and due and within(noise_ratio, self.window)

    def _selected(self, scores: Tensor, done: float, noise: Noise) -> Tensor:
        """The streams that are kept (b k); the last selection, with all of the chain done, is greedy."""
        if self.selection == "greedy" or done == 1:
            return best(scores).unsqueeze(1)
        final = self.temperature if self.final_temperature is None else self.final_temperature
        temperature = self.temperature ** (1 - done) * final**done
        return multinomial(scores, temperature, noise.uniform(scores.shape[1]))

    def _guided(self, problem: Problem, x_s: Tensor, s: Point, forks: dict[str, Noise]) -> tuple[Tensor, dict[str, Tensor]]:
        """The streams moved along their gradients, and values to trace."""
        n, points, owner = x_s.shape[1], x_s, None
        if self.cluster and n >= 4:
            seeds = (forks["cluster"].uniform(1)[:, 0] * 2**32).long().tolist()
            points, owner = kmeans(x_s, n // 2, seeds)
        gradient, correction = self._gradient(problem, points, s, forks["zero-order"])
        move = ascent(gradient, self.strength, correction if self.rescale else None, self.max_scale, _EPSILON)
        return x_s + (move if owner is None else take(move, owner)), {"gradient": rms(gradient).flatten(1)}

    def _gradient(self, problem: Problem, x_s: Tensor, s: Point, directions: Noise) -> tuple[Tensor, Tensor]:
        """GRAD (Algorithm 2): the rewards' gradients by x_s, and the correction w (c - u) of classifier-free guidance."""

        def look(x: Tensor) -> tuple[Tensor, ...]:
            prediction, correction = predicted(problem, x, s)
            return prediction.x_0, correction

        if self.zero_order_samples:
            x_0, correction = look(x_s)
            # A perturbation of x_s by sigma is one of x_0 by sigma / alpha while the noise prediction is held constant.
            by_x_0 = zero_order(problem.score, x_0, directions, self.zero_order_samples, self.zero_order_sigma / s.alpha)
            return by_x_0 / s.alpha, correction
        if self.through == "decoder":
            x_0, correction = look(x_s)
            return problem.score_and_gradient(x_0)[1] / s.alpha, correction
        _, gradient, (_, correction) = reward_gradient(problem, x_s, look)
        return gradient, correction


class _Agreement:
    """How far apart the rewards of the streams are, as a share of the farthest they have been."""

    def __init__(self) -> None:
        self.share, self._largest = 1.0, 0.0

    def see(self, scores: Tensor) -> None:
        """The rewards (1 n, n > 1) of a selection."""
        spread = float(scores.double().std(1).max())
        if not math.isfinite(spread):
            self.share = 1.0
            return
        self._largest = max(self._largest, spread)
        self.share = spread / self._largest if self._largest > 0 else 0.0
