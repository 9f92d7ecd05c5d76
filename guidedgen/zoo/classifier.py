"""Image classifiers by whose certainty images may be guided: any of transformers', and the lab's."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.zoo.files import locate_lab, read_config
from guidedgen.zoo.inception import load_lab_classifier
from guidedgen.zoo.needed import Needed, network
from guidedgen.zoo.pretrained import load_pretrained, load_processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from guidedgen.lab.captions import Description

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class HubClassifier:
    """A classifier in transformers' format (AutoModelForImageClassification). Labels are indices into its `id2label`.

    A label may be called by any of the names between its commas ("tabby, tabby cat"), capitals aside. Images are prepared as the
    folder's image processor says, on tensors, so that gradients reach the pixels. `weights` names the file that is read, as for
    `HubClip`. No remote code is run. Raises UsageError where something is missing or the model names no labels.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        device: torch.device | str = "cpu",
        weights: str | None = None,
        key: str = "classifier.path",
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        [needed] = self.reads(path=path, weights=weights, key=key)
        self.folder = needed.locate()
        if not any((self.folder / file).exists() for file in _PROCESSORS):
            raise UsageError(f"{key}={path}: has no {_PROCESSORS[0]}, which says how images are prepared")
        labels = read_config(self.folder, source=f"{key}={path}").get("id2label")
        if not isinstance(labels, dict) or not labels or not all(index.isdecimal() for index in labels):
            raise UsageError(f"{key}={path}: its config names no labels (id2label); an image classifier is needed")
        self.labels: dict[int, str] = {int(index): str(label) for index, label in labels.items()}
        self._safetensors = needed.found(self.folder).endswith(".safetensors")

    @staticmethod
    def reads(*, path: str | Path, weights: str | None = None, key: str = "classifier.path", **_: object) -> tuple[Needed, ...]:
        """What is read: the network, and how images are prepared."""
        return (network(path, key=key, files=_PROCESSORS, weights=weights),)

    @functools.cached_property
    def _names(self) -> dict[str, list[int]]:
        """The labels that each name, in words, stands for."""
        names: dict[str, list[int]] = {}
        for index, label in self.labels.items():
            for name in {_words(label), *map(_words, label.split(","))} - {""}:
                names.setdefault(name, []).append(index)
        return names

    def label(self, name: str) -> int:
        """The index of the label of this name. Raises UsageError where there is none, or several."""
        if found := self._names.get(_words(name)):
            return self._only(found, name)
        hint = self._hint(difflib.get_close_matches(_words(name), self._names, 3))
        raise UsageError(f"is no label of {self.name}; {hint}")

    def label_in(self, prompt: str) -> int:
        """The index of the label whose name, the longest there is, stands in the prompt. Raises UsageError where none does."""
        text = _words(prompt)
        if found := [name for name in self._names if f" {name} " in f" {text} "]:
            longest = max(found, key=len)
            return self._only(self._names[longest], longest)
        close = {match for word in text.split() for match in difflib.get_close_matches(word, self._names, 1, 0.75)}
        hint = self._hint(sorted(close)[:3])
        raise UsageError(f"names no label of {self.name}; {hint}")

    def _only(self, indices: list[int], name: str) -> int:
        if len(indices) > 1:
            names = " or ".join(f'"{self.labels[index]}"' for index in indices)
            raise UsageError(f"names several labels of {self.name} as {name!r}; say {names}")
        return indices[0]

    def _hint(self, close: Sequence[str]) -> str:
        if close:
            return f"did you mean {' or '.join(close)}?"
        return f"the first of its {len(self.labels)} are {'; '.join(list(self.labels.values())[:3])}"

    @property
    def network(self) -> PreTrainedModel:
        """The frozen network, loaded at first use."""
        return _load(self.folder, self._safetensors, self.device)[0]

    def __call__(self, images: Tensor, labels: Sequence[int]) -> Tensor:
        """b 3 H W in [0, 1] and b labels -> log-probabilities b, differentiable."""
        network, prepare = _load(self.folder, self._safetensors, self.device)
        pixels = prepare(pictures.check(images, self.name).to(self.device, network.dtype))
        logs = network(pixel_values=pixels).logits.log_softmax(-1)
        return logs.gather(1, torch.tensor(labels, device=logs.device)[:, None])[:, 0]


