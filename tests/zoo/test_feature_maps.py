"""Feature maps against the networks they are taken from, through the preparations of the code that published them."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.lab import networks
from guidedgen.rewards.style_gram_clip import StyleGramClip
from guidedgen.rewards.style_gram_vgg16 import StyleGramVgg16
from guidedgen.zoo import feature_maps
from guidedgen.zoo.clip import HubClip, LabClip
from guidedgen.zoo.feature_maps import ClipTokens, LabClipMap, LabClipMaps, LabTrunk, Vgg16, Vgg19
from guidedgen.zoo.needed import DOWNLOADS, CachedFile

FILE = DOWNLOADS["vgg16"].file


def picture(height: int, width: int) -> torch.Tensor:
    """Waves, in 8 bits."""
    y, x = torch.meshgrid(torch.linspace(0, 9, height), torch.linspace(0, 7, width), indexing="ij")
    waves = torch.stack([(x + y).sin(), (x * y / 5).cos(), (2 * x - y).sin()]) * 0.4 + 0.5
    return images.to_bytes(waves[None]).float() / 255


@pytest.fixture
def tokens(clip_folder: Path) -> ClipTokens:
    return ClipTokens(clip=HubClip(name="tiny", path=clip_folder), layer=1)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (90, 50)])
def test_clip_tokens_are_the_hidden_states_after_that_block(clip_folder: Path, layer: int, size: tuple[int, int]):
    """Of transformers, on a picture that Pillow squashed; hidden_states[0] is what enters the first block."""
    clip = HubClip(name="tiny", path=clip_folder)
    squashed = images.from_pil([images.to_pil(picture(*size))[0].resize((32, 32), Image.Resampling.BICUBIC)])
    pixels = images.normalise(squashed, images.CLIP_MEAN, images.CLIP_STD)
    states = clip.network.vision_model(pixels, output_hidden_states=True).hidden_states
    found = ClipTokens(clip=clip, layer=layer)(picture(*size))
    assert found.shape == (1, 16, 16)
    expected = states[layer + 1][:, 1:]
    # Pillow rounds the resized picture to 8 bits; where nothing is resized the two are one.
    assert (found - expected).norm() < (1e-6 if size == (32, 32) else 0.01) * expected.norm()


def test_the_published_style_energy(tokens: ClipTokens, tmp_path: Path):
    """FreeDoM's base_clip.py at the network's own size, where nothing is resized: the norm of the Gram residual."""
    (tmp_path / "reference.png").write_bytes(images.png(picture(32, 32)[0]))
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = []
    for image in (2 * x - 1, 2 * images.read(tmp_path / "reference.png") - 1):  # it is given images in [-1, 1]
        mean, std = ([2 * m - 1 for m in images.CLIP_MEAN], [2 * s for s in images.CLIP_STD])
        states = tokens._clip.network.vision_model(images.normalise(image, mean, std), output_hidden_states=True).hidden_states
        features.append(states[2][0, 1:])
    energy = torch.linalg.norm(features[0].T @ features[0] - features[1].T @ features[1])
    reward = StyleGramClip(features=tokens, image=str(tmp_path / "reference.png"))
    torch.testing.assert_close(reward(x, [Task(id="a", prompt="")])[0], -energy, rtol=1e-5, atol=1e-5)


def test_blocks_that_are_not_there_are_refused(clip_folder: Path):
    for layer in (-1, 2):
        with pytest.raises(UsageError, match=rf"features\.layer={layer}: tiny has blocks 0 to 1"):
            ClipTokens(clip=HubClip(name="tiny", path=clip_folder), layer=layer)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory):
    """Random weights under torchvision's names (its two large classifier layers as stubs), and torchvision's own network."""
    from torchvision.models.vgg import cfgs, make_layers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_layers(cfgs["D"]).eval()
        for parameter in network.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)  # keeps the features' size through the layers
    folder = tmp_path_factory.mktemp("vgg")
    state = {f"features.{name}": value for name, value in network.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, folder / FILE)
    return folder, network


@pytest.mark.parametrize(("size", "tolerance"), [((256, 256), 1e-5), ((300, 280), 0.02)])
def test_vgg16_is_torchvisions_features_after_its_own_preparation(vgg, size: tuple[int, int], tolerance: float):
    from torchvision.models import VGG16_Weights

    folder, network = vgg
    found = Vgg16(path=folder)(picture(*size))
    with torch.no_grad():
        reference = network(VGG16_Weights.IMAGENET1K_V1.transforms()(images.to_pil(picture(*size))[0])[None])
    assert found.shape == (1, 49, 512) and (found >= 0).all()
    # Pillow rounds the resized picture to 8 bits; where nothing is resized the two are one.
    assert (found - reference.flatten(2).mT).norm() < tolerance * reference.norm()
    assert not any(p.requires_grad for p in Vgg16(path=folder).network.parameters())


@pytest.fixture(scope="module")
def vgg19(tmp_path_factory: pytest.TempPathFactory):
    """The same of VGG-19."""
    from torchvision.models.vgg import cfgs, make_layers

    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = make_layers(cfgs["E"]).eval()
    folder = tmp_path_factory.mktemp("vgg19")
    torch.save({f"features.{name}": value for name, value in network.state_dict().items()}, folder / DOWNLOADS["vgg19"].file)
    return folder, network


def test_vgg19_has_torchvisions_features_before_their_activations(vgg19):
    """At layers 0, 2, 5, 7 and 10 of its sequence, which are the first five convolutions."""
    folder, network = vgg19
    maps = Vgg19(path=folder, side=64)
    found = maps.maps(picture(64, 64))
    x = images.normalise(picture(64, 64), images.IMAGENET_MEAN, images.IMAGENET_STD)
    with torch.no_grad():
        expected = {}
        for i, layer in enumerate(network[:11]):
            x = expected[i] = torch.nn.functional.relu(x) if isinstance(layer, torch.nn.ReLU) else layer(x)
    assert [value.shape for value in found] == [(1, 4096, 64), (1, 4096, 64), (1, 1024, 128), (1, 1024, 128), (1, 256, 256)]
    for value, i in zip(found, (0, 2, 5, 7, 10), strict=True):
        torch.testing.assert_close(value, expected[i].flatten(2).mT)
    assert maps.content == 3 and (found[3] < 0).any()
    some = Vgg19(path=folder, side=64, layers=[2, 16], content_layer=16)
    assert [value.shape[2] for value in some.maps(picture(64, 64))] == [64, 512] and some.content == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"layers": [0, 4]}, r"zoo\.vgg19\.layers=\[0, 4\]: must be numbers of convolutions, 1 to 16"),
        ({"layers": [4, 1]}, "in order"),
        ({"layers": []}, "in order"),
        ({"layers": [1, 2]}, r"zoo\.vgg19\.content_layer=4: must be one of zoo\.vgg19\.layers"),
        ({"side": 8}, "must be at least 32"),
    ],
)
def test_layers_that_vgg19_has_not_are_refused(vgg19, options: dict, why: str):
    with pytest.raises(UsageError, match=why):
        Vgg19(path=vgg19[0], key="zoo.vgg19.path", **options)


def test_a_file_that_is_known_by_its_beginning_is_checked_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As torch checks its own, by the digits in the file's name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    part = CachedFile("vgg19")
    part.path.parent.mkdir(parents=True)
    part.path.write_bytes(b"other")
    assert part.survey().missing
    known = hashlib.sha256(b"other").hexdigest()[:8]
    monkeypatch.setitem(DOWNLOADS, "vgg19", DOWNLOADS["vgg19"]._replace(sha256=known))
    assert not part.survey().missing


def test_vgg16_is_found_where_fetch_puts_it_or_refused(vgg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(UsageError, match=rf"zoo.vgg16.path: .*{FILE} is missing; fetch it with: python scripts/fetch.py vgg16"):
        Vgg16(key="zoo.vgg16.path")
    target = tmp_path / "hub" / "checkpoints" / FILE
    target.parent.mkdir(parents=True)
    target.symlink_to(vgg[0] / FILE)
    assert Vgg16().file == target
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / FILE)
    with pytest.raises(UsageError, match="not the weights of torchvision's vgg16") as caught:
        Vgg16(path=tmp_path).network  # noqa: B018
    assert "\n" not in str(caught.value)


def test_the_labs_maps_are_those_of_its_networks(random_lab: Path):
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    visual = networks.load_clip("guide").visual
    stem = visual.stem(2 * x - 1)
    layers = {"stem": stem, "layer1": visual.layer1(stem), "layer2": visual.layer2(visual.layer1(stem))}
    for layer, expected in layers.items():
        found = LabClipMap(clip=LabClip(name="lab-guide"), layer=layer)
        assert found.name == "lab-guide"
        torch.testing.assert_close(found(x), expected.flatten(2).mT)
    together = LabClipMaps(clip=LabClip(name="lab-guide"))
    for found, expected in zip(together.maps(x), layers.values(), strict=True):
        torch.testing.assert_close(found, expected.flatten(2).mT)
    assert together.content == 1
    trunk = LabTrunk()
    torch.testing.assert_close(trunk(x), networks.load_classifier().trunk(x)[0].flatten(2).mT)
    assert trunk(x).shape == (2, 256, 96) and (trunk(x) >= 0).all() and trunk.name == "lab-classifier"


def test_missing_lab_weights_are_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    with pytest.raises(UsageError, match="make it with: python scripts/train_lab.py --parts classifier"):
        LabTrunk()


def double(feature_map):
    """The feature map in float64."""
    if isinstance(feature_map, ClipTokens | LabClipMap):
        feature_map._clip.network.double()
    elif isinstance(feature_map, LabTrunk):
        feature_maps.load_lab_classifier(feature_map.device).double()
    return feature_map


@pytest.mark.parametrize("kind", ["tokens", "vgg16", "lab-guide", "lab-classifier"])
def test_gradient_reaches_the_pixels(
    kind: str, another_clip_folder: Path, vgg, random_lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Directional derivatives of both Gram rewards in float64; one small convolution instead of VGG's thirteen, for speed."""
    build = {
        "tokens": lambda: ClipTokens(clip=HubClip(name="tiny", path=another_clip_folder), layer=1),
        "vgg16": lambda: Vgg16(path=vgg[0]),
        "lab-guide": lambda: LabClipMap(clip=LabClip(name="lab-guide")),
        "lab-classifier": LabTrunk,
    }
    small = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 16, 16), torch.nn.Softplus()).double().requires_grad_(False)
    monkeypatch.setattr(feature_maps, "_load_vgg", lambda *_: small)
    features = double(build[kind]())
    (tmp_path / "reference.png").write_bytes(images.png(picture(70, 66)[0]))
    generator = torch.Generator().manual_seed(1)
    x = 0.1 + 0.8 * torch.rand(1, 3, 70, 66, dtype=torch.float64, generator=generator)
    direction = F.normalize(torch.randn(x.shape, dtype=torch.float64, generator=generator).flatten(), dim=0).view_as(x)
    h, task = 1e-6, [Task(id="a", prompt="", reference=str(tmp_path / "reference.png"))]
    for reward in (StyleGramClip(features=features), StyleGramVgg16(features=features)):
        with torch.inference_mode():
            reward(x, task)
        [gradient] = torch.autograd.grad(reward(x.requires_grad_(), task).sum(), x)
        difference = (reward(x.detach() + h * direction, task) - reward(x.detach() - h * direction, task)).sum() / (2 * h)
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=1e-8)
        assert gradient.abs().sum() > 0


def test_range_is_checked(tokens: ClipTokens, vgg, random_lab: Path):
    for feature_map in (tokens, Vgg16(path=vgg[0]), LabTrunk(), LabClipMap(clip=LabClip(name="lab-guide"))):
        with pytest.raises(ValueError, match=r"expected values in \[0, 1\]"):
            feature_map(2 * picture(64, 64) - 1)


def test_features_are_not_computed_in_half_precision(clip_folder: Path):
    with pytest.raises(BadValue, match=r"clip\.dtype='float16': must be float32"):
        ClipTokens(clip=HubClip(name="tiny", path=clip_folder, dtype="float16"), layer=1)
