"""The safety checker against diffusers' own class on random networks, and classifiers as filters against their probabilities."""

import copy
import math
from pathlib import Path

import pytest
import torch

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.lab.captions import parse
from guidedgen.zoo import filter as module
from guidedgen.zoo.classifier import LabClassifier
from guidedgen.zoo.filter import ClassifierFilter, SafetyChecker

SIDE, DIM, PICTURES = 32, 24, 300


def pictures() -> torch.Tensor:
    """Random ones, some smooth and some not."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(PICTURES // 2, 3, SIDE, SIDE, generator=generator)
    smooth = torch.nn.functional.interpolate(torch.rand(PICTURES // 2, 3, 3, 3, generator=generator), SIDE, mode="bilinear")
    return torch.cat([rough, smooth * torch.rand(PICTURES // 2, 1, 1, 1, generator=generator)])


def build(seed: int = 0):
    """Diffusers' class with concepts that flag about a third of the pictures, and special care for as many."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
    from transformers import CLIPConfig

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(vision_config={**size, "image_size": SIDE, "patch_size": 8}, projection_dim=DIM)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        checker = StableDiffusionSafetyChecker(config).eval()
        embeddings = embed(checker, pictures())
        for concepts, thresholds, share in (
            (checker.concept_embeds, checker.concept_embeds_weights, 0.03),
            (checker.special_care_embeds, checker.special_care_embeds_weights, 0.15),
        ):
            concepts.copy_(torch.randn(concepts.shape))
            thresholds.copy_(cosine_distance(embeddings, concepts).quantile(1 - share, dim=0))
    return checker


def embed(checker, x: torch.Tensor) -> torch.Tensor:
    return checker.visual_projection(checker.vision_model(images.normalise(x, images.CLIP_MEAN, images.CLIP_STD))[1])


@pytest.fixture(scope="module")
def checker():
    return build()


