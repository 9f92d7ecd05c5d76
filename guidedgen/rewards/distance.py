"""How alike two embeddings are, by the two measures that CLIP guidance uses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Distance = Literal["cosine", "spherical"]


def likeness(x: Tensor, y: Tensor, distance: Distance) -> Tensor:
    """b d and b d, of unit length -> b, higher is more alike.

    cosine      x . y, from -1 to 1
    spherical   -2 asin(|x - y| / 2)^2, half the square of the angle between them: from -pi^2/2 to 0

    The spherical one is the loss of DOODL (arXiv:2303.13703), Eq. 10, less its lambda. The paper prints a root instead of the
    square; the square is what the released code computes (salesforce/DOODL, doodl.py, lines 190-200), and the root's gradient would
    be infinite where x = y. Here it is finite there, and at antipodes, where the code's is not.
    """
    return (x * y).sum(-1) if distance == "cosine" else -2 * (_angle(x, y) / 2).square()


def _angle(x: Tensor, y: Tensor) -> Tensor:
    """b, in radians. By its half's tangent: an arcsine has no finite gradient at antipodes, an arccosine none where x = y."""
    return 2 * torch.atan2(torch.linalg.vector_norm(x - y, dim=-1), torch.linalg.vector_norm(x + y, dim=-1))
