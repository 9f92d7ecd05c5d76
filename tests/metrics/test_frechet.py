"""Fréchet distance: closed forms, agreement of the two routes and with torchmetrics, invariances."""

import numpy as np
import pytest

from guidedgen.metrics import frechet
from guidedgen.metrics.frechet import frechet_distance, frechet_from_moments, moments


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def correlated(seed, n, d):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) / np.sqrt(d) + generator.standard_normal(d)


U, V = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.0, 1.0, -1.0, -4.0])


@pytest.mark.parametrize(
    ("mu1", "sigma1", "mu2", "sigma2", "value"),
    [
        ([0.0], [[1.0]], [3.0], [[4.0]], 10.0),  # 9 + (1 - 2)^2
        (
            np.zeros(4),
            np.diag([1.0, 4, 9, 16]),
            [1.0, -1, 2, 0],
            np.diag([4.0, 4, 1, 25]),
            12.0,
        ),  # sum of squares of mean and sd gaps
        # 2 x 2: tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))
        ([1.0, 2.0], [[2.0, 1.0], [1.0, 2.0]], [-1.0, 2.5], [[3.0, 0.0], [0.0, 1.0]], 4.25 + 8 - 2 * np.sqrt(14)),
        (np.zeros(4), np.outer(U, U), np.zeros(4), np.outer(V, V), 14 + 18 - 2 * abs(U @ V)),  # singular: tr is |u.v|
        (np.zeros(64), np.eye(64), np.ones(64), np.eye(64), 64.0),  # squared mean distance only
    ],
)
def test_moments_closed_forms(mu1, sigma1, mu2, sigma2, value):
    assert frechet_from_moments(mu1, sigma1, mu2, sigma2) == pytest.approx(value, rel=1e-6)
    assert frechet_from_moments(mu2, sigma2, mu1, sigma1) == pytest.approx(value, rel=1e-6)


def test_moments_golden(golden_metrics):
    cases = golden_metrics["frechet_closed_form"]
    for case in cases:
        if "d" in case:
            d = case["d"]
            arguments = (np.zeros(d), np.eye(d), np.ones(d), np.eye(d))
        else:
            arguments = tuple(case[key] for key in ("mu1", "sigma1", "mu2", "sigma2"))
        assert frechet_from_moments(*arguments) == pytest.approx(case["value"], rel=1e-6), case["name"]


def test_two_samples_golden(golden_metrics):
    golden = golden_metrics["fid_two_samples_closed_form"]
    assert frechet_distance(golden["x"], golden["y"]) == pytest.approx(golden["value"], rel=1e-12)


def test_two_samples_closed_form():
    """n = m = 2: |dmu|^2 + |dx|^2 / 2 + |dy|^2 / 2 - |dx.dy|, with dx, dy the differences of the two samples."""
    x, y = np.array([[0.0, 0, 0], [2, 0, 4]]), np.array([[1.0, 1, 1], [1, 3, 5]])
    mean_gap = np.square(x.mean(0) - y.mean(0)).sum()
    dx, dy = x[1] - x[0], y[1] - y[0]
    assert frechet_distance(x, y) == pytest.approx(mean_gap + dx @ dx / 2 + dy @ dy / 2 - abs(dx @ dy), rel=1e-12)
    assert frechet_distance(x, y) == pytest.approx(9.0, rel=1e-12)


def test_rank_deficient_agrees_with_the_released_tools():
    """Ten samples of 2048 features: pytorch-fid 0.3.0 and torch-fidelity 0.4.0 print 4294.33609, torchmetrics 1.9.0 4294.33574.

    Their error on a singular covariance is below 4e-7; the nuclear norm in NumPy gives 4294.33689.
    """
    generator = np.random.default_rng(2)
    x, y = generator.standard_normal((10, 2048)), generator.standard_normal((10, 2048))
    assert frechet_distance(x, y) == pytest.approx(4294.33609, rel=1e-6)
    assert frechet_distance(x, y) == pytest.approx(4294.33689, rel=2e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(10, 12, 40), (10, 200, 40), (200, 10, 40), (150, 200, 40), (50, 50, 1)])
def test_the_two_routes_agree(n, m, d):
    x, y = correlated(0, n, d), correlated(1, m, d)
    assert frechet_distance(x, y) == pytest.approx(frechet_from_moments(*moments(x), *moments(y)), rel=1e-6)


def test_full_rank_routes_agree_tightly(monkeypatch):
    x, y = correlated(0, 150, 40), correlated(1, 200, 40)
    low_rank = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "LOW_RANK_BELOW", 2)
    assert frechet_distance(x, y) == pytest.approx(low_rank, rel=1e-10)


def test_moments_are_those_of_numpy():
    x = correlated(0, 30, 5)
    mu, sigma = moments(x)
    np.testing.assert_allclose(mu, np.mean(x, axis=0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("n", "m"), [(12, 9), (90, 120)])
def test_invariances(n, m):
    x, y = correlated(0, n, 20), correlated(1, m, 20)
    rotation = np.linalg.qr(normal(2, 20, 20))[0]
    value = frechet_distance(x, y)
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(x + 3, y + 3) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(2 * x, 2 * y) == pytest.approx(4 * value, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(x[::-1], y) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("n", [2, 12, 90])
def test_identical_sets_are_at_zero(n):
    x = correlated(0, n, 20)
    assert 0 <= frechet_distance(x, x[::-1]) < 1e-9


def test_a_shift_costs_its_squared_length():
    x = correlated(0, 15, 20)
    assert frechet_distance(x, x + 0.5) == pytest.approx(20 * 0.25, rel=1e-9)


def test_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 3 * 8 * 8

        def forward(self, images):
            return images.double().flatten(1)

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(600, 3, 8, 8, generator=generator)
    y = torch.rand(500, 3, 8, 8, generator=generator) ** 1.5
    metric = module.FrechetInceptionDistance(feature=Flat(), normalize=True)
    metric.update(x, real=False)
    metric.update(y, real=True)
    assert frechet_distance(x.double().flatten(1), y.double().flatten(1)) == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 3)), np.zeros((2, 3)), "x: needs at least 2 samples, got 1"),
        (np.zeros((2, 3)), np.zeros((0, 3)), "y: needs at least 2 samples, got 0"),
        (np.zeros((2, 3)), np.zeros((2, 4)), "differ in width: 3 and 4"),
        (np.zeros(3), np.zeros((2, 3)), "expected features n d"),
        (np.full((2, 3), np.nan), np.zeros((2, 3)), "NaN"),
    ],
)
def test_wrong_features_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)


def test_moments_of_one_sample_are_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        moments(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="means d and covariances d d"):
        frechet_from_moments(np.zeros(2), np.eye(2), np.zeros(2), np.eye(3))
