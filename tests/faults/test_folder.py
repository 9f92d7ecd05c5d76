"""What may happen to a run's folder while the run is at work in it, and after: one line says so, and the same command goes on."""

import contextlib
import functools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.runs import experiment, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFailed, RunFolder
from guidedgen.studies import page, status

ROOT = Path(__file__).resolve().parents[2]
Lasting = Callable[[Path], dict[str, bytes]]
After = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> After:
    """Does something once so many samples are saved."""

    def arrange(count: int, action: Callable[[], object]) -> None:
        save, saved = RunFolder.save, 0

        def watched(self: RunFolder, *arguments: Any) -> None:
            nonlocal saved
            save(self, *arguments)
            saved += 1
            if saved == count:
                action()

        monkeypatch.setattr(RunFolder, "save", watched)

    return arrange


def mount(*arguments: object) -> None:
    if subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a file system")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


Finished = Callable[..., Job]


@pytest.fixture(scope="module")
def finished(prepared: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that nothing has happened to, with these overrides. It is made once and not to be changed."""

    @functools.cache
    def make(*overrides: str) -> Job:
        made = prepared(tmp_path_factory.mktemp("finished"), *overrides)
        experiment.run(made)
        return made

    return make


@pytest.fixture
def copied(finished: Finished, job: Callable[..., Job]) -> Finished:
    """A copy of it in a folder of the test's own."""

    def make(*overrides: str) -> Job:
        made = job(*overrides)
        shutil.copytree(finished(*overrides).folder.path, made.folder.path)
        assert made.folder.done
        return made

    return make


def valid(folder: Path) -> int:
    """How many samples the folder holds, all of them whole."""
    records = RunFolder(folder).records()
    for record in records.values():
        assert (folder / record.image).read_bytes().endswith(b"IEND\xaeB`\x82")
    return len(records)


def test_a_full_disk(job: Callable[..., Job], finished: Finished, lasting: Lasting, disk: Path, after: After) -> None:
    whole = finished()
    made, ballast = job(f"outputs={disk}"), disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))

    after(2, fill)
    with pytest.raises(RunFailed, match=rf"^guidedgen: {disk}/\S+: cannot be written \(No space left on device\); what is stored"):
        experiment.run(made)
    assert valid(made.folder.path) == 2
    assert not made.folder.done and not list(made.folder.path.rglob("*.partial"))
    with pytest.raises(RunFailed, match="No space left on device"):
        experiment.run(job(f"outputs={disk}"))
    ballast.unlink()
    experiment.run(job(f"outputs={disk}"))
    assert lasting(made.folder.path) == lasting(whole.folder.path)


@pytest.mark.parametrize("error", ["I/O error: No space left on device (os error 28)", "unexpected pos 64 vs 0"])
def test_a_disk_that_is_full_while_learned_weights_are_saved(
    tmp_path: Path, disk: Path, error: str, tried: Callable[..., None]
) -> None:
    """Whatever a library raises then, what was there stays, and nothing half written does."""
    run = RunFolder(disk / "run")
    run.open("", {})
    run.make_folder("learned")
    run.write("learned/checkpoint.pt", b"state")
    run.write("learned/weights", b"old")
    with (
        pytest.raises(RunFailed, match="learned: cannot be written .*No space left on device|unexpected pos") as failed,
        run.assembled("learned") as folder,
    ):
        (folder / "unet").mkdir()
        try:
            (folder / "unet" / "weights").write_bytes(bytes(2**20))
        except OSError as full:
            raise RuntimeError(error) from full
    assert "the same command goes on" in str(failed.value) and str(failed.value).count("\n") == 0
    assert {path.name: path.read_bytes() for path in (disk / "run" / "learned").iterdir()} == {
        "checkpoint.pt": b"state",
        "weights": b"old",
    }
    with run.assembled("learned") as folder:
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").write_bytes(b"new")
        (folder / "weights").write_bytes(b"new")
    assert (
        (disk / "run" / "learned" / "unet" / "weights").read_bytes()
        == b"new"
        == (disk / "run" / "learned" / "weights").read_bytes()
    )
    assert not list(disk.rglob("*.partial"))
    tried("refused")


