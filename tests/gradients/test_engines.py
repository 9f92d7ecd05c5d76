"""Engines that differentiate the numbers computed: against each other, finite differences, and what they say they cost."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.gradients import GradientEngine
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.gradients.memory import Alive, saved_bytes
from guidedgen.gradients.reversible import Reversible
from guidedgen.process import Denoiser
from guidedgen.process.chains import Chain, DdimChain, EdictChain
from guidedgen.process.formulas import from_eps
from guidedgen.process.grid import Grid, NoiseSchedule
from guidedgen.process.schedulers import Ddim

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
ENGINES = [Backprop(), Checkpoint(), Checkpoint(memory_gb=1.0), Checkpoint(memory_gb=0.002), Reversible()]
names = pytest.mark.parametrize("name", ["gaussian", "unet"])
processes = pytest.mark.parametrize("process", ["ddim", "edict", "edict-alternate"])
engines = pytest.mark.parametrize("engine", ENGINES, ids=str)


def edict_grid(steps: int) -> Grid:
    """steps - 1 moves, and one that goes nowhere."""
    return Ddim(num_steps=steps, offset=0).grid(SCHEDULE)


def make_chain(process: str, denoise: Denoiser, steps: int) -> Chain:
    if process == "ddim":
        return DdimChain(denoise=denoise, grid=edict_grid(steps))
    return EdictChain(denoise=denoise, grid=edict_grid(steps), alternate=process == "edict-alternate")


def loss(state: Sequence[Tensor]) -> Tensor:
    """Not symmetric in the latents of a pair."""
    return sum(((i + 1) * x.sin()).sum() for i, x in enumerate(state))


def gradients(engine: GradientEngine, chain: Chain, x: Tensor, params: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
    """By x and by the params, and the last state, in the way in which methods take them."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        state = engine(chain, chain.start(x), params)
        total = loss(state)
    return (*torch.autograd.grad(total, [x, *params]), *(latent.detach() for latent in state))


