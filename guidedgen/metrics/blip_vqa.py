"""BLIP-VQA of T2I-CompBench (Huang et al. 2023): is everything that the prompt names in the picture, as it is named?

    score = product over the prompt's noun phrases of P(yes | image, "a red apple?") / (P(yes | ...) + P(no | ...))

As Karine-Huang/T2I-CompBench, BLIPvqa_eval/BLIP_vqa.py and data/utils.py (pre_question): the first 8 phrases count, four that spaCy
makes of "on the left of" and the like do not, and a prompt without a phrase scores 1. A prompt of one phrase scores higher than one
of eight for the same mistakes: compare equal splits alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.images import check
from guidedgen.basics.tasks import Task
from guidedgen.metrics.noun_phrases import Parser
from guidedgen.zoo import Vqa

SLOTS = 8  # np_num; the maintainers say to leave it there
IGNORED = ("top", "the side", "the left", "the right")  # of phrases, letter by letter
ROUNDINGS = ("reference", "none")
_REMOVED = str.maketrans("", "", '.!"()*#:;~')
_WORDS = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlipVqaScore:
    """A Reward without gradients. Any Vqa answers; the benchmark's is BLIP-VQA base (capfilt-large) at 480 px.

    rounding: "reference" rounds each answer and the product to 4 decimals, as the benchmark's text files do, which makes an answer
        below 0.00005 a 0; "none" keeps the product.

    A score is NaN where an answer is: the Vqa cannot read the question.
    """

    vqa: Vqa
    parser: Parser
    rounding: str = "reference"

    differentiable = False  # not a field: true of every instance

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise BadValue("rounding", self.rounding, f"choose from {', '.join(ROUNDINGS)}")

    @property
    def networks(self) -> tuple[str, ...]:
        """The name of the network that answers."""
        return (self.vqa.name,)

    @property
    def described(self) -> str:
        """What else the numbers depend on: who answers, for that may be another network than the benchmark's."""
        who = getattr(self.vqa, "described", self.vqa.name)
        return f"answers by {who}; noun phrases by {self.parser.name}; rounding: {self.rounding}"

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> scores b in [0, 1]. The Vqa is asked one question of each image at a time."""
        if len(tasks) != len(check(images, "blip_vqa")):
            raise ValueError(f"blip_vqa: {len(images)} images for {len(tasks)} tasks")
        asked = [questions(task.prompt, self.parser) for task in tasks]
        answers: list[list[float]] = [[] for _ in tasks]
        with torch.no_grad():
            for slot in range(SLOTS):
                rows = [i for i, texts in enumerate(asked) if len(texts) > slot]
                if rows:
                    chances = self.vqa(images[rows], [asked[i][slot] for i in rows]).cpu().double().sigmoid().tolist()
                    for i, chance in zip(rows, chances, strict=True):
                        answers[i].append(chance)
        return torch.tensor([combine(found, self.rounding) for found in answers], device=images.device)


def questions(prompt: str, parser: Parser) -> list[str]:
    """The questions asked of a prompt's image, at most 8: in lower case, some punctuation dropped, at most 50 words each."""
    phrases = [phrase for phrase in parser.phrases(prompt) if phrase not in IGNORED][:SLOTS]
    plain = (f"{phrase}?".lower().translate(_REMOVED).rstrip(" ") for phrase in phrases)
    return [" ".join(text.split(" ")[:_WORDS]) for text in plain]


def combine(chances: Sequence[float], rounding: str) -> float:
    """The score of one image from P(yes) of its questions, of which the first 8 count. Of none it is 1."""
    if rounding == "none":
        return float(np.prod(np.asarray(chances[:SLOTS], dtype=np.float64)))
    written = np.asarray([float(f"{chance:.4f}") for chance in chances[:SLOTS]], dtype=np.float32)
    return float(f"{np.prod(written, dtype=np.float32):.4f}")
