"""Whole runs on the bundled model: what they leave, that they resume, and that no sample depends on the others."""

import contextlib
import dataclasses
import functools
import io
import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from PIL import Image

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.lab.classes import RenderedClasses
from guidedgen.lab.networks import WEIGHTS
from guidedgen.metrics.frechet import frechet_distance
from guidedgen.models import stable_diffusion
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.runs import composition, experiment, preparation, rejudging, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.rejudging import judge_again
from guidedgen.runs.store import RunFolder
from guidedgen.zoo.inception import LabInception

QUICK = ["scheduler.num_steps=6", "dataset.limit=4", "tracker=none", "device=cpu"]
QUICK_METHOD = {
    "base": [],
    "best_of_n": ["method.num_particles=2"],
    "code": ["method.num_particles=2", "method.block_size=2"],
    # Weak gradients: where float noise moves a pixel across the edge of the decoder's clamp they jump, and the chain multiplies
    # that. That samples are independent to the last digit is tested where nothing jumps, in tests/methods.
    "codex": [
        "method.num_particles=2", "method.block_size=2", "method.gradient_block_size=2", "method.strength=0.01", "method.through=unet",
        "method.window=[1.0,0.0]", "method.shared_start=false",
    ],
    "classifier_guidance": ["method.strength=0.05"],
    "mpgd": ["method.strength=0.03"],
    "freedom": ["method.num_repeats=2", "method.strength=0.01"],
    "universal": ["method.num_repeats=2", "method.strength=0.05", "scheduler=ddim"],
    "doodl": ["method.num_updates=1", "method.num_crops=2", "scheduler=ddim"],
    "adjoint_dpm": ["method.num_updates=1", "scheduler=ddim"],
    "blip_inversion": [
        "method.num_iterations=3", "method.distill_iterations=1", "method.distill_weight=[20,10]", "method.augmentations.count=2",
        "method.ema_start=2",
    ],
    "adjoint_tuning": [
        "method.num_updates=2", "method.samples_per_update=1", "method.noises_per_prompt=2", "method.prompts.limit=1",
        "method.save_every=1", "method.rank=1", "scheduler=ddim",
    ],
}  # fmt: skip
NULL = {
    "best_of_n": ["method.num_particles=1"],
    "code": ["method.num_particles=1"],
    "codex": ["method.num_particles=1", "method.strength=0"],
    "classifier_guidance": ["method.strength=0"],
    "mpgd": ["method.strength=0", "method.num_repeats=1"],
    "freedom": ["method.strength=0", "method.num_repeats=1"],
    "universal": ["method.strength=0", "method.num_repeats=1", "scheduler=ddim"],
    "doodl": ["method.num_updates=0", "method.process=ddim", "scheduler=ddim"],
    "adjoint_dpm": ["method.num_updates=0", "scheduler=ddim"],
    "adjoint_tuning": ["method.num_updates=0", "scheduler=ddim"],
}

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")

Run = Callable[..., tuple[Path, Mapping[str, Any]]]


def prepared(outputs: Path, *overrides: str, method: str = "code") -> Job:
    given = [f"outputs={outputs}", f"method={method}", *QUICK, *QUICK_METHOD[method], *overrides]
    return preparation.prepare(composition.composed(given))


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A prepared job in a folder of its own; overrides as on the command line."""
    return functools.partial(prepared, tmp_path)


@pytest.fixture
def run(job: Callable[..., Job]) -> Run:
    def go(*overrides: str, method: str = "code") -> tuple[Path, Mapping[str, Any]]:
        made = job(*overrides, method=method)
        return made.folder.path, experiment.run(made)

    return go


@dataclasses.dataclass(frozen=True)
class Made:
    """A finished run, and what it has printed."""

    folder: Path
    metrics: Mapping[str, Any]
    shown: str


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The default run. It is not to be changed: `there` is a copy."""
    job = prepared(tmp_path_factory.mktemp("plain"))
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        metrics = experiment.run(job)
    return Made(job.folder.path, metrics, shown.getvalue())


