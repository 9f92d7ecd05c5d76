"""A tiny Stable Diffusion XL folder of diffusers' and transformers' own classes, with random weights."""

from pathlib import Path

import torch

LENGTH = 12


def save_stable_diffusion_xl(folder: Path, **unet: object) -> Path:
    """Latents 4 x 8 x 8 to 16 px; the text encoders differ in width. `unet` are other options of the UNet."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from tokenizers import pre_tokenizers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    vocabulary, merges = {token: i for i, token in enumerate(tokens)}, [("c", "a"), ("ca", "t</w>")]

    def clip(width: int, projection: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=LENGTH, projection_dim=projection, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
        )  # fmt: skip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        options = {
            "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 24, "attention_head_dim": (2, 4), "norm_num_groups": 4, "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + 12,
        }  # fmt: skip
        pipeline = StableDiffusionXLPipeline(
            unet=UNet2DConditionModel(**options | unet),
            vae=AutoencoderKL(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.13025,
            ),
            text_encoder=CLIPTextModel(clip(16, 16)), text_encoder_2=CLIPTextModelWithProjection(clip(8, 12)),
            tokenizer=CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH),
            tokenizer_2=CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH, pad_token="!"),
            scheduler=EulerDiscreteScheduler(
                1000, 0.00085, 0.012, "scaled_linear", timestep_spacing="leading", steps_offset=1
            ),
            add_watermarker=False,
        )  # fmt: skip
        for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            for parameter in network.parameters():
                parameter.data.mul_(1.5).add_(0.02 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
    return folder
