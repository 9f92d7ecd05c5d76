"""Content filters that images may be audited against: Stable Diffusion's safety checker, and any classifier of the zoo as one."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.zoo.classifier import HubClassifier, LabClassifier
from guidedgen.zoo.files import read_config, read_state
from guidedgen.zoo.needed import TRANSFORMERS, Needed
from guidedgen.zoo.pretrained import readable

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

_CONCEPTS = ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights")
_SPECIAL = 0.01  # by which an image that needs special care is over every other threshold sooner
_ROUNDING = 5e-4  # scores are rounded to 3 decimals before they are compared with 0


class SafetyChecker:
    """Stable Diffusion's (diffusers, pipelines/stable_diffusion/safety_checker.py), from its folder or repository.

    An image is flagged where the cosine of its CLIP embedding and that of any of 17 concepts is above the concept's threshold, by
    0.01 less where one of three further concepts is above its own. The margin is how far the nearest one is above, and it is
    above 0 just where diffusers' class says so, rounding included. The 0.01 are a constant to its gradient.

    `path` is its folder or its location on the hub, as in a model's `safety_checker/`. `weights` names the file that is read; None:
    model.safetensors, or pytorch_model.bin where there is no other, by torch's `weights_only` unpickler. Raises UsageError where
    something is missing.
    """

    name = "sd-safety-checker"

    def __init__(
        self,
        *,
        path: str | Path,
        device: torch.device | str = "cpu",
        weights: str | None = None,
        key: str = "filter.path",
    ) -> None:
        self.device = torch.device(device)
        [needed] = self.reads(path=path, weights=weights, key=key)
        folder = needed.locate()
        self.file = folder / needed.found(folder)
        read_config(folder, source=f"{key}={path}")
        self._key = key

    @staticmethod
    def reads(*, path: str | Path, weights: str | None = None, key: str = "filter.path", **_: object) -> tuple[Needed, ...]:
        """What is read: config and weights."""
        files, names = ("config.json",), TRANSFORMERS if weights is None else (weights,)
        return (Needed(name=str(path), key=key, files=files, required=files, weights=(names,)),)

    def margin(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b, above 0 where flagged, differentiable."""
        checker = _load(self.file, self._key, self.device)
        pixels = pictures.check(images, self.name).to(self.device, torch.float32)
        pixels = pictures.resize(pixels, checker.network.config.image_size)
        embeddings = checker.network(pixel_values=pictures.normalise(pixels, pictures.CLIP_MEAN, pictures.CLIP_STD)).image_embeds
        special = _above(embeddings, checker.special_care_embeds, checker.special_care_embeds_weights)
        concept = _above(embeddings, checker.concept_embeds, checker.concept_embeds_weights)
        return concept + _SPECIAL * (special > _ROUNDING) - _ROUNDING


class ClassifierFilter:
    """Flags an image that a classifier takes to be `label` with a probability above `threshold`.

    The margin is log p / (1 - p), less the threshold's. Other than log p alone, whose gradient by the logits is 1 - p, it does not
    go flat where the classifier is sure, which is where an audit begins. Raises UsageError where there is no such label.
    """

    def __init__(
        self, *, classifier: HubClassifier | LabClassifier, label: str, threshold: float = 0.5, key: str = "filter"
    ) -> None:
        if not 0 < threshold < 1:
            raise BadValue("threshold", threshold, "must be a probability between 0 and 1")
        try:
            self._label = classifier.label(label)
        except UsageError as error:
            raise UsageError(f"{key}.label={label}: it {error}") from error
        self.classifier, self.name, self.threshold = classifier, classifier.name, threshold

    def margin(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b, above 0 where flagged, differentiable."""
        logs = self.classifier(images, [self._label] * len(images))  # type: ignore[list-item]
        return _log_odds(logs) - math.log(self.threshold / (1 - self.threshold))


def _log_odds(logs: Tensor) -> Tensor:
    """log p / (1 - p) from log p. As 1 - p is at least 1e-7, about what float32 tells from 0, it is at most 16."""
    return logs - torch.log(-torch.expm1(logs - 1e-7))


def _above(embeddings: Tensor, concepts: Tensor, thresholds: Tensor) -> Tensor:
    """How far the cosine with any of the concepts (k d) is above its threshold (k) at most: b."""
    return (F.normalize(embeddings) @ F.normalize(concepts).T - thresholds).amax(1)


class _Checker(NamedTuple):
    network: CLIPVisionModelWithProjection
    concept_embeds: Tensor
    concept_embeds_weights: Tensor
    special_care_embeds: Tensor
    special_care_embeds_weights: Tensor


@functools.cache
@torch.inference_mode(False)
def _load(file: Path, key: str, device: torch.device) -> _Checker:
    from transformers import CLIPConfig, CLIPVisionModelWithProjection

    with readable(f"{key}={file.parent}", "its config"):
        config = CLIPConfig.from_pretrained(file.parent, local_files_only=True)
        config.vision_config.projection_dim = config.projection_dim
        network = CLIPVisionModelWithProjection(config.vision_config)
    state = {_short(name): tensor.float() for name, tensor in read_state(file, key=key).items()}
    wanted = {**{name: _short(name) for name in network.state_dict()}, **{name: name for name in _CONCEPTS}}
    if missing := sorted({*wanted.values()} - state.keys()):
        raise UsageError(f"{key}={file}: the weights lack {len(missing)} tensors of a safety checker, {missing[0]} first")
    if left := sorted(name for name in state.keys() - {*wanted.values()} if not name.endswith("position_ids")):
        raise UsageError(f"{key}={file}: the weights hold {len(left)} tensors that no safety checker has, {left[0]} first")
    try:
        network.load_state_dict({name: state[wanted[name]] for name in network.state_dict()})
    except RuntimeError as error:
        raise UsageError(f"{key}={file}: the weights are not of the shapes that {file.parent / 'config.json'} says") from error
    concepts = {name: state[name].to(device) for name in _CONCEPTS}
    return _Checker(network=network.eval().requires_grad_(False).to(device), **concepts)


def _short(name: str) -> str:
    """A tensor's name; releases of transformers differ in how often they say that it is of the vision model."""
    return name.replace("vision_model.vision_model.", "vision_model.")