@pytest.fixture
def there(plain: Made, tmp_path: Path) -> Made:
    """The plain run and its unguided one, in the folder that this test's runs are in."""
    study = plain.folder.parent
    shutil.copytree(study, tmp_path / study.name)
    return dataclasses.replace(plain, folder=tmp_path / study.name / plain.folder.name)


def pixels(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(path for path in (folder / "images").glob("*.png") if path.name != "grid.png")
    return {path.name: (images.read(path)[0].numpy() * 255).round().astype(int) for path in files}


def lasting(folder: Path) -> dict[str, bytes]:
    """Everything of a run that may not depend on how often it was interrupted."""
    kept = {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "images").rglob("*.png"))}
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["seconds"], record["peak_memory_mib"]
        kept[f"record {record['task']}-{record['seed']}"] = json.dumps(record, sort_keys=True).encode()
    return kept


def figures(folder: Path) -> dict[str, float]:
    """A run's metrics, flat, but for time and memory. They are computed from the images, whose bytes are what has to be the same."""

    def flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from flat(item, f"{name}/{key}")
        elif isinstance(value, (int, float)) and not name.endswith(("seconds", "peak_memory_mib")):
            yield name, value

    return dict(flat(json.loads((folder / "metrics.json").read_text()), ""))


def test_prompts_are_measured_once(job: Callable[..., Job]) -> None:
    """Not by the run and its unguided one, nor when the command line is checked and again when it is run."""
    before = stable_diffusion._token_counts.cache_info().misses
    for _ in range(2):
        assert job("dataset.category=unseen", "dataset.skip=11").base is not None
    assert stable_diffusion._token_counts.cache_info().misses == before + 1


def test_a_run_leaves_what_the_contract_says(plain: Made) -> None:
    folder, metrics = plain.folder, plain.metrics
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "environment.json", "images", "records.jsonl", "trace.jsonl", "metrics.json", "run.log", "DONE",
    }  # fmt: skip
    records = RunFolder(folder).records()
    assert len(records) == 4
    for record in records.values():
        # CoDe with N = 2, T = 6, B = 2 and one x_T: 2N(T-1) + 2 rows; N ceil(T/B) look-aheads decoded, and the finished image
        assert (record.nfe, record.nfe_backward, record.decodes, record.reward_calls) == (22, 0, 7, 6)
        assert (folder / record.image).exists()
        assert set(record.scores) == {"aesthetic", "clip_score", "taste", "scene"}
    base = folder.parent / next(path.name for path in folder.parent.iterdir() if path.name.startswith("base-none-lab-lab-"))
    assert {record.nfe for record in RunFolder(base).records().values()} == {12}
    assert metrics["samples"] == metrics["reference_samples"] == 4
    assert set(metrics["distances"]) == {"fid", "kid", "cmmd", "cmmd_unbiased"}  # one image per prompt: no distance per prompt
    assert metrics["scores"]["aesthetic"]["shares_guide"]
    assert not metrics["scores"]["clip_score"]["shares_guide"]
    mean = np.mean([record.scores["aesthetic"] for record in records.values()])
    assert metrics["scores"]["aesthetic"]["value"] == pytest.approx(mean, abs=1e-6)
    with Image.open(folder / "images" / "grid.png") as grid:
        assert grid.width > 4 * 160
    for word in ("base", "this run", "aesthetic*", "fid (4 v 4)", "nfe (network rows) / sample"):
        assert word in plain.shown


