"""Tiny Stable Diffusion folders of diffusers' and transformers' own classes, with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_flux import save_flux
from tiny_pixart import save_pixart
from tiny_pixel import save_dit
from tiny_sana import save_sana
from tiny_sd3 import save_stable_diffusion_3
from tiny_xl import save_stable_diffusion_xl

from guidedgen.models.dit import Dit
from guidedgen.models.flux import Flux
from guidedgen.models.latent import LatentModel
from guidedgen.models.pixart import PixArt
from guidedgen.models.sana import Sana
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_3 import StableDiffusion3
from guidedgen.models.stable_diffusion_xl import StableDiffusionXl

LENGTH = 12
PREDICTIONS = ("epsilon", "v_prediction")
FAMILIES = {
    "sd": StableDiffusion,
    "xl": StableDiffusionXl,
    "sd3": StableDiffusion3,
    "flux": Flux,
    "pixart": PixArt,
    "sana": Sana,
    "dit": Dit,
}


def save_stable_diffusion(folder: Path, prediction: str) -> Path:
    """Two different shapes: latents 4 x 8 x 8 to 32 px, and 3 x 16 x 16 to 32 px with a linear schedule."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    v = prediction == "v_prediction"
    channels, side, vae = (3, 16, (8, 8)) if v else (4, 8, (8, 8, 16))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=vae, down_block_types=("DownEncoderBlock2D",) * len(vae),
                up_block_types=("UpDecoderBlock2D",) * len(vae), latent_channels=channels, norm_num_groups=4, sample_size=32,
                scaling_factor=0.31,
            ),
            unet=UNet2DConditionModel(
                sample_size=side, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                    max_position_embeddings=LENGTH, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
                )
            ),
            tokenizer=CLIPTokenizer(
                vocab={token: i for i, token in enumerate(tokens)}, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=LENGTH
            ),
            scheduler=DDIMScheduler(
                1000, 0.00085, 0.012, "linear" if v else "scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                prediction_type=prediction,
            ),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        for norm in (pipeline.unet, pipeline.vae, pipeline.text_encoder):  # the prompt must show in the picture
            for parameter in norm.parameters():
                parameter.data.mul_(1.5)
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionXLPipeline's."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return save_stable_diffusion_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline's."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return save_stable_diffusion_3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FluxPipeline's, as dev."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return save_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="session")
def pixart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PixArtSigmaPipeline's."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return save_pixart(tmp_path_factory.mktemp("pixart"))


@pytest.fixture(scope="session")
def sana_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SanaPipeline's."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return save_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline's."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return save_dit(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By what the UNet predicts."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    return {prediction: save_stable_diffusion(tmp_path_factory.mktemp(prediction), prediction) for prediction in PREDICTIONS}


@pytest.fixture(params=FAMILIES)
def make(
    request: pytest.FixtureRequest,
    folders: dict[str, Path],
    xl_folder: Path,
    sd3_folder: Path,
    flux_folder: Path,
    pixart_folder: Path,
    sana_folder: Path,
    dit_folder: Path,
) -> Callable[..., LatentModel]:
    """Models of every family, each with negative prompts and guidance."""
    made = {
        "sd": folders["epsilon"], "xl": xl_folder, "sd3": sd3_folder, "flux": flux_folder, "pixart": pixart_folder,
        "sana": sana_folder, "dit": dit_folder,
    }  # fmt: skip
    family, given = FAMILIES[request.param], {"path": str(made[request.param]), "name": "tiny", "negative_prompt": "red"}
    size = {"size": 16} if request.param == "flux" else {}  # its own is 256 px here, on which attention takes a minute
    return lambda **options: family(**{**given, "guidance_scale": 2.0, **size, **options})
