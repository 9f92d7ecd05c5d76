"""What a folder of diffusers with a noise schedule says of itself: what all families have in common that are no rectified flows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

from guidedgen.models.folder import SHARE, STEPS, Folder, Rule
from guidedgen.process.grid import NoiseSchedule

# diffusers' KarrasDiffusionSchedulers, which are on one noise schedule (EDM's, the last of them, is on another), and LCM's.
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "DPMSolverSDEScheduler", "LCMScheduler",
)  # fmt: skip
# Schedulers that clip x_0 to [-1, 1], and whether they do where their config does not say.
_CLIPS = {"DDIMScheduler": True, "DDPMScheduler": True, "LCMScheduler": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseFolder(Folder):
    """A folder whose scheduler's config says which betas the network was trained with."""

    SCHEDULER_DEFAULTS: ClassVar[Mapping[str, Any]] = {"prediction_type": "epsilon"}
    SCHEDULER_RULES: ClassVar[Mapping[str, Rule]] = {"beta_start": SHARE, "beta_end": SHARE, "num_train_timesteps": STEPS}
    SCHEDULER_REQUIRED: ClassVar = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise levels the model was trained on."""
        c = self.configs["scheduler"]
        return NoiseSchedule.from_betas(
            c["beta_start"], c["beta_end"], c["num_train_timesteps"], c["beta_schedule"],
            zero_terminal_snr=bool(c.get("rescale_betas_zero_snr")),
        )  # fmt: skip

    @property
    def prediction(self) -> str:
        """What the network predicts: "epsilon" or "v_prediction"."""
        return self.configs["scheduler"]["prediction_type"]

    @property
    def clips(self) -> bool:
        """Whether the scheduler clips its estimates of x_0, which is right for pixels and wrong for latents."""
        scheduler = self.configs["scheduler"]
        name = scheduler.get("_class_name") or self.configs["index"]["scheduler"][1]
        return name in _CLIPS and bool(scheduler.get("clip_sample", _CLIPS[name]))

    def unsupported_schedules(self) -> Mapping[str, Any]:
        """Schedules that are not supported, and whether this is one."""
        scheduler = self.configs["scheduler"]
        betas = scheduler["beta_schedule"]
        return {
            f"prediction_type {self.prediction!r} (only epsilon, v_prediction)": self.prediction not in ("epsilon", "v_prediction"),
            f"beta_schedule {betas!r} (only linear, scaled_linear)": (
                betas not in ("linear", "scaled_linear") or scheduler.get("trained_betas") is not None
            ),
            "a schedule whose beta_start is above its beta_end": scheduler["beta_start"] > scheduler["beta_end"],
            "epsilon predicted on a schedule rescaled to zero terminal SNR, where it says nothing of x_0,": (
                self.prediction == "epsilon" and scheduler.get("rescale_betas_zero_snr", False)
            ),
            "a scheduler that clips predictions (thresholding)": scheduler.get("thresholding", False),
            "a scheduler that gives the network noise levels instead of times (timestep_type=continuous)": (
                self.prediction == "v_prediction" and scheduler.get("timestep_type") == "continuous"
            ),
        }
