"""The lab's rectified flow: a small Stable Diffusion 3 in its own classes, taught by data and by the lab's generator.

At noise level s in [0, 1] a latent is x = (1 - s) x_0 + s n, and the network predicts the velocity n - x_0. It sees 256 image
tokens, one per latent pixel, the tokens of the caption, and the zeros which stand for T5's where there is no T5. It is trained with
64 image tokens first, one per patch of 2 x 2 ("coarse"), at a third of the cost: places, colours and counts are learned there,
edges are not.
The shipped weights are the coarse network's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidedgen.lab import networks
from guidedgen.lab.levels import Levels

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

Encoders = tuple[Any, Any]  # two CLIPTextModelWithProjection

SIDE, PATCH = 16, 2  # latent pixels per side of a picture and of a coarse patch
ZEROS = 256  # tokens of T5 that StableDiffusion3Pipeline fills with zeros where it has none
_SHARPNESS = 3.0  # of the attention that starts out local
# Where the local heads look at first, in layers of even and of odd number: (x, y) in patches.
_OFFSETS = (((-1, 0), (1, 0), (0, -1), (0, 1)), ((-1, -1), (1, 1), (1, -1), (-1, 1)))


def build_transformer(width: int = 128, layers: int = 4, heads: int = 4) -> SD3Transformer2DModel:
    """An untrained coarse SD3Transformer2DModel on 4 x 16 x 16 latents in patches of 2 x 2, 2.8 M parameters.

    It predicts nothing at first. The layers have the second attention of SD3.5, over the image alone, whose heads start out
    looking at one neighbour each, as a convolution does: it takes a transformer long to find out where the neighbours are.
    """
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=PATCH, in_channels=4, out_channels=4, num_layers=layers, num_attention_heads=heads,
        attention_head_dim=width // heads, joint_attention_dim=2 * networks.CLIP_DIM, caption_projection_dim=width,
        pooled_projection_dim=2 * networks.CLIP_DIM, pos_embed_max_size=SIDE // PATCH, dual_attention_layers=tuple(range(layers)),
    )  # fmt: skip
    place = _place(width, heads)
    with torch.no_grad():
        network.pos_embed.proj.weight[place] = 0
        nn.init.zeros_(network.pos_embed.proj.bias)
        for i, block in enumerate(network.transformer_blocks):
            for norm in (block.norm1, block.norm1_context):
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(norm.linear.bias)
                if norm is block.norm1 or not block.context_pre_only:  # a shift, a scale and a gate, for each of two or three
                    norm.linear.bias.view(-1, 3, width)[:, 2] = 1
            for layer in (block.attn.to_out[0], block.attn2.to_out[0], block.ff.net[2]):
                layer.weight *= 0.3
                layer.weight[place] = 0
                nn.init.zeros_(layer.bias)
            for head, offset in enumerate(_OFFSETS[i % 2][:heads]):
                _look_aside(block.attn2, head, offset, place)
        for layer in (network.norm_out.linear, network.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return network


@torch.no_grad()
def refined(coarse: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """The coarse network with a token for every latent pixel, which at first sees and draws what its patch did on average.

    Places are counted in coarse patches still, in halves and quarters of them, so that the blocks know where their tokens are. The
    table of places is a buffer that is saved with the weights, as SD3's is.
    """
    from diffusers import SD3Transformer2DModel
    from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid

    config = {key: value for key, value in coarse.config.items() if not key.startswith("_")}
    network = SD3Transformer2DModel(**config | {"patch_size": 1, "pos_embed_max_size": SIDE})
    state, parts = coarse.state_dict(), (PATCH, PATCH, config["out_channels"])
    places = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / PATCH - 0.5
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy")).reshape(2, 1, SIDE, SIDE)
    state["pos_embed.pos_embed"] = get_2d_sincos_pos_embed_from_grid(coarse.inner_dim, grid, output_type="pt").float()[None]
    state["pos_embed.proj.weight"] = state["pos_embed.proj.weight"].sum((2, 3), keepdim=True)
    state["proj_out.weight"] = state["proj_out.weight"].unflatten(0, parts).mean((0, 1))
    state["proj_out.bias"] = state["proj_out.bias"].unflatten(0, parts).mean((0, 1))
    network.load_state_dict(state)
    return network


def _place(width: int, heads: int) -> list[int]:
    """The features of a token that are at first kept for its place, as many as a head has: sine and cosine at every other of the
    high frequencies of SD3's position embedding, for x, then for y. It holds sines, then cosines, of x, then of y.
    """
    return [axis + i + part for axis in (0, width // 2) for i in range(0, width // heads // 2, 2) for part in (0, width // 4)]


def _look_aside(attention: Any, head: int, offset: tuple[int, int], place: list[int]) -> None:
    """Lets the image tokens of a head attend to the image token (x, y) patches away."""
    size, width = len(place), attention.to_q.in_features
    rows = slice(head * size, (head + 1) * size)
    query, key = torch.zeros(size, width), torch.zeros(size, width)
    for row in range(0, size, 2):  # a sine and a cosine each
        sine, cosine = place[row : row + 2]
        frequency = 10_000 ** (-(sine % (width // 4)) / (width // 4))
        angle = offset[row >= size // 2] * frequency
        key[row, sine] = key[row + 1, cosine] = 1
        query[row, sine], query[row, cosine] = math.cos(angle), math.sin(angle)
        query[row + 1, cosine], query[row + 1, sine] = math.cos(angle), -math.sin(angle)
    scale = math.sqrt(_SHARPNESS * math.sqrt(size) / 1.8)  # 1.8: the square of the embedding's scale after the first norm
    for layer, weight in ((attention.to_q, query), (attention.to_k, key)):
        layer.weight[rows] = scale * weight
        layer.bias[rows] = 0


# The text side


def first_text_encoder(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The generator's text encoder with a third layer that changes nothing: SD3 reads the state before the last layer."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    scale = 1 / 16  # of all states, which are large; the norms after them take it out again
    changed = {"num_hidden_layers": 3, "layer_norm_eps": scale**2 * encoder.config.layer_norm_eps}
    config = CLIPTextConfig(**encoder.config.to_dict() | changed)
    grown = CLIPTextModelWithProjection(config)
    missing = grown.load_state_dict(_prefixed(grown, encoder.state_dict()), strict=False).missing_keys
    assert all("layers.2." in key or key == "text_projection.weight" for key in missing), missing
    with torch.no_grad():
        states = _inner(grown)
        for table in (states.embeddings.token_embedding, states.embeddings.position_embedding):
            table.weight *= scale
        for layer in states.encoder.layers:
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                linear.weight *= scale
                linear.bias *= scale
        last = _inner(grown).encoder.layers[2]
        for layer in (last.self_attn.out_proj, last.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        grown.text_projection.weight.copy_(torch.eye(len(grown.text_projection.weight)))
    return grown.eval().requires_grad_(False)


def _inner(encoder: Any) -> Any:
    return getattr(encoder, "text_model", encoder)


def _prefixed(encoder: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text model's state as the model with the projection names it."""
    prefix = "text_model." if any(key.startswith("text_model.") for key in encoder.state_dict()) else ""
    return {prefix + key.removeprefix("text_model."): value for key, value in state.items()}


