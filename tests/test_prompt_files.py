"""Files of prompts as people bring them: each line is used as it stands, or refused by its number, by every loader."""

import codecs
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from guidedgen.basics.errors import BadValue
from guidedgen.datasets import tasks
from guidedgen.datasets.drawbench import DrawBench
from guidedgen.datasets.geneval import GenEval
from guidedgen.datasets.hpdv2 import Hpdv2
from guidedgen.datasets.jsonl import Jsonl
from guidedgen.datasets.parti_prompts import PartiPrompts
from guidedgen.datasets.prompt import OnePrompt
from guidedgen.datasets.t2i_compbench import T2ICompBench
from guidedgen.datasets.templated import Templated
from guidedgen.datasets.text import TextFile

Tried = Callable[..., None]

UNSEEN = {
    "nul": ("a\0cat", r"U\+0000 .a control character."),
    "bell": ("a\acat", r"U\+0007"),
    "escape": ("\x1b[31ma cat", r"U\+001B"),
    "form feed": ("a cat\f", r"U\+000C"),
    "file separator": ("\x1ca cat", r"U\+001C"),  # which Python takes for white space
    "delete": ("a ca\x7ft", r"U\+007F"),
    "next line": ("a\x85cat", r"U\+0085"),
    "c1": ("a\x9bcat", r"U\+009B"),
    "override": ("a \u202etac", r"U\+202E .RIGHT-TO-LEFT OVERRIDE."),
    "isolate": ("a \u2067cat\u2069", r"U\+2067 .RIGHT-TO-LEFT ISOLATE."),
    "line separator": ("a cat\u2028a dog", r"U\+2028 .LINE SEPARATOR."),
    "paragraph separator": ("a cat\u2029", r"U\+2029"),
    "byte order mark inside": ("a cat\ufeff", r"U\+FEFF .ZERO WIDTH NO-BREAK SPACE."),
    "no character": ("a cat\uffff", r"U\+FFFF"),
    "no character of another plane": ("a cat\U0001fffe", r"U\+1FFFE"),
}
BLANK = {
    "zero width": "\u200b\u200d", "no-break space": "\xa0", "ideographic space": "\u3000 ", "soft hyphen": "\xad", "Hangul filler": "\u3164",
    "Braille": "\u2800\u2800", "a mark on nothing": "\u0301", "variation selector": "\ufe0f", "word joiner": "\u2060",
}  # fmt: skip
SHOWN = [
    "a\tcat", "猫 🐱", "👩\u200d🎨 at work", "\u0645\u06cc\u200c\u062e\u0648\u0627", "שלום \u200fa", "e\u0301", "a\xa0cat", "co\xadoperate", "🏴\U000e0067\U000e0062\U000e007f",
    ".", "❤\ufe0f", "a ${seed} circle", r"a \${seed} circle", "${oc.env:HOME}", "${", "{prompt}", "%s", "a \\ b", "'", '"a cat"',
]  # fmt: skip


def file(folder: Path, content: bytes | str) -> str:
    (folder / "prompts.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / "prompts.txt")


def loaders(folder: Path, line: str) -> dict[str, Callable[[], object]]:
    """Everything that reads a text of the user's, with the text on its third line where it has lines."""
    path = file(folder, f"a dog\n\n{line}\n")
    (folder / "tasks.jsonl").write_text('{"prompt": "a dog"}\n\n' + json.dumps({"prompt": line}))
    (folder / "kinds.jsonl").write_text('{"prompt": "a dog"}\n\n' + json.dumps({"prompt": "a cat", "category": line}))
    return {
        "text": TextFile(path=path).tasks,
        "hpdv2": Hpdv2(path=path).tasks,
        "jsonl": Jsonl(path=str(folder / "tasks.jsonl")).tasks,
        "category": Jsonl(path=str(folder / "kinds.jsonl")).tasks,
        "templated": Templated(prompts=TextFile(path=path)).tasks,
        "prompt": lambda: OnePrompt(prompt=line).tasks(),
        "template": lambda: Templated(prompts=OnePrompt(prompt="a dog"), template=line + "{prompt}"),
    }


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_nobody_sees_is_refused_by_its_line(kind: str, tmp_path: Path, tried: Tried) -> None:
    line, named = UNSEEN[kind]
    for name, load in loaders(tmp_path, line).items():
        where = "line 3: .*" if name not in ("prompt", "template") else ""
        with pytest.raises(BadValue, match=f"{where}holds {named}.*take it out") as refused:
            load()
        assert str(refused.value).isprintable()
        tried("refused")


@pytest.mark.parametrize("kind", BLANK)
def test_a_line_that_shows_nothing_is_refused(kind: str, tmp_path: Path, tried: Tried) -> None:
    doors = loaders(tmp_path, BLANK[kind])
    del doors["template"]  # which shows the prompt
    for name, load in doors.items():
        with pytest.raises(BadValue, match=f"{'' if name == 'prompt' else 'line 3: .*'}shows nothing: it holds U\\+") as refused:
            load()
        assert str(refused.value).isprintable()
        tried("refused")


@pytest.mark.parametrize("line", SHOWN)
def test_what_is_seen_is_used_as_it_stands(line: str, tmp_path: Path, tried: Tried) -> None:
    for name in ("text", "jsonl", "templated"):
        assert [task.prompt for task in loaders(tmp_path, line)[name]()] == ["a dog", line]  # type: ignore[attr-defined]
        tried("used")
    assert OnePrompt(prompt=line).tasks()[0].prompt == line


def test_half_a_character_is_refused(tmp_path: Path, tried: Tried) -> None:
    """Of a command line in another encoding, and of JSON's escapes."""
    for prompt in ("caf\udce9", "\ud83d"):
        with pytest.raises(BadValue, match="is not valid UTF-8"):
            OnePrompt(prompt=prompt)
        for values in ({"prompt": prompt}, {"prompt": "a", "category": prompt}):
            (tmp_path / "x.jsonl").write_text(json.dumps(values))
            with pytest.raises(BadValue, match="line 1: .*is not valid UTF-8"):
                Jsonl(path=str(tmp_path / "x.jsonl")).tasks()
            tried("refused")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("a red circle\na blue square\n".encode("utf-16-le"), r"line 1: holds U\+0000 .*UTF-16"),
        ("a red circle\na blue square\n".encode("utf-16-be"), r"line 1: holds U\+0000 .*UTF-16"),
        ("a red circle\n".encode("utf-32-le"), r"line 1: holds U\+0000"),
        (codecs.BOM_UTF16_LE + "a cat".encode("utf-16-le"), "not UTF-8 .*byte 0.; it is UTF-16, save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "a cat".encode("utf-16-be"), "not UTF-8 .*byte 0.; it is UTF-16"),
        ("une fenêtre".encode("latin-1"), "not UTF-8 .*byte 7"),
        (codecs.BOM_UTF8 + b"a cat\n" + codecs.BOM_UTF8 + b"a dog", r"line 2: holds U\+FEFF"),  # two files, one after the other
        (b"a cat\n" + b"x" * 10_001, r"line 2: holds 10,001 characters; a text has at most 10,000"),
        (b"\x89PNG\r\n\x1a\n", "not UTF-8"),
    ],
)
def test_files_of_another_kind_are_refused(content: bytes, rule: str, tmp_path: Path, tried: Tried) -> None:
    with pytest.raises(BadValue, match=rule) as refused:
        TextFile(path=file(tmp_path, content)).tasks()
    assert refused.value.name == "path" and len(str(refused.value)) < 400
    tried("refused")


