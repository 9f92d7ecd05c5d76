"""(Text + image) to image: every prompt drawn from every reference image (SDEdit, Meng et al. 2022; the CoDeX thesis, 5.4)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guidedgen.basics.errors import BadValue
from guidedgen.basics.images import in_folder
from guidedgen.basics.tasks import Dataset, Task
from guidedgen.datasets.references import Reference, check_ratio, counted, detail, read_reference, refer
from guidedgen.datasets.tasks import check_limit, expand


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToImage:
    """One task per prompt and image, image by image: those that start at one noise level come one after the other.

    prompts: a dataset, whose tasks' prompts and categories are taken.
    images: files, folders for all pictures in them, or `lab:NAME` for one of the lab's style pictures.
    noise_ratio: the share of the chain that is run from the noised image, one for all images or one each; at 1 the chain starts
        from pure noise, and the image is there for style rewards. Or {plain: 0.5, detailed: 0.6}, by how detailed each image is:
        the first for the plainest, the second for the most detailed of them, and between these by the logarithm of `detail`,
        rounded to 0.01. The thesis (7.1) finds at one ratio that a detailed style covers the prompt and a plain one is lost, and
        asks for a ratio by the image. This rule is ours.
    limit: only the first of the tasks.
    """

    prompts: Dataset
    images: list[str]
    noise_ratio: float | list[float] | dict[str, float] = 0.6
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if not self.images:
            raise BadValue("images", "[]", "names no image; give it as dataset.images=[a.png,lab:night]")
        given = self.noise_ratio
        if isinstance(given, Mapping):
            if set(given) != {"plain", "detailed"}:
                raise BadValue("noise_ratio", dict(given), "as a mapping it has two keys, plain and detailed")
        elif not isinstance(given, int | float) and len(given) != len(self.images):
            raise BadValue("noise_ratio", list(given), f"must be one number, or as many as there are images ({len(self.images)})")
        numbers = given.values() if isinstance(given, Mapping) else [given] if isinstance(given, int | float) else given
        for ratio in numbers:
            check_ratio("noise_ratio", ratio)

    def _ratios(self, references: Sequence[Reference]) -> Sequence[float]:
        """One for each of the images."""
        given = self.noise_ratio
        if isinstance(given, int | float):
            return [given] * len(references)
        if not isinstance(given, Mapping):
            return list(given)
        details = [math.log(detail(Path(reference.path)) + 1e-6) for reference in references]
        low, high = min(details), max(details)
        shares = [(found - low) / (high - low) if high > low else 0.5 for found in details]
        return [round(given["plain"] + share * (given["detailed"] - given["plain"]), 2) for share in shares]

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
        if len(files) != len(self.images) and not isinstance(self.noise_ratio, int | float | Mapping):
            raise BadValue("noise_ratio", list(self.noise_ratio), "must be one number where images names a folder")
        references = [read_reference("images", image) for image in files]
        try:
            prompts = self.prompts.tasks()
        except BadValue as error:
            raise BadValue(f"prompts.{error.name}", error.value, error.rule) from error
        pairs = list(zip(references, self._ratios(references), strict=True))
        return list(counted(refer(task, reference, ratio) for reference, ratio in pairs for task in prompts))[: self.limit]
