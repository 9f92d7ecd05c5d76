"""T2I-CompBench, PartiPrompts and GenEval, and where HPDv2 and DrawBench are: read whole, named stably, refused where they are other."""

import hashlib
import importlib.util
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.datasets import downloads, geneval, parti_prompts, t2i_compbench
from guidedgen.datasets.drawbench import DrawBench
from guidedgen.datasets.geneval import GenEval
from guidedgen.datasets.hpdv2 import Hpdv2
from guidedgen.datasets.parti_prompts import PartiPrompts
from guidedgen.datasets.t2i_compbench import T2ICompBench
from guidedgen.datasets.tasks import make_tasks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def compbench(released: Callable[[str, str], Path]) -> Path:
    return released("t2i_compbench", "color_val.txt").parent


@pytest.fixture
def parti(released: Callable[[str, str], Path]) -> str:
    return str(released("parti_prompts", "PartiPrompts.tsv"))


@pytest.fixture
def metadata(released: Callable[[str, str], Path]) -> str:
    return str(released("geneval", "evaluation_metadata.jsonl"))


@pytest.mark.parametrize("category", t2i_compbench.CATEGORIES)
def test_a_category_has_its_300_prompts(compbench: Path, category: str) -> None:
    tasks = T2ICompBench(category=category, path=str(compbench)).tasks()
    lines = (compbench / f"{category}_val.txt").read_bytes().decode().replace("\r\n", "\n").strip().split("\n")
    assert len(tasks) == 300
    assert [task.prompt for task in tasks] == [line.strip() for line in lines]
    assert [task.id for task in tasks] == [task.id for task in make_tasks(lines)]
    assert len({task.id for task in tasks}) == 300
    assert T2ICompBench(category=category, path=str(compbench), limit=7).tasks() == tasks[:7]


def test_every_released_category_is_there(compbench: Path) -> None:
    names = {file.name for file in compbench.glob("*.txt")}
    assert names == set(downloads.SOURCES["t2i_compbench"].files)
    assert {re.sub("_val.*", "", name) for name in names} == set(t2i_compbench.CATEGORIES)


def test_complex_prompts_are_distinguished(compbench: Path) -> None:
    """58 of relations, 212 of actions and 30 of both; counted in the released file."""
    tasks = T2ICompBench(category="complex", path=str(compbench)).tasks()
    assert Counter(task.category for task in tasks) == {"complex_spatial": 58, "complex_action": 212, "complex_spatialaction": 30}
    for kind in ("spatial", "action", "spatialaction"):
        expected = (compbench / f"complex_val_{kind}.txt").read_text().strip().split("\n")
        assert {t.prompt for t in tasks if t.category == f"complex_{kind}"} == {line.strip() for line in expected}


def test_line_ends_do_not_matter(compbench: Path, tmp_path: Path) -> None:
    text = (compbench / "color_val.txt").read_bytes().replace(b"\r\n", b"\n")
    (tmp_path / "color_val.txt").write_bytes(text)
    assert T2ICompBench(path=str(tmp_path)).tasks() == T2ICompBench(path=str(compbench)).tasks()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", " \n\n"])
def test_how_a_file_ends_does_not_matter(
    compbench: Path, parti: str, metadata: str, tmp_path: Path, end: str, newline: str
) -> None:
    """Editors and git add or take the last newline; the released files have it (shape) or not (color)."""
    for make, file, original in [
        (T2ICompBench, "color_val.txt", compbench / "color_val.txt"),
        (lambda path: T2ICompBench(path=path, category="shape"), "shape_val.txt", compbench / "shape_val.txt"),
        (PartiPrompts, "PartiPrompts.tsv", Path(parti)),
        (GenEval, "evaluation_metadata.jsonl", Path(metadata)),
    ]:
        (tmp_path / file).write_text(original.read_text().rstrip() + end, newline=newline)
        expected = make(path=str(compbench if original.parent == compbench else original)).tasks()
        assert make(path=str(tmp_path)).tasks() == expected


def test_a_folder_is_needed_of_many_files(compbench: Path) -> None:
    """A file would stand for the others that a category is read from too."""
    for category in ("color", "complex"):
        with pytest.raises(BadValue, match="is a file; the folder that holds") as error:
            T2ICompBench(path=str(compbench / "complex_val.txt"), category=category).tasks()
        assert (error.value.name, error.value.value) == ("path", str(compbench / "complex_val.txt"))


def test_another_text_is_refused(compbench: Path, tmp_path: Path) -> None:
    text = (compbench / "color_val.txt").read_bytes()
    (tmp_path / "color_val.txt").write_bytes(text.replace(b"green bench", b"green couch"))
    with pytest.raises(BadValue, match=r"is not color_val.txt as released \(https://.*\); dataset=text takes any file") as error:
        T2ICompBench(path=str(tmp_path)).tasks()
    assert (error.value.name, error.value.value) == ("path", str(tmp_path / "color_val.txt"))


