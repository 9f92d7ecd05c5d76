"""Runs that first learn something their samples share: what they leave, that they resume, and that other runs can use it."""

import functools
import io
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from guidedgen.basics import images
from guidedgen.basics.errors import Stopped, UsageError
from guidedgen.lab.networks import WEIGHTS
from guidedgen.methods.adjoint_tuning import AdjointTuning
from guidedgen.models import tuning
from guidedgen.runs import composition, experiment, learning, preparation
from guidedgen.runs.job import Job

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")

TUNING = [
    "method=adjoint_tuning", "scheduler.num_steps=3", "scheduler.offset=1", "dataset.limit=2", "tracker=none", "device=cpu",
    "method.num_updates=4", "method.samples_per_update=1", "method.noises_per_prompt=2", "method.prompts.limit=1", "method.save_every=1",
    "method.lr=0.05", "method.rank=1",
]  # fmt: skip
Job = Callable[..., Job]


def prepared(folder: Path, *overrides: str, outputs: str = "a") -> Job:
    return preparation.prepare(composition.composed([f"outputs={folder / outputs}", *overrides]))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return functools.partial(prepared, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that nothing has interrupted. It is not to be changed."""
    made = prepared(tmp_path_factory.mktemp("whole"), *TUNING, "metrics=none")
    experiment.run(made)
    return made


def pictures(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").glob("*.png") if path.name != "grid.png"}


def learning_of(folder: Path) -> Mapping[str, Any]:
    return json.loads((folder / "learned" / "learning.json").read_text())


@pytest.mark.parametrize(
    ("what", "file"),
    [
        ("adapter", "pytorch_lora_weights.safetensors"),
        ("token", "learned_embeds.safetensors"),
        ("attention", "unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_run_keeps_what_it_has_learned_and_others_can_use_it(
    job: Job, what: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = job(*TUNING, f"method.what={what}", "metrics=none")
    metrics = experiment.run(made)
    folder = made.folder.path
    assert (folder / "learned" / file).exists() and not (folder / "learned" / "checkpoint.pt").exists()
    learning = learning_of(folder)
    assert [entry["update"] for entry in learning["curve"]] == [0, 1, 2, 3]
    # 3 steps, 4 updates of one picture: 4 S k m rows forward, 2 S k m backward.
    assert (learning["nfe"], learning["nfe_backward"], learning["decodes"], learning["reward_calls"]) == (48, 24, 4, 4)
    assert metrics["cost"]["nfe"] == 6  # what was learned is not the samples' cost
    assert "learned first, on 2 pictures: 48 network rows, 24 of them backward" in " ".join(capsys.readouterr().out.split())
    assert metrics["learning"] == {name: learning[name] for name in learning if name != "curve"}

    base = pictures(made.base.folder.path)
    assert pictures(folder).keys() == base.keys() and all(pictures(folder)[name] != base[name] for name in base)

    plain = ["method=base", "scheduler=ddim", "scheduler.num_steps=3", "dataset.limit=2", "tracker=none", "device=cpu"]
    again = job(*plain, "metrics=none", f"model.learned={folder / 'learned'}", outputs="b")
    experiment.run(again)
    assert pictures(again.folder.path) == pictures(folder)


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_run_learns_on_where_it_was(whole: Job, job: Job, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    made = job(*TUNING, "metrics=none")
    for unguided in (whole.base, whole.originals):  # which are the same
        assert unguided is not None
        shutil.copytree(unguided.folder.path, made.folder.path.parent / unguided.folder.path.name)
    learn, updates = AdjointTuning.learn, []

    def stopped(self, make_problems, count, free, saved, save, observe) -> None:
        def interrupt(state) -> None:
            save(state)
            if state["done"] == stop:
                raise Stopped("SIGTERM")

        learn(self, make_problems, count, free, saved, interrupt, observe)

    with monkeypatch.context() as patch:
        patch.setattr(AdjointTuning, "learn", stopped)
        with pytest.raises(Stopped):
            experiment.run(made)

    def watched(self, make_problems, count, free, saved, save, observe) -> None:
        learn(
            self, lambda indices, find: updates.append(indices) or make_problems(indices, find), count, free, saved, save, observe
        )

    with monkeypatch.context() as patch:
        patch.setattr(AdjointTuning, "learn", watched)
        second = job(*TUNING, "metrics=none")
        experiment.run(second)
    assert len(updates) == 4 - stop
    one, two = (load_file(made.folder.path / "learned" / "pytorch_lora_weights.safetensors") for made in (whole, second))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert pictures(second.folder.path) == pictures(whole.folder.path)
    first, again = learning_of(whole.folder.path), learning_of(second.folder.path)
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_what_is_learned_is_not_learned_twice(whole: Job, job: Job, monkeypatch: pytest.MonkeyPatch, tried: Any) -> None:
    """A run stopped among its samples takes the folder's parameters, and its samples come out the same."""
    made = job(*TUNING, "metrics=none")
    shutil.copytree(whole.folder.path.parent, made.folder.path.parent, dirs_exist_ok=True)
    assert made.folder.done
    before = pictures(made.folder.path)
    for file in ("DONE", "records.jsonl"):
        (made.folder.path / file).unlink()
    monkeypatch.setattr(AdjointTuning, "learn", lambda *_: pytest.fail("it learns again"))
    experiment.run(job(*TUNING, "metrics=none"))
    assert pictures(made.folder.path) == before and made.folder.done

    for file in ("DONE", "records.jsonl", "learned/pytorch_lora_weights.safetensors"):
        (made.folder.path / file).unlink()
    with pytest.raises(UsageError, match="learned: has no pytorch_lora_weights.safetensors.*run.fresh=true"):
        experiment.run(job(*TUNING, "metrics=none"))  # it is not sampled untuned
    assert not (made.folder.path / "DONE").exists() and not made.folder.records()
    tried("refused")


SAVED = {"state": {"done": 1, "free": [], "optimizer": {}}, "curve": [], "seconds": 1.0}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: b"hello",
        lambda content: pickle.dumps(print, 2),
        lambda content: stored([]),
        lambda content: stored({"curve": []}),
        lambda content: stored(SAVED),
    ],
    ids=["half", "end cut off", "empty", "text", "code", "a list", "a part", "another run's"],
)
def test_a_damaged_checkpoint_is_reported_and_learning_starts_again(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tried: Any, spoil: Callable[[bytes], bytes]
) -> None:
    updates = []

    def watched(self, make_problems, count, free, saved, save, observe) -> None:
        updates.append(dict(saved))
        state = {"done": 1, "free": [value.detach() for value in free], "optimizer": {"param_groups": []}}
        save(state)

    monkeypatch.setattr(AdjointTuning, "learn", watched)
    made = job(*TUNING)
    folder = made.folder.path / "learned"
    folder.mkdir(parents=True)
    with monkeypatch.context() as patch:  # stopped right after its first checkpoint
        patch.setattr(tuning.Tunable, "freeze", lambda _: (_ for _ in ()).throw(Stopped("SIGTERM")))
        with pytest.raises(Stopped):
            learning.learn(made)
    checkpoint = folder / "checkpoint.pt"
    checkpoint.write_bytes(spoil(checkpoint.read_bytes()))
    capsys.readouterr()
    learning.learn(job(*TUNING))
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(checkpoint) in line and line.endswith("learning starts again")
    assert updates == [{}, {}] and not checkpoint.exists() and (folder / "pytorch_lora_weights.safetensors").exists()
    tried("used")