@pytest.mark.parametrize(
    "content",
    [
        b"a cat\ra dog\r", b"a cat\r\n\r\n \t\r\na dog", b"\xef\xbb\xbfa cat \t\n  a dog\xc2\xa0\n", b"a cat\r\ra dog\n\n", b"\n\na cat\na dog",
    ],
)  # fmt: skip
def test_line_ends_and_blanks_around_a_prompt_do_not_matter(content: bytes, tmp_path: Path, tried: Tried) -> None:
    assert [task.prompt for task in TextFile(path=file(tmp_path, content)).tasks()] == ["a cat", "a dog"]
    tried("used")


def test_only_lines_within_the_limit_are_read(tmp_path: Path, tried: Tried) -> None:
    path = file(tmp_path, "a cat\na dog\n\0\n")
    assert len(TextFile(path=path, limit=2).tasks()) == 2
    with pytest.raises(BadValue, match="line 3"):
        TextFile(path=path, limit=3).tasks()
    tried("used"), tried("refused")


# What is no file of prompts


def pipe(path: Path) -> None:
    os.mkfifo(path)


def large(path: Path) -> None:
    with path.open("wb") as hole:
        hole.truncate(10 * 2**30)


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (pipe, "is no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "10 GB": (large, "is larger than 256 MiB"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "dangling": (lambda path: path.symlink_to("nothing"), "No such file"),
    "circle": (lambda path: path.symlink_to(path.name), "symbolic links"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file_of_prompts_is_refused_at_once(kind: str, tmp_path: Path, tried: Tried) -> None:
    """By every dataset of a file; those of a benchmark look for one first, in folders too."""
    make, rule = PLACES[kind]
    make(tmp_path / "x")
    path = str(tmp_path / "x")
    for load in (TextFile(path=path).tasks, Jsonl(path=path).tasks, Templated(prompts=TextFile(path=path)).tasks):
        with pytest.raises(BadValue, match=rule):
            load()
        tried("refused")
    for dataset in (Hpdv2, DrawBench, GenEval, PartiPrompts, T2ICompBench):
        with pytest.raises(BadValue, match=f"{rule}|there is no|is a file; the folder"):
            dataset(path=path).tasks()
        tried("refused")


def test_a_file_that_grows_while_it_is_read_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    """Some files of /proc, too, are larger than they say."""
    path = file(tmp_path, "a cat\n" * 20)
    state = os.stat_result((os.stat(path).st_mode, *[0] * 9))
    monkeypatch.setattr(tasks, "LARGEST", 100)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: state)
    with pytest.raises(BadValue, match="is larger than"):
        TextFile(path=path).tasks()
    tried("refused")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path, tried: Tried) -> None:
    """`json` would take the second and drop the first."""
    (tmp_path / "x.jsonl").write_text('{"prompt": "a cat", "category": "x", "prompt": "a dog"}')
    with pytest.raises(BadValue, match=r"line 1: prompt=\.\.\.: stands there twice"):
        Jsonl(path=str(tmp_path / "x.jsonl")).tasks()
    tried("refused")
