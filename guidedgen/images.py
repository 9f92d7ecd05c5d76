"""The one place for image ranges, resizing, normalisation, and the way to and from PIL.

An image tensor is float, `b 3 H W`, in [0, 1]; everything that receives one calls `check`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of files that are taken for images in a folder


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


def resize(images: Tensor, side: int, *, mode: str = "bicubic", crop: bool = True) -> Tensor:
    """Square images of `side` px, antialiased, differentiable, clamped to [0, 1].

    With `crop` the shorter side is scaled to `side` and the middle is kept (CLIP's preprocessing); without, the image is squashed.
    """
    height, width = images.shape[-2:]
    if crop:
        short = min(height, width)
        size = (height * side // short, width * side // short)  # the longer side is truncated, as CLIP's preprocessing does
    else:
        size = (side, side)
    if size != (height, width):
        images = F.interpolate(images, size=size, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return images[..., top : top + side, left : left + side]


def crop(images: Tensor, boxes: Tensor, smallest: float) -> Tensor:
    """Square crops of images (k 3 H W) at boxes (k v 3: side, top, left), averaged to one size: k v 3 s s, differentiable.

    A side is a share of the shorter side, top and left are shares of the room it leaves; s is `smallest` of the shorter side.
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
    """b pictures of one size -> b 3 H W in [0, 1]; transparency is dropped."""
    arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous().float() / 255


def read(path: Path) -> Tensor:
    """An image file as 1 3 H W in [0, 1]. Raises OSError, naming the file, where it is missing, broken, too large or no image."""
    try:
        with Image.open(path) as picture:
            return from_pil([picture])
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's errors for broken files
        if isinstance(error, UnidentifiedImageError) or getattr(error, "filename", None):
            raise  # it names the file
        raise OSError(f"{path}: {error}") from error


def png(image: Tensor) -> bytes:
    """3 H W in [0, 1] -> the bytes of a PNG file."""
    buffer = io.BytesIO()
    to_pil(image[None])[0].save(buffer, format="PNG")
    return buffer.getvalue()
