"""LGD-MC, loss-guided diffusion with Monte-Carlo smoothing (Song et al. 2023, "Loss-Guided Diffusion Models for Plug-and-Play
Controllable Generation", ICML, Algorithm 1), a special case of TFG (guidedgen.methods.tfg):

    x_s = step(x_t) + rho grad_{x_t} log (1/K) sum_k exp(r(D(x0_hat(x_t) + sigma_t z_k)) / kl_weight)

Cost: 2T rows forward and 2T backward; KT decodes and reward calls, and one decode of the finished image. Null setting: rho = 0.
"""

from __future__ import annotations

import dataclasses

from guidedgen.methods.tfg import Schedule, Tfg


@dataclasses.dataclass(frozen=True, kw_only=True)
class LgdMc(Tfg):
    """TFG's released code (YWolfeee/Training-Free-Guidance, methods/lgd.py) divides the gradient of the smoothed reward by K a
    second time, and calls the network twice a step.
    """

    mu: float = 0.0
    sigma: float = 1.0
    num_samples: int = 10
    inner_steps: int = 0
    rho_schedule: Schedule = "constant"
    over_alpha: bool = False
