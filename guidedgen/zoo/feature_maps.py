"""Feature maps whose Gram matrices say what style is: early tokens of a CLIP, VGG-16, layers of VGG-19, and the lab's versions.

Each takes images in [0, 1] of any size (b 3 H W) and gives b p d: p positions, d features, differentiable; or several such.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.zoo.clip import HubClip, LabClip
from guidedgen.zoo.files import locate_file, locate_lab, read_config, read_state
from guidedgen.zoo.inception import load_lab_classifier
from guidedgen.zoo.needed import DOWNLOADS, CachedFile, Needed

# Channels of convolutions; 0: 2 x 2 maximum.
_CHANNELS = {
    "vgg16": (64, 64, 0, 128, 128, 0, *(256,) * 3, 0, *(512,) * 3, 0, *(512,) * 3, 0),
    "vgg19": (64, 64, 0, 128, 128, 0, *(256,) * 4, 0, *(512,) * 4, 0, *(512,) * 4, 0),
}

_C = TypeVar("_C", HubClip, LabClip)
_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class ClipTokens:
    """The patch tokens that leave block `layer` (counted from 0) of a CLIP's vision transformer, before any later norm.

    Images are squashed to the network's size: nothing of the style is cropped away. Later blocks are not computed.
    """

    def __init__(self, *, clip: HubClip, layer: int = 2, key: str = "features") -> None:
        config = read_config(clip.folder, source=str(clip.folder))
        blocks = (config.get("vision_config") or {}).get("num_hidden_layers", 12)  # CLIPVisionConfig's default
        if not 0 <= layer < blocks:
            raise UsageError(f"{key}.layer={layer}: {clip.name} has blocks 0 to {blocks - 1}")
        self.name = clip.name
        self.layer = layer
        self._clip = _whole(clip)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b p d, one position per patch."""
        network = self._clip.network
        pixels = pictures.check(images, self.name).to(self._clip.device, network.dtype)
        pixels = pictures.resize(pixels, network.config.vision_config.image_size, crop=False)
        vision = network.vision_model
        tokens = vision.pre_layrnorm(vision.embeddings(pictures.normalise(pixels, pictures.CLIP_MEAN, pictures.CLIP_STD)))
        for block in vision.encoder.layers[: self.layer + 1]:
            tokens = block(tokens, None)
        return tokens[:, 1:]  # the first is the class token


class _Vgg:
    """The convolutions of one of torchvision's VGGs, IMAGENET1K_V1. `path` is the file, a folder or hub repository that holds it,
    or None for what `scripts/fetch.py` downloads by the network's name. Raises UsageError where it is missing.
    """

    name: ClassVar[str]

    def __init__(self, *, path: str | Path | None = None, device: torch.device | str = "cpu", key: str = "features.path") -> None:
        if path is None:
            path = CachedFile(self.name).locate(key=key)
        self.device = torch.device(device)
        self.file = locate_file(path, DOWNLOADS[self.name].file, key=key)
        self._key = key

    @classmethod
    def reads(cls, *, path: str | Path | None = None, key: str = "features.path", **_: object) -> tuple[CachedFile | Needed, ...]:
        """What is read: the file."""
        if path is None:
            return (CachedFile(cls.name),)
        return (Needed(name=str(path), key=key, weights=((DOWNLOADS[cls.name].file,),)),)

    @property
    def network(self) -> nn.Sequential:
        """The frozen convolutions, loaded at first use."""
        return _load_vgg(self.name, self.file, self.device, self._key)

    def _pixels(self, images: Tensor) -> Tensor:
        return pictures.check(images, self.name).to(self.device, next(self.network.parameters()).dtype)


