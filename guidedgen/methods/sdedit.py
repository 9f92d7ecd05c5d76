"""SDEdit (Meng et al. 2022, arXiv:2108.01073): plain sampling from a noised reference image instead of from noise.

Cost: 2rT rows for a reference noised to the share r of the chain; one decode, of the finished image. At r = 1 it is plain sampling.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from guidedgen.methods import Needs
from guidedgen.methods.base import Base


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdEdit(Base):
    """The scheduler's chain from each task's reference at its noise ratio."""

    needs: ClassVar[Needs] = Needs(reward=False, reference="required")
