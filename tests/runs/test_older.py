"""Runs that older versions have stored are shown, judged again and resumed, and plug-ins written for them work."""

import importlib
import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from guidedgen.lab.networks import WEIGHTS
from guidedgen.methods import MakeProblems
from guidedgen.runs import composition, config, experiment, identity, older, preparation, rejudging
from guidedgen.runs.store import RunFolder
from guidedgen.studies import page, status, tables

STORED = Path(__file__).resolve().parents[1] / "golden" / "stored_by_0.1"  # its README says how they were made
KILLED = "blip_inversion-aesthetic-lab-lab-f100281ebb5a"
JUDGED = "code-multi-lab-lab-744ab3330862"
COMMON = ["study=stored", "dataset.limit=2", "batch_size=1", "scheduler.num_steps=6", "device=cpu", "tracker=none"]
INVERSION = [
    "method=blip_inversion",
    "reward=aesthetic",
    "method.num_iterations=4",
    "method.distill_weight=[20,10]",
    "method.augmentations.count=2",
]

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED, tmp_path / "stored"))


def test_they_are_shown(study: Path) -> None:
    states = {state.name: state.state for state in status.of_study(study)}
    assert states == {JUDGED: "done", KILLED: "partial", "base-none-lab-lab-b3738c3950f1": "done"}
    assert "| code | " in tables.study_table(study)
    (written, *_) = page.write(study)
    assert "damaged" not in written.read_text()


@trained
def test_one_is_judged_again_from_its_pictures(study: Path) -> None:
    before = json.loads((study / JUDGED / "metrics.json").read_text())
    after = rejudging.judge_again(study / JUDGED)
    assert after["scores"].keys() == before["scores"].keys()
    for name, entry in before["scores"].items():
        assert after["scores"][name]["value"] == pytest.approx(entry["value"], abs=1e-4), name


@trained
def test_the_same_command_goes_on_with_one(study: Path) -> None:
    """Its config names a class that has moved since: the run's name is the same all the same."""
    job = preparation.prepare(composition.composed([*INVERSION, *COMMON, f"outputs={study.parent}"]))
    assert job.folder.path == study / KILLED
    (finished,) = job.folder.records()
    before = (study / KILLED / "images" / f"{finished}.png").read_bytes()
    assert "guidedgen.augment.Augmentations" in (study / KILLED / "config.yaml").read_text()
    experiment.run(job)
    assert job.folder.done and len(job.folder.records()) == 2 and not job.folder.failures()
    assert (study / KILLED / "images" / f"{finished}.png").read_bytes() == before
    assert rejudging.judge_again(study / KILLED)["samples"] == 2


def test_a_finished_one_is_only_shown(study: Path) -> None:
    job = preparation.prepare(
        composition.composed(["method=code", "method.num_particles=2", "reward=multi", *COMMON, f"outputs={study.parent}"])
    )
    assert job.folder.path == study / JUDGED and job.folder.done
    assert job.base is not None and job.base.folder.path == study / "base-none-lab-lab-b3738c3950f1" and job.base.folder.done


def test_metrics_with_the_former_key_of_extra_images_are_read(tmp_path: Path) -> None:
    extra = {"best": {"samples": 2, "scores": {"aesthetic": {"value": 5.0}}}}
    former = {"samples": 2, "scores": {}, "cost": {"nfe": 50}, "beside": extra}
    (tmp_path / "metrics.json").write_text(json.dumps(former))
    metrics = RunFolder(tmp_path).read_json("metrics.json")
    assert metrics["extra_images"] == extra and "beside" not in metrics
    assert older.metrics_now(metrics) == metrics
    assert older.metrics_now({**former, "extra_images": {}})["extra_images"] == {}  # today's key wins


def test_methods_may_report_extra_images_by_the_former_event() -> None:
    assert older.event_now("beside") == older.event_now("extra_images") == "extra_images"
    assert older.event_now("step") == "step"


