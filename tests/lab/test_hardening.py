"""Attacked pictures against exact solutions, and what BLIP-2's last steps do with them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidedgen.lab import hardening, networks, referee_training, training
from guidedgen.lab.fitting import Settings


def _stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_against_a_linear_loss_the_whole_radius_is_spent_along_it(steps: int):
    images = torch.rand(3, 3, 8, 8, generator=_stream()) - 0.5
    slope = torch.randn(3, 3, 8, 8, generator=_stream(1))
    radius = torch.tensor([0.0, 0.5, 1.0])
    found = hardening.attacked(images, lambda x: (slope * x).sum((1, 2, 3)), radius, steps)
    unit = slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(found, images + radius[:, None, None, None] * unit)


def test_against_a_curved_loss_each_step_looks_anew_and_stays_within_the_radius():
    """|x - far|^2 of two points: the gradient turns as the picture moves, by hand."""
    images, radius = torch.zeros(1, 1, 1, 2), torch.tensor([0.1])
    points = torch.tensor([[[[-0.3, -0.1]]]])

    def losses(x: Tensor) -> Tensor:
        return ((x - points) * torch.tensor([1.0, 4.0])).pow(2).sum((1, 2, 3))

    weights = torch.tensor([1.0, 16.0])
    first = weights * -points
    moved = 0.075 * first / first.norm()
    second = weights * (moved - points)
    moved = moved + 0.075 * second / second.norm()
    assert moved.norm() > 0.1
    torch.testing.assert_close(hardening.attacked(images, losses, radius), 0.1 * moved / moved.norm())


def test_pictures_stay_pictures_and_one_without_a_gradient_stays_itself():
    images = torch.stack([torch.full((3, 4, 4), 0.99), torch.full((3, 4, 4), 0.5)])
    found = hardening.attacked(images, lambda x: x.sum((1, 2, 3)) * torch.tensor([1.0, 0.0]), torch.tensor([5.0, 5.0]))
    assert torch.equal(found[0], torch.ones(3, 4, 4)) and torch.equal(found[1], images[1])
    assert not found.requires_grad


def test_nothings_are_decoded_noise_of_several_deviations(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    vae = training.build_vae().eval()
    pictures = hardening.nothings(vae, 70, _stream())
    assert pictures.shape == (70, 3, 64, 64) and pictures.dtype == torch.float32 and pictures.abs().max() <= 1
    assert torch.equal(hardening.nothings(vae, 70, _stream()), pictures)
    seen = []
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z * training.LATENT_SCALE) or type("", (), {"sample": z[:, :3]}))
    hardening.nothings(vae, 64, _stream())
    deviations = seen[0].flatten(1).std(1)
    assert 0.27 < deviations.min() < 0.5 and 1.3 < deviations.max() < 1.6


@pytest.mark.parametrize("step", [0, 1])
def test_blip2_is_at_last_attacked_about_matching_and_captioning_in_turn(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for constant, value in {"BATCH": 4, "_CODED": 16, "_LOOKING": 0, "_SEEING": 0, "_HARDENING": 0, "_NOTHINGS": 2}.items():
        monkeypatch.setattr(referee_training, constant, value)
    torch.manual_seed(0)
    settings = Settings(folder=tmp_path, bf16=False)
    part = referee_training.blip2(settings, training.build_vae().eval(), networks.train_tokenizer(), lambda images, _: images)
    tower = part.network["blip2"].network.vision_model
    calls = []

    def attacked(images: Tensor, losses, radius: Tensor) -> Tensor:
        assert not any(parameter.requires_grad for parameter in part.network.parameters())
        found = original(images, losses, radius)
        calls.append((images, losses(images).detach(), losses(found).detach(), radius))
        return found

    original = hardening.attacked
    monkeypatch.setattr(hardening, "attacked", attacked)
    before = {name: tensor.clone() for name, tensor in tower.named_buffers()}
    part.loss(step, _stream())["loss"].backward()
    ((images, clean, spoilt, radius),) = calls
    assert len(images) == 6 and (radius[:4] <= referee_training._RADIUS).all() and (radius <= 3 * referee_training._RADIUS).all()
    assert radius[4:].max() > radius[:4].max()
    about = slice(0, 4) if step else slice(0, 6)
    assert (spoilt[about] > clean[about]).all() and (clean[4:] > 0).all() == (step == 0)
    assert all(parameter.requires_grad for parameter in part.network.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in tower.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.named_buffers())  # batch statistics stay
