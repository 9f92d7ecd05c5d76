"""Audits as whole runs on the bundled model: what a filter flags is stored blurred, and no figure is lost by it.

The filter is one of brightness, as backgrounds differ in it; best of N slips past it now and then.
"""

import dataclasses
import functools
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.lab.networks import WEIGHTS
from guidedgen.methods import Needs, Observer
from guidedgen.methods.problem import Problem
from guidedgen.metrics.summary import wilson_interval
from guidedgen.runs import composition, evaluate, experiment, preparation, rejudging, report
from guidedgen.runs.job import Job
from guidedgen.runs.store import Record, RunFolder
from guidedgen.studies import tables

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")

QUICK = ["scheduler.num_steps=3", "dataset.category=background", "dataset.limit=8", "tracker=none", "device=cpu", "dtype=float32"]
FILTER = ["reward=evasion", "~reward.filter", "+reward.filter={_target_: brightness.Brightness, bright: 0.505}"]
SHOWN = "run.show_flagged=true"

Run = Callable[..., tuple[Path, Mapping[str, Any]]]


class Brightness:
    """Flags pictures whose mean is above `bright`."""

    def __init__(self, *, bright: float) -> None:
        self.name, self.bright = "brightness", bright

    def margin(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)) - self.bright


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """The filter, as a user's package would have it."""
    module = types.ModuleType("brightness")
    module.Brightness = Brightness
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "brightness", module)
        patch.setattr(Brightness, "__module__", "brightness")  # as if it were defined there
        yield


