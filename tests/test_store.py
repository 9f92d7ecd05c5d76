"""A run's folder after kills at any moment, and read back."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.runs import inside, store
from guidedgen.runs.store import Record, RunFailed, RunFolder, check_writable, write_atomic


def sample(i: int = 0) -> Sample:
    return Sample(task=Task(id="a-cat-51e46741", prompt='a "cat", 猫\u2028 \\', category="pets"), seed=i)


def record(of: Sample, **changes: object) -> Record:
    values: dict[str, object] = {
        "task": of.task.id, "prompt": of.task.prompt, "category": of.task.category, "seed": of.seed, "image": f"images/{of.name}.png",
        "scores": {"aesthetic": 5.25, "clip": None}, "nfe": 100, "nfe_backward": 3, "decodes": 2, "reward_calls": 1, "seconds": 0.5,
        "peak_memory_mib": 812.5,
    }  # fmt: skip
    return Record(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "outputs" / "study" / "run")
    assert not (tmp_path / "outputs").exists()  # nothing is written before open
    run.open("seed: 0\n", {"python": "3"})
    return run


def save(run: RunFolder, i: int, **changes: object) -> None:
    run.save(sample(i), png(i), record(sample(i), **changes), [{"event": "select", "step": i}])


def png(i: int) -> bytes:
    """What passes for a picture: it ends like one."""
    return b"png %d" % i + store._PNG_END


def partials(run: RunFolder) -> list[Path]:
    return [path for path in run.path.rglob("*") if "partial" in path.name]


def test_records_come_back_as_they_were(folder: RunFolder) -> None:
    for i in (2, 0, 1):
        save(folder, i, seconds=i + 0.1)
    back = folder.records()
    assert list(back) == ["a-cat-51e46741-2", "a-cat-51e46741-0", "a-cat-51e46741-1"]  # as finished
    assert back["a-cat-51e46741-1"] == record(sample(1), seconds=1.1)
    assert back["a-cat-51e46741-1"].name == sample(1).name
    assert (folder.path / back["a-cat-51e46741-2"].image).read_bytes() == png(2)
    trace = [json.loads(line) for line in (folder.path / "trace.jsonl").read_text().splitlines()]
    assert trace == [{"task": "a-cat-51e46741", "seed": i, "event": "select", "step": i} for i in (2, 0, 1)]
    assert len((folder.path / "records.jsonl").read_bytes().splitlines()) == 3  # one line each, whatever the prompt holds
    assert partials(folder) == []


def test_extra_images_are_there_before_the_sample_counts(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write = inside.write

    def failing(root: Path, name: str, content: bytes) -> None:
        if "worst" in name:
            raise KeyboardInterrupt
        write(root, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(inside, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            folder.save(sample(), png(0), record(sample()), [], {"best": png(1), "worst": png(2)})
    assert folder.records() == {}
    folder.save(sample(), png(0), record(sample()), [], {"best": png(1), "worst": png(2)})
    assert list(folder.records()) == [sample().name]
    found = {str(path.relative_to(folder.path)): path.read_bytes() for path in folder.path.rglob("*.png")}
    kinds = {"": 0, "best/": 1, "worst/": 2}
    assert found == {f"images/{kind}{sample().name}.png": png(i) for kind, i in kinds.items()}


def test_a_record_of_before_pictures_were_blurred_is_of_a_sharp_one(folder: RunFolder) -> None:
    save(folder, 0, blurred=True)
    save(folder, 1)
    log = folder.path / "records.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line.pop("blurred") for line in lines] == [True, False]
    assert [back.blurred for back in folder.records().values()] == [True, False]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(folder.records().values()) == [record(sample(0)), record(sample(1))]


def test_a_sample_without_trace_makes_no_trace(folder: RunFolder) -> None:
    folder.save(sample(), b"png", record(sample()), [])
    assert not (folder.path / "trace.jsonl").exists()


def test_what_json_has_no_words_for_is_null(folder: RunFolder) -> None:
    folder.save(
        sample(), b"", record(sample(), scores={"a": float("nan"), "b": float("inf"), "c": 1.0}), [{"scores": [1.0, float("-inf")]}]
    )

    def refuse(word: str) -> None:
        raise AssertionError(word)

    for name in ("records.jsonl", "trace.jsonl"):
        json.loads((folder.path / name).read_text(), parse_constant=refuse)
    assert folder.records()[sample().name].scores == {"a": None, "b": None, "c": 1.0}
    folder.write_json("some.json", {"fid": {"value": float("nan"), "pair": (1, float("inf"))}, "n": 3})
    assert folder.read_json("some.json") == {"fid": {"value": None, "pair": [1, None]}, "n": 3}


def test_missing_json_is_empty(folder: RunFolder) -> None:
    assert folder.read_json("metrics.json") == {}
    assert RunFolder(folder.path / "none").records() == {}


def test_open_writes_config_and_environment(folder: RunFolder) -> None:
    assert (folder.path / "config.yaml").read_text() == "seed: 0\n"
    assert folder.read_json("environment.json") == {"python": "3"}


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_no_record_and_goes_on_open(folder: RunFolder, cut: int) -> None:
    save(folder, 0)
    whole = {name: (folder.path / name).read_bytes() for name in ("records.jsonl", "trace.jsonl")}
    save(folder, 1)
    for name, content in whole.items():
        torn = (folder.path / name).read_bytes()[: len(content) + cut]
        (folder.path / name).write_bytes(torn)
    assert list(folder.records()) == [sample(0).name]  # readers need not open
    folder.open("", {})
    assert {name: (folder.path / name).read_bytes() for name in whole} == whole
    save(folder, 1)
    assert list(folder.records()) == [sample(0).name, sample(1).name]


def test_a_first_line_torn_leaves_nothing(folder: RunFolder) -> None:
    (folder.path / "records.jsonl").write_bytes(b'{"task": "a-c')
    assert folder.records() == {}
    folder.open("", {})
    assert (folder.path / "records.jsonl").read_bytes() == b""


@pytest.mark.parametrize("killed_at", ["trace.jsonl", "records.jsonl"])
def test_a_kill_between_image_and_record_leaves_no_record(
    folder: RunFolder, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = inside.append

    def killed(root: Path, name: str, content: bytes) -> None:
        if name == killed_at:
            raise KeyboardInterrupt
        append(root, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(inside, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            save(folder, 0)
    assert (folder.path / record(sample()).image).read_bytes() == png(0)
    assert folder.records() == {}
    folder.open("", {})
    save(folder, 0)
    assert folder.records() == {sample().name: record(sample())}


def test_a_write_killed_half_way_leaves_the_old_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_json("some.json", {"fid": 1})

    def killed(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.write_json("some.json", {"fid": 2})
    assert folder.read_json("some.json") == {"fid": 1}
    assert len(partials(folder)) == 1
    folder.open("", {})  # the next process clears it away
    assert partials(folder) == []


def test_stale_partial_files_go_wherever_they_are_and_nothing_else(folder: RunFolder) -> None:
    for name in ("images/.a-0.png.4711.partial", ".DONE.12.partial"):
        (folder.path / name).write_bytes(b"half")
    (folder.path / "images" / "kept.partial.png").write_bytes(b"whole")
    folder.open("", {})
    assert [path.name for path in partials(folder)] == ["kept.partial.png"]


def test_an_atomic_write_is_synced_before_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content reaches the disk first, then the name, then the folder that holds the name."""
    target, events, fsync = tmp_path / "x", [], os.fsync

    def watched(descriptor: int) -> None:
        events.append(("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file", target.exists()))
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("reads /proc")
    monkeypatch.setattr(os, "fsync", watched)
    write_atomic(target, b"content")
    assert events == [("file", False), ("folder", True)]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert target.read_bytes() == b"content"


