"""What is wrong with one sample is that sample's alone: it is marked as failed, by name and reason, and the others come out."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guidedgen.basics.tasks import Sample, Task
from guidedgen.methods import Method, Needs
from guidedgen.rewards import Reward
from guidedgen.runs import experiment
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFailed

Lasting = Callable[[Path], dict[str, bytes]]
NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoiled:
    """A reward that of some prompts is, or has a gradient that is, not finite; or that raises for them."""

    inner: Reward
    prompts: Sequence[str]
    value: float | None = None
    gradient: float | None = None
    raises: bool = False
    differentiable: bool = True

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        bad = torch.tensor([task.prompt in self.prompts for task in tasks])
        if self.raises and bad.any():
            raise ZeroDivisionError("no such thing\nin this picture")
        if self.gradient is not None and images.requires_grad:
            images = images * 1
            images.register_hook(lambda gradient: torch.where(bad[:, None, None, None], self.gradient, gradient))
        rewards = self.inner(images, tasks)
        return rewards if self.value is None else torch.where(bad, self.value, rewards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpoiledMethod:
    """A method whose result is not finite for the first of its samples."""

    inner: Method
    value: float

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def __call__(self, problem: Any, observe: Any) -> Tensor:
        x_0 = self.inner(problem, observe).clone()
        x_0[0, 0, 0, 0] = self.value
        return x_0


def spoiled(job: Job, bad: Sequence[Sample], **how: Any) -> Job:
    reward = Spoiled(inner=job.reward, prompts=[sample.task.prompt for sample in bad], **how)
    return dataclasses.replace(job, reward=reward, scorers={**job.scorers, job.reward_name: reward})


GUIDED = {
    "code": ["method=code", "method.num_particles=2", "method.block_size=1"],
    "mpgd": ["method=mpgd", "method.strength=0.03"],
}


@pytest.mark.parametrize(
    ("method", "how", "reason"),
    [
        ("code", {"value": NAN}, "no reward was finite while it was guided"),
        ("mpgd", {"gradient": INF}, "no gradient was finite while it was guided"),
        ("mpgd", {"raises": True}, "ZeroDivisionError: no such thing in this picture (test_samples.py:"),
    ],
)
def test_a_sample_that_cannot_be_guided_fails_and_the_others_do_not_notice(
    job: Callable[..., Job],
    lasting: Lasting,
    capsys: pytest.CaptureFixture[str],
    method: str,
    how: dict[str, Any],
    reason: str,
) -> None:
    clean = job(*GUIDED[method], "study=clean", "batch_size=1" if how.get("raises") else "batch_size=8")
    experiment.run(clean)
    whole, name = lasting(clean.folder.path), clean.samples[1].name

    made = spoiled(job(*GUIDED[method]), clean.samples[1:2], **how)
    metrics = experiment.run(made)
    printed = capsys.readouterr()
    assert f"{name} ('{made.samples[1].task.prompt}') failed: {reason}" in printed.err
    assert "1 failed and are left out" in printed.out and name in printed.out
    assert ("Traceback" in printed.err) == how.get("raises", False)
    assert (metrics["failed"], metrics["samples"]) == (1, 3) and metrics["failures"][name].startswith(reason)
    assert json.loads((made.folder.path / "metrics.json").read_text())["failures"] == metrics["failures"]
    assert (made.folder.path / "DONE").exists()
    ours = lasting(made.folder.path)
    kept = {key for key in whole if name not in key and key != "grid.png"}
    assert {key: ours[key] for key in kept} == {key: whole[key] for key in kept}
    assert ours.keys() - kept == {f"records {name}", "grid.png"}

    assert not made.folder.done  # what has failed is tried again: here with a reward that was repaired
    experiment.run(job(*GUIDED[method]))
    if not how.get("raises"):  # where the others of its batch were taken one by one
        assert lasting(made.folder.path) == whole
    assert made.folder.done and made.folder.failures() == {}


@pytest.mark.parametrize("value", [NAN, INF])
def test_latents_that_are_not_finite_make_no_picture(job: Callable[..., Job], value: float, lasting: Lasting) -> None:
    clean = job("study=clean", "dataset.limit=3")
    experiment.run(clean)
    made = job("dataset.limit=3")
    metrics = experiment.run(dataclasses.replace(made, method=SpoiledMethod(inner=made.method, value=value)))
    first = made.samples[0].name
    assert metrics["failures"] == {first: "its latents are not finite"}
    assert not (made.folder.path / "images" / f"{first}.png").exists()
    ours, whole = lasting(made.folder.path), lasting(clean.folder.path)
    assert all(ours[sample.image[7:]] == whole[sample.image[7:]] for sample in made.samples[1:])


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_picture_that_is_not_finite_is_no_picture(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, value: float, lasting: Lasting, tried: Callable[..., None]
) -> None:
    """An autoencoder that overflows at one pixel of the first sample, of finite latents."""
    clean = job("study=clean", "dataset.limit=3")
    experiment.run(clean)
    made = job("dataset.limit=3")
    decode = made.model.vae.decode

    def overflowing(latents: Tensor) -> Any:
        decoded = decode(latents)
        decoded.sample[0, 1, 2, 3] = value
        return decoded

    monkeypatch.setattr(made.model.vae, "decode", overflowing)
    metrics = experiment.run(made)
    first = made.samples[0].name
    assert metrics["failures"] == {first: "its picture is not finite"}
    assert not (made.folder.path / "images" / f"{first}.png").exists()
    ours, whole = lasting(made.folder.path), lasting(clean.folder.path)
    assert all(ours[sample.image[7:]] == whole[sample.image[7:]] for sample in made.samples[1:])
    tried("refused")


def test_a_reward_that_is_not_finite_now_and_then_fails_nothing(job: Callable[..., Job]) -> None:
    """Methods leave such a particle out; the picture that comes out has a reward."""
    made = job(*GUIDED["code"], "dataset.limit=2")
    calls = 0

    def sometimes(images: Tensor, tasks: Sequence[Task]) -> Tensor:
        nonlocal calls
        calls += 1
        rewards = made.reward(images, tasks)
        return torch.where(torch.arange(len(tasks)) % 2 == 0, NAN, rewards) if calls == 1 else rewards  # the first particles

    assert experiment.run(dataclasses.replace(made, reward=sometimes))["failed"] == 0
    assert calls > 1


def test_samples_of_one_prompt_are_distinguished(job: Callable[..., Job]) -> None:
    """By what listens to the rewards: their tasks are equal."""
    made = job(*GUIDED["code"], "dataset.limit=1", "samples_per_prompt=3")
    inner = made.reward

    def second(images: Tensor, tasks: Sequence[Task]) -> Tensor:
        rewards = inner(images, tasks)
        assert len(rewards) == 6  # two particles of each
        return torch.where(torch.arange(6) // 2 == 1, NAN, rewards)

    experiment.run(dataclasses.replace(made, reward=second))
    assert list(made.folder.failures()) == [made.samples[1].name]


def test_where_all_fail_so_does_the_run(job: Callable[..., Job], capsys: pytest.CaptureFixture[str]) -> None:
    made = job(*GUIDED["code"], "dataset.limit=3")
    with pytest.raises(RunFailed, match=f"^guidedgen: {made.folder.path}: none of 3 samples came out, the last failed as: "):
        experiment.run(spoiled(made, made.samples, raises=True))
    assert capsys.readouterr().err.count("Traceback") == 1
    assert not (made.folder.path / "DONE").exists() and len(made.folder.failures()) == 3


def test_a_run_whose_first_samples_all_fail_is_not_gone_on_with(job: Callable[..., Job]) -> None:
    made = job(*GUIDED["code"], "dataset.limit=30", "batch_size=4")
    with pytest.raises(RunFailed, match="the first 10 samples have all failed"):
        experiment.run(spoiled(made, made.samples, raises=True))
    assert len(made.folder.failures()) == 10


def test_a_failure_of_the_unguided_sample_leaves_its_pair_out(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wins are counted over pairs: here of one prompt, of which two samples fail, each in another run."""
    options = [*GUIDED["code"], "reference=base", "dataset.limit=2", "samples_per_prompt=2"]
    whole = job(*options, "study=clean")
    expected = experiment.run(whole)
    made = job(*options)
    base = dataclasses.replace(made.base, method=SpoiledMethod(inner=made.base.method, value=NAN))  # its first
    bad = made.samples[1]
    reward = made.reward

    def second(images: Tensor, tasks: Sequence[Task]) -> Tensor:
        rewards = reward(images, tasks)
        owners = torch.arange(len(tasks)) // (len(tasks) // 4)
        return torch.where((owners == 1) & (len(tasks) == 8), NAN, rewards)

    metrics = experiment.run(dataclasses.replace(made, base=base, reward=second))
    lost = {made.samples[0].name: "unguided: its latents are not finite", bad.name: "no reward was finite while it was guided"}
    assert metrics["failures"] == lost and metrics["samples"] == metrics["reference_samples"] == 2
    assert metrics["scores"]["aesthetic"]["prompts"] == 1
    assert expected["failed"] == 0 and expected["scores"]["aesthetic"]["prompts"] == 2
