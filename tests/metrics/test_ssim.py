"""SSIM against torchmetrics, on colours of one value by hand, and references that are missing."""

from pathlib import Path

import pytest
import torch

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.metrics.ssim import C1, Ssim, ssim
from guidedgen.rewards import Reward


def noise(b: int, side: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, 3, side, side, generator=torch.Generator().manual_seed(seed))


def task(reference: Path | None = None) -> Task:
    return Task(id="a", prompt="", reference=None if reference is None else str(reference))


def written(file: Path, image: torch.Tensor) -> Path:
    file.write_bytes(images.png(image))
    return file


@pytest.mark.parametrize("blend", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("side", [11, 24, 33])
def test_is_torchmetrics_(side: int, blend: float):
    """StructuralSimilarityIndexMeasure at its defaults (a Gaussian of deviation 1.5, so 11 px; k1 0.01, k2 0.03), values in [0, 1]."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    x, y = noise(3, side).double(), noise(3, side, seed=1).double()
    y = blend * x + (1 - blend) * y
    expected = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(x, y), expected, rtol=0, atol=1e-10)


def test_of_two_plain_colours():
    """No structure in either: (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b = 0.2, 0.7
    found = ssim(*(torch.full((1, 3, 16, 16), colour, dtype=torch.float64) for colour in (a, b)))
    assert found.item() == pytest.approx((2 * a * b + C1) / (a * a + b * b + C1), rel=1e-12)


def test_an_image_is_its_own_reference(tmp_path: Path):
    x = images.to_bytes(noise(1)).float() / 255
    assert Ssim()(x, [task(written(tmp_path / "same.png", x[0]))]).item() == pytest.approx(1, abs=1e-6)
    assert Ssim()(1 - x, [task(tmp_path / "same.png")]).item() < 0


def test_each_image_has_its_task_s_reference_or_none(tmp_path: Path):
    x = noise(3)
    files = [written(tmp_path / f"{i}.png", noise(1, seed=i + 5)[0]) for i in range(2)]
    found = Ssim()(x, [task(files[0]), task(), task(files[1])])
    assert found.isnan().tolist() == [False, True, False]
    expected = ssim(x[::2].double(), torch.cat([images.read(file) for file in files]).double())
    torch.testing.assert_close(found[::2], expected.float())
    assert isinstance(Ssim(), Reward) and not Ssim.differentiable and Ssim.networks == ()
    assert not Ssim()(x.requires_grad_(), [task(files[0])] * 3).requires_grad


def test_a_reference_of_another_size_is_brought_to_the_image_s(tmp_path: Path):
    """As a model is given it: the shorter side fits, the middle is kept."""
    wide = images.to_bytes(torch.rand(1, 3, 40, 70, generator=torch.Generator().manual_seed(3))).float() / 255
    x = noise(1)
    expected = ssim(x.double(), images.resize(wide, 24).double())
    torch.testing.assert_close(Ssim()(x, [task(written(tmp_path / "wide.png", wide[0]))]), expected.float())


def test_wrong_input_is_refused(tmp_path: Path):
    (tmp_path / "text.png").write_text("not an image")
    for file in (tmp_path / "text.png", tmp_path / "none.png"):
        with pytest.raises(UsageError, match=r"^metrics=ssim: reference .*cannot be read as an image") as caught:
            Ssim()(noise(1), [task(file)])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="2 images for 1 tasks"):
        Ssim()(noise(2), [task()])
    for wrong in (noise(1, 10), noise(1)[..., :20]):
        with pytest.raises(ValueError, match="square images of at least 11 px"):
            Ssim()(wrong, [task()])
    with pytest.raises(ValueError, match="ssim: expected values in"):
        Ssim()(2 * noise(1) - 1, [task()])
