"""The exam's arithmetic, on networks whose answers are known."""

import dataclasses
import types
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from guidedgen.basics.noise import generator as stream
from guidedgen.lab import captions, exam, taste
from guidedgen.lab.captions import WORDS, Description
from guidedgen.lab.card import card
from guidedgen.lab.fitting import Part, Settings
from guidedgen.lab.judge import Verdict
from guidedgen.lab.networks import Reading
from guidedgen.lab.render import render
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, SLOTS, TEXTURES, Scenes, draw_scenes


class _Dimmer:
    """An autoencoder that gives every picture back, darker by 0.01."""

    device = "cpu"

    def encode(self, x: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(latent_dist=types.SimpleNamespace(mean=x))

    def decode(self, z: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(sample=z - 0.02)


def test_psnr_of_a_known_error() -> None:
    figures = exam.examine_vae(_Dimmer(), n=32)  # type: ignore[arg-type]
    assert figures["vae/psnr"] == pytest.approx(40, abs=1e-3)
    assert figures["vae/psnr, pooled"] == pytest.approx(40, abs=1e-3)


class _Oracle(nn.Module):
    """Reads scenes instead of pictures, perfectly but for colours off by `turn` and centres off by (3, 4) px."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self.turn, self.weight = turn, nn.Parameter(torch.zeros(()))

    def forward(self, scenes: Scenes) -> Reading:  # type: ignore[override]
        b, k = len(scenes), len(SHAPES)
        rows, slots = scenes.present.nonzero().unbind(1)
        kinds = scenes.shape[rows, slots]

        def one_hot(values: Tensor, n: int) -> Tensor:
            table = torch.zeros(b, k, n)
            table[rows, kinds] = F.one_hot(values[rows, slots], n).float()
            return table

        shape, centre = torch.full((b, k), -1.0), torch.zeros(b, k, 2)
        shape[rows, kinds], centre[rows, kinds] = 1.0, scenes.centre[rows, slots] + torch.tensor([3.0, 4.0])
        return Reading(
            shape=shape, colour=one_hot((scenes.colour + self.turn) % len(COLOURS), len(COLOURS)),
            texture=one_hot(scenes.texture, len(TEXTURES)), size=one_hot(scenes.size, len(SIZES)), centre=centre,
            count=F.one_hot(scenes.count, SLOTS + 1).float(), background=F.one_hot(scenes.background, len(BACKGROUNDS)).float(),
        )  # fmt: skip


@pytest.mark.parametrize("turn", [0, 1])
def test_a_classifier_that_knows_scores_full_marks(monkeypatch: pytest.MonkeyPatch, turn: int) -> None:
    monkeypatch.setattr(exam, "render", lambda scenes: scenes)
    figures = exam.examine_classifier(_Oracle(turn), n=40)  # type: ignore[arg-type]
    assert figures.pop("classifier/position") == pytest.approx(5, abs=1e-4)
    objects = {f"classifier/{n}": float(turn == 0) for n in ("one object", "two objects", "three objects")}
    assert figures == dict.fromkeys(figures, 1.0) | objects


def _bag(texts: Sequence[str]) -> Tensor:
    counts = torch.zeros(len(texts), len(WORDS))
    for row, text in zip(counts, texts, strict=True):
        for word in text.replace(",", " ,").split():
            row[WORDS.index(word)] += 1
    return F.normalize(counts, dim=-1)


def test_a_bag_of_words_knows_shapes_and_cannot_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP that embeds a picture as the counted words of its caption retrieves it, and cannot see colours traded."""
    monkeypatch.setattr(exam, "render", lambda scenes: scenes)
    monkeypatch.setattr(exam, "_embed_images", lambda clip, scenes: _bag([str(d) for d in captions.describe(scenes)]))
    monkeypatch.setattr(exam, "_embed_texts", lambda clip, tokenizer, texts: _bag(texts))
    figures = exam.examine_clip("guide", None, None, n=256)  # type: ignore[arg-type]
    assert figures["clip-guide/shape"] == 1
    assert figures["clip-guide/retrieval"] > 0.95
    assert figures["clip-guide/swap"] < 0.2  # round-off apart, both captions fit equally well


def test_swapping_colours_changes_the_colours_only() -> None:
    said = captions.parse("a striped red circle above a small blue star on a gray background")
    assert said is not None
    swapped = exam._swap_colours(said)
    assert str(swapped) == "a striped blue circle above a small red star on a gray background"
    assert exam._swap_colours(swapped) == said


def test_retrieval_captions_are_distinct() -> None:
    scenes = exam._distinct(draw_scenes(400, torch.Generator().manual_seed(0), counts=(1.0, 0.0, 0.0)), 200)
    assert len(set(map(str, captions.describe(scenes)))) == len(scenes) == 200


def test_correlations_of_a_known_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "_embed_images", lambda guide, images: images)
    images = render(draw_scenes(3, torch.Generator().manual_seed(0)))
    assert taste.rate(images).std() > 0
    linear = exam.examine_aesthetic(lambda x: 3 - 2 * taste.rate(x), None, n=64)  # type: ignore[arg-type]
    assert linear == pytest.approx({"aesthetic/pearson": -1.0, "aesthetic/spearman": -1.0})
    curved = exam.examine_aesthetic(lambda x: taste.rate(x) ** 9, None, n=64)  # type: ignore[arg-type]
    assert curved["aesthetic/spearman"] == pytest.approx(1)
    assert 0.5 < curved["aesthetic/pearson"] < 0.99


def test_a_clip_that_sees_taste_alone_chooses_right_where_taste_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """One embeds a picture as its rating, the other as the rating's opposite."""
    monkeypatch.setattr(exam.preference, "show", lambda scenes, vae: render(scenes))
    monkeypatch.setattr(exam, "_embed_images", lambda sign, images: sign * taste.rate(images)[:, None])
    monkeypatch.setattr(exam, "_embed_texts", lambda sign, tokenizer, texts: torch.ones(len(texts), 1))
    figures = exam.examine_preference(1, -1, None, None, n=200)  # type: ignore[arg-type]
    assert figures["clip-preference/choice, taste"] == 1
    assert figures["clip-preference/choice, taste, guide's"] == 0
    assert 0.4 < figures["clip-preference/choice, prompt"] < 0.9
    for kind in ("", ", prompt"):
        choices = figures[f"clip-preference/choice{kind}"] + figures[f"clip-preference/choice{kind}, guide's"]
        assert choices == pytest.approx(1)
    gain = figures["clip-preference/choice"] - figures["clip-preference/choice, guide's"]
    assert figures["clip-preference/choice, over the guide's"] == gain


class _Pipe:
    """Draws noise: what a picture shows depends on its own generator alone."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self,
        prompt: list[str],
        *,
        generator: list[torch.Generator],
        num_inference_steps: int,
        guidance_scale: float,
        output_type: str,
    ) -> types.SimpleNamespace:
        assert (num_inference_steps, guidance_scale, output_type) == (50, 5.0, "pt")
        assert len(prompt) == len(generator)
        self.calls.append(len(prompt))
        return types.SimpleNamespace(images=torch.stack([torch.rand(3, 16, 16, generator=g) for g in generator]))


def _bright(images: Tensor, descriptions: Sequence[Description], classifier: object) -> Verdict:
    """Objects are right in pictures of an above-average red, everything else always."""
    objects = images[:, 0].mean((1, 2)) > 0.5
    yes = torch.ones_like(objects)
    return Verdict(objects=objects, textures=yes, relation=yes, background=yes)


def test_generator_figures_do_not_depend_on_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "judge", _bright)
    numbers, pipes = {"single": 60, "complex": 20}, (_Pipe(), _Pipe())
    a = exam.examine_generator(pipes[0], None, numbers=numbers, batch=32, folder=tmp_path)  # type: ignore[arg-type]
    b = exam.examine_generator(pipes[1], None, numbers=numbers, batch=7)  # type: ignore[arg-type]
    assert a == b
    assert pipes[0].calls == [32, 28, 20]
    assert set(a) == {
        "generator/single",
        *(f"generator/complex{x}" for x in ("", ", objects", ", textures", ", relation", ", background")),
    }
    assert a["generator/complex"] == a["generator/complex, objects"]
    assert a["generator/complex, relation"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"single.png", "complex.png"}
    with Image.open(tmp_path / "complex.png") as sheet:
        assert sheet.width == 8 * (32 + 16)
        assert sheet.height == 3 * (32 + 16 + 55)


def test_frames_tell_the_verdict() -> None:
    images = torch.stack([torch.full((3, 16, 16), 0.2), torch.full((3, 16, 16), 0.8)])
    sheet = exam.grid(images, ["a red circle", "a blue star"], [True, False])
    green, red = sheet.getpixel((5, 5)), sheet.getpixel((48 + 5, 5))
    assert green == (50, 205, 50)
    assert red == (255, 0, 0)
    assert sheet.getpixel((4 + 4 + 16, 4 + 4 + 16)) == (51, 51, 51)
    assert sheet.getpixel((48 + 4 + 4 + 16, 4 + 4 + 16)) == (204, 204, 204)


def test_bars() -> None:
    results = {
        "vae/psnr": 30.5,
        "classifier/position": 1.2,
        "generator/three": 0.8,
        "generator/texture": 0.4,
        "classifier/size": 0.1,
    }
    assert exam.passed(results) == {
        "vae/psnr": True, "classifier/position": False, "generator/three": False, "generator/texture": True,
    }  # fmt: skip
    assert exam.table(results).row_count == len(results)


def test_absent_parts_are_reported_and_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exam, "WEIGHTS", tmp_path)
    assert exam.main() == {}
    said = capsys.readouterr().out
    assert all(f"{part}: absent" in said for part in exam.PARTS)


def test_the_card_states_every_figure_and_part(tmp_path: Path) -> None:
    part = Part(name="tiny", network=nn.Linear(99, 100), loss=lambda step, generator: {}, steps=4000, lr=2e-3)
    results = {"vae/psnr": 31.234, "generator/spatial": 0.456, "classifier/size": 0.9}
    settings = dataclasses.replace(Settings(folder=tmp_path), scale=0.5)
    text = card(results, [part], settings, {"tiny": (61.6, 0.25)})
    assert "| vae/psnr | 31.23 dB | >= 30.00 dB | pass |" in text
    assert "| generator/spatial | 45.6 % | 10.0 % to 75.0 % | pass |" in text
    assert "| classifier/size | 90.0 % |  |  |" in text
    assert "| tiny | Linear | 0.01 M | 2000 | 0.002 | 0.01 | 100 | 0.999 | 0.25 | 61.6 |" in text
    assert "Seed 0, bf16 on cpu, scale 0.5." in text


def test_held_out_scenes_are_not_training_scenes() -> None:
    held_out = exam._held_out("classifier", 0, 200).centre
    drawn = [draw_scenes(200, stream(0, "classifier", step)).centre for step in range(50)]
    assert not torch.isin(held_out, torch.stack(drawn)).all(-1).any()
