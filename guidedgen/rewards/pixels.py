"""Likeness to the original, pixel by pixel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.original import against_originals

GRAYSCALE = "grayscale"
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Minus the mean squared error to the sample's original, images in [0, 1]: the loss by which AdjointDPM finds the embedding of
    an effect (arXiv:2307.10711, appendix A), the original being drawn of a prompt that names it.

    `edit` is what the effect is instead, for an original of the plain prompt: "grayscale" (the appendix's "converting to black and
    white"), or a folder of originals that were edited by hand, PNGs under the originals' names. A picture whose original is not
    there is compared with the original. Raises BadValue where there is no such folder.
    """

    edit: str | None = None

    differentiable = True
    needs_original = True
    networks = ()

    def __post_init__(self) -> None:
        if self._folder is not None and not self._folder.is_dir():
            raise BadValue("edit", self.edit, f"no such folder; give {GRAYSCALE}, or a folder of edited originals")

    @functools.cached_property
    def _folder(self) -> Path | None:
        return None if self.edit in (None, GRAYSCALE) else Path(str(self.edit)).expanduser()

    @property
    def files(self) -> tuple[Path, ...]:
        """The edited pictures."""
        return () if self._folder is None else tuple(sorted(self._folder.glob("*.png")))

    def check_lessons(self, names: Sequence[str]) -> None:
        """Raises BadValue where the original of one of these samples, that a method learns from, was not edited."""
        missing = [] if self._folder is None else [name for name in names if not (self._folder / f"{name}.png").is_file()]
        if missing:
            rule = f"{len(missing)} of {len(names)} originals are not in it, {missing[0]}.png first"
            raise BadValue("edit", self.edit, f"{rule}; method.num_updates=0 draws them, as images of an unguided run")

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, from -1 to 0; NaN where a task has no original."""
        pictures = check_inputs(images, tasks, "pixels")
        return against_originals(self._likeness, pictures, pictures.shape[-1], [self._edited(task) for task in tasks])

    def _likeness(self, x: Tensor, y: Tensor) -> Tensor:
        if self.edit == GRAYSCALE:
            y = torch.einsum("bchw,c->bhw", y, y.new_tensor(_LUMA))[:, None]
        return -(x - y).square().mean((1, 2, 3))

    def _edited(self, task: Task) -> Task:
        """The task with the edited picture for its original."""
        if self._folder is None or task.original is None:
            return task
        edited = self._folder / Path(task.original).name
        return dataclasses.replace(task, original=str(edited)) if edited.is_file() else task