def stored(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_without_updates_it_is_the_unguided_run(job: Job) -> None:
    made = job(*TUNING, "method.num_updates=0", "metrics=none")
    experiment.run(made)
    assert pictures(made.folder.path) == pictures(made.base.folder.path)


def test_the_originals_are_of_the_target_prompts_at_the_lessons_noises(job: Job) -> None:
    """Under the prompt they were drawn of, the pictures learned on are the originals: the loss begins at 0."""
    few = [*TUNING, "metrics=none", "dataset.limit=1", "reward=pixels", "method.num_updates=1", "method.lr=0"]
    same = job(*few)
    experiment.run(same)
    assert learning_of(same.folder.path)["curve"][0]["reward"] == pytest.approx(0, abs=1e-5)  # but for 8 bits a pixel
    other = job(*few, "method.target='{prompt} and a green star'")
    experiment.run(other)
    assert learning_of(other.folder.path)["curve"][0]["reward"] < -1e-3
    prompts = {record.prompt for record in other.originals.folder.records().values()}
    assert prompts == {f"{lesson.task.prompt} and a green star" for lesson in other.lessons}
    assert {record.name for record in other.originals.folder.records().values()} == {lesson.name for lesson in other.lessons}


def test_an_effect_may_be_edited_by_hand(job: Job, tmp_path: Path) -> None:
    """Originals that are copied unchanged are the originals; an edited one is another run's."""
    few = [*TUNING, "metrics=none", "dataset.limit=1", "reward=pixels", "method.lr=0", "method.num_updates=1"]
    plain = job(*few)
    experiment.run(plain)
    folder = tmp_path / "edited"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"reward\.edit=.*2 of 2 originals are not in it"):
        job(*few, f"reward.edit={folder}")
    for record in plain.originals.folder.records().values():
        (folder / f"{record.name}.png").write_bytes((plain.originals.folder.path / record.image).read_bytes())
    same = job(*few, f"reward.edit={folder}")
    experiment.run(same)
    losses = [learning_of(each.folder.path)["curve"][0]["reward"] for each in (plain, same)]
    assert losses[0] == losses[1]
    for file in folder.iterdir():
        file.write_bytes(images.png(torch.zeros(3, 64, 64)))
    other = job(*few, f"reward.edit={folder}")
    assert other.folder.path != same.folder.path
    experiment.run(other)
    assert learning_of(other.folder.path)["curve"][0]["reward"] < losses[0] - 1e-2


def test_a_reward_that_compares_with_the_unguided_picture_guides_a_sample_by_its_own(job: Job) -> None:
    """Gradient ascent on the likeness to the unguided picture, from where it is best already."""
    made = job(
        "method=adjoint_dpm", "scheduler=ddim", "scheduler.num_steps=5", "dataset.limit=2", "tracker=none", "device=cpu",
        "reward=pixels", "method.num_updates=1", "method.lr=0.2", "method.keep=last", "metrics=none",
    )  # fmt: skip
    metrics = experiment.run(made)
    trace = [json.loads(line) for line in (made.folder.path / "trace.jsonl").read_text().splitlines()]
    assert all(entry["rewards"] == pytest.approx(0, abs=1e-5) for entry in trace)
    assert metrics["scores"]["pixels"]["value"] < -1e-3  # the last picture, a step away
    assert metrics["scores"]["pixels"]["base"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=pixels", "reference=none", "method=adjoint_dpm"], "reference=base"),
        (["method=adjoint_tuning", "method.what=weights", "dtype=bfloat16"], "dtype=bfloat16"),
        (["method=adjoint_tuning", "method.prompts.limit=0"], "method.prompts.limit"),
        (["method=adjoint_tuning", "method.target=same"], "template"),
        (["method=adjoint_tuning", "method.num_vectors=40", "method.what=token"], "prompt of"),
    ],
)
def test_what_cannot_be_learned_is_refused(job: Job, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        job("scheduler=ddim", "tracker=none", "device=cpu", *overrides)
