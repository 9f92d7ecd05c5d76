"""Search over paths (Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
arXiv:2501.09732, section 3.2): N chains go part of the way; then again and again each is noised K times, goes a little further than
it came back, and the N whose clean estimates are best go on.

    x at `start`;   K copies of each noised by q(x_t | x_s) by `back`, and from there denoised by `ahead` > `back`;   the best N

Cost, with p = `path_steps` a path, R rounds and D steps that are left after the last: 2p(N + NKR) + 2ND rows; NKR decodes and
reward calls, N more where D is above 0, and one decode of the finished image. A path has fewer steps where the grid has fewer
between its ends. Null setting: none, as the chain skips points of the grid.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchOverPaths:
    """`start`, `back` and `ahead` are shares of the chain's steps, counted from its clean end. The paper gives no numbers; the
    defaults are those of its reimplementation for flows (KAIST-Visual-AI-Group/Flow-Inference-Time-Scaling, rbf/rewind_trainer.py),
    whose times 0.12, +0.78 and -0.81 they are, with 4 steps a path. A path's estimates are those of its last network call, as
    there. There the first path takes as many steps as the others too.
    """

    num_particles: int = 2
    num_copies: int = 5
    num_rounds: int = 4
    start: float = 0.12
    back: float = 0.78
    ahead: float = 0.81
    path_steps: int = 4

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", "num_copies", "num_rounds", "path_steps")
        for name in ("start", "back", "ahead"):
            if not 0 < getattr(self, name) < 1:
                raise BadValue(name, getattr(self, name), "must be above 0 and below 1, a share of the chain")
        if self.start + self.back > 1:
            raise BadValue("back", self.back, f"must be at most 1 - start, {1 - self.start:g}")
        if self.ahead <= self.back:
            raise BadValue("ahead", self.ahead, f"must be above back={self.back:g}: paths have to come nearer to the end")

    @property
    def needs(self) -> Needs:
        return Needs(sampler="deterministic", steps=self.path_steps * (1 + self.num_rounds))

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        draws, left = problem.noise.fork("paths"), self.start
        x_t, prediction = self._path(problem, problem.start(self.num_particles), 1.0, left, observe)
        scores = None
        for k in range(self.num_rounds):
            if not left:
                break
            high, low = left + self.back, max(left + self.back - self.ahead, 0.0)
            x_t = repeated(x_t, self.num_copies)
            s, t = problem.grid[self._index(problem, left)], problem.grid[self._index(problem, high)]
            x_t = renoise(x_t, s, t, draws.draw(x_t.shape[1], problem.latent_shape))
            x_t, prediction = self._path(problem, x_t, high, low, observe)
            scores, left = problem.score(prediction.x_0), low
            observe("select", k, {"scores": scores})
            kept = top_k(scores, self.num_particles)
            x_t, scores = take(x_t, kept), take(scores, kept)
        if left:
            x_t = finished(problem, x_t, ignore, self._index(problem, left))
            scores = problem.score(x_t)
        assert scores is not None
        return pick(x_t, best(scores))[:, 0]

    def _path(self, problem: Problem, x_t: Tensor, high: float, low: float, observe: Observer) -> tuple[Tensor, Prediction]:
        """Latents taken from one share of the chain to another in `path_steps` steps, and the last prediction on the way."""
        first, last = self._index(problem, high), self._index(problem, low)
        points = [problem.grid[round(first + i * (last - first) / self.path_steps)] for i in range(self.path_steps + 1)]
        prediction = None
        for t, s in pairwise(points):
            if t != s:
                prediction = problem.denoise(x_t, t)
                x_t = problem.step(x_t, prediction, t, s)
            observe("step", 0, {})
        assert prediction is not None
        return x_t, prediction

    def _index(self, problem: Problem, left: float) -> int:
        """The grid's point at which this share of the chain is left."""
        return round((1 - left) * (len(problem.grid) - 1))
