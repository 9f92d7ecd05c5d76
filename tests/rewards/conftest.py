"""Tiny stand-ins in float64, smooth in the pixels."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics import images
from guidedgen.basics.tasks import Task


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TinyClip:
    """A random CLIP: one random vector per text; reads 4 x 4 pixels. Keeps the texts it was asked for."""

    name, dim, size, logit_scale = "tiny", 5, 4, 7.0

    def __init__(self) -> None:
        self.weight = normal(self.dim, 3 * 4 * 4) / 7
        self.texts: list[str] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode_pixels(F.adaptive_avg_pool2d(images, 4))

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return F.normalize(torch.tanh(pixels.flatten(1).to(self.weight) @ self.weight.T), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.texts += texts
        return F.normalize(torch.cat([normal(1, self.dim, seed=zlib.crc32(text.encode())) for text in texts]), dim=-1)


class TinyMap:
    """Random features, not negative, at 4 x 4 positions. Counts the images it was asked for."""

    name = "tiny-map"

    def __init__(self) -> None:
        self.weight, self.asked = normal(3, 6, seed=1), 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        return F.softplus(F.adaptive_avg_pool2d(images, 4).flatten(2).mT.to(self.weight) @ self.weight)


@pytest.fixture
def tiny_clip() -> TinyClip:
    return TinyClip()


@pytest.fixture
def tiny_map() -> TinyMap:
    return TinyMap()


@pytest.fixture
def tasks() -> Callable[..., list[Task]]:
    """Tasks of prompts."""

    def make(*prompts: str, reference: str | None = None) -> list[Task]:
        return [Task(id=str(i), prompt=prompt, reference=reference) for i, prompt in enumerate(prompts)]

    return make


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """b random images away from 0 and 1."""

    def make(b: int, side: int = 8, seed: int = 1) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return 0.1 + 0.8 * torch.rand(b, 3, side, side, dtype=torch.float64, generator=generator)

    return make


@pytest.fixture
def reference(tmp_path: Path, noise: Callable[..., torch.Tensor]) -> str:
    """The file of a random picture."""
    file = tmp_path / "reference.png"
    file.write_bytes(images.png(noise(1, 12, seed=5)[0]))
    return str(file)
