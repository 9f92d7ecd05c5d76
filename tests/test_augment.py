"""Random copies of pictures: what is drawn, what becomes of a picture, and its gradient."""

import dataclasses
import math

import pytest
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine

from guidedgen.basics.augment import Augmentations, Copies, averaged
from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise

NOTHING = {
    "degrees": 0.0,
    "translate": 0.0,
    "perspective_odds": 0.0,
    "jitter_odds": 0.0,
    "erase_odds": 0.0,
    "copy_grain": 0.0,
    "grain": 0.0,
}


def pictures(k: int = 4, side: int = 24) -> torch.Tensor:
    return torch.rand(k, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def drawn(keys: str = "ab", side: int = 24, **options) -> Copies:
    return Augmentations(**{"count": 5, **options}).draw(Noise(list(keys)), side, side)


def shown(copies: Copies, images: torch.Tensor) -> torch.Tensor:
    """Every copy of every picture, b v 3 H W."""
    b, v = len(images), copies.count
    owners, kinds = torch.arange(b).repeat_interleave(v), torch.arange(v).repeat(b)
    return copies(images[owners], owners, kinds).unflatten(0, (b, v))


def test_with_everything_off_a_copy_is_the_picture() -> None:
    images = pictures(2)
    for copy in shown(drawn(**NOTHING), images).unbind(1):
        torch.testing.assert_close(copy, images, atol=1e-6, rtol=0)


def test_copies_differ_and_stay_in_range() -> None:
    found = shown(drawn(), pictures(2)).flatten(0, 1)
    assert found.min() >= 0 and found.max() <= 1
    distances = torch.cdist(found.flatten(1), found.flatten(1))
    assert distances[~torch.eye(len(found), dtype=torch.bool)].min() > 0.5


def test_a_sample_does_not_know_its_neighbours() -> None:
    images = pictures(2)
    torch.testing.assert_close(shown(drawn("ab"), images)[1], shown(drawn("b"), images[1:])[0], rtol=0, atol=0)


def test_a_copy_s_gradient_does_not_know_the_other_copies() -> None:
    """A picture with grey things in it, where colours tie; about half of the copies are not jittered."""
    images, copies = pictures(1), drawn("a", count=8)
    images[..., 12:] = images[:, :1, :, 12:]
    owner, together, alone = (
        torch.zeros(8, dtype=torch.long),
        images.expand(8, -1, -1, -1).clone(),
        images.expand(8, -1, -1, -1).clone(),
    )
    together.requires_grad_(), alone.requires_grad_()
    (copies(together, owner, torch.arange(8)) ** 2).sum().backward()
    for v in range(8):
        (copies(alone[v : v + 1], owner[:1], torch.tensor([v])) ** 2).sum().backward()
    torch.testing.assert_close(together.grad, alone.grad, rtol=1e-9, atol=1e-12)


def test_what_is_fresh_at_every_draw() -> None:
    noise, options = Noise(["a"]), Augmentations(count=3)
    first, second = options.draw(noise, 24, 24), options.draw(noise, 24, 24)
    for name in ("warps", "erased", "grain"):
        assert not torch.equal(getattr(first, name), getattr(second, name))


def test_the_affine_map_is_kornias() -> None:
    copies = drawn("a", **{**NOTHING, "degrees": 30.0, "translate": 0.1})
    images, warp = pictures(1).float(), copies.warps[0]
    angle = torch.atan2(warp[:, 0, 1], warp[:, 0, 0]) * 180 / math.pi
    middle = torch.tensor([11.5, 11.5, 1.0], dtype=warp.dtype)
    moved = (warp @ middle)[:, :2] - middle[:2]
    assert angle.abs().max() <= 30 and moved.abs().max() <= 2.4 and angle.std() > 5
    matrix = get_affine_matrix2d(moved, middle[:2].expand(5, 2), torch.ones(5, 2, dtype=warp.dtype), -angle)  # clockwise there
    expected = warp_affine(images.expand(5, -1, -1, -1), matrix[:, :2].float(), (24, 24), align_corners=True)
    torch.testing.assert_close(shown(copies, images)[0], expected, atol=1e-4, rtol=0)


def test_perspective_moves_corners_inwards_by_at_most_half_its_share() -> None:
    warps = drawn("abcdefgh", **{**NOTHING, "perspective_odds": 0.4}).warps
    corners = torch.tensor([[0, 0, 1], [23, 0, 1], [23, 23, 1], [0, 23, 1]], dtype=warps.dtype)
    moved = warps @ corners.T
    moved = (moved[..., :2, :] / moved[..., 2:, :]).transpose(-1, -2)
    inwards = (moved - corners[:, :2]) * torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    assert inwards.min() > -1e-6 and inwards.max() <= 0.1 * 24 + 1e-6
    tilted = (inwards > 1e-3).any(-1).any(-1)
    assert 0.15 < tilted.double().mean() < 0.65  # 40 draws at odds of 0.4


def test_colours_are_those_of_the_formulas() -> None:
    copies = drawn("a", **{**NOTHING, "jitter_odds": 1.0})
    assert (copies.colours[0, :, :3] - 1).abs().max() <= 0.1 and copies.colours[0, :, 3].abs().max() <= 0.1
    images, still = 0.3 + 0.4 * pictures(1), copies.colours * torch.tensor([1, 1, 1, 0])
    x = images
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in copies.colours[0, :, :3].unbind(1))
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype)[:, None, None]
    x = brightness * x
    x = contrast * x + (1 - contrast) * (luma * x).sum(1, keepdim=True).mean((-1, -2), keepdim=True)
    x = saturation * x + (1 - saturation) * (luma * x).sum(1, keepdim=True)
    torch.testing.assert_close(shown(dataclasses.replace(copies, colours=still), images)[0], x, atol=1e-4, rtol=0)
    turned = shown(copies, images)[0]
    assert (turned - x).abs().max() > 0.01
    torch.testing.assert_close(turned.amax(1), x.amax(1), atol=1e-4, rtol=0)  # a shift of hue keeps the value


