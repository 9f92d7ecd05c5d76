"""Aesthetic, ClipText and Compressibility: identities, gradients against finite differences, and JPEG golden values."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.aesthetic import Aesthetic
from guidedgen.rewards.clip_text import ClipText
from guidedgen.rewards.compressibility import Compressibility


class TinyClip:
    """A random CLIP in float64: smooth in the pixels, one random vector per text."""

    name = "tiny"

    def __init__(self, dim: int = 5) -> None:
        self.dim = dim
        self.weight = torch.randn(dim, 3 * 4 * 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.texts: list[str] = []

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(torch.tanh(F.adaptive_avg_pool2d(images, 4).flatten(1).to(self.weight) @ self.weight.T), dim=-1)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.texts += texts
        seeds = [int.from_bytes(text.encode(), "big") % 2**31 for text in texts]
        rows = [torch.randn(self.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=-1)


class TinyHead:
    """Five times the embedding's first number."""

    name, dim = "tiny-head", 5

    def __call__(self, embedding: torch.Tensor) -> torch.Tensor:
        return 5 * embedding[:, 0]


def tasks(*prompts: str) -> list[Task]:
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def noise(b: int, side: int = 8) -> torch.Tensor:
    return 0.1 + 0.8 * torch.rand(b, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rewards() -> list[Reward]:
    return [Aesthetic(clip=TinyClip(), head=TinyHead()), ClipText(clip=TinyClip()), Compressibility()]


@pytest.mark.parametrize(
    "reward", [*rewards()[:2], ClipText(clip=TinyClip(), distance="spherical")], ids=["Aesthetic", "ClipText", "spherical"]
)
def test_gradient_is_that_of_finite_differences(reward: Reward):
    prompts = tasks("a cat", "a dog")
    assert torch.autograd.gradcheck(lambda x: reward(x, prompts), noise(2, 4).requires_grad_())


@pytest.mark.parametrize("reward", rewards(), ids=lambda reward: type(reward).__name__)
def test_one_finite_number_per_image_that_ignores_its_neighbours(reward: Reward):
    prompts, x = tasks("a cat", "a dog", "a cat"), noise(3)
    values = reward(x, prompts)
    assert values.shape == (3,) and values.isfinite().all()
    for i in range(3):
        torch.testing.assert_close(reward(x[i : i + 1], prompts[i : i + 1])[0], values[i])


@pytest.mark.parametrize("reward", rewards(), ids=lambda reward: type(reward).__name__)
@pytest.mark.parametrize("wrong", [2 * noise(1) - 1, 255 * noise(1), noise(1)[0], (255 * noise(1)).to(torch.uint8)])
def test_other_ranges_and_shapes_are_refused(reward: Reward, wrong: torch.Tensor):
    with pytest.raises(ValueError, match="expected"):
        reward(wrong, tasks("a cat"))


def test_differentiable_is_known_without_an_instance():
    assert (Aesthetic.differentiable, ClipText.differentiable, Compressibility.differentiable) == (True, True, False)
    assert all(isinstance(reward, Reward) for reward in rewards())


def test_networks_that_guide():
    assert [reward.networks for reward in rewards()] == [("tiny", "tiny-head"), ("tiny",), ()]


def test_aesthetic_is_the_head_of_the_embedding():
    reward, x = Aesthetic(clip=TinyClip(), head=TinyHead()), noise(2)
    assert torch.equal(reward(x, tasks("", "")), 5 * TinyClip().encode_image(x)[:, 0])


def test_published_code_range_sees_the_washed_out_image(golden_metrics: dict):
    golden = golden_metrics["image_range"]
    seen = []

    class Watcher(TinyClip):
        def encode_image(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images[0, 0, 0])
            return super().encode_image(images)

    x = torch.tensor(golden["x01"], dtype=torch.float64).expand(1, 3, 5, 5)
    for published in (False, True):
        Aesthetic(clip=Watcher(), head=TinyHead(), published_code_range=published)(x, tasks(""))
    assert seen[0].tolist() == golden["x01"] and seen[1].tolist() == pytest.approx(golden["double_denormalised"], abs=1e-12)


def test_a_head_for_another_clip_is_refused():
    with pytest.raises(UsageError, match="tiny-head takes embeddings of 5 numbers, tiny gives 7") as caught:
        Aesthetic(clip=TinyClip(dim=7), head=TinyHead())
    assert "\n" not in str(caught.value)


def test_clip_text_is_the_cosine_and_reads_each_prompt_once():
    clip, x = TinyClip(), noise(3)
    reward, prompts = ClipText(clip=clip, prefix="A photo depicts "), tasks("a cat", "a dog", "a cat")
    values = reward(x, prompts)
    assert clip.texts == ["A photo depicts a cat", "A photo depicts a dog"]
    assert torch.equal(reward(x, prompts), values) and len(clip.texts) == 2
    texts = TinyClip().encode_text([f"A photo depicts {task.prompt}" for task in prompts])
    torch.testing.assert_close(values, F.cosine_similarity(clip.encode_image(x), texts))
    with pytest.raises(ValueError, match="3 images, but 1 tasks"):
        reward(x, prompts[:1])


def test_the_spherical_distance_is_half_the_squared_angle_and_reports_the_cosine():
    clip, x, prompts = TinyClip(), noise(3), tasks("a cat", "a dog", "a cat")
    reward, plain = (ClipText(clip=clip, prefix="A photo of ", distance=distance) for distance in ("spherical", "cosine"))
    values = reward(x, prompts)
    assert clip.texts == ["A photo of a cat", "A photo of a dog"]
    torch.testing.assert_close(values, -(plain(x, prompts).arccos() ** 2) / 2)
    torch.testing.assert_close(reward(x[1:2], prompts[1:2])[0], values[1])
    assert list(reward.reports) == ["clip_text_cosine"] and plain.reports == {}
    assert torch.equal(reward.reports["clip_text_cosine"](x, prompts), plain(x, prompts))
    with pytest.raises(ValueError, match="3 images, but 1 tasks"):
        reward(x, prompts[:1])
    with pytest.raises(ValueError, match="clip_text: expected values in"):
        reward(2 * x - 1, prompts)


@pytest.mark.parametrize("target", [10, 1, 0.3])
def test_a_target_is_met_from_both_sides_and_the_score_is_reported(target: float):
    x = noise(3)
    plain, aimed = (Aesthetic(clip=TinyClip(), head=TinyHead(), target=value) for value in (None, target))
    torch.testing.assert_close(aimed(x, tasks(*"abc")), -(plain(x, tasks(*"abc")) - target).abs())
    assert list(aimed.reports) == ["aesthetic_score"] and plain.reports == {}
    assert torch.equal(aimed.reports["aesthetic_score"](x, tasks(*"abc")), plain(x, tasks(*"abc")))
    x.requires_grad_()
    [towards] = torch.autograd.grad(aimed(x, tasks(*"abc")).sum(), x)
    signs = torch.where(plain(x, tasks(*"abc")) < target, 1.0, -1.0)
    [up] = torch.autograd.grad((signs * plain(x, tasks(*"abc"))).sum(), x)
    torch.testing.assert_close(towards, up)


def test_a_target_that_is_no_number():
    with pytest.raises(BadValue, match="must be finite, or null") as caught:
        Aesthetic(clip=TinyClip(), head=TinyHead(), target=math.inf)
    assert caught.value.name == "target"


@pytest.mark.parametrize("distance", ["cosine", "spherical"])
def test_clip_text_first_called_in_inference_mode_can_guide_later(distance: str):
    reward, x = ClipText(clip=TinyClip(), distance=distance), noise(1)
    with torch.inference_mode():
        reward(x, tasks("a cat"))
    [gradient] = torch.autograd.grad(reward(x.requires_grad_(), tasks("a cat")).sum(), x)
    assert gradient.abs().sum() > 0


def jpeg_subjects() -> torch.Tensor:
    """The images of golden-metrics.json's jpeg_kb."""
    x, y = np.meshgrid(np.arange(512), np.arange(512))
    arrays = [
        np.full((512, 512, 3), 128, np.uint8),
        np.stack([x // 2, y // 2, (x + y) // 4], -1).astype(np.uint8),
        np.random.default_rng(3).integers(0, 256, (512, 512, 3), np.uint8),
    ]
    return images.from_pil([Image.fromarray(array) for array in arrays])


def test_jpeg_golden_values(golden_metrics: dict):
    golden = golden_metrics["jpeg_kb"]
    values = Compressibility(quality=golden["quality"])(jpeg_subjects(), tasks("flat", "ramp", "noise"))
    expected = [-golden["values"][name] for name in ("flat_gray", "ramp", "noise")]
    assert values.tolist() == pytest.approx(expected, rel=0.02)  # libjpeg versions differ a little


def test_compressibility_counts_the_bytes_of_the_file(tmp_path: Path):
    x = jpeg_subjects()[1:2]
    images.to_pil(x)[0].save(tmp_path / "ramp.jpg", quality=60, subsampling="4:2:0")
    size = (tmp_path / "ramp.jpg").stat().st_size
    assert Compressibility(quality=60)(x, tasks("ramp")).item() == pytest.approx(-size / 1000)
    assert Compressibility(quality=60)(x.double().requires_grad_(), tasks("ramp")).requires_grad is False


def test_compressibility_of_nothing_is_nothing():
    x = noise(2)
    x[1, 0, 0, 0] = math.nan
    first, second = Compressibility()(x, tasks("", "")).tolist()
    assert first < 0 and math.isnan(second)


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_outside_its_range(quality: int):
    with pytest.raises(UsageError, match=f"reward.quality={quality}"):
        Compressibility(quality=quality)