def prepared(outputs: Path, *overrides: str, method: str = "best_of_n") -> Job:
    given = [f"outputs={outputs}", f"method={method}", *QUICK, "allow_targets=[brightness.]"]
    given += ["method.num_particles=2"] if method == "best_of_n" else []
    given += [] if "reward=none" in overrides else FILTER
    return preparation.prepare(composition.composed([*given, *overrides]))


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A prepared audit; overrides as on the command line."""
    return functools.partial(prepared, tmp_path)


@pytest.fixture
def run(job: Callable[..., Job]) -> Run:
    def go(*overrides: str, method: str = "best_of_n") -> tuple[Path, Mapping[str, Any]]:
        made = job(*overrides, method=method)
        return made.folder.path, experiment.run(made)

    return go


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """One audit, as it is stored and with everything shown."""
    made = {
        name: prepared(tmp_path_factory.getbasetemp() / "audits", *more) for name, more in (("blurred", []), ("shown", [SHOWN]))
    }
    return {name: (job.folder.path, experiment.run(job)) for name, job in made.items()}


def base_of(folder: Path, *, blurred: bool) -> Path:
    found = [path for path in folder.parent.glob("base-*") if any(r.blurred for r in RunFolder(path).records().values()) == blurred]
    assert len(found) == 1
    return found[0]


def records(folder: Path) -> dict[str, Record]:
    return RunFolder(folder).records()


def lasting(folder: Path) -> dict[str, bytes]:
    """Everything of a run that may not depend on how often it was interrupted."""
    kept = {path.name: path.read_bytes() for path in sorted((folder / "images").glob("*.png"))}
    for name, record in records(folder).items():
        kept[name] = repr((record.scores, record.blurred, record.nfe)).encode()
    return kept


Audits = Mapping[str, tuple[Path, Mapping[str, Any]]]


def test_what_is_flagged_is_stored_blurred_and_scored_sharp(audits: Audits) -> None:
    """Beside the same run in which everything is shown: another folder, with the same samples and scores."""
    (folder, metrics), (shown, plain) = audits["blurred"], audits["shown"]
    assert folder != shown
    pairs = [(folder, shown, False), (base_of(folder, blurred=True), base_of(folder, blurred=False), True)]
    before = {name: record.scores["flagged"] for name, record in records(pairs[1][1]).items()}
    after = {name: record.scores["flagged"] for name, record in records(shown).items()}
    assert {0.0, 1.0} == {*before.values()} and any(before[name] > after[name] for name in before)
    for hidden, sharp, unguided in pairs:
        for name, record in records(hidden).items():
            same = records(sharp)[name]
            assert record.scores == same.scores and not same.blurred
            assert record.blurred == bool(before[name] or (after[name] and not unguided))
            picture = images.read(sharp / same.image)
            if record.blurred:
                gone = images.resize(images.resize(picture, 8), picture.shape[-1])
                assert (hidden / record.image).read_bytes() == images.png(gone[0])
                assert (gone - picture).abs().max() > 0.05
            else:
                assert (hidden / record.image).read_bytes() == (sharp / same.image).read_bytes()
    assert {name: entry["value"] for name, entry in metrics["scores"].items()} == pytest.approx(
        {name: entry["value"] for name, entry in plain["scores"].items()}, abs=1e-5
    )
    assert metrics["blurred"] == sum(record.blurred for record in records(folder).values()) > 0
    assert plain["blurred"] == 0


def test_the_success_ratio_is_of_what_was_flagged_before(audits: Audits, capsys: pytest.CaptureFixture[str]) -> None:
    folder, metrics = audits["blurred"]
    before, after = records(base_of(folder, blurred=True)), records(folder)
    flagged = [name for name, record in before.items() if record.scores["flagged"] == 1]
    slipped = [name for name in flagged if after[name].scores["flagged"] == 0]
    assert 0 < len(slipped) < len(flagged) < len(before)
    entry = metrics["scores"]["flagged"]
    low, high = wilson_interval(len(slipped), len(flagged))
    assert entry["slipped"] == {
        "ratio": len(slipped) / len(flagged), "low": low, "high": high, "slipped": len(slipped), "flagged": len(flagged),
    }  # fmt: skip
    assert entry["base"] == len(flagged) / len(before) and "win_rate" not in entry
    assert "slipped" not in metrics["scores"]["evasion"]
    report.show(metrics)
    shown = capsys.readouterr().out
    assert f"slipped past ({len(slipped)} of {len(flagged)})" in shown
    assert f"{metrics['blurred']} are stored blurred" in shown
    cell = f"| {100 * len(slipped) / len(flagged):.0f} % ({100 * low:.0f} .. {100 * high:.0f}, n {len(flagged)}) |"
    assert tables.study_table(folder.parent).count(cell) == 2  # of both ways to store it


def test_nothing_flagged_is_no_ratio(run: Run) -> None:
    _, metrics = run("reward.filter.bright=2", "metrics=none", "dataset.limit=3")
    assert metrics["scores"]["flagged"]["slipped"] is None and metrics["blurred"] == 0
    assert metrics["compared"] == [3, 3]


def test_distances_are_between_pictures_that_are_sharp_on_both_sides(audits: Audits) -> None:
    folder, metrics = audits["blurred"]
    left = [name for name, record in records(folder).items() if not record.blurred]
    assert metrics["compared"] == [len(left), len(left)] and 2 <= len(left) < 8
    own, base = evaluate.Images.of_run(RunFolder(folder)), evaluate.Images.of_run(RunFolder(base_of(folder, blurred=True)))
    kept = [
        evaluate.Images(paths=[pictures.paths[i] for i in range(8) if pictures.records[i].name in left]) for pictures in (own, base)
    ]
    with torch.no_grad():
        x, y = (np.concatenate([Features()(batch).numpy() for batch in pictures.batches(3, "cpu")]) for pictures in kept)
    ours, theirs = evaluate.comparable(own, base)
    pair = evaluate.Pair(own=ours, reference=theirs, batch_size=3, device="cpu")
    found = evaluate.distances(pair, {"mean": Difference()})
    assert found["mean"]["value"] == pytest.approx(float(np.abs(x.mean(0) - y.mean(0)).sum()), abs=1e-6)


class Features:
    name = "mean-colour"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class Difference:
    name, features = "mean", Features()

    def __call__(self, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        return {"mean": float(np.abs(x.mean(0) - y.mean(0)).sum())}


def test_what_is_blurred_in_either_set_is_left_out_of_both() -> None:
    """Also where the reference is another run, which has blurred others; a folder of images has nothing that is."""

    def stored(*hidden: int) -> evaluate.Images:
        numbers = {"nfe": 1, "nfe_backward": 0, "decodes": 1, "reward_calls": 0, "seconds": 1.0, "peak_memory_mib": 1.0}
        made = [
            Record(task="a", prompt="", category="", seed=i, image=f"{i}.png", scores={}, blurred=i in hidden, **numbers)
            for i in range(5)
        ]
        return evaluate.Images(paths=[Path(record.image) for record in made], records=made)

    for pictures in evaluate.comparable(stored(1, 2), stored(2, 4)):
        assert [path.name for path in pictures.paths] == ["0.png", "3.png"]
        assert [record.seed for record in pictures.records] == [0, 3]
    folder = evaluate.Images(paths=[Path("x.png")])
    own, other = evaluate.comparable(stored(0), folder)
    assert len(own) == 4 and other.paths == folder.paths


@pytest.mark.parametrize("shown", [False, True])
def test_nothing_that_no_filter_has_seen_is_kept_as_an_extra_image(job: Callable[..., Job], shown: bool) -> None:
    class KeepsNoise:
        """Keeps the noise that it was given as an extra image."""

        needs = Needs(reward=False)

        def __call__(self, problem: Problem, observe: Observer) -> torch.Tensor:
            x_0 = problem.start()[:, 0]
            observe("extra_images", 0, {"noise": x_0})
            return x_0

    made = job("reward.filter.bright=-1", "reference=none", *([SHOWN] if shown else []), method="base")
    made = dataclasses.replace(made, method=KeepsNoise())
    experiment.run(made)
    kept = made.folder.path / "images" / "noise"
    assert len(list(kept.glob("*.png"))) == (8 if shown else 0)


def test_where_all_is_blurred_there_are_no_distances_and_no_score_is_lost(run: Run) -> None:
    folder, metrics = run("reward.filter.bright=-1", "dataset.limit=3")
    assert metrics["blurred"] == 3 and metrics["compared"] == [0, 0] and metrics["distances"] == {}
    for name, entry in metrics["scores"].items():
        recorded = [record.scores[name] for record in records(folder).values()]
        assert entry["value"] == pytest.approx(np.mean([value for value in recorded if value is not None]), abs=1e-9)
    again = rejudging.judge_again(folder)
    assert again["scores"] == metrics["scores"]


def test_judging_again_loses_nothing_and_takes_no_score_of_other_options(audits: Audits) -> None:
    folder, metrics = audits["blurred"]
    again = rejudging.judge_again(folder)
    assert again["scores"] == metrics["scores"] and again["distances"] == metrics["distances"]
    left = sum(not record.blurred for record in records(folder).values())
    other = rejudging.judge_again(folder, ["metrics.scorers.clip_score.convention=t2i_compbench"])
    assert other["scores"]["clip_score"]["prompts"] == left  # of the others the pictures are gone
    assert {name: entry for name, entry in other["scores"].items() if name != "clip_score"} == {
        name: entry for name, entry in metrics["scores"].items() if name != "clip_score"
    }


def test_an_interrupted_audit_goes_on_where_it_was(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["batch_size=3", "metrics=none", "dataset.limit=6"]
    folder, _ = run(*options)
    assert {record.blurred for record in records(folder).values()} == {True, False}
    whole, save, saves = lasting(folder), RunFolder.save, 0
    base = base_of(folder, blurred=True)
    unguided = lasting(base)
    for path in sorted([*folder.rglob("*"), *base.rglob("*")], reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()

    def failing(self: RunFolder, *arguments: Any) -> None:
        nonlocal saves
        saves += 1
        if saves in (5, 12):  # in the unguided run, and in the guided one
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", failing)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run(*options)
    run(*options)
    assert lasting(folder) == whole
    assert lasting(base) == unguided


def test_an_audit_and_other_runs_have_unguided_runs_of_their_own(job: Callable[..., Job]) -> None:
    """A plain run's must not be blurred by an audit, and an audit must not show what a plain run has stored."""
    audit, direct, shown = job(), job(method="base"), job(SHOWN, method="base")
    plain = job("reward=none", method="base")
    assert audit.base.folder.path == direct.folder.path and audit.base.blurs and direct.blurs
    assert shown.folder.path == plain.folder.path != direct.folder.path and not plain.blurs
    assert job(SHOWN).base.folder.path == plain.folder.path
    assert len({made.run_id for made in (audit, job(SHOWN), direct, plain)}) == 4
    assert job("reward.filter.bright=0.7").base.run_id != audit.base.run_id  # another filter blurs others
    assert job("method.num_particles=3").base.run_id == audit.base.run_id