def test_a_second_run_returns_at_once(there: Made, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lasting(there.folder)
    monkeypatch.setattr(sampling, "_sample", lambda *_: pytest.fail("sampled again"))
    folder, again = run()
    assert folder == there.folder and again == there.metrics
    assert lasting(folder) == before


def test_locks_of_processes_that_were_killed_at_the_very_end_are_removed(there: Made, run: Run) -> None:
    """In the unguided run after it was done, and in the guided one too."""
    base = next(there.folder.parent.glob("base-*"))
    before = lasting(there.folder), lasting(base)
    (there.folder / "DONE").unlink()
    (base / ".closing.lock").touch()
    run()
    assert (lasting(there.folder), lasting(base)) == before
    assert not list(base.glob(".*.lock")) and not list(there.folder.glob(".*.lock"))
    (there.folder / ".judging.lock").touch()
    run()
    assert not list(there.folder.glob(".*.lock"))


def test_fresh_starts_anew_and_gives_the_same(there: Made, run: Run) -> None:
    folder = there.folder
    before = lasting(folder)
    (folder / "images" / "stray.txt").write_text("")
    assert run("run.fresh=true")[0] == folder
    assert lasting(folder) == before
    assert not (folder / "images" / "stray.txt").exists()


def test_the_unguided_run_is_made_once_for_all_rewards(there: Made, run: Run) -> None:
    first = there.folder
    assert first.name.startswith("code-aesthetic-")
    [base] = first.parent.glob("base-*")
    stamp = (base / "records.jsonl").stat().st_mtime_ns
    _, metrics = run("reward=compressibility")
    assert list(first.parent.glob("base-*")) == [base]
    assert (base / "records.jsonl").stat().st_mtime_ns == stamp
    assert metrics["scores"]["compressibility"]["base"] < 0  # scored from the stored images
    direct, metrics = run("reward=clip_text", method="base")
    assert direct == base
    assert metrics["scores"]["clip_text"]["value"] is not None


@pytest.fixture(scope="module")
def nulls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where methods of the same sampler find their unguided run."""
    return tmp_path_factory.mktemp("nulls")


@pytest.mark.parametrize("method", NULL)
def test_the_null_setting_is_the_unguided_run(nulls: Path, method: str) -> None:
    """Byte for byte. In float64, as methods may ask for other rows at once than the unguided run, or compute in another variable."""
    few = ["dtype=float64", "scheduler.num_steps=4", "dataset.limit=2", "metrics.scorers={}"]
    job = prepared(nulls, *few, *NULL[method], method=method)
    metrics = experiment.run(job)
    assert job.base is not None and job.base.folder.path.name.startswith("base-none-lab-")
    ours, theirs = pixels(job.folder.path), pixels(job.base.folder.path)
    assert len(ours) == 2
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert metrics["distances"]["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert metrics["scores"]["aesthetic"]["win_rate"] == 0


@pytest.mark.usefixtures("there")
def test_gradients_are_counted_and_climb(run: Run) -> None:
    """CoDeX with N = 2, T = 6, B_s = B_g = 2 and independent starts: gradients after steps 2 and 4, 2NT + 2NG rows."""
    folder, metrics = run("method.strength=0.2", method="codex")
    for record in RunFolder(folder).records().values():
        assert (record.nfe, record.nfe_backward, record.decodes, record.reward_calls) == (24 + 8, 8, 6 + 4 + 1, 6 + 4)
    assert metrics["scores"]["aesthetic"]["value"] > metrics["scores"]["aesthetic"]["base"] + 0.2
    trace = [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]
    assert {event["event"] for event in trace} == {"select", "guide"}


def test_what_a_method_keeps_as_extra_images_is_stored_and_judged(
    there: Made, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two pictures of a referee are the same two whichever is the run's, and so are their scores."""
    last, of_last = run("reward=aesthetic", method="blip_inversion")
    shown = capsys.readouterr().out
    best, of_best = run("reward=aesthetic", "method.keep=best", method="blip_inversion")
    assert last != best
    for folder, other, name in ((last, best, "best"), (best, last, "last")):
        kept = {path.name: path.read_bytes() for path in (folder / "images" / name).iterdir()}
        assert kept == {path.name: path.read_bytes() for path in (other / "images").glob("*.png") if path.name != "grid.png"}
    assert pixels(last).keys() == pixels(best).keys()
    assert any((pixels(last)[name] != pixels(best)[name]).any() for name in pixels(last))
    for metrics, name, others in ((of_last, "best", of_best), (of_best, "last", of_last)):
        assert metrics["extra_images"][name]["samples"] == 4
        for score, entry in metrics["extra_images"][name]["scores"].items():
            assert entry == {key: pytest.approx(others["scores"][score][key], abs=1e-5) for key in entry}, score
    assert "the best of 4, in images/best: aesthetic" in " ".join(shown.split())
    with Image.open(last / "images" / "grid.png") as three, Image.open(there.folder / "images" / "grid.png") as two:
        assert three.height > two.height
    again = rejudging.judge_again(last)["extra_images"]["best"]["scores"]
    assert again["aesthetic"]["value"] == pytest.approx(of_last["extra_images"]["best"]["scores"]["aesthetic"]["value"], abs=1e-5)
    (last / "images" / "best" / next(iter(pixels(last)))).unlink()  # an extra image may be missing
    assert rejudging.judge_again(last)["extra_images"]["best"]["samples"] == 3


@pytest.mark.parametrize("method", QUICK_METHOD)
def test_batches_do_not_change_images(run: Run, method: str) -> None:
    """To float tolerance: two levels of 255 in float32.

    Batches of other sizes are computed by other kernels, which round otherwise on every processor, and a chain of gradients multiplies
    that. Methods with gradients are therefore held in float64 to one level, as a value may lie at the edge of two bytes.
    """
    takes_gradients = method not in ("base", "best_of_n", "code")
    # CoDeX: gradients after the second and the fourth, and a choice after each. The adjoint takes no fewer.
    steps = 5 if method in ("codex", "adjoint_dpm") else 3
    options = ["reference=none", "metrics=none", "dataset.limit=2", f"scheduler.num_steps={steps}"]
    options += ["dtype=float64"] if takes_gradients else []
    one, eight = (pixels(run(f"batch_size={size}", *options, method=method)[0]) for size in (1, 8))
    assert one.keys() == eight.keys() and len(one) == 2
    assert max(np.abs(one[name] - eight[name]).max() for name in one) <= (1 if takes_gradients else 2)


def test_order_does_not_change_images(run: Run, tmp_path: Path) -> None:
    """Same prompts in another order: the same files, to float tolerance, though they meet others in their batches."""
    prompts = [
        "a red circle",
        "a blue star and a green ring",
        "a large orange star above a cyan square",
    ]
    folders = []
    for name, lines in (("a.txt", prompts), ("b.txt", prompts[::-1])):
        (tmp_path / name).write_text("\n".join(lines))
        options = ["dataset=text", "dataset.limit=null", f"dataset.path={tmp_path / name}", "batch_size=2", "scheduler.num_steps=4"]
        folders.append(run(*options, "reference=none", "metrics=none")[0])
    first, second = map(pixels, folders)
    assert len(first) == 3
    assert first.keys() == second.keys()
    assert max(np.abs(first[name] - second[name]).max() for name in first) <= 2


def test_a_picture_that_samples_share_is_encoded_once(
    job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample starts from its own task's reference, as it does alone."""
    names = ["night", "mosaic", "night"]
    tasks = [{"prompt": "a red circle", "reference": f"lab:{name}", "noise_ratio": 0.5} for name in names]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    made = job("dataset=jsonl", f"dataset.path={tmp_path / 'tasks.jsonl'}", "reference=none")
    encoded, encode = [], StableDiffusion.encode
    monkeypatch.setattr(StableDiffusion, "encode", lambda model, x: (encoded.append(len(x)), encode(model, x))[1])
    with torch.no_grad():
        together = sampling.problem(made, made.samples).reference
        assert encoded == [1, 1]
        for latent, sample in zip(together, made.samples, strict=True):
            assert torch.equal(latent, sampling.problem(made, [sample]).reference[0])
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])