def test_a_finished_run_on_a_read_only_disk_is_shown(
    job: Callable[..., Job], copied: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Callable[..., None]
) -> None:
    made = copied("dataset.limit=1")
    capsys.readouterr()
    outputs = tmp_path / "outputs"
    mount("--bind", outputs, outputs)
    mount("-o", "remount,bind,ro", outputs)
    try:
        assert experiment.run(job("dataset.limit=1"))["samples"] == 1
        assert f"{made.folder.path}: already done" in capsys.readouterr().out
        for options in (["dataset.limit=2"], ["dataset.limit=1", "run.fresh=true"]):
            with pytest.raises(UsageError, match="cannot be written to \\(Read-only file system\\); choose another folder"):
                job(*options)
        assert [state.state for state in status.of_study(outputs / "default")] == ["done"]
        with pytest.raises(RunFailed, match="report.html: cannot be written \\(Read-only file system\\)"):
            page.write(outputs / "default")
    finally:
        subprocess.run(["umount", "--lazy", str(outputs)], check=False)
    tried("used"), tried("refused", 3)


@pytest.mark.parametrize("lost", ["records.jsonl", "config.yaml", "metrics.json"])
def test_a_finished_run_that_has_lost_a_file_gets_it_again(
    job: Callable[..., Job], copied: Finished, lasting: Lasting, lost: str, tried: Callable[..., None]
) -> None:
    made = copied("dataset.limit=2")
    whole = lasting(made.folder.path)
    (made.folder.path / lost).unlink()
    experiment.run(job("dataset.limit=2"))
    assert lasting(made.folder.path) == whole and made.folder.done and (made.folder.path / lost).exists()
    tried("used")


def test_a_file_that_may_not_grow(job: Callable[..., Job], finished: Finished, lasting: Lasting) -> None:
    """As with a quota: refused is the first picture that is larger than the smallest."""
    whole = finished()
    sizes = [(whole.folder.path / sample.image).stat().st_size for sample in whole.samples]
    saved = next(i for i, size in enumerate(sizes) if size > sizes[0])
    made, limits = job(), resource.getrlimit(resource.RLIMIT_FSIZE)
    made.folder.open("", {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[0], limits[1]))
    try:
        with pytest.raises(RunFailed, match=r"cannot be written \(File too large\)"):
            sampling.sample_all(made, "base")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert valid(made.folder.path) == saved
    experiment.run(job())
    assert lasting(made.folder.path) == lasting(whole.folder.path)


def test_a_folder_that_turns_read_only(job: Callable[..., Job], finished: Finished, lasting: Lasting, after: After) -> None:
    whole, made = finished(), job()
    folder = made.folder.path / "images"

    def protect() -> None:
        mount("--bind", folder, folder)
        mount("-o", "remount,bind,ro", folder)

    after(2, protect)
    try:
        with pytest.raises(RunFailed, match=rf"^guidedgen: {folder}/\S+: cannot be written \(Read-only file system\)"):
            experiment.run(made)
        assert valid(made.folder.path) == 2
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
    experiment.run(job())
    assert lasting(made.folder.path) == lasting(whole.folder.path)


@pytest.mark.parametrize("again", [False, True], ids=["gone", "taken over"])
def test_a_folder_that_is_removed(job: Callable[..., Job], finished: Finished, lasting: Lasting, after: After, again: bool) -> None:
    """And perhaps made again meanwhile, by another process: nothing of this one gets in there."""
    whole, made = finished(), job()

    def remove() -> None:
        shutil.rmtree(made.folder.path)
        if again:
            RunFolder(made.folder.path).open("", {})

    after(2, remove)
    with pytest.raises(RunFailed, match=f"^guidedgen: {made.folder.path}: was removed while the run was at work in it"):
        experiment.run(made)
    assert RunFolder(made.folder.path).records() == {}
    experiment.run(job())
    assert lasting(made.folder.path) == lasting(whole.folder.path)


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-20])


def zero(image: Path) -> None:
    """As after a power cut, of a file whose size reached the disk and whose content did not."""
    image.write_bytes(bytes(image.stat().st_size))