NAMED = [
    (T2ICompBench, "t2i_compbench"),
    (PartiPrompts, "parti_prompts"),
    (GenEval, "geneval"),
    (Hpdv2, "hpdv2"),
    (DrawBench, "drawbench"),
]


@pytest.mark.parametrize(("make", "name"), NAMED)
def test_what_is_not_there_can_be_fetched(make, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in (None, str(tmp_path)):
        with pytest.raises(BadValue, match=f"fetch it with: python scripts/fetch.py data {name}$") as error:
            make(path=path).tasks()
        assert (error.value.name, error.value.value) == ("path", path or "null")


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: T2ICompBench(category="colour"), r"did you mean color\? choose from color, shape"),
        (lambda: T2ICompBench(limit=0), "at least 1"),
        (lambda: PartiPrompts(category="Animal"), r"did you mean Animals\?"),
        (lambda: PartiPrompts(challenge="Quantities"), r"did you mean Quantity\?"),
        (lambda: PartiPrompts(limit=0), "at least 1"),
        (lambda: GenEval(category="count"), r"did you mean counting\?"),
        (lambda: GenEval(limit=0), "at least 1"),
    ],
)
def test_wrong_options(make, rule: str) -> None:
    with pytest.raises(BadValue, match=rule):
        make()


def test_parti_prompts(parti: str) -> None:
    tasks = PartiPrompts(path=parti).tasks()
    assert len(tasks) == len({task.id for task in tasks}) == 1632
    assert {task.category for task in tasks} == set(parti_prompts.CATEGORIES)
    assert (tasks[0].prompt, tasks[0].category) == ("bond", "Abstract")
    by_challenge = [PartiPrompts(path=parti, challenge=challenge).tasks() for challenge in parti_prompts.CHALLENGES]
    assert sum(map(len, by_challenge)) == 1632
    assert {task.id for some in by_challenge for task in some} == {task.id for task in tasks}
    some = PartiPrompts(path=parti, category="Animals", challenge="Quantity", limit=3).tasks()
    assert some == [task for task in PartiPrompts(path=parti, challenge="Quantity").tasks() if task.category == "Animals"][:3]


def test_geneval(metadata: str) -> None:
    """553 in all: 80 single objects, 99 pairs, 80 counts, 94 colours, 100 positions and 100 attributions."""
    tasks = GenEval(path=metadata).tasks()
    assert len(tasks) == len({task.id for task in tasks}) == 553
    counts = dict(zip(geneval.CATEGORIES, (80, 99, 80, 94, 100, 100), strict=True))
    assert Counter(task.category for task in tasks) == counts
    assert tasks[0].prompt == "a photo of a bench"
    assert GenEval(path=metadata, category="position", limit=2).tasks() == [t for t in tasks if t.category == "position"][:2]


