"""Data sets: what they hold, and names that are stable, unique and safe."""

import dataclasses
import hashlib
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Sample, Task
from guidedgen.datasets.animals import Animals
from guidedgen.datasets.drawbench import CATEGORIES as DRAWBENCH
from guidedgen.datasets.drawbench import DrawBench
from guidedgen.datasets.hpdv2 import Hpdv2
from guidedgen.datasets.image_to_image import ImageToImage
from guidedgen.datasets.jsonl import Jsonl
from guidedgen.datasets.lab import Lab
from guidedgen.datasets.prompt import OnePrompt
from guidedgen.datasets.references import detail
from guidedgen.datasets.t2i_compbench import T2ICompBench
from guidedgen.datasets.tasks import make_tasks, of_each
from guidedgen.datasets.templated import Templated
from guidedgen.datasets.text import TextFile
from guidedgen.lab.captions import CATEGORIES, prompts

HARD = [
    "a/b", "../../etc/passwd", "..", ".", "/", "\\", "a\\b", "it's", '"quoted"', "`$(rm -rf)`", "猫", "🐱🐱", "é", "e\u0301", "a\nb", "a\tb",
    "a\x00b", "-rf", "--help", "con", "CON", "x" * 2000, "word " * 400, "a red circle, and a square", "A Red Circle", "a red circle",
    "a  red circle", "a.png", "~", "%s{}", "*?", "a:b|c<d>e", ".hidden", "a-2", "a",
]  # fmt: skip

THESIS_ANIMALS = "940b70e7f53f1397b7976988ed79263bed32ee7c8e3ada5fef37fe681f2d401b"  # SHA-256 of the 51 names, one a line


def test_names_are_safe_as_files_everywhere(tmp_path: Path) -> None:
    tasks = make_tasks(HARD)
    assert len({task.id for task in tasks}) == len(HARD)
    for task, prompt in zip(tasks, HARD, strict=True):
        assert task.prompt == prompt.strip()
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", task.id), task.id
        assert len(task.id) <= 49
        name = Sample(task=task, seed=123456789).name
        (tmp_path / f"{name}.png").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == len(HARD)


def test_names_differ_without_regard_to_case() -> None:
    """Some file systems do not tell `A` from `a`."""
    assert len({task.id.lower() for task in make_tasks(["Cat", "cat", "CAT"])}) == 3


def test_names_do_not_depend_on_limit_or_order() -> None:
    named = {task.prompt: task.id for task in make_tasks(HARD)}
    shuffled = list(HARD)
    random.Random(0).shuffle(shuffled)
    assert {task.prompt: task.id for task in make_tasks(shuffled)} == named
    assert [task.id for task in make_tasks(HARD[:5])] == [named[prompt] for prompt in HARD[:5]]
    assert make_tasks(["a/b"], "other")[0].id == named["a/b"]


def test_a_prompt_that_comes_again_is_another_task() -> None:
    tasks = make_tasks(["a cat", "a dog", "a cat", " a cat\n"])
    first = tasks[0].id
    assert [task.id for task in tasks] == [first, tasks[1].id, f"{first}-2", f"{first}-3"]
    assert [task.prompt for task in tasks] == ["a cat", "a dog", "a cat", "a cat"]


def test_a_name_is_words_and_a_hash() -> None:
    """SHA-256 of the prompt, from `printf 'a cat' | sha256sum`: names are stored in people's runs and must not change."""
    assert make_tasks(["a cat"])[0].id == "a-cat-51e46741"


# Text files


def write(folder: Path, content: bytes) -> str:
    (folder / "prompts.txt").write_bytes(content)
    return str(folder / "prompts.txt")


