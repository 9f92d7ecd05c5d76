"""The lab's vision-language networks before training: what they read, and that training moves them."""

from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import Tensor

from guidedgen.lab import captions, fitting, networks, preference, referee_training, referees, training
from guidedgen.lab.fitting import Settings
from guidedgen.lab.world import SIZE, draw_scenes


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_tokens_end_where_the_text_ends():
    tokenizer = networks.train_tokenizer()
    end = tokenizer.token_to_id("<|endoftext|>")
    ids, mask = referees.tokenise(tokenizer, ["a red circle?", "", "a red circle and " * 30])
    assert mask.sum(1).tolist() == [6, 2, networks.MAX_TOKENS]  # start, words, end
    assert mask.dtype == torch.long and (mask.diff(dim=1) <= 0).all()
    assert all(row[: n - 1].ne(end).all() and row[n - 1 :].eq(end).all() for row, n in zip(ids, mask.sum(1).tolist(), strict=True))
    special = referees.special(tokenizer)
    assert list(special) == ["[ENC]", "[DEC]", "yes", "no"]
    assert list(special.values()) == [tokenizer.get_vocab_size() + i for i in range(4)]


def test_patches_are_labelled_by_what_is_over_their_centres():
    scenes = draw_scenes(200, _stream(), clutter=0.3, free=True)
    slot, there = referee_training.under(scenes, 64)
    assert slot.shape == there.shape == (200, 64)
    for i in range(200):
        for p in range(64):
            point = torch.tensor([8 * (p % 8) + 4.0, 8 * (p // 8) + 4.0])  # x, y
            inside = [
                j for j in range(int(scenes.count[i])) if (point - scenes.centre[i, j]).norm() < scenes.radius[i, j]
            ]  # objects do not overlap
            assert there[i, p].item() is bool(inside)
            assert not inside or slot[i, p].item() in inside


def test_towers_see_64_patches_in_rows_from_the_top():
    torch.manual_seed(0)
    for tower in (referees.build_blip2(700).network.vision_model, referees.build_vqa(700).vision_model):
        tower.eval()
        assert isinstance(tower.embeddings.patch_embedding, referees.Stem)
        with torch.no_grad():
            assert tower(pixel_values=torch.rand(2, 3, SIZE, SIZE)).last_hidden_state.shape == (2, 65, referees.WIDTH)
        positions = tower.embeddings.position_embedding[0, 1:].unflatten(0, (8, 8))
        half = referees.WIDTH // 2
        assert torch.equal(positions[..., :half], positions[:, :1, :half].expand(8, 8, half))  # by row
        assert torch.equal(positions[..., half:], positions[:1, :, half:].expand(8, 8, half))  # by column
        assert torch.cdist(positions.flatten(0, 1), positions.flatten(0, 1)).fill_diagonal_(1).min() > 0.1


def _few(monkeypatch: pytest.MonkeyPatch, looking: int) -> None:
    for constant, value in {"BATCH": 4, "_CODED": 16, "_LOOKING": looking}.items():
        monkeypatch.setattr(referee_training, constant, value)


def _fit(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *, looking: int, steps: int) -> list[dict[str, Tensor]]:
    """The losses of a short training on one small batch."""
    torch.manual_seed(0)
    _few(monkeypatch, looking)
    settings = Settings(folder=folder, bf16=False)
    part = getattr(referee_training, name)(
        settings, training.build_vae().eval(), networks.train_tokenizer(), training._photographed
    )
    found, inner = [], part.loss

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        found.append(inner(step, _stream(0)))
        return found[-1]

    part.loss, part.steps, part.warm_up = loss, steps, 5
    with Progress(disable=True) as progress:
        trained = fitting.fit(part, settings, progress)
    assert not trained.training and not trained[name].training
    return found


@pytest.mark.parametrize(("name", "text"), [("blip2", "caption"), ("vqa", "answer")])
def test_steps_on_one_batch_lower_the_losses(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = _fit(name, tmp_path, monkeypatch, looking=6, steps=16)
    assert [text in losses for losses in found] == [False] * 6 + [True] * 10
    assert found[5]["loss"] < 0.8 * found[0]["loss"]
    assert found[-1][text] < 0.9 * found[6][text]
    assert found[-1]["look"] < found[0]["loss"]


@pytest.mark.parametrize("name", ["blip2", "vqa"])
def test_the_tower_stays_as_it_is_after_a_while(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(referee_training, "_SEEING", 3)
    torch.manual_seed(0)
    _few(monkeypatch, 0)
    settings = Settings(folder=tmp_path, bf16=False)
    make = getattr(referee_training, name)
    part = make(settings, training.build_vae().eval(), networks.train_tokenizer(), training._photographed)
    tower = getattr(part.network[name], "network", part.network[name]).vision_model
    for step, learns in ((2, True), (3, False)):
        before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
        part.network.zero_grad(set_to_none=True)
        part.loss(step, _stream(step))["loss"].backward()
        assert any(parameter.grad is not None for parameter in tower.parameters()) is learns
        same = all(torch.equal(tensor, before[name]) for name, tensor in tower.state_dict().items())
        assert same is not learns  # batch statistics


def test_coded_scenes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(referee_training, "_CODED", 64)
    torch.manual_seed(0)
    vae, settings = training.build_vae().eval(), Settings(folder=tmp_path)
    scenes, images = referee_training.coded(settings, vae)
    assert images.shape == (64, 3, SIZE, SIZE) and images.dtype == torch.uint8 and len(scenes) == 64
    monkeypatch.setattr(vae, "decode", None)
    assert torch.equal(referee_training.coded(settings, vae)[1], images)


def test_small_ones_fit_the_repository():
    sizes = [sum(p.numel() for p in network.parameters()) for network in (referees.build_blip2(700), referees.build_vqa(700))]
    assert max(sizes) < 3.5e6  # 7 MB in fp16


def test_places_are_asked_for_at_the_shapes_of_what_is_there_once():
    tokenizer = networks.train_tokenizer()
    head = referee_training.PlaceHead(2, tokenizer)
    said = [captions.parse(text) for text in ("a blue square and a red circle", "a shape", "a pink star", "a blue shape")]
    truths = [captions.parse("a red circle to the left of a blue square")] * 4
    scenes = preference.stage(truths, _stream())
    ids, _ = referees.tokenise(tokenizer, [str(text) for text in said])
    read = torch.zeros(*ids.shape, 2)
    where = {(0, "square"): (0, 1), (0, "circle"): (0, 0), (3, "shape"): (3, 1)}  # row and word: row and object
    with torch.no_grad():
        head.place.weight.copy_(torch.eye(2))
        head.place.bias.zero_()
        for (row, word), (scene, slot) in where.items():
            spot = ids[row].tolist().index(tokenizer.token_to_id(f"{word}</w>"))
            read[row, spot] = scenes.centre[scene, slot] / 8
        assert head(read, ids, said, truths, scenes).item() == pytest.approx(0, abs=1e-6)
        read[3, spot, 0] += 3  # Huber: 2.5, over three things and two coordinates
        assert head(read, ids, said, truths, scenes).item() == pytest.approx(2.5 / 6, abs=1e-6)
