"""Stored files of any shape: whatever lies in a run's folder, every command ends in its table or in one line, and shows the others."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Sample
from guidedgen.lab.networks import WEIGHTS
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.runs import composition, config, experiment, inside, preparation, rejudging, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.store import Record, RunFolder

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-word-from-outside"
OPTIONS = [
    "method=base", "reward=none", "scheduler.num_steps=2", "dataset=prompt", "dataset.prompt=a red circle", "samples_per_prompt=2",
    "tracker=none", "device=cpu", "metrics=none", "reference=none", "outputs=/nowhere",
]  # fmt: skip
JSON_FILES = ("metrics.json", "environment.json", "learned/learning.json")
LINES = ("records.jsonl", "trace.jsonl")
FILES = (*JSON_FILES, *LINES, "config.yaml", "run.log", "DONE", ".lock", ".judging.lock", "images/{}.png", "images/best/{}.png")
FOLDERS = ("images", "images/best", "learned", "wandb")
EXAMPLES = int(os.environ.get("GUIDEDGEN_EXAMPLES", "40"))  # for each kind of damage


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(job: Job, batch: Sequence[Sample], flagged: Collection[str], advance: Callable[[], None]) -> Iterator[Any]:
    """Samples at once, grey ones."""
    for each in batch:
        record = Record(
            task=each.task.id, prompt=each.task.prompt, category="", seed=each.seed, image=each.image, scores={"taste": 0.5}, nfe=1,
            nfe_backward=0, decodes=1, reward_calls=0, seconds=0.1, peak_memory_mib=1.0,
        )  # fmt: skip
        trace = [{"event": "select", "step": step, "scores": [0.5, 1.0]} for step in range(2)]
        yield sampling.Outcome(
            sample=each, record=record, image=torch.full((3, 8, 8), 0.5), trace=trace, extra_images={"best": torch.zeros(3, 8, 8)}
        )


class Bench:
    """A study of two finished runs, copied afresh for each example, and the commands, run in this process."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.scripts = {name: script(name) for name in ("report", "table", "status", "evaluate")}
        self.cfg = composition.composed(OPTIONS)
        self.cfg.outputs, self.cfg.study = str(folder / "outputs"), "study"
        self.job = preparation.prepare(self.cfg)
        self.stored = preparation.prepare
        study = folder / "outputs" / "study"
        for name in ("hurt", "whole"):
            self.run_in(study / name)
            run = RunFolder(study / name)
            run.make_folder("learned")
            cost = {"nfe": 4, "nfe_backward": 2, "decodes": 1, "reward_calls": 1, "seconds": 0.5, "lessons": 2}
            run.write_json("learned/learning.json", cost | {"curve": [{"update": i, "reward": 0.1 * i} for i in range(3)]})
            (study / name / "wandb").mkdir()
            figure = {"value": 1.5, "low": 1.0, "high": 2.0, "base": 1.2, "win_rate": 0.5, "prompts": 1, "shares_guide": True}
            metrics = json.loads((study / name / "metrics.json").read_text())
            run.write_json("metrics.json", metrics | {  # as rich as any
                "reward": "taste", "scores": {"taste": figure, "scene": {**figure, "slipped": {
                    "ratio": 0.5, "low": 0.1, "high": 0.9, "slipped": 1, "flagged": 2}}},
                "distances": {"fid": {"value": 3.5, "features": "x", "shares_guide": False}}, "compared": [2, 2],
                "reference_samples": 2, "base_cost": metrics["cost"], "learning": cost, "published": {"source": "a paper", "reward": 3},
                "per_class": {"classes": 1, "fid": 1.0, "base": 2.0, "mean_of_percent": -5.0, "percent_of_means": -4.0, "shares_guide": False},
            })  # fmt: skip
        self.name = next(iter(RunFolder(study / "hurt").records()))
        self.pristine = study
        self.digest = config.digest({"": OmegaConf.to_container(self.job.cfg)})

    def run_in(self, folder: Path) -> None:
        experiment.run(self.job_in(folder))

    def job_in(self, folder: Path) -> Job:
        return dataclasses.replace(self.job, folder=RunFolder(folder), cfg=config.copied(self.job.cfg))

    def prepared(self, cfg: Any, tasks: Any = None) -> Job:
        """What a stored config is built to; of the usual one, what is built already."""
        plain = {**OmegaConf.to_container(cfg), "outputs": str(self.home / "outputs"), "study": "study"}
        same = config.digest({"": plain}) == self.digest
        return self.job_in(Path("unused")) if same else self.stored(cfg, tasks)

    @contextlib.contextmanager
    def example(self) -> Iterator["Example"]:
        """The study with the run that is to be damaged as it was."""
        hurt = self.home / "example" / "study" / "hurt"
        if not hurt.parent.exists():
            shutil.copytree(self.pristine / "whole", hurt.parent / "whole")
            outside = self.home / "example" / "outside"
            (outside / "images").mkdir(parents=True)
            for name in ("a.json", "images/a.png", "images/b"):
                (outside / name).write_text(json.dumps({SECRET: SECRET}))
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(self.pristine / "hurt", hurt)
        yield Example(self, hurt.parent.parent)


