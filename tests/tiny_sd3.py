"""A tiny Stable Diffusion 3 folder of diffusers' and transformers' own classes, with random weights."""

from pathlib import Path

import torch

LENGTH = 12


def save_stable_diffusion_3(folder: Path) -> Path:
    """Latents 4 x 8 x 8 to 16 px; the CLIPs differ in width, T5 has the transformer's."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=LENGTH
    )
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz,", "▁"]
    t5 = Tokenizer(models.Unigram([(word, -1.0 - i / 100) for i, word in enumerate(words)], unk_id=2))
    t5.pre_tokenizer = pre_tokenizers.Metaspace()
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])

    def clip(width: int, projection: int) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokens), hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                max_position_embeddings=LENGTH, projection_dim=projection, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
            )
        )  # fmt: skip

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
                num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=20,
                pos_embed_max_size=16,
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=1.5305, shift_factor=0.0609,
                use_quant_conv=False, use_post_quant_conv=False,
            ),
            text_encoder=clip(16, 12), text_encoder_2=clip(8, 8), tokenizer=tokenizer, tokenizer_2=tokenizer,
            text_encoder_3=T5EncoderModel(
                T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
            ),
            tokenizer_3=T5TokenizerFast(tokenizer_object=t5, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
        for network in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            for parameter in network.parameters():
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
    return folder