@pytest.fixture(scope="module")
def by_backprop(case: Callable) -> Callable[[str, str, int], tuple[Tensor, ...]]:
    """The gradients that plain backpropagation gives for a case."""

    @functools.cache
    def found(name: str, process: str, steps: int) -> tuple[Tensor, ...]:
        made = case(name)
        return gradients(Backprop(), make_chain(process, made.denoise, steps), made.x, made.params)

    return found


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Relative, the largest of all."""
    assert all(float(b.abs().max()) > 0 for b in theirs)
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def can(engine: GradientEngine, process: str) -> bool:
    return process != "ddim" or not isinstance(engine, Reversible)


# Right


@engines
@processes
def test_gradients_are_those_of_finite_differences(case: Callable, engine: GradientEngine, process: str) -> None:
    if not can(engine, process):
        return
    made = case("gaussian")
    means, weights = made.params

    def chained(x: Tensor, means: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        cond = dataclasses.replace(made.denoise.cond, means=means, weights=weights)
        chain = make_chain(process, dataclasses.replace(made.denoise, cond=cond), 4)
        return engine(chain, chain.start(x), (means, weights))

    assert torch.autograd.gradcheck(chained, (made.x[:1, :1].clone().requires_grad_(), means, weights), rtol=1e-5)


@names
@processes
@pytest.mark.parametrize("engine", ENGINES[1:4], ids=str)
def test_checkpoint_is_backprop_bit_for_bit(
    case: Callable, by_backprop: Callable, engine: Checkpoint, name: str, process: str
) -> None:
    made = case(name)
    ours = gradients(engine, make_chain(process, made.denoise, 6), made.x, made.params)
    assert all(torch.equal(a, b) and b.abs().max() > 0 for a, b in zip(ours, by_backprop(name, process, 6), strict=True))


@names
@pytest.mark.parametrize("process", ["edict", "edict-alternate"])
@pytest.mark.parametrize("steps", [5, 6])
def test_reversible_is_autograd_through_its_own_steps(
    case: Callable, by_backprop: Callable, name: str, process: str, steps: int
) -> None:
    """The released inverse is wrong by 43 % for even numbers of steps."""
    made = case(name)
    ours = gradients(Reversible(), make_chain(process, made.denoise, steps), made.x, made.params)
    assert distance(ours, by_backprop(name, process, steps)) < 1e-9


@pytest.mark.parametrize("mixing", [0.6, 1.0])
@pytest.mark.parametrize("scheduler", [Ddim(num_steps=5), Ddim(num_steps=5, spacing="trailing", end="clean")])
def test_reversible_walks_any_grid_with_any_mixing(case: Callable, scheduler: Ddim, mixing: float) -> None:
    made = case("gaussian")
    chain = EdictChain(denoise=made.denoise, grid=scheduler.grid(SCHEDULE), mixing=mixing)
    assert distance(*(gradients(engine, chain, made.x, made.params) for engine in (Reversible(), Backprop()))) < 1e-9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_latents_in_float64_make_reversible_exact_whatever_the_network_computes_in(case: Callable, dtype: str) -> None:
    made = case("unet", dtype)
    chain = make_chain("edict", made.denoise, 20)
    ours, theirs = (gradients(engine, chain, made.x, made.params) for engine in (Reversible(), Backprop()))
    assert distance(ours[:1] + ours[3:], theirs[:1] + theirs[3:]) < 1e-9  # by x, and the states
    assert distance(ours, theirs) < (1e-5 if dtype == "float32" else 0.05)  # the params' are added up in the network's dtype


def test_params_that_nothing_depends_on_have_no_gradient_and_tensors_may_be_computed_ones(case: Callable) -> None:
    """A parameter may be a function of what is optimised: here of a shift of the embedding."""
    made = case("unet")
    found = []
    for engine in ENGINES:
        shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)
        stranger = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        embedding = made.denoise.conditioning.detach() + shift
        chain = make_chain("edict", made.denoise.conditioned_on(embedding), 4)
        end = engine(chain, chain.start(made.x), (embedding, stranger))
        by_shift, by_stranger = torch.autograd.grad(loss(end), [shift, stranger], allow_unused=True)
        assert by_stranger is None or not by_stranger.any()
        found.append(by_shift)
    assert distance(found[1:], found[:1] * (len(found) - 1)) < 1e-9


def test_reversible_has_no_second_derivative_and_no_ddim(case: Callable) -> None:
    made = case("gaussian")
    chain = make_chain("edict", made.denoise, 4)
    x = made.x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(Reversible()(chain, chain.start(x))), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    with pytest.raises(UsageError, match="method/gradients=reversible.*method.process=edict"):
        Reversible()(make_chain("ddim", made.denoise, 4), (x,))


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_budget_is_not_below_nothing(value: float) -> None:
    with pytest.raises(BadValue, match="memory_gb"):
        Checkpoint(memory_gb=value)


# Where they are called


def under_autocast(made: Any, engine: GradientEngine, enabled: bool) -> tuple[Tensor, Tensor]:
    """The gradient by x, taken outside of it, and what it is of."""
    chain, x = make_chain("edict", made.denoise, 5), made.x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        x_0 = engine(chain, chain.start(x), made.params)[0]
    return (*torch.autograd.grad(x_0.sin().sum(), x), x_0.detach())


@pytest.fixture(scope="module")
def autocast_backprop(case: Callable) -> tuple[Tensor, Tensor]:
    made = case("unet", "float32")
    expected = under_autocast(made, Backprop(), True)
    assert distance(under_autocast(made, Backprop(), False), expected) > 1e-3
    return expected


@engines
def test_the_forward_s_autocast_is_that_of_the_way_back(
    case: Callable, autocast_backprop: tuple[Tensor, Tensor], engine: GradientEngine
) -> None:
    """The gradient is taken outside of it, as it should be."""
    assert distance(under_autocast(case("unet", "float32"), engine, True), autocast_backprop) < 1e-9


@engines
def test_methods_switch_gradients_on_themselves(case: Callable, engine: GradientEngine) -> None:
    """A run has them off; nothing that an engine returns has a graph then."""
    made = case("gaussian")
    chain = make_chain("edict", made.denoise, 5)
    expected = gradients(engine, chain, made.x, made.params)
    with torch.no_grad():
        found = gradients(engine, chain, made.x, made.params)
        off = engine(chain, chain.start(made.x.clone().requires_grad_()), made.params)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not any(latent.requires_grad for latent in off)
    assert distance(off, expected[-2:]) == 0


@engines
def test_inference_mode_has_to_be_left(case: Callable, engine: GradientEngine) -> None:
    """Switching gradients on is not enough in it."""
    made = case("gaussian")
    chain = make_chain("edict", made.denoise, 4)
    expected = gradients(engine, chain, made.x, made.params)
    with torch.inference_mode():
        with pytest.raises(RuntimeError):
            gradients(engine, chain, made.x, made.params)
        with torch.inference_mode(False):
            found = gradients(engine, chain, made.x, made.params)
    assert distance(found, expected) == 0


# Rows


@engines
@pytest.mark.parametrize(("process", "each"), [("ddim", 1), ("edict", 2)])
@pytest.mark.parametrize("steps", [2, 5])
def test_rows_are_those_promised(case: Callable, engine: GradientEngine, process: str, each: int, steps: int) -> None:
    """S steps, of which the last goes nowhere: S - 1 guided calls of the network for DDIM, twice that for EDICT."""
    if not can(engine, process):
        return
    made = case("unet")
    model, calls, rows = made.denoise.model, [], 2 * len(made.x)
    model.unet.register_forward_hook(lambda *_: calls.append(None))
    gradients(engine, make_chain(process, made.denoise, steps), made.x)
    once = each * (steps - 1)
    if isinstance(engine, Checkpoint) and engine.memory_gb == 1.0:  # all are kept, and one step was measured
        assert len(calls) == once + each
    elif engine in (Checkpoint(), Reversible()):
        assert len(calls) == 2 * once
    elif isinstance(engine, Backprop):
        assert len(calls) == once
    assert model.ledger.nfe == rows * len(calls)
    assert model.ledger.nfe_backward == rows * once


class WeightGradients(TorchDispatchMode):
    """Counts the convolutions whose backward computes a gradient by the weights, and all."""

    def __init__(self) -> None:
        super().__init__()
        self.by_weights = self.all = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.all += 1
            self.by_weights += args[-1][1]
        return func(*args, **(kwargs or {}))


@engines
@pytest.mark.parametrize("process", ["ddim", "edict"])
def test_no_gradient_by_weights_is_computed_unless_asked_for(case: Callable, engine: GradientEngine, process: str) -> None:
    """Not even by one that would take it; a model's are frozen."""
    if not can(engine, process):
        return
    made = case("unet")
    embedding, weight = made.params
    unet = made.denoise.model.unet
    assert [p for p in unet.parameters() if p.requires_grad] == [weight]
    chain = make_chain(process, made.denoise, 4)
    calls = 3 if process == "ddim" else 6
    for params, expected in (((embedding,), 0), ((embedding, weight), calls)):
        with WeightGradients() as seen:
            gradients(engine, chain, made.x, params)
        assert (seen.by_weights, seen.all > calls) == (expected, True)
        assert all(p.grad is None for p in unet.parameters())
        assert [p for p in unet.parameters() if p.requires_grad] == [weight]


