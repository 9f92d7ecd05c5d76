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
    """The paper divides the gradient of a squared residual by the residual, which is the root of -r where r = -residual^2
    (normalise = root). TFG's released code (YWolfeee/Training-Free-Guidance, methods/dps.py) divides by |log p| (normalise =
    reward), and calls the network three times a step. Other rewards have their zero elsewhere, and the step's length changes
    with it.
    """

    mu: float = 0.0
    sigma: float = 0.0
    num_samples: int = 1
    inner_steps: int = 0
    rho_schedule: Schedule = "constant"
    normalise: Literal["none", "reward", "root"] = "root"
    over_alpha: bool = False
