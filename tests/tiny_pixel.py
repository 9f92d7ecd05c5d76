"""Tiny folders of models without text, of diffusers' own classes, with random weights."""

import json
import shutil
from pathlib import Path

import torch

# Of DiT: the labels of its first classes, two of which share one, and prompts of the tests of all families.
LABELS = {
    "0": "a cat", "1": "two dogs, red", "2": "a", "3": "cat cat", "5": "tench, Tinca tinca", "6": "crane",
    "7": "great white shark, white shark, man-eater, man-eating shark", "8": "crane", "999": "toilet tissue, toilet paper",
}  # fmt: skip
# Of the two repositories.
DDPM = {"variance_type": "fixed_large", "clip_sample": True, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
DDIM = {"clip_sample": False, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def save_ddpm(folder: Path, *, loose: bool = False, unet: dict[str, object] | None = None, **scheduler: object) -> Path:
    """A DDPMPipeline of 3 x 16 x 16 pixels. `loose`: its parts not in folders of their own, as in google/ddpm-cifar10-32, with the
    names that attention had then; `unet` and `scheduler` are other options of the two.
    """
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = DDPMPipeline(
            unet=UNet2DModel(
                **{
                    "sample_size": 16, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
                    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
                    "attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
                    "norm_eps": 1e-6, **(unet or {}),
                }
            ),
            scheduler=DDPMScheduler(**DDPM | scheduler),
        )  # fmt: skip
        for parameter in pipeline.unet.parameters():  # place and time must show
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder, safe_serialization=not loose)
    if loose:
        _loosen(folder)
    return folder


def _loosen(folder: Path) -> None:
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = folder / "unet/diffusion_pytorch_model.bin"
    state = torch.load(weights, weights_only=True)
    for now, then in names.items():
        state = {name.replace(f".{now}.", f".{then}."): value for name, value in state.items()}
    torch.save(state, weights)
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            shutil.move(file, folder / file.name)
        (folder / part).rmdir()


def save_dit(folder: Path, *, first: bool = False, **transformer: object) -> Path:
    """A DiTPipeline of latents 4 x 8 x 8 to 16 px. `first`: named as in facebook/DiT-XL-2-256, of another class."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = DiTPipeline(
            transformer=DiTTransformer2DModel(
                **{
                    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3,
                    "sample_size": 8, "patch_size": 2, **transformer,
                }
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, norm_num_groups=4, sample_size=16,
            ),
            scheduler=DDIMScheduler(**DDIM),
        )  # fmt: skip
        for network in (pipeline.transformer, pipeline.vae):  # class, position and time must show
            for parameter in network.parameters():
                parameter.data.add_(0.06 * torch.randn_like(parameter))
        pipeline.transformer.proj_out_2.weight.data.mul_(0.3)  # latents that grow less are held to more digits
    pipeline.save_pretrained(folder)
    change(folder / "model_index.json", id2label=LABELS)
    if first:
        entry = ["diffusers", "Transformer2DModel"]
        change(folder / "model_index.json", transformer=entry)
        other = {
            "cross_attention_dim": None,
            "num_vector_embeds": None,
            "only_cross_attention": False,
            "use_linear_projection": False,
        }
        change(folder / "transformer/config.json", _class_name="Transformer2DModel", **other)
    return folder


def change(file: Path, **values: object) -> None:
    """Other values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
