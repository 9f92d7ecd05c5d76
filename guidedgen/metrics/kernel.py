"""Squared maximum mean discrepancies between two feature sets: KID (polynomial kernel) and CMMD (Gaussian kernel).

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)

Unbiased where the first two means leave out the diagonal pairs (the value may then be negative), biased where they keep it.
Everything is float64 and summed over chunks of rows, so memory is chunk x m.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from guidedgen.metrics.features import Array, as_pair

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
Kernel = Callable[[Array, Array], Array]


def kid(x: npt.ArrayLike, y: npt.ArrayLike, *, chunk: int = 2048) -> float:
    """Kernel Inception distance of features n d and m d: unbiased MMD^2 over the full sets, k = (x.y / d + 1)^3.

    Bińkowski et al. 2018, section 4. ValueError below 2 samples.
    """
    return _unbiased(_cubic, *as_pair(x, y, at_least=2), chunk=chunk)


def kid_subsets(x: npt.ArrayLike, y: npt.ArrayLike, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Mean and population standard deviation of `kid` over random subsets, drawn without replacement, as torchmetrics reports.

    ValueError where `subset_size` is below 2 or above the size of either set.
    """
    x, y = as_pair(x, y, at_least=2)
    if subsets < 1:
        raise ValueError(f"subsets: expected at least 1, got {subsets}")
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"subset_size: expected 2 to {min(len(x), len(y))} (the smaller set), got {subset_size}")
    generator = np.random.default_rng(seed)

    def draw(features: Array) -> Array:
        return features[generator.permutation(len(features))[:subset_size]]

    values = [kid(draw(x), draw(y)) for _ in range(subsets)]
    return float(np.mean(values)), float(np.std(values))


def cmmd(x: npt.ArrayLike, y: npt.ArrayLike, *, chunk: int = 2048) -> float:
    """CMMD of unit-length CLIP image embeddings n d and m d, as released (google-research/cmmd, distance.py).

    1000 times the biased MMD^2 (diagonal pairs kept, no square root), k = exp(-|x - y|^2 / (2 * 10^2)); 0 to 39.6.
    Defined from one sample on. At ten samples a set the bias is of the size of the differences looked for.
    """
    x, y = as_pair(x, y)
    terms = _total(_gaussian, x, x, chunk) / len(x) ** 2 + _total(_gaussian, y, y, chunk) / len(y) ** 2
    return max(0.0, CMMD_SCALE * (terms - 2 * _total(_gaussian, x, y, chunk) / (len(x) * len(y))))


def cmmd_unbiased(x: npt.ArrayLike, y: npt.ArrayLike, *, chunk: int = 2048) -> float:
    """`cmmd` without the diagonal pairs: 0 on average for two sets of one distribution. ValueError below 2 samples."""
    return CMMD_SCALE * _unbiased(_gaussian, *as_pair(x, y, at_least=2), chunk=chunk)


def _unbiased(kernel: Kernel, x: Array, y: Array, *, chunk: int) -> float:
    def distinct(z: Array) -> float:
        return _total(kernel, z, z, chunk, diagonal=False) / (len(z) * (len(z) - 1))

    return distinct(x) + distinct(y) - 2 * _total(kernel, x, y, chunk) / (len(x) * len(y))


def _total(kernel: Kernel, x: Array, y: Array, chunk: int, *, diagonal: bool = True) -> float:
    """Sum of k(x_i, y_j) over all i, j, or over i != j."""
    total = 0.0
    for start in range(0, len(x), chunk):
        block = kernel(x[start : start + chunk], y)
        if not diagonal:
            rows = np.arange(len(block))
            block[rows, start + rows] = 0
        total += float(block.sum())
    return total


def _cubic(x: Array, y: Array) -> Array:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)


def _gaussian(x: Array, y: Array) -> Array:
    """k - 1: the constant cancels in an MMD, and without it no digits are lost to it."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2 * x @ y.T
    return np.asarray(np.expm1(-np.maximum(squares, 0) / (2 * CMMD_SIGMA**2)))
