"""Differences picture by picture."""

import numpy as np
import pytest
import torch

from guidedgen.metrics.paired import Rmse
from guidedgen.metrics.sets import extract


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_it_is_of_each_picture_and_its_own() -> None:
    x, offsets = pictures(3), (0.0, 0.1, 0.4)
    y = torch.stack([picture + offset for picture, offset in zip(x, offsets, strict=True)]).clamp(0, 2)
    rmse = Rmse()
    values = rmse(*(extract(rmse.features, [images.double() / 2]) for images in (x, y)))
    assert values == {"rmse": pytest.approx(0.25 / 3, rel=1e-6)}


def test_order_matters() -> None:
    x = pictures(4).flatten(1).double().numpy()
    assert Rmse()(x, x) == {"rmse": 0}
    assert Rmse()(x, x[::-1])["rmse"] == pytest.approx(np.sqrt(((x - x[::-1]) ** 2).mean(1)).mean())
    assert Rmse()(x, x[::-1])["rmse"] > 0.1


def test_sets_of_other_sizes_are_no_pairs() -> None:
    x = pictures(4).flatten(1).double().numpy()
    assert Rmse()(x, x[:3]) == {}
