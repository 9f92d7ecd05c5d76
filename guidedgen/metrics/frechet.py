"""Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, eq. 6); on Inception features, FID.

    d^2 = |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)),    S with divisor n - 1

The matrix root is never taken of the non-symmetric product. Two identities replace it, both real and non-negative:

1. (S_x S_y)^(1/2) has the trace of (A S_y A)^(1/2) with A = S_x^(1/2), which is symmetric.
2. With S_x = X^T X / (n - 1) and S_y = Y^T Y / (m - 1), X and Y centred, that trace is the sum of the singular values of
   X Y^T / sqrt((n - 1)(m - 1)). No d x d matrix is formed, so fewer samples than features cost no accuracy.

The value is biased upwards by about 1/n: sets of ten images differ by it far more than by their content.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from guidedgen.metrics.features import Array, as_features, as_pair

LOW_RANK_BELOW = 3000  # samples; above it, in both sets, the covariances are the cheaper route and have full rank


def frechet_distance(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Squared Fréchet distance of features n d and m d.

    Identity 2 where a set has fewer than LOW_RANK_BELOW samples, the covariances otherwise. ValueError below 2 samples.
    """
    x, y = as_pair(x, y, at_least=2)
    if min(len(x), len(y)) >= LOW_RANK_BELOW:
        return frechet_from_moments(*moments(x), *moments(y))
    mu_x, mu_y = x.mean(axis=0), y.mean(axis=0)
    factor_x, factor_y = _factor(x - mu_x), _factor(y - mu_y)
    cross = np.linalg.svd(factor_x @ factor_y.T, compute_uv=False).sum()
    traces = np.square(factor_x).sum() + np.square(factor_y).sum()
    return max(0.0, float(np.square(mu_x - mu_y).sum() + traces - 2 * cross))


def moments(x: npt.ArrayLike) -> tuple[Array, Array]:
    """Mean (d) and covariance (d d, divisor n - 1) of features n d. ValueError below 2 samples."""
    x = as_features(x, at_least=2)
    mu = x.mean(axis=0)
    centred = x - mu
    return mu, centred.T @ centred / (len(x) - 1)


def frechet_from_moments(mu1: npt.ArrayLike, sigma1: npt.ArrayLike, mu2: npt.ArrayLike, sigma2: npt.ArrayLike) -> float:
    """Squared Fréchet distance of N(mu1, sigma1) and N(mu2, sigma2); means d, covariances d d (identity 1)."""
    mu1, mu2 = (np.asarray(mu, dtype=np.float64) for mu in (mu1, mu2))
    sigma1, sigma2 = (np.asarray(sigma, dtype=np.float64) for sigma in (sigma1, sigma2))
    if mu1.ndim != 1 or mu1.shape != mu2.shape or sigma1.shape != (mu1.size, mu1.size) or sigma2.shape != sigma1.shape:
        raise ValueError(f"expected means d and covariances d d, got {mu1.shape}, {sigma1.shape}, {mu2.shape}, {sigma2.shape}")
    values, vectors = np.linalg.eigh(sigma1)
    root = (vectors * np.sqrt(_without_noise(values))) @ vectors.T
    product = root @ sigma2 @ root
    cross = np.sqrt(_without_noise(np.linalg.eigvalsh((product + product.T) / 2))).sum()
    return max(0.0, float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * cross))


def _factor(centred: Array) -> Array:
    """F of min(n, d) rows with F^T F the covariance: the triangle of a QR decomposition where it is the smaller one."""
    scaled = centred / np.sqrt(len(centred) - 1)
    return np.asarray(np.linalg.qr(scaled, mode="r")) if len(scaled) > scaled.shape[1] else scaled


def _without_noise(eigenvalues: Array) -> Array:
    """Eigenvalues at the level of rounding set to 0: under a square root, 2048 of 1e-16 would add up to 1e-5."""
    noise = eigenvalues.size * np.finfo(np.float64).eps * np.abs(eigenvalues).max()
    return np.where(eigenvalues > noise, eigenvalues, 0.0)
