"""Links, pipes and names in a run's folder that lead out of it: nothing elsewhere is written, removed or shown."""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Sample, Task
from guidedgen.runs import inside
from guidedgen.runs.evaluate import Images
from guidedgen.runs.locks import Lock
from guidedgen.runs.store import Record, RunFailed, RunFolder, write_atomic
from guidedgen.runs.tracker import Wandb
from guidedgen.studies import page, status

Tried = Callable[..., None]
PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IEND\xaeB`\x82"
FILES = ("config.yaml", "environment.json", "metrics.json", "records.jsonl", "trace.jsonl", "run.log", "DONE", ".lock", ".judging.lock",
         "images/a-0.png", "images/best/a-0.png", "learned/checkpoint.pt")  # fmt: skip
FOLDERS = ("images", "images/best", "learned")
LOGS = ("records.jsonl", "trace.jsonl", "run.log")


def record(seed: int = 0) -> Record:
    return Record(
        task="a", prompt="a", category="", seed=seed, image=f"images/a-{seed}.png", scores={}, nfe=1, nfe_backward=0, decodes=1,
        reward_calls=0, seconds=0.0, peak_memory_mib=0.0,
    )  # fmt: skip


def work(path: Path, seed: int = 0, *, fresh: bool = False) -> None:
    """All that a run writes."""
    run, sample = RunFolder(path), Sample(task=Task(id="a", prompt="a"), seed=seed)
    try:
        run.open("seed: 0\n", {"samples": 1}, fresh=fresh)
        run.note("started")
        run.save(sample, PNG, record(seed), [{"event": "select", "step": 0}], {"best": PNG})
        run.make_folder("learned")
        run.write("learned/checkpoint.pt", b"state")
        with run.alone("judging"):
            run.write_json("metrics.json", {})
        run.finish()
    finally:
        run.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped after its first sample."""
    path = tmp_path / "outputs" / "study" / "run"
    work(path)
    (path / "DONE").unlink()
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder elsewhere, in which nothing may change."""
    folder = tmp_path / "elsewhere"
    (folder / "folder").mkdir(parents=True)
    for name in ("file", "folder/a-0.png", "folder/.x.1.partial"):
        (folder / name).write_bytes(b"precious")
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def emptied(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("target", ["file", "folder", "nowhere", "itself"])
@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_link_is_refused_and_named(run: Path, outside: Path, name: str, target: str, tried: Tried) -> None:
    path = emptied(run / name)
    path.symlink_to(path.name if target == "itself" else outside / target)
    with pytest.raises((RunFailed, UsageError), match="a link, not a f") as refused:
        work(run, 1)
    message = str(refused.value)
    assert str(path) in message and "remove it" in message and "\n" not in message
    with pytest.raises((UsageError, RunFailed)):
        RunFolder(run).check_plain(deep=True)
    path.unlink()
    work(run, 1)  # the way out
    assert len(RunFolder(run).records()) >= 1 and RunFolder(run).finished
    tried("refused")


@pytest.mark.parametrize("name", ["images", "records.jsonl", "run.log", "DONE"])
def test_what_begins_anew_removes_the_link_alone(run: Path, outside: Path, name: str, tried: Tried) -> None:
    emptied(run / name).symlink_to(outside / "folder")
    work(run, fresh=True)
    assert RunFolder(run).done and not any(path.is_symlink() for path in run.rglob("*"))
    tried("used")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("target", ["folder", "file", "nowhere"])
def test_a_run_s_folder_that_is_a_link_is_not_written_to(
    tmp_path: Path, outside: Path, target: str, fresh: bool, tried: Tried
) -> None:
    run = tmp_path / "study" / "run"
    run.parent.mkdir()
    run.symlink_to(outside / target)
    with pytest.raises(RunFailed, match="run: cannot be written \\(a link, not a run's folder: remove it\\)"):
        work(run, fresh=fresh)
    RunFolder(run).note("failed: it is a link")
    tried("refused")


@pytest.mark.parametrize("linked", ["outputs", "outputs/study"])
def test_outputs_and_studies_may_be_linked_to_a_scratch_disk(tmp_path: Path, linked: str, tried: Tried) -> None:
    (tmp_path / "scratch").mkdir()
    link = tmp_path / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "scratch")
    path = tmp_path / "outputs" / "study" / "run"
    work(path)
    work(path, fresh=True)
    assert RunFolder(path).done and [state.state for state in status.of_study(path.parent)] == ["done"]
    write_atomic(path.parent / "report.html", b"page")
    assert (tmp_path / "outputs" / "study" / "report.html").read_bytes() == b"page"
    tried("used")


@pytest.mark.parametrize("name", [name for name in FILES if name != "DONE"])
def test_another_name_of_the_same_file_keeps_what_it_held(run: Path, tmp_path: Path, name: str, tried: Tried) -> None:
    """As a backup by hard links does."""
    (run / name).touch()
    before = (run / name).read_bytes()
    (tmp_path / "backup").hardlink_to(run / name)
    work(run, 1)
    assert (tmp_path / "backup").read_bytes() == before
    assert set(RunFolder(run).records()) == {"a-0", "a-1"}
    tried("used")


@pytest.mark.parametrize("name", LOGS[:2])
def test_a_torn_line_is_cut_in_one_s_own_file_alone(run: Path, tmp_path: Path, name: str, tried: Tried) -> None:
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole + b'{"torn')
    (tmp_path / "backup").hardlink_to(run / name)
    work(run, 1)
    assert (tmp_path / "backup").read_bytes() == whole + b'{"torn'
    assert (run / name).read_bytes().startswith(whole + b'{"task"')
    tried("used")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("only root makes devices")


def listening(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [pipe, device, listening, Path.mkdir])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_neither_waited_for_nor_read(run: Path, name: str, make: Callable[[Path], None], tried: Tried) -> None:
    make(emptied(run / name))
    with pytest.raises((RunFailed, UsageError), match="not a f") as refused:
        work(run)
    assert str(run / name) in str(refused.value) and "\n" not in str(refused.value)
    [state] = status.of_study(run.parent)
    assert state.state == "damaged" or "/" in name
    tried("refused")


@pytest.mark.parametrize(
    "image", ["../../x", "/etc/passwd", "images/../../x.png", "images/b-0.png", "a-0.png", "", "images/a-0.png/x"]
)
def test_a_record_names_its_own_picture_and_no_other(run: Path, image: str, tried: Tried) -> None:
    log = run / "records.jsonl"
    log.write_text(log.read_text().replace("images/a-0.png", image))
    recorded = RunFolder(run).recorded()
    assert (recorded.records, recorded.damaged_lines) == ({}, 1)
    assert len(Images.of_run(RunFolder(run))) == 0
    tried("refused")


@pytest.mark.parametrize("task", ["../../x", "/etc/x", "a/b", "a\0b", "\ud83d"])
def test_a_record_s_task_is_no_path(run: Path, task: str, tried: Tried) -> None:
    line = json.loads((run / "records.jsonl").read_text()) | {"task": task, "image": f"images/{task}-0.png"}
    (run / "records.jsonl").write_text(json.dumps(line) + "\n")
    assert RunFolder(run).recorded().records == {}
    tried("refused")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "images/../../x", "a\0b"])
def test_a_name_that_leads_out_is_refused(run: Path, name: str, tried: Tried) -> None:
    for use in (lambda: inside.read(run, name), lambda: inside.write(run, name, b""), lambda: inside.append(run, name, b"")):
        with pytest.raises(OSError, match="a name that leads out of its folder"):
            use()
    assert not inside.is_file(run, name)
    tried("refused")


def test_a_partial_file_s_name_leads_nowhere_either(run: Path, outside: Path, tried: Tried) -> None:
    (run / f".metrics.json.{os.getpid()}.partial").symlink_to(outside / "file")
    RunFolder(run).write_json("metrics.json", {})
    assert (run / "metrics.json").read_text() == "{}\n"
    tried("used")


def test_a_lock_tells_no_more_than_a_holder(run: Path, outside: Path, tried: Tried) -> None:
    """What the file of a lock says is shown to those who wait."""
    (run / ".lock").write_bytes(b"process 7 on \033[31m\n secrets")
    lock = Lock(run / ".lock")
    with (run / ".lock").open("r+b") as file:
        assert lock._holder(file) == "another process"
    tried("refused")


@pytest.mark.parametrize("name", ["wandb", "wandb/artifacts", "wandb/offline-run-1/files"])
def test_the_mirror_leaves_a_link_that_leads_out_alone(run: Path, outside: Path, name: str, tried: Tried) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(outside / "folder")
    with pytest.warns(RuntimeWarning, match=rf"^wandb: .*a link.*; the run is whole in {run}$"):
        Wandb().log(folder=run, run_id="0123456789ab", name="run", config={}, records=[record()], metrics={})
    tried("refused")


def test_the_mirror_s_own_links_lead_nowhere_else(run: Path, tried: Tried) -> None:
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    inside.check_links(run, "wandb")
    tried("used")


@pytest.mark.parametrize("name", ["report.html", "report.csv"])
def test_a_page_replaces_a_link_and_does_not_follow_it(tmp_path: Path, outside: Path, name: str, tried: Tried) -> None:
    (tmp_path / name).symlink_to(outside / "file")
    with contextlib.suppress(RunFailed):
        write_atomic(tmp_path / name, b"page")
    tried("used")


def test_pictures_of_a_linked_folder_are_not_shown(run: Path, outside: Path, tried: Tried) -> None:
    shutil.copy(run / "images" / "a-0.png", run.parent / "kept.png")
    emptied(run / "images").symlink_to(outside / "folder")
    with pytest.raises(UsageError, match="holds no run that can be read, of 1: run/images: cannot be read \\(a link, not a folder"):
        page.write(run.parent)
    tried("refused")
