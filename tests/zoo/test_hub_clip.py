"""HubClip computes what transformers' own pipeline computes, and is differentiable."""

import json
from pathlib import Path

import half
import numpy as np
import pytest
import torch
from PIL import Image

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.rewards.pickscore import PickScore
from guidedgen.zoo import clip as module
from guidedgen.zoo.clip import HubClip
from guidedgen.zoo.inception import ClipFeatures


@pytest.fixture
def clip(clip_folder: Path) -> HubClip:
    return HubClip(name="tiny", path=clip_folder)


def picture(height: int, width: int) -> torch.Tensor:
    """Waves with a little noise, as a photograph has them."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    waves = torch.stack([(x + y).sin(), (x * y / 5).cos(), (2 * x - y).sin()]) * 0.4 + 0.5
    return (waves + 0.03 * torch.randn(waves.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)[None]


@pytest.mark.parametrize("size", [(32, 32), (80, 80), (64, 96), (24, 24), (100, 78)])
def test_image_embedding_is_that_of_the_pillow_pipeline(clip: HubClip, clip_folder: Path, tmp_path: Path, size: tuple[int, int]):
    from transformers import CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    (tmp_path / "image.png").write_bytes(images.png(picture(*size)[0]))
    processor = CLIPProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        CLIPTokenizer.from_pretrained(clip_folder),
    )
    inputs = processor(images=Image.open(tmp_path / "image.png"), text=["a cat"], return_tensors="pt", padding=True)
    reference = clip.network(**inputs)
    embedding = clip.encode_image(images.read(tmp_path / "image.png"))
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(1))
    # Where nothing is resized the pipelines are one; otherwise Pillow's rounds to 8 bits, half a level per pixel at most:
    # up to 7e-4 here (a bilinear resize would be off by 1.2e-3 and more).
    torch.testing.assert_close(embedding, reference.image_embeds, rtol=0, atol=1e-6 if size == (32, 32) else 1e-3)
    torch.testing.assert_close(clip.encode_text(["a cat"]), reference.text_embeds, rtol=0, atol=1e-6)


def test_long_texts_are_cut_with_the_end_token_kept(clip: HubClip):
    text = "cat " * 50
    ids = clip._tokenizer(text)["input_ids"]
    length = clip.network.config.text_config.max_position_embeddings
    cut = torch.tensor([[*ids[: length - 1], ids[-1]]])
    reference = clip.network.get_text_features(input_ids=cut).pooler_output
    torch.testing.assert_close(clip.encode_text([text])[0], reference[0] / reference.norm(), rtol=0, atol=1e-6)


def test_a_text_does_not_depend_on_its_neighbours_lengths(clip: HubClip):
    together = clip.encode_text(["cat", "a much longer text"])
    torch.testing.assert_close(together[:1], clip.encode_text(["cat"]), rtol=0, atol=1e-6)
    assert together.shape == (2, clip.dim) and (together[0] - together[1]).abs().max() > 1e-3


def test_gradient_reaches_the_pixels(another_clip_folder: Path):
    clip = HubClip(name="tiny", path=another_clip_folder)
    clip.network.double()
    generator = torch.Generator().manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(1, 3, 45, 40, dtype=torch.float64, generator=generator)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    towards = torch.randn(clip.dim, dtype=torch.float64, generator=generator)

    def score(images: torch.Tensor) -> torch.Tensor:
        return (clip.encode_image(images) @ towards).sum()

    [gradient] = torch.autograd.grad(score(x.requires_grad_()), x)
    h = 1e-5
    difference = (score(x.detach() + h * direction) - score(x.detach() - h * direction)) / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-9)
    assert gradient.abs().amax((0, 1, 3)).count_nonzero() >= 40  # all rows that the centre crop keeps


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_loaded_inside_inference_mode_still_differentiable(another_clip_folder: Path, dtype: str):
    clip = HubClip(name="tiny", path=another_clip_folder, dtype=dtype)
    x = picture(32, 32)
    with torch.inference_mode():
        clip.encode_image(x)
    [gradient] = torch.autograd.grad(clip.encode_image(x.requires_grad_())[0, 0], x)
    assert gradient.abs().sum() > 0


def test_lazy_shared_and_frozen(another_clip_folder: Path):
    before = module._load_hub.cache_info().misses
    reward, metric = (HubClip(name=name, path=another_clip_folder) for name in ("reward", "metric"))
    assert module._load_hub.cache_info().misses == before
    assert reward.network is metric.network
    assert not reward.network.training and not any(p.requires_grad for p in reward.network.parameters())
    assert {p.dtype for p in reward.network.parameters()} == {torch.float32}


def test_half_precision_images_are_prepared_in_single(clip: HubClip):
    x = images.from_pil([Image.fromarray(np.full((40, 40, 3), 64, np.uint8))])
    half = clip.encode_image((x * 0 + 0.25).half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, clip.encode_image(x * 0 + 0.25))


def test_range_is_checked(clip: HubClip):
    with pytest.raises(ValueError, match=r"tiny: expected values in \[0, 1\]"):
        clip.encode_image(2 * picture(32, 32) - 1)


def test_pickled_weights_where_there_are_no_others(another_clip_folder: Path):
    from safetensors.torch import load_file

    whole = HubClip(name="tiny", path=another_clip_folder).encode_text(["cat"])
    module._load_hub.cache_clear()
    state = load_file(another_clip_folder / "model.safetensors")
    (another_clip_folder / "model.safetensors").unlink()
    torch.save(state, another_clip_folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"has no model\.safetensors"):
        HubClip(name="tiny", path=another_clip_folder, weights="model.safetensors")
    for weights in (None, "pytorch_model.bin"):
        found = HubClip(name="tiny", path=another_clip_folder, weights=weights)
        torch.testing.assert_close(found.encode_text(["cat"]), whole)


def test_other_models_and_lacking_weights_are_refused(another_clip_folder: Path):
    from safetensors.torch import load_file, save_file

    state = load_file(another_clip_folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, another_clip_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="lack 1 tensors of a CLIP, visual_projection.weight first"):
        HubClip(name="tiny", path=another_clip_folder).network  # noqa: B018
    (another_clip_folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UsageError, match="holds a model of type siglip"):
        HubClip(name="tiny", path=another_clip_folder)


def test_clip_as_features(clip: HubClip):
    features = ClipFeatures(clip=clip)
    assert features.name == "tiny"
    assert torch.equal(features(picture(40, 40)), clip.encode_image(picture(40, 40)))


def test_pickscore_is_the_authors_score(another_clip_folder: Path, tmp_path: Path):
    """The logit that CLIPModel gives, exp(logit_scale) * cosine, with the tokenizer of another repository; the README's recipe."""
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTokenizer

    (tmp_path / "words").mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (another_clip_folder / file).rename(tmp_path / "words" / file)
    state = load_file(another_clip_folder / "model.safetensors")
    state["logit_scale"] = torch.tensor(100.0).log()
    save_file(state, another_clip_folder / "model.safetensors", metadata={"format": "pt"})
    clip = HubClip(name="tiny", path=another_clip_folder, tokenizer=tmp_path / "words")
    x, prompts = torch.cat([picture(32, 32), 1 - picture(32, 32)]), ["a cat", "cat dog"]
    tokens = CLIPTokenizer.from_pretrained(tmp_path / "words")(prompts, padding=True, return_tensors="pt")
    logits = clip.network(pixel_values=images.normalise(x, images.CLIP_MEAN, images.CLIP_STD), **tokens).logits_per_image
    tasks = [Task(id=prompt, prompt=prompt) for prompt in prompts]
    reward = PickScore(clip=clip)
    assert clip.logit_scale == pytest.approx(100, rel=1e-5)
    torch.testing.assert_close(reward.reports["pickscore_x100"](x, tasks), logits.diagonal(), rtol=0, atol=1e-4)
    torch.testing.assert_close(reward(x, tasks), logits.diagonal() / 100, rtol=0, atol=1e-6)


