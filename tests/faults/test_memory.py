"""A device whose memory is too small for a batch: it is taken in smaller ones, and the same images come out."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from guidedgen.basics import images
from guidedgen.methods.adjoint_tuning import AdjointTuning
from guidedgen.models.latent import PromptedDenoiser
from guidedgen.runs import experiment, judging, sampling
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFailed, RunFolder

Lasting = Callable[[Path], dict[str, bytes]]
Lifted = Callable[[int], list[int]]


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Lifted:
    """Has calls of more rows than that run out of memory, as CUDA does; yields the sizes of all calls."""
    network = PromptedDenoiser._network

    def limit(rows: int) -> list[int]:
        calls: list[int] = []

        def short(self: PromptedDenoiser, x_t: torch.Tensor, *rest: Any) -> torch.Tensor:
            calls.append(len(x_t))
            if len(x_t) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return network(self, x_t, *rest)

        monkeypatch.setattr(PromptedDenoiser, "_network", short)
        return calls

    return limit


OPTIONS = ["method=code", "method.num_particles=2", "method.block_size=1", "dataset.limit=5"]


def test_the_same_images_come_out_of_smaller_batches(
    job: Callable[..., Job], lasting: Lasting, room_for: Lifted, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rows of guidance per latent: batches of 4 need 8 rows, and memory is enough for 4. Byte for byte what batch_size=2 makes."""
    small, large = job(*OPTIONS, "batch_size=2", "study=small"), job(*OPTIONS, "study=large", "batch_size=4")
    experiment.run(small)
    experiment.run(large)
    capsys.readouterr()
    made = job(*OPTIONS, "batch_size=4")
    networks, calls = made.model.__dict__, room_for(4)
    experiment.run(made)
    assert calls[:2] == [8, 8] and set(calls[2:]) == {2, 4}  # that is enough: the second batch is not tried as a whole
    assert capsys.readouterr().err.splitlines() == ["guidedgen: batch_size=4 needs too much memory; going on with less"]
    assert lasting(made.folder.path) == lasting(small.folder.path)
    for one, other in zip(*(RunFolder(run.folder.path).records().values() for run in (made, large)), strict=True):
        assert (one.name, one.nfe, one.decodes, one.reward_calls) == (other.name, other.nfe, other.decodes, other.reward_calls)
        ours, theirs = (images.read(run.folder.path / one.image) for run in (made, large))
        assert (ours - theirs).abs().max() <= 2 / 255  # as for batch sizes that are asked for
    assert made.model.batch_size == 4 and "unet" in networks