@pytest.fixture(scope="module")
def folder(checker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checker.save_pretrained(path := tmp_path_factory.mktemp("checker"))
    return path


def flags(checker, x: torch.Tensor) -> torch.Tensor:
    """By diffusers' own forward."""
    pixels = images.normalise(x, images.CLIP_MEAN, images.CLIP_STD)
    return torch.tensor(checker(clip_input=pixels, images=x.clone())[1])


def above(checker, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far each cosine is above its concept's threshold, and above its special care's: b k each, in float64."""
    exact = copy.deepcopy(checker).double()
    with torch.no_grad():
        unit = torch.nn.functional.normalize(embed(exact, x.double()))
        concepts = unit @ torch.nn.functional.normalize(exact.concept_embeds).T - exact.concept_embeds_weights
        care = unit @ torch.nn.functional.normalize(exact.special_care_embeds).T - exact.special_care_embeds_weights
    return concepts, care


# An error of float32's cosines of these networks is some multiples of 1e-7, the unit in their last place. It decides nothing
# where they are farther than that from where diffusers' class, which rounds to 3 decimals, changes its mind.
CLEAR = 1e-5


def clear(checker) -> torch.Tensor:
    """Those of the pictures on which rounding decides nothing: for no concept, with special care or without."""
    x = pictures()
    concepts, care = above(checker, x)
    edges = torch.cat([concepts - 0.0005, concepts + 0.01 - 0.0005, care - 0.0005], 1)
    kept = x[edges.abs().amin(1) > CLEAR]
    assert len(kept) > 0.8 * PICTURES
    return kept


def test_it_flags_what_diffusers_flags(checker, folder: Path, caplog: pytest.LogCaptureFixture):
    x = clear(checker)
    margin, theirs = SafetyChecker(path=folder).margin(x), flags(checker, x)
    assert torch.equal(margin > 0, theirs)
    assert 0.2 < theirs.float().mean() < 0.8
    # Special care decides some of them, and for some it is not enough.
    special = checker.special_care_embeds_weights.clone()
    try:
        checker.special_care_embeds_weights.fill_(2)  # above every cosine
        without = flags(checker, x)
    finally:
        checker.special_care_embeds_weights.copy_(special)
    assert (theirs & ~without).any() and not (without & ~theirs).any()


def test_its_margin_is_the_nearest_concept_s(checker, folder: Path):
    """Cosine less threshold, 0.01 more under special care, and the half of a thousandth that rounding takes."""
    x = clear(checker)[:40]
    concepts, cares = above(checker, x)
    care = (cares > 0.0005).any(1)
    expected = concepts.amax(1) + 0.01 * care - 0.0005
    assert 0 < care.sum() < 40
    torch.testing.assert_close(SafetyChecker(path=folder).margin(x).double(), expected, rtol=0, atol=CLEAR)


def test_its_gradient_reaches_the_pixels(tmp_path: Path):
    build(seed=1).save_pretrained(tmp_path)
    found = SafetyChecker(path=tmp_path)
    x = 0.1 + 0.8 * pictures()[PICTURES // 2 :][:2]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():  # loaded there, it is still differentiable
        found.margin(x)
    [gradient] = torch.autograd.grad(found.margin(x.requires_grad_()).sum(), x)
    h = 2e-3
    with torch.no_grad():
        difference = (found.margin(x + h * direction).double() - found.margin(x - h * direction).double()).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum().double(), difference, rtol=2e-2, atol=1e-4)


def test_pictures_of_other_sizes_are_prepared_as_for_clip(folder: Path):
    found, x = SafetyChecker(path=folder), pictures()[-4:]
    large = torch.nn.functional.interpolate(x, (80, 100), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(found.margin(large), found.margin(images.resize(large, SIDE)))
    with pytest.raises(ValueError, match=r"sd-safety-checker: expected values in \[0, 1\]"):
        found.margin(2 * x - 1)


def test_names_of_older_transformers_and_state_dicts_of_torch(folder: Path, tmp_path: Path):
    """The published files say twice that a tensor is of the vision model, and hold the positions' numbers."""
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    old = {name.replace("vision_model.", "vision_model.vision_model."): tensor for name, tensor in state.items()}
    old["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(old, tmp_path / "pytorch_model.bin")
    ours = SafetyChecker(path=tmp_path, weights="pytorch_model.bin")
    assert torch.equal(ours.margin(pictures()[:8]), SafetyChecker(path=folder).margin(pictures()[:8]))
    network = module._load(ours.file, "x", torch.device("cpu")).network
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_what_is_wrong_is_one_line(folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(UsageError, match=r"^zoo\.filter\.path=.*: has no model\.safetensors"):
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        SafetyChecker(path=tmp_path, key="zoo.filter.path")
    with pytest.raises(UsageError, match="fetch it with: python scripts/fetch.py org/none"):
        SafetyChecker(path="org/none")
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "concept_embeds"}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="lack 1 tensors of a safety checker, concept_embeds first") as caught:
        SafetyChecker(path=tmp_path).margin(pictures()[:1])
    assert "\n" not in str(caught.value)
    save_file({**state, "visual_projection.weight": torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="not of the shapes that .*config.json says") as caught:
        SafetyChecker(path=tmp_path).margin(pictures()[:1])
    assert "\n" not in str(caught.value)


# Classifiers as filters


class Known:
    """A classifier whose logits of two labels are the mean of the first channel, scaled, and 0."""

    name = "known"

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def label(self, name: str) -> int:
        if name != "a":
            raise UsageError("is no label of known")
        return 0

    def __call__(self, images: torch.Tensor, labels) -> torch.Tensor:
        logits = self.scale * (images[:, 0].mean((1, 2)) - 0.5)
        return torch.stack([logits, torch.zeros_like(logits)], 1).log_softmax(1)[range(len(labels)), labels]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_a_classifier_flags_above_its_threshold(threshold: float):
    x = torch.rand(200, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = ClassifierFilter(classifier=Known(8.0), label="a", threshold=threshold)
    p = (8 * (x[:, 0].mean((1, 2)) - 0.5)).sigmoid()
    assert torch.equal(found.margin(x) > 0, p > threshold)
    assert 0 < (p > threshold).sum() < 200
    expected = 8 * (x[:, 0].mean((1, 2)) - 0.5) - math.log(threshold / (1 - threshold))  # log-odds are the logits' difference
    torch.testing.assert_close(found.margin(x), expected, rtol=1e-4, atol=1e-4)
    assert found.name == "known"


def test_its_margin_is_as_steep_where_the_classifier_is_sure():
    """Where log p is flat; and finite where p is 1 or 0 to the last digit."""
    found = ClassifierFilter(classifier=Known(24.0), label="a")
    x = torch.ones(1, 3, 2, 2).requires_grad_()
    [sure] = torch.autograd.grad(found.margin(x).sum(), x)
    [flat] = torch.autograd.grad(Known(24.0)(x, [0]).sum(), x)
    assert sure[0, 0].sum().item() == pytest.approx(24, rel=0.05)
    assert flat.abs().sum() < 1e-3
    for scale in (1e3, -1e3):
        x = torch.ones(1, 3, 2, 2).requires_grad_()
        margin = ClassifierFilter(classifier=Known(scale), label="a").margin(x)
        [gradient] = torch.autograd.grad(margin.sum(), x)
        assert margin.isfinite().all() and gradient.isfinite().all()
        assert (margin > 0).all() == (scale > 0)


def test_wrong_options_are_named():
    with pytest.raises(UsageError, match=r"^zoo\.filter\.label=b: it is no label of known$"):
        ClassifierFilter(classifier=Known(1.0), label="b", key="zoo.filter")
    for threshold in (0.0, 1.0, -1.0):
        with pytest.raises(BadValue, match=f"^threshold={threshold}"):
            ClassifierFilter(classifier=Known(1.0), label="a", threshold=threshold)


def test_the_lab_s_classifier_is_a_filter(random_lab: Path):
    """With random weights: its own log-probability of a lone thing."""
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    classifier = LabClassifier()
    log_p = classifier(x, [parse("a shape")] * 3).double()
    margin = ClassifierFilter(classifier=classifier, label="shape").margin(x).double()
    torch.testing.assert_close(margin, log_p - torch.log1p(-log_p.exp()), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_the_published_size(tmp_path: Path):
    """Random weights in CLIP L/14's vision tower (config.json of CompVis/stable-diffusion-safety-checker): 304 million numbers, the
    flags of diffusers' class, gradients to pictures of Stable Diffusion's size."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    size = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(vision_config={**size, "image_size": 224, "patch_size": 14}, projection_dim=768)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        checker = StableDiffusionSafetyChecker(config).eval()
        for concepts in (checker.concept_embeds, checker.special_care_embeds):
            concepts.copy_(torch.randn(concepts.shape))
    assert (checker.concept_embeds.shape, checker.special_care_embeds.shape) == ((17, 768), (3, 768))
    x = torch.nn.functional.interpolate(pictures()[-2:], 512, mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        unit = torch.nn.functional.normalize(embed(checker, images.resize(x, 224)))
        nearest = (unit @ torch.nn.functional.normalize(checker.concept_embeds).T).max(1).values
        checker.concept_embeds_weights.fill_(nearest.mean())  # between the two
    checker.save_pretrained(tmp_path)
    found = SafetyChecker(path=tmp_path)
    margin = found.margin(x.requires_grad_())
    theirs = flags(checker, images.resize(x.detach(), 224))
    assert theirs.tolist() in ([True, False], [False, True])
    assert torch.equal(margin > 0, theirs)
    [gradient] = torch.autograd.grad(margin.sum(), x)
    assert gradient.isfinite().all() and gradient.abs().amax((1, 2, 3)).min() > 0
    network = module._load(found.file, "x", torch.device("cpu")).network
    assert sum(parameter.numel() for parameter in network.parameters()) == 303_966_208
    module._load.cache_clear()