@pytest.mark.parametrize(
    "content",
    [
        b"a cat\na dog\n", b"a cat\na dog", b"a cat\r\na dog\r\n", b"\xef\xbb\xbfa cat\na dog\n", b"\n  a cat  \n\n\t\na dog\n\n",
        b"\xef\xbb\xbf\r\na cat \r\na dog",
    ],
)  # fmt: skip
def test_one_prompt_a_line(tmp_path: Path, content: bytes) -> None:
    tasks = TextFile(path=write(tmp_path, content)).tasks()
    assert [task.prompt for task in tasks] == ["a cat", "a dog"]
    assert [task.id for task in tasks] == [task.id for task in make_tasks(["a cat", "a dog"])]
    assert [task.prompt for task in TextFile(path=write(tmp_path, content), limit=1).tasks()] == ["a cat"]


def test_prompts_may_hold_anything_but_a_line_break(tmp_path: Path) -> None:
    lines = ["猫 🐱", 'a "cat", quoted', "a\tcat", "#1 cat", "a=b; c"]
    assert [task.prompt for task in TextFile(path=write(tmp_path, "\n".join(lines).encode())).tasks()] == lines


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "no prompt"),
        (b" \n\r\n\t", "no prompt"),
        (b"caf\xe9\n", "not UTF-8.*byte 3"),
        ("a cat".encode("utf-16"), "not UTF-8.*byte 0"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, rule: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(BadValue, match=rule) as error:
        TextFile(path=path).tasks()
    assert (error.value.name, error.value.value) == ("path", path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.txt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(BadValue, match=reason):
            TextFile(path=str(path)).tasks()


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("~nobody-at-all/x", "there is no home folder ~nobody-at-all$"),
        ("x" * 300, "cannot be read .File name too long"),
        ("a\0b", "is no path .embedded null byte"),
        ("~\0/x", "is no path"),
    ],
)
def test_paths_that_can_lead_nowhere(path: str, rule: str) -> None:
    for make, name in [
        (lambda: TextFile(path=path), "path"),
        (lambda: Jsonl(path=path), "path"),
        (lambda: ImageToImage(prompts=Animals(limit=1), images=[path]), "images"),
    ]:
        with pytest.raises(BadValue, match=rule) as error:
            make().tasks()
        assert error.value.name == name
        assert "\n" not in str(error.value) and "\0" not in f"{error.value.value}{error.value.rule}"


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, b"a cat")
    assert TextFile(path="~/prompts.txt").tasks()[0].prompt == "a cat"


def test_thesis_prompts_with_trailing_space_are_stripped(released: Callable[[str, str], Path]) -> None:
    """HPDv2's 50, five of which end in a space."""
    file = released("hpdv2", "hps_v2_all_eval.txt")
    tasks = TextFile(path=str(file)).tasks()
    assert len(tasks) == 50
    assert sum(line.endswith(" ") for line in file.read_text().splitlines()) == 5
    assert not any(task.prompt.endswith(" ") for task in tasks)


def test_t2i_compbench_files_are_read_whole(released: Callable[[str, str], Path]) -> None:
    """CRLF, no final newline, 300 prompts."""
    tasks = TextFile(path=str(released("t2i_compbench", "color_val.txt"))).tasks()
    assert len(tasks) == 300
    assert not any("\r" in task.prompt for task in tasks)


# The others


def test_one_prompt() -> None:
    (task,) = OnePrompt(prompt=" a cat ").tasks()
    assert task == make_tasks(["a cat"])[0]
    for prompt in ("", " \n"):
        with pytest.raises(BadValue, match="is empty"):
            OnePrompt(prompt=prompt)


def test_animals_are_the_thesis_s() -> None:
    """The names of eval_simple_animals_6.txt (mihirp1998/AlignProp) and then of simple_animals_45.txt (kvablack/ddpo-pytorch)."""
    tasks = Animals().tasks()
    assert len(tasks) == 51
    assert hashlib.sha256("\n".join(task.prompt for task in tasks).encode()).hexdigest() == THESIS_ANIMALS


