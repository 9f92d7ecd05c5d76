"""Classifiers against transformers' own pipelines and the lab's own score; labels found by name and in prompts."""

from pathlib import Path

import pytest
import torch

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.lab import captions, judge, networks
from guidedgen.rewards.classifier import Classifier
from guidedgen.zoo import classifier as module
from guidedgen.zoo.classifier import HubClassifier, LabClassifier

LABELS = {0: "tabby, tabby cat", 1: "lion", 2: "sea lion", 3: "crane", 4: "crane", 5: "golden retriever"}


def save(folder: Path, processor=None, seed: int = 0) -> Path:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**size, image_size=32, patch_size=8, id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ViTForImageClassification(config)
        torch.nn.init.normal_(network.classifier.weight)  # logits that differ
    network.save_pretrained(folder)
    (processor or ViTImageProcessor(size={"height": 32, "width": 32})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("vit"))


def picture(height: int, width: int) -> torch.Tensor:
    """Waves, in 8 bits."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    waves = torch.stack([(x + y).sin(), (x * y / 5).cos(), (2 * x - y).sin()]) * 0.4 + 0.5
    return images.to_bytes(waves[None]).float() / 255


def processors() -> dict[str, object]:
    from transformers import BitImageProcessor, ConvNextImageProcessor, ViTImageProcessor

    return {
        "squashed": ViTImageProcessor(size={"height": 32, "width": 32}),
        "margin": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
        "cropped": BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    }


@pytest.mark.parametrize("kind", ["squashed", "margin", "cropped"])
@pytest.mark.parametrize("size", [(32, 32), (80, 80), (50, 90)])
def test_log_probability_is_that_of_transformers_pipeline(kind: str, size: tuple[int, int], tmp_path: Path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    save(tmp_path, processors()[kind])
    pixels = AutoImageProcessor.from_pretrained(tmp_path)(images.to_pil(picture(*size))[0], return_tensors="pt").pixel_values
    reference = AutoModelForImageClassification.from_pretrained(tmp_path)(pixels).logits.log_softmax(-1)[0]
    found = HubClassifier(name="tiny", path=tmp_path)(picture(*size).expand(6, -1, -1, -1), list(range(6)))
    # The processors resize in 8 bits, where anything is resized.
    exact = size == (32, 32) and kind == "squashed"
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-5 if exact else 0.05)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_labels_by_name(folder: Path):
    network = HubClassifier(name="tiny", path=folder)
    assert [network.label(name) for name in ("lion", "Tabby Cat", "tabby", "tabby, tabby cat")] == [1, 0, 0, 0]
    assert [network.label_in(text) for text in ("A lion.", "a sea lion on a rock", "the golden-retriever", "tabby cat")] == [
        1,
        2,
        5,
        0,
    ]
    for call, match in [
        (lambda: network.label("loin"), r"^is no label of tiny; did you mean lion"),
        (lambda: network.label("zzz"), r"^is no label of tiny; the first of its 6 are tabby, tabby cat; lion; sea lion"),
        (lambda: network.label("crane"), "several labels of tiny"),
        (lambda: network.label_in("a golden retreiver"), r"^names no label of tiny; did you mean golden retriever|the first of"),
        (lambda: network.label_in("a lionn"), r"^names no label of tiny; did you mean lion\?"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()


def test_gradient_reaches_the_pixels(tmp_path: Path):
    network = HubClassifier(name="tiny", path=save(tmp_path, seed=1))
    network.network.double()
    reward, tasks = Classifier(classifier=network), [Task(id="a", prompt="a lion"), Task(id="b", prompt="a tabby")]
    generator = torch.Generator().manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(2, 3, 45, 40, dtype=torch.float64, generator=generator)
    direction = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    with torch.inference_mode():
        reward(x, tasks)
    [gradient] = torch.autograd.grad(reward(x.requires_grad_(), tasks).sum(), x)
    h = 1e-6
    difference = (reward(x.detach() + h * direction, tasks) - reward(x.detach() - h * direction, tasks)).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-5, atol=1e-8)
    assert reward.networks == ("tiny",)


def test_lazy_shared_and_frozen(tmp_path: Path):
    save(tmp_path, seed=2)
    before = module._load.cache_info().misses
    first, second = (HubClassifier(name=name, path=tmp_path) for name in ("reward", "metric"))
    assert module._load.cache_info().misses == before
    assert first.network is second.network and not any(p.requires_grad for p in first.network.parameters())


def test_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = save(repository / "snapshots" / commit)
    cached, local = (HubClassifier(name="tiny", path=path)(picture(32, 32), [1]) for path in ("org/name", folder))
    assert torch.equal(cached, local)


def test_what_is_wrong_is_one_line(tmp_path: Path, clip_folder: Path):
    import json

    save(tmp_path / "a", seed=3)

    def refusal(call) -> str:
        with pytest.raises(UsageError) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "names no labels" in refusal(
        lambda: HubClassifier(name="x", path=_with_processor(clip_folder, tmp_path / "clip"), key="zoo.classifier.path")
    )
    config = tmp_path / "a" / "config.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps({**plain, "model_type": "strange", "auto_map": {"AutoModelForImageClassification": "evil.Model"}}))
    assert "transformers cannot load it" in refusal(lambda: HubClassifier(name="x", path=tmp_path / "a").network)
    for file in (tmp_path / "a").glob("*processor*"):
        file.unlink()
    assert "has no preprocessor_config.json" in refusal(lambda: HubClassifier(name="x", path=tmp_path / "a"))


def _with_processor(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target)
    (target / "preprocessor_config.json").write_text("{}")
    return target


def test_the_labs_score(random_lab: Path):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = ["a red circle", "a blue square and a green star"]
    reward = Classifier(classifier=LabClassifier())
    values = reward(x, [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)])
    expected = judge.log_score(x, [captions.parse(prompt) for prompt in prompts], networks.load_classifier())
    torch.testing.assert_close(values, expected)
    assert reward.networks == judge.SceneAccuracy.networks  # a report marks the metric as judged by the guide
    torch.testing.assert_close(
        Classifier(classifier=LabClassifier(), label="red circle")(x[:1], [Task(id="a", prompt="?")])[0], expected[0]
    )
    [gradient] = torch.autograd.grad(reward(x.requires_grad_(), [Task(id="a", prompt=p) for p in prompts]).sum(), x)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_the_labs_labels(random_lab: Path):
    lab = LabClassifier()
    assert lab.label("a red circle") == lab.label("red circle") == lab.label_in("A red circle.") == captions.parse("a red circle")
    for call, match in [
        (lambda: lab.label("red cirle"), r"^is no scene that the lab's classifier can judge; did you mean circle\?"),
        (lambda: lab.label_in("a photo of my aunt"), r"^describes no scene that the lab's classifier can judge; as in"),
        (lambda: lab.label_in("a red circle and a blue circle"), "no shape twice"),
    ]:
        with pytest.raises(UsageError, match=match):
            call()


def test_missing_lab_weights_are_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    with pytest.raises(UsageError, match="make it with: python scripts/train_lab.py --parts classifier"):
        LabClassifier()
