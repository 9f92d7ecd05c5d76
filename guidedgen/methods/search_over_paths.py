"""Search over paths (Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
arXiv:2501.09732, section 3.2): N chains go part of the way; then again and again each is noised K times, goes a little further than
it came back, and the N whose clean estimates are best go on.

    x at `start`;   K copies of each noised by q(x_t | x_s) by `back`, and from there denoised by `ahead` > `back`;   the best N

Cost, with p = `path_steps` a path, R rounds and D steps that are left after the last: 2p(N + NKR) + 2ND rows; NKR decodes and
reward calls, N more where D is above 0 and N above 1, and one decode of the finished image. A path has fewer steps where the grid
has fewer between its ends. Null setting: num_particles = 1, num_rounds = 0, path_steps = null, as other paths skip points.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, repeated, take, top_k
from guidedgen.methods.whole_chain import finished
from guidedgen.process import Prediction
from guidedgen.process.formulas import renoise

_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOverPaths:
    """`start`, `back` and `ahead` are shares of the chain's steps, counted from its clean end. The defaults are the numbers of a
    reimplementation for flows (KAIST-Visual-AI-Group/Flow-Inference-Time-Scaling, rbf/rewind_trainer.py and rbf/prior/flux.py): its
    times 0.12, +0.78 and -0.81, which are shares of the steps where a flow's grid is even, and 4 steps a path. `path_steps` null:
    all steps of the grid. As there, a path's estimates are those of its last network call, and the first path takes as many steps
    as the others.

    That code keeps the best copy of each chain. Here the N best of all NK copies go on, as the paper has it.
    """

    num_particles: int = 2
    num_copies: int = 5
    num_rounds: int = 4
    start: float = 0.12
    back: float = 0.78
    ahead: float = 0.81
    path_steps: int | None = 4

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", "num_copies")
        check_counts(self, "num_rounds", least=0)
        if self.path_steps is not None:
            check_counts(self, "path_steps")
        for name in ("start", "back", "ahead"):
            if not 0 < getattr(self, name) < 1:
                raise BadValue(name, getattr(self, name), "must be above 0 and below 1, a share of the chain")
        if self.start + self.back > 1 + _ROUNDING:
            raise BadValue("back", self.back, f"must be at most 1 - start, {1 - self.start:g}")
        if self.ahead <= self.back:
            raise BadValue("ahead", self.ahead, f"must be above back={self.back:g}: paths have to come nearer to the end")

    @property
    def needs(self) -> Needs:
        scored, paths = self.num_rounds > 0 or self.num_particles > 1, 1 + self.num_rounds
        if self.path_steps is None:
            return Needs(reward=scored, sampler="deterministic", chains=paths)
        return Needs(reward=scored, sampler="deterministic", steps=paths * self.path_steps)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        n, end, left = self.num_particles, len(problem.grid) - 1, self.start
        draws, scores = problem.noise.fork("paths"), None
        here = max(_index(left, end), 1)
        x_t, prediction = self._path(problem, problem.start(n), 0, here, observe)
        for k in range(self.num_rounds):
            if not left:
                break
            high = min(_index(left + self.back, end), here - 1)  # at least one point back, and so one step ahead
            x_t = repeated(x_t, self.num_copies)
            x_t = renoise(x_t, problem.grid[here], problem.grid[high], draws.draw(x_t.shape[1], problem.latent_shape))
            left = left + self.back - self.ahead
            left = left if left > _ROUNDING else 0.0
            here = max(_index(left, end), 1)
            x_t, prediction = self._path(problem, x_t, high, here, observe)
            scores = problem.score(prediction.x_0)
            observe("select", k, {"scores": scores})
            kept = top_k(scores, n)
            x_t, scores = take(x_t, kept), take(scores, kept)
        if here < end or scores is None:
            x_t = finished(problem, x_t, ignore, here)
            scores = problem.score(x_t) if n > 1 else None
        return x_t[:, 0] if scores is None else pick(x_t, best(scores))[:, 0]

    def _path(self, problem: Problem, x_t: Tensor, first: int, last: int, observe: Observer) -> tuple[Tensor, Prediction]:
        """Latents taken from one point of the grid to a later one in `path_steps` steps, and the last prediction on the way."""
        count = last - first if self.path_steps is None else self.path_steps
        points = [round(first + i * (last - first) / count) for i in range(count + 1)]
        for i, j in pairwise(points):
            if i < j:
                prediction = problem.denoise(x_t, problem.grid[i])
                x_t = problem.step(x_t, prediction, problem.grid[i], problem.grid[j])
            observe("step", i, {})
        for i in range(count, len(problem.grid) - 1 if self.path_steps is None else count):
            observe("step", i, {})  # those that the whole chain would have taken, by which progress counts
        return x_t, prediction


def _index(left: float, end: int) -> int:
    """The grid's point at which this share of the chain's steps is left."""
    return round((1 - left) * end)