def test_animals_without_the_files() -> None:
    tasks = Animals().tasks()
    assert len({task.prompt for task in tasks}) == len(tasks) == 51
    assert {task.category for task in tasks} == {"animals"}
    assert list(Animals(limit=6).tasks()) == list(tasks[:6])
    assert [task.prompt for task in tasks[:6]] == ["snail", "hippopotamus", "cheetah", "crocodile", "lobster", "octopus"]


@pytest.mark.parametrize("category", CATEGORIES)
def test_lab_categories(category: str) -> None:
    whole, part = Lab(category=category, limit=None).tasks(), Lab(category=category, limit=5).tasks()
    assert list(part) == list(whole[:5])
    assert 5 < len(whole) <= 300
    assert len({task.id for task in whole}) == len(whole) == len({task.prompt for task in whole})
    assert {task.category for task in whole} == {category}
    assert [task.prompt for task in part] == [prompt for prompt, _ in zip(prompts(category), range(5), strict=False)]
    assert len(Lab(category=category).tasks()) == 8


def test_several_lab_categories_follow_each_other() -> None:
    names = ["shape", "colour", "single"]
    apart = [task for name in names for task in Lab(category=name, limit=4, skip=1).tasks()]
    assert list(Lab(category=names, limit=4, skip=1).tasks()) == apart
    assert [task.category for task in apart] == [name for name in names for _ in range(4)]


@pytest.mark.parametrize("category", [[], ["shape", "shape"], ["shape", "color"]])
def test_wrong_lists_of_categories_are_refused(category: list[str]) -> None:
    with pytest.raises(BadValue, match="choose from"):
        Lab(category=category)
    with pytest.raises(BadValue, match="choose from"):
        T2ICompBench(category=[name.replace("color", "colour") for name in category])


def test_a_prompt_of_two_categories_is_two_tasks() -> None:
    lines = {"color": ["a red car", "a blue cup"], "shape": ["a round cup", "a red car"]}
    tasks = of_each(["color", "shape"], lambda category: make_tasks(lines[category], category))
    assert [(task.prompt, task.category) for task in tasks] == [
        ("a red car", "color"), ("a blue cup", "color"), ("a round cup", "shape"), ("a red car", "shape"),
    ]  # fmt: skip
    assert len({task.id for task in tasks}) == 4
    assert tasks[:2] == make_tasks(lines["color"], "color")  # of the names that they have alone


def test_an_unknown_lab_category_names_the_nearest() -> None:
    with pytest.raises(BadValue, match="did you mean colour.*choose from"):
        Lab(category="color")
    with pytest.raises(BadValue, match="'zzz': choose from"):
        Lab(category="zzz")


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_positive(limit: int) -> None:
    files = (
        lambda: TextFile(path="x", limit=limit),
        lambda: Jsonl(path="x", limit=limit),
        lambda: Hpdv2(path="x", limit=limit),
        lambda: DrawBench(limit=limit),
    )
    for make in (lambda: Animals(limit=limit), lambda: Lab(limit=limit), *files):
        with pytest.raises(BadValue, match=f"limit={limit}: must be at least 1"):
            make()


# HPDv2


def test_hpdv2_is_the_thesis_s_50_prompts(released: Callable[[str, str], Path], tmp_path: Path) -> None:
    file = released("hpdv2", "hps_v2_all_eval.txt")
    expected = [line.strip() for line in file.read_text().splitlines()]
    tasks = Hpdv2(path=str(file)).tasks()
    assert len(tasks) == 50
    assert [task.prompt for task in tasks] == expected
    assert [task.id for task in tasks] == [task.id for task in make_tasks(expected)]
    assert {task.category for task in tasks} == {"hpdv2"}
    assert list(Hpdv2(path=str(file), limit=7).tasks()) == list(tasks[:7])
    again = write(tmp_path, "\r\n".join(reversed(expected)).encode())
    assert {task.id for task in Hpdv2(path=again).tasks()} == {task.id for task in tasks}


