"""Tiny FLUX.1 folders of diffusers' and transformers' own classes, with random weights."""

from pathlib import Path

import torch

CLIP_LENGTH = 16
SCHEDULERS = {
    "dev": {"shift": 3.0, "use_dynamic_shifting": True},
    "schnell": {"shift": 1.0, "use_dynamic_shifting": False},
}  # fmt: skip  of the two repositories


def save_flux(folder: Path, kind: str = "dev", **scheduler: object) -> Path:
    """ "dev", whose transformer is given its guidance, or "schnell", which is not. Latents 4 x h/2 x w/2. `scheduler` are other
    options of the scheduler.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    end = len(tokens) - 1
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz,", "▁"]
    t5 = Tokenizer(models.Unigram([(word, -1.0 - i / 100) for i, word in enumerate(words)], unk_id=2))
    t5.pre_tokenizer = pre_tokenizers.Metaspace()
    t5.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(
                in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=24, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=kind == "dev",
            ),
            vae=AutoencoderKL(
                block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4, norm_num_groups=4, sample_size=16, scaling_factor=0.3611, shift_factor=0.1159,
                use_quant_conv=False, use_post_quant_conv=False,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                    max_position_embeddings=CLIP_LENGTH, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
                )
            ),
            tokenizer=CLIPTokenizer(
                vocab={token: i for i, token in enumerate(tokens)}, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=CLIP_LENGTH
            ),
            text_encoder_2=T5EncoderModel(
                T5Config(vocab_size=len(words), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
            ),
            tokenizer_2=T5TokenizerFast(tokenizer_object=t5, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0),
            scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULERS[kind] | scheduler),
        )  # fmt: skip
        for network in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):  # prompt, place and time must show
            for parameter in network.parameters():
                parameter.data.add_(0.06 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
    return folder
