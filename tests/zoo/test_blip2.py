"""BLIP-2's two losses on transformers' own classes at tiny size, against their definitions."""

import json
import math
import re
from pathlib import Path

import half
import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.basics.vision_language import QFormer, caption_mask
from guidedgen.zoo import blip2
from guidedgen.zoo.blip2 import HubBlip2
from guidedgen.zoo.needed import cached_file

SIDE, QUERIES, WIDTH = 24, 5, 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "and", "photo")
DEC = len(WORDS)  # the start of captions, after BERT's words
TEXTS = ("a red circle", "a photo and a blue square")


def save_tokenizer(folder: Path) -> None:
    """BERT's, with [DEC] as LAVIS adds it."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.save_pretrained(folder)


def save_network(folder: Path, *, seed: int = 0):
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

    size = {"hidden_size": WIDTH, "intermediate_size": 24, "num_attention_heads": 2}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**size, num_hidden_layers=2, image_size=SIDE, patch_size=8),
        qformer_config=Blip2QFormerConfig(
            **size, vocab_size=DEC + 3, num_hidden_layers=3, encoder_hidden_size=WIDTH, use_qformer_text_input=True
        ),  # two rows more than words: transformers' repository pads its table
        num_query_tokens=QUERIES,
        image_text_hidden_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Blip2ForImageTextRetrieval(config)
        for parameter in network.parameters():  # nothing at 0 or 1, queries that differ: every part counts
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    save_tokenizer(folder)
    return network


def checkpoint_of(network, *, seed: int = 1) -> dict[str, torch.Tensor]:
    """As LAVIS' Blip2Qformer has its text parts (lavis/models/blip2_models/Qformer.py: BertLMHeadModel)."""
    generator = torch.Generator().manual_seed(seed)
    words = network.embeddings.word_embeddings.weight.detach()[: DEC + 1].clone()
    head = {
        "bias": torch.randn(DEC + 1, generator=generator),
        "transform.dense.weight": torch.randn(WIDTH, WIDTH, generator=generator) / 4,
        "transform.dense.bias": torch.randn(WIDTH, generator=generator),
        "transform.LayerNorm.weight": 1 + torch.randn(WIDTH, generator=generator) / 4,
        "transform.LayerNorm.bias": torch.randn(WIDTH, generator=generator),
        "decoder.weight": words,
        "decoder.bias": torch.zeros(DEC + 1),
    }
    state = {f"Qformer.cls.predictions.{name}": tensor for name, tensor in head.items()}
    return state | {"Qformer.bert.embeddings.word_embeddings.weight": words.clone(), "temp": torch.tensor(0.07)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("blip2")
    network = save_network(folder)
    save_file(blip2.convert_head(checkpoint_of(network), "?"), folder / blip2.HEAD)
    return folder


@pytest.fixture(scope="module")
def matcher(folder: Path) -> HubBlip2:
    return HubBlip2(name="tiny", path=folder, head=folder / blip2.HEAD)


@pytest.fixture(scope="module")
def doubled(folder: Path) -> HubBlip2:
    """One of its own in float64."""
    blip2._load_hub.cache_clear()
    matcher = HubBlip2(name="tiny", path=folder, head=folder / blip2.HEAD)
    matcher.network.double()
    return matcher


def noise(b: int = 2, side: int = 40) -> torch.Tensor:
    return 0.1 + 0.8 * torch.rand(b, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def prepared(images: torch.Tensor) -> torch.Tensor:
    shown = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return pictures.normalise(shown, pictures.CLIP_MEAN, pictures.CLIP_STD)


def tokens(*texts: str, length: int = blip2.LENGTH) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [[2, *(WORDS.index(word) for word in text.split()), 3] for text in texts]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])


