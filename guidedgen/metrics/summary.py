"""Per-image and per-class numbers to one line of a table.

Rewards come as {prompt: rewards of its images, in order of their seeds}. Prompts weigh the same, however many images they have.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from guidedgen.metrics.features import Array


def prompt_means(rewards: Mapping[str, Sequence[float]]) -> Array:
    """Mean over images, one per prompt in the mapping's order. ValueError for no prompt, or one without images or with NaN."""
    if not rewards:
        raise ValueError("no prompts to average over")
    for prompt, values in rewards.items():
        if len(values) == 0 or not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            raise ValueError(f"prompt {prompt!r}: expected finite values of at least one image, got {list(values)}")
    return np.array([np.mean(np.asarray(values, dtype=np.float64)) for values in rewards.values()])


def expected_reward(rewards: Mapping[str, Sequence[float]]) -> float:
    """Mean over prompts of the mean over images (CoDe)."""
    return float(prompt_means(rewards).mean())


def win_rate(rewards: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]) -> float:
    """Fraction, in [0, 1], of images strictly above the base model's image of the same prompt and index; mean over prompts (CoDe).

    A tie is no win. ValueError where the base lacks a prompt, or has another number of images for it.
    """
    wins = {}
    for prompt, values in rewards.items():
        if len(base.get(prompt, ())) != len(values):
            raise ValueError(f"prompt {prompt!r}: {len(values)} images against {len(base.get(prompt, ()))} of the base")
        finite = np.isfinite([*values, *base[prompt]]).all()
        wins[prompt] = [float(a > b) if finite else np.nan for a, b in zip(values, base[prompt], strict=True)]
    return expected_reward(wins)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassChange:
    """Change of a per-class distance against the unguided model, in percent; negative is nearer to the reference."""

    per_class: Mapping[str, float]
    mean_of_percent: float  # mean over classes of the percent change: what guidedgen tabulates
    percent_of_means: float  # percent change of the mean over classes: logged too, the papers do not say which they print


def class_change_percent(guided: Mapping[str, float], base: Mapping[str, float]) -> ClassChange:
    """100 (guided - base) / base, per class and summarised in the two ways (the tables of DOODL and AdjointDPM).

    ValueError where the classes differ, are none, or a base value is not above 0.
    """
    if guided.keys() != base.keys() or not guided:
        raise ValueError(f"expected the same classes, at least one: {sorted(guided)} and {sorted(base)}")
    for name, value in base.items():
        if not value > 0:
            raise ValueError(f"class {name!r}: percent of a base value that is not above 0: {value}")
    per_class = {name: 100 * (guided[name] - base[name]) / base[name] for name in guided}
    total_guided, total_base = sum(guided.values()), sum(base.values())
    return ClassChange(
        per_class=per_class,
        mean_of_percent=sum(per_class.values()) / len(per_class),
        percent_of_means=100 * (total_guided - total_base) / total_base,
    )


def bootstrap_interval(values: npt.ArrayLike, *, seed: int, level: float = 0.95, resamples: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, one per prompt (see `prompt_means`): low and high end.

    Prompts are drawn with replacement; images of one prompt stay together, as they are not independent. Same seed, same interval.
    ValueError for no values, values that are not finite, or a level outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"bootstrap: expected a list of finite values, got shape {array.shape}")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"bootstrap: expected a level in (0, 1) and resamples above 0, got {level} and {resamples}")
    generator = np.random.default_rng(seed)
    rows = max(1, 2**16 // array.size)  # at a time: they are the same draws one by one
    drawn = [min(rows, resamples - done) for done in range(0, resamples, rows)]
    means = np.concatenate([array[generator.integers(array.size, size=(count, array.size))].mean(1) for count in drawn])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), without continuity correction: low and high end, in [0, 1].

    Its ends are the p from which `successes` of `trials` are z standard deviations away: |k/n - p| = z sqrt(p (1 - p) / n). Trials
    count as independent. ValueError for no trials, other counts than 0 <= k <= n, or a level outside (0, 1).
    """
    if not 0 <= successes <= trials or trials < 1 or not 0 < level < 1:
        raise ValueError(f"Wilson interval: expected a level in (0, 1) and k of n, got {level} and {successes} of {trials}")
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    middle = successes + z**2 / 2
    half = z * math.sqrt(successes * (trials - successes) / trials + z**2 / 4)
    low, high = (middle - half) / (trials + z**2), (middle + half) / (trials + z**2)
    return (low if successes else 0.0), (high if successes < trials else 1.0)  # exact there, but for rounding
