"""Distances class by class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from guidedgen import images
from guidedgen.metrics.classes import ClassFolders, PerClass
from guidedgen.metrics.frechet import frechet_distance
from guidedgen.types import Task, UsageError


class Corners:
    """A pixel of each picture as features: two numbers."""

    name = "corners"

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures[:, :2, 0, 0]


class Drawn:
    """Pictures of classes, by the prompt's length."""

    def check(self, tasks: Sequence[Task]) -> None:
        del tasks

    def __call__(self, task: Task) -> Iterator[Tensor]:
        yield torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(len(task.prompt)))


def folder_of_classes(path: Path, **counts: int) -> ClassFolders:
    for name, count in counts.items():
        (path / name).mkdir(parents=True)
        for k in range(count):
            (path / name / f"{k}.png").write_bytes(images.png(torch.full((3, 4, 4), k / 10)))
        (path / name / "list.txt").write_text("no picture")
    return ClassFolders(path=str(path))


def task(prompt: str) -> Task:
    return Task(id=prompt.replace(" ", "-"), prompt=prompt)


def test_each_class_is_measured_against_its_own_pictures() -> None:
    generator = np.random.default_rng(0)
    guided, base = ({name: generator.random((4, 2)) for name in ("a", "bb")} for _ in range(2))
    tasks = {name: Task(id=name, prompt=name) for name in guided}
    ours, theirs, change = PerClass(features=Corners(), pictures=Drawn())(guided, base, tasks)
    for name in guided:
        (batch,) = Drawn()(tasks[name])
        real = batch[:, :2, 0, 0].double().numpy()
        assert ours[name] == pytest.approx(frechet_distance(guided[name], real))
        assert theirs[name] == pytest.approx(frechet_distance(base[name], real))
        assert change.per_class[name] == pytest.approx(100 * (ours[name] / theirs[name] - 1))
    assert ours["a"] != pytest.approx(ours["bb"])


def test_a_class_is_the_longest_folder_that_the_prompt_names(tmp_path: Path) -> None:
    names = {"n02085620-Retriever": 2, "002.Golden_Retriever": 3, "Old": 4}
    classes = folder_of_classes(tmp_path, **names)
    classes.check([task("a photo of a golden retriever"), task("a retriever")])
    assert len(list(classes(task("A photo of a Golden Retriever, dog")))) == 3
    assert [float(batch.max()) for batch in classes(task("a retriever"))] == pytest.approx([0, 26 / 255], abs=1e-6)  # bytes


@pytest.mark.parametrize(
    ("prompt", "says"), [("a golden dog", "no folder in it is named in 'a golden dog'"), ("a lone cat", "fewer than two pictures")]
)
def test_a_class_that_cannot_be_measured_is_refused(tmp_path: Path, prompt: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        folder_of_classes(tmp_path, retriever=2, cat=1).check([task(prompt)])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics\.per_class\.pictures\.path=.*nowhere"):
        ClassFolders(path=str(tmp_path / "nowhere")).check([task("a cat")])