def test_a_tokenizer_from_elsewhere_is_located_at_once(clip_folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"^zoo\.preference\.path: tokenizer=.*: has no tokenizer\.json"):
        HubClip(name="tiny", path=clip_folder, tokenizer=tmp_path, key="zoo.preference.path")
    with pytest.raises(UsageError, match="tokenizer=org/none: .* fetch it with: python scripts/fetch.py org/none"):
        HubClip(name="tiny", path=clip_folder, tokenizer="org/none")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(another_clip_folder: Path, dtype: str):
    """The factor of its scores is not rounded, which for PickScore's would move them by 0.03 %."""
    full, rounded = (HubClip(name="tiny", path=another_clip_folder, dtype=kind) for kind in ("float32", dtype))
    towards = torch.randn(full.dim, generator=torch.Generator().manual_seed(1))
    half.check(
        lambda x: full.encode_image(x) @ towards,
        lambda x: rounded.encode_image(x) @ towards,
        picture(45, 40),
        atol=0.1,
        cosine=0.97,
    )
    assert rounded.encode_text(["cat"]).dtype == torch.float32
    torch.testing.assert_close(rounded.encode_text(["cat"]), full.encode_text(["cat"]), rtol=0, atol=0.02)
    assert rounded.logit_scale == full.logit_scale
    assert {p.dtype for p in rounded.network.parameters() if p.ndim} == {getattr(torch, dtype)}


def test_half_precision_is_for_a_gpu(another_clip_folder: Path):
    found = {
        device: HubClip(name="tiny", path=another_clip_folder, device=device, dtype="auto").dtype for device in ("cpu", "cuda:1")
    }
    assert found == {"cpu": "float32", "cuda:1": "float16"}
