"""Ranges, sizes and the way to and from PIL, against PIL, transformers' CLIP preprocessing and diffusers."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guidedgen.basics import images


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# check


def test_a_good_batch_comes_back_itself() -> None:
    batch = noise(2, 3, 4, 5)
    assert images.check(batch) is batch
    assert images.check(batch.to(torch.float16)).dtype == torch.float16
    edge = torch.tensor([-1e-3, 1 + 1e-3]).view(1, 1, 1, 2).expand(1, 3, 1, 2) * 0.999
    assert images.check(edge) is edge


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 4, 4), r"who: expected b 3 H W, got \(3, 4, 4\)"),
        (torch.zeros(1, 4, 4, 3), r"who: expected b 3 H W, got \(1, 4, 4, 3\)"),
        (torch.zeros(1, 1, 4, 4), r"who: expected b 3 H W"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), r"who: expected float in \[0, 1\], got torch.uint8"),
        (torch.full((1, 3, 4, 4), 255.0), r"who: expected values in \[0, 1\], got \[255, 255\]"),
        (torch.full((1, 3, 4, 4), -1.0), r"who: expected values in \[0, 1\], got \[-1, -1\]"),
        (torch.full((1, 3, 4, 4), 1.002), r"who: expected values in \[0, 1\]"),
    ],
)
def test_a_bad_batch_is_refused_by_name(batch: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.check(batch, "who")


def test_nan_is_let_through() -> None:
    """One broken sample must not end the run of the others; a NaN reward never wins (methods.selection)."""
    batch = torch.full((1, 3, 2, 2), torch.nan)
    assert images.check(batch) is batch


# Ranges


def test_model_range_and_image_range_are_inverse() -> None:
    x = noise(2, 3, 4, 4).double()
    torch.testing.assert_close(images.from_model(images.to_model(x)), x, rtol=0, atol=1e-15)
    torch.testing.assert_close(images.to_model(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0.0, 1.0]))
    torch.testing.assert_close(
        images.from_model(torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0])), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])
    )


def test_from_model_is_diffusers_postprocessing() -> None:
    from diffusers.image_processor import VaeImageProcessor

    decoded = 3 * noise(2, 3, 8, 8) - 1.5
    torch.testing.assert_close(
        images.from_model(decoded), VaeImageProcessor().postprocess(decoded, output_type="pt"), rtol=0, atol=0
    )


def test_normalised_images_are_transformers_clip_input() -> None:
    """CLIPImageProcessor without resizing: mean and std of CLIP, per channel."""
    from transformers import CLIPImageProcessor

    x = noise(2, 3, 8, 8)
    theirs = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)(list(x), return_tensors="pt").pixel_values
    torch.testing.assert_close(images.normalise(x, images.CLIP_MEAN, images.CLIP_STD), theirs, rtol=0, atol=1e-6)


# Bytes and PIL


def test_bytes_round_as_diffusers_does() -> None:
    from diffusers.image_processor import VaeImageProcessor

    ramp = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    ties = ((torch.arange(3 * 255) % 255 + 0.5) / 255).view(1, 3, 1, 255)
    for x in (ramp, ties):
        theirs = np.asarray(VaeImageProcessor.numpy_to_pil(x.permute(0, 2, 3, 1).numpy())[0])
        np.testing.assert_array_equal(np.asarray(images.to_pil(x)[0]), theirs)


def test_every_byte_survives_the_way_there_and_back() -> None:
    array = np.arange(256 * 3, dtype=np.uint32).reshape(16, 16, 3).astype(np.uint8)
    picture = Image.fromarray(array)
    x = images.from_pil([picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    assert x.shape == (2, 3, 16, 16)
    assert float(x.min()) == 0.0
    assert float(x.max()) == 1.0
    back = images.to_pil(x)
    np.testing.assert_array_equal(np.asarray(back[0]), array)
    np.testing.assert_array_equal(np.asarray(back[1]), array[:, ::-1])
    torch.testing.assert_close(x[0, 1, 3, 5], torch.tensor(array[3, 5, 1] / 255, dtype=torch.float32), rtol=0, atol=0)


def test_a_png_holds_the_bytes(tmp_path: Path) -> None:
    x = noise(1, 3, 5, 7)
    content = images.png(x[0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), images.to_bytes(x)[0].permute(1, 2, 0).numpy())
    (tmp_path / "x.png").write_bytes(content)
    torch.testing.assert_close(images.read(tmp_path / "x.png"), images.to_bytes(x).float() / 255, rtol=0, atol=0)


def test_what_is_no_image_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"not an image")
    for name in ("x.png", "missing.png"):
        with pytest.raises(OSError, match=name):
            images.read(tmp_path / name)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG's: length, type, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    ("kind", "raised"),
    [("truncated", OSError), ("bogus", SyntaxError), ("short header", ValueError), ("huge", Image.DecompressionBombError)],
)
def test_a_broken_file_is_an_os_error_that_names_it(
    kind: str, raised: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow has an error of another type for each."""
    whole, path = images.png(noise(3, 32, 32)), tmp_path / "x.png"
    head, data = whole[:33], whole[41:-16]  # signature and IHDR; the content of IDAT, before its checksum and IEND
    files = {
        "truncated": whole[: len(whole) // 2],
        "bogus": head + chunk(b"IDAT", data[:1000]) + bytes(64),
        "short header": head[:8] + chunk(b"IHDR", head[16:21]) + whole[33:],
        "huge": whole,
    }
    if kind == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path.write_bytes(files[kind])
    with pytest.raises(raised), Image.open(path) as picture:
        picture.load()
    with pytest.raises(OSError, match="x.png"):
        images.read(path)


# Sizes


@pytest.mark.parametrize("crop", [True, False])
def test_the_same_size_is_the_identity(crop: bool) -> None:
    x = noise(2, 3, 16, 16)
    torch.testing.assert_close(images.resize(x, 16, crop=crop), x, rtol=0, atol=0)


def test_the_right_size_already_is_only_cropped() -> None:
    x = noise(1, 3, 16, 21)
    torch.testing.assert_close(images.resize(x, 16), x[..., 2:18], rtol=0, atol=0)
    torch.testing.assert_close(images.resize(x.mT, 16), x.mT[..., 2:18, :], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width", "side"), [(40, 40, 17), (24, 24, 64), (31, 50, 16)])
def test_resizing_is_pillow_s(mode: str, height: int, width: int, side: int) -> None:
    """PIL on float channels, which it does not round."""
    x = noise(1, 3, height, width, seed=side)
    method = Image.Resampling[mode.upper()]
    theirs = [np.asarray(Image.fromarray(channel.numpy(), mode=None).resize((side, side), method)) for channel in x[0]]
    ours = images.resize(x, side, mode=mode, crop=False)
    torch.testing.assert_close(ours[0], torch.from_numpy(np.stack(theirs)).clamp(0, 1), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (47, 33), (30, 61), (64, 64), (19, 23), (97, 40)])
def test_crop_and_truncation_are_clip_s(height: int, width: int) -> None:
    """transformers' CLIPImageProcessor, which works on bytes: the shorter side to `side`, the longer truncated, the middle rounded down."""
    from transformers import CLIPImageProcessor

    side = 24
    # A smooth picture whose red is the column and green the row: a crop shifted by a pixel is off by far more than rounding.
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    x = torch.stack([columns, rows, 0.5 * rows + 0.5 * columns])[None]
    processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_normalize=False, do_rescale=True
    )
    theirs = processor(images.to_pil(x), return_tensors="pt").pixel_values
    ours = images.resize(x, side)
    assert ours.shape == theirs.shape == (1, 3, side, side)
    assert (ours - theirs).abs().max() < 1.4 / 255  # half a byte before, half of one after, and the weights of integers
    if (height, width) != (64, 64):  # the tolerance tells: one pixel aside is farther
        assert (ours[..., 1:] - ours[..., :-1])[:, 0].min() > 1.4 / 255