@pytest.mark.parametrize(("name", "file"), [("hpdv2", "hps_v2_all_eval.txt"), ("drawbench", "DrawBench_Prompts.csv")])
def test_what_is_fetched_is_what_is_read(
    name: str, file: str, released: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = released(name, file)
    content = source.read_bytes()
    assert downloads.SOURCES[name].files == {file: hashlib.sha256(content).hexdigest()}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    downloads.kept(name).mkdir(parents=True)
    (downloads.kept(name) / file).write_bytes(content)
    make = next(make for make, known in NAMED if known == name)
    assert make().tasks() == make(path=str(source)).tasks()


@pytest.mark.parametrize(("make", "name"), NAMED)
def test_paths_that_can_lead_nowhere(make, name: str) -> None:
    for path, rule in [
        ("~nobody-at-all/x", "no home folder ~nobody-at-all"),
        ("x" * 300, "cannot be read"),
        ("a\0b", "is no path"),
    ]:
        with pytest.raises(BadValue, match=rule) as error:
            make(path=path).tasks()
        assert error.value.name == "path"
        assert "\n" not in str(error.value) and "\0" not in str(error.value)


def test_a_cache_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-at-all/cache")
    with pytest.raises(UsageError, match="^XDG_CACHE_HOME=~nobody-at-all/cache: there is no home folder ~nobody-at-all"):
        Hpdv2().tasks()


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("hpdv2", b"a cat\n", "holds 1 prompts that are not the 50"),
        ("hpdv2", b"", "holds no prompt"),
        ("drawbench", b'No.,Prompts,Category\n1,"a cat', "is no CSV file"),
        ("drawbench", b"No.,Prompts,Category\n1,a cat,Colors\n", "holds 1 prompts that are not the 200"),
        ("geneval", b"{}", "is not evaluation_metadata.jsonl as released"),
        ("t2i_compbench", b"caf\xc3", "not UTF-8"),
    ],
)
def test_a_broken_file_that_was_fetched_is_to_be_fetched_again(
    name: str, content: bytes, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make = next(make for make, known in NAMED if known == name)
    for folder in (downloads.kept(name), tmp_path / "mine"):
        folder.mkdir(parents=True)
        (folder / next(iter(downloads.SOURCES[name].files))).write_bytes(content)
    for path in (None, str(downloads.kept(name))):
        with pytest.raises(BadValue, match=rf"{rule}[^;]*; fetch it again with: python scripts/fetch.py data {name}$"):
            make(path=path).tasks()
    with pytest.raises(BadValue, match=rule) as error:
        make(path=str(tmp_path / "mine")).tasks()
    assert "fetch it again" not in error.value.rule


# scripts/fetch.py


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("fetch_data", ROOT / "scripts" / "fetch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_data_are_fetched_checked_and_found(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "evaluation_metadata.jsonl").write_text('{"tag": "colors", "prompt": "a photo of a red cat"}\n')
    digest = hashlib.sha256((tmp_path / "web" / "evaluation_metadata.jsonl").read_bytes()).hexdigest()
    files = {"evaluation_metadata.jsonl": digest}
    monkeypatch.setitem(downloads.SOURCES, "geneval", downloads.Source(url=(tmp_path / "web").as_uri(), files=files))
    monkeypatch.setattr(sys, "argv", ["fetch.py", "data", "geneval"])
    fetch.main()
    assert capsys.readouterr().out == f"geneval: {tmp_path / 'cache' / 'guidedgen' / 'geneval'}\n"
    assert [task.prompt for task in GenEval().tasks()] == ["a photo of a red cat"]
    (tmp_path / "web" / "evaluation_metadata.jsonl").unlink()
    fetch.main()  # nothing is left to download


def test_a_broken_file_is_fetched_again(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    web, there = tmp_path / "web" / "hps_v2_all_eval.txt", downloads.kept("hpdv2") / "hps_v2_all_eval.txt"
    for folder in (web.parent, there.parent):
        folder.mkdir(parents=True)
    whole = b"a cat\na dog\n"
    source = downloads.Source(url=web.parent.as_uri(), files={web.name: hashlib.sha256(whole).hexdigest()})
    monkeypatch.setitem(downloads.SOURCES, "hpdv2", source)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "data", "hpdv2"])
    there.write_bytes(whole[:7])
    for served, why in [
        (whole[:9], "invalid hash value"),
        (None, "No such file"),
    ]:  # what cannot be replaced is not reported as there
        web.write_bytes(served) if served else web.unlink()
        with pytest.raises(SystemExit) as stopped:
            fetch.main()
        assert stopped.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == "" and why in printed.err and printed.err.count("\n") == 1
        assert [file.name for file in there.parent.iterdir()] == [there.name]
        assert there.read_bytes() == whole[:7]
    web.write_bytes(whole)
    fetch.main()
    assert there.read_bytes() == whole
    assert [file.name for file in there.parent.iterdir()] == [there.name]


def test_a_changed_file_is_not_kept(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "PartiPrompts.tsv").write_text("something else")
    source = downloads.Source(url=(tmp_path / "web").as_uri(), files=downloads.SOURCES["parti_prompts"].files)
    monkeypatch.setitem(downloads.SOURCES, "parti_prompts", source)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "data", "parti_prompts"])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    assert stopped.value.code == 1
    assert re.match(
        r"fetch: data parti_prompts: cannot be had from file:.*PartiPrompts.tsv \(invalid hash", capsys.readouterr().err
    )
    assert not list((tmp_path / "cache").rglob("*.tsv"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data imagenet", "data imagenet: choose from t2i_compbench, hpdv2, drawbench, parti_prompts, geneval\n"),
        ("data hpdv2 drawbnech", "data drawbnech: did you mean drawbench? choose from"),
        ("data", "data: names of benchmarks are needed"),
        ("--all data hpdv2", "data: comes first and alone"),
        ("aesthetic data hpdv2", "data: comes first and alone"),
        ("data hpdv2 data", "data: comes first and alone"),
        ("aesthetic ./no/such/name", "fetch=./no/such/name: no such path, and not a hub name"),
        ("", "nothing to fetch: give an experiment, overrides of run.py or names, or --all\n"),
    ],
)
def test_a_wrong_command_fetches_nothing(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: str, message: str
) -> None:
    for act in ("download", "check"):
        monkeypatch.setattr(fetch, act, lambda *found: pytest.fail(f"fetched {found}"))
    monkeypatch.setattr(sys, "argv", ["fetch.py", *arguments.split()])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(f"fetch: {message}")
