"""The tokenizer's promises, and what can be known about untrained networks."""

import itertools
import math
import random
from typing import TYPE_CHECKING

import pytest
import torch

from guidedgen.lab import captions, networks, training
from guidedgen.lab.captions import WORDS
from guidedgen.lab.world import SHAPES, SLOTS, draw_scenes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHIPPED = networks.WEIGHTS / "generator" / "tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module", params=["trained", "shipped"])
def tokenizer(request: pytest.FixtureRequest) -> "Tokenizer":
    if request.param == "trained":
        return networks.train_tokenizer()
    if not SHIPPED.exists():
        pytest.skip("no tokenizer is shipped")
    return networks.load_tokenizer()


def _texts() -> list[str]:
    rng = random.Random(0)
    said = captions.describe(draw_scenes(200, torch.Generator().manual_seed(0)))
    asked = [text for name in captions.CATEGORIES for text in itertools.islice(captions.prompts(name), 20)]
    return [*asked, *map(str, said), *(captions.caption(d, rng) for d in said)]


def test_every_word_is_one_token(tokenizer: "Tokenizer") -> None:
    for word in WORDS:
        assert tokenizer.encode(word).tokens == [START, word + "</w>", END]


def test_other_text_falls_back_to_pieces_of_itself(tokenizer: "Tokenizer") -> None:
    tokens = tokenizer.encode("a zebra").tokens
    assert tokens == [START, "a</w>", "z", "e", "b", "r", "a</w>", END]
    for text in ("a photograph of an astronaut riding a horse", "xylophone"):
        pieces = tokenizer.encode(text).tokens[1:-1]
        assert "".join(pieces).replace("</w>", " ").strip() == text
        assert END not in pieces


def test_ids_are_in_the_order_of_openai_clip(tokenizer: "Tokenizer") -> None:
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) or "" for i in range(size)]
    assert all(len(t) == 1 for t in tokens[:256])
    assert tokens[256:512] == [t + "</w>" for t in tokens[:256]]
    assert all(len(t.removesuffix("</w>")) > 1 for t in tokens[512:-2])
    assert tokens[-2:] == [START, END]  # the end has the highest id: open_clip finds it by argmax


def test_training_the_tokenizer_again_gives_the_same() -> None:
    """Parts are trained in processes of their own, and each trains the tokenizer: their ids have to agree."""
    assert len({networks.train_tokenizer().to_str() for _ in range(8)}) == 1


def test_tokenize_pads_and_cuts_with_the_end_token(tokenizer: "Tokenizer") -> None:
    end = tokenizer.token_to_id(END)
    short, empty, long = networks.tokenize(tokenizer, ["a red circle", "", "a red circle and " * 30])
    assert short.shape == empty.shape == long.shape == (networks.MAX_TOKENS,)
    assert (short[4:] == end).all()
    assert (empty[1:] == end).all()
    assert long[-1] == end
    assert (long[:-1] != end).all()
    assert short[0] == empty[0] == long[0] == tokenizer.token_to_id(START)


def test_every_caption_fits(tokenizer: "Tokenizer") -> None:
    last = networks.tokenize(tokenizer, _texts())[:, -2]
    assert set(last.tolist()) == {tokenizer.token_to_id(END)}


@pytest.mark.skipif(not SHIPPED.exists(), reason="no tokenizer is shipped")
def test_transformers_reads_the_shipped_tokenizer_alike() -> None:
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer.from_pretrained(SHIPPED)
    assert clip.model_max_length == networks.MAX_TOKENS
    texts = [*_texts(), "", "A Zebra, two hearts?", "a photograph of an astronaut riding a horse", "a red circle and " * 30]
    ids = clip(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, networks.tokenize(networks.load_tokenizer(), texts))


def test_the_classifier_reads_every_shape_everywhere() -> None:
    network = networks.SceneClassifier().eval()
    with torch.no_grad():
        reading = network(torch.rand(2, 3, 64, 64))
        features = network.features(torch.rand(2, 3, 64, 64))
    assert reading.shape.shape == (2, len(SHAPES))
    assert reading.count.shape == (2, SLOTS + 1)
    assert reading.centre.min() >= 0
    assert reading.centre.max() <= 64
    assert features.shape == (2, 120)


def test_a_classifier_that_looks_everywhere_sees_the_middle() -> None:
    network = networks.SceneClassifier(width=4).eval()
    for layer in (network.look, network.present):
        torch.nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        reading = network(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(reading.centre, torch.full_like(reading.centre, 32.0))
    torch.testing.assert_close(reading.shape, torch.full_like(reading.shape, math.log(256) - 5.5), atol=1e-5, rtol=0)


def test_the_aesthetic_head_is_linear_and_named_as_released() -> None:
    """Names and widths: christophschuhmann/improved-aesthetic-predictor, simple_inference.py, less its dropouts."""
    head = networks.AestheticHead()
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    widths = {"0": (768, 1024), "2": (1024, 128), "4": (128, 64), "6": (64, 16), "7": (16, 1)}
    assert shapes == {f"layers.{i}.weight": (o, d) for i, (d, o) in widths.items()} | {
        f"layers.{i}.bias": (o,) for i, (_, o) in widths.items()
    }
    a, b, zero = torch.randn(4, 768), torch.randn(4, 768), torch.zeros(4, 768)
    with torch.no_grad():
        torch.testing.assert_close(head(a + b), head(a) + head(b) - head(zero), atol=1e-5, rtol=1e-4)


def test_the_judge_differs_from_the_clips_that_guide_and_all_share_their_interface() -> None:
    built = {name: networks.build_clip(name, 700).eval() for name in networks.CLIPS}
    sizes = {name: sum(p.numel() for p in clip.visual.parameters()) for name, clip in built.items()}
    assert sizes["guide"] == sizes["preference"] != sizes["judge"]
    with torch.no_grad():
        for clip in built.values():
            assert clip.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, networks.CLIP_DIM)
            assert clip.encode_text(torch.randint(700, (2, networks.MAX_TOKENS))).shape == (2, networks.CLIP_DIM)
    with pytest.raises(KeyError):
        networks.build_clip("other", 700)


def test_the_noise_schedule_is_the_schedulers() -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(training.alphas_cumprod(), scheduler.alphas_cumprod, atol=1e-6, rtol=2e-5)
