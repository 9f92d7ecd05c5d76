"""Tiny SANA folders of diffusers' and transformers' own classes, with random weights."""

import inspect
import string
from pathlib import Path
from typing import Any

import torch

DPM = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}  # of the repositories
KINDS: dict[str, dict[str, Any]] = {"1.0": {}, "1.5": {"qk_norm": "rms_norm_across_heads", "interpolation_scale": 1.0}}


def save_sana(folder: Path, kind: str = "1.0", **transformer: object) -> Path:
    """ "1.0", or "1.5", whose transformer normalises queries and keys, here with positions as those of 2048 pixels, and whose scheduler
    is Euler's. Latents 4 x h/4 x w/4, of 4 x 8 x 8 to 32 px. `transformer` are other options of it.
    """
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
    from diffusers import DPMSolverMultistepScheduler as DpmSolver
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    # The pipeline's instruction is long. In letters it takes the text encoder half a second, in words it does not.
    instruction = " ".join(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
    said = [f"▁{word}" for word in dict.fromkeys(instruction.split()) if set(word) <= set(string.ascii_letters)]
    merges = {("▁", "a"): None, ("▁", "t"): None, ("c", "a"): None, ("ca", "t"): None}
    merges |= {(word[:i], word[i]): None for word in said for i in range(1, len(word))}
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = [*special, *string.printable.replace(" ", ""), "▁", *("".join(pair) for pair in merges)]
    blocks = ["ResBlock", "ResBlock", "EfficientViTBlock"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = SanaPipeline(
            transformer=SanaTransformer2DModel(
                **{
                    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
                    "num_cross_attention_heads": 2, "cross_attention_head_dim": 6, "cross_attention_dim": 16, "caption_channels": 24,
                    "sample_size": 8, **KINDS[kind], **transformer,
                }
            ),
            vae=AutoencoderDC(
                latent_channels=4, attention_head_dim=4, encoder_block_types=blocks, decoder_block_types=blocks,
                encoder_block_out_channels=(8, 8, 16), decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 1, 1),
                decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)),
                upsample_block_type="interpolate", downsample_block_type="conv", scaling_factor=0.41407,
            ),
            text_encoder=Gemma2Model(
                Gemma2Config(
                    vocab_size=len(words), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=4096,
                )
            ),
            tokenizer=GemmaTokenizer(
                vocab={word: i for i, word in enumerate(words)}, merges=list(merges), add_bos_token=True,
            ),
            scheduler=DpmSolver(**DPM) if kind == "1.0" else FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
        for network in (pipeline.transformer, pipeline.vae):  # prompt, position and time must show
            for parameter in network.parameters():
                parameter.data.add_(0.06 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
    return folder
