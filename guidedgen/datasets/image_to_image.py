"""(Text + image) to image: every prompt drawn from every reference image (SDEdit, Meng et al. 2022; the CoDeX thesis, 5.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Dataset, Task
from guidedgen.datasets.references import check_ratio, counted, read_reference, refer
from guidedgen.datasets.tasks import check_limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """One task per prompt and image, image by image: those that start at one noise level come one after the other.

    prompts: a dataset, whose tasks' prompts and categories are taken.
    images: files, or `lab:NAME` for one of the lab's style pictures.
    noise_ratio: the share of the chain that is run from the noised image, one for all images or one each; at 1 the chain starts
        from pure noise, and the image is there for style rewards.
    limit: only the first of the tasks.
    """

    prompts: Dataset
    images: list[str]
    noise_ratio: float | list[float] = 0.6
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if not self.images:
            raise BadValue("images", "[]", "names no image; give it as dataset.images=[a.png,lab:night]")
        ratios = self._ratios()
        if len(ratios) != len(self.images):
            raise BadValue("noise_ratio", list(ratios), f"must be one number, or as many as there are images ({len(self.images)})")
        for ratio in ratios:
            check_ratio("noise_ratio", ratio)

    def _ratios(self) -> Sequence[float]:
        if isinstance(self.noise_ratio, int | float):
            return [self.noise_ratio] * len(self.images)
        return list(self.noise_ratio)

    def tasks(self) -> Sequence[Task]:
        references = [read_reference("images", image) for image in self.images]
        try:
            prompts = self.prompts.tasks()
        except BadValue as error:
            raise BadValue(f"prompts.{error.name}", error.value, error.rule) from error
        pairs = list(zip(references, self._ratios(), strict=True))
        return list(counted(refer(task, reference, ratio) for reference, ratio in pairs for task in prompts))[: self.limit]
