"""The rater on scenes whose points can be counted, its noise, and the pairs it is asked about."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from guidedgen.lab import captions, networks, preference, taste, training
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.fitting import Settings, fit
from guidedgen.lab.preference import choose, draw_pairs, faithfulness, preference_loss, stage, utility
from guidedgen.lab.render import render
from guidedgen.lab.world import SIZE, SLOTS, Scenes, draw_scenes


def _said(text: str) -> Description:
    said = captions.parse(text)
    assert said is not None
    return said


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Prompt, what the scene shows, points right and points asked for.
COUNTS = [
    ("a red circle", "a red circle", 3, 3),  # shape, colour, one thing
    ("a red circle", "a red square", 2, 3),
    ("a red circle", "a blue square", 1, 3),
    ("a red shape", "a red square", 2, 2),
    ("a small red circle", "a large red circle", 3, 3),  # sizes are not judged
    ("a striped red circle", "a red circle", 3, 4),
    ("a solid red circle", "a red circle", 4, 4),
    ("a red circle", "a striped red circle", 3, 3),  # unasked
    ("a red circle and a blue square", "a blue square above a red circle", 5, 5),
    ("a red circle and a blue square", "a red circle", 2, 5),
    ("a red circle and a blue square", "a blue circle above a red square", 3, 5),
    ("a red circle and a blue square", "a red circle, a blue square and a pink star", 4, 5),
    ("a red circle, a blue square and a pink star", "a red circle to the left of a blue square", 4, 7),
    ("a red circle to the left of a blue square", "a blue square to the right of a red circle", 6, 6),
    ("a red circle to the left of a blue square", "a red circle above a blue square", 5, 6),
    ("a red circle to the left of a blue square", "a red square to the left of a blue circle", 4, 6),
    ("a red circle above a blue square", "a red circle", 2, 6),
    ("a red circle on a gray background", "a red circle on a black background", 3, 4),
    ("a red circle on a gray background", "a red circle on a gray background", 4, 4),
]


@pytest.mark.parametrize(("prompt", "shown", "right", "points"), COUNTS)
def test_the_points_of_a_prompt(prompt: str, shown: str, right: int, points: int) -> None:
    scenes = stage([_said(shown)], _stream())
    assert faithfulness(scenes, [_said(prompt)]).item() == pytest.approx(right / points)


def test_a_scenes_own_description_is_right_and_a_spoilt_one_is_not() -> None:
    rng = random.Random(0)
    scenes = draw_scenes(300, _stream())
    truths = captions.describe(scenes)
    assert torch.equal(faithfulness(scenes, truths), torch.ones(300))
    spoilt = stage([preference._spoil_once(truth, rng) for truth in truths], _stream(1))
    assert faithfulness(spoilt, truths).max() < 1
    asked = [preference._ask(truth, rng) for truth in truths]
    assert not any(thing.size for said in asked for thing in said.things)
    whole = torch.tensor([len(a.things) == len(b.things) for a, b in zip(asked, truths, strict=True)])  # else a thing is left out
    assert torch.equal(faithfulness(scenes, asked)[whole], torch.ones(int(whole.sum())))


def test_utility_is_mostly_faithfulness_and_partly_taste() -> None:
    said = [_said("a red circle to the left of a blue square")] * 64
    right, wrong = stage(said, _stream(1)), stage([_said("a red square to the left of a blue circle")] * 64, _stream(1))
    images = render(right), render(wrong)
    torch.testing.assert_close(utility(right, said, images[0]), 12 + taste.rate(images[0]))
    torch.testing.assert_close(utility(wrong, said, images[1]), 12 * 4 / 6 + taste.rate(images[1]))
    assert (utility(right, said, images[0]) > utility(wrong, said, images[1])).float().mean() > 0.95


def test_choices_follow_bradley_and_terry() -> None:
    n = 20_000
    for difference in (-2.0, 0.0, 0.5, 3.0):
        u = 10 + torch.randn(n, generator=_stream(1))
        second = choose(u + difference, u, _stream(2)).float().mean().item()
        p = 1 / (1 + torch.tensor(difference).exp().item())
        assert second == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


def test_the_loss_is_the_negative_log_likelihood_of_the_choices() -> None:
    text, first, second = (F.normalize(torch.randn(8, 5, generator=_stream(i)), dim=1) for i in range(3))
    chosen, scale = torch.tensor([0, 1] * 4), torch.tensor(7.0)
    gap = scale * ((text * first).sum(1) - (text * second).sum(1)) * (1 - 2 * chosen)
    torch.testing.assert_close(preference_loss(scale, text, first, second, chosen), torch.log1p((-gap).exp()).mean())
    assert preference_loss(scale, text, first, first, chosen).item() == pytest.approx(0.6931472)


def test_staging_shows_what_is_described() -> None:
    truths = captions.describe(draw_scenes(500, _stream(), clutter=0.0))
    scenes = stage(truths, _stream(1))
    assert captions.describe(scenes) == truths
    assert not torch.equal(scenes.centre, stage(truths, _stream(2)).centre)
    there, r = scenes.present, scenes.radius
    assert (torch.minimum(scenes.centre, SIZE - scenes.centre).amin(-1) - r)[there].min() >= 0
    gap = (scenes.centre[:, :, None] - scenes.centre[:, None]).abs().amax(-1) - (r[:, :, None] + r[:, None])
    assert gap[there[:, :, None] & there[:, None] & ~torch.eye(SLOTS, dtype=torch.bool)].min() > 0
    with pytest.raises(ValueError, match="no colour is given for a circle"):
        stage([Description((Thing(shape="circle"),))], _stream())


def _facts(scenes: Scenes) -> Tensor:
    return torch.cat([getattr(scenes, f.name).flatten().float() for f in dataclasses.fields(scenes)])


def test_pairs_are_of_all_kinds_and_a_function_of_the_generator() -> None:
    pairs, again = draw_pairs(1500, _stream()), draw_pairs(1500, _stream())
    assert pairs.prompts == again.prompts
    assert torch.equal(_facts(pairs.first), _facts(again.first))
    assert torch.equal(_facts(pairs.second), _facts(again.second))
    first, second = faithfulness(pairs.first, pairs.prompts), faithfulness(pairs.second, pairs.prompts)
    both_wrong = (first < 1) & (second < 1)
    assert 0.12 < both_wrong.float().mean() < 0.30
    assert both_wrong[first != second].any()
    assert 0.3 < (first == second).float().mean() < 0.5  # some spoil what the prompt does not ask for
    decided = first != second
    assert (first > second)[decided].float().mean().item() == pytest.approx(0.5, abs=2 / int(decided.sum()) ** 0.5)


def test_every_other_picture_has_been_through_the_autoencoder() -> None:
    torch.manual_seed(0)
    vae, scenes = training.build_vae().eval(), draw_scenes(4, _stream())
    shown, drawn = preference.show(scenes, vae), render(scenes)
    assert torch.equal(shown[1::2], drawn[1::2])
    with torch.no_grad():
        coded = vae.decode(vae.encode(2 * drawn[::2] - 1).latent_dist.mean).sample
    torch.testing.assert_close(shown[::2], (coded / 2 + 0.5).clamp(0, 1))


def test_twenty_steps_on_one_batch_lower_both_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From frozen weights, as they are loaded: the part has to thaw them."""
    torch.manual_seed(0)
    tokenizer = networks.train_tokenizer()
    guide = networks.build_clip("guide", tokenizer.get_vocab_size()).requires_grad_(False)
    monkeypatch.setattr(preference, "draw_pairs", lambda n, generator: draw_pairs(4, generator))
    part = training.preference_clip(Settings(folder=tmp_path), guide, training.build_vae().eval(), tokenizer)
    found = []
    inner = part.loss

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        found.append(inner(step, _stream(0)))
        return found[-1]

    part.loss, part.steps, part.warm_up = loss, 20, 5
    with Progress(disable=True) as progress:
        trained = fit(part, Settings(folder=tmp_path, bf16=False), progress)
    assert not trained.training
    for name in ("loss", "choice", "contrast"):
        assert found[-1][name] < 0.8 * found[0][name], name
