"""Image features for distances between sets: the Inception of FID, the lab's classifier, any CLIP."""

from __future__ import annotations

import functools
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.zoo import Clip
from guidedgen.zoo.files import locate_file, locate_lab, read_state
from guidedgen.zoo.needed import DOWNLOADS, CachedFile, Needed

if TYPE_CHECKING:
    from torch import nn

    from guidedgen.lab.networks import SceneClassifier

FILE = DOWNLOADS["inception"][0]  # torch-fidelity's release v0.2.0; pytorch-fid's pt_inception file is the same


class Inception:
    """The TensorFlow Inception of 2015-12-05 that FID is defined on, through torch-fidelity: zoo.Features, 2048 wide.

    `path` is the weights file, a folder or hub repository that holds it, or None for what `scripts/fetch.py inception`
    downloads. Images are rounded to 8
    bits and resized to 299 px by TensorFlow 1's bilinear resize without antialiasing, so no gradient passes. Raises UsageError
    where torch-fidelity or the file is missing.
    """

    name = "inception-2015"

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        device: torch.device | str = "cpu",
        sha256: str | None = None,
        key: str = "features.path",
    ) -> None:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise UsageError(f"{key}: Inception features need torch-fidelity; install it with: pip install torch-fidelity")
        if path is None:
            path = CachedFile("inception").locate(key=key)
        self.device = torch.device(device)
        self.file = locate_file(path, FILE, key=key, sha256=sha256)
        self._key = key

    @staticmethod
    def reads(*, path: str | Path | None = None, key: str = "features.path", **_: object) -> tuple[CachedFile | Needed, ...]:
        """What is read: the file."""
        return (CachedFile("inception") if path is None else Needed(name=str(path), key=key, weights=((FILE,),)),)

    @property
    def network(self) -> nn.Module:
        """The frozen network, loaded at first use."""
        return _load_inception(self.file, self.device, self._key)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b 2048."""
        return self.network(pictures.to_bytes(pictures.check(images, self.name)).to(self.device))[0]


class LabInception:
    """The lab's scene classifier as a feature network: zoo.Features, 120 wide. Images are resized to 64 px."""

    name = "lab-classifier"

    def __init__(self, *, device: torch.device | str = "cpu", key: str = "features") -> None:
        self.device = torch.device(device)
        self.files = (locate_lab("classifier.safetensors", key=f"{key}={self.name}", part="classifier"),)

    @property
    def network(self) -> SceneClassifier:
        """The frozen network, loaded at first use."""
        return load_lab_classifier(self.device)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b 120."""
        from guidedgen.lab.world import SIZE

        pixels = pictures.check(images, self.name).to(self.device, torch.float32)
        return self.network.features(pictures.resize(pixels, SIZE))


class ClipFeatures:
    """A CLIP's unit-length image embeddings as features, as CMMD takes them: zoo.Features."""

    def __init__(self, *, clip: Clip) -> None:
        self.name = clip.name
        self._clip = clip

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d."""
        return self._clip.encode_image(images)


@functools.cache
@torch.inference_mode(False)
def _load_inception(file: Path, device: torch.device, key: str) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity 0.4.0 unpickles whatever the file holds: what it gets is our own copy of the tensors alone.
    copy = io.BytesIO()
    torch.save(read_state(file, key=key), copy)
    copy.seek(0)
    try:
        network = FeatureExtractorInceptionV3(Inception.name, ["2048"], feature_extractor_weights_path=copy)
    except RuntimeError as error:
        raise UsageError(f"{key}={file}: not the weights of the 2015 Inception; {FILE} is needed") from error
    return network.to(device)


@functools.cache
@torch.inference_mode(False)
def load_lab_classifier(device: torch.device) -> SceneClassifier:
    """The lab's scene classifier, frozen; one per device."""
    from guidedgen.lab.networks import load_classifier

    return load_classifier().to(device)
