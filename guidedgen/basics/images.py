"""Image ranges, resizing, normalisation, and conversion to and from PIL, all in this module.

An image tensor is float, `b 3 H W`, in [0, 1]; everything that receives one calls `check`. Every picture file is opened by `read`,
every folder of pictures listed by `in_folder`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import stat
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What Pillow recognises but hands to other software (EPS to Ghostscript) or cannot decode.
_UNDECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_COMPOSITE = {"MPO", "PSD"}  # whose further frames belong to the first: a phone's depth map, layers
_NARROWEST = 100  # longer side over shorter side

Box = tuple[float, float, float, float]  # left, top, right, bottom; as shares of the picture's width and height where detected
Detection = tuple[str, float, Box]  # label, confidence, box

warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, and of pictures that are large but not too large


def check(images: Tensor, who: str = "images") -> Tensor:
    """Returns the images, or raises ValueError where they are not float, b 3 H W, in [0, 1] (1e-3 aside, NaN let through)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{who}: expected b 3 H W, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{who}: expected float in [0, 1], got {images.dtype}")
    if images.numel() == 0:
        raise ValueError(f"{who}: no images")
    low, high = torch.aminmax(images.detach())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"{who}: expected values in [0, 1], got [{float(low):.3g}, {float(high):.3g}]")
    return images


def from_model(decoded: Tensor) -> Tensor:
    """An autoencoder's output, about [-1, 1], as an image in [0, 1]. What is infinite is no white or black: it becomes NaN."""
    return (decoded / 2 + 0.5).clamp(0, 1).where(decoded.isfinite(), torch.nan)


