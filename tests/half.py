"""What every network that scores pictures keeps in half precision."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[Tensor], Tensor]  # b 3 H W -> b


def with_gradient(score: Score, images: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scores, and the gradient of their weighted sum over the weight: b, b (3 H W)."""
    x = images.clone().requires_grad_()
    values = score(x)
    [gradient] = torch.autograd.grad(weight * values.sum(), x)
    return values.detach(), gradient.flatten(1).double() / weight


def check(full: Score, half: Score, images: Tensor, *, atol: float, cosine: float = 0.99) -> None:
    """Scores in float32, near those of the full network; so is the gradient's direction, however small a gradient is asked for."""
    expected, towards = with_gradient(full, images)
    for weight in (1.0, 1e-9):
        values, gradient = with_gradient(half, images, weight)
        assert values.dtype == torch.float32
        assert 0 < (values - expected).abs().max() < atol  # it is rounded
        assert F.cosine_similarity(gradient, towards).min() > cosine
        torch.testing.assert_close(gradient.norm(dim=1), towards.norm(dim=1), rtol=0.05, atol=0)