def test_an_image_depends_on_its_seed_and_not_on_how_it_was_asked_for(run: Run) -> None:
    few = ["metrics=none", "dataset.limit=2", "scheduler.num_steps=4"]
    both = pixels(run("samples_per_prompt=2", *few, method="base")[0])
    second = pixels(run("seed=1", *few, method="base")[0])
    assert len(both) == 2 * len(second) == 4
    assert all(np.abs(both[name] - second[name]).max() <= 2 for name in second)
    assert len({image.tobytes() for image in both.values()}) == 4


@pytest.mark.parametrize("method", ["code", "blip_inversion"])
def test_an_interrupted_run_goes_on_where_it_was(run: Run, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Stopped in the middle of saving a batch, so that one of its two samples is stored and the other is not."""
    options = ["batch_size=2", "scheduler.num_steps=3"]
    folder, _ = run(*options, method=method)
    whole, measured = lasting(folder), figures(folder)
    shutil.rmtree(folder)
    saves = 0
    save = RunFolder.save

    def failing(self: RunFolder, *arguments: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", failing)
        with pytest.raises(KeyboardInterrupt):
            run(*options, method=method)
    assert len(RunFolder(folder).records()) == 3
    assert not RunFolder(folder).done
    run(*options, method=method)
    assert lasting(folder) == whole
    assert figures(folder) == pytest.approx(measured, abs=1e-5)


def test_judging_again_gives_the_same(there: Made) -> None:
    """From the stored images alone, and with another convention where one is asked for."""
    folder, metrics = there.folder, there.metrics
    again = rejudging.judge_again(folder)
    for name, entry in metrics["scores"].items():
        assert again["scores"][name]["value"] == pytest.approx(entry["value"], abs=1e-5)
    assert again["distances"]["fid"]["value"] == pytest.approx(metrics["distances"]["fid"]["value"], rel=1e-6)
    raw = rejudging.judge_again(folder, ["metrics.scorers.clip_score.convention=t2i_compbench"])
    cosine, hessel = raw["scores"]["clip_score"]["value"], metrics["scores"]["clip_score"]["value"]
    assert cosine != hessel


def test_the_unguided_run_is_scored_as_the_guided_one_is(run: Run) -> None:
    """Its stored scores may be of a reward of the same name with other options: they must not be taken for this one's."""
    options = ["reward=compressibility", "scheduler.num_steps=3", "dataset.limit=2", "metrics.distances={}"]
    _, plain = run(*options)
    _, small = run(*options, "reward.quality=10")
    assert small["scores"]["compressibility"]["base"] > plain["scores"]["compressibility"]["base"] + 0.3  # kB
    _, direct = run(*options, "reward.quality=10", method="base")
    assert direct["scores"]["compressibility"]["value"] == pytest.approx(small["scores"]["compressibility"]["base"], abs=1e-9)


def test_a_finished_run_is_judged_anew_by_other_metrics(there: Made, run: Run) -> None:
    before = there.metrics
    folder, after = run("metrics.scorers.clip_score.convention=t2i_compbench")
    assert folder == there.folder
    hessel, cosine = (metrics["scores"]["clip_score"]["value"] for metrics in (before, after))
    assert hessel == pytest.approx(2.5 * cosine, rel=0.2)  # but for the prefix
    assert hessel != cosine


def test_a_folder_may_be_the_reference(there: Made, run: Run) -> None:
    base, _ = run(method="base")
    assert base.parent == there.folder.parent
    against_base = there.metrics
    _, metrics = run(f"reference={base / 'images'}")  # sampled before, judged anew
    assert metrics["reference_samples"] == 4
    assert "base" not in metrics["scores"]["aesthetic"]  # plain images have no prompts to score them by
    assert metrics["distances"] == against_base["distances"]
    _, metrics = run(f"reference={base}")
    assert metrics["scores"] == against_base["scores"]
    _, metrics = run("reference=none")
    assert "distances" not in metrics


def test_distances_may_be_to_unguided_images_of_other_seeds(there: Made, run: Run) -> None:
    options = ["samples_per_prompt=2", "dataset.limit=2"]
    folder, metrics = run(*options, "reference_seed=2")
    other, _ = run(*options, "seed=2", method="base")
    _, expected = run(*options, f"reference={other}")
    assert metrics["distances"] == expected["distances"]
    assert metrics["compared"] == [4, 4]
    entry = metrics["distances"]["fid_per_prompt"]
    assert entry["prompts"] == 2
    assert entry["low"] <= entry["value"] <= entry["high"]
    _, paired = run(*options)
    assert metrics["scores"] == paired["scores"]  # whose wins stay against the same seeds
    assert metrics["distances"] != paired["distances"]
    _, unguided = run(*options, "reference_seed=2", method="base")
    assert unguided["distances"].keys() == metrics["distances"].keys()
    again = judge_again(folder)
    assert {name: entry["value"] for name, entry in again["distances"].items()} == {
        name: pytest.approx(entry["value"], abs=1e-6) for name, entry in metrics["distances"].items()
    }
    assert judge_again(folder, ["reference_seed=null"])["distances"].keys() == paired["distances"].keys()
    with pytest.raises(UsageError, match="is not in the same folder; reference_seed=null judges without"):
        judge_again(folder, ["reference_seed=7"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["reference_seed=1", "samples_per_prompt=2"], "shares seeds with the run, which has 0 to 1; 2 is the next"),
        (["reference_seed=-1"], "must be at least 0"),
        (["reference_seed=a"], "expected a whole number"),
        (["reference_seed=9", "reference=outputs"], "reference=outputs is another; leave out one: reference_seed=null"),
        (
            ["reference_seed=9", "+metrics.distances.rmse={_target_: guidedgen.metrics.paired.Rmse}"],
            "metrics.distances.rmse compares pictures of equal seeds; ~metrics.distances.rmse does without",
        ),
    ],
)
def test_other_seeds_that_cannot_be_measured_against_are_refused(job: Callable[..., Job], options: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=re.escape(why)):
        job(*options)


