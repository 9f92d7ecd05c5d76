"""Every method, briefly, on a tiny model: what the tests of all families run."""

import torch
from torch import Tensor

from guidedgen.basics.augment import Augmentations
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods import Method
from guidedgen.methods.adjoint_dpm import AdjointDpm
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.blip_inversion import BlipInversion
from guidedgen.methods.classifier_guidance import ClassifierGuidance
from guidedgen.methods.code import Code
from guidedgen.methods.codex import Codex
from guidedgen.methods.das import Das
from guidedgen.methods.demon import Demon
from guidedgen.methods.dno import Dno
from guidedgen.methods.doodl import Doodl
from guidedgen.methods.epsilon_greedy import EpsilonGreedy
from guidedgen.methods.evosearch import EvoSearch
from guidedgen.methods.fk_steering import FkSteering
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.mpgd import Mpgd
from guidedgen.methods.problem import Problem
from guidedgen.methods.psi_sampler import PsiSampler
from guidedgen.methods.random_search import RandomSearch
from guidedgen.methods.rbf import Rbf
from guidedgen.methods.reno import Reno
from guidedgen.methods.search_over_paths import SearchOverPaths
from guidedgen.methods.svdd import Svdd
from guidedgen.methods.tds import Tds
from guidedgen.methods.tfg import Tfg
from guidedgen.methods.universal import Universal
from guidedgen.methods.zero_order import ZeroOrder
from guidedgen.models.latent import LatentModel
from guidedgen.process import Scheduler

_WHOLE = {"num_updates": 1, "num_crops": 0, "lr": 100.0}
_STOCHASTIC = {
    "best_of_n": BestOfN(num_particles=8), "code": Code(num_particles=2, block_size=2),
    "codex": Codex(num_particles=2, block_size=2, gradient_block_size=1, strength=0.1),
    "codex, decoder": Codex(num_particles=2, block_size=2, gradient_block_size=1, strength=0.1, through="decoder"),
    "classifier_guidance": ClassifierGuidance(strength=0.1),
    "fk_steering": FkSteering(num_particles=4, interval=1, kl_weight=1e-3, resampler="ssp"),
    "tds": Tds(num_particles=2, kl_weight=1e-3), "das": Das(num_particles=2, kl_weight=1e-3), "svdd": Svdd(num_candidates=4),
    "random_search": RandomSearch(num_particles=3, num_rounds=2), "demon": Demon(num_candidates=3),
    "evosearch": EvoSearch(population_sizes=(3, 3), evolution_steps=(0.0,), num_elites=1),
    "epsilon_greedy": EpsilonGreedy(num_candidates=3, num_rounds=1), "rbf": Rbf(num_particles=1, num_starts=4, budget=16),
    "dno": Dno(gradients=Checkpoint(), num_updates=2, lr=0.3), "tfg": Tfg(rho=0.1, mu=0.1, num_samples=2, inner_steps=1),
    "psi_sampler": PsiSampler(num_particles=2, num_chains=2, burn_in=1, num_mcmc_steps=1, kl_weight=1e-3, max_gradient=None),
}  # fmt: skip
_DETERMINISTIC = {
    "zero_order": ZeroOrder(num_neighbours=6, similarity=0.5), "search_over_paths": SearchOverPaths(num_rounds=2),
    "reno": Reno(gradients=Checkpoint(), num_updates=2, norm_weight=0.3, lr=20.0),
    "base": Base(), "mpgd": Mpgd(strength=0.1, window=(1, 0)), "freedom": FreeDom(strength=0.1, window=(1, 0), num_repeats=2),
    "universal": Universal(strength=0.1, num_repeats=2, backward_steps=1, backward_lr=0.1),
    "doodl, ddim": Doodl(gradients=Checkpoint(), process="ddim", **_WHOLE),
    "doodl, edict": Doodl(gradients=Reversible(), process="edict", **_WHOLE),
    "adjoint_dpm": AdjointDpm(gradients=Adjoint(), num_updates=1),
    "adjoint_dpm, embedding": AdjointDpm(gradients=Checkpoint(), what="embedding", num_updates=1),
    "blip_inversion": BlipInversion(augmentations=Augmentations(count=2), num_iterations=3, distill_iterations=1, ema_start=None),
}  # fmt: skip
METHODS: dict[str, Method] = {**_STOCHASTIC, **_DETERMINISTIC}


def check_method(
    name: str,
    model: LatentModel,
    deterministic: Scheduler,
    stochastic: Scheduler,
    prompts: tuple[str, ...] = ("a cat", "two dogs, red"),
) -> Tensor:
    """Runs a method on a model by one of two schedulers, and holds its latents against those of the unguided chain: of the same
    shape, finite, and others. Returns them.
    """
    scheduler = stochastic if name in _STOCHASTIC else deterministic
    assert scheduler.stochastic == (name in _STOCHASTIC)
    tasks, grid = [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)], scheduler.grid(model.schedule)

    def made(method: Method) -> Tensor:
        problem = Problem(
            tasks=tasks, denoise=model.guided_denoiser(tasks, grid, len(grid) - 1), scheduler=scheduler, grid=grid, schedule=model.schedule,
            num_steps=len(grid) - 1, noise=Noise([str(i) for i in range(len(tasks))]), latent_shape=model.latent_shape,
            decode=model.decode, reward=lambda pictures, _: pictures[:, 0].mean((1, 2)), batch_size=4,
        )  # fmt: skip
        with torch.no_grad():
            return method(problem)

    x_0 = made(METHODS[name])
    assert x_0.shape == (len(tasks), *model.latent_shape) and x_0.isfinite().all() and not x_0.requires_grad
    assert name == "base" or (x_0 - made(Base())).abs().max() > 1e-5
    return x_0
