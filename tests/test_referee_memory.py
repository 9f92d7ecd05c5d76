"""What a refereed iteration holds at once at BLIP-2's full size: counted from shapes, on tensors without content."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from guidedgen.basics.augment import Augmentations, Copies, averaged
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.basics.vision_language import QFormer
from guidedgen.gradients.memory import Alive
from guidedgen.methods.problem import Problem
from guidedgen.methods.views import RandomCopies
from guidedgen.zoo.blip2 import LENGTH, _losses

GIB = 2**30
WITHOUT_CONTENT = FakeTensorMode(allow_non_fake_inputs=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Same(Augmentations):
    """Copies that are the pictures: real ones depend on numbers, which tensors without content do not have."""

    def draw(self, noise: Noise, height: int, width: int) -> Copies:
        return self  # type: ignore[return-value]

    def __call__(self, pictures: Tensor, samples: Tensor, copies: Tensor) -> Tensor:
        return averaged(pictures, self.side).clamp(0, 1)


@functools.cache
def decoder() -> torch.nn.Module:
    """Of Stable Diffusion, from 64 to 512 px a side."""
    from diffusers import AutoencoderKL
    from transformers.initialization import no_init_weights

    sizes = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with WITHOUT_CONTENT, no_init_weights():
        return AutoencoderKL(**sizes, **blocks).eval().requires_grad_(False)


def enlarged(latents: Tensor) -> Tensor:
    """What costs nothing, from 28 to 224 px a side."""
    return latents.repeat_interleave(8, -1).repeat_interleave(8, -2)[:, :3]


def decoded(latents: Tensor) -> Tensor:
    return decoder().decode(latents).sample


@functools.cache
def blip2(layers: int) -> QFormer:
    """ViT-g of so many layers and Q-Former, as transformers' defaults for BLIP-2 are; tests/rewards/test_full_size.py holds the
    sizes.
    """
    from transformers import Blip2Config, Blip2ForImageTextRetrieval
    from transformers.initialization import no_init_weights

    vision = {"num_hidden_layers": layers}
    settings = {
        "vision_config": vision,
        "num_query_tokens": 32,
        "qformer_config": {"vocab_size": 30523, "use_qformer_text_input": True},
    }
    with WITHOUT_CONTENT, no_init_weights():
        return QFormer(Blip2ForImageTextRetrieval(Blip2Config(**settings)), 30523).eval().requires_grad_(False)


def peak(copies: int, batch_size: int, pictures: int = 1, decode: Callable[[Tensor], Tensor] = enlarged, layers: int = 6) -> int:
    """The most bytes at once, weights aside, of the rewards and gradients of pictures seen through so many copies."""
    network = blip2(layers)

    def reward(images: Tensor, owners: Sequence[Task]) -> Tensor:
        with WITHOUT_CONTENT:
            rows = torch.ones(len(images), LENGTH, dtype=torch.long)
        matching, caption = _losses(network, images, rows, torch.ones_like(rows), 30522)
        return -(matching + caption)

    side = 28 if decode is enlarged else 64
    tasks = [Task(id=str(i), prompt="") for i in range(pictures)]
    problem = Problem(
        tasks=tasks, denoise=None, scheduler=None, latent_shape=(4, side, side), grid=None, num_steps=0, schedule=None,
        noise=Noise([task.id for task in tasks]), decode=decode, reward=reward, batch_size=batch_size,
    )  # fmt: skip
    with WITHOUT_CONTENT:
        x_0 = torch.zeros(pictures, 1, 4, side, side)
    with Alive() as alive:
        problem.score_and_gradient(x_0, RandomCopies(Same(count=copies), problem.noise))
    return alive.peak


def test_copies_cost_no_memory_beyond_a_chunk_s() -> None:
    one = peak(1, 1)
    assert peak(3, 1) == pytest.approx(one, rel=0.02)
    assert peak(4, 2) == pytest.approx(2 * one, rel=0.05)


def test_the_decoding_of_other_pictures_is_not_held() -> None:
    one = peak(2, 2, 1, decoded)
    assert one - peak(2, 2) == pytest.approx(5.6 * GIB, rel=0.05)
    assert peak(2, 2, 3, decoded) <= 1.02 * one


def test_what_its_blocks_keep_for_their_backward_is_counted() -> None:
    assert peak(1, 1, layers=39) == pytest.approx(0.62 * GIB, rel=0.02)  # in float32


@pytest.mark.slow
def test_thirty_copies_cost_as_much_as_a_chunk_of_them() -> None:
    assert peak(30, 10, layers=39) == pytest.approx(10 * peak(1, 1, layers=39), rel=0.05)
