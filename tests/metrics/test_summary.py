"""Summaries over prompts and classes."""

import numpy as np
import pytest
import torch

from guidedgen.metrics.summary import (
    bootstrap_interval,
    class_change_percent,
    expected_reward,
    prompt_means,
    wilson_interval,
    win_rate,
)


def test_expected_reward_weighs_prompts_not_images():
    rewards = {"cat": [1.0, 3.0], "dog": [8.0]}
    np.testing.assert_array_equal(prompt_means(rewards), [2.0, 8.0])
    assert expected_reward(rewards) == 5.0


def test_expected_reward_at_equal_counts_is_the_plain_mean():
    values = np.random.default_rng(0).standard_normal((6, 4))
    assert expected_reward({str(i): row for i, row in enumerate(values.tolist())}) == pytest.approx(values.mean(), rel=1e-12)


@pytest.mark.parametrize("rewards", [{}, {"cat": []}, {"cat": [1.0, float("nan")]}])
def test_undefined_rewards_are_refused(rewards):
    with pytest.raises(ValueError, match="no prompts|prompt 'cat'"):
        expected_reward(rewards)


def test_win_rate_counts_strictly_greater():
    assert win_rate({"cat": [1.0, 2.0, 2.0, 0.5]}, {"cat": [0.5, 2.0, 1.0, 0.6]}) == 0.5
    assert win_rate({"cat": [1.0, 2.0]}, {"cat": [1.0, 2.0]}) == 0.0


def test_win_rate_golden(golden_metrics):
    golden = golden_metrics["win_rate"]
    assert win_rate({"cat": golden["reward"]}, {"cat": golden["base"]}) == golden["strict_greater"]


def test_win_rate_is_the_mean_over_prompts():
    rewards, base = {"cat": [1.0], "dog": [1.0, 1.0, 1.0]}, {"dog": [0.0, 2.0, 2.0], "cat": [0.0], "owl": [0.0]}
    assert win_rate(rewards, base) == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize("base", [{}, {"cat": [1.0]}, {"cat": [1.0, float("nan")]}])
def test_win_rate_needs_the_base(base):
    with pytest.raises(ValueError, match="prompt 'cat'"):
        win_rate({"cat": [1.0, 2.0]}, base)


def test_class_change():
    change = class_change_percent({"a": 114.0, "b": 84.0, "c": 180.0}, {"a": 120.0, "b": 80.0, "c": 200.0})
    assert change.per_class == pytest.approx({"a": -5.0, "b": 5.0, "c": -10.0})
    assert change.mean_of_percent == pytest.approx(-10 / 3)
    assert change.percent_of_means == pytest.approx(-5.5)


def test_class_change_golden(golden_metrics):
    golden = golden_metrics["per_class_fid_change"]
    change = class_change_percent(dict(zip("abc", golden["guided"], strict=True)), dict(zip("abc", golden["base"], strict=True)))
    assert list(change.per_class.values()) == pytest.approx(golden["percent_each"])
    assert change.mean_of_percent == pytest.approx(golden["mean_of_percent"])
    assert change.percent_of_means == pytest.approx(golden["percent_of_means"])


@pytest.mark.parametrize(("guided", "base"), [({}, {}), ({"a": 1.0}, {"b": 1.0}), ({"a": 1.0}, {"a": 0.0})])
def test_class_change_refuses_what_has_no_percent(guided, base):
    with pytest.raises(ValueError, match="same classes|not above 0"):
        class_change_percent(guided, base)


def test_bootstrap_of_two_values_is_binomial():
    """Means of resamples of {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.95, resamples=500) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], seed=0, level=0.3, resamples=500) == (0.5, 0.5)


def test_bootstrap_of_many_values_is_normal():
    values = np.random.default_rng(0).standard_normal(400)
    low, high = bootstrap_interval(values, seed=0, resamples=4000)
    half = 1.959964 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_follows_its_seed():
    values = np.random.default_rng(0).standard_normal(30)
    assert bootstrap_interval(values, seed=1, resamples=100) == bootstrap_interval(values, seed=1, resamples=100)
    assert bootstrap_interval(values, seed=1, resamples=100) != bootstrap_interval(values, seed=2, resamples=100)
    assert bootstrap_interval([3.0], seed=0, resamples=10) == (3.0, 3.0)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([float("nan")], 0.95), ([1.0], 1.0)])
def test_bootstrap_refuses_what_it_cannot_resample(values, level):
    with pytest.raises(ValueError, match="bootstrap"):
        bootstrap_interval(values, seed=0, level=level)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_golden(successes, trials, low, high):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, Table I, method 3."""
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (3, 7), (7, 7), (40, 60)])
def test_wilson_ends_solve_the_quadratic(successes, trials, level):
    """(k/n - p)^2 = z^2 p (1 - p) / n, z by another table of the normal distribution."""
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    ends = wilson_interval(successes, trials, level)
    for p in ends:
        assert (successes / trials - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / trials, abs=1e-7)
    assert 0 <= ends[0] < ends[1] <= 1
    assert ends == pytest.approx([1 - p for p in wilson_interval(trials - successes, trials, level)[::-1]], abs=1e-12)


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 3), (4, 3), (1, 3, 0.0), (1, 3, 1.0)])
def test_wilson_refuses_what_is_no_proportion(arguments):
    with pytest.raises(ValueError, match="Wilson"):
        wilson_interval(*arguments)
