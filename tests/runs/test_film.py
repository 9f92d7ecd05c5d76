"""Strips of how pictures came about: what is on them, and that they change nothing else."""

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

import guidedgen
from guidedgen.basics.errors import UsageError
from guidedgen.runs import composition, experiment, preparation
from guidedgen.runs.job import Job
from guidedgen.studies import page

GIVEN = ["metrics=none", "tracker=none", "device=cpu", "dataset=prompts", "dataset.prompts=[a red circle,a blue ring]"]


def run(outputs: Path, *overrides: str) -> Job:
    job = preparation.prepare(composition.composed([*GIVEN, f"outputs={outputs}", *overrides]))
    experiment.run(job)
    return job


def strips(job: Job) -> list[Image.Image]:
    return [Image.open(job.folder.path / "sheets" / "film" / f"{sample.name}.png") for sample in job.samples]


def frames(strip: Image.Image) -> list[Image.Image]:
    side = strip.height
    return [strip.crop((i * side, 0, (i + 1) * side, side)) for i in range(strip.width // side)]


def apart(a: Image.Image, b: Image.Image) -> int:
    """The largest difference of two pictures."""
    return max(high for _, high in ImageChops.difference(a.convert("RGB"), b.convert("RGB")).getextrema())


def test_the_last_frame_is_the_picture_and_nothing_else_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain DDIM that ends without noise: the picture is the last clean estimate."""
    given = ("method=base", "scheduler=ddim", "scheduler.end=clean", "scheduler.num_steps=6")
    plain, kept = run(tmp_path / "a", *given), run(tmp_path / "b", *given, "run.trace_images=3")
    assert plain.name == kept.name and not (plain.folder.path / "sheets").exists()
    for sample, strip in zip(kept.samples, strips(kept), strict=True):
        images = [Image.open(job.folder.path / sample.image) for job in (plain, kept)]
        assert images[0].tobytes() == images[1].tobytes()
        first, middle, last = frames(strip)
        assert apart(last, images[1]) <= 1 < apart(middle, last) and apart(first, last) > 30
    costs = [[(record.nfe, record.decodes) for record in job.folder.records().values()] for job in (plain, kept)]
    assert costs[0] == costs[1] == [(12, 1)] * 2
    capsys.readouterr()
    (html, *_) = page.write(kept.folder.path.parent)
    assert ": film</h3>" in html.read_text()
    (gif, *_) = re.findall(r'src="data:image/gif;base64,([^"]+)"', html.read_text())
    moving = Image.open(io.BytesIO(base64.b64decode(gif)))
    assert moving.n_frames == 3 and moving.size == images[0].size
    moving.seek(2)
    picture = Image.open(kept.folder.path / kept.samples[0].image).convert("RGB")
    assert max(ImageStat.Stat(ImageChops.difference(moving.convert("RGB"), picture)).mean) < 8  # of 255: a GIF has 256 colours


@pytest.mark.parametrize("method", ["code", "codex", "mpgd", "freedom", "universal", "classifier_guidance", "best_of_n"])
def test_every_step_method_is_filmed(method: str, tmp_path: Path) -> None:
    job = run(tmp_path, f"method={method}", "reward=aesthetic", "scheduler.num_steps=4", "run.trace_images=4")
    assert [len(frames(strip)) for strip in strips(job)] == [4, 4]
    assert all(apart(frames(strip)[0], frames(strip)[-1]) > 10 for strip in strips(job))


def test_updates_of_the_whole_chain_are_frames(tmp_path: Path) -> None:
    """The first is the unguided picture, the others are those after each update."""
    given = ("method=doodl", "reward=aesthetic", "scheduler.num_steps=4", "method.num_updates=2", "method.num_crops=0",
             "method.keep=last", "run.trace_images=3", "scheduler.end=clean", "method.process=ddim")  # fmt: skip
    job = run(tmp_path, *given)
    assert job.base is not None
    for sample, strip in zip(job.samples, strips(job), strict=True):
        first, middle, last = frames(strip)
        assert apart(first, Image.open(job.base.folder.path / sample.image)) <= 1
        assert apart(last, Image.open(job.folder.path / sample.image)) <= 1 < apart(first, middle)


@pytest.mark.parametrize("value", ["-1", "101", "1.5", "yes", "true"])
def test_wrong_numbers_are_refused(value: str) -> None:
    with pytest.raises(UsageError, match=r"^run\.trace_images=.*: expected a whole number from 0 to 100"):
        preparation.prepare(guidedgen.compose([*GIVEN, f"run.trace_images={value}"]))
