"""Set metrics and feature extraction."""

import numpy as np
import pytest
import torch

from guidedgen.metrics.frechet import frechet_distance
from guidedgen.metrics.kernel import cmmd, cmmd_unbiased, kid
from guidedgen.metrics.sets import Cmmd, Fid, Kid, PerPrompt, extract


class Flat:
    """Pixels as features."""

    name = "flat"

    def __call__(self, images):
        return images.flatten(1)


class Convolution(torch.nn.Module):
    """A small network with parameters that require gradients."""

    name = "convolution"

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 5, 3, dtype=torch.float64)

    def forward(self, images):
        return self.layer(images.double()).square().mean(dim=(2, 3))


def unit(seed, n):
    x = np.random.default_rng(seed).standard_normal((n, 6))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pictures(n):
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_values_are_those_of_the_distances():
    x, y = unit(0, 5), unit(1, 7)
    assert Fid(features=Flat())(x, y) == {"fid": frechet_distance(x, y)}
    assert Kid(features=Flat())(x, y) == {"kid": kid(x, y)}
    assert Cmmd(features=Flat())(x, y) == {"cmmd": cmmd(x, y), "cmmd_unbiased": cmmd_unbiased(x, y)}


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (1, 1)])
def test_undefined_values_are_left_out(n, m):
    x, y = unit(0, n), unit(1, m)
    assert Fid(features=Flat())(x, y) == {}
    assert Kid(features=Flat())(x, y) == {}
    assert Cmmd(features=Flat())(x, y) == {"cmmd": cmmd(x, y)}


def test_cmmd_refuses_embeddings_that_are_not_normalised():
    with pytest.raises(ValueError, match="unit length from flat"):
        Cmmd(features=Flat())(2 * unit(0, 5), unit(1, 5))


@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_extraction_does_not_depend_on_the_batch_size(size):
    whole = pictures(10)
    network = Convolution()
    features = extract(network, whole.split(size))
    np.testing.assert_allclose(features, extract(network, [whole]), rtol=1e-12)
    assert features.shape == (10, 5)
    assert features.dtype == np.float64


def test_extraction_keeps_order_and_values():
    whole = pictures(5)
    np.testing.assert_array_equal(extract(Flat(), whole.split(2), device="cpu"), whole.flatten(1).double().numpy())


def test_extraction_builds_no_graph_and_leaves_gradients_on():
    seen = []

    class Watch(Flat):
        def __call__(self, images):
            seen.append(torch.is_grad_enabled())
            return super().__call__(images)

    extract(Watch(), [pictures(2).requires_grad_()])
    assert seen == [False]
    assert torch.is_grad_enabled()


def test_extraction_of_half_precision_features():
    class Half(Flat):
        def __call__(self, images):
            return super().__call__(images).bfloat16()

    whole = pictures(3)
    np.testing.assert_array_equal(extract(Half(), [whole]), whole.flatten(1).bfloat16().double().numpy())


def test_extraction_refuses_what_it_cannot_use():
    with pytest.raises(ValueError, match="flat: no images"):
        extract(Flat(), [])
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
        extract(Flat(), [2 * pictures(2)])

    class Maps(Flat):
        def __call__(self, images):
            return images

    with pytest.raises(ValueError, match=r"flat: expected features 2 d, got \(2, 3, 8, 8\)"):
        extract(Maps(), [pictures(2)])


def test_a_distance_per_prompt_is_that_of_each_prompts_pictures():
    groups = [(unit(0, 4), unit(1, 3)), (unit(2, 2), unit(3, 5)), (unit(4, 1), unit(5, 6)), (unit(6, 6), unit(7, 1))]
    whole = groups[:2]  # the others have one picture on a side
    fid, both = PerPrompt(metric=Fid(features=Flat())), PerPrompt(metric=Cmmd(features=Flat()))
    assert fid(groups) == {"fid_per_prompt": [frechet_distance(x, y) for x, y in whole]}
    assert both(groups) == {
        "cmmd_per_prompt": [cmmd(x, y) for x, y in whole],
        "cmmd_unbiased_per_prompt": [cmmd_unbiased(x, y) for x, y in whole],
    }
    assert fid(groups[2:]) == fid([]) == {}
    assert fid.name == "fid_per_prompt"
    assert fid.features is fid.metric.features


def test_ten_pictures_of_one_law_are_as_far_apart_as_bias_makes_them():
    """FID of 10 and 10 draws of N(0, I_64) is 100.8 on average over 50 (89 to 114), of 500 and 500 pooled next to nothing."""
    generator = np.random.default_rng(0)
    groups = [(generator.standard_normal((10, 64)), generator.standard_normal((10, 64))) for _ in range(50)]
    apart = PerPrompt(metric=Fid(features=Flat()))(groups)["fid_per_prompt"]
    x, y = (np.concatenate(side) for side in zip(*groups, strict=True))
    assert np.mean(apart) == pytest.approx(100.8, abs=2)
    assert Fid(features=Flat())(x, y)["fid"] < 15
