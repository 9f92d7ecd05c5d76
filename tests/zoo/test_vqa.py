"""Question answering on transformers' own classes at tiny size, against their own forward passes."""

from pathlib import Path

import half
import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.zoo import vqa
from guidedgen.zoo.vqa import BlipVqa, ImageTextToText

SIDE, PATCH, WIDTH = 24, 8, 16
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "and", "square", "?", "yes", "no")
DEC, ENC = len(WORDS), len(WORDS) + 1  # which BLIP adds to BERT's words
QUESTIONS = ("a red circle?", "a blue square and a circle?")


def randomly(network, seed: int = 0):
    """Nothing at 0 or 1: every tensor counts."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def blip(side: int = SIDE):
    from transformers import BlipConfig, BlipForQuestionAnswering

    size = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": DEC, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**size, **ids, "vocab_size": ENC + 1, "encoder_hidden_size": WIDTH, "max_position_embeddings": 40}
    return randomly(
        BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config={**size, "image_size": side, "patch_size": PATCH}))
    )


def save_blip(folder: Path) -> Path:
    from transformers import BertTokenizer

    blip().save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> BlipVqa:
    """One of its own in float64."""
    asker = BlipVqa(name="tiny", path=save_blip(tmp_path_factory.mktemp("doubled")), size=SIDE)
    asker.network.double()
    return asker


def noise(b: int = 2, side: int = 40) -> torch.Tensor:
    return 0.1 + 0.8 * torch.rand(b, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def prepared(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    shown = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
    return pictures.normalise(shown, pictures.CLIP_MEAN, pictures.CLIP_STD)


def tokens(question: str) -> torch.Tensor:
    """1 l, [ENC] first."""
    return torch.tensor([[ENC, *(WORDS.index(word) for word in question.replace("?", " ?").split()), 3]])


def test_log_odds_are_of_transformers_own_decoder(doubled: BlipVqa):
    """The decoder's logits are caught in transformers' own forward, which keeps them to itself."""
    network, caught = doubled.network, []
    hook = network.text_decoder.register_forward_hook(lambda module, inputs, output: caught.append(output.logits[:, 0]))
    with torch.no_grad():
        for image, question in zip(noise(), QUESTIONS, strict=True):  # one by one: see `vision_language.decode`
            ids = tokens(question)
            network(input_ids=ids, pixel_values=prepared(image[None]), decoder_input_ids=torch.tensor([[DEC]]))
        hook.remove()
        logits, odds = torch.cat(caught), doubled(noise(), QUESTIONS)
    torch.testing.assert_close(odds, logits[:, WORDS.index("yes")] - logits[:, WORDS.index("no")])
    probability = logits.softmax(1)[:, [WORDS.index("yes"), WORDS.index("no")]]
    torch.testing.assert_close(odds.sigmoid(), probability[:, 0] / probability.sum(1))  # as T2I-CompBench has it
    assert (odds[0] - odds[1]).abs() > 1e-3


def test_a_batch_is_its_questions_one_by_one(folder: Path):
    asker, images, questions = BlipVqa(name="x", path=folder, size=SIDE), noise(4).float(), [*QUESTIONS, "a?", "no?"]
    with torch.no_grad():
        alone = [asker(images[i : i + 1], questions[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(asker(images, questions), torch.cat(alone))


def test_gradients_are_finite_differences(doubled: BlipVqa):
    x = noise(1, SIDE)
    step = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
    leaf = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad(doubled(leaf, QUESTIONS[:1]).sum(), leaf)
    with torch.no_grad():
        above, below = (doubled(x + h * step, QUESTIONS[:1]).sum() for h in (1e-5, -1e-5))
    torch.testing.assert_close((gradient * step).sum(), (above - below) / 2e-5, rtol=1e-6, atol=1e-9)
    assert gradient.abs().amax() > 0


def test_another_size_interpolates_the_positions(doubled: BlipVqa, folder: Path):
    larger = BlipVqa(name="x", path=doubled.folder, size=4 * PATCH)
    network, ids = larger.network, tokens(QUESTIONS[0])
    assert network is doubled.network
    with torch.no_grad():
        caught: list[torch.Tensor] = []
        hook = network.text_decoder.register_forward_hook(lambda module, inputs, output: caught.append(output.logits[0, 0]))
        network(
            input_ids=ids, pixel_values=prepared(noise(1), 4 * PATCH), decoder_input_ids=torch.tensor([[DEC]]),
            interpolate_pos_encoding=True,
        )  # fmt: skip
        hook.remove()
        odds = larger(noise(1), QUESTIONS[:1])[0]
    torch.testing.assert_close(odds, caught[0][WORDS.index("yes")] - caught[0][WORDS.index("no")])
    with pytest.raises(BadValue, match="must be a multiple of the patches' 8 px"):
        BlipVqa(name="x", path=folder, size=SIDE + 1)


AUTHORS = {  # one of each kind of tensor in salesforce/BLIP's checkpoints (models/vit.py, models/med.py) and transformers' name
    "visual_encoder.cls_token": "vision_model.embeddings.class_embedding",
    "visual_encoder.pos_embed": "vision_model.embeddings.position_embedding",
    "visual_encoder.patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual_encoder.blocks.1.norm1.weight": "vision_model.encoder.layers.1.layer_norm1.weight",
    "visual_encoder.blocks.11.norm2.bias": "vision_model.encoder.layers.11.layer_norm2.bias",
    "visual_encoder.blocks.1.attn.qkv.bias": "vision_model.encoder.layers.1.self_attn.qkv.bias",
    "visual_encoder.blocks.1.attn.proj.weight": "vision_model.encoder.layers.1.self_attn.projection.weight",
    "visual_encoder.blocks.1.mlp.fc1.weight": "vision_model.encoder.layers.1.mlp.fc1.weight",
    "visual_encoder.norm.weight": "vision_model.post_layernorm.weight",
    "text_encoder.encoder.layer.0.crossattention.self.key.weight": "text_encoder.encoder.layer.0.crossattention.self.key.weight",
    "text_decoder.cls.predictions.transform.LayerNorm.bias": "text_decoder.cls.predictions.transform.LayerNorm.bias",
}


def test_the_authors_names_become_transformers():
    tensors = {name: torch.tensor(float(i)) for i, name in enumerate(AUTHORS)}
    renamed = vqa.rename({**tensors, "text_encoder.embeddings.position_ids": torch.arange(3)})
    assert renamed == {new: tensors[old] for old, new in AUTHORS.items()}


def _theirs(name: str) -> str:
    """What BLIP's authors call a tensor of transformers'."""
    tail = name.removeprefix("vision_model.")
    if tail == name:
        return name
    for ours, theirs in (
        ("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"), ("encoder.layers", "blocks"), ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"), ("layer_norm", "norm"), ("post_layernorm", "norm"),
    ):  # fmt: skip
        tail = tail.replace(ours, theirs)
    return f"visual_encoder.{tail}"


def test_the_authors_checkpoint_takes_the_place_of_the_weights(folder: Path, tmp_path: Path):
    larger = blip(side=4 * PATCH)
    state = {_theirs(name): tensor for name, tensor in larger.state_dict().items()}
    state["text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save({"model": state, "epoch": 9}, tmp_path / "model_base_vqa.pth")
    asker = BlipVqa(name="x", path=folder, checkpoint=tmp_path / "model_base_vqa.pth", size=4 * PATCH)
    loaded = asker.network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in larger.state_dict().items())
    assert asker.network.config.vision_config.image_size == 4 * PATCH
    torch.save({"model": {name: tensor for name, tensor in state.items() if "fc2" not in name}}, tmp_path / "short.pth")
    with pytest.raises(UsageError, match="4 tensors differ, vision_model.encoder.layers.0.mlp.fc2.weight first"):
        vqa._load_blip(folder, tmp_path / "short.pth", True, torch.device("cpu"), "float32", "vqa.path")


def without_words(folder: Path, target: Path) -> Path:
    """The same network, without its tokenizer."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_a_folder_without_words_is_refused(folder: Path, tmp_path: Path):
    """transformers makes a tokenizer that knows no word, to which yes and no are the same."""
    mute, checkpoint = without_words(folder, tmp_path / "mute"), tmp_path / "own.pth"
    torch.save({}, checkpoint)
    for options in ({}, {"checkpoint": checkpoint}):
        with pytest.raises(UsageError, match=r"^zoo.vqa.path=.*has no tokenizer.json and no vocab.txt"):
            BlipVqa(name="x", path=mute, key="zoo.vqa.path", **options)