def test_once_short_of_memory_makes_the_same_bytes(
    job: Callable[..., Job], lasting: Lasting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when another process on the device needs its memory for a moment."""
    whole, made = job(*OPTIONS, "study=whole"), job(*OPTIONS)
    experiment.run(whole)
    sample, short = sampling._sample, [True]

    def once(*arguments: Any) -> Any:
        if short.pop() if short else False:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sample(*arguments)

    monkeypatch.setattr(sampling, "_sample", once)
    experiment.run(made)
    assert lasting(made.folder.path) == lasting(whole.folder.path)
    assert not capsys.readouterr().err


def test_no_room_for_one_row_ends_the_run_in_one_line(job: Callable[..., Job], room_for: Lifted) -> None:
    made = job(*OPTIONS, "batch_size=4")
    calls = room_for(1)
    with pytest.raises(
        RunFailed, match="^guidedgen: device=cpu: its memory is too small for one row; try another method/gradients"
    ):
        experiment.run(made)
    assert calls == [8, 8, 4, 2]
    assert made.folder.records() == made.folder.failures() == {}  # it is not the samples' fault


def test_crops_are_rows_too(job: Callable[..., Job], lasting: Lasting, capsys: pytest.CaptureFixture[str]) -> None:
    """Of six crops a picture no more than batch_size are scored at once, and no more than memory is enough for."""
    options = [
        "method=doodl", "method.process=ddim", "method.num_updates=1", "method.num_crops=6", "scheduler=ddim", "dataset.limit=2"
    ]  # fmt: skip
    small, made = job(*options, "batch_size=2", "study=small"), job(*options, "batch_size=4")
    experiment.run(small)
    capsys.readouterr()
    reward, sizes = made.reward, []

    def short(pictures: torch.Tensor, tasks: Any) -> torch.Tensor:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return reward(pictures, tasks)

    experiment.run(dataclasses.replace(made, reward=short))
    assert sizes[:2] == [4, 4] and max(sizes[2:]) == 2
    assert capsys.readouterr().err.splitlines() == ["guidedgen: batch_size=4 needs too much memory; going on with less"]
    assert lasting(made.folder.path) == lasting(small.folder.path)


TUNING = [
    "method=adjoint_tuning", "scheduler.offset=1", "method.prompts.limit=1", "method.noises_per_prompt=4", "method.samples_per_update=4",
    "method.num_updates=2", "method.lr=0.05", "method.rank=1", "dataset.limit=1", "batch_size=4",
]  # fmt: skip


def same_tensors(ours: Path, theirs: Path) -> bool:
    """To the bit; in which order a file has them is up to its writer."""
    found, wanted = load_file(ours), load_file(theirs)
    return found.keys() == wanted.keys() and all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize("what", ["adapter", "token"])
def test_learning_takes_smaller_batches_too(
    job: Callable[..., Job], room_for: Lifted, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """To the byte what batch_size=2 learns, and counted alike: what was tried in vain is no cost."""
    tuning = [*TUNING, f"method.what={what}"]
    small = job(*tuning, "batch_size=2", "study=small")
    experiment.run(small)
    capsys.readouterr()
    made, calls = job(*tuning), room_for(4)
    experiment.run(made)
    # Twice for the originals and twice to learn. That is enough: the second update is not tried as a whole.
    assert [rows for rows in calls if rows > 4] == [8] * 4
    message = "guidedgen: batch_size=4 needs too much memory{}; going on with less"
    assert capsys.readouterr().err.splitlines() == [message.format(""), message.format(" to learn")]
    learned = [sorted((run.folder.path / "learned").glob("*.safetensors")) for run in (made, small)]
    assert learned[0] and all(map(same_tensors, *learned))
    ours, theirs = ({**run.folder.read_json("learned/learning.json"), "seconds": 0} for run in (made, small))
    assert ours == theirs and ours["nfe"] == 2 * 2 * 2 * 4 * 2  # twice 2 steps of 4 pictures, guided, 2 updates


def test_once_short_of_memory_the_same_bytes_are_learned(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, made = job(*TUNING, "study=whole"), job(*TUNING)
    experiment.run(whole)
    gradient, short = AdjointTuning._gradient, [True]

    def once(*arguments: Any, **options: Any) -> Any:
        if short.pop() if short else False:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return gradient(*arguments, **options)

    monkeypatch.setattr(AdjointTuning, "_gradient", once)
    capsys.readouterr()
    experiment.run(made)
    assert same_tensors(*(run.folder.path / "learned" / "pytorch_lora_weights.safetensors" for run in (made, whole)))
    assert not capsys.readouterr().err


def test_no_room_to_learn_on_one_lesson_ends_the_run_in_one_line(job: Callable[..., Job], room_for: Lifted) -> None:
    made, calls = job(*TUNING), room_for(1)
    with pytest.raises(RunFailed, match="^guidedgen: device=cpu: its memory is too small for one row"):
        experiment.run(made)
    assert calls == [8, 8, 4, 2]


def test_judging_takes_smaller_batches_too(job: Callable[..., Job], capsys: pytest.CaptureFixture[str]) -> None:
    made = job("reward=compressibility", "batch_size=4")
    expected = experiment.run(made)["scores"]
    capsys.readouterr()
    scorer, sizes = made.scorers["compressibility"], []

    def short(pictures: torch.Tensor, tasks: Any) -> torch.Tensor:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return scorer(pictures, tasks)

    assert judging.judge(dataclasses.replace(made, scorers={"compressibility": short}))["scores"] == expected
    assert sizes == [4, 2, 2] and capsys.readouterr().err.count("needs too much memory to judge") == 1
