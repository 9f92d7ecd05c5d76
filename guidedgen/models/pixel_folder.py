"""What the folder of an unconditional model of pixels says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from guidedgen.models import folder
from guidedgen.models.folder import COUNT, INDEX, LAYERS, NAMES, NUMBER, NUMBERS, REAL, Rule, whole
from guidedgen.models.noise_folder import NoiseFolder
from guidedgen.models.textless import TextlessFolder
from guidedgen.zoo.needed import Needed

_CLASSES = {"unet": ("UNet2DModel",), "scheduler": ("DDPMScheduler", "DDIMScheduler")}
_PARTS = {"unet": "config.json", "scheduler": "scheduler_config.json"}  # each part's config, in its folder or in the whole one

_SIDES: Rule = (
    "a whole number above 0, or two",
    lambda value: whole(value) or (isinstance(value, list) and len(value) == 2 and all(map(whole, value))),
)
_MAYBE: Rule = ("null or a whole number above 0", lambda value: value is None or whole(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelFolder(TextlessFolder):
    """The folder of a DDPMPipeline or a DDIMPipeline, which have the same parts. These are in folders of their names; the first
    repositories (google/ddpm-cifar10-32) have both in the whole folder instead, where diffusers looks too.
    """

    SUPPORTED: ClassVar = "supported: unconditional models of pixels, a DDPMPipeline or DDIMPipeline of " + ", ".join(
        _CLASSES["unet"] + _CLASSES["scheduler"]
    )
    PIPELINES: ClassVar = ("DDPMPipeline", "DDIMPipeline")
    CLASSES: ClassVar = _CLASSES
    WEIGHTS: ClassVar = {"unet": folder.DIFFUSERS}
    DEFAULTS: ClassVar = {
        "unet": {
            "in_channels": 3, "out_channels": 3, "block_out_channels": [224, 448, 672, 896], "time_embedding_type": "positional",
        },
        "scheduler": {
            **NoiseFolder.SCHEDULER_DEFAULTS, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
            "num_train_timesteps": 1000, "clip_sample_range": 1.0,
        },
    }  # fmt: skip
    RULES: ClassVar = {
        "unet": {
            "sample_size": _SIDES, "in_channels": NUMBER, "out_channels": NUMBER, "block_out_channels": NUMBERS,
            "down_block_types": NAMES, "up_block_types": NAMES, "layers_per_block": LAYERS, "attention_head_dim": _MAYBE,
            "mid_block_scale_factor": REAL, "downsample_padding": COUNT, "norm_num_groups": _MAYBE, "norm_eps": REAL,
            "freq_shift": COUNT,
        },
        "scheduler": {**NoiseFolder.SCHEDULER_RULES, "clip_sample_range": REAL},
    }  # fmt: skip
    REQUIRED: ClassVar = {"unet": ("sample_size",)}

    # Where its files are

    def part_folder(self, part: str) -> Path:
        own = self.path / part
        return own if own.is_dir() else self.path

    def config_file(self, part: str) -> str:
        return INDEX if part == "index" else (self.part_folder(part) / _PARTS[part]).relative_to(self.path).as_posix()

    @classmethod
    def needed(cls, path: str, *, weights: bool = True, key: str = "model.path") -> Needed:
        """What is read, of folders of either kind."""
        groups = (tuple(f"{part}/{file}" for part, file in _PARTS.items()), tuple(_PARTS.values()))
        names = tuple(f"{place}{file}" for place in ("unet/", "") for file in cls.WEIGHTS["unet"])
        return Needed(
            name=path, key=key, files=(INDEX, *groups[0], *groups[1]), required=(INDEX,), one_of=groups,
            weights=(names,) if weights else (),
        )  # fmt: skip

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and folders that are read."""
        weights = f"{folder.DIFFUSERS[0].partition('.')[0]}*"
        loose = self.part_folder("unet") == self.path
        unet = (*self.path.glob(weights), self.path / _PARTS["unet"]) if loose else (self.part_folder("unet"),)
        return (*sorted(unet), self.path / self.config_file("scheduler"))

    # What it is

    @property
    def latent_channels(self) -> int:
        return int(self.configs["unet"]["in_channels"])

    @property
    def latent_side(self) -> int:
        """The height alone where the two differ; see `image_size`."""
        return self.image_size[0]

    @property
    def vae_factor(self) -> int:
        """1: what is noised are pixels."""
        return 1

    @property
    def image_size(self) -> tuple[int, int]:
        sides = self.configs["unet"]["sample_size"]
        height, width = sides if isinstance(sides, list) else (sides, sides)
        return (int(height), int(width))

    @property
    def clip(self) -> float | None:
        """The range -r to r that its scheduler clips x_0 to; None where it does not."""
        return self.clip_range if self.clips else None

    @property
    def clip_range(self) -> float:
        """The same where it does."""
        return float(self.configs["scheduler"]["clip_sample_range"])

    def unsupported(self) -> Mapping[str, Any]:
        unet = self.configs["unet"]
        takes, gives, embedded = unet["in_channels"], unet["out_channels"], unet["time_embedding_type"]
        least = 2 ** (len(unet["block_out_channels"]) - 1)
        return {
            **self.unsupported_schedules(),
            # Twice as many: with a variance.
            f"a UNet of {takes} input and {gives} output channels": (takes, gives) != (3, 3),
            f"a UNet with time_embedding_type={embedded} (only positional)": embedded != "positional",
            **{
                f"a UNet with {key}={unet.get(key)}, which wants classes,": unet.get(key) is not None
                for key in ("class_embed_type", "num_class_embeds")
            },
            f"a UNet that halves pictures of {' x '.join(map(str, self.image_size))} to a {least}th": (
                any(side % least for side in self.image_size)
            ),
            "a quantised unet": unet.get("quantization_config") is not None,
        }
