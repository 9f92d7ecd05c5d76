"""The two likenesses of embeddings: against the formulas, and where those have no gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from guidedgen.rewards.distance import likeness


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cosine():
    x, y = unit(7, 5), unit(7, 5, seed=1)
    torch.testing.assert_close(likeness(x, y, "cosine"), F.cosine_similarity(x, y))


def test_spherical_is_doodl_s_and_half_the_squared_angle():
    """doodl.py, line 197, and Eq. 10 with its root as a square."""
    x, y = unit(7, 5), unit(7, 5, seed=1)
    found = likeness(x, y, "spherical")
    torch.testing.assert_close(found, -(x - y).norm(dim=-1).div(2).arcsin().pow(2).mul(2), rtol=0, atol=1e-14)
    torch.testing.assert_close(found, -((x * y).sum(-1).arccos() ** 2) / 2, rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, math.pi / 2, 3.0, math.pi - 1e-7, math.pi])
def test_spherical_at_a_known_angle(angle: float):
    x, y = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    assert likeness(x, y, "spherical").item() == pytest.approx(-(angle**2) / 2, rel=1e-9, abs=1e-30)


def test_gradient_is_that_of_finite_differences():
    y = unit(4, 5, seed=1)
    assert torch.autograd.gradcheck(lambda x: likeness(F.normalize(x, dim=-1), y, "spherical"), unit(4, 5).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradient_is_finite_at_the_same_and_at_the_opposite_embedding(sign: int, dtype: torch.dtype):
    y = unit(16, 8).to(dtype)
    x = (sign * y).requires_grad_()
    value = likeness(F.normalize(x, dim=-1), y, "spherical")
    torch.testing.assert_close(value, torch.full_like(value, 0.0 if sign == 1 else -(math.pi**2) / 2), rtol=1e-6, atol=1e-6)
    [gradient] = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all() and gradient.norm(dim=-1).max() <= math.pi + 1e-3


def test_the_step_along_the_sphere_is_the_angle():
    """d(angle^2 / 2) = angle d(angle): the gradient by an embedding is as long as the angle, also next to an antipode."""
    for angle in (1e-4, 1.0, math.pi - 1e-4):
        y = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        x = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64, requires_grad=True)
        [gradient] = torch.autograd.grad(likeness(F.normalize(x, dim=-1), y, "spherical").sum(), x)
        assert gradient.norm().item() == pytest.approx(angle, rel=1e-6)
