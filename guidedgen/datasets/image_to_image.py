"""(Text + image) to image: every prompt drawn from every reference image (SDEdit, Meng et al. 2022; the CoDeX thesis, 5.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.images import in_folder
from guidedgen.basics.tasks import Dataset, Task
from guidedgen.datasets.references import check_ratio, counted, read_reference, refer
from guidedgen.datasets.tasks import check_limit, expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """One task per prompt and image, image by image: those that start at one noise level come one after the other.

    prompts: a dataset, whose tasks' prompts and categories are taken.
    images: files, folders for all pictures in them, or `lab:NAME` for one of the lab's style pictures.
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
        ratios = self._ratios(len(self.images))
        if len(ratios) != len(self.images):
            raise BadValue("noise_ratio", list(ratios), f"must be one number, or as many as there are images ({len(self.images)})")
        for ratio in ratios:
            check_ratio("noise_ratio", ratio)

    def _ratios(self, count: int) -> Sequence[float]:
        return [self.noise_ratio] * count if isinstance(self.noise_ratio, int | float) else list(self.noise_ratio)

    def _files(self) -> Iterator[str]:
        """The images, of a folder all that are in it. Raises BadValue for a folder without any, or that cannot be read."""
        for image in self.images:
            if image.startswith("lab:") or not (folder := expand("images", image)).is_dir():
                yield image
                continue
            try:
                found = in_folder(folder)
            except OSError as error:
                raise BadValue("images", image, f"cannot be read ({error.strerror or error})") from error
            if not found:
                raise BadValue("images", image, "is a folder without a picture (png, jpg, webp or another that Pillow decodes)")
            yield from map(str, found)

    def tasks(self) -> Sequence[Task]:
        files = list(self._files())
        if len(files) != len(self.images) and not isinstance(self.noise_ratio, int | float):
            raise BadValue("noise_ratio", list(self.noise_ratio), "must be one number where images names a folder")
        references = [read_reference("images", image) for image in files]
        try:
            prompts = self.prompts.tasks()
        except BadValue as error:
            raise BadValue(f"prompts.{error.name}", error.value, error.rule) from error
        pairs = list(zip(references, self._ratios(len(files)), strict=True))
        return list(counted(refer(task, reference, ratio) for reference, ratio in pairs for task in prompts))[: self.limit]
