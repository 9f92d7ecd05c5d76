"""Detectors of named things, for the spatial metrics: transformers' OWLv2, and what UniDet has found, read from a file."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.images import Box, Detection
from guidedgen.zoo.files import read_config
from guidedgen.zoo.needed import CLIP_WORDS, TOKENIZER, Needed, network
from guidedgen.zoo.pretrained import load_pretrained, load_processor

if TYPE_CHECKING:
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

_FORM = '{"image", "width", "height", "detections": [{"label", "score", "box"}]}'
_SLACK = 1.0  # px by which a box may be off its picture, for detectors that round


class Owlv2:
    """OWLv2 (Minderer et al. 2023, arXiv:2306.09683) in transformers' format. It looks for whatever it is given, as "a photo of a
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
        weights: str | None = None,
        key: str = "detector.path",
    ) -> None:
        if not 0 <= threshold < 1:
            raise BadValue("threshold", threshold, "must be a confidence, at least 0 and below 1")
        self.name, self.threshold = name, threshold
        self.device = torch.device(device)
        [needed] = self.reads(path=path, weights=weights, key=key)
        self.folder = needed.locate()
        self._safetensors = needed.found(self.folder).endswith(".safetensors")
        read_config(self.folder, source=f"{key}={path}", kind="owlv2")

    @staticmethod
    def reads(*, path: str | Path, weights: str | None = None, key: str = "detector.path", **_: object) -> tuple[Needed, ...]:
        """What is read: the network, its tokenizer, and how images are prepared."""
        files = ("preprocessor_config.json", "processor_config.json", *TOKENIZER)
        return (network(path, key=key, files=files, weights=weights, one_of=CLIP_WORDS),)

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
    picture that the boxes are on, in px; and "detections", objects with "label", "score" from 0 to 1 and "box" (left, top, right,
    bottom in px, on the picture). A picture is known by its pixels, whatever its name. What is looked for is not read: the labels
    are the detector's own.

    Raises UsageError where the file cannot be read as such, has nothing, names a picture twice or one that is not there; and when
    called, where it names what is no picture, or lacks one that is asked for: those of what a run is compared with are, too.
    """

    def __init__(self, *, name: str, path: str | Path, key: str = "detector.path") -> None:
        self.name = name
        self._path, self._source = Path(path).expanduser(), f"{key}={path}"
        try:
            lines = self._path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{self._source}: cannot be read ({error})") from error
        self._entries = {number: self._entry(number, line) for number, line in enumerate(lines, 1) if line.strip()}
        if not self._entries:
            raise UsageError(f"{self._source}: is empty; a line for each picture is needed, of the form {_FORM}")
        first: dict[Path, int] = {}
        for number, (picture, _) in self._entries.items():
            if first.setdefault(picture.resolve(), number) != number:
                raise UsageError(f"{self._where(number)} has the picture of line {first[picture.resolve()]} again")

    def _where(self, number: int) -> str:
        return f"{self._source}: line {number}"

    def _entry(self, number: int, line: str) -> tuple[Path, list[Detection]]:
        """The picture of a line and its detections."""
        try:
            row = json.loads(line)
            sides = _number(row["width"]), _number(row["height"])
            if min(sides) <= 0:
                raise ValueError(f"{sides[0]:g} x {sides[1]:g} px is no size")
            found = [(str(one["label"]), _confidence(one["score"]), _shares(one["box"], *sides)) for one in row["detections"]]
            picture = self._path.parent / str(row["image"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UsageError(f"{self._where(number)} is not of the form {_FORM} ({type(error).__name__}: {error})") from error
        if not picture.is_file():
            raise UsageError(f"{self._where(number)}: there is no picture {picture}")
        return picture, sorted(found, key=lambda detection: -detection[1])

    @functools.cached_property
    def _found(self) -> dict[str, list[Detection]]:
        """What was found in each picture, by its digest. Pictures may be alike, as black ones are; what is found in them too."""
        found: dict[str, list[Detection]] = {}
        for number, (picture, detections) in self._entries.items():
            try:
                digest = _digest(pictures.read(picture)[0])
            except OSError as error:
                raise UsageError(f"{self._where(number)}: {picture} is no picture that can be read ({error})") from error
            if found.setdefault(digest, detections) != detections:
                raise UsageError(f"{self._where(number)}: {picture} looks like that of an earlier line, which finds other things")
        return found

    def __call__(self, images: Tensor, labels: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """b 3 H W in [0, 1] -> what the file has of each, the most confident first."""
        digests = [_digest(image) for image in pictures.check(images, self.name)]
        if lacking := sum(digest not in self._found for digest in digests):
            raise UsageError(
                f"{self._source}: lacks {lacking} of {len(digests)} pictures that are judged together (it has {len(self._found)}); "
                "detect in all of the run's, and of its reference's where there is one (reference=none leaves that out)"
            )
        return [self._found[digest] for digest in digests]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _confidence(value: Any) -> float:
    if not 0 <= _number(value) <= 1:
        raise ValueError(f"score {value} is not from 0 to 1")
    return float(value)


def _shares(box: Any, width: float, height: float) -> Box:
    """A box in px as shares of the picture's sides. Raises ValueError where it is none, or off the picture."""
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"box {box!r} is not left, top, right, bottom")
    left, top, right, bottom = map(_number, box)
    if not (left < right and top < bottom):
        raise ValueError(f"box {box} has no area; left, top, right, bottom are needed")
    if min(left, top) < -_SLACK or right > width + _SLACK or bottom > height + _SLACK:
        raise ValueError(f"box {box} is not on a picture of {width:g} x {height:g} px")
    return left / width, top / height, right / width, bottom / height


def _digest(image: Tensor) -> str:
    """Of 3 H W in [0, 1], rounded to 8 bits."""
    return hashlib.sha256(str(tuple(image.shape)).encode() + pictures.to_bytes(image[None]).cpu().numpy().tobytes()).hexdigest()


@functools.cache
def _load(folder: Path, safetensors: bool, device: torch.device) -> tuple[Owlv2ForObjectDetection, Owlv2Processor]:
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    network = load_pretrained(Owlv2ForObjectDetection, folder, what="an OWLv2", safetensors=safetensors, device=device)
    return network, load_processor(Owlv2Processor, folder, source=folder, what="its processor")