def test_prompts_of_any_kind_stay_inside_the_run_folder(run: Run, tmp_path: Path) -> None:
    prompts = ["../../escape", "a/b\\c", "quotes \" and ' and `", "emoji 🎈🎉", "${oc.env:HOME}", "x" * 30]
    (tmp_path / "odd.txt").write_text("\n".join(prompts))
    few = ["metrics=none", "reference=none", "scheduler.num_steps=3"]
    folder, _ = run("dataset=text", "dataset.limit=null", f"dataset.path={tmp_path / 'odd.txt'}", *few)
    records = RunFolder(folder).records().values()
    assert sorted(record.prompt for record in records) == sorted(prompts)
    assert len(pixels(folder)) == len(prompts)
    assert {path.name for path in tmp_path.iterdir()} == {"odd.txt", "default"}


def test_any_stable_diffusion_folder_runs(plain: Made, run: Run, tmp_path: Path) -> None:
    """The real loading path, on a copy of the bundled model elsewhere, under another name."""
    shutil.copytree(WEIGHTS / "generator", tmp_path / "elsewhere")
    copied, _ = run(f"model.path={tmp_path / 'elsewhere'}", "model.name=copy", "metrics=none", "reference=none")
    assert "-copy-" in copied.name
    ours, theirs = pixels(plain.folder), pixels(copied)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


