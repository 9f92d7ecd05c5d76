"""KID and CMMD: closed forms, sums over pairs written out, agreement with torchmetrics, estimator identities."""

import itertools

import numpy as np
import pytest

from guidedgen.metrics.kernel import cmmd, cmmd_unbiased, kid, kid_subsets


def normal(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d))


def unit(seed, n, d=6):
    x = normal(seed, n, d)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairwise(kernel, x, y, *, diagonal):
    """MMD^2, one pair at a time."""

    def mean(a, b, *, keep):
        return np.mean([kernel(a[i], b[j]) for i, j in itertools.product(range(len(a)), range(len(b))) if keep or i != j])

    return mean(x, x, keep=diagonal) + mean(y, y, keep=diagonal) - 2 * mean(x, y, keep=True)


def gaussian(a, b):
    return np.exp(-np.sum((a - b) ** 2) / 200)


def test_kid_closed_form():
    """On x = y = {0, 1}: k(0, 1) = 1, k(1, 1) = 8, so 1 + 1 - 2 (1 + 1 + 1 + 8) / 4."""
    x = np.array([[0.0], [1.0]])
    assert kid(x, x) == pytest.approx(-3.5, rel=1e-12)


def test_kid_is_the_sum_over_pairs():
    x, y = normal(0, 7, 5), normal(1, 9, 5)
    expected = pairwise(lambda a, b: (a @ b / 5 + 1) ** 3, x, y, diagonal=False)
    assert kid(x, y) == pytest.approx(expected, rel=1e-10)
    assert kid(x, y, chunk=2) == pytest.approx(expected, rel=1e-10)


def test_kid_of_ten_samples_golden():
    """-0.008: the full-set value of two sets of ten N(0, I) samples, where FID says 4294 (NumPy, seed 2)."""
    generator = np.random.default_rng(2)
    assert kid(generator.standard_normal((10, 2048)), generator.standard_normal((10, 2048))) == pytest.approx(-0.008, abs=5e-4)


def test_kid_is_unbiased():
    """Over all splits of 6 points into halves, every pair is as often within as across: the values average to 0 exactly."""
    points = normal(3, 6, 4)
    values = []
    for chosen in itertools.combinations(range(6), 3):
        rest = [i for i in range(6) if i not in chosen]
        values.append(kid(points[list(chosen)], points[rest]))
    assert np.mean(values) == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_kid_agrees_with_torchmetrics():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torchmetrics.image.kid")

    class Flat(torch.nn.Module):
        num_features = 3 * 8 * 8

        def forward(self, images):
            return images.double().flatten(1)

    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 3, 8, 8, generator=generator)
    y = torch.rand(60, 3, 8, 8, generator=generator) ** 1.5
    metric = module.KernelInceptionDistance(feature=Flat(), normalize=True, subsets=2, subset_size=60)
    metric.update(x, real=False)
    metric.update(y, real=True)
    mean, std = metric.compute()
    x, y = x.double().flatten(1), y.double().flatten(1)
    assert kid(x, y) == pytest.approx(float(mean), rel=1e-6)
    assert kid_subsets(x, y, 2, 60, 0)[0] == pytest.approx(float(mean), rel=1e-6)
    assert float(std) == pytest.approx(0, abs=1e-9)


def test_subsets_of_full_size_are_the_full_value():
    x, y = normal(0, 8, 5), normal(1, 8, 5)
    mean, std = kid_subsets(x, y, 5, 8, seed=0)
    assert mean == pytest.approx(kid(x, y), rel=1e-10)
    assert std == pytest.approx(0, abs=1e-12)


def test_subsets_estimate_the_full_value_and_follow_the_seed():
    x, y = normal(0, 40, 5), normal(1, 40, 5) + 0.5
    mean, std = kid_subsets(x, y, 400, 10, seed=0)
    assert abs(mean - kid(x, y)) < 4 * std / np.sqrt(400)
    assert kid_subsets(x, y, 400, 10, seed=0) == (mean, std)
    assert kid_subsets(x, y, 400, 10, seed=1) != (mean, std)


@pytest.mark.parametrize(
    ("subsets", "size", "message"), [(1, 9, "subset_size: expected 2 to 8"), (1, 1, "2 to 8"), (0, 4, "subsets")]
)
def test_wrong_subsets_are_refused(subsets, size, message):
    with pytest.raises(ValueError, match=message):
        kid_subsets(normal(0, 8, 5), normal(1, 10, 5), subsets, size, seed=0)


@pytest.mark.parametrize(
    ("x", "y", "value"),
    [
        ([[1.0, 0.0]], [[0.0, 1.0]], 1000 * (2 - 2 * np.exp(-2 / 200))),
        ([[1.0, 0.0]], [[-1.0, 0.0]], 1000 * (2 - 2 * np.exp(-4 / 200))),  # the largest of unit vectors
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0]], 1000 * (1 - np.exp(-0.01)) / 2),
    ],
)
def test_cmmd_closed_forms(x, y, value):
    assert cmmd(x, y) == pytest.approx(value, abs=1e-9)


def test_cmmd_golden(golden_metrics):
    for case in golden_metrics["cmmd_closed_form"]:
        assert cmmd(case["x"], case["y"]) == pytest.approx(case["biased"], abs=1e-9), case["name"]


def test_cmmd_is_the_sum_over_pairs():
    x, y = unit(0, 7), unit(1, 9)
    assert cmmd(x, y) == pytest.approx(1000 * pairwise(gaussian, x, y, diagonal=True), abs=1e-9)
    assert cmmd(x, y, chunk=2) == pytest.approx(cmmd(x, y), abs=1e-11)
    assert cmmd_unbiased(x, y) == pytest.approx(1000 * pairwise(gaussian, x, y, diagonal=False), abs=1e-9)


def test_cmmd_is_nearly_the_mean_distance():
    """sigma = 10 makes the kernel almost linear on the unit sphere: CMMD is 10 |mean x - mean y|^2 within 1 per cent."""
    x, y = unit(0, 30), unit(1, 30)
    assert cmmd(x, y) == pytest.approx(10 * np.square(x.mean(0) - y.mean(0)).sum(), rel=0.01)


def test_cmmd_bias_is_that_of_the_diagonal():
    """Equal sets of n: every off-diagonal mean is u, so biased = 0 and unbiased = -2 (1 - u) / n."""
    x = unit(0, 10)
    u = np.mean([gaussian(a, b) for a, b in itertools.permutations(x, 2)])
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert cmmd_unbiased(x, x) == pytest.approx(-1000 * 2 * (1 - u) / 10, abs=1e-9)


@pytest.mark.parametrize("distance", [kid, cmmd_unbiased])
def test_unbiased_needs_two_samples(distance):
    with pytest.raises(ValueError, match="x: needs at least 2 samples, got 1"):
        distance(unit(0, 1), unit(1, 3))


def test_cmmd_needs_one_sample():
    with pytest.raises(ValueError, match="y: needs at least 1 sample, got 0"):
        cmmd(unit(0, 1), np.zeros((0, 6)))