def test_overshoot_is_clamped() -> None:
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 1
    ours = images.resize(step, 40)
    images.check(ours)
    assert float(ours.min()) == 0.0
    assert float(ours.max()) == 1.0
    raw = torch.nn.functional.interpolate(step, size=(40, 40), mode="bicubic", antialias=True)
    assert raw.min() < -0.01  # there was something to clamp


def test_gradients_reach_every_pixel() -> None:
    x = (0.2 + 0.6 * noise(1, 3, 18, 12)).requires_grad_()
    (gradient,) = torch.autograd.grad(images.resize(x, 7).sum(), x)
    kept = gradient.abs().sum((0, 1, 3)) > 0
    assert kept[3:15].all()  # the middle 12 of 18 rows
    decoded = (noise(1, 3, 4, 4) - 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(images.normalise(images.from_model(decoded), (0.5,) * 3, (0.25,) * 3).sum(), decoded)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2.0))


# Crops


def test_a_crop_of_everything_is_the_picture_averaged() -> None:
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([1.0, 0.3, 0.9]).expand(2, 1, 3)  # no space left to move in
    assert torch.equal(images.crop(picture, boxes, 1.0)[:, 0], picture)
    halves = images.crop(picture, boxes, 0.5)[:, 0]
    assert torch.allclose(halves, picture.unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean((-1, -3)), atol=1e-6)


def test_a_crop_is_where_its_box_says() -> None:
    """A quarter of a picture whose pixels hold their own position; not square, so that the shorter side counts."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    picture = torch.stack([rows / 100, columns / 100, torch.zeros_like(rows)])[None]
    boxes = torch.tensor([[[0.5, 0.0, 0.0], [0.5, 0.999, 0.999], [0.5, 0.25, 0.5]]])
    crops = images.crop(picture, boxes, 0.5)
    assert crops.shape == (1, 3, 3, 8, 8)
    corners = [(round(float(c[0, 0, 0]) * 100), round(float(c[1, 0, 0]) * 100)) for c in crops[0]]
    assert corners == [(0, 0), (8, 16), (2, 8)]  # of 9 rows and 17 columns that a corner can be at


def test_gradients_reach_what_is_cropped_and_nothing_else() -> None:
    picture = torch.rand(1, 3, 16, 16, requires_grad=True)
    images.crop(picture, torch.tensor([[[0.5, 0.0, 0.0]]]), 0.5).sum().backward()
    assert (picture.grad[..., :8, :8] == 1).all()
    assert picture.grad.sum() == 3 * 64
