"""Detectors of named things, for the spatial metrics: transformers' OWLv2, and what UniDet has found, read from a file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guidedgen import images as pictures
from guidedgen.types import BadValue, Detection, UsageError
from guidedgen.zoo.files import locate_network
from guidedgen.zoo.pretrained import load_pretrained

if TYPE_CHECKING:
    from transformers import Owlv2ForObjectDetection, Owlv2Processor


class Owlv2:
    """OWLv2 (Minderer et al. 2023, arXiv:2306.09683) in transformers' format. It looks for whatever it is told, as "a photo of a
    ...", in pictures that its own processor prepares: no gradient passes.

    `threshold` is the least confidence; OWLv2's are lower than a closed detector's, and transformers' default is 0.1. Of a box,
    the likeliest of the labels counts. `weights` names the file that is read, as for `HubClip`. Raises UsageError where something
    is missing or the folder holds another kind of model.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        threshold: float = 0.1,
        device: torch.device | str = "cpu",
        weights: str = "model.safetensors",
        revision: str = "main",
        key: str = "detector.path",
    ) -> None:
        if not 0 <= threshold < 1:
            raise BadValue("threshold", threshold, "must be a confidence, at least 0 and below 1")
        self.name, self.threshold = name, threshold
        self.device = torch.device(device)
        self.folder = locate_network(path, key=key, files=("*.json", "*.txt"), weights=weights, revision=revision)
        self._safetensors = weights.endswith(".safetensors")
        kind = json.loads((self.folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "owlv2":
            raise UsageError(f"{key}={path}: holds a model of type {kind}; an owlv2 is needed")

    @property
    def network(self) -> Owlv2ForObjectDetection:
        """The frozen network, loaded at first use."""
        return _load(self.folder, self._safetensors, self.device)[0]

    def __call__(self, images: Tensor, labels: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """b 3 H W in [0, 1] and what is looked for in each -> what is found in each, the most confident first.

        Rounded to 8 bits. A picture of which nothing is asked is not looked at.
        """
        found: list[list[Detection] | None] = [[] for _ in pictures.check(images, self.name)]
        rows = [i for i, names in enumerate(labels) if names]
        if rows:
            network, processor = _load(self.folder, self._safetensors, self.device)
            most = max(len(labels[i]) for i in rows)
            names = [[*labels[i], *[labels[i][0]] * (most - len(labels[i]))] for i in rows]  # as many for each, or it is given " "
            queries = [[f"a photo of a {name}" for name in asked] for asked in names]
            inputs = processor(text=queries, images=pictures.to_pil(images[rows]), return_tensors="pt").to(self.device)
            with torch.no_grad():
                outputs = network(**inputs)
            height, width = images.shape[-2:]
            sizes = [(height, width)] * len(rows)
            results = processor.post_process_grounded_object_detection(outputs, threshold=self.threshold, target_sizes=sizes)
            for i, asked, result in zip(rows, names, results, strict=True):
                found[i] = _sorted(result, asked, width, height)
        return found


def _sorted(result: Mapping[str, Tensor], names: Sequence[str], width: int, height: int) -> list[Detection]:
    """Detections from transformers' result of one picture (boxes in px), the most confident first."""
    boxes = (result["boxes"].cpu() / torch.tensor([width, height, width, height])).clamp(0, 1)
    rows = zip(result["labels"].tolist(), result["scores"].tolist(), boxes.tolist(), strict=True)
    found = [(names[label], confidence, (box[0], box[1], box[2], box[3])) for label, confidence, box in rows]
    return sorted(found, key=lambda detection: -detection[1])


class DetectionFile:
    """Detections made elsewhere, as by UniDet, which needs detectron2.

    `path` is a JSONL file with an object a line: "image", a file relative to the JSONL file's folder; "width" and "height" of the
    picture that the boxes are on, in px; and "detections", objects with "label", "score" and "box" (left, top, right, bottom in
    px). A picture is known by its pixels, whatever its name; of one that the file does not have, nothing is said. What is looked
    for is not read: the labels are the detector's own.

    Raises UsageError where the file cannot be read as such, or names a picture that is not there.
    """

    def __init__(self, *, name: str, path: str | Path, key: str = "detector.path") -> None:
        self.name = name
        self._key, self._path = key, Path(path).expanduser()
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{key}={path}: cannot be read ({error})") from error
        self._entries = [self._entry(number, line) for number, line in enumerate(lines, 1) if line.strip()]

    def _entry(self, number: int, line: str) -> tuple[Path, list[Detection]]:
        """The picture of a line and its detections."""
        where = f"{self._key}={self._path}: line {number}"
        try:
            row = json.loads(line)
            sides = (float(row["width"]), float(row["height"])) * 2
            found = [
                (str(one["label"]), float(one["score"]), _shares([float(side) for side in one["box"]], sides))
                for one in row["detections"]
            ]
            picture = self._path.parent / str(row["image"])
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            keys = '{"image", "width", "height", "detections": [{"label", "score", "box"}]}'
            raise UsageError(f"{where} is not of the form {keys} ({type(error).__name__}: {error})") from error
        if not picture.is_file():
            raise UsageError(f"{where}: there is no picture {picture}")
        return picture, sorted(found, key=lambda detection: -detection[1])

    @functools.cached_property
    def _found(self) -> dict[str, list[Detection]]:
        return {_digest(pictures.read(picture)[0]): found for picture, found in self._entries}

    def __call__(self, images: Tensor, labels: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """b 3 H W in [0, 1] -> what the file has of each, the most confident first; None of pictures that it does not have."""
        return [self._found.get(_digest(image)) for image in pictures.check(images, self.name)]


def _shares(box: Sequence[float], sides: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (edge / side for edge, side in zip(box, sides, strict=True))
    return left, top, right, bottom


def _digest(image: Tensor) -> str:
    """Of 3 H W in [0, 1], rounded to 8 bits."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + pictures.to_bytes(image[None]).cpu().numpy().tobytes()).hexdigest()


@functools.cache
def _load(folder: Path, safetensors: bool, device: torch.device) -> tuple[Owlv2ForObjectDetection, Owlv2Processor]:
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    network = load_pretrained(Owlv2ForObjectDetection, folder, what="an OWLv2", safetensors=safetensors, device=device)
    try:
        return network, Owlv2Processor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: transformers cannot load its processor ({str(error).splitlines()[0]})") from error