def test_what_a_config_lacks_is_filled_in_and_names_are_today_s() -> None:
    config = older.completed(OmegaConf.create({"run": {"fresh": False}}))
    assert config.shard == {"count": 1, "index": 0} and config.run == {
        "fresh": False,
        "show_flagged": False,
        "trace_images": 0,
        "objective": None,
        "objective_limit": None,
    }
    assert older.completed(OmegaConf.create({"run": {"objective": "a"}, "shard": {"count": 2, "index": 1}})).shard.count == 2
    node = {"method": {"_target_": "guidedgen.methods.base.Base", "parts": [{"_target_": "guidedgen.augment.Augmentations"}]}}
    now = older.current(node)
    assert now["method"]["parts"] == [{"_target_": "guidedgen.basics.augment.Augmentations"}] and older.first(now) == node


@pytest.mark.parametrize(
    ("model", "scheduler", "renamed"),
    [
        ("lab_flow", "dpm_solver", True), ("sd35_medium", "dpm_solver", True), ("lab_flow", "flow", False),
        ("lab", "dpm_solver", False), ("sana", "dpm_solver", False),
    ],
)  # fmt: skip
def test_runs_whose_samples_have_changed_since_are_other_runs(model: str, scheduler: str, renamed: bool) -> None:
    """A flow under DPM-Solver++ read fractions of times before: the same command must not show such a run as its own."""
    plain = identity.plain_values(composition.composed(["method=base", f"model={model}", f"scheduler={scheduler}", "device=cpu"]))
    deciding = config.deciding(plain)
    assert ("changed" in deciding) == renamed
    before = {key: value for key, value in deciding.items() if key != "changed"}
    assert (config.identity(plain) != config.digest(before)) == renamed


PLUG_IN = '''
import dataclasses
from typing import ClassVar
from guidedgen.images import check
from guidedgen.noise import Noise
from guidedgen.problem import Problem
from guidedgen.types import BadValue, Needs, Observer, Task, UsageError, ignore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own:
    """As the README of version 0.1 has it."""

    needs: ClassVar[Needs] = Needs(reward=False)

    def __call__(self, problem: Problem, observe: Observer = ignore):
        return problem.start()[:, 0]
'''


def test_options_may_name_classes_as_they_were_named(tmp_path: Path) -> None:
    given = ["method=blip_inversion", f"outputs={tmp_path}", "tracker=none", "device=cpu"]
    folders = []
    for name in ("guidedgen.augment.Augmentations", "guidedgen.basics.augment.Augmentations"):
        cfg = composition.composed([*given, f"method.augmentations._target_={name}"])
        folders.append(preparation.prepare(cfg).folder.path)
    assert folders[0] == folders[1]


def test_a_plug_in_of_an_older_version_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old_plug_in.py").write_text(PLUG_IN)
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_text("_target_: old_plug_in.Own\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = [
        "method=own",
        "reward=none",
        "allow_targets=[old_plug_in]",
        f"outputs={tmp_path / 'outputs'}",
        "tracker=none",
        "device=cpu",
    ]
    job = preparation.prepare(composition.composed(given, tmp_path))
    assert type(job.method).__name__ == "Own"
    with pytest.raises(ImportError, match="cannot import name 'NoSuch'"):
        from guidedgen.types import NoSuch  # noqa: F401


@pytest.mark.parametrize(
    "name", ["Task", "Sample", "UsageError", "Needs", "ignore", "Method", "Reward", "Scheduler", "Denoiser", "Clip"]
)
def test_every_former_name_is_found(name: str) -> None:
    older.know_modules()
    assert getattr(importlib.import_module("guidedgen.types"), name).__name__ == name


def test_a_protocol_that_has_another_name_now_is_found_by_its_former_one() -> None:
    older.know_modules()
    assert importlib.import_module("guidedgen.types").Pose is MakeProblems