def two_passes(network: QFormer, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """LAVIS' captioning of one text without padding: the queries alone, layer by layer, then the text on their states.

    Written with the layers' own parts: attention is softmax(q k / sqrt d) v, of a text's token over the queries and the text before.
    """
    qformer, seen = network.network.qformer, network.see(pixels)
    x = qformer.layernorm(network.network.query_tokens.expand(len(ids), -1, -1))
    keys = []
    for layer in qformer.encoder.layer:
        keys.append(x)
        x = layer(x, None, seen, query_length=x.shape[1])
    text = qformer.layernorm(network.network.embeddings(input_ids=ids))
    for layer, past in zip(qformer.encoder.layer, keys, strict=True):
        own, length = layer.attention.attention, text.shape[1]
        heads, width = own.num_attention_heads, own.attention_head_size
        q, k, v = (
            part(states).unflatten(-1, (heads, width)).transpose(1, 2)
            for part, states in ((own.query, text), (own.key, torch.cat([past, text], 1)), (own.value, torch.cat([past, text], 1)))
        )
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        logits = (q @ k.mT / width**0.5).masked_fill(F.pad(later, (past.shape[1], 0)), -math.inf)
        text = layer.feed_forward_chunk(layer.attention.output((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), text))
    return text


def test_matching_is_transformers_own(doubled: HubBlip2):
    own = []
    with torch.no_grad():
        for image, text in zip(noise(), TEXTS, strict=True):
            ids, mask = tokens(text, length=len(text.split()) + 2)  # no padding
            found = doubled.network.network(
                pixel_values=prepared(image[None]), input_ids=ids, attention_mask=mask, use_image_text_matching_head=True
            )
            own.append(found.logits_per_image)
        matching, _ = doubled(noise(), TEXTS)
    torch.testing.assert_close(matching, -torch.cat(own).log_softmax(1)[:, 1])
    assert (matching[0] - matching[1]).abs() > 1e-3


@pytest.mark.parametrize("text", TEXTS)
def test_one_masked_pass_is_lavis_two(doubled: HubBlip2, text: str):
    network, (ids, mask) = doubled.network, tokens(text, length=len(text.split()) + 2)
    ids[:, 0] = DEC
    with torch.no_grad():
        hidden = network._run(network.see(prepared(noise(1))), ids, caption_mask(QUERIES, mask, torch.float64))[:, QUERIES:]
        torch.testing.assert_close(hidden, two_passes(network, prepared(noise(1)), ids))


def test_captioning_is_torchs_smoothed_cross_entropy(doubled: HubBlip2):
    network, state = doubled.network, checkpoint_of(doubled.network.network)
    part = {name.removeprefix("Qformer.cls.predictions."): tensor.double() for name, tensor in state.items()}
    for image, text in zip(noise(), TEXTS, strict=True):
        ids, _ = tokens(text, length=len(text.split()) + 2)  # no padding
        ids[:, 0] = DEC
        with torch.no_grad():
            hidden = two_passes(network, prepared(image[None]), ids)
            x = F.gelu(hidden @ part["transform.dense.weight"].T + part["transform.dense.bias"])
            x = F.layer_norm(x, (WIDTH,), part["transform.LayerNorm.weight"], part["transform.LayerNorm.bias"], 1e-12)
            logits = x @ network.network.embeddings.word_embeddings.weight[: DEC + 1].T + part["bias"]
            expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits[0, :-1], ids[0, 1:])
            _, caption = doubled(image[None], [text])
        torch.testing.assert_close(caption[0], expected)
        assert caption[0] > 0.1


def test_a_batch_is_its_images_one_by_one(matcher: HubBlip2):
    images, texts = noise(4).float(), [*TEXTS, "a", "a red square"]
    with torch.no_grad():
        whole = matcher(images, texts)
        alone = [matcher(images[i : i + 1], texts[i : i + 1]) for i in range(4)]
    for i in range(2):
        torch.testing.assert_close(whole[i], torch.cat([losses[i] for losses in alone]))


def test_gradients_are_finite_differences(doubled: HubBlip2):
    x = noise(1, SIDE)
    step = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))

    def value(h: float) -> torch.Tensor:
        return sum(loss.sum() for loss in doubled(x + h * step, TEXTS[:1]))

    leaf = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(sum(loss.sum() for loss in doubled(leaf, TEXTS[:1])), leaf)
    with torch.no_grad():
        difference = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * step).sum(), difference, rtol=1e-6, atol=1e-9)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_the_image_is_seen_once(matcher: HubBlip2):
    rows: list[int] = []
    hook = matcher.network.network.vision_model.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
    matcher(noise().float(), TEXTS)
    hook.remove()
    assert rows == [2]


