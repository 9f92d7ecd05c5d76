"""What models that read no text have in common: their networks are given a class, or nothing, and their pictures have one size."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from guidedgen.basics.errors import BadValue
from guidedgen.models.latent import LatentModel
from guidedgen.models.noise_folder import NoiseFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextlessFolder(NoiseFolder):
    """A folder without text encoders."""

    VOCABULARIES: ClassVar = ()
    ENDS: ClassVar = 0

    @property
    def max_tokens(self) -> int:
        """None: there is no tokenizer."""
        return 0

    def _check_size(self) -> None:
        """Raises BadValue for any size but its own, as its pipeline has no other."""
        if self.size is not None and self.size != (own := self._own_size):
            raise BadValue("size", list(self.size), f"must be null or {list(own)}: this model makes pictures of one size")

    @property
    def _own_size(self) -> tuple[int, int]:
        return dataclasses.replace(self, size=None).image_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextlessModel(LatentModel):
    """A model without text encoders."""

    READERS: ClassVar = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncate_prompts:
            raise BadValue("truncate_prompts", self.truncate_prompts, "must be false: this model reads no text")

    def count_tokens(self, prompt: str) -> int:
        """None, whatever the prompt: it is not cut into tokens."""
        del prompt
        return 0