class Example:
    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.study, self.hurt, self.outside = folder / "study", folder / "study" / "hurt", folder / "outside"
        self.before = self.around()

    def around(self) -> dict[str, bytes]:
        """All that is not the damaged run's, less what report.py writes."""
        there = [*self.outside.rglob("*"), *(self.study / "whole").rglob("*")]
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in there}

    def tell(self, command: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if command == "run":
                    experiment.main(self.bench.job_in(self.hurt))  # type: ignore[arg-type]  # see the fixture
                else:
                    self.bench.scripts[command].main([str(self.hurt if command == "evaluate" else self.study)])
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
                if isinstance(ended.code, str):
                    print(ended.code, file=sys.stderr)
            except UsageError as error:  # which whoever calls main() may be left to tell
                code = 2
                print(f"guidedgen: {error}", file=sys.stderr)
        return code, out.getvalue(), err.getvalue()

    def check(self, *others: str) -> bool:
        """The contract. Whether some command refused something."""
        refused = False
        for command in ("status", "table", "report", *others):
            code, out, err = self.tell(command)
            lines = err.splitlines()
            assert code in (0, 1, 2), (command, code)
            assert len(lines) <= 2 and "Traceback" not in err and "\033" not in out + err, (command, err)
            assert code == 0 or (len(lines) >= 1 and str(self.hurt) in err), (command, err)
            assert SECRET not in out + err, command
            refused |= code != 0 or "damaged" in out
            if command in ("status", "table", "report"):
                assert code == 0, (command, err)
            if command in ("status", "table"):
                assert "whole" in out or "base" in out, out
            if command == "report":
                page = (self.study / "report.html").read_text(encoding="utf-8")
                assert SECRET not in page and 'href="whole/"' in page
                refused |= "damaged" in page
            if command == "run" and code == 0:
                assert RunFolder(self.hurt).done and RunFolder(self.hurt).recorded().records.keys() == self.names
            assert self.around() == self.before, command
        return refused

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.bench.job.samples}

    def file(self, name: str) -> Path:
        return self.hurt / name.format(self.bench.name)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if not (WEIGHTS / "generator" / "model_index.json").exists():
        pytest.skip("the lab's weights are missing")
    numbers = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sampling, "_sample", drawn)
        patch.setattr(StableDiffusion, "load", lambda *_: None)
        patch.setattr(experiment, "_environment", lambda _: {"command": ["run.py"], "samples": 2, "packages": {"torch": "2"}})
        made = Bench(tmp_path_factory.mktemp("stored"))
        patch.setattr(experiment, "prepare", lambda job: job)
        patch.setattr(rejudging, "prepare", made.prepared)
        yield made
    for number, handler in handlers.items():
        signal.signal(number, handler)


EVERY = settings(
    max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
COMMANDS = st.sampled_from([("run",), ("run",), ("evaluate",), ("run", "evaluate")])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**30, -(10**400), 1e308, -1e308, 5e-324]),
    st.floats(), st.text(max_size=6),
    st.sampled_from(["../../outside/a.json", "/etc/passwd", "=cmd", "\033[31m", "[/red]", "\ud83d", "${oc.env:HOME}", "<b>", "a" * 5000]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5
)
DEEP = {
    "lists": "[" * 100_000, "mappings": '{"a":' * 100_000, "whole lists": "[" * 5000 + "]" * 5000, "bomb": "a: &a [x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)),
    "references": "a: x\n" + "".join(f"{chr(98 + i)}: ${{{chr(97 + i)}}}${{{chr(97 + i)}}}\n" for i in range(24)),
    "python": "!!python/object/apply:os.system [touch escape]\n", "digits": "9" * 5000, "invalid": '{"a": NaN, "b": Infinity}',
}  # fmt: skip


