"""How far the lab's networks, which are trained, move in float16, and in TF32 as GPUs have it: not by the last digit of a table."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from half import Score, with_gradient
from torch import Tensor
from torch.overrides import TorchFunctionMode

from guidedgen.lab import captions
from guidedgen.lab.networks import WEIGHTS
from guidedgen.lab.render import render
from guidedgen.lab.world import draw_scenes
from guidedgen.zoo.blip2 import LabBlip2
from guidedgen.zoo.clip import LabClip
from guidedgen.zoo.vqa import LabVqa

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
# The last digits that the papers print: a CLIP score of 0.331, a PickScore of 21.54, a referee's loss of 0.29, a VQA of 0.6743.
PRINTED = {"clip": 1e-3, "pickscore": 1e-2, "matching": 1e-2, "captioning": 1e-2, "vqa": 1e-4}
PICTURES = 96


class Tf32(TorchFunctionMode):
    """Every product of matrices reads its operands with 10 bits after the leading one, rounded to nearest, as TF32 does."""

    products = frozenset(
        {F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm}
    )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.products:
            count = 3 if func is F.scaled_dot_product_attention else 2
            args = (*map(self._rounded, args[:count]), *args[count:])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _rounded(x: Tensor) -> Tensor:
        bits = x.detach().contiguous().view(torch.int32)
        near = ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)
        return x + (near - x).detach()


def scores(dtype: str, texts: list[str]) -> dict[str, Score]:
    guide, rater = LabClip(name="lab-guide", dtype=dtype), LabClip(name="lab-preference", dtype=dtype)
    matcher, asker = LabBlip2(dtype=dtype), LabVqa(dtype=dtype)
    return {
        "clip": lambda x: (guide.encode_image(x) * guide.encode_text(texts)).sum(-1),
        "pickscore": lambda x: rater.logit_scale * (rater.encode_image(x) * rater.encode_text(texts)).sum(-1),
        "matching": lambda x: matcher(x, texts)[0],
        "captioning": lambda x: matcher(x, texts)[1],
        "vqa": lambda x: asker(x, [f"{text}?" for text in texts]).sigmoid(),
    }


@pytest.fixture(scope="module")
def drawn() -> tuple[Tensor, list[str]]:
    """Pictures, half of which are described rightly, and each with a text."""
    scenes, rng = draw_scenes(PICTURES, torch.Generator().manual_seed(0)), random.Random(0)
    texts = [captions.caption(said, rng) for said in captions.describe(scenes)]
    return render(scenes), 2 * texts[: PICTURES // 2]


def in_tf32(score: Score) -> Score:
    def rounded(x: Tensor) -> Tensor:
        with Tf32():
            return score(x)

    return rounded


@trained
@pytest.mark.parametrize("kind", ["float16", "TF32"])
@pytest.mark.parametrize("name", PRINTED)
def test_a_table_is_the_same_to_its_last_digit(drawn: tuple[Tensor, list[str]], name: str, kind: str) -> None:
    """The mean of a row. A gradient, too, points where it did."""
    images, texts = drawn
    full = scores("float32", texts)[name]
    other: Callable[[Tensor], Tensor] = in_tf32(full) if kind == "TF32" else scores(kind, texts)[name]
    (expected, towards), (values, gradient) = with_gradient(full, images), with_gradient(other, images)
    assert (values - expected).abs().max() > 0
    assert abs((values - expected).double().mean()) < PRINTED[name] / 2
    cosine = F.cosine_similarity(gradient, towards)
    assert cosine.mean() > 0.999 and cosine.min() > 0.99


@trained
def test_networks_are_not_rounded_for_others(drawn: tuple[Tensor, list[str]]) -> None:
    images, texts = drawn[0][:2], drawn[1][:2]
    before = {name: score(images) for name, score in scores("float32", texts).items()}
    scores("bfloat16", texts)["vqa"](images)
    scores("bfloat16", texts)["matching"](images)
    for name, score in scores("float32", texts).items():
        assert torch.equal(score(images), before[name])
