"""Variants of classifier-free guidance: null settings, agreement with diffusers' guiders, rows saved, and every kind of method."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.guiders.classifier_free_zero_star_guidance import cfg_zero_star_scale
from diffusers.guiders.guider_utils import rescale_noise_cfg
from omegaconf import open_dict
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.methods import Method
from guidedgen.methods.base import Base
from guidedgen.methods.classifier_guidance import ClassifierGuidance
from guidedgen.methods.code import Code
from guidedgen.methods.codex import Codex
from guidedgen.methods.doodl import Doodl
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Prediction
from guidedgen.process.classifier_free import (
    ClassifierFree,
    Guidance,
    Guided,
    Output,
    PlusPlus,
    Projected,
    ZeroStar,
    output_of,
    prediction_of,
)  # fmt: skip
from guidedgen.process.formulas import guided
from guidedgen.process.grid import FlowSchedule, Grid, NoiseSchedule, Point
from guidedgen.process.schedulers import Ddim, Ddpm, Flow
from guidedgen.runs import composition, experiment, identity, preparation

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
SHAPE = (2, 3, 4, 8, 8)
KINDS: tuple[Output, ...] = ("epsilon", "v_prediction", "velocity")
POINTS = {"epsilon": SCHEDULE.at(400), "v_prediction": SCHEDULE.at(400), "velocity": FlowSchedule(shift=3.0).at(400)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predictions(t: Point) -> tuple[Prediction, Prediction]:
    """Two predictions of one x_t."""
    x_t, (a, b) = normal(*SHAPE), (normal(*SHAPE, seed=k) for k in (1, 2))
    return Prediction((x_t - t.sigma * a) / t.alpha, a), Prediction((x_t - t.sigma * b) / t.alpha, b)


def close(a: Prediction, b: Prediction, atol: float = 1e-9) -> bool:
    return torch.allclose(a.x_0, b.x_0, atol=atol) and torch.allclose(a.eps, b.eps, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_outputs_are_each_others_inverse(kind: Output) -> None:
    t = POINTS[kind]
    u, c = predictions(t)
    assert close(prediction_of(u, output_of(c, t, kind), t, kind), c)


@pytest.mark.parametrize("kind", KINDS)
def test_null_settings_are_plain_guidance(kind: Output) -> None:
    t = POINTS[kind]
    u, c = predictions(t)
    plain = guided(u, c, 4.0)
    assert close(ClassifierFree()(u, c, 4.0, t, kind, 1.0), plain, atol=0)
    assert close(Projected(eta=1.0)(u, c, 4.0, t, kind, 1.0), plain)
    assert close(Projected(eta=1.0, norm_threshold=1e9)(u, c, 4.0, t, kind, 1.0), plain)
    apart = prediction_of(c, output_of(c, t, kind) * 0.5, t, kind)  # u along c: k u = c, so nothing is left to guide by
    assert close(ZeroStar()(apart, c, 4.0, t, kind, 1.0), c, atol=1e-6)
    for variant in (Projected(), ZeroStar(), ClassifierFree(rescale=0.5)):
        assert close(variant(c, c, 4.0, t, kind, 1.0), c, atol=1e-6)  # where u = c there is nothing to guide by
    both = PlusPlus(scale=0.0)(u, c, 4.0, t, kind, 1.0)
    assert torch.equal(both.x_0, u.x_0) and torch.equal(both.eps, u.eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "variant", [Projected(), ZeroStar(), ClassifierFree(rescale=0.7), Projected(rescale=0.3, norm_threshold=2.0)]
)
def test_what_is_mixed_is_a_prediction_of_the_same_latent(variant: Guidance, kind: Output) -> None:
    t = POINTS[kind]
    u, c = predictions(t)
    mixed = variant(u, c, 4.0, t, kind, 1.0)
    assert torch.allclose(t.alpha * mixed.x_0 + t.sigma * mixed.eps, t.alpha * c.x_0 + t.sigma * c.eps, atol=1e-9)


@pytest.mark.parametrize(("eta", "threshold"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0), (1.0, 5.0)])
def test_apg_agrees_with_diffusers_on_clean_estimates(eta: float, threshold: float) -> None:
    t = POINTS["epsilon"]
    u, c = predictions(t)
    ours = Projected(eta=eta, norm_threshold=threshold)(u, c, 6.0, t, "epsilon", 1.0).x_0
    theirs = normalized_guidance(
        c.x_0.flatten(0, 1), u.x_0.flatten(0, 1), 5.0, None, eta, threshold, use_original_formulation=True
    )  # fmt: skip
    assert torch.allclose(ours.flatten(0, 1), theirs, atol=1e-6)


def test_the_part_along_the_estimate_is_left_out() -> None:
    t = POINTS["epsilon"]
    u, c = predictions(t)
    moved = (Projected()(u, c, 5.0, t, "epsilon", 1.0).x_0 - c.x_0).flatten(2)
    assert (moved * c.x_0.flatten(2)).sum(2).abs().max() < 1e-9 and moved.abs().max() > 0.1


def test_cfg_zero_star_agrees_with_diffusers() -> None:
    t = POINTS["velocity"]
    u, c = predictions(t)
    a, b = (output_of(each, t, "velocity").flatten(0, 1) for each in (u, c))
    k = cfg_zero_star_scale(b.flatten(1), a.flatten(1)).view(-1, 1, 1, 1)
    theirs = k * a + 4.0 * (b - k * a)
    ours = output_of(ZeroStar()(u, c, 4.0, t, "velocity", 1.0), t, "velocity").flatten(0, 1)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rescaling_agrees_with_diffusers(kind: Output) -> None:
    """On what the network predicts, whichever that is, as in diffusers."""
    t = POINTS[kind]
    u, c = predictions(t)
    plain = output_of(guided(u, c, 7.0), t, kind).flatten(0, 1)
    theirs = rescale_noise_cfg(plain, output_of(c, t, kind).flatten(0, 1), 0.7)
    ours = output_of(ClassifierFree(rescale=0.7)(u, c, 7.0, t, kind, 1.0), t, kind).flatten(0, 1)
    assert torch.allclose(ours, theirs, atol=1e-9)


def test_a_flow_stands_still_over_the_first_steps() -> None:
    flow = Flow(num_steps=10)
    grid = flow.grid(FlowSchedule())
    mixture = GaussianMixture(means=normal(2, 2, 1, 1), std=0.4, weights=torch.full((2,), 0.5, dtype=torch.float64))
    denoise = Guided(
        GaussianDenoiser(cond=mixture, uncond=mixture, guidance_scale=3.0), ZeroStar(zero_share=0.2), "velocity", grid, 10
    )
    x = start = normal(1, 1, 2, 1, 1, seed=5)
    lengths = []
    for t, s in pairwise(grid):
        own = x * (1 / (t.alpha + t.sigma))
        x = flow.transition(x, denoise(x, t), t, s)[0]
        lengths.append(float((x / (s.alpha + s.sigma) - own).abs().max()))
    assert max(lengths[:2]) < 1e-9 < 1e-3 < lengths[2] and not torch.equal(x, start)


def test_cfg_plus_plus_is_the_papers_loop() -> None:
    """DDIM: x_0 from u + lambda (c - u), renoised with u; at lambda it is CFG with a scale that depends on the step."""
    scheduler = Ddim(num_steps=8)
    grid = scheduler.grid(SCHEDULE)
    inner = GaussianDenoiser(
        cond=GaussianMixture(means=normal(1, 2, 1, 1), std=0.4, weights=torch.ones(1, dtype=torch.float64)),
        uncond=GaussianMixture(means=0 * normal(1, 2, 1, 1), std=1.2, weights=torch.ones(1, dtype=torch.float64)), guidance_scale=5.0,
    )  # fmt: skip
    denoise = Guided(inner, PlusPlus(scale=0.6), "epsilon", grid, 8)
    x = y = normal(3, 1, 2, 1, 1, seed=5)
    for t, s in pairwise(grid):
        x = scheduler.transition(x, denoise(x, t), t, s)[0]
        u, c = (each.eps for each in inner.pair(y, t))
        e = u + 0.6 * (c - u)
        y = s.alpha * (y - t.sigma * e) / t.alpha + s.sigma * u
    assert torch.allclose(x, y, atol=1e-12)


# The interval, and methods


class Counted:
    """The fixture's problem with a variant of guidance."""

    def __init__(self, make_problem: Callable[..., Problem], guidance: Guidance, scheduler: Ddim | Ddpm) -> None:
        problem = make_problem(2, scheduler=scheduler, guidance_scale=3.0)
        denoise = Guided(problem.denoise, guidance, "epsilon", problem.grid, problem.num_steps)
        self.problem, self.rows = dataclasses.replace(problem, denoise=denoise), problem.denoise


