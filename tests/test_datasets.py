"""Data sets: what they hold, and names that are stable, unique and safe."""

import random
import re
from pathlib import Path

import pytest

from guidedgen.datasets.animals import Animals
from guidedgen.datasets.lab import Lab
from guidedgen.datasets.prompt import OnePrompt
from guidedgen.datasets.tasks import make_tasks
from guidedgen.datasets.text import TextFile
from guidedgen.lab.captions import CATEGORIES, prompts
from guidedgen.types import BadValue, Sample

HARD = [
    "a/b", "../../etc/passwd", "..", ".", "/", "\\", "a\\b", "it's", '"quoted"', "`$(rm -rf)`", "猫", "🐱🐱", "é", "e\u0301", "a\nb", "a\tb",
    "a\x00b", "-rf", "--help", "con", "CON", "x" * 2000, "word " * 400, "a red circle, and a square", "A Red Circle", "a red circle",
    "a  red circle", "a.png", "~", "%s{}", "*?", "a:b|c<d>e", ".hidden", "a-2", "a",
]  # fmt: skip


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


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, b"a cat")
    assert TextFile(path="~/prompts.txt").tasks()[0].prompt == "a cat"


def test_thesis_prompts_with_trailing_space_are_stripped(shared: Path) -> None:
    """HPDv2's 50, five of which end in a space."""
    file = shared / "data" / "hpdv2" / "eval_50.txt"
    tasks = TextFile(path=str(file)).tasks()
    assert len(tasks) == 50
    assert sum(line.endswith(" ") for line in file.read_text().splitlines()) == 5
    assert not any(task.prompt.endswith(" ") for task in tasks)


def test_t2i_compbench_files_are_read_whole(shared: Path) -> None:
    """CRLF, no final newline, 300 prompts."""
    tasks = TextFile(path=str(shared / "data" / "t2i_compbench" / "color_val.txt")).tasks()
    assert len(tasks) == 300
    assert not any("\r" in task.prompt for task in tasks)


# The others


def test_one_prompt() -> None:
    (task,) = OnePrompt(prompt=" a cat ").tasks()
    assert task == make_tasks(["a cat"])[0]
    for prompt in ("", " \n"):
        with pytest.raises(BadValue, match="is empty"):
            OnePrompt(prompt=prompt)


def test_animals_are_the_thesis_s(shared: Path) -> None:
    files = ("eval_simple_animals_6.txt", "simple_animals_45.txt")
    expected = [line for file in files for line in (shared / "data" / "animals" / file).read_text().split()]
    tasks = Animals().tasks()
    assert len(tasks) == 51
    assert [task.prompt for task in tasks] == expected


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


def test_an_unknown_lab_category_names_the_nearest() -> None:
    with pytest.raises(BadValue, match="did you mean colour.*choose from"):
        Lab(category="color")
    with pytest.raises(BadValue, match="'zzz': choose from"):
        Lab(category="zzz")


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_positive(limit: int) -> None:
    for make in (lambda: Animals(limit=limit), lambda: Lab(limit=limit), lambda: TextFile(path="x", limit=limit)):
        with pytest.raises(BadValue, match=f"limit={limit}: must be at least 1"):
            make()