@pytest.mark.parametrize("same", [True, False])
def test_one_black_rectangle_of_the_right_size(same: bool) -> None:
    copies = drawn("abcdefghij", side=48, **{**NOTHING, "erase_odds": 1.0}, same_erasing=same)
    found = shown(copies, torch.ones(10, 3, 48, 48))
    black = (found == 0).all(2)
    share = black.double().mean((-1, -2))
    assert share.min() > 0.08 and share.max() < 0.43 and share.std() > 0.03
    for picture in black.flatten(0, 1):
        rows, columns = picture.any(1).sum(), picture.any(0).sum()
        assert rows * columns == picture.sum() and 0.25 < rows / columns < 4
    assert torch.equal(black[:, :1].expand_as(black), black) == same


def test_grain_has_the_deviation_of_both_noises() -> None:
    grain = drawn("abcdefgh", side=64, count=8, **{**NOTHING, "grain": 0.2, "copy_grain": 0.1}).grain
    spread = grain.flatten(2).std(2)
    assert spread.min() > 0.195 and spread.max() < 0.2 * math.hypot(1, 0.5) + 0.005
    assert spread.std() > 0.003


def test_mirroring_and_crops() -> None:
    images = pictures(1)
    torch.testing.assert_close(shown(drawn("a", **NOTHING, flip_odds=1.0), images)[0, 0], images[0].flip(-1), atol=1e-6, rtol=0)
    warps = drawn("abcd", **NOTHING, smallest_crop=0.5).warps
    scale = warps[..., 0, 0]
    assert scale.min() >= 1 and scale.max() <= 2 and scale.std() > 0.1
    for corner in ([0.0, 0.0, 1.0], [23.0, 23.0, 1.0]):  # what is shown lies inside the picture
        source = torch.linalg.solve(warps, torch.tensor(corner, dtype=warps.dtype).expand(4, 5, 3)[..., None])[..., :2, 0]
        assert source.min() >= -1e-6 and source.max() <= 23 + 1e-6


def test_larger_pictures_are_averaged_first() -> None:
    images = pictures(1, side=48)
    halves = images.unflatten(-1, (24, 2)).unflatten(-3, (24, 2))
    torch.testing.assert_close(averaged(images, 24), (halves.mean((-1, -3)) + halves.amax((-1, -3))) / 2)
    assert averaged(images, 100) is images and averaged(images, None) is images
    assert shown(Augmentations(count=5, side=24).draw(Noise(["a"]), 48, 48), images).shape == (1, 5, 3, 24, 24)


def test_the_gradient_is_that_of_finite_differences() -> None:
    copies = drawn("a", side=8, count=2, grain=0.02, copy_grain=0.0)
    images = (0.35 + 0.3 * pictures(1, side=8)).requires_grad_()  # away from the edges of the range
    weights = torch.rand(1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kept = shown(copies, images.detach())
    weights = weights * ((kept > 0.05) & (kept < 0.95))  # where the clamp is not
    (gradient,) = torch.autograd.grad((shown(copies, images) * weights).sum(), images)
    direction, h = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 1e-6
    with torch.no_grad():
        slope = ((shown(copies, images + h * direction) - shown(copies, images - h * direction)) * weights).sum() / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4)
    assert abs(float(slope)) > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"count": -1},
        {"side": 0},
        {"jitter_odds": 1.5},
        {"grain": -0.1},
        {"degrees": math.nan},
        {"copy_grain": math.inf},
        {"smallest_crop": 0},
        {"erased": [0.5, 0.2]},
        {"erased": [0.2]},
    ],
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(BadValue, match=next(iter(options))):
        Augmentations(**options)
