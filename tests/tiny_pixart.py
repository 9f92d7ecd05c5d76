"""Tiny PixArt folders of diffusers' and transformers' own classes, with random weights."""

from pathlib import Path

import torch

BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}  # of the repositories


def save_pixart(folder: Path, kind: str = "sigma", **transformer: object) -> Path:
    """ "sigma", of latents 4 x 8 x 8, or "alpha", whose transformer is given the picture's size, as those for 1024 px are: of
    latents 4 x 128 x 128. A pixel's side is half a latent's. `transformer` are other options of it.
    """
    from diffusers import (
        AutoencoderKL,
        DPMSolverMultistepScheduler,
        PixArtAlphaPipeline,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz,", "▁"]
    t5 = Tokenizer(models.Unigram([(word, -1.0 - i / 100) for i, word in enumerate(words)], unk_id=2))
    t5.pre_tokenizer = pre_tokenizers.Metaspace()
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    own = (
        {"sample_size": 8, "interpolation_scale": 2, "use_additional_conditions": False}
        if kind == "sigma"
        else {"sample_size": 128}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = (PixArtSigmaPipeline if kind == "sigma" else PixArtAlphaPipeline)(
            transformer=PixArtTransformer2DModel(
                **{
                    "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "cross_attention_dim": 24,
                    "caption_channels": 16, "out_channels": 8, **own, **transformer,
                }
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.13025,
            ),
            text_encoder=T5EncoderModel(
                T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
            ),
            tokenizer=T5TokenizerFast(tokenizer_object=t5, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0),
            scheduler=DPMSolverMultistepScheduler(**BETAS),
        )  # fmt: skip
        for network in (pipeline.transformer, pipeline.vae):  # prompt, position and time must show
            for parameter in network.parameters():
                parameter.data.add_(0.06 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
    return folder
