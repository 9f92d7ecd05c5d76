"""Counts what each model needs of a GPU's memory, from the shapes of its networks at full size.

python scripts/memory.py                           every model, as Markdown
python scripts/memory.py sdxl flux_dev             some of them
python scripts/memory.py sdxl --size 768 --batch-size 4

No weights are loaded and nothing is computed: the methods themselves run on torch's fake tensors, which have a shape and a type
alone, and the most bytes that are alive at once are counted. Text encoders are not among them, as a run drops them before it loads
the denoising network. What is counted of a run: one prompt, the model's own guidance, size and half precision, pictures
`--batch-size` at a time. A reward's own network comes on top, and what an allocator rounds up and convolutions borrow.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.cli import terminal

if TYPE_CHECKING:
    from guidedgen.methods import Method
    from guidedgen.methods.problem import Problem
    from guidedgen.models.latent import LatentModel
    from guidedgen.process import Scheduler
    from guidedgen.process.grid import Grid

GIB = 2**30
COLUMNS = ("text encoders", "network", "autoencoder", "sampling", "with offload", "DOODL", "CoDeX", "CoDeX, decoder")

_SD_VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2,
}  # fmt: skip
_FLOW_VAE = {
    **_SD_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}  # fmt: skip
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
_SD3 = {"in_channels": 16, "out_channels": 16, "sample_size": 128, "pooled_projection_dim": 2048, "joint_attention_dim": 4096}
_FLUX = {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128}
_CLIP_L, _CLIP_G, _T5, _GEMMA = 0.123e9, 0.695e9, 4.762e9, 2.614e9  # parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model's networks, by the configs of its repository: classes of diffusers and their options."""

    network: tuple[str, Mapping[str, Any]]
    vae: tuple[str, Mapping[str, Any]]
    scheduler: tuple[str, Mapping[str, Any]]
    pipeline: str
    text: float  # parameters of the text encoders
    tokens: tuple[int, int]  # l d of a prompt
    pooled: int | None = None
    masked: bool = False