class LabClassifier:
    """The lab's scene classifier. A label is a description of a scene: a prompt of the lab's grammar, or a thing ("red circle").

    Its log-probability is `guidedgen.lab.judge.log_score`. The network is the one that the lab's `scene` metric judges by.
    """

    name = "lab-classifier"

    def __init__(self, *, device: torch.device | str = "cpu", key: str = "classifier") -> None:
        self.device = torch.device(device)
        self.files = (locate_lab("classifier.safetensors", key=f"{key}={self.name}", part="classifier"),)

    def label(self, name: str) -> Description:
        """The description that the name stands for. Raises UsageError where it is none."""
        return self._described([name, f"a {name}"], "is no scene")

    def label_in(self, prompt: str) -> Description:
        """The description that the prompt is. Raises UsageError where it is none."""
        return self._described([prompt], "describes no scene")

    def _described(self, texts: Sequence[str], what: str) -> Description:
        from guidedgen.lab.captions import parse
        from guidedgen.lab.judge import judgeable
        from guidedgen.lab.world import SHAPES

        parsed = (parse(text) for text in texts)
        found = next((description for description in parsed if description is not None and judgeable(description)), None)
        if found is not None:
            return found
        words = {word for text in texts for word in text.lower().split() if word not in SHAPES}
        close = sorted({match for word in words for match in difflib.get_close_matches(word, SHAPES, 1, 0.75)})
        hint = f"did you mean {' or '.join(close)}?" if close else 'as in "a red circle and a blue square", no shape twice'
        raise UsageError(f"{what} that the lab's classifier can judge; {hint}")

    def __call__(self, images: Tensor, labels: Sequence[Description]) -> Tensor:
        """b 3 H W in [0, 1] and b labels -> log-probabilities b, differentiable."""
        from guidedgen.lab.judge import log_score

        return log_score(images.to(self.device), labels, load_lab_classifier(self.device))


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


@functools.cache
def _load(folder: Path, safetensors: bool, device: torch.device) -> tuple[PreTrainedModel, Callable[[Tensor], Tensor]]:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    what = "an image classifier"
    network = load_pretrained(AutoModelForImageClassification, folder, what=what, safetensors=safetensors, device=device)
    processor = load_processor(AutoImageProcessor, folder, source=folder, what="its image processor")
    return network, _preparation(processor, folder)


def _preparation(processor: Any, folder: Path) -> Callable[[Tensor], Tensor]:
    """What an image processor does, on tensors. Raises UsageError for more than one resize to a square, crop and normalisation."""
    size, mode = processor.size, _MODES.get(int(processor.resample))
    short, crop_pct = getattr(size, "shortest_edge", None), getattr(processor, "crop_pct", None)
    if not processor.do_resize or mode is None or not (short or (size.height and size.height == size.width)):
        raise UsageError(f"{folder}: its image processor resizes in a way that is not supported (bilinear or bicubic, to a square)")
    side, keep, final = short or size.height, bool(short), short or size.height
    if short and crop_pct is not None:  # ConvNextImageProcessor: a margin is cut off below 384 px, and larger images are squashed
        side, keep = (int(short / crop_pct), True) if short < 384 else (short, False)
    elif getattr(processor, "do_center_crop", None) and processor.crop_size:
        final = processor.crop_size.height
    if final > side:
        raise UsageError(f"{folder}: its image processor crops {final} px out of {side}, which is not supported")
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0, 0, 0), (1, 1, 1))
    start = (side - final) // 2

    def prepare(images: Tensor) -> Tensor:
        pixels = pictures.resize(images, side, mode=mode, crop=keep)
        return pictures.normalise(pixels[..., start : start + final, start : start + final], mean, std)

    return prepare