def test_an_audit_needs_the_unguided_run_or_leave_to_show(job: Callable[..., Job]) -> None:
    with pytest.raises(UsageError, match=r"^reference=none: .*stored blurred.*; run\.show_flagged=true") as caught:
        job("reference=none")
    assert "\n" not in str(caught.value)
    assert not job("reference=none", SHOWN).blurs
    assert job("reference=none", method="base").blurs  # it has its own verdicts
    with pytest.raises(UsageError, match=r"^run\.show_flagged=maybe: expected true or false"):
        job("run.show_flagged=maybe")


def test_runs_of_before_there_were_filters_are_still_judged(run: Run) -> None:
    """Their records say nothing of blurring, and their configs nothing of showing."""
    folder, metrics = run(SHOWN, "metrics=none", method="base")
    assert metrics["blurred"] == 0
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("blurred") is False
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = (folder / "config.yaml").read_text()
    assert "  show_flagged: true\n" in text
    (folder / "config.yaml").write_text(text.replace("  show_flagged: true\n", ""))
    assert rejudging.judge_again(folder)["scores"] == metrics["scores"]


def test_what_compares_with_unguided_pictures_does_not_see_blurred_ones(job: Callable[..., Job]) -> None:
    """It is refused, as a score or as part of the reward: where the originals are blurred there is nothing to compare with."""
    pixels = "+metrics.scorers.likeness={_target_: guidedgen.rewards.pixels.Pixels}"
    with pytest.raises(UsageError, match="^likeness compares with the unguided pictures.*; run.show_flagged=true"):
        job(pixels)
    assert job(pixels, SHOWN).scorers["likeness"].needs_original


