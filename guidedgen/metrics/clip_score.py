"""CLIP score: cosine of image and prompt embeddings, in the three conventions that papers print.

    hessel          2.5 max(cos, 0) per image, then mean; prompt after "A photo depicts " (Hessel et al. 2021; jmhessel/clipscore)
    torchmetrics    100 cos per image, then max(mean, 0); prompt as it is (torchmetrics CLIPScore)
    t2i_compbench   cos per image, then mean; prompt as it is (T2I-CompBench, CLIP_similarity)

hessel and t2i_compbench use CLIP ViT-B/32, torchmetrics ViT-L/14 by default: the convention is
the formula, the network is an argument.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.basics.images import check
from guidedgen.basics.tasks import Task
from guidedgen.zoo import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convention:
    """Text before the prompt, factor on the cosine, and where the floor at 0 is: on each image, on the mean, or nowhere."""

    prefix: str = ""
    weight: float = 1.0
    floor_each: bool = False
    floor_mean: bool = False

    def per_image(self, cosines: Tensor) -> Tensor:
        """Cosines b -> scores b."""
        return self.weight * (cosines.clamp(min=0) if self.floor_each else cosines)

    def aggregate(self, values: npt.ArrayLike) -> float:
        """Scores of images -> the score of the set. ValueError for no images."""
        array = np.asarray(values, dtype=np.float64)
        if array.size == 0:
            raise ValueError("clip score: no images to average over")
        mean = float(array.mean())
        return max(mean, 0.0) if self.floor_mean else mean


CONVENTIONS = {
    "hessel": Convention(prefix="A photo depicts ", weight=2.5, floor_each=True),
    "torchmetrics": Convention(weight=100.0, floor_mean=True),
    "t2i_compbench": Convention(),
}


def convention_of(name: str) -> Convention:
    """The convention of this name; UsageError naming the choices for any other."""
    if name not in CONVENTIONS:
        near = difflib.get_close_matches(name, CONVENTIONS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"convention={name}: choose one of {', '.join(CONVENTIONS)}{hint}")
    return CONVENTIONS[name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipScore:
    """Agreement of images with their prompts; a Reward without gradients. UsageError for an unknown convention."""

    clip: Clip
    convention: str = "hessel"

    differentiable = False  # not a field: true of every instance

    def __post_init__(self) -> None:
        convention_of(self.convention)

    @property
    def networks(self) -> tuple[str, ...]:
        """The name of the CLIP."""
        return (self.clip.name,)

    @property
    def described(self) -> str:
        """The convention and the network, which the numbers are of."""
        return f"{self.convention} of {self.clip.name}"

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> scores b, float32. ValueError where the counts differ."""
        check(images, "clip score")
        if len(tasks) != len(images):
            raise ValueError(f"clip score: {len(images)} images for {len(tasks)} tasks")
        convention = convention_of(self.convention)
        with torch.no_grad():
            image = self.clip.encode_image(images).float()
            text = self.clip.encode_text([convention.prefix + task.prompt for task in tasks]).float()
            return convention.per_image((image * text.to(image.device)).sum(dim=-1))

    def aggregate(self, values: npt.ArrayLike) -> float:
        """What `__call__` returned, of all images -> the number of the set, by the convention's rule. ValueError for none."""
        return convention_of(self.convention).aggregate(values)