def to_model(images: Tensor) -> Tensor:
    """An image in [0, 1] as an autoencoder's input in [-1, 1]."""
    return 2 * images - 1


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images - mean) / std per channel."""
    shape = (1, 3, 1, 1)
    return (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)


def resize(images: Tensor, size: int | tuple[int, int], *, mode: str = "bicubic", crop: bool = True) -> Tensor:
    """Images of `size` px (height and width, or one number for both), antialiased, differentiable, clamped to [0, 1].

    With `crop` they are scaled until they just cover it and the middle is kept (of squares CLIP's preprocessing); without, they are
    squashed.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    height, width = images.shape[-2:]
    scaled = (rows, columns)
    if crop and height * columns <= width * rows:
        scaled = (rows, width * rows // height)  # the longer side is truncated, as CLIP's preprocessing does
    elif crop:
        scaled = (height * columns // width, columns)
    if scaled != (height, width):
        images = F.interpolate(images, size=scaled, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    top, left = (scaled[0] - rows) // 2, (scaled[1] - columns) // 2
    return images[..., top : top + rows, left : left + columns]


def crop(images: Tensor, boxes: Tensor, smallest: float) -> Tensor:
    """Square crops of images (k 3 H W) at boxes (k v 3: side, top, left), averaged to one size: k v 3 s s, differentiable.

    A side is a share of the shorter side, top and left are shares of the rest; s is `smallest` of the shorter side.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    size = max(1, int(smallest * short))
    crops = []
    for image, own in zip(images, boxes.tolist(), strict=True):
        for share, down, across in own:
            side = max(size, int(share * short))
            top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
            crops.append(F.adaptive_avg_pool2d(image[:, top : top + side, left : left + side], size))
    return torch.stack(crops).unflatten(0, boxes.shape[:2])


def to_bytes(images: Tensor) -> Tensor:
    """b 3 H W in [0, 1] -> uint8, rounded to nearest as diffusers does."""
    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """b 3 H W in [0, 1] -> b RGB pictures."""
    return [Image.fromarray(array) for array in to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()]


def from_pil(pictures: Sequence[Image.Image]) -> Tensor:
    """b pictures of one size, as they are seen -> b 3 H W in [0, 1].

    They are turned as their EXIF orientation says, transparency is laid on white, grey of 16 bits is scaled, and an embedded ICC
    profile is converted to sRGB; a damaged profile or one that does not fit is passed over, as browsers do, and grey of 16 bits is
    taken as it is. Raises ValueError for pixels whose range is not known: floating-point numbers, or whole ones of 32 bits.
    """
    return torch.stack([_pixels(picture) for picture in pictures])


def _pixels(picture: Image.Image) -> Tensor:
    """3 H W in [0, 1]."""
    kind = picture.format
    picture = _turned(picture)
    if picture.mode == "F":
        raise ValueError("holds floating-point numbers, whose range is not known; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        return _from_integers(picture, kind)
    if not picture.has_transparency_data:
        return _from_bytes(_to_rgb(picture))
    layers = picture if picture.mode == "LA" else picture.convert("RGBA")  # LA keeps its grey, which a profile may be of
    alpha = torch.from_numpy(np.array(layers.getchannel("A"))).float() / 255
    opaque = Image.merge(layers.mode[:-1], layers.split()[:-1])
    opaque.info |= {key: value for key, value in picture.info.items() if key == "icc_profile"}
    return _from_bytes(_to_rgb(opaque)) * alpha + (1 - alpha)


def _turned(picture: Image.Image) -> Image.Image:
    """The picture upright. EXIF data that cannot be parsed say nothing about that."""
    picture.load()
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parser raises whatever it runs into
        return picture
    return picture if orientation == 1 else ImageOps.exif_transpose(picture)


def _from_bytes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float() / 255


def _from_integers(picture: Image.Image, kind: str | None) -> Tensor:
    """Grey of 16 bits. Pillow's 32-bit mode holds that too: always in the formats that have no more bits, else by its values."""
    values = np.asarray(picture)
    if picture.mode == "I" and kind not in ("PNG", "PPM") and not (values.min() >= 0 and 255 < values.max() <= 65535):
        raise ValueError("holds whole numbers of 32 bits, whose range is not known; save it with 8 or 16 bits")
    grey = values.astype(np.float32) / 65535
    if isinstance(clear := picture.info.get("transparency"), int):
        grey = np.where(values == clear, np.float32(1), grey)
    return torch.from_numpy(grey).expand(3, -1, -1).contiguous()


def _to_rgb(picture: Image.Image) -> Image.Image:
    """An opaque picture of 8 bits as sRGB."""
    if profile := picture.info.get("icc_profile"):
        source = picture if picture.mode in ("L", "CMYK", "RGB") else picture.convert("RGB")
        if (transform := _transform(profile, source.mode)) is not None:
            return transform.apply(source)
    return picture.convert("RGB")


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> Any:
    """From a profile's colours to sRGB; None where there is nothing to do: it is sRGB but for rounding, damaged, or of a mode
    that is not this one.
    """
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * 3), -1).reshape(18, -1, 3)
    samples = Image.fromarray(grid if mode == "RGB" else grid[..., 0]) if mode != "CMYK" else None
    if samples is not None:
        moved = np.asarray(transform.apply(samples)).astype(int) - np.asarray(samples.convert("RGB"))
        if np.abs(moved).max() <= 2:
            return None
    return transform


def read(path: Path) -> Tensor:
    """An image file as 1 3 H W in [0, 1], by its content whatever its suffix; see `from_pil`.

    Raises OSError, with the reason as its `strerror`, where it is missing, no regular file, no image, truncated or broken, has too
    many pixels or hardly any, or holds several pictures (an animation, or pages).
    """
    with _opened(path) as picture:
        return from_pil([picture])


def verify(path: Path) -> None:
    """Raises OSError as `read` does where a file's structure or its checksums are wrong, without decoding it."""
    with _opened(path) as picture:
        picture.verify()


def check_file(path: Path) -> None:
    """Raises OSError where `read` or `verify` would. A file that stays as it was is decoded once, however often this is asked."""
    verify(path)
    state = path.stat()
    _decode(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=1_000_000)
def _decode(path: Path, _size: int, _time: int) -> None:
    read(path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture file, open; whatever goes wrong inside is an OSError that names it."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            raise ValueError("is no regular file")
        with Image.open(path) as picture:
            _check_frame(picture)
            yield picture
    except UnidentifiedImageError as error:
        raise OSError(errno.EINVAL, "not an image that Pillow can read", str(path)) from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them run into
        if isinstance(error, OSError) and error.strerror:
            raise
        raise OSError(errno.EINVAL, " ".join(str(error).split()) or type(error).__name__, str(path)) from error


def _check_frame(picture: Image.Image) -> None:
    """Raises ValueError for an opened file that is not one picture of a usable size."""
    if picture.format in _UNDECODED:
        raise ValueError(f"{picture.format} is not read; save it as PNG or JPEG")
    if picture.format not in _COMPOSITE and (frames := getattr(picture, "n_frames", 1)) > 1:
        raise ValueError(f"holds {frames} pictures; save the one that is meant as a file of its own")
    short, long = sorted(picture.size)
    if short < 2 or long > _NARROWEST * short:
        width, height = picture.size
        raise ValueError(f"{width} x {height} px: a side needs 2 px or more, and {_NARROWEST} times the other at most")


@functools.cache
def suffixes() -> frozenset[str]:
    """Of the files that are taken for pictures in a folder, in small letters: those of all formats that Pillow decodes."""
    known = Image.registered_extensions()  # which loads all of Pillow's formats
    return frozenset(suffix for suffix, kind in known.items() if kind == "MPO" or kind in Image.OPEN.keys() - _UNDECODED)


def in_folder(folder: Path, overview: str | None = None) -> list[Path]:
    """The picture files of a folder, by their suffix, sorted, but for an `overview` of them; a folder inside it is not searched.
    What is left out is named once on stderr, hidden files aside. Raises OSError where the folder cannot be listed.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in entries if path.suffix.lower() in suffixes() and path.name != overview and not path.is_dir()]
    if left := sorted(set(entries) - set(pictures)):
        names = [(path.name if path.name.isprintable() else ascii(path.name)) + "/" * path.is_dir() for path in left[:3]]
        names += ["..."] * (len(left) > 3)
        _say(f"{folder}: left out {len(left)} of {len(entries)} entries, which are no pictures of the set: {', '.join(names)}")
    return pictures


@functools.cache
def _say(line: str) -> None:
    print(f"guidedgen: {line}", file=sys.stderr)


def png(image: Tensor) -> bytes:
    """3 H W in [0, 1] -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pil(image[None])[0].save(buffer, format="PNG")
    return buffer.getvalue()