def test_words_in_a_text_file_are_as_good(folder: Path, tmp_path: Path):
    plain = without_words(folder, tmp_path / "plain")
    (plain / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    with torch.no_grad():
        odds = [BlipVqa(name="x", path=path, size=SIDE)(noise().float(), QUESTIONS) for path in (folder, plain)]
    assert torch.equal(*odds)


@pytest.mark.parametrize("unknown", ["yes", "no"])
def test_a_tokenizer_that_does_not_know_the_answers_is_refused_before_weights_are_read(folder: Path, tmp_path: Path, unknown: str):
    plain = without_words(folder, tmp_path / "plain")
    (plain / "vocab.txt").write_text("\n".join(word if word != unknown else "other" for word in WORDS) + "\n")
    (plain / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="its tokenizer does not know yes and no"):
        BlipVqa(name="x", path=plain, size=SIDE)(noise().float(), QUESTIONS)


def test_it_says_what_answers_depend_on(folder: Path, tmp_path: Path):
    assert BlipVqa(name="tiny", path=folder, size=SIDE).described == "tiny at 24 px (transformers' weights)"
    torch.save({}, tmp_path / "own.pth")
    authors = BlipVqa(name="tiny", path=folder, checkpoint=tmp_path / "own.pth", size=SIDE)
    assert authors.described == "tiny at 24 px (the authors' own.pth)"


# Any image-text-to-text model: a tiny LLaVA

TEMPLATE = "{{ bos_token }}{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %} :"
SAID = ["<s>", "</s>", "<image>", "<unk>", "Yes", "yes", "no", "No", "Answer", "or", "a", "red", "circle", "?", ".", ":", "blue"]


def save_llava(folder: Path, *, template: str | None = TEMPLATE, words: list[str] = SAID, backend: str = "torchvision") -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPImageProcessor,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )  # fmt: skip

    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    shape = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    prepare = (CLIPImageProcessor if backend == "torchvision" else CLIPImageProcessorPil)(**shape)
    LlavaProcessor(
        image_processor=prepare, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=template, image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    size = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**size, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**size, vocab_size=len(SAID)), image_token_index=2, image_seq_length=9,
    )  # fmt: skip
    randomly(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def word_ids(text: str) -> list[int]:
    return [SAID.index(word) if word in SAID else 3 for word in text.replace("?", " ?").replace(".", " .").split()]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> ImageTextToText:
    return ImageTextToText(path=save_llava(tmp_path_factory.mktemp("llava")))


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_any_models_log_odds_are_of_its_next_token(llava: ImageTextToText, template: str | None, tmp_path: Path):
    asker = llava if template else ImageTextToText(path=save_llava(tmp_path, template=None))
    image, question = noise(1, SIDE).float(), "a red circle?"
    ids = torch.tensor([[0, *[2] * 9, *word_ids(f"{question} Answer yes or no."), *([SAID.index(":")] if template else [])]])
    with torch.no_grad():
        logits = asker.network(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=prepared(image)).logits[0, -1]
        odds = asker(image, [question])
    p = logits.softmax(0)
    yes, no = p[[SAID.index("yes"), SAID.index("Yes")]].sum(), p[[SAID.index("no"), SAID.index("No")]].sum()
    torch.testing.assert_close(odds[0].sigmoid(), yes / (yes + no))


def test_any_models_gradients_pass_a_processor_of_tensors(llava: ImageTextToText, tmp_path: Path):
    assert llava.differentiable
    x = noise(2, 40).float().requires_grad_()
    [gradient] = torch.autograd.grad(llava(x, ["a red circle?", "a blue circle?"]).sum(), x)
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    h, step = 1e-3, torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        above, below = (llava(x + sign * h * step, ["a red circle?", "a blue circle?"]).sum() for sign in (1, -1))
    torch.testing.assert_close((gradient * step).sum(), (above - below) / (2 * h), rtol=1e-2, atol=1e-3)


def test_any_models_gradients_are_not_lost_in_half_precision(llava: ImageTextToText):
    """The gradient of a reward that is nearly certain is tiny: below 6e-8, numbers are 0 in float16."""
    x, questions = noise(2, SIDE).float().requires_grad_(), ["a red circle?", "a blue circle?"]
    half = ImageTextToText(path=llava.folder, dtype="float16")
    odds = [asker(x, questions) for asker in (llava, half)]
    assert half.network.dtype == torch.float16 and odds[1].dtype == torch.float32
    torch.testing.assert_close(odds[1], odds[0], rtol=2e-2, atol=2e-2)
    exact, found = (torch.autograd.grad(1e-6 * answers.sum(), x)[0].flatten(1) for answers in odds)
    assert F.cosine_similarity(found, exact).min() > 0.99
    torch.testing.assert_close(found.norm(dim=1), exact.norm(dim=1), rtol=0.05, atol=0)


def test_any_models_answers_are_looked_for_before_weights_are_read(tmp_path: Path):
    folder = save_llava(tmp_path, words=[word if word.lower() != "no" else f"({word})" for word in SAID])
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="its tokenizer has no token for 'no'"):
        ImageTextToText(path=folder)(noise(1).float(), ["a?"])


