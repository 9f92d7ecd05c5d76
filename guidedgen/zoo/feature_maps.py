"""Feature maps whose Gram matrices say what style is: early tokens of a CLIP, VGG-16, and the lab's versions of both.

Each takes images in [0, 1] of any size (b 3 H W) and gives b p d: p positions, d features, differentiable.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.zoo.clip import HubClip, LabClip
from guidedgen.zoo.files import locate_file, locate_lab, read_config, read_state
from guidedgen.zoo.inception import load_lab_classifier
from guidedgen.zoo.needed import DOWNLOADS, CachedFile, Needed

FILE = DOWNLOADS["vgg16"][0]  # torchvision's VGG16_Weights.IMAGENET1K_V1
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # channels; 0: 2 x 2 maximum

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
        self._clip = clip

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


class Vgg16:
    """VGG-16 after its last pooling, 49 positions of 512 features: torchvision's IMAGENET1K_V1, its classifier left out.

    Images are prepared as torchvision does for these weights: shorter side to 256 px (bilinear, antialiased), the middle 224 px,
    ImageNet's mean and deviation. `path` is the file, a folder or hub repository that holds it, or None for what
    `scripts/fetch.py vgg16` downloads. Raises UsageError where it is missing.
    """

    name = "vgg16"

    def __init__(self, *, path: str | Path | None = None, device: torch.device | str = "cpu", key: str = "features.path") -> None:
        if path is None:
            path = CachedFile("vgg16").locate(key=key)
        self.device = torch.device(device)
        self.file = locate_file(path, FILE, key=key)
        self._key = key

    @staticmethod
    def reads(*, path: str | Path | None = None, key: str = "features.path", **_: object) -> tuple[CachedFile | Needed, ...]:
        """What is read: the file."""
        return (CachedFile("vgg16") if path is None else Needed(name=str(path), key=key, weights=((FILE,),)),)

    @property
    def network(self) -> nn.Sequential:
        """The frozen convolutions, loaded at first use."""
        return _load_vgg16(self.file, self.device, self._key)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b 49 512, not negative."""
        pixels = pictures.check(images, self.name).to(self.device, next(self.network.parameters()).dtype)
        pixels = pictures.resize(pixels, 256, mode="bilinear")[..., 16:240, 16:240]
        return _by_position(self.network(pictures.normalise(pixels, pictures.IMAGENET_MEAN, pictures.IMAGENET_STD)))


class LabClipMap:
    """A stage of a lab CLIP's ResNet: after "layer1" 256 positions of 64 features, not negative. Images are squashed to 64 px."""

    def __init__(self, *, clip: LabClip, layer: Literal["stem", "layer1", "layer2", "layer3", "layer4"] = "layer1") -> None:
        self.name = clip.name
        self.layer = layer
        self._clip = clip

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b p d."""
        from guidedgen.lab.world import SIZE

        visual = self._clip.network.visual
        pixels = pictures.check(images, self.name).to(self._clip.device, visual.conv1.weight.dtype)
        x = pictures.to_model(pictures.resize(pixels, SIZE, crop=False))
        for stage in _STAGES[: _STAGES.index(self.layer) + 1]:
            x = getattr(visual, stage)(x)
        return _by_position(x)


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
def _load_vgg16(file: Path, device: torch.device, key: str) -> nn.Sequential:
    state = read_state(file, key=key)  # its classifier, whose layers are not used here, is left out
    state = {name.removeprefix("features."): value for name, value in state.items() if not name.startswith("classifier.")}
    with torch.device("meta"):  # no numbers: they come with the state
        network = _vgg16()
    if {name: value.shape for name, value in network.state_dict().items()} != {n: value.shape for n, value in state.items()}:
        raise UsageError(f"{key}={file}: not the weights of torchvision's vgg16; {FILE} is needed")
    network.load_state_dict(state, assign=True)
    return network.float().eval().requires_grad_(False).to(device)


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for out in _VGG16:
        if out:
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            channels = out
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
