"""Reference images of tasks: files that can be read, named by their content."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.tasks import expand

LAB = "lab:"  # before the name of one of the lab's style pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A readable image file and the part it adds to a task's id."""

    id: str
    path: str  # absolute


def read_reference(name: str, image: str, folder: Path | None = None) -> Reference:
    """The reference image that the option `name` holds: a file, relative to `folder` (else to the current folder), or `lab:NAME`.

    A file's id is its stem and a hash of its content, a lab picture's its name: neither depends on where files are.

    Raises:
        BadValue: it does not exist or is no image.
    """
    if image.startswith(LAB):
        from guidedgen.lab import styles

        try:
            path = styles.file(image.removeprefix(LAB))
        except BadValue as error:
            raise BadValue(name, image, error.rule) from error
        return Reference(id=_slug(image), path=str(path.absolute()))
    path = expand(name, image, folder)
    try:
        images.check_file(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise BadValue(name, image, f"cannot be read as an image ({error.strerror or error})") from error
    return Reference(id="-".join(part for part in (_slug(path.stem), digest) if part), path=str(path.absolute()))


def detail(file: Path) -> float:
    """How detailed a picture is: the mean absolute difference between neighbouring pixels, at 256 x 256 pixels, from 0 to 1."""
    picture = images.resize(images.read(file), (256, 256), crop=False)
    across, down = picture.diff(dim=3).abs().mean(), picture.diff(dim=2).abs().mean()
    return float((across + down) / 2)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:24].rstrip("-")


def check_ratio(name: str, ratio: float) -> None:
    """Raises BadValue unless the noise ratio is above 0 and at most 1."""
    if not 0 < ratio <= 1:
        raise BadValue(name, ratio, "must be above 0 and at most 1 (1: from pure noise, the reference is only compared with)")


def refer(task: Task, reference: Reference, ratio: float) -> Task:
    """The task with a reference. At ratio 1 its chain starts from pure noise."""
    return dataclasses.replace(
        task, id=f"{task.id}-{reference.id}", reference=reference.path, noise_ratio=None if ratio == 1 else float(ratio)
    )


def counted(tasks: Iterable[Task]) -> Iterator[Task]:
    """The tasks, with a number on ids that come again."""
    seen: Counter[str] = Counter()
    for task in tasks:
        seen[task.id] += 1
        yield dataclasses.replace(task, id=f"{task.id}-{seen[task.id]}") if seen[task.id] > 1 else task