# As processes


Start = Callable[..., processes.Started]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python run.py` in a folder; whatever is left running is killed."""
    started: list[processes.Started] = []

    def go(folder: Path, *overrides: str) -> processes.Started:
        options = [f"outputs={folder}", *QUICK, *QUICK_METHOD["code"], "scheduler.num_steps=3", "batch_size=1"]
        started.append(processes.Started("run.py", *options, *overrides, cwd=folder))
        return started[-1]

    yield go
    for process in started:
        process.kill()


def the_run(folder: Path) -> Path | None:
    return next((folder / "default").glob("code-*"), None) if (folder / "default").exists() else None


def test_kills_of_the_command_leave_the_same_files(start: Start, tmp_path: Path) -> None:
    """SIGKILL 5 times, each when a random number of files more is there; then the same command once more. tests/faults kills more."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    done = start(whole)
    errors = done.communicate(timeout=300)[1]
    assert done.returncode == 0, errors
    expected, measured = lasting(the_run(whole)), figures(the_run(whole))

    def made(folder: Path) -> int:
        return sum(1 for _ in folder.rglob("*"))

    rng, kills, total = random.Random(0), 0, made(whole)
    while kills < 5:
        process, wanted = start(broken), rng.randint(made(broken), total)
        while process.poll() is None and made(broken) < wanted:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
        folder = the_run(broken)
        if folder is not None and RunFolder(folder).done:
            assert lasting(folder) == expected
            assert figures(folder) == pytest.approx(measured, abs=1e-5)
            shutil.rmtree(broken / "default")
    last = start(broken)
    assert last.communicate(timeout=300) and last.returncode == 0
    assert lasting(the_run(broken)) == expected
    assert figures(the_run(broken)) == pytest.approx(measured, abs=1e-5)
    assert not list(broken.rglob("*.partial"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_its_code(start: Start, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path, "dataset.limit=300", "reference=none")
    deadline = time.monotonic() + 120
    while not ((folder := the_run(tmp_path)) and (folder / "records.jsonl").exists()):  # it has saved something
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.strip().splitlines()[-1].endswith("the same command goes on from here")
    assert RunFolder(folder).records()


def test_a_sweep_runs_every_combination(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "seed=0,1", "metrics=none", "reference=none", "dataset.limit=1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    runs = list((tmp_path / "default").glob("code-*"))
    assert len(runs) == 2
    assert all(RunFolder(run).done for run in runs)
    assert {record.seed for run in runs for record in RunFolder(run).records().values()} == {0, 1}
    assert [path.name for path in tmp_path.iterdir()] == ["default"]  # Hydra writes no log
    assert {path.name for path in (tmp_path / "default").iterdir() if not path.is_dir()} == {"multirun.yaml"}


PER_CLASS = (
    "metrics.per_class={_target_: guidedgen.metrics.classes.PerClass, features: '${zoo.inception}', "
    "pictures: {_target_: guidedgen.lab.classes.RenderedClasses, count: 8}}"
)


def test_distances_to_each_class_are_those_of_its_pictures(run: Run) -> None:
    folder, metrics = run("samples_per_prompt=2", "dataset.limit=2", "scheduler.num_steps=3", PER_CLASS, method="best_of_n")
    (base,) = (other for other in folder.parent.iterdir() if other.name.startswith("base"))
    features, tasks = LabInception(), {record.task: record.prompt for record in RunFolder(folder).records().values()}

    def distance(run: Path, task: str) -> float:
        records = [record for record in RunFolder(run).records().values() if record.task == task]
        own = torch.cat([images.read(run / record.image) for record in records])
        real = next(RenderedClasses(count=8)(Task(id="", prompt=tasks[task])))
        return frechet_distance(*(features(some).detach().double().numpy() for some in (own, real)))

    found = metrics["per_class"]
    ours, theirs = ({task: distance(run, task) for task in tasks} for run in (folder, base))
    assert found["per_class"] == pytest.approx({task: 100 * (ours[task] / theirs[task] - 1) for task in tasks}, rel=1e-3)
    assert found["fid"] == pytest.approx(sum(ours.values()) / 2, rel=1e-5) != pytest.approx(found["base"], rel=1e-3)
    assert found["base"] == pytest.approx(sum(theirs.values()) / 2, rel=1e-5)
    assert found["classes"] == 2 and not found["shares_guide"]


def test_a_feature_network_sees_each_picture_once(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fid, Kid and the distances to classes are of one network's features."""
    seen: list[int] = []
    forward = LabInception.__call__

    def counted(self: LabInception, pictures: torch.Tensor) -> torch.Tensor:
        seen.append(len(pictures))
        return forward(self, pictures)

    monkeypatch.setattr(LabInception, "__call__", counted)
    metrics = experiment.run(job("samples_per_prompt=2", "dataset.limit=2", "scheduler.num_steps=3", PER_CLASS, method="best_of_n"))
    assert {"fid", "kid"} < metrics["distances"].keys() and metrics["per_class"]["classes"] == 2
    assert sum(seen) == 4 + 4 + 2 * 8  # guided, unguided, and real ones of two classes


@pytest.mark.parametrize("override", ["samples_per_prompt=1", "reference=none"])
def test_distances_to_classes_need_a_base_and_two_pictures(job: Callable[..., Job], override: str) -> None:
    with pytest.raises(UsageError, match=f"^{override}: metrics.per_class"):
        job("samples_per_prompt=2", PER_CLASS, override)