@pytest.mark.parametrize("count", [2, 50])
def test_hpdv2_takes_no_other_prompts(tmp_path: Path, count: int) -> None:
    path = write(tmp_path, "\n".join(f"a cat {i}" for i in range(count)).encode())
    with pytest.raises(BadValue, match=f"holds {count} prompts that are not the 50 .*dataset=text") as error:
        Hpdv2(path=path, limit=2).tasks()
    assert (error.value.name, error.value.value) == ("path", path)


# DrawBench


def test_drawbench_has_200_prompts_in_11_categories(released: Callable[[str, str], Path], tmp_path: Path) -> None:
    file = released("drawbench", "DrawBench_Prompts.csv")
    tasks = DrawBench(path=str(file)).tasks()
    assert len({task.id for task in tasks}) == len(tasks) == 200
    assert tasks[0].prompt == "A red colored car."
    counts = {category: len(DrawBench(path=str(file), category=category).tasks()) for category in DRAWBENCH}
    assert counts == {
        "Colors": 25, "Conflicting": 10, "Counting": 19, "DALL-E": 20, "Descriptions": 20, "Gary Marcus et al.": 10,
        "Misspellings": 10, "Positional": 20, "Rare Words": 7, "Reddit": 38, "Text": 21,
    }  # fmt: skip
    reddit = DrawBench(path=str(file), category="Reddit").tasks()
    assert [task for task in tasks if task.category == "Reddit"] == list(reddit)
    assert list(DrawBench(path=str(file), category="Reddit", limit=3).tasks()) == list(reddit[:3])
    header, *rows = file.read_text().splitlines()
    again = write(tmp_path, "\n".join([header, *reversed(rows)]).encode("utf-8-sig"))
    assert {(task.id, task.category) for task in DrawBench(path=again).tasks()} == {(task.id, task.category) for task in tasks}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"No.,Prompts,Category\n1,a cat,Colors\n", "holds 1 prompts that are not the 200 of DrawBench.*dataset=text"),
        (b"No.,Prompts,Category\n", "holds 0 prompts"),
        (b"Prompt,Kind\na cat,Colors\n", "no CSV file with the columns Prompts and Category"),
        (b"No.,Prompts,Category\n1,a cat\n", "no CSV file with the columns"),
        (b'No.,Prompts,Category\n1,"a cat,Colors\n', "no CSV file with the columns"),
        (b"", "holds 0 prompts"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_drawbench_takes_no_other_file(tmp_path: Path, content: bytes, rule: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(BadValue, match=rule) as error:
        DrawBench(path=path).tasks()
    assert (error.value.name, error.value.value) == ("path", path)
    assert "\n" not in error.value.rule


def test_drawbench_without_one_of_its_prompts(released: Callable[[str, str], Path], tmp_path: Path) -> None:
    lines = released("drawbench", "DrawBench_Prompts.csv").read_text().splitlines()
    with pytest.raises(BadValue, match="holds 199 prompts that are not the 200"):
        DrawBench(path=write(tmp_path, "\n".join(lines[:-1]).encode()), category="DALL-E").tasks()


def test_an_unknown_drawbench_category_names_the_nearest() -> None:
    with pytest.raises(BadValue, match="did you mean DALL-E.*choose from Colors"):
        DrawBench(category="DALLE")


# Reference images


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "Red Thing.png")
    return tmp_path / "Red Thing.png"


ANIMALS = Animals(limit=3)


def test_every_prompt_is_drawn_from_every_image(picture: Path) -> None:
    other = picture.with_name("blue.jpg")
    Image.new("L", (4, 9)).save(other)
    tasks = ImageToImage(prompts=ANIMALS, images=[str(picture), str(other)], noise_ratio=[0.6, 0.8]).tasks()
    assert [(task.prompt, task.reference, task.noise_ratio, task.category) for task in tasks] == [
        (animal.prompt, str(file), ratio, "animals") for file, ratio in ((picture, 0.6), (other, 0.8)) for animal in ANIMALS.tasks()
    ]
    assert len({task.id for task in tasks}) == 6
    for task, animal in zip(tasks, ANIMALS.tasks(), strict=False):
        assert re.fullmatch(rf"{animal.id}-red-thing-[0-9a-f]{{8}}", task.id)


def test_the_default_is_the_thesis_s_ratio_and_one_is_pure_noise(picture: Path) -> None:
    assert {task.noise_ratio for task in ImageToImage(prompts=ANIMALS, images=[str(picture)]).tasks()} == {0.6}
    for task in ImageToImage(prompts=ANIMALS, images=[str(picture)], noise_ratio=1).tasks():
        assert (task.reference, task.noise_ratio) == (str(picture), None)


def test_names_with_references_do_not_depend_on_order_or_place(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*images: str) -> set[str]:
        return {task.id for task in ImageToImage(prompts=ANIMALS, images=list(images), noise_ratio=0.5).tasks()}

    elsewhere = picture.parent / "deep" / picture.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(picture.read_bytes())
    both = names(str(picture), "lab:night")
    assert names("lab:night", str(elsewhere)) == both
    assert names(str(picture)) < both
    monkeypatch.chdir(picture.parent)
    (task, *_) = ImageToImage(prompts=ANIMALS, images=[picture.name]).tasks()
    assert task.reference == str(picture)  # absolute, for whoever reads the run from another folder
    Image.new("RGB", (8, 8), "blue").save(picture)
    assert not names(str(picture)) & both  # another content is another task


def test_ratios_by_how_detailed_images_are(tmp_path: Path) -> None:
    """Of stripes, whose edges can be counted, in a folder or one by one, and whatever their sizes."""
    folder = tmp_path / "styles"
    folder.mkdir()
    for stripes in (2, 8, 32):
        columns = (np.arange(256) * stripes // 256) % 2 * 255
        picture = Image.fromarray(np.broadcast_to(columns[None, :, None], (256, 256, 3)).astype(np.uint8))
        picture.save(folder / f"{stripes:02}.png")
        assert detail(folder / f"{stripes:02}.png") == pytest.approx((stripes - 1) / 255 / 2, rel=1e-5)
    ratios = {"plain": 0.4, "detailed": 0.8}
    made = ImageToImage(prompts=Animals(limit=1), images=[str(folder)], noise_ratio=ratios).tasks()
    middle = 0.4 + 0.4 * math.log(7) / math.log(31)
    assert [task.noise_ratio for task in made] == pytest.approx([0.4, round(middle, 2), 0.8], abs=1e-9)
    swapped = {"plain": 0.8, "detailed": 0.4}
    again = ImageToImage(prompts=Animals(limit=1), images=[str(folder / "32.png"), str(folder / "02.png")], noise_ratio=swapped)
    assert [task.noise_ratio for task in again.tasks()] == [0.4, 0.8]
    (alone,) = ImageToImage(prompts=Animals(limit=1), images=[str(folder / "08.png")], noise_ratio=ratios).tasks()
    assert alone.noise_ratio == pytest.approx(0.6)


def test_an_image_given_twice_is_two_tasks(picture: Path) -> None:
    tasks = ImageToImage(prompts=Animals(limit=1), images=[str(picture)] * 2, noise_ratio=[0.4, 0.8]).tasks()
    assert [task.id for task in tasks] == [tasks[0].id, f"{tasks[0].id}-2"]


def test_the_lab_s_style_pictures_have_names() -> None:
    (task,) = ImageToImage(prompts=Animals(limit=1), images=["lab:night"]).tasks()
    assert task.id.endswith("-lab-night")
    assert task.reference is not None
    assert Path(task.reference).is_file() and Path(task.reference).is_absolute()
    with pytest.raises(BadValue, match="lab:nigth.*no such style.*night"):
        ImageToImage(prompts=ANIMALS, images=["lab:nigth"]).tasks()


@pytest.mark.parametrize(
    ("options", "name", "rule"),
    [
        ({"images": []}, "images", "names no image"),
        ({"noise_ratio": [0.5]}, "noise_ratio", "as many as there are images \\(2\\)"),
        ({"noise_ratio": [0.5, 0]}, "noise_ratio", "above 0 and at most 1"),
        ({"noise_ratio": 1.01}, "noise_ratio", "above 0 and at most 1"),
        ({"noise_ratio": {"plain": 0.5}}, "noise_ratio", "two keys, plain and detailed"),
        ({"noise_ratio": {"plain": 0.5, "detailed": 1.5}}, "noise_ratio", "above 0 and at most 1"),
        ({"noise_ratio": float("nan")}, "noise_ratio", "above 0 and at most 1"),
    ],
)
def test_wrong_references(options: dict[str, Any], name: str, rule: str) -> None:
    with pytest.raises(BadValue, match=rule) as error:
        ImageToImage(**{"prompts": ANIMALS, "images": ["a.png", "b.png"], **options})
    assert error.value.name == name


def test_images_that_are_none(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "torn.png").write_bytes(picture.read_bytes()[:-30])
    for file, rule in {"text.png": "not an image", "torn.png": "cannot be read", "none.png": "No such file"}.items():
        with pytest.raises(BadValue, match=rule) as error:
            ImageToImage(prompts=ANIMALS, images=[str(picture), str(tmp_path / file)]).tasks()
        assert (error.value.name, error.value.value) == ("images", str(tmp_path / file))


def test_an_image_of_too_many_pixels(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(BadValue, match="^images=.*cannot be read .*decompression bomb"):
        ImageToImage(prompts=ANIMALS, images=[str(picture)]).tasks()


def test_what_is_wrong_with_the_prompts_is_reported_with_them(picture: Path) -> None:
    with pytest.raises(BadValue, match="No such file") as error:
        ImageToImage(prompts=TextFile(path="none.txt"), images=[str(picture)]).tasks()
    assert error.value.name == "prompts.path"


# JSONL


def lines(folder: Path, *values: Any) -> str:
    text = "\n".join(value if isinstance(value, str) else json.dumps(value) for value in values)
    (folder / "tasks.jsonl").write_text(text, encoding="utf-8")
    return str(folder / "tasks.jsonl")


def test_a_line_of_jsonl_is_a_task(tmp_path: Path, picture: Path) -> None:
    path = lines(
        tmp_path, {"prompt": " a cat ", "category": "pets"}, "", {"prompt": "猫"},
        {"prompt": "a cat", "reference": picture.name, "noise_ratio": 0.5}, {"prompt": "a cat", "reference": "lab:night", "noise_ratio": None},
        {"prompt": "a cat", "reference": str(picture), "noise_ratio": 1},
    )  # fmt: skip
    tasks = Jsonl(path=path).tasks()
    cat, kanji = make_tasks(["a cat", "猫"])
    assert tasks[0] == Task(id=cat.id, prompt="a cat", category="pets")
    assert tasks[1] == kanji
    assert [(task.prompt, task.reference, task.noise_ratio) for task in tasks[2:]] == [
        ("a cat", str(picture), 0.5),
        ("a cat", tasks[3].reference, None),
        ("a cat", str(picture), None),
    ]
    assert tasks[3].id == f"{cat.id}-lab-night"
    assert tasks[4].id == f"{tasks[2].id}-2"
    assert [task.id for task in Jsonl(path=path, limit=3).tasks()] == [task.id for task in tasks[:3]]


def test_jsonl_and_image_to_image_name_tasks_alike(tmp_path: Path, picture: Path) -> None:
    path = lines(tmp_path, {"prompt": "a cat", "reference": picture.name, "noise_ratio": 0.5, "category": "x"})
    text = write(tmp_path, b"a cat")
    (one,), (other,) = (
        Jsonl(path=path).tasks(),
        ImageToImage(prompts=TextFile(path=text), images=[str(picture)], noise_ratio=0.5).tasks(),
    )
    assert one == Task(**{**vars(other), "category": "x"})


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ("{}", "has no prompt"),
        ('{"prompt": null}', "has no prompt"),
        ('{"prompt": "  "}', "prompt=  : is empty"),
        ('{"prompt": 3}', "prompt=3: expected a text, got int"),
        ('{"prompt": "a", "noise_ratio": 0.5}', "noise_ratio=0.5: needs a reference"),
        ('{"prompt": "a", "reference": "lab:night", "noise_ratio": 0}', "noise_ratio=0: must be above 0"),
        ('{"prompt": "a", "reference": "lab:night", "noise_ratio": NaN}', "noise_ratio=nan: must be above 0"),
        ('{"prompt": "a", "reference": "lab:night", "noise_ratio": true}', "noise_ratio=True: expected a number, got bool"),
        ('{"prompt": "a", "noise_ration": 0.5}', "noise_ration=0.5: no such key; did you mean noise_ratio"),
        ('{"prompt": "a", "reference": "none.png"}', "reference=none.png: cannot be read"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, line: str, rule: str) -> None:
    path = lines(tmp_path, {"prompt": "a cat"}, "", line)
    with pytest.raises(
        BadValue, match=re.escape(f"line 3: {rule}") if "is not JSON" not in rule else "line 3: is not JSON"
    ) as error:
        Jsonl(path=path).tasks()
    assert (error.value.name, error.value.value) == ("path", path)
    assert "\n" not in error.value.rule
    assert len(Jsonl(path=path, limit=1).tasks()) == 1  # lines beyond the limit are not read


@pytest.mark.parametrize("line", ['{"prompt": [[]]}', '{"pompt": [[]]}', "[[]]"])
def test_a_line_that_is_nested_deeply_is_refused_in_one_short_line(tmp_path: Path, line: str) -> None:
    """What can still be parsed may be too deep to be printed."""
    for depth in (*range(900, 1000), 5000, 100_000):
        deep = line.replace("[[]]", "[" * depth + "]" * depth)
        with pytest.raises(BadValue, match="line 1: .*(nested too deeply|expected a text|no such key|not an object)") as error:
            Jsonl(path=lines(tmp_path, deep)).tasks()
        assert len(error.value.rule) < 200 and "\n" not in error.value.rule


def test_a_jsonl_file_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="holds no task"):
        Jsonl(path=lines(tmp_path, "", "  ")).tasks()


def test_a_template_changes_prompts_and_nothing_else() -> None:
    plain = Animals(limit=3).tasks()
    tasks = Templated(prompts=Animals(limit=3), template="a drawing of a {prompt} and a {prompt}").tasks()
    assert [task.prompt for task in tasks] == [f"a drawing of a {task.prompt} and a {task.prompt}" for task in plain]
    assert [dataclasses.replace(task, prompt="") for task in tasks] == [dataclasses.replace(task, prompt="") for task in plain]
    assert Templated(prompts=Animals(limit=3)).tasks() == plain


def test_a_template_without_a_place_for_the_prompt_is_refused() -> None:
    with pytest.raises(BadValue) as refused:
        Templated(prompts=Animals(), template="a drawing")
    assert refused.value.name == "template"


def test_what_is_wrong_inside_a_template_is_reported_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(BadValue) as refused:
        Templated(prompts=TextFile(path=str(tmp_path / "none.txt"))).tasks()
    assert refused.value.name == "prompts.path"


def test_lab_prompts_left_out_are_the_first_ones() -> None:
    assert [*Lab(limit=3).tasks(), *Lab(skip=3, limit=4).tasks()] == Lab(limit=7).tasks()
    for skip, category in ((-1, "colour"), (10_000, "single")):
        with pytest.raises(BadValue) as refused:
            Lab(category=category, skip=skip).tasks()
        assert refused.value.name == "skip"
