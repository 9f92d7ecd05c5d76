"""Denoisers to differentiate chains of: an analytic mixture, and the project's own denoiser on a tiny Stable Diffusion."""

import copy
import dataclasses
import functools
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.models.latent import PromptedDenoiser
from guidedgen.models.stable_diffusion import StableDiffusion

_models = runpy.run_path(str(Path(__file__).resolve().parents[1] / "models" / "conftest.py"))


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A denoiser, where its chain may begin, and tensors that the denoiser closes over."""

    denoise: GaussianDenoiser | PromptedDenoiser
    x: Tensor
    params: Sequence[Tensor] = ()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion of latents 4 x 8 x 8 with random weights."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return _models["save_stable_diffusion"](tmp_path_factory.mktemp("tiny"), "epsilon")


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Callable[..., StableDiffusion]:
    """Fresh networks, computing in some dtype: copies of those that are loaded once."""

    @functools.cache
    def loaded(dtype: str) -> StableDiffusion:
        model = StableDiffusion(path=str(folder), name="tiny", dtype=dtype, guidance_scale=2.0)
        model.load()
        return model

    return lambda dtype="float64": copy.deepcopy(loaded(dtype))


@pytest.fixture(scope="session")
def case(tiny: Callable[..., StableDiffusion]) -> Callable[[str], Case]:
    """By name. "unet": two prompts, guided; params are their embedding and one weight of the UNet. "gaussian": the means of what is
    sampled, and the weights of its components.
    """

    def make(name: str, dtype: str = "float64") -> Case:
        if name == "unet":
            model = tiny(dtype)
            denoise = model.denoiser([Task(id="0", prompt="a cat"), Task(id="1", prompt="two dogs, red")])
            embedding = denoise.conditioning.clone().requires_grad_()
            weight = model.unet.conv_in.weight.requires_grad_()
            return Case(denoise=denoise.conditioned_on(embedding), x=normal(0, 2, 1, 4, 8, 8), params=(embedding, weight))
        means = normal(1, 3, 2, 1, 1).requires_grad_()
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
        cond = GaussianMixture(means=means, std=0.6, weights=weights)
        uncond = GaussianMixture(means=torch.zeros_like(means[:1]), std=1.2, weights=torch.ones(1, dtype=torch.float64))
        denoise = GaussianDenoiser(cond=cond, uncond=uncond, guidance_scale=2.0)
        return Case(denoise=denoise, x=normal(0, 2, 3, 2, 1, 1), params=(means, weights))

    return make