NOISY, PLAIN = Ddim(num_steps=20, eta=1.0), Ddim(num_steps=20)
METHODS: dict[str, tuple[Method, Ddim]] = {
    "base": (Base(), PLAIN), "code": (Code(num_particles=2), NOISY),
    "codex": (Codex(num_particles=2, gradient_block_size=2), NOISY), "freedom": (FreeDom(num_repeats=1, window=(1.0, 0.0)), PLAIN),
    "doodl": (Doodl(gradients=Checkpoint(), process="ddim", num_updates=2, num_crops=0), PLAIN),
    "one-step, uncond": (ClassifierGuidance(strength=0.2), PLAIN), "one-step, cond": (ClassifierGuidance(strength=0.2, source="cond"), PLAIN),
    "one-step, cfg": (ClassifierGuidance(strength=0.2, source="cfg"), PLAIN),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_whole_interval_is_plain_guidance_for_every_method(make_problem, name: str) -> None:
    method, scheduler = METHODS[name]
    plain = make_problem(2, scheduler=scheduler, guidance_scale=3.0)
    expected = method(plain)
    counted = Counted(make_problem, ClassifierFree(), scheduler)
    assert torch.allclose(method(counted.problem), expected, atol=1e-9) and counted.rows.rows == plain.denoise.rows


@pytest.mark.parametrize("name", METHODS)
def test_every_method_follows_the_variant(make_problem, name: str) -> None:
    method, scheduler = METHODS[name]
    plain = method(make_problem(2, scheduler=scheduler, guidance_scale=3.0))
    for variant in (Projected(), ZeroStar(), ClassifierFree(rescale=0.9), ClassifierFree(interval=(0.7, 0.3))):
        made = method(Counted(make_problem, variant, scheduler).problem)
        assert made.isfinite().all() and (made - plain).abs().max() > 1e-4, variant


@pytest.mark.parametrize(("name", "guided_steps", "single"), [("base", 8, 12), ("code", 8, 12)])
def test_the_interval_saves_rows(make_problem, name: str, guided_steps: int, single: int) -> None:
    """Of 20 steps those at noise ratios 0.7 to 0.35 are guided, the others take one row."""
    method, scheduler = METHODS[name]
    counted = Counted(make_problem, ClassifierFree(interval=(0.7, 0.3)), scheduler)
    method(counted.problem)
    each = 2 * guided_steps + single
    if name == "code":  # one x_T is looked at once, all later points by both streams
        each = 2 * each - 1
    assert counted.rows.rows == 2 * each


def test_outside_of_the_interval_it_is_the_conditional_prediction(make_problem) -> None:
    counted = Counted(make_problem, ClassifierFree(interval=(0.0, 0.0)), PLAIN)
    expected = make_problem(2, scheduler=PLAIN, guidance_scale=3.0)
    unguided = dataclasses.replace(
        expected, denoise=dataclasses.replace(expected.denoise.denoiser, guidance_scale=1.0)
    )  # fmt: skip
    assert torch.equal(Base()(counted.problem), Base()(unguided))
    assert counted.rows.rows == 2 * 20


def test_points_between_those_of_the_grid_belong_to_the_step_that_they_lie_in() -> None:
    grid: Grid = Ddim(num_steps=10).grid(SCHEDULE)
    denoise = Guided(None, ClassifierFree(), "epsilon", grid, 10)  # type: ignore[arg-type]
    ratios = [denoise._noise_ratio(t) for t in grid]
    assert ratios[:-1] == [(10 - i) / 10 for i in range(10)] and ratios[-1] == 0.1
    middle = SCHEDULE.at((grid[3].t + grid[4].t) / 2)
    assert denoise._noise_ratio(middle) == ratios[3]


# As options of a run

GIVEN = ["metrics=none", "tracker=none", "device=cpu", "dataset.limit=1", "scheduler.num_steps=5", "method=base"]


def test_a_run_without_a_variant_is_named_as_ever() -> None:
    """The key is new; a run that does not use it is the one that earlier versions have stored."""
    cfg = composition.composed(GIVEN)
    assert cfg.model.guidance is None
    old = cfg.copy()
    with open_dict(old):
        del old.model["guidance"]
    assert identity.folder_of_run(cfg).name == identity.folder_of_run(old).name
    assert identity.folder_of_run(composition.composed([*GIVEN, "guidance=apg"])).name != identity.folder_of_run(cfg).name


@pytest.mark.parametrize(
    ("options", "rows"), [(["guidance=interval"], 5 + 3), (["guidance=apg"], 10), (["guidance=cfg_pp", "scheduler=ddim"], 10)]
)
def test_variants_are_options_of_a_run_and_of_its_unguided_run(options: list[str], rows: int, tmp_path: Path) -> None:
    given = [option for option in GIVEN if option != "method=base"]
    job = preparation.prepare(
        composition.composed([*given, "method=best_of_n", "method.num_particles=2", *options, f"outputs={tmp_path}"])
    )
    experiment.run(job)
    assert job.base is not None
    for each, times in ((job, 2), (job.base, 1)):
        (record,) = each.folder.records().values()
        assert record.nfe == times * rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["guidance=apg", "model.guidance_scale=1"], r"model\.guidance_scale=1.*must not be 1 with model\.guidance"),
        (["guidance=cfg_zero", "model.guidance.zero_share=0.1"], r"zero_share=0\.1: must be 0: this model is no rectified flow"),
        (["guidance=cfg_pp", "scheduler=ddpm"], "guidance=cfg_pp: needs a sampler.*not Ddpm"),
        (["guidance=cfg_pp", "method=doodl", "reward=aesthetic"], "guidance=cfg_pp: not with method=doodl"),
        (["guidance=interval", "model.guidance.interval=[0.2,0.8]"], "interval=.*must be .start, end."),
        (["guidance=cfg_pp", "scheduler=ddim", "model.guidance.scale=3"], "scale=3.*must be from 0 to 1"),
        (["guidance=apg", "model=lab_turbo"], r"guidance_scale=1.*must not be 1"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preparation.prepare(composition.composed([*GIVEN, *options]))
