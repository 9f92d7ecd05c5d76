"""What a family says that it takes of what was learned elsewhere (see guidedgen.models.learned)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from guidedgen.models import folder

DENOISERS = ("unet", "transformer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """A text encoder that can learn words, its tokenizer, and what files of several encoders' embeddings call it."""

    encoder: str
    tokenizer: str
    key: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnable:
    """What a family takes. `networks` are the classes of its networks by part; `adapted` those that take LoRA, the denoising
    network first, which diffusers' `loader` reads; `replaced` those whose own weights may be replaced. With `pipelines`, whole
    ones of these are taken too, as far as they are `replaced`.
    """

    name: str  # of the family, in messages
    networks: Mapping[str, str]
    adapted: Sequence[str] = ()
    loader: str = ""
    readers: Sequence[Reader] = ()
    replaced: Sequence[str] = ()
    pipelines: Sequence[str] = ()

    @property
    def denoiser(self) -> str:
        """The part that predicts."""
        return next(part for part in DENOISERS if part in self.networks)

    @property
    def checked(self) -> tuple[str, ...]:
        """The parts that files of tensors are held against."""
        return tuple(dict.fromkeys((*self.adapted, *(part for part in self.replaced if part in DENOISERS))))

    @property
    def taken(self) -> str:
        """What can be taken, for messages."""
        kinds = (
            f"weights of its {self.denoiser} ({self.denoiser}/)" if self.denoiser in self.replaced else "",
            "LoRA" if self.adapted else "",
            "textual inversions" if self.readers else "",
        )
        found = [kind for kind in kinds if kind]
        return f"{self.name} takes {' and '.join(found)}" if found else f"{self.name} takes nothing that was learned elsewhere"

    def files(self, part: str) -> Sequence[str]:
        """How files of the part's weights are called."""
        return folder.TRANSFORMERS if part.startswith("text_encoder") else folder.DIFFUSERS