class Vgg16(_Vgg):
    """VGG-16 after its last pooling, 49 positions of 512 features.

    Images are prepared as torchvision does for these weights: shorter side to 256 px (bilinear, antialiased), the middle 224 px,
    ImageNet's mean and deviation.
    """

    name = "vgg16"

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b 49 512, not negative."""
        pixels = pictures.resize(self._pixels(images), 256, mode="bilinear")[..., 16:240, 16:240]
        return _by_position(self.network(pictures.normalise(pixels, pictures.IMAGENET_MEAN, pictures.IMAGENET_STD)))


class Vgg19(_Vgg):
    """VGG-19 after its first convolutions, before their activations: those of the tutorial that AdjointDPM refers to (PyTorch,
    "Neural Transfer Using PyTorch"), which takes its first five for style and the fourth for content.

    Images are brought to `side` px, the shorter side fits and the middle is kept, with ImageNet's mean and deviation. Later layers
    are not computed. Raises UsageError for numbers of convolutions that it has not.
    """

    name = "vgg19"

    def __init__(
        self,
        *,
        layers: Sequence[int] = (1, 2, 3, 4, 5),
        content_layer: int = 4,
        side: int = 512,
        path: str | Path | None = None,
        device: torch.device | str = "cpu",
        key: str = "features.path",
    ) -> None:
        owner, count = key.removesuffix(".path"), sum(map(bool, _CHANNELS[self.name]))
        for name, value in {"layers": list(layers), "content_layer": [content_layer]}.items():
            if not value or sorted(set(value)) != value or not 1 <= value[0] <= value[-1] <= count:
                raise UsageError(f"{owner}.{name}={value}: must be numbers of convolutions, 1 to {count}, in order")
        if content_layer not in layers:
            raise UsageError(f"{owner}.content_layer={content_layer}: must be one of {owner}.layers")
        if side < 32:
            raise UsageError(f"{owner}.side={side}: must be at least 32")
        super().__init__(path=path, device=device, key=key)
        self.layers, self.side = list(layers), side
        self.content = self.layers.index(content_layer)

    def maps(self, images: Tensor) -> list[Tensor]:
        """b 3 H W in [0, 1] -> the features of each layer, b p d, in order; number `content` of them is for content."""
        x = pictures.resize(self._pixels(images), self.side, mode="bilinear")
        x = pictures.normalise(x, pictures.IMAGENET_MEAN, pictures.IMAGENET_STD)
        found, number = [], 0
        for layer in self.network:
            x = layer(x)
            if isinstance(layer, nn.Conv2d):
                number += 1
                if number in self.layers:
                    found.append(_by_position(x))
                if number == self.layers[-1]:
                    break
        return found


class LabClipMap:
    """A stage of a lab CLIP's ResNet: after "layer1" 256 positions of 64 features, not negative. Images are squashed to 64 px."""

    def __init__(self, *, clip: LabClip, layer: Literal["stem", "layer1", "layer2", "layer3", "layer4"] = "layer1") -> None:
        self.name = clip.name
        self.layer = layer
        self._clip = _whole(clip)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b p d."""
        return _lab_stages(self._clip, images, _STAGES.index(self.layer) + 1)[-1]


class LabClipMaps:
    """The first three stages of a lab CLIP's ResNet together, for style, and the second of them for content."""

    content = 1

    def __init__(self, *, clip: LabClip) -> None:
        self.name = clip.name
        self._clip = _whole(clip)

    def maps(self, images: Tensor) -> list[Tensor]:
        """b 3 H W in [0, 1] -> b p d of each stage."""
        return _lab_stages(self._clip, images, 3)


def _whole(clip: _C) -> _C:
    """The CLIP, of which features are read, and products of them summed, in float32. Raises BadValue for one of another dtype."""
    if clip.dtype != "float32":
        raise BadValue("clip.dtype", clip.dtype, "must be float32: features of a layer are not computed in another")
    return clip


def _lab_stages(clip: LabClip, images: Tensor, count: int) -> list[Tensor]:
    """b 3 H W in [0, 1] -> b p d of each of the first stages of a lab CLIP's ResNet."""
    from guidedgen.lab.world import SIZE

    visual = clip.network.visual
    pixels = pictures.check(images, clip.name).to(clip.device, visual.conv1.weight.dtype)
    x, found = pictures.to_model(pictures.resize(pixels, SIZE, crop=False)), []
    for stage in _STAGES[:count]:
        x = getattr(visual, stage)(x)
        found.append(_by_position(x))
    return found


class LabTrunk:
    """The lab's scene classifier's finer feature map: 256 positions of 96 features, not negative. Images are squashed to 64 px."""

    name = "lab-classifier"

    def __init__(self, *, device: torch.device | str = "cpu", key: str = "features") -> None:
        self.device = torch.device(device)
        self.files = (locate_lab("classifier.safetensors", key=f"{key}={self.name}", part="classifier"),)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b 256 96."""
        from guidedgen.lab.world import SIZE

        network = load_lab_classifier(self.device)
        pixels = pictures.check(images, self.name).to(self.device, network.kind.dtype)
        return _by_position(network.trunk(pictures.resize(pixels, SIZE, crop=False))[0])


def _by_position(features: Tensor) -> Tensor:
    """b d h w -> b (h w) d."""
    return features.flatten(2).mT


@functools.cache
@torch.inference_mode(False)
def _load_vgg(name: str, file: Path, device: torch.device, key: str) -> nn.Sequential:
    state = read_state(file, key=key)  # its classifier, whose layers are not used here, is left out
    state = {layer.removeprefix("features."): value for layer, value in state.items() if not layer.startswith("classifier.")}
    with torch.device("meta"):  # no numbers: they come with the state
        network = _convolutions(_CHANNELS[name])
    if {layer: value.shape for layer, value in network.state_dict().items()} != {n: value.shape for n, value in state.items()}:
        raise UsageError(f"{key}={file}: not the weights of torchvision's {name}; {DOWNLOADS[name].file} is needed")
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False).to(device)


def _convolutions(channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    inside = 3
    for out in channels:
        if out:
            layers += [nn.Conv2d(inside, out, 3, padding=1), nn.ReLU()]
            inside = out
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