def second_text_encoder(clip: Any) -> CLIPTextModelWithProjection:
    """The text tower of one of the lab's CLIPs in transformers' class."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    vocabulary, width = clip.token_embedding.weight.shape
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=len(clip.transformer.resblocks),
        num_attention_heads=4, max_position_embeddings=networks.MAX_TOKENS, projection_dim=clip.text_projection.shape[1],
        hidden_act="gelu", bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    state = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    names = {
        "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    for i, block in enumerate(clip.transformer.resblocks):
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                state[f"encoder.layers.{i}.{ours}.{kind}"] = block.get_parameter(f"{theirs}.{kind}")
            parts = block.get_parameter(f"attn.in_proj_{kind}").chunk(3)
            for part, value in zip("qkv", parts, strict=True):
                state[f"encoder.layers.{i}.self_attn.{part}_proj.{kind}"] = value
    encoder = CLIPTextModelWithProjection(config)
    state = _prefixed(encoder, state) | {"text_projection.weight": clip.text_projection.T}
    encoder.load_state_dict(state)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def encode(encoders: Encoders, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of captions (b t): the sequence (b t+1 256) that ends in one zero token, the pooled vector (b 256), and the generator's
    own sequence (b t 128).
    """
    read = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    sequence = torch.cat([output.hidden_states[-2] for output in read], -1).float()
    pooled = torch.cat([output.text_embeds for output in read], -1).float()
    return F.pad(sequence, (0, 0, 0, 1)), pooled, read[0].last_hidden_state


@torch.no_grad()
def standardise_inputs(network: SD3Transformer2DModel, sequence: Tensor, pooled: Tensor) -> None:
    """Rescales what a transformer makes of its text inputs, so that features as unequal as these all count alike at first."""
    for layer, features in (
        (network.context_embedder, sequence.flatten(0, 1)),
        (network.time_text_embed.text_embedder.linear_1, pooled),
    ):
        mean, std = features.mean(0), features.std(0) + 1e-3
        layer.weight /= std
        layer.bias -= layer.weight @ mean


# Teaching


@torch.no_grad()
def teacher_velocity(unet: UNet2DConditionModel, alpha_bar: Tensor, x: Tensor, s: Tensor, text: Tensor) -> Tensor:
    """The velocity (b 4 16 16) that a noise-predicting network implies at x, where its schedule has the same signal-to-noise
    ratio; noise beyond the schedule's last level is taken for that level.
    """
    s = s.clamp(max=1 - 1e-4)
    t = Levels(alpha_bar).time(((1 - s) / s).log())
    s = s[:, None, None, None]
    noise = unet(x / ((1 - s).square() + s.square()).sqrt(), t, text).sample.float()
    return (noise - x) / (1 - s)


def draw_levels(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (b) in (0, 1): logit-normal, which looks most at the middle, but for a tenth that is uniform."""
    middle = (0.5 + 1.2 * torch.randn(count, generator=generator)).sigmoid()
    anywhere = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < 0.1, anywhere, middle)


def draw_copies(generator: torch.Generator) -> int:
    """A number of zero tokens: half the time the pipeline's own, else any from 1 to 512, few as often as many."""
    own, share = torch.rand(2, generator=generator).tolist()
    return ZEROS if own < 0.5 else round(512**share)
