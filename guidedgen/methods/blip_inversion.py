"""Inversion of a vision-language model (Liu et al. 2024, "Referee Can Play: An Alternative Approach to Conditional Generation via
Model Inversion", arXiv:2402.16305): a clean latent z is optimised until a referee finds that its picture shows the prompt, while
score distillation keeps it a picture. Algorithm 1, for i = 1 .. I:

    g_s = w2(i) 2 (eps_cfg(z_t) - eps) / (h w);   g_r = -w1 |g_s| grad_z mean r(A(D(z))) / |grad_z mean r(A(D(z)))|
    z = optimiser(z, g_r);   z = z - lr g_s;   z = z + noise;   ema = decay ema + (1 - decay) z
    z = ema   where i is ema_start, ema_start + ema_restart, ...

The referee is the reward, of any kind that has a gradient, seen through `augmentations`. The last `distill_iterations` are without
it. How noisy z_t is at an iteration, t, is drawn once for all samples, whatever their seeds: a batch is one call of the network,
and a sample does not depend on what it is made with. `distill_seed` draws other t. The referee reads the task's prompt, and the
diffusion model `distill_prompt`, which has {prompt} for it: in the released code "A photo exactly contains {prompt}".

Cost, with I iterations, J steps of the referee and v copies: 2I rows forward (none for mode=referee_only, I where distill_scale
is 1), none backward; J decodes and max(v, 1) J reward calls, and one decode of each picture that is kept: the last, and the best
where J > 0. The released code decodes three times, and calls the referee twice, an iteration. Null settings: num_iterations = 0,
the decoded noise; weight = 0, distillation alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from guidedgen.basics.augment import Augmentations
from guidedgen.basics.errors import BadValue, check_amounts
from guidedgen.basics.noise import Noise, stream
from guidedgen.basics.templates import check_template
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.sheets import Sheets
from guidedgen.methods.views import RandomCopies
from guidedgen.methods.whole_chain import Best
from guidedgen.process.formulas import add_noise
from guidedgen.process.grid import FlowSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlipInversion:
    """Where paper and released code (Pepper-lll/VLMinv, generate.py and blip2_sds.py) differ, the default is:

    optimizer: of the referee's step, sgd, as in the code. The paper says Adam, whose step does not depend on the gradient's norm:
        the balance w1, which its Table 6 finds to matter, would do nothing.
    distill_lr: of the distillation's step, along the cosine as the referee's (the paper), or constant, the first (the code).
    warmup: iterations over which the referee's learning rate rises from 0, before its cosine: none in the paper, 10 in the code.
    distill_scale: w of u + w (c - u), as in the code; that of the paper's section 2, c + w (c - u), is one less.
    noise: standard deviation of what is added to z, once (the paper's N(0, 0.04)). `noise_twice` adds it to the referee's gradient
        too, as the code does (blip2_sds.py), where it is multiplied by the learning rate. In the last iterations it is
        `last_noise`, the code's 0.01, of which the paper says nothing.
    ema_initial: where the average begins: at the noise that z begins at (Algorithm 1), or at the first z, after an iteration, as in
        the code, whose first update copies (utils.py:37). ema_decay^i of the way between the two is left after i iterations, 13 %
        at the first restart.

    `mode` referee_only takes the step of the referee alone, in the last iterations too, of w1 times the norm of a distillation
    gradient of unit elements; distill_only is distillation alone: the rows of Table 3. `referee_steps` is how often the referee
    moves z in an iteration, each time by copies of its own: the frequency f of Table 6, which the text does not define. `lr` and
    `distill_weight` are [first, last], along a cosine. `distill_iterations` below 1 is a share of all: 0.0625 is 10 of 160.
    `distill_window` are the least and the greatest t, as shares of the trained steps. `keep` says which picture is the sample's:
    the last, or the best, whose copies the referee has given most; the other is kept as an extra image. After a restart the code's
    average shares its memory with z and moves with it; ours does not.

    `show` are iterations, counted from 1, of which sheets are stored: `evolution`, the pictures after them (Figures 10 and 11);
    `copies`, what the referee saw in each, the best first (Figure 7); `gradients`, the picture before it, and below that those of
    the referee's loss and of the distillation, the first three of four channels around gray (Figure 12). An iteration that is shown
    costs 2 decodes and a reward call of every copy more.
    """

    augmentations: Augmentations
    mode: Literal["full", "referee_only", "distill_only"] = "full"
    num_iterations: int = 160
    distill_iterations: float = 0.0625
    weight: float = 2.0
    referee_steps: int = 1
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: Sequence[float] = (1.0, 0.5)
    warmup: int = 0
    distill_weight: Sequence[float] = (800.0, 400.0)
    distill_lr: Literal["scheduled", "constant"] = "scheduled"
    distill_scale: float = 30.0
    distill_window: Sequence[float] = (0.05, 0.95)
    distill_seed: int = 0
    distill_prompt: str = "{prompt}"
    noise: float = 0.2
    noise_twice: bool = False
    last_noise: float = 0.01
    ema_decay: float = 0.95
    ema_initial: Literal["noise", "first"] = "noise"
    ema_start: int | None = 40
    ema_restart: int = 60
    keep: Literal["last", "best"] = "last"
    show: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_counts(self, "num_iterations", "warmup", least=0)
        check_counts(self, "ema_restart", "referee_steps")
        share = self.distill_iterations < 1
        if not 0 <= self.distill_iterations <= max(self.num_iterations, 1) or not (
            share or self.distill_iterations == self._distilled
        ):
            rule = "must be a whole number from 0 to num_iterations, or below 1 for a share of them"
            raise BadValue("distill_iterations", self.distill_iterations, rule)
        for name in ("lr", "distill_weight"):
            ends = getattr(self, name)
            if len(ends) != 2 or not all(0 <= end < math.inf for end in ends):
                raise BadValue(name, list(ends), "must be [first, last], at least 0 and finite")
        check_template("distill_prompt", self.distill_prompt)
        check_amounts(self, "weight", "distill_scale", "noise", "last_noise")
        if self.mode == "referee_only" and not self.weight:
            raise BadValue("weight", self.weight, "must be above 0 in mode=referee_only, which has nothing else")
        if self.ema_start is not None and self.ema_start < 1:
            raise BadValue("ema_start", self.ema_start, "must be at least 1, or null for no restart")
        window = self.distill_window
        if len(window) != 2 or not 0 <= window[0] < window[1] <= 1:
            raise BadValue("distill_window", list(window), "must be [least, greatest] with 0 <= least < greatest <= 1")
        if not 0 <= self.ema_decay <= 1:
            raise BadValue("ema_decay", self.ema_decay, "must be from 0 to 1")
        if wrong := [i for i in self.show if not 1 <= i <= self.num_iterations]:
            raise BadValue("show", list(self.show), f"has {wrong[0]}, and iterations are 1 to {self.num_iterations}")
        if self.keep == "best" and not self._refereed:
            raise BadValue("keep", self.keep, "there is no referee in this mode; use keep=last")

    @property
    def needs(self) -> Needs:
        return Needs(
            reward=self._refereed > 0, gradient=self._refereed > 0, reference="ignored", steps=self.num_iterations,
            prompted=self.mode != "referee_only", prompt=self.distill_prompt,
        )  # fmt: skip

    @property
    def _distilled(self) -> int:
        """Number of the last iterations, which have distillation alone."""
        return round(self.distill_iterations * (self.num_iterations if self.distill_iterations < 1 else 1))

    @property
    def _refereed(self) -> int:
        """Iterations that follow the referee's gradient."""
        if self.mode == "distill_only" or (self.mode == "full" and not self.weight):
            return 0
        return self.num_iterations - (self._distilled if self.mode == "full" else 0)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        z = problem.noise.draw(1, problem.latent_shape)
        average, best, sheets = z.clone(), Best(), Sheets(problem)
        names = ("distillation", "latent noise", "augmentations", "gradient noise")
        eps, added, drawn, twice = (problem.noise.fork(name) for name in names)
        key = [self.distill_seed] if self.distill_seed else []  # the first stream has no number in its name
        times = stream("score distillation", *key).integers(*self._times(problem), size=self.num_iterations)
        optimizer = (torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam)([z], lr=1.0)
        for i in range(self.num_iterations):
            weight = cosine(self.distill_weight, i, self.num_iterations)
            distilled = weight * self._distillation(problem, z, int(times[i]), eps)
            shows, steps = i + 1 in self.show, self.referee_steps if i < self._refereed else 0
            if shows and not steps:
                sheets.before(z, [torch.zeros_like(z), distilled], None)
            for step in range(steps):
                copies = self._copies(drawn)
                rewards, gradient = problem.score_and_gradient(z, copies)
                if shows and not step:
                    sheets.before(z, [-gradient, distilled], copies)
                best.see(z.clone(), rewards[:, 0])
                observe("update", i, {"rewards": rewards[:, 0], "distillation": _norm(distilled).flatten()})
                size = _norm(distilled) if self.mode == "full" else weight * _unit(z)
                z.grad = -balanced(gradient, self.weight * size)
                if self.noise_twice:
                    z.grad += self.noise * twice.draw(1, problem.latent_shape)
                optimizer.param_groups[0]["lr"] = self._lr(i)
                optimizer.step()
            first = i < self.num_iterations - self._distilled
            z -= (cosine(self.lr, i, self.num_iterations) if self.distill_lr == "scheduled" else self.lr[0]) * distilled
            z += (self.noise if first else self.last_noise) * added.draw(1, problem.latent_shape)
            average.lerp_(z, 1.0 if i == 0 and self.ema_initial == "first" else 1 - self.ema_decay)
            if first and self._restarts(i + 1):
                z.copy_(average)
            if shows:
                sheets.after(z)
            observe("step", i, {})
        if self.show:
            observe("sheets", self.num_iterations, sheets.finished())
        if not self._refereed:
            return z[:, 0]
        kept = {"last": z[:, 0], "best": best.x_0[:, 0]}
        x_0 = kept.pop(self.keep)
        observe("extra_images", self.num_iterations, kept)
        return x_0

    def _lr(self, i: int) -> float:
        """Learning rate of the referee's step."""
        if i < self.warmup:
            return self.lr[0] * (i + 1) / self.warmup
        return cosine(self.lr, i - self.warmup, self.num_iterations - self.warmup)

    def _times(self, problem: Problem) -> tuple[int, int]:
        """The least t, and the one after the greatest."""
        low, high = (int(share * len(problem.schedule)) for share in self.distill_window)
        return low, max(high, low + 1)

    def _distillation(self, problem: Problem, z: Tensor, t: int, noise: Noise) -> Tensor:
        """The gradient of score distillation, b 1 c h w: 2 (eps_cfg - eps) / (h w), without the network's Jacobian. Of a rectified
        flow it is the residual of what the network predicts, the velocity eps - x_0.
        """
        if self.mode == "referee_only":
            return torch.zeros_like(z)
        point, eps = problem.schedule.at(t), noise.draw(1, problem.latent_shape)
        prediction = problem.denoise(add_noise(z, eps, point), point, self.distill_scale)
        residual = prediction.eps - eps
        if isinstance(problem.schedule, FlowSchedule):
            residual = residual - (prediction.x_0 - z)
        h, w = z.shape[-2:]
        return 2 * residual / (h * w)

    def _copies(self, noise: Noise) -> RandomCopies | None:
        """The next copies of every picture, if there are any; otherwise the picture itself is scored."""
        return RandomCopies(self.augmentations, noise) if self.augmentations.count else None

    def _restarts(self, i: int) -> bool:
        """Whether z is set to its average after the i-th iteration, counted from 1."""
        return self.ema_start is not None and i >= self.ema_start and (i - self.ema_start) % self.ema_restart == 0


def cosine(ends: Sequence[float], i: int, count: int) -> float:
    """From the first to the last of `ends`, over `count` iterations."""
    first, last = ends
    return last + (first - last) * (1 + math.cos(math.pi * i / count)) / 2


def balanced(gradient: Tensor, size: Tensor) -> Tensor:
    """Each sample's gradient (b 1 c h w) scaled to a norm (b or 1, 1 1 1 1); one that is zero or not finite becomes zero."""
    norm = _norm(gradient)
    usable = norm.isfinite() & (norm > 0)
    return torch.where(usable, gradient * (size / torch.where(usable, norm, 1)), 0)


def _norm(z: Tensor) -> Tensor:
    return z.flatten(1).norm(dim=1)[(...,) + (None,) * (z.ndim - 1)]


def _unit(z: Tensor) -> Tensor:
    """The norm of a distillation gradient in which eps_cfg - eps has unit elements: 1 1 1 1 1."""
    h, w = z.shape[-2:]
    return z.new_full((1,) * z.ndim, 2 / (h * w) * math.sqrt(z[0, 0].numel()))