# The overlays; their likeness to the paper is in test_adjoint_experiments.py too


def overlay(name: str, *overrides: str) -> DictConfig:
    return composition.composed([f"experiment=adjoint/{name}", "device=cpu", "tracker=none", *overrides])


ON_LAB = ["model=lab", "dtype=float32"]


def test_prompts_are_the_user_s(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^dataset\.path: missing; give it as dataset\.path="):
        preparation.prepare(overlay("audit", *ON_LAB))
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    made = preparation.prepare(overlay("audit", *ON_LAB, f"dataset.path={tmp_path / 'prompts.txt'}", f"outputs={tmp_path}"))
    assert made.blurs and made.base.blurs and {"evasion", "flagged"} <= {*made.scorers}
    assert isinstance(made.method.gradients, Adjoint) and len(made.grid) - 1 == 30


def test_the_audit_is_run_as_the_released_code_runs_it() -> None:
    cfg = overlay("audit", "dtype=float32", "dataset.path=prompts.txt")
    wanted = {
        "method.epsilon": 0.1, "method.num_updates": 30, "method.what": "noise", "method.lr": 0.01, "method.optimizer": "adam",
        "scheduler.num_steps": 30, "scheduler.spacing": "linspace", "scheduler.eta": 0, "model.guidance_scale": 7.5,
        "model.path": "stable-diffusion-v1-5/stable-diffusion-v1-5", "reward.filter._target_": "guidedgen.zoo.filter.SafetyChecker",
        "reward.filter.path": "CompVis/stable-diffusion-v1-4/safety_checker", "run.show_flagged": False, "reference": "base",
    }  # fmt: skip
    found = {key: OmegaConf.select(cfg, key) for key in wanted}
    commits = ("model.path", "reward.filter.path")  # at a commit, which no paper names
    assert {**found, **{key: found[key].partition("@")[0] for key in commits}} == wanted


def test_a_classifier_is_audited_by_its_label(tmp_path: Path) -> None:
    """As the overlay's comment says, on the lab."""
    given = ["reward=evasion_classifier", "dataset=prompt", 'dataset.prompt="a red circle"', *ON_LAB, f"outputs={tmp_path}"]
    made = preparation.prepare(overlay("audit", "reward.filter.label=red circle", *given))
    assert made.reward.networks == ("lab-classifier",) and made.blurs
    with pytest.raises(UsageError, match=r"^reward\.filter\.label: missing"):
        preparation.prepare(overlay("audit", *given))
    with pytest.raises(UsageError, match=r"^reward\.filter\.label=red cirle: it is no scene .*did you mean circle"):
        preparation.prepare(overlay("audit", "reward.filter.label=red cirle", *given))


def test_the_lab_s_audit_is_of_its_stand_in_filter(tmp_path: Path) -> None:
    """As briefly as can be: what it flags is stored blurred, and reported."""
    full = preparation.prepare(overlay("lab/audit", f"outputs={tmp_path}"))
    assert full.blurs and len(full.samples) >= 64 and full.method.epsilon is not None and full.cfg.reward.filter.label == "shape"
    brief = ["scheduler.num_steps=4", "method.num_updates=1", "dataset.limit=3", "samples_per_prompt=1", "metrics=none"]
    made = preparation.prepare(overlay("lab/audit", f"outputs={tmp_path}", *brief))
    metrics = experiment.run(made)
    flagged = [record for record in records(made.base.folder.path).values() if record.scores["flagged"] == 1]
    assert flagged and all(record.blurred for record in flagged)
    assert metrics["scores"]["flagged"]["slipped"]["flagged"] == len(flagged)
    assert metrics["scores"]["evasion"]["value"] >= metrics["scores"]["evasion"]["base"] - 1e-4
