"""Training lowers the loss, is a function of its seed, and can be stopped; what it does to the data is exact."""

import functools
import itertools
import types
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn

from guidedgen.basics.errors import UsageError
from guidedgen.lab import fitting, networks, training
from guidedgen.lab.fitting import Part, Settings, fit
from guidedgen.lab.render import render
from guidedgen.lab.training import LATENT_SCALE
from guidedgen.lab.world import draw_scenes


class StopHereError(Exception):
    pass


def _tiny(seed: int, stop: int | None = None) -> Part:
    """A small regression with batch norm, so that weights, moments and buffers all have a state to keep."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if step == stop:
            raise StopHereError
        x = torch.randn(16, 6, generator=generator)
        return {"loss": (network(x).float()[:, 0] - x.sum(1)).square().mean()}

    return Part(name="tiny", network=network, loss=loss, steps=20, lr=1e-2, warm_up=3, average=0.9)


def _fit(part: Part, folder: Path) -> nn.Module:
    with Progress(disable=True) as progress:
        return fit(part, Settings(folder=folder), progress)


@pytest.mark.parametrize("stops", [(7,), (1, 2, 19)])
def test_stopping_and_going_on_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]) -> None:
    clock = itertools.count(step=100)
    monkeypatch.setattr(fitting, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))  # each step is a minute: saves
    straight = _fit(_tiny(0), tmp_path / "straight")
    for i, stop in enumerate(stops):
        with pytest.raises(StopHereError):
            _fit(_tiny(i, stop), tmp_path / "stopped")  # other initial weights, which the checkpoint replaces
    resumed = _fit(_tiny(99), tmp_path / "stopped")
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    a, b = (torch.load(tmp_path / name / "tiny.pt", weights_only=True) for name in ("straight", "stopped"))
    assert a["step"] == b["step"] == 20
    assert all(torch.equal(v, b["network"][k]) for k, v in a["network"].items())
    torch.testing.assert_close(a["optimiser"], b["optimiser"], rtol=0, atol=0)


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path: Path) -> None:
    _fit(_tiny(0), tmp_path)
    other = _tiny(0)
    other.steps *= 2
    with pytest.raises(UsageError, match=r"tiny\.pt is of seed 0, 20 steps"):
        _fit(other, tmp_path)


def test_a_finished_part_is_not_trained_again(tmp_path: Path) -> None:
    first = _fit(_tiny(0), tmp_path)
    again = _fit(_tiny(1, stop=0), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_thirty_steps_of_the_classifier_lower_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(networks, "SceneClassifier", functools.partial(networks.SceneClassifier, width=8))
    part = training.classifier(Settings(folder=tmp_path, device="cpu"), training.build_vae().eval())
    losses = []
    inner = part.loss

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        found = inner(step, generator)
        losses.append(found["loss"].item())
        return found

    part.loss, part.steps, part.warm_up = loss, 30, 5
    trained = _fit(part, tmp_path)
    assert len(losses) == 30
    assert not trained.training
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.85 * first


def test_standardise_changes_the_latents_and_not_the_pictures() -> None:
    torch.manual_seed(0)
    vae = training.build_vae().eval()
    with torch.no_grad():  # unequal channels, as training makes them
        vae.quant_conv.weight[:4] *= torch.tensor([2.0, 0.5, 1.0, 3.0])[:, None, None, None]
        vae.quant_conv.bias[:4] = torch.tensor([0.3, -0.2, 0.0, 1.0])
        images = 2 * render(draw_scenes(8, torch.Generator().manual_seed(1))) - 1
        before = vae.encode(images).latent_dist
        noise = torch.randn(before.mean.shape)
        pictures = vae.decode(before.mean).sample, vae.decode(before.mean + before.std * noise).sample
        training.standardise(vae, torch.Generator().manual_seed(5))
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(after.mean).sample, pictures[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(vae.decode(after.mean + after.std * noise).sample, pictures[1], atol=1e-5, rtol=1e-5)

        stream = torch.Generator().manual_seed(5)  # the scenes it standardised on
        latents = torch.cat([vae.encode(2 * render(draw_scenes(64, stream)) - 1).latent_dist.mean for _ in range(16)])
    torch.testing.assert_close(latents.mean((0, 2, 3)) * LATENT_SCALE, torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)) * LATENT_SCALE, torch.ones(4), atol=1e-3, rtol=0)
    assert vae.config.scaling_factor == LATENT_SCALE


def test_crops_are_cut_from_the_picture_around_the_centre() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    images = torch.stack([x, y, 0 * x]).expand(50, 3, 64, 64)
    centre = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * 64
    crops = training._crop(images, centre, 32, torch.Generator().manual_seed(1))
    assert crops.shape == (50, 3, 32, 32)
    corner = crops[:, :2, 0, 0]
    torch.testing.assert_close(crops[:, :2] - corner[:, :, None, None], images[:, :2, :32, :32])  # contiguous pixels
    assert ((corner + 16 - centre.clamp(16, 48)).abs() <= 6.5).all()


def test_photographs_keep_a_third_and_stay_images() -> None:
    images = render(draw_scenes(300, torch.Generator().manual_seed(0)))
    photographed = training._photographed(images, torch.Generator().manual_seed(0))
    assert photographed.min() >= 0
    assert photographed.max() <= 1
    clean = (photographed == images).flatten(1).all(1).float().mean().item()
    assert clean == pytest.approx(0.34, abs=0.1)
