"""How to differentiate a whole chain: engines that map a chain's first state to its last, differentiably.

All are called as engine(chain, state, params) and give gradients by the state and by `params`, the tensors that require them among
those the chain's denoiser closes over (text embeddings, weights); nothing else is differentiated. `exact` says whether the gradient
is that of the numbers computed, or of the continuous flow that they approximate.

For S steps of c network calls each, and a way back that differentiates every call once:

    engine      calls           activations held        of which chains
    backprop    cS              of S steps              all
    checkpoint  2cS             of one step             all; and one state per step, or more steps within `memory_gb`
    reversible  2cS             of one call             EDICT (c = 2), latents in float64
    adjoint     about 2cS       of one call             flows; the gradient of the continuous one

A run has gradients switched off, so a method switches them on around the engine and all that follows up to its loss,

    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        loss = f(engine(chain, chain.start(x_t), params))
    by_x_t, *by_params = torch.autograd.grad(loss, [x_t, *params])

and takes the gradient once: the graph is spent. Without enable_grad engines return latents without a graph. Inside
torch.inference_mode it is not enough; that mode has to be left, and nothing that was made in it can be differentiated through.
autograd.grad, unlike backward(), leaves nothing in the `.grad` of weights that happen to require gradients. An autocast around the
engine is that of the way back too, which itself belongs outside of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.process.chains import Chain, State


class GradientEngine(Protocol):
    """How a whole chain is differentiated; see guidedgen.gradients."""

    @property
    def exact(self) -> bool:
        """Whether it is the gradient of the numbers computed, or of the continuous flow they approximate."""

    def __call__(self, chain: Chain, state: State, params: Sequence[Tensor] = ()) -> State:
        """The chain's last state, differentiable in its first and in the `params` that its denoiser closes over."""