def changed(value: Any, data: st.DataObject) -> Any:
    """The value with something in it replaced or left out, at any depth."""
    if not isinstance(value, (dict, list)) or not value or data.draw(st.integers(0, 4)) == 0:
        return data.draw(VALUES)
    key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    if data.draw(st.integers(0, 5)) == 0:
        return {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else [*value[:key], *value[key + 1 :]]
    inner = changed(value[key], data)
    return {**value, key: inner} if isinstance(value, dict) else [*value[:key], inner, *value[key + 1 :]]


def counted(tried: Callable[..., None], refused: bool) -> None:
    tried("refused" if refused else "used")


@pytest.mark.parametrize("name", JSON_FILES)
def test_json_with_another_value_somewhere(bench: Bench, tried: Callable[..., None], name: str) -> None:
    @EVERY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with bench.example() as example:
            file = example.file(name)
            file.write_text(json.dumps(changed(json.loads(file.read_text()), data)))
            counted(tried, example.check(*data.draw(COMMANDS)))

    check()


@pytest.mark.parametrize("name", LINES)
def test_a_line_with_another_value_somewhere(bench: Bench, tried: Callable[..., None], name: str) -> None:
    @EVERY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with bench.example() as example:
            file = example.file(name)
            first, *others = file.read_text().splitlines()
            file.write_text("\n".join([json.dumps(changed(json.loads(first), data)), *others, ""]))
            counted(tried, example.check(*data.draw(COMMANDS)))

    check()


def test_a_config_with_another_value_somewhere(bench: Bench, tried: Callable[..., None]) -> None:
    @EVERY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with bench.example() as example:
            file = example.file("config.yaml")
            plain = changed(OmegaConf.to_container(OmegaConf.load(file)), data)
            file.write_text(json.dumps(plain))  # which is YAML
            counted(tried, example.check(*data.draw(COMMANDS)))

    check()


def test_any_bytes_in_any_file(bench: Bench, tried: Callable[..., None]) -> None:
    @EVERY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with bench.example() as example:
            file = example.file(data.draw(st.sampled_from(FILES)))
            content = file.read_bytes() if file.exists() else b""
            place = data.draw(st.integers(0, len(content)))
            some = data.draw(st.one_of(st.just(b""), st.binary(max_size=40), st.sampled_from(list(DEEP.values())).map(str.encode)))
            file.write_bytes(
                data.draw(st.sampled_from([some, content[:place], content[:place] + some + content[place + len(some) :]]))
            )
            counted(tried, example.check(*data.draw(COMMANDS)))

    check()


def test_any_thing_in_place_of_any_file_or_folder(bench: Bench, tried: Callable[..., None]) -> None:
    @EVERY
    @given(st.data())
    def check(data: st.DataObject) -> None:
        with bench.example() as example:
            path = example.file(data.draw(st.sampled_from([*FILES, *FOLDERS])))
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            put(data.draw(st.sampled_from(THINGS)), path, example.outside)
            counted(tried, example.check(*data.draw(COMMANDS)))

    check()


THINGS = (
    "nothing",
    "file",
    "folder",
    "link to a file",
    "link to a folder",
    "dangling link",
    "link to itself",
    "hard link",
    "pipe",
    "socket",
)


def put(thing: str, path: Path, outside: Path) -> None:
    match thing:
        case "file":
            path.write_bytes(b"x\n")
        case "folder":
            path.mkdir()
        case "link to a file":
            path.symlink_to(outside / "a.json")
        case "link to a folder":
            path.symlink_to(outside / "images")
        case "dangling link":
            path.symlink_to(outside / "new")
        case "link to itself":
            path.symlink_to(path.name)
        case "hard link":
            path.hardlink_to(outside / "images" / "b")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            here = os.open(path.parent, os.O_RDONLY)
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)


def test_a_line_of_any_length_is_read_in_parts(bench: Bench, monkeypatch: pytest.MonkeyPatch, tried: Callable[..., None]) -> None:
    monkeypatch.setattr(inside, "LONGEST", 2**11)
    with bench.example() as example:
        file = example.file("records.jsonl")
        file.write_bytes(b"x" * 50_000 + b"\n" + file.read_bytes())
        assert len(RunFolder(example.hurt).recorded().records) == 2 and RunFolder(example.hurt).damaged_lines == 1
        counted(tried, example.check("run"))