def test_long_texts_are_cut(matcher: HubBlip2):
    with torch.no_grad():
        long, cut = (matcher(noise(1).float(), [" ".join(["red"] * n)]) for n in (50, blip2.LENGTH - 2))
    assert all(torch.equal(a, b) for a, b in zip(long, cut, strict=True))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A red circle.", "a red circle"), ('"red" (circle); blue: it\'s, no-one', "red circle blue it's, no-one"),
        ("red\n", "red"), ("red " * 60, " ".join(["red"] * 50)),
    ],
)  # fmt: skip
def test_texts_are_read_as_captions_were(text: str, read: str):
    """LAVIS' steps one by one: marks to spaces, runs of spaces to one, ends off, 50 words."""
    assert blip2.as_captions_are(text) == read
    theirs = re.sub(r"\s{2,}", " ", re.sub('([.!"()*#:;~])', " ", text.lower())).rstrip("\n").strip(" ")
    assert " ".join(theirs.split(" ")[:50]) == read


def test_a_full_stop_is_no_token(matcher: HubBlip2):
    """Most prompts of T2I-CompBench end with one, and no caption did that BLIP-2 was trained with."""
    images, text = noise(1).float(), " ".join(WORDS[5:7])
    for found, plain in zip(matcher(images, [f"{text.title()}."]), matcher(images, [text]), strict=True):
        assert torch.equal(found, plain)


def test_the_head_is_made_of_the_authors_checkpoint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import load_file
    from transformers import Blip2ForImageTextRetrieval

    state = checkpoint_of(Blip2ForImageTextRetrieval.from_pretrained(folder))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoints" / "blip2_pretrained.pth")
    assert blip2.MadeHead().survey().missing
    made = blip2.MadeHead().download()
    assert blip2.MadeHead().survey().where == made
    assert made == cached_file(blip2.HEAD) == HubBlip2(name="x", path=folder).head
    ours, first = load_file(made), load_file(folder / blip2.HEAD)
    assert ours.keys() == first.keys() and all(torch.equal(ours[name], first[name]) for name in ours)

    for change, match in [
        ({"Qformer.cls.predictions.bias": None}, "lacks Qformer.cls.predictions.bias"),
        ({"Qformer.cls.predictions.decoder.weight": torch.zeros(2, 2)}, "is not its word embeddings"),
    ]:
        wrong = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
        with pytest.raises(UsageError, match=match):
            blip2.convert_head(wrong, "?")


def test_what_is_wrong_is_one_line(folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "nowhere"))
    head, other = folder / blip2.HEAD, tmp_path / "other.safetensors"
    save_file(load_file(head) | {"bias": torch.zeros(DEC + 99)}, other)
    for call, match in [
        (lambda: HubBlip2(name="x", path=clip_folder, head=head), "holds a model of type clip; a blip-2 is needed"),
        (lambda: HubBlip2(name="x", path=folder), "missing; make it with: python scripts/fetch.py blip2"),
        (lambda: HubBlip2(name="x", path=folder, head=tmp_path / "no"), "no such file"),
        (lambda: HubBlip2(name="x", path=folder, head=other).network, f"for {DEC + 99} words, but .* has {DEC + 3}"),
        (lambda: HubBlip2(name="x", path=folder, head=_strange(tmp_path)).network, "is no captioning head of"),
    ]:
        with pytest.raises(UsageError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def _strange(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(3)}, folder / "strange.safetensors")
    return folder / "strange.safetensors"


def test_a_tokenizer_without_a_start_is_refused(folder: Path, tmp_path: Path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("bos_token")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"no start token of captions \(\[DEC\]\)"):
        HubBlip2(name="x", path=copy, head=folder / blip2.HEAD)(noise(1).float(), ["a"])


@pytest.mark.parametrize("loss", [0, 1])
def test_half_precision(folder: Path, loss: int) -> None:
    full, rounded = (HubBlip2(name="tiny", path=folder, head=folder / blip2.HEAD, dtype=kind) for kind in ("float32", "float16"))
    texts = [" ".join(WORDS[5:7]), WORDS[6]]
    half.check(lambda x: full(x, texts)[loss], lambda x: rounded(x, texts)[loss], noise().float(), atol=0.05)