@pytest.mark.parametrize("damage", [cut, zero, Path.unlink])
def test_a_damaged_image_of_a_finished_run_is_made_again(
    job: Callable[..., Job],
    copied: Finished,
    lasting: Lasting,
    damage: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = copied("batch_size=2")
    whole, record = lasting(made.folder.path), made.folder.records()[made.samples[2].name]
    assert made.folder.done
    damage(made.folder.path / record.image)
    assert not made.folder.done
    sample, taken = sampling._sample, []
    monkeypatch.setattr(sampling, "_sample", lambda *a: (taken.append([s.name for s in a[1]]), sample(*a))[1])
    experiment.run(job("batch_size=2"))
    assert taken == [[made.samples[2].name, made.samples[3].name]]  # its batch
    assert lasting(made.folder.path) == whole and made.folder.done


@pytest.mark.parametrize("spoil", [lambda line: line[: len(line) // 2], lambda line: bytes(len(line)), lambda line: b"7"])
def test_a_spoiled_line_is_no_record(
    job: Callable[..., Job], copied: Finished, lasting: Lasting, spoil: Callable[[bytes], bytes]
) -> None:
    made = copied("batch_size=2")
    whole, log = lasting(made.folder.path), made.folder.path / "records.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], spoil(lines[1]), *lines[2:]]))
    assert list(made.folder.records()) == [made.samples[i].name for i in (0, 2, 3)]
    (made.folder.path / "DONE").unlink()
    experiment.run(job("batch_size=2"))
    assert lasting(made.folder.path) == whole
    assert len(log.read_text().splitlines()) == 4 and all(map(json.loads, log.read_text().splitlines()))


OPEN = """
import sys
from pathlib import Path
from guidedgen.runs.store import RunFolder
folder = RunFolder(Path(sys.argv[1]), sys.argv[2])
folder.open("", {})
print("open", flush=True)
if sys.stdin.readline():
    folder.finish()
    print("finished", flush=True)
"""
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that opens the run folder, as a part of a run where one is named, and finishes it when asked to."""
    started: list[subprocess.Popen[str]] = []

    def go(part: str = "") -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, "-c", OPEN, str(tmp_path / "run"), part], cwd=ROOT, **pipes))
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.communicate()


def printed(process: "subprocess.Popen[str]", stream: str = "stdout") -> str:
    return getattr(process, stream).readline().strip()


@pytest.mark.parametrize("ends", ["finishes", "is killed"])
def test_of_two_processes_the_second_waits_for_the_first(start: Start, tmp_path: Path, ends: str) -> None:
    first = start("")
    assert printed(first) == "open"
    second = start("")
    message = printed(second, "stderr")
    assert message.startswith(f"{tmp_path / 'run'}: process {first.pid} on ")
    assert message.endswith(" is at work on it; waiting until it has finished")
    if ends == "finishes":
        first.communicate("now\n")
        assert (tmp_path / "run" / "DONE").exists()
    else:
        first.kill()
    assert printed(second) == "open"
    assert second.communicate("now\n")[1] == ""  # said once
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["DONE", "config.yaml", "environment.json", "images"]


def test_parts_of_a_run_are_at_work_together_and_each_is_once(start: Start, tmp_path: Path) -> None:
    parts = [start(part) for part in ("0-of-2", "1-of-2")]
    assert [printed(part) for part in parts] == ["open", "open"]
    again, whole = start("1-of-2"), start("")
    assert "is at work on it" in printed(again, "stderr") and "is at work on it" in printed(whole, "stderr")
    parts[1].kill()
    assert printed(again) == "open"
    again.communicate("now\n")
    assert whole.poll() is None and (tmp_path / "run" / ".lock").exists()  # the first part is still there
    parts[0].kill()
    assert printed(whole) == "open"


def test_who_waits_can_be_stopped(start: Start) -> None:
    first = start("")
    assert printed(first) == "open"
    second = start("")
    assert printed(second, "stderr")
    second.terminate()
    assert second.wait(timeout=20) == -15
    first.communicate("now\n")
    assert first.returncode == 0
