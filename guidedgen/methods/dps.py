"""DPS, diffusion posterior sampling (Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems",
arXiv:2209.14687, Algorithm 1), a special case of TFG (guidedgen.methods.tfg):

    x_s = step(x_t) + rho grad_{x_t} r(D(x0_hat(x_t))) / |r|^(1/2)

Cost: 2T rows forward and 2T backward; T decodes and reward calls, and one decode of the finished image. Null setting: rho = 0.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from guidedgen.methods.tfg import Schedule, Tfg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dps(Tfg):
    """The paper guides by a squared residual and divides its gradient by the residual. With r = -residual^2 the divisor is
    |r|^(1/2): normalise = root. TFG's released code (YWolfeee/Training-Free-Guidance, methods/dps.py) divides by |log p|
    (normalise = reward), and calls the network three times a step.

    Other rewards enter the divisor by their size alone, so that the step goes upwards whatever their sign. A constant added to the
    reward changes the step's length. Where r is minus the residual itself, normalise = none with twice the rho is the paper's step.
    """

    mu: float = 0.0
    sigma: float = 0.0
    num_samples: int = 1
    inner_steps: int = 0
    rho_schedule: Schedule = "constant"
    normalise: Literal["none", "reward", "root"] = "root"
    over_alpha: bool = False
