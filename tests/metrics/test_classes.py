"""Distances class by class."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.metrics.classes import ClassFolders, PerClass
from guidedgen.metrics.frechet import frechet_distance


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


# Some of FGVC-Aircraft's 100 variants, as its list of them has it; a folder cannot be called "F-16A/B".
VARIANTS = (
    "707-320", "727-200", "737-200", "737-300", "737-400", "737-500", "737-600", "737-700", "737-800", "737-900", "747-100", "747-200",
    "A300B4", "A310", "A330-200", "A330-300", "An-12", "ATR-42", "ATR-72", "BAE 146-200", "BAE 146-300", "BAE-125", "Beechcraft 1900",
    "Boeing 717", "C-130", "C-47", "Cessna 172", "CRJ-200", "CRJ-700", "DC-10", "DC-3", "DHC-1", "DHC-6", "F-16A/B", "F/A-18",
    "Fokker 100", "Gulfstream IV", "Gulfstream V", "Il-76", "MD-11", "PA-28", "Tu-134", "Tu-154", "Yak-42",
)  # fmt: skip


@pytest.mark.parametrize("joint", ["-", "_", " "])
@pytest.mark.parametrize("index", ["", "n02085620-", "{:03}."])
def test_classes_that_differ_by_a_number_have_their_own_pictures(tmp_path: Path, joint: str, index: str) -> None:
    folders = {variant: index.format(k) + variant.replace("-", joint).replace("/", "_") for k, variant in enumerate(VARIANTS, 1)}
    if index == "{:03}.":  # before a digit a point is no end of an index: 001.707-320
        folders = {variant: folder for variant, folder in folders.items() if not variant[0].isdigit()}
    classes = folder_of_classes(tmp_path, **dict.fromkeys(folders.values(), 2))
    for variant, folder in folders.items():
        for prompt in (f"a photo of a {variant}, a type of aircraft", f"Airbus or Boeing {variant.lower()}."):
            assert {file.parent.name for file in classes._files(task(prompt))} == {folder}


@pytest.mark.parametrize(
    ("folders", "prompt", "says"),
    [
        (["737-300"], "a Boeing 737-200", "no folder in it is named"),
        (["737"], "a Boeing 737-200", "no folder in it is named"),
        (["200"], "a Boeing 737-200", "no folder in it is named"),
        (["Boeing 737"], "a Boeing 737-200", "no folder in it is named"),
        (["Boeing 737"], "a Boeing 7370", "no folder in it is named"),
        (["cat"], "a concatenation", "no folder in it is named"),
        (["737-200", "737_200"], "a Boeing 737-200", "2 folders in it have the name in 'a Boeing 737-200': 737-200, 737_200"),
        (["n02012849-crane", "n03126707-crane"], "a crane", "2 folders in it have the name"),
        (["001.Cat", "Cat"], "a cat", "2 folders in it have the name"),
        (["cat", "dog", "horse"], "a cat and a dog", "names 2 of its folders: cat, dog"),
    ],
)
def test_a_prompt_that_names_no_class_or_several_is_refused(
    tmp_path: Path, folders: list[str], prompt: str, says: str, tried: Callable[..., None]
) -> None:
    with pytest.raises(UsageError, match=says):
        folder_of_classes(tmp_path, **dict.fromkeys(folders, 2)).check([task(prompt)])
    tried("refused")


@pytest.mark.parametrize(
    ("folders", "prompt", "chosen"),
    [
        (["crane", "Other"], "A CRANE!", "crane"),
        (["retriever", "golden_retriever"], "a golden retriever's ball", "golden_retriever"),
        (["002.Black_footed_Albatross"], "a black-footed albatross at sea", "002.Black_footed_Albatross"),
        (["Jägerhund"], "ein ja\u0308gerhund", "Jägerhund"),  # an accent written as a letter of its own
        (["n02012849-crane", "n03126707-crane", "cat"], "a cat", "cat"),  # no prompt names the two
        (["2CV", "DS"], "a Citroen 2CV", "2CV"),
    ],
)
def test_case_separators_indices_and_accents_do_not_matter(
    tmp_path: Path, folders: list[str], prompt: str, chosen: str, tried: Callable[..., None]
) -> None:
    classes = folder_of_classes(tmp_path, **dict.fromkeys(folders, 2))
    classes.check([task(prompt)])
    assert {file.parent.name for file in classes._files(task(prompt))} == {chosen}
    tried("used")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"metrics\.per_class\.pictures\.path=.*nowhere"):
        ClassFolders(path=str(tmp_path / "nowhere")).check([task("a cat")])
