"""What a refereed iteration holds at once at BLIP-2's full size: counted from shapes, on tensors without content."""

import dataclasses
import functools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from guidedgen.gradients.memory import Alive
from guidedgen.noise import Noise
from guidedgen.problem import Problem
from guidedgen.types import Task
from guidedgen.vision_language import QFormer
from guidedgen.zoo.blip2 import LENGTH, _losses

GIB = 2**30
WITHOUT_CONTENT = FakeTensorMode(allow_non_fake_inputs=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Same:
    """Copies that are the pictures: real ones depend on numbers, which tensors without content do not have."""

    count: int

    def __call__(self, pictures: Tensor, samples: Tensor, copies: Tensor) -> Tensor:
        return pictures.clamp(0, 1)


@functools.cache
def blip2() -> QFormer:
    """ViT-g and Q-Former, as transformers' defaults for BLIP-2 are; tests/rewards/test_full_size.py holds the sizes."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval
    from transformers.initialization import no_init_weights

    settings = {"num_query_tokens": 32, "qformer_config": {"vocab_size": 30523, "use_qformer_text_input": True}}
    with WITHOUT_CONTENT, no_init_weights():
        return QFormer(Blip2ForImageTextRetrieval(Blip2Config(**settings)), 30523).eval().requires_grad_(False)


def peak(copies: int, batch_size: int, pictures: int = 1) -> int:
    """The most bytes at once, weights aside, of the rewards and gradients of pictures seen through so many copies."""
    network = blip2()

    def reward(images: Tensor, owners: Sequence[Task]) -> Tensor:
        with WITHOUT_CONTENT:
            rows = torch.ones(len(images), LENGTH, dtype=torch.long)
        matching, caption = _losses(network, images, rows, torch.ones_like(rows), 30522)
        return -(matching + caption)

    def decode(latents: Tensor) -> Tensor:
        return latents.repeat_interleave(8, -1).repeat_interleave(8, -2)[:, :3]

    tasks = [Task(id=str(i), prompt="") for i in range(pictures)]
    problem = Problem(
        tasks=tasks, denoise=None, scheduler=None, latent_shape=(4, 28, 28), grid=None, num_steps=0, schedule=None,
        noise=Noise([task.id for task in tasks]), decode=decode, reward=reward, batch_size=batch_size,
    )  # fmt: skip
    with WITHOUT_CONTENT:
        x_0 = torch.zeros(pictures, 1, 4, 28, 28)
    with Alive() as alive:
        problem.score_copies(x_0, lambda height, width: Same(count=copies))
    return alive.peak


def test_copies_cost_no_memory_beyond_a_chunk_s() -> None:
    one = peak(1, 1)
    assert one == pytest.approx(0.62 * GIB, rel=0.02)  # float32: 39 blocks keep what their backward needs
    assert peak(3, 1) == pytest.approx(one, rel=0.02)
    assert peak(4, 2) == pytest.approx(2 * one, rel=0.05)


@pytest.mark.slow
def test_thirty_copies_cost_as_much_as_a_chunk_of_them() -> None:
    assert peak(30, 10) == pytest.approx(10 * peak(1, 1), rel=0.05)
