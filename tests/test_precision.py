"""Half precision keeps gradients that are too small for it."""

import pytest
import torch
from torch import Tensor

from guidedgen.basics.precision import run_in

WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)) / 3


def network(x: Tensor) -> Tensor:
    return torch.tanh(x @ WEIGHT.to(x.dtype)) + x


def gradient(dtype: torch.dtype, size: float) -> Tensor:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    towards = size * torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad((run_in(dtype, network, x) * towards).sum(), x)[0]


@pytest.mark.parametrize("size", [1e-12, 1e-8, 1e-3, 1.0, 1e6])
def test_gradients_of_any_size_survive(size: float) -> None:
    exact, half = gradient(torch.float32, size), gradient(torch.float16, size)
    assert (half - exact).norm() < 3e-3 * exact.norm()


def test_they_would_not_without_it() -> None:
    """What the factor is for: plain casts lose all of a gradient of 1e-8."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    lost = torch.autograd.grad((network(x.half()).float() * 1e-8).sum(), x)[0]
    assert lost.abs().max() == 0


def test_zero_and_broken_gradients_pass_as_they_are() -> None:
    assert gradient(torch.float16, 0.0).abs().max() == 0
    assert not gradient(torch.float16, float("nan")).isfinite().any()


@pytest.mark.parametrize("neighbour", [float("nan"), float("inf"), 0.0, 1e7])
def test_a_row_s_gradient_does_not_depend_on_its_neighbours(neighbour: float) -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sizes = torch.tensor([1e-8, neighbour])
    (exact,) = torch.autograd.grad((network(x).sum(1) * torch.tensor([1e-8, 0.0])).sum(), x)
    (half,) = torch.autograd.grad((run_in(torch.float16, network, x).sum(1) * sizes).sum(), x)
    assert (half[0] - exact[0]).norm() < 3e-3 * exact[0].norm()


def test_a_gradient_that_also_flows_past_the_network_is_not_scaled() -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    past = torch.autograd.grad((1e-8 * run_in(torch.float16, network, x) + 3 * x).sum(), x)[0]
    assert torch.allclose(past, torch.full_like(past, 3.0), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_other_types_are_plain_casts(dtype: torch.dtype) -> None:
    x = torch.randn(4, 8)
    assert torch.equal(run_in(dtype, network, x), network(x.to(dtype)).float())


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("size", [1e-12, 1.0])
def test_gradients_by_other_inputs_survive_too(wanted: tuple[bool, bool], size: float) -> None:
    """Also where x itself has none."""

    def mixing(x: Tensor, y: Tensor) -> Tensor:
        return network(x) * (1 + y.sum(1, keepdim=True).tanh())

    found = []
    for dtype in (torch.float32, torch.float16):
        inputs = [torch.randn(4, 8, generator=torch.Generator().manual_seed(i)).requires_grad_(w) for i, w in enumerate(wanted)]
        total = (size * run_in(dtype, mixing, *inputs)).sum()
        found.append(torch.autograd.grad(total, [value for value in inputs if value.requires_grad]))
    for exact, half in zip(*found, strict=True):
        assert (half - exact).norm() < 5e-3 * exact.norm()
