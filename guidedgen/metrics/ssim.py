"""Structural similarity (SSIM) of an image to its reference: how much of the structure an edit has kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task

WINDOW, SIGMA = 11, 1.5  # px
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ssim:
    """SSIM (Wang et al. 2004) of each image and its task's reference, resized to the image's size as a model is given it: the
    shorter side fits, the middle is kept. A scorer without gradients; NaN where a task has no reference.

    Mean over channels and over the positions of a Gaussian window (11 px, deviation 1.5), the image being mirrored at its edges. It
    is what torchmetrics' StructuralSimilarityIndexMeasure(data_range=1.0) gives; the paper's own code leaves out the edges.
    """

    differentiable = False
    networks = ()

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H H in [0, 1], H at least 11, and b tasks -> b in [-1, 1] or NaN, float32.

        Raises UsageError where a reference cannot be read, ValueError for other images, or where the counts differ.
        """
        size = tuple(pictures.check(images, "ssim").shape[-2:])
        if len(tasks) != len(images):
            raise ValueError(f"ssim: {len(images)} images for {len(tasks)} tasks")
        if len(set(size)) > 1 or min(size) < WINDOW:
            raise ValueError(f"ssim: expected square images of at least {WINDOW} px, got {size}")
        scores = [self._score(image[None].detach(), task) for image, task in zip(images, tasks, strict=True)]
        return torch.stack(scores).float()

    def _score(self, image: Tensor, task: Task) -> Tensor:
        if task.reference is None:
            return image.new_tensor(float("nan"))
        reference = pictures.resize(_read(task).to(image), image.shape[-1])
        return ssim(image.double(), reference.double())[0]  # variances are small differences of large numbers


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """b 3 H W and b 3 H W in [0, 1] -> b."""
    b = len(x)
    mean = _window_mean(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = mean.split(b)
    variances = xx - mean_x.square() + yy - mean_y.square()
    covariance = xy - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return (likeness / ((mean_x.square() + mean_y.square() + C1) * (variances + C2))).flatten(1).mean(1)


def _window_mean(images: Tensor) -> Tensor:
    """b c H W -> b c H W: means under a Gaussian window."""
    images = F.pad(images, (WINDOW // 2,) * 4, mode="reflect")
    offset = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weight = (-(offset / SIGMA).square() / 2).softmax(0)
    across, down = weight.view(1, 1, 1, -1), weight.view(1, 1, -1, 1)
    return F.conv2d(F.conv2d(images.flatten(0, 1)[:, None], across), down)[:, 0].unflatten(0, images.shape[:2])


def _read(task: Task) -> Tensor:
    assert task.reference is not None
    try:
        return pictures.read(Path(task.reference).expanduser())
    except OSError as error:
        raise UsageError(
            f"metrics=ssim: reference {task.reference} cannot be read as an image ({error.strerror or error})"
        ) from error