def test_any_models_gradients_do_not_pass_a_processor_of_pictures(llava: ImageTextToText, tmp_path: Path):
    asker = ImageTextToText(path=save_llava(tmp_path, backend="pil"))
    asker.__dict__["_processor"] = _pictures(asker)
    assert not asker.differentiable
    x = noise(1, 40).float().requires_grad_()
    odds = asker(x, ["a red circle?"])
    assert not odds.requires_grad
    torch.testing.assert_close(odds, llava(x, ["a red circle?"]).detach(), atol=0.05, rtol=0.05)


def _pictures(asker: ImageTextToText):
    """Its processor, preparing images with Pillow, as it does where there is no torchvision."""
    from transformers import CLIPImageProcessorPil

    processor = asker._processor
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(asker.folder)
    return processor


def test_any_models_batch_is_its_questions_one_by_one(llava: ImageTextToText):
    images, questions = noise(3).float(), ["a red circle?", "a?", "a blue circle or a red circle?"]
    with torch.no_grad():
        alone = [llava(images[i : i + 1], questions[i : i + 1]) for i in range(3)]
        assert torch.equal(llava(images, questions), torch.cat(alone))


def save_blip2_t5(folder: Path) -> Path:
    """A BLIP-2 whose language model is an encoder and a decoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
        T5Config,
    )

    words = ["<pad>", "</s>", "<unk>", *SAID[4:]]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    prepare = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    Blip2Processor(prepare, tokenizer, num_query_tokens=5).save_pretrained(folder)
    size = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    t5 = T5Config(d_model=WIDTH, d_ff=24, d_kv=8, num_layers=2, num_heads=2, vocab_size=len(words) + 1, decoder_start_token_id=0)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**size, image_size=SIDE, patch_size=PATCH),
        qformer_config=Blip2QFormerConfig(**size, vocab_size=9, encoder_hidden_size=WIDTH),
        text_config=t5,
        num_query_tokens=5,
        image_token_index=len(words),
    )
    randomly(Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def test_an_encoder_and_decoder_answers_first(tmp_path: Path):
    asker, image = ImageTextToText(path=save_blip2_t5(tmp_path)), noise(1, SIDE).float()
    words = ["<pad>", "</s>", "<unk>", *SAID[4:]]
    text = [words.index(word) if word in words else 2 for word in "a red circle ? Answer yes or no .".split()]
    ids = torch.tensor([[len(words)] * 5 + text + [1]])
    with torch.no_grad():
        logits = asker.network(
            pixel_values=prepared(image), input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=torch.tensor([[0]])
        ).logits[0, 0]
        odds = asker(image, ["a red circle?"])
    p = logits.softmax(0)
    yes, no = p[[words.index("yes"), words.index("Yes")]].sum(), p[[words.index("no"), words.index("No")]].sum()
    torch.testing.assert_close(odds[0].sigmoid(), yes / (yes + no))


def test_what_is_wrong_is_one_line(folder: Path, clip_folder: Path, tmp_path: Path):
    mute = [word if word.lower() != "yes" else f"({word})" for word in SAID]
    for call, match in [
        (lambda: BlipVqa(name="x", path=clip_folder), "holds a model of type clip; a blip is needed"),
        (lambda: BlipVqa(name="x", path=folder, checkpoint=tmp_path / "no.pth"), "no such file"),
        (lambda: ImageTextToText(path=clip_folder).network, "transformers cannot load it as an image-text-to-text model"),
        (lambda: ImageTextToText(path=save_llava(tmp_path, words=mute))(noise(1).float(), ["a?"]), "has no token for 'yes'"),
    ]:
        with pytest.raises(UsageError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_half_precision(folder: Path) -> None:
    full, rounded = (BlipVqa(name="tiny", path=folder, size=SIDE, dtype=kind) for kind in ("float32", "float16"))
    asked = [f"{WORDS[6]}?", f"{WORDS[5]}?"]
    half.check(lambda x: full(x, asked), lambda x: rounded(x, asked), noise().float(), atol=0.05)