def _unet(width: int, **options: Any) -> tuple[str, Mapping[str, Any]]:
    return "UNet2DConditionModel", {"cross_attention_dim": width, "attention_head_dim": 8, "sample_size": 64, **options}


ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": Architecture(
        network=_unet(768), vae=("AutoencoderKL", _SD_VAE), scheduler=("DDIMScheduler", _BETAS),
        pipeline="StableDiffusionPipeline", text=_CLIP_L, tokens=(77, 768),
    ),
    "sd21": Architecture(
        network=_unet(1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, sample_size=96),
        vae=("AutoencoderKL", _SD_VAE), scheduler=("DDIMScheduler", {**_BETAS, "prediction_type": "v_prediction"}),
        pipeline="StableDiffusionPipeline", text=0.340e9, tokens=(77, 1024),
    ),
    "sdxl": Architecture(
        network=_unet(
            2048, sample_size=128, addition_embed_type="text_time", addition_time_embed_dim=256, attention_head_dim=(5, 10, 20),
            block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
            projection_class_embeddings_input_dim=2816, use_linear_projection=True,
        ),
        vae=("AutoencoderKL", {**_SD_VAE, "scaling_factor": 0.13025, "force_upcast": True}),
        scheduler=("EulerDiscreteScheduler", {key: _BETAS[key] for key in _BETAS if key != "clip_sample"}),
        pipeline="StableDiffusionXLPipeline", text=_CLIP_L + _CLIP_G, tokens=(77, 2048), pooled=1280,
    ),
    "sd3_medium": Architecture(
        network=(
            "SD3Transformer2DModel",
            {**_SD3, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536,
             "pos_embed_max_size": 192},
        ),
        vae=("AutoencoderKL", {**_FLOW_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        pipeline="StableDiffusion3Pipeline", text=_CLIP_L + _CLIP_G + _T5, tokens=(333, 4096), pooled=2048,
    ),
    "sd35_medium": Architecture(
        network=(
            "SD3Transformer2DModel",
            {**_SD3, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536,
             "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        ),
        vae=("AutoencoderKL", {**_FLOW_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        pipeline="StableDiffusion3Pipeline", text=_CLIP_L + _CLIP_G + _T5, tokens=(333, 4096), pooled=2048,
    ),
    "sd35_large": Architecture(
        network=(
            "SD3Transformer2DModel",
            {**_SD3, "num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64, "caption_projection_dim": 2432,
             "pos_embed_max_size": 192, "qk_norm": "rms_norm"},
        ),
        vae=("AutoencoderKL", {**_FLOW_VAE, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        pipeline="StableDiffusion3Pipeline", text=_CLIP_L + _CLIP_G + _T5, tokens=(333, 4096), pooled=2048,
    ),
    "flux_dev": Architecture(
        network=("FluxTransformer2DModel", {**_FLUX, "guidance_embeds": True}), vae=("AutoencoderKL", _FLOW_VAE),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        pipeline="FluxPipeline", text=_CLIP_L + _T5, tokens=(512, 4096), pooled=768,
    ),
    "flux_schnell": Architecture(
        network=("FluxTransformer2DModel", _FLUX), vae=("AutoencoderKL", _FLOW_VAE),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
        pipeline="FluxPipeline", text=_CLIP_L + _T5, tokens=(256, 4096), pooled=768,
    ),
    "pixart_sigma": Architecture(
        network=(
            "PixArtTransformer2DModel", {"caption_channels": 4096, "interpolation_scale": 2, "use_additional_conditions": False}
        ),
        vae=("AutoencoderKL", {**_SD_VAE, "scaling_factor": 0.13025, "force_upcast": True}),
        scheduler=("DPMSolverMultistepScheduler", {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}),
        pipeline="PixArtSigmaPipeline", text=_T5, tokens=(300, 4096), masked=True,
    ),
    "sana": Architecture(
        network=("SanaTransformer2DModel", {}),
        vae=(
            "AutoencoderDC",
            {"latent_channels": 32, "scaling_factor": 0.41407, "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
             "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024), "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
             "decoder_layers_per_block": (3,) * 6, "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
             "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
             "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)), "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
             "upsample_block_type": "interpolate", "downsample_block_type": "conv"},
        ),
        scheduler=(
            "DPMSolverMultistepScheduler",
            {"flow_shift": 3.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
        ),
        pipeline="SanaPipeline", text=_GEMMA, tokens=(300, 2304), masked=True,
    ),
}  # fmt: skip


def build(name: str, scheduler: dict[str, Any], folder: Path, size: int | None, batch_size: int) -> "LatentModel":
    """The model of conf/model/NAME.yaml on fake networks of its architecture. Inside a FakeTensorMode."""
    import diffusers
    import hydra.utils
    import torch

    from guidedgen.models.folder import Folder
    from guidedgen.models.latent import DTYPES
    from guidedgen.runs import composition

    found, cfg = ARCHITECTURES[name], composition.composed([f"model={name}", "method=base"])
    kind: Any = hydra.utils.get_class(cfg.model._target_)
    options = {key: cfg.model[key] for key in cfg.model if key not in ("_target_", "path", "device", "dtype", "size", "batch_size")}
    denoiser, index = kind.LEARNABLE.denoiser, {"_class_name": found.pipeline, "scheduler": ["diffusers", found.scheduler[0]]}

    def network(spec: tuple[str, Mapping[str, Any]], dtype: torch.dtype) -> Any:
        """Made in its dtype, as fake tensors cannot be converted in place."""
        torch.set_default_dtype(dtype)
        try:
            return getattr(diffusers, spec[0])(**spec[1]).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)

    networks = {denoiser: network(found.network, DTYPES[cfg.gpu_dtype]), "vae": network(found.vae, torch.float32)}
    configs = {f"{part}/config.json": dict(network.config) for part, network in networks.items()}
    configs |= {"scheduler/scheduler_config.json": scheduler, "model_index.json": index}
    configs |= {f"{part}/config.json": {} for part in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    for file, config in configs.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(config, default=str))

    def opened(cls: type[Folder], path: str, lab: str, size: tuple[int, int] | None = None) -> Folder:
        """It has no weights to check."""
        del lab
        return cls(path=Path(path), source=name, size=size)

    Folder.open = classmethod(opened)  # type: ignore[assignment, method-assign]
    model: LatentModel = kind(**options, path=str(folder), dtype=cfg.gpu_dtype, size=size, batch_size=batch_size)
    vars(model)["additions"] = None
    vars(model).update({denoiser: networks[denoiser], "vae": network(found.vae, model.vae_dtype)})
    return model


def methods() -> "Mapping[str, Method]":
    """What is counted, each in two steps, as more hold no more than their latents."""
    from guidedgen.gradients.checkpoint import Checkpoint
    from guidedgen.methods.base import Base
    from guidedgen.methods.codex import Codex
    from guidedgen.methods.doodl import Doodl

    codex = Codex(num_particles=4, block_size=1, gradient_block_size=1)
    return {
        "sampling": Base(), "DOODL": Doodl(gradients=Checkpoint(), process="ddim", num_updates=1, num_crops=0),
        "CoDeX": codex, "CoDeX, decoder": dataclasses.replace(codex, through="decoder"),
    }  # fmt: skip


def problem_of(model: "LatentModel", found: Architecture, sampler: "Scheduler", grid: "Grid", batch_size: int) -> "Problem":
    """One prompt, whose text has been read."""
    import torch

    from guidedgen.basics.noise import Noise
    from guidedgen.basics.tasks import Task
    from guidedgen.methods.problem import Problem
    from guidedgen.models.latent import DTYPES, Conditioning, PromptedDenoiser

    dtype, (length, width) = DTYPES[model.dtype], found.tokens
    row = Conditioning(
        torch.zeros(1, length, width, dtype=dtype),
        None if found.pooled is None else torch.zeros(1, found.pooled, dtype=dtype),
        torch.ones(1, length, dtype=torch.long) if found.masked else None,
    )
    return Problem(
        tasks=[Task(id="0", prompt="")], denoise=PromptedDenoiser(model=model, cond=row, uncond=row), scheduler=sampler, grid=grid,
        schedule=model.schedule, num_steps=2, noise=Noise(["0"]), latent_shape=model.latent_shape, decode=model.decode,
        batch_size=batch_size, reward=lambda pictures, _: pictures.mean((1, 2, 3)),
    )  # fmt: skip


def count(name: str, size: int | None, batch_size: int, *, fake: bool = True) -> Mapping[str, float]:
    """Bytes by column; on real tensors where not `fake`."""
    import diffusers
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from guidedgen.gradients.memory import Alive
    from guidedgen.models.latent import DTYPES
    from guidedgen.process.grid import FlowSchedule
    from guidedgen.process.schedulers import Ddim, Ddpm, Flow

    found, mode = ARCHITECTURES[name], FakeTensorMode() if fake else contextlib.nullcontext()
    config = dict(getattr(diffusers, found.scheduler[0])(**found.scheduler[1]).config)
    with tempfile.TemporaryDirectory() as folder:
        with mode:
            model = build(name, config, Path(folder), size, batch_size)
        flows = isinstance(model.schedule, FlowSchedule)

        def peak(compute: Callable[["Problem"], object], *, stochastic: bool = False) -> int:
            sampler = Flow(num_steps=2, eta=float(stochastic)) if flows else (Ddpm if stochastic else Ddim)(num_steps=2)
            grid = sampler.grid(model.schedule)
            with mode, torch.no_grad():
                problem = problem_of(model, found, sampler, grid, batch_size)
                with Alive() as alive:
                    compute(problem)
            return alive.peak

        network, vae = (sum(parameter.nbytes for parameter in part.parameters()) for part in (model.network, model.vae))
        sampled, decoded = peak(methods()["sampling"]), peak(lambda problem: problem.decode(problem.start()[:, 0]))
        guided = {name: peak(method, stochastic=name != "DOODL") for name, method in methods().items() if name != "sampling"}
        return {
            "text encoders": found.text * DTYPES[model.dtype].itemsize, "network": network, "autoencoder": vae,
            "sampling": network + vae + max(sampled, decoded), "with offload": max(network + sampled, vae + decoded),
            **{name: network + vae + held for name, held in guided.items()},
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(ARCHITECTURES)}; default: all")
    parser.add_argument("--size", type=int, help="height and width in pixels (default: the model's own)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once (default: 1)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models if name not in ARCHITECTURES]:
        raise UsageError(f"no such model: {unknown[0]}; use {', '.join(ARCHITECTURES)}")
    if not 1 <= arguments.batch_size <= 10**4:
        raise UsageError(f"--batch-size {arguments.batch_size}: must be from 1 to 10000")
    print(f"| GiB | {' | '.join(COLUMNS)} |")
    print(f"|---|{'---:|' * len(COLUMNS)}")
    for name in arguments.models or ARCHITECTURES:
        found = count(name, arguments.size, arguments.batch_size)
        print(f"| `{name}` | {' | '.join(f'{found[column] / GIB:.1f}' for column in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    terminal.run(main)