# Memory


@pytest.fixture(scope="module")
def wide() -> Callable[[Tensor, Any], Tensor]:
    """A UNet whose activations take a thousand times the memory of its latents, and Stable Diffusion's many thousand times."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, block_out_channels=(48, 96), layers_per_block=1, cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8, norm_num_groups=4,
        ).eval().requires_grad_(False)  # fmt: skip
    text = torch.zeros(1, 6, 16)
    return lambda x_t, t: from_eps(x_t, network(x_t.flatten(0, 1), t.t, text).sample.unflatten(0, x_t.shape[:2]), t)


def peak(engine: GradientEngine, process: str, denoise: Any, steps: int) -> int:
    x = torch.zeros(1, 1, 4, 4, 4)
    with Alive() as alive:
        gradients(engine, make_chain(process, denoise, steps + 1), x)
    assert alive.now == 0
    return alive.peak


@pytest.mark.parametrize("process", ["ddim", "edict"])
def test_memory_of_backprop_grows_with_the_steps(wide: Any, process: str) -> None:
    few, more = (peak(Backprop(), process, wide, steps) for steps in (3, 6))
    assert more == pytest.approx(2 * few, rel=0.05)


@pytest.mark.parametrize(("process", "latents", "steps"), [("ddim", 1, 20), ("edict", 2, 12)])
def test_memory_of_checkpoint_grows_by_one_state_a_step(wide: Any, process: str, latents: int, steps: int) -> None:
    few, many = (peak(Checkpoint(), process, wide, count) for count in (5, steps))
    grown = (steps - 5) * latents * 4 * 4 * 4 * 4
    assert 0.9 * grown < many - few < 1.2 * grown
    assert many < 1.1 * few
    assert few < 1.3 * peak(Backprop(), process, wide, 1)


def test_memory_of_reversible_does_not_grow(wide: Any) -> None:
    few, many = (peak(Reversible(), "edict", wide, steps) for steps in (2, 8))
    assert many == pytest.approx(few, rel=1e-3)
    assert many < 0.7 * peak(Backprop(), "edict", wide, 1)  # one call's activations, where a step has two


@pytest.mark.parametrize("process", ["ddim", "edict"])
@pytest.mark.parametrize("fit", [0, 3, 50])
def test_a_budget_is_used_and_kept(tiny: Callable, process: str, fit: int) -> None:
    """As many steps as fit in addition to the states are computed once; the rest twice; and one is measured."""
    model = tiny()
    denoise, each, moves = model.denoiser([Task(id="0", prompt="a cat")]), 1 if process == "ddim" else 2, 6
    chain = make_chain(process, denoise, moves + 1)
    start = chain.start(torch.zeros(1, 1, 4, 8, 8, dtype=torch.float64).requires_grad_())
    step = saved_bytes(lambda: chain.step(start, 0))
    states = moves * each * 4 * 8 * 8 * 8
    budget = (fit + 0.5) * step + states
    expected = gradients(Backprop(), chain, start[0])
    model.ledger.nfe = model.ledger.nfe_backward = 0
    found = gradients(Checkpoint(memory_gb=budget / 1e9), chain, start[0])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    kept = min(fit, moves)
    assert model.ledger.nfe == 2 * each * (moves + (moves - kept) + 1)
    assert model.ledger.nfe_backward == 2 * each * moves
    with Alive() as alive, torch.enable_grad():
        end = Checkpoint(memory_gb=budget / 1e9)(chain, start)
        held = alive.now
        torch.autograd.grad(loss(end), start[0])
    assert kept * step * 0.95 < held <= budget
    # On the way back one step is held in any case, and what flows through one network call for a moment.
    assert alive.peak <= max(budget, step + states) + 0.25 * step


def test_a_budget_measures_nothing_where_there_is_nothing_to_keep(tiny: Callable) -> None:
    model = tiny()
    chain = make_chain("ddim", model.denoiser([Task(id="0", prompt="a cat")]), 4)
    for enabled in (True, False):
        model.ledger.nfe = 0
        with torch.set_grad_enabled(enabled):
            Checkpoint(memory_gb=1.0)(chain, chain.start(torch.zeros(1, 1, 4, 8, 8, dtype=torch.float64)))
        assert model.ledger.nfe == 2 * 3


@pytest.mark.parametrize("enough", [1.0, float("inf")])
def test_a_large_budget_keeps_all(tiny: Callable, enough: float) -> None:
    model = tiny()
    chain = make_chain("edict", model.denoiser([Task(id="0", prompt="a cat")]), 4)
    gradients(Checkpoint(memory_gb=enough), chain, torch.zeros(1, 1, 4, 8, 8, dtype=torch.float64))
    assert model.ledger.nfe == 2 * 2 * (3 + 1)


# The measures themselves


def test_saved_bytes_are_those_that_are_kept_when_they_are_kept(case: Callable) -> None:
    made = case("unet")
    chain = make_chain("edict", made.denoise, 4)
    start = chain.start(made.x.clone().requires_grad_())
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter) and not isinstance(tensor._base, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chain.step(start, 0)
    expected = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert saved_bytes(lambda: chain.step(start, 0)) == expected > 0


def test_saved_bytes_by_hand() -> None:
    x, weight = torch.zeros(10, 10, requires_grad=True), torch.nn.Parameter(torch.zeros(10, 10))
    assert saved_bytes(lambda: x * x) == 400  # twice the same
    assert saved_bytes(lambda: x.exp().exp()) == 800  # both results, the first of them gone before the second
    assert saved_bytes(lambda: x @ weight.T) == 400  # but not the weight
    assert saved_bytes(lambda: [(x + 1).exp() for _ in range(5)]) == 2000


def test_alive_by_hand() -> None:
    x = torch.zeros(100)
    with Alive() as alive:
        y = x + 1  # 400
        z = y.view(10, 10) * 2  # 400 more; a view is none
        assert alive.now == 800
        del y
        assert alive.now == 400
        x.add_(1)
        assert alive.now == 400
        del z
    assert (alive.now, alive.peak) == (0, 800)
