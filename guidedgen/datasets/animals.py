"""The animals of the CoDeX thesis' aesthetic tables: the 45 of DDPO (Black et al. 2023) and the 6 it was evaluated on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.tasks import Task
from guidedgen.datasets.tasks import check_limit, make_tasks

# In the order of the thesis' evaluation list: first the 6 held out in AlignProp, then DDPO's 45.
ANIMALS = (
    "snail hippopotamus cheetah crocodile lobster octopus "
    "cat dog horse monkey rabbit zebra spider bird sheep deer cow goat lion tiger bear raccoon fox wolf lizard beetle ant "
    "butterfly fish shark whale dolphin squirrel mouse rat snake turtle frog chicken duck goose bee pig turkey fly llama camel "
    "bat gorilla hedgehog kangaroo"
).split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Animals:
    """One task per animal; the prompt is the bare noun."""

    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        return make_tasks(ANIMALS[: self.limit], "animals")
