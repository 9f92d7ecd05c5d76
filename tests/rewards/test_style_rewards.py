"""Style rewards: identities, golden values, what CoDe_ext released, and reference images that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.rewards import Reward
from guidedgen.rewards.style import gram
from guidedgen.rewards.style_clip_rn50 import StyleClipRn50
from guidedgen.rewards.style_gram_clip import StyleGramClip
from guidedgen.rewards.style_gram_vgg16 import StyleGramVgg16


@pytest.fixture
def rewards(tiny_clip, tiny_map):
    """Builders by name, of the reference's file."""
    return {
        "style_gram_clip": lambda image: StyleGramClip(features=tiny_map, image=image),
        "style_gram_vgg16": lambda image: StyleGramVgg16(features=tiny_map, image=image),
        "style_clip_rn50": lambda image: StyleClipRn50(clip=tiny_clip, image=image),
        "published": lambda image: StyleClipRn50(clip=tiny_clip, image=image, published_code_range=True),
    }


NAMES = ["style_gram_clip", "style_gram_vgg16", "style_clip_rn50", "published"]
BEST = {"style_gram_clip": 0, "style_gram_vgg16": 1, "style_clip_rn50": 100, "published": 100}


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_itself_scores_best_and_has_a_finite_gradient(name, rewards, reference, tasks, noise):
    reward = rewards[name](reference)
    same = images.read(Path(reference)).requires_grad_()
    assert isinstance(reward, Reward) and reward.differentiable
    value = reward(same, tasks("")).sum()
    assert value.item() == pytest.approx(BEST[name], abs=2e-6)
    [gradient] = torch.autograd.grad(value, same)
    assert gradient.isfinite().all()
    assert (reward(noise(4), tasks(*"abcd")) < BEST[name] - 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(name, rewards, reference, tasks, noise):
    reward = rewards[name](reference)
    assert torch.autograd.gradcheck(lambda x: reward(x, tasks("", "")), noise(2, 5).requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_one_file_for_all_or_each_tasks_own(name, rewards, reference, tmp_path, tasks, noise):
    other = tmp_path / "other.png"
    other.write_bytes(images.png(noise(1, 9, seed=6)[0]))
    mixed = [*tasks("", reference=reference), *tasks("", reference=str(other))]
    x = noise(2)
    values = rewards[name](None)(x, mixed)
    torch.testing.assert_close(values[0], rewards[name](reference)(x[:1], tasks(""))[0])
    torch.testing.assert_close(values[1], rewards[name](str(other))(x[1:], tasks(""))[0])
    rewards[name](None).check(mixed)
    for call in (lambda: rewards[name](None)(x, tasks("", "")), lambda: rewards[name](None).check(tasks("a"))):
        with pytest.raises(UsageError, match=r"task 0 has no reference image; give one for all with reward.image=FILE"):
            call()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_image_is_refused_at_once(name, rewards, tmp_path, tasks):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    for file in (str(tmp_path / "none.png"), str(broken), str(tmp_path)):
        with pytest.raises(UsageError, match=r"^reward\.image=.*cannot be read as an image") as caught:
            rewards[name](file)
        assert "\n" not in str(caught.value)
        with pytest.raises(UsageError, match="cannot be read as an image"):
            rewards[name](None).check(tasks("", reference=file))


@pytest.mark.parametrize("name", NAMES)
def test_other_ranges_and_counts_are_refused(name, rewards, reference, tasks, noise):
    reward = rewards[name](reference)
    with pytest.raises(ValueError, match="expected values in"):
        reward(2 * noise(1) - 1, tasks(""))
    with pytest.raises(ValueError, match="2 images, but 1 tasks"):
        reward(noise(2), tasks(""))


def test_references_are_embedded_once_and_first_in_inference_mode_if_so(tiny_map, reference, tasks, noise):
    reward, x = StyleGramClip(features=tiny_map, image=reference), noise(3)
    assert tiny_map.asked == 0
    with torch.inference_mode():
        reward(x, tasks(*"abc"))
    reward(x, tasks(*"abc"))
    assert tiny_map.asked == 3 + 3 + 1
    [gradient] = torch.autograd.grad(reward(x.requires_grad_(), tasks(*"abc")).sum(), x)
    assert gradient.abs().sum() > 0


def test_gram_clip_is_the_frobenius_norm(tiny_map, reference, tasks, noise):
    """Against NumPy."""
    x = noise(1)
    f, g = (np.asarray(tiny_map(y.double())[0]) for y in (x, images.read(Path(reference))))
    expected = -np.linalg.norm(f.T @ f - g.T @ g, "fro")
    assert StyleGramClip(features=tiny_map, image=reference)(x, tasks("")).item() == pytest.approx(expected, rel=1e-6)


def test_gram_vgg16_golden_value(golden_metrics, reference, tasks):
    golden = golden_metrics["i_gram"]["hand"]
    f, g = (torch.tensor(golden[key], dtype=torch.float64).flatten(1).T[None] for key in ("f", "g"))

    class Fixed:
        name = "fixed"

        def __call__(self, pixels):
            return f if pixels.shape[-1] == 2 else g

    score = StyleGramVgg16(features=Fixed(), image=reference)(torch.zeros(1, 3, 2, 2), tasks(""))
    assert score.item() == pytest.approx(golden["cosine"], abs=1e-12)


def test_gram_vgg16_ignores_places_and_the_scale_of_features(reference, tasks, noise, tiny_map):
    class Other:
        name = "other"

        def __call__(self, pixels):
            return 3 * tiny_map(pixels)[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]

    x = noise(2)
    plain, changed = (StyleGramVgg16(features=f, image=reference)(x, tasks("", "")) for f in (tiny_map, Other()))
    torch.testing.assert_close(plain, changed)
    assert ((plain > 0) & (plain <= 1)).all()
    assert gram(tiny_map(x)).shape == (2, 6, 6)


def test_published_code_range_is_what_stylescorer_computes(tiny_clip, reference, tasks, noise):
    """The steps of CoDe_ext's stylescorer.py through torchvision: (x + 1) / 2, Resize((s, s)) bicubic, ImageNet statistics."""
    import torchvision.transforms.functional as TF
    from torchvision.transforms import InterpolationMode

    def encode(x):
        x = TF.resize((x.double() + 1) * 0.5, (tiny_clip.size,) * 2, interpolation=InterpolationMode.BICUBIC)
        return tiny_clip.encode_pixels(TF.normalize(x, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]))

    x = noise(2, 11)[..., :7]  # not square: it is squashed
    expected = 100 * F.cosine_similarity(encode(x), encode(images.read(Path(reference))))
    values = StyleClipRn50(clip=tiny_clip, image=reference, published_code_range=True)(x, tasks("", ""))
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(values, StyleClipRn50(clip=tiny_clip, image=reference)(x, tasks("", "")), atol=0.1)


def test_published_code_range_needs_a_clip_that_takes_pixels(reference):
    class Lab:
        name = "lab-guide"

    with pytest.raises(UsageError, match="lab-guide has a preparation of its own; use zoo=hub"):
        StyleClipRn50(clip=Lab(), image=reference, published_code_range=True)


def test_networks_that_guide(rewards):
    assert [rewards[name](None).networks for name in NAMES] == [("tiny-map",), ("tiny-map",), ("tiny",), ("tiny",)]