def test_done_is_what_finish_says_and_fresh_discards(folder: RunFolder) -> None:
    save(folder, 0)
    assert not folder.done
    folder.finish()
    assert folder.done
    folder.open("seed: 0\n", {})
    assert folder.done
    assert len(folder.records()) == 1
    folder.open("seed: 1\n", {}, fresh=True)
    assert not folder.done
    assert folder.records() == {}
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "config.yaml", "environment.json", "images"]
    assert list((folder.path / "images").iterdir()) == []


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "outputs")
    assert list((tmp_path / "a" / "b").iterdir()) == []  # the probe is gone
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        with pytest.raises(UsageError, match=f"^outputs={folder}: cannot be written to \\(.+\\); choose another folder$") as error:
            check_writable(folder, "outputs")
        assert "\n" not in str(error.value)


def test_traces_of_samples_without_a_record_are_dropped(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come again when the sample is made again."""
    kept, lost = (Sample(task=Task(id=name, prompt=name), seed=0) for name in ("kept", "lost"))
    folder.save(kept, png(0), record(kept), [{"event": "select", "step": 1}])
    append = inside.append
    with monkeypatch.context() as patch:
        patch.setattr(inside, "append", lambda root, name, text: append(root, name, text) if name == "trace.jsonl" else None)
        folder.save(lost, png(1), record(lost), [{"event": "select", "step": 1}])
    folder.open("", {})
    assert [json.loads(line)["task"] for line in (folder.path / "trace.jsonl").read_text().splitlines()] == ["kept"]


def failed(i: int, reason: str = "ValueError: no") -> Record:
    return record(sample(i), image="", scores={}, failed=reason)


def test_a_failed_sample_is_reported_and_comes_again(folder: RunFolder) -> None:
    save(folder, 0)
    folder.fail(failed(1))
    save(folder, 2)
    assert list(folder.records()) == [sample(0).name, sample(2).name]
    assert folder.failures() == {sample(1).name: "ValueError: no"}
    folder.finish()
    assert (folder.path / "DONE").exists() and not folder.done
    folder.open("", {})
    assert not (folder.path / "DONE").exists() and folder.failures() == {}
    assert list(folder.records()) == [sample(0).name, sample(2).name]
    save(folder, 1)
    folder.finish()
    assert folder.done and len((folder.path / "records.jsonl").read_text().splitlines()) == 3


def test_of_a_sample_that_failed_and_then_came_out_the_last_line_counts(folder: RunFolder) -> None:
    folder.fail(failed(0))
    save(folder, 0)
    assert list(folder.records()) == [sample(0).name] and folder.failures() == {}


def test_parts_are_merged_with_what_has_failed(folder: RunFolder) -> None:
    folder.close()
    parts = [RunFolder(folder.path, f"{i}-of-2") for i in range(2)]
    for i, part in enumerate(parts):
        part.open("", {})
        save(part, i) if i else part.fail(failed(i))
    folder.merge([sample(i).name for i in range(2)])
    assert [json.loads(line)["seed"] for line in (folder.path / "records.jsonl").read_text().splitlines()] == [0, 1]
    assert folder.failures().keys() == {sample(0).name} and folder.records().keys() == {sample(1).name}


@pytest.mark.parametrize("content", [b"", b"png", store._PNG_END[:-1], bytes(40)])
def test_a_sample_without_its_whole_image_comes_again(folder: RunFolder, content: bytes) -> None:
    for i in range(2):
        save(folder, i)
    folder.finish()
    assert folder.done
    (folder.path / record(sample(1)).image).write_bytes(content)
    assert not folder.done
    folder.open("", {})
    assert list(folder.records()) == [sample(0).name]
    assert [json.loads(line)["seed"] for line in (folder.path / "trace.jsonl").read_text().splitlines()] == [0]


def test_what_cannot_be_written_ends_the_run_in_one_line(folder: RunFolder) -> None:
    (folder.path / "metrics.json").mkdir()
    with pytest.raises(RunFailed) as caught:
        folder.write_json("metrics.json", {})
    assert str(caught.value).startswith(f"guidedgen: {folder.path / 'metrics.json'}: cannot be written (") and "\n" not in str(
        caught.value
    )
    assert partials(folder) == []


def test_such_an_end_is_reported_on_stderr_with_code_1() -> None:
    code = "from guidedgen.runs.store import RunFailed; raise RunFailed('outputs/x: cannot be written (No space left on device)')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "guidedgen: outputs/x: cannot be written (No space left on device)\n")


def test_a_file_system_without_locks_is_reported(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    folder.close()
    monkeypatch.setattr(fcntl, "lockf", none)
    folder.open("", {})
    save(folder, 0)
    folder.finish()
    assert folder.done
    assert "no locks on this file system; start no second process on this run" in capsys.readouterr().err


def test_notes_are_left_where_they_can_be(folder: RunFolder) -> None:
    folder.note("failed: no\nfor this reason")
    assert folder.last_note == "failed: no"
    for nowhere in (folder.path / "none", folder.path / "config.yaml"):
        RunFolder(nowhere).note("failed: no")  # a folder that is gone may be why
        assert RunFolder(nowhere).last_note == ""


@pytest.mark.parametrize("line", [b'{"task": "a', b'{"name": "somebody"}', b'{"task": "a-cat-51e46741", "seed": 1}', b"[1]", b""])
def test_a_line_that_is_no_record_makes_the_sample_come_again(
    folder: RunFolder, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a finished run too, which says so; in the traces it is left out."""
    for i in range(3):
        save(folder, i)
    folder.finish()
    assert folder.done and folder.damaged_lines == 0
    for name in ("records.jsonl", "trace.jsonl"):
        lines = (folder.path / name).read_bytes().split(b"\n")
        (folder.path / name).write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    assert list(folder.records()) == [sample(0).name, sample(2).name] and folder.damaged_lines == 1 and not folder.done
    folder.open("", {})
    assert "damaged lines of its records: 1; " in capsys.readouterr().err
    for name in ("records.jsonl", "trace.jsonl"):
        assert [json.loads(line)["seed"] for line in (folder.path / name).read_bytes().splitlines()] == [0, 2]
    save(folder, 1)
    folder.finish()
    assert folder.done


def test_a_record_with_a_value_of_another_type_is_none(folder: RunFolder) -> None:
    save(folder, 0)
    log = folder.path / "records.jsonl"
    record = json.loads(log.read_text())
    for key, value in {"scores": 3, "seed": "0", "image": None, "nfe": "many", "age": 7}.items():
        log.write_text(json.dumps({**record, key: value}) + "\n")
        assert folder.records() == {} and folder.damaged_lines == 1


def test_a_torn_last_line_is_not_damage(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    save(folder, 0)
    with (folder.path / "records.jsonl").open("ab") as log:
        log.write(b'{"task": "a-c')
    assert folder.damaged_lines == 0
    folder.open("", {})
    assert capsys.readouterr().err == ""


def test_parts_are_merged_without_lines_that_are_none(folder: RunFolder) -> None:
    folder.close()
    part = RunFolder(folder.path, "0-of-2")
    part.open("", {})
    save(part, 0)
    with (folder.path / "trace.0-of-2.jsonl").open("ab") as log:
        log.write(b"7\n{}\n" + b'{"name": "somebody"}\n')
    folder.merge([sample(0).name])
    assert len((folder.path / "trace.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0"])
def test_a_damaged_json_file_is_named(folder: RunFolder, content: str) -> None:
    (folder.path / "metrics.json").write_text(content)
    with pytest.raises(UsageError, match=r"/metrics\.json: damaged, not a JSON object; remove it") as caught:
        folder.read_json("metrics.json")
    assert "\n" not in str(caught.value)
