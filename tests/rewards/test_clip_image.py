"""ClipImage: a weighted mean over CLIPs, references, and weights that make none."""

import copy
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.rewards import Reward
from guidedgen.rewards.clip_image import ClipImage
from guidedgen.runs import composition, config


@pytest.fixture
def clips(tiny_clip):
    """Two that differ."""
    other = copy.deepcopy(tiny_clip)
    other.name, other.weight = "other", tiny_clip.weight.roll(1, 0) + 0.1
    return {"a": tiny_clip, "b": other}


def test_is_the_weighted_mean_of_doodl_s_distances(clips, reference, tasks, noise):
    x, y = noise(3), images.read(Path(reference))
    reward = ClipImage(clips=clips, weights={"a": 3, "b": 1}, image=reference)
    angles = {name: (clip.encode_image(x) * clip.encode_image(y)).sum(-1).arccos() for name, clip in clips.items()}
    expected = -(3 * angles["a"] ** 2 / 2 + angles["b"] ** 2 / 2) / 4
    torch.testing.assert_close(reward(x, tasks(*"abc")), expected)
    cosine = ClipImage(clips=clips, weights={"a": 3, "b": 1}, image=reference, distance="cosine")
    torch.testing.assert_close(cosine(x, tasks(*"abc")), (3 * angles["a"].cos() + angles["b"].cos()) / 4)
    for one in (reward, cosine):
        assert isinstance(one, Reward) and one.differentiable and one.networks == ("tiny", "other")


@pytest.mark.parametrize(("distance", "best"), [("spherical", 0), ("cosine", 1)])
def test_the_reference_itself_scores_best_and_has_a_finite_gradient(distance, best, clips, reference, tasks, noise):
    reward = ClipImage(clips=clips, weights={"a": 1, "b": 1}, image=reference, distance=distance)
    same = images.read(Path(reference)).requires_grad_()
    value = reward(same, tasks("")).sum()
    assert value.item() == pytest.approx(best, abs=1e-12)
    [gradient] = torch.autograd.grad(value, same)
    assert gradient.isfinite().all()
    assert (reward(noise(4), tasks(*"abcd")) < best - 1e-4).all()


def test_gradient_is_that_of_finite_differences(clips, reference, tasks, noise):
    reward = ClipImage(clips=clips, weights={"a": 0.5, "b": 0.25}, image=reference)
    assert torch.autograd.gradcheck(lambda x: reward(x, tasks("", "")), noise(2, 5).requires_grad_())


def test_each_tasks_own_reference(clips, reference, tmp_path, tasks, noise):
    other = tmp_path / "other.png"
    other.write_bytes(images.png(noise(1, 9, seed=6)[0]))
    mixed, x = [*tasks("", reference=reference), *tasks("", reference=str(other))], noise(2)
    weights = {"a": 1, "b": 2}
    values = ClipImage(clips=clips, weights=weights)(x, mixed)
    torch.testing.assert_close(values[0], ClipImage(clips=clips, weights=weights, image=reference)(x[:1], tasks(""))[0])
    torch.testing.assert_close(values[1], ClipImage(clips=clips, weights=weights, image=str(other))(x[1:], tasks(""))[0])
    ClipImage(clips=clips, weights=weights).check(mixed)
    with pytest.raises(UsageError, match=r"^reward=clip_image: task 0 has no reference image; give one for all"):
        ClipImage(clips=clips, weights=weights).check(tasks("a"))
    with pytest.raises(UsageError, match=r"^reward\.image=.*cannot be read as an image") as caught:
        ClipImage(clips=clips, weights=weights, image=str(tmp_path / "none.png"))
    assert "\n" not in str(caught.value)


def test_a_clip_of_no_weight_is_not_asked(clips, reference, tasks, noise):
    clips["b"].encode_image = None  # a call would fail
    one = ClipImage(clips=clips, weights={"a": 0.5, "b": 0}, image=reference)
    assert one.networks == ("tiny",) and list(one.reports) == ["clip_image_a"]
    alone = ClipImage(clips={"a": clips["a"]}, weights={"a": 1, "gone": 0}, image=reference)
    assert torch.equal(one(noise(2), tasks(*"ab")), alone(noise(2), tasks(*"ab")))


def test_each_clip_s_cosine_is_reported(clips, reference, tasks, noise):
    x, y = noise(2), images.read(Path(reference))
    reports = ClipImage(clips=clips, weights={"a": 2, "b": 1}, image=reference).reports
    assert list(reports) == ["clip_image_a", "clip_image_b"]
    expected = (clips["b"].encode_image(x) * clips["b"].encode_image(y)).sum(-1)
    torch.testing.assert_close(reports["clip_image_b"](x, tasks("", "")), expected)
    assert reports["clip_image_b"].reports == {}


def test_other_ranges_and_counts_are_refused(clips, reference, tasks, noise):
    reward = ClipImage(clips=clips, weights={"a": 1, "b": 1}, image=reference)
    with pytest.raises(ValueError, match="clip_image: expected values in"):
        reward(2 * noise(1) - 1, tasks(""))
    with pytest.raises(ValueError, match="2 images, but 1 tasks"):
        reward(noise(2), tasks(""))


@pytest.mark.parametrize(
    ("weights", "name", "rule"),
    [
        ({"a": 1, "b": 1, "c": 1}, "weights.c", "no CLIP of this name; choose from a, b"),
        ({"a": 1}, "clips.b", "has no weight; give it one as weights.b"),
        ({"a": 1, "b": -1}, "weights.b", "not below 0"),
        ({"a": 1, "b": math.nan}, "weights.b", "finite"),
        ({"a": 0, "b": 0.0}, "weights", "all are 0"),
    ],
)
def test_wrong_weights(weights, name, rule, clips):
    with pytest.raises(BadValue, match=rule) as caught:
        ClipImage(clips=clips, weights=weights)
    assert caught.value.name == name


def test_from_the_command_line(reference):
    def reward_of(*overrides):
        cfg = composition.composed(["model=lab", "reward=clip_image", "device=cpu", "dtype=float32", *overrides])
        OmegaConf.resolve(cfg)
        return config.build(cfg.reward, "reward")

    weights = {"b32": 0.5, "l14": 0.25, "g14": 0.25}  # the paper's, 5.4
    assert reward_of().weights == weights
    assert reward_of().networks == ("lab-guide", "lab-preference")
    assert reward_of("~reward.clips.g14", "reward.weights.g14=0", f"reward.image={reference}").weights == {**weights, "g14": 0}
    for override, match in {
        "reward.weights.b32=-1": r"^reward\.weights\.b32=-1: must be finite and not below 0",
        "+reward.weights.h14=1": r"^reward\.weights\.h14=1: there is no CLIP of this name",
        "reward.distance=euclid": r"^reward\.distance=euclid: no such choice.*spherical",
    }.items():
        with pytest.raises(UsageError, match=match) as caught:
            reward_of(override)
        assert "\n" not in str(caught.value)
