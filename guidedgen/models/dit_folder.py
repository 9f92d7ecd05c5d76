"""What a DiT folder says of itself, its classes among it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from guidedgen.basics.errors import UsageError
from guidedgen.models import folder
from guidedgen.models.folder import LAYERS, NUMBER, Rule, TransformerFolder, whole
from guidedgen.models.noise_folder import SCHEDULERS, NoiseFolder
from guidedgen.models.textless import TextlessFolder

NULL = 1000  # the class that stands for none, by diffusers' pipeline: the one after the 1000 of ImageNet
_CLASSES = {
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),  # the second: of the first repositories, the same network
    "vae": ("AutoencoderKL",),
    "scheduler": SCHEDULERS,
}
_NORM = "ada_norm_zero"
_MAYBE: Rule = ("null or a whole number above 0", lambda value: value is None or whole(value))
# Keys of a Transformer2DModel's config that make another network of it than a DiT, and the values with which they do not.
_PLAIN = {
    "cross_attention_dim": None, "num_vector_embeds": None, "caption_channels": None, "double_self_attention": False,
    "only_cross_attention": False, "attention_type": "default", "use_additional_conditions": None,
}  # fmt: skip


def _labelled(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(_number(key) is not None and isinstance(label, str) for key, label in value.items())
    )


def _number(text: str) -> int | None:
    """The class that a text is the number of."""
    return int(text) if text.isdecimal() and text.isascii() and len(text) <= len(str(NULL)) and int(text) < NULL else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DitFolder(TransformerFolder, TextlessFolder):
    """The folder of a DiTPipeline. `id2label` of its model_index.json has the labels of each class in one text, with commas between
    them.
    """

    SUPPORTED: ClassVar = "supported: DiT, a DiTPipeline of " + ", ".join(_CLASSES[part][0] for part in ("transformer", "vae"))
    PIPELINES: ClassVar = ("DiTPipeline",)
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {"transformer": folder.DIFFUSERS, "vae": folder.DIFFUSERS}
    DEFAULTS: ClassVar = {
        "transformer": {
            "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
            "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": NULL, "norm_type": _NORM,
        },
        "vae": folder.VAE_DEFAULTS,
        "scheduler": NoiseFolder.SCHEDULER_DEFAULTS,
    }  # fmt: skip
    RULES: ClassVar = {
        "transformer": {
            "num_attention_heads": NUMBER, "attention_head_dim": NUMBER, "in_channels": NUMBER, "out_channels": _MAYBE,
            "num_layers": LAYERS, "sample_size": NUMBER, "patch_size": NUMBER,
        },
        "vae": folder.VAE_RULES,
        "scheduler": NoiseFolder.SCHEDULER_RULES,
        "index": {"id2label": (f"labels of classes from 0 to {NULL - 1}", _labelled)},
    }  # fmt: skip
    REQUIRED: ClassVar = {"scheduler": NoiseFolder.SCHEDULER_REQUIRED}

    def unsupported(self) -> Mapping[str, Any]:
        transformer, vae = self.configs["transformer"], self.configs["vae"]
        takes, gives = transformer["in_channels"], transformer["out_channels"] or transformer["in_channels"]
        odd = [f"{key}={transformer[key]}" for key, plain in _PLAIN.items() if transformer.get(key, plain) != plain]
        return {
            **self.unsupported_schedules(),
            "a scheduler that clips predictions (clip_sample)": self.clips,
            f"a transformer with norm_type={transformer['norm_type']} (only {_NORM})": transformer["norm_type"] != _NORM,
            f"a transformer with {', '.join(odd)}": odd,
            # The pipeline's class for none is 1000, which would be a class of another model, or too many.
            f"a transformer of {transformer['num_embeds_ada_norm']} classes (only {NULL})": (
                transformer["num_embeds_ada_norm"] != NULL
            ),
            # Twice as many: with a variance, which is not read.
            f"a transformer of {takes} input and {gives} output channels": gives not in (takes, 2 * takes),
            f"a transformer of {takes} channels with a VAE of {vae['latent_channels']}": takes != vae["latent_channels"],
            f"a transformer of patches of {self.patch} on latents of side {self.latent_side}": self.latent_side % self.patch != 0,
            "a VAE with a shift_factor": vae.get("shift_factor") not in (None, 0),
            **self.common(),
        }

    # Classes

    @functools.cached_property
    def labels(self) -> Mapping[str, Sequence[int]]:
        """The classes that each label is one of: each of the labels of a class, and all of them as they are written."""
        found: dict[str, dict[int, None]] = {}
        for key, written in (self.configs["index"].get("id2label") or {}).items():
            for label in (written.strip(), *(part.strip() for part in written.split(","))):
                if label:
                    found.setdefault(label, {})[int(key)] = None
        return {label: list(classes) for label, classes in found.items()}

    def class_of(self, prompt: str, model: str) -> int:
        """The class that a prompt means: that of a label, or of a number from 0 to 999; that of none for the empty prompt. A label
        wins over a number. Raises UsageError for another prompt, with labels like it, and for a label of several classes.
        """
        classes = self.labels.get(prompt, () if _number(prompt) is None else (_number(prompt),))
        if len(classes) == 1:
            return int(classes[0])  # type: ignore[arg-type]
        if not prompt:
            return NULL
        if classes:
            numbers = " and ".join(map(str, classes))
            raise UsageError(f"prompt {prompt[:60]!r}: model={model} has this label for classes {numbers}; give one of the numbers")
        close = self._like(prompt)
        hint = (
            f"labels like it: {', '.join(map(repr, close))}; or"
            if close
            else "give a label of its classes, as 'golden retriever', or"
        )
        hint = hint if self.labels else "give"
        raise UsageError(
            f"prompt {prompt[:60]!r}: model={model} draws classes, and this is the label of none; "
            f"{hint} a number from 0 to {NULL - 1}"
        )

    def _like(self, prompt: str, most: int = 5) -> Sequence[str]:
        """Labels that are spelt like a prompt, or that it shares words with."""
        plain: dict[str, str] = {}
        for label in self.labels:
            plain.setdefault(label.lower(), label)
        words = set(prompt.lower().split())
        close = difflib.get_close_matches(prompt.lower()[:200], plain, most, 0.7)
        shared = [label for label in plain if words & set(label.split())]
        return [plain[label] for label in dict.fromkeys((*close, *shared))][:most]
