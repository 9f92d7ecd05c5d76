"""What T2I-CompBench scores its complex prompts by: attributes, relations and actions together (Huang et al. 2023, "3-in-1")."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.metrics.noun_phrases import Parser
from guidedgen.metrics.spatial import Spatial
from guidedgen.rewards import Reward

# What a complex prompt is scored by, by the category that `dataset=t2i_compbench` gives it.
PARTS = {
    "complex_spatial": ("attribute", "spatial"),
    "complex_action": ("attribute", "action"),
    "complex_spatialaction": ("attribute", "spatial", "action"),
}

_NAMES = ("attribute", "spatial", "action")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithoutAdjectives:
    """Another scorer with the adjectives left out of the prompts, the other words joined by spaces: how CLIP is asked about
    actions in complex prompts (Karine-Huang/T2I-CompBench, CLIPScore_eval/CLIP_similarity.py, --complex).
    """

    scorer: Reward
    parser: Parser

    differentiable = False

    @property
    def networks(self) -> tuple[str, ...]:
        """The other scorer's."""
        return tuple(getattr(self.scorer, "networks", ()))

    @property
    def described(self) -> str:
        """What else the numbers depend on."""
        return "; ".join(filter(None, (getattr(self.scorer, "described", ""), f"adjectives left out by {self.parser.name}")))

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> b."""
        return self.scorer(images, [dataclasses.replace(task, prompt=self._plain(task.prompt)) for task in tasks])

    def _plain(self, prompt: str) -> str:
        return " ".join(word for word, tag in self.parser.tags(prompt) if tag != "ADJ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreeInOne:
    """The mean, image by image, of the scores that the prompt's category calls for (3_in_1_eval/3_in_1.py): a Reward without
    gradients. Other categories score NaN, and so does a picture that a part cannot score; where the prompt has no relation
    that `spatial` can read, that part counts 0, as there.

    parts: for each category the parts that it is scored by.
    """

    attribute: Reward  # blip_vqa.BlipVqaScore
    spatial: Spatial
    action: Reward  # the cosine of CLIP, WithoutAdjectives
    parts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=lambda: PARTS)

    differentiable = False

    def __post_init__(self) -> None:
        for category, parts in self.parts.items():
            if not parts or not set(parts) <= set(_NAMES):
                raise BadValue(f"parts.{category}", list(parts), f"choose from {', '.join(_NAMES)}, at least one")

    @property
    def networks(self) -> tuple[str, ...]:
        """Those of the parts that count, each once."""
        return tuple(dict.fromkeys(name for part in self._counted for name in getattr(part, "networks", ())))

    @property
    def described(self) -> str:
        """What else the numbers depend on, of the parts that count."""
        return "; ".join(filter(None, (getattr(part, "described", "") for part in self._counted)))

    @property
    def _counted(self) -> list[Reward]:
        return [getattr(self, part) for part in _NAMES if any(part in parts for parts in self.parts.values())]

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> b. A part is asked about those of its categories alone."""
        totals = images.new_zeros(len(images), dtype=torch.float32)
        for part in _NAMES:
            rows = [i for i, task in enumerate(tasks) if part in self.parts.get(task.category, ())]
            if rows:
                asked = [tasks[i] for i in rows]
                found = getattr(self, part)(images[rows], asked).to(totals)
                if part == "spatial":
                    related = torch.tensor([self.spatial.relates(task) for task in asked], device=found.device)
                    found = found.where(related, 0.0)
                totals[rows] += found
        counts = torch.tensor([len(self.parts.get(task.category, ())) for task in tasks], device=images.device)
        return torch.where(counts > 0, totals / counts, float("nan"))
