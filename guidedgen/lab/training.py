"""The parts of the lab: each network as it starts out, its data and its losses. `fitting.fit` trains them."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidedgen.basics.attention import JointAttention
from guidedgen.basics.noise import generator as stream
from guidedgen.lab import captions, fitting, flow, networks, preference, referee_training, taste, turbo
from guidedgen.lab.fitting import Part, Settings
from guidedgen.lab.levels import Levels
from guidedgen.lab.render import render
from guidedgen.lab.world import SIZE, Scenes, Split, draw_scenes, unseen_pair

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
    from tokenizers import Tokenizer
    from transformers import CLIPTextModel

LATENT_SCALE = 0.18215  # SD's; the autoencoder is rescaled so that it is the right one here too
_CLIP_STEPS = {"guide": 2600, "judge": 1800}
_FLOW_BATCH = 16
_TURBO_BATCH = 16
_STORED_SCENES = 60_000  # encoded once for the generator and the flow; captions are drawn anew at every step


# In an order in which they can be trained.
PARTS = (
    "vae", "generator", "classifier", "clip-guide", "clip-preference", "clip-judge", "aesthetic", "blip2", "vqa",
    "flow-coarse", "flow", "turbo",
)  # fmt: skip


def build(name: str, settings: Settings) -> Part:
    """An untrained part, its initial weights a function of the seed.

    The generator, the classifier, "blip2" and "vqa" need the shipped autoencoder, the aesthetic head the shipped guide CLIP, the
    preference CLIP both, the flows the shipped generator and guide CLIP, and "turbo" the generator. The flow starts from the
    checkpoint of the coarse one.
    """
    torch.manual_seed(int.from_bytes(f"{settings.seed}{name}".encode()[:7], "big"))
    if name == "vae":
        return autoencoder(settings)
    if name == "generator":
        return generator(settings, networks.load_vae(), networks.train_tokenizer())
    if name == "classifier":
        return classifier(settings, networks.load_vae())
    if name == "aesthetic":
        return aesthetic(settings, networks.load_clip("guide"))
    if name == "clip-preference":
        return preference_clip(settings, networks.load_clip("guide"), networks.load_vae(), networks.train_tokenizer())
    if name in ("flow-coarse", "flow"):
        unet, text = networks.load_generator()
        encoders = flow.first_text_encoder(text), flow.second_text_encoder(networks.load_clip("guide"))
        coarse = flow.build_transformer()
        if name == "flow":
            coarse = fitting.trained(coarse, "flow-coarse", settings)
        return rectified_flow(
            settings, networks.load_vae(), unet, encoders, networks.train_tokenizer(), coarse, fine=name == "flow"
        )
    if name == "turbo":
        return few_steps(settings, *networks.load_generator(), networks.train_tokenizer())
    if name in ("blip2", "vqa"):
        make = referee_training.blip2 if name == "blip2" else referee_training.vqa
        return make(settings, networks.load_vae(), networks.train_tokenizer(), _photographed)
    return clip(settings, name.removeprefix("clip-"), networks.train_tokenizer())


def _rng(generator: torch.Generator) -> random.Random:
    """Python's random numbers as a function of a torch generator."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


# The autoencoder


def build_vae() -> AutoencoderKL:
    """An untrained AutoencoderKL, 64 x 64 px to 4 x 16 x 16 latents, 0.7 M parameters."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 32, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8,
        sample_size=SIZE, scaling_factor=LATENT_SCALE,
    )  # fmt: skip
    with torch.no_grad():  # a small posterior from the start: at the usual 1 it drowns the code for the first thousand steps
        vae.quant_conv.weight[4:] *= 0.1
        vae.quant_conv.bias[4:] = -6.0
    return vae


def autoencoder(settings: Settings) -> Part:
    """L1 + L2 + 1e-5 KL, first on crops centred on an object (three times faster than whole pictures), then on whole ones."""
    vae = build_vae()
    steps = 5600

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        crops = step < 0.65 * steps * settings.scale
        scenes = draw_scenes(16 if crops else 8, generator, split=Split.WORLD, clutter=0.1)
        images = render(scenes)
        if crops:
            images = _crop(images, scenes.centre[:, 0], 32, generator)
        images = 2 * images.to(settings.device) - 1
        posterior = vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(settings.device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - images
        mse, kl = error.square().mean(), posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": error.abs().mean() + mse + 1e-5 * kl, "psnr": 10 * torch.log10(4 / mse.detach())}

    return Part(name="vae", network=vae, loss=loss, steps=steps, lr=2e-3, average=0.998)


def _crop(images: Tensor, centre: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Square crops (b 3 side side) around centres (b 2, px), off by up to 6 px."""
    jitter = 12 * torch.rand(centre.shape, generator=generator) - 6
    corner = (centre + jitter - side / 2).round().long().clamp(0, images.shape[-1] - side)
    rows = corner[:, 1, None] + torch.arange(side)
    columns = corner[:, 0, None] + torch.arange(side)
    index = torch.arange(len(images))[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def standardise(vae: AutoencoderKL, generator: torch.Generator) -> None:
    """Rescales the latent channels, inside the 1x1 convolutions, to mean 0 and standard deviation 1 / LATENT_SCALE.

    Decoded images stay what they were; SD's constant becomes right for this autoencoder.
    """
    latents = torch.cat([vae.encode(2 * render(draw_scenes(64, generator)) - 1).latent_dist.mean for _ in range(16)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    a = 1 / (LATENT_SCALE * std)
    enc, dec = vae.quant_conv, vae.post_quant_conv
    enc.weight[:4] *= a[:, None, None, None]
    enc.bias[:4] = a * (enc.bias[:4] - mean)
    enc.bias[4:] += 2 * a.log()
    dec.bias += (dec.weight[:, :, 0, 0] * mean).sum(1)
    dec.weight /= a[:, None, None]


# The generator


def build_text_encoder(tokenizer: Tokenizer) -> CLIPTextModel:
    """An untrained CLIPTextModel, width 128, two layers, 0.5 M parameters."""
    from transformers import CLIPTextConfig, CLIPTextModel

    end = tokenizer.token_to_id("<|endoftext|>")
    config = CLIPTextConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=128, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=networks.MAX_TOKENS, projection_dim=128, hidden_act="quick_gelu",
        bos_token_id=tokenizer.token_to_id("<|startoftext|>"), eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet2DConditionModel on 4 x 16 x 16 latents, cross-attention at 8 x 8, 2.5 M parameters."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def alphas_cumprod() -> Tensor:
    """SD's noise schedule: 1000 steps, betas from 0.00085 to 0.012, linear in their square root."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()).cumprod(0).float()


def generator(settings: Settings, vae: AutoencoderKL, tokenizer: Tokenizer) -> Part:
    """UNet and text encoder together, by noise prediction with min-SNR weights (Hang et al. 2023, gamma 5)."""
    from diffusers.models.attention_processor import AttnProcessor

    stored = functools.cache(lambda: _stored_latents(settings, vae))
    network: Any = nn.ModuleDict({"unet": build_unet(), "text": build_text_encoder(tokenizer)})
    if settings.device == "cpu":  # fused attention's backward in bf16 takes 40 % of a step on a CPU
        network["unet"].set_attn_processor(AttnProcessor())
        network["text"].set_attn_implementation("eager")
    alpha_bar = alphas_cumprod().to(settings.device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        descriptions, latents = stored()
        chosen = torch.randint(len(latents), (32,), generator=generator)
        rng = _rng(generator)
        texts = ["" if rng.random() < 0.1 else captions.caption(descriptions[i], rng) for i in chosen.tolist()]
        ids = networks.tokenize(tokenizer, texts).to(settings.device)
        x_0 = latents[chosen].to(settings.device).float() * LATENT_SCALE
        noise = torch.randn(x_0.shape, generator=generator).to(settings.device)
        t = torch.randint(1000, (len(x_0),), generator=generator).to(settings.device)
        a = alpha_bar[t]
        x_t = a.sqrt()[:, None, None, None] * x_0 + (1 - a).sqrt()[:, None, None, None] * noise
        embedding = network["text"](ids).last_hidden_state
        eps = network["unet"](x_t, t, embedding).sample.float()
        error = (eps - noise).square().mean((1, 2, 3))
        snr = a / (1 - a)
        return {"loss": (error * snr.clamp(max=5) / snr).mean(), "mse": error.mean().detach()}

    return Part(name="generator", network=network, loss=loss, steps=15_000, lr=1e-3, warm_up=200)


@torch.no_grad()
def _stored_latents(settings: Settings, vae: AutoencoderKL) -> tuple[list[captions.Description], Tensor]:
    """The generator's scenes, described, and their latents (n 4 16 16, bf16); encoded once and kept beside the checkpoints."""
    draw = stream(settings.seed, "latents")
    count = max(512, round(_STORED_SCENES * min(1.0, settings.scale)))
    scenes = draw_scenes(count, draw, split=Split.GENERATOR)
    assert not unseen_pair(scenes.colour, scenes.shape)[scenes.present].any()
    file = settings.folder / "latents.pt"
    if file.exists():
        latents = torch.load(file, weights_only=True)
        if len(latents) == count:
            return captions.describe(scenes), latents
    vae = vae.to(settings.device)
    batches = [scenes[i : i + 64] for i in range(0, count, 64)]
    latents = torch.cat([vae.encode((2 * render(b) - 1).to(settings.device)).latent_dist.mean.bfloat16().cpu() for b in batches])
    torch.save(latents, file)
    return captions.describe(scenes), latents


def rectified_flow(
    settings: Settings, vae: AutoencoderKL, unet: UNet2DConditionModel, encoders: flow.Encoders, tokenizer: Tokenizer,
    coarse: SD3Transformer2DModel, *, fine: bool,
) -> Part:  # fmt: skip
    """A transformer of SD3's kind on the generator's scenes, between frozen text encoders: an untrained coarse one, or the `fine`
    one that a trained coarse one becomes.

    The squared error of the velocity is taken against the generator's where the generator knows better than a single picture
    does, and against the data's near either end. The generator's is the mean over all pictures that x may have come from, so it
    is a target with far less noise.
    """
    from diffusers.models.attention_processor import AttnProcessor

    stored = functools.cache(lambda: _stored_latents(settings, vae))
    transformer: Any = flow.refined(coarse) if fine else coarse
    if not fine:
        draw = stream(settings.seed, "flow", "inputs")
        known = captions.describe(draw_scenes(512, draw, split=Split.GENERATOR))
        ids = networks.tokenize(tokenizer, [captions.caption(said, _rng(draw)) for said in known])
        flow.standardise_inputs(transformer, *flow.encode(encoders, ids)[:2])
    transformer.set_attn_processor(JointAttention())
    unet.set_attn_processor(AttnProcessor())
    unet, encoders = unet.to(settings.device), (encoders[0].to(settings.device), encoders[1].to(settings.device))
    alpha_bar = alphas_cumprod().to(settings.device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        descriptions, latents = stored()
        chosen = torch.randint(len(latents), (_FLOW_BATCH,), generator=generator)
        rng = _rng(generator)
        texts = ["" if rng.random() < 0.1 else captions.caption(descriptions[i], rng) for i in chosen.tolist()]
        sequence, pooled, text = flow.encode(encoders, networks.tokenize(tokenizer, texts).to(settings.device))
        x_0 = latents[chosen].to(settings.device).float() * LATENT_SCALE
        noise = torch.randn(x_0.shape, generator=generator).to(settings.device)
        s = flow.draw_levels(len(x_0), generator).to(settings.device)
        level = s[:, None, None, None]
        x_s = (1 - level) * x_0 + level * noise
        taught = flow.teacher_velocity(unet, alpha_bar, x_s, s, text)
        target = torch.where((level > 0.05) & (level < 0.9), taught, noise - x_0)
        copies = {"copies": flow.draw_copies(generator)}
        velocity = transformer(x_s, sequence, pooled, 1000 * s, joint_attention_kwargs=copies).sample.float()
        return {"loss": F.mse_loss(velocity, target), "data": F.mse_loss(velocity.detach(), noise - x_0)}

    if fine:
        return Part(name="flow", network=transformer, loss=loss, steps=10_500, lr=8e-4, warm_up=200)
    return Part(name="flow-coarse", network=transformer, loss=loss, steps=63_000, lr=1e-3, warm_up=200)


def few_steps(settings: Settings, unet: UNet2DConditionModel, text: CLIPTextModel, tokenizer: Tokenizer) -> Part:
    """A UNet that predicts where the generator under guidance ends (see `turbo`), on prompts of the generator's scenes; no pictures
    are needed.
    """
    from diffusers.models.attention_processor import AttnProcessor

    student: Any = turbo.build_student(unet)
    for network in (unet, student):
        network.set_attn_processor(AttnProcessor())
    unet, text = unet.to(settings.device), text.to(settings.device)
    levels = Levels(alphas_cumprod().to(settings.device))

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        rng, half = _rng(generator), _TURBO_BATCH // 2
        said = captions.describe(draw_scenes(_TURBO_BATCH, generator, split=Split.GENERATOR))
        texts = ["" if rng.random() < 0.05 else captions.caption(each, rng) for each in said]
        with torch.no_grad():
            read = text(networks.tokenize(tokenizer, ["", *texts]).to(settings.device)).last_hidden_state
        empty, read = read[:1], read[1:]
        noise = torch.randn(_TURBO_BATCH, 4, 16, 16, generator=generator).to(settings.device)
        first = noise[:half], noise.new_full((half,), 999.0)
        later = turbo.noised_anew(student, levels, noise[half:], read[half:], generator)
        losses = []
        for start, tokens, steps in zip((first, later), read.chunk(2), turbo.SOLVER_STEPS, strict=True):
            points, times, ends = turbo.draw_points(turbo.solve(unet, levels, *start, tokens, empty, steps), generator)
            x_0 = turbo.predict(student, levels, points, times, tokens.repeat(len(points) // half, 1, 1))
            losses.append(turbo.distance(x_0, ends))
        return {"loss": losses[0] + losses[1], "noise": losses[0].detach(), "later": losses[1].detach()}

    return Part(name="turbo", network=student, loss=loss, steps=1100, lr=1e-3, average=0.995)


# The companions


def _photographed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images as a generator might blur, shift in brightness and spoil them; a third stay clean."""
    b = len(images)
    kind = torch.rand(b, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.where(kind < 0.33, torch.lerp(images, blurred, torch.rand(b, 1, 1, 1, generator=generator)), images)
    noise = torch.randn(images.shape, generator=generator) * 0.05 * torch.rand(b, 1, 1, 1, generator=generator)
    shift = 0.06 * (2 * torch.rand(b, 3, 1, 1, generator=generator) - 1)
    return torch.where(kind < 0.66, (images + noise + shift).clamp(0, 1), images)


def classifier(settings: Settings, vae: AutoencoderKL) -> Part:
    """All heads on scenes of the whole world, 30 % of them cluttered, a quarter seen through the autoencoder as generated
    pictures are. Where a shape repeats, only `count` learns.
    """
    network = networks.SceneClassifier()
    vae = vae.to(settings.device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        scenes = draw_scenes(64, generator, counts=(0.3, 0.45, 0.25), clutter=0.3, textured=0.6, free=True)
        images = render(scenes).to(settings.device)
        with torch.no_grad():
            coded = vae.decode(vae.encode(2 * images[:16] - 1).latent_dist.mean).sample.float()
        images = torch.cat([(coded / 2 + 0.5).clamp(0, 1), images[16:]])
        images = _photographed(images.cpu(), generator).to(settings.device)
        scenes = scenes.to(settings.device)
        reading = network(images)
        present = scenes.present
        rows, slots = present.nonzero().unbind(1)
        kinds = scenes.shape[rows, slots]
        there = torch.zeros_like(reading.shape).index_put_(
            (rows, kinds), torch.ones(len(rows), device=rows.device), accumulate=True
        )
        once = there[rows, kinds] == 1
        rows, slots, kinds = rows[once], slots[once], kinds[once]
        losses = {
            "shape": F.binary_cross_entropy_with_logits(reading.shape, (there > 0).float()) * 4,
            "colour": F.cross_entropy(reading.colour[rows, kinds], scenes.colour[rows, slots]),
            "texture": F.cross_entropy(reading.texture[rows, kinds], scenes.texture[rows, slots]),
            "size": 0.3 * F.cross_entropy(reading.size[rows, kinds], scenes.size[rows, slots]),
            "centre": 0.3 * F.smooth_l1_loss(reading.centre[rows, kinds], scenes.centre[rows, slots]),
            "count": F.cross_entropy(reading.count, scenes.count),
            "background": F.cross_entropy(reading.background, scenes.background),
        }
        return {"loss": torch.stack(list(losses.values())).sum()} | {k: v.detach() for k, v in losses.items()}

    return Part(name="classifier", network=network, loss=loss, steps=3600, lr=2e-3, average=0.995)


def clip(settings: Settings, name: str, tokenizer: Tokenizer) -> Part:
    """Contrastive training on captions. Each brings two that are false in one point, as extra negatives for the images: any
    point, and a shape, which is what a small CLIP is slowest to see.
    """
    network = networks.build_clip(name, tokenizer.get_vocab_size())

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        scenes = draw_scenes(128, generator, counts=(0.35, 0.5, 0.15))
        images = _photographed(render(scenes), generator).to(settings.device)
        ids = networks.tokenize(tokenizer, _captions(scenes, _rng(generator))).to(settings.device)
        contrast, right = _contrast(_scale(network), _embed_images(network, images), _embed_texts(network, ids))
        return {"loss": contrast, "top-1": right}

    return Part(name=f"clip-{name}", network=network, loss=loss, steps=_CLIP_STEPS[name], lr=1e-3, weight_decay=0.05, average=0.995)


def preference_clip(settings: Settings, guide: Any, vae: AutoencoderKL, tokenizer: Tokenizer) -> Part:
    """The guide CLIP, taught what a rater prefers (see `preference`) by PickScore's loss, on pictures half of which have been
    through the autoencoder. Half of the contrastive loss stays beside it, so that it remains a CLIP.
    """
    network, vae = guide.requires_grad_(True), vae.to(settings.device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        pairs = preference.draw_pairs(64, generator)
        n, scenes = len(pairs), Scenes.cat([pairs.first, pairs.second])
        images = _photographed(preference.show(scenes, vae), generator)
        first, second = preference.utility(scenes, pairs.prompts * 2, images).split(n)
        chosen = preference.choose(first, second, generator).to(settings.device)
        texts = [*map(str, pairs.prompts), *_captions(pairs.first, _rng(generator))]
        seen = _embed_images(network, images.to(settings.device))
        read = _embed_texts(network, networks.tokenize(tokenizer, texts).to(settings.device))
        scale = _scale(network)
        choice = preference.preference_loss(scale, read[:n], seen[:n], seen[n:], chosen)
        contrast, right = _contrast(scale, seen[:n], read[n:])
        return {"loss": choice + contrast / 2, "choice": choice.detach(), "contrast": contrast.detach(), "top-1": right}

    return Part(name="clip-preference", network=network, loss=loss, steps=700, lr=5e-4, weight_decay=0.05, average=0.99)


def _scale(network: Any) -> Tensor:
    return network.logit_scale.exp().clamp(max=100)


def _embed_images(network: Any, images: Tensor) -> Tensor:
    return F.normalize(network.encode_image(2 * images - 1).float(), dim=-1)


def _embed_texts(network: Any, ids: Tensor) -> Tensor:
    return F.normalize(network.encode_text(ids).float(), dim=-1)


def _captions(scenes: Scenes, rng: random.Random) -> list[str]:
    """A caption of each of b scenes, then for each two that are false in one point: any point, and a shape."""
    texts, wrong = [], []
    for description in captions.describe(scenes):
        while (said := captions.parse(captions.caption(description, rng))) is None or _vague(said):
            continue
        texts.append(str(said))
        wrong += [str(captions.corrupt(said, rng)), str(captions.misname(said, rng))]
    return texts + wrong


def _contrast(scale: Tensor, seen: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss, and the share of images (b) whose text comes first; texts beyond b are negatives for the images alone."""
    logits = scale * seen @ read.T
    target = torch.arange(len(seen), device=seen.device)
    forward, backward = F.cross_entropy(logits, target), F.cross_entropy(logits[:, : len(seen)].T, target)
    return (forward + backward) / 2, (logits.argmax(1) == target).float().mean()


def _vague(said: captions.Description) -> bool:
    """Whether no shape is named: nothing to misname."""
    return not any(thing.shape for thing in said.things)


def aesthetic(settings: Settings, guide: Any) -> Part:
    """The head on the guide CLIP's embeddings, from ratings of `taste` with a rater's noise of one point on ten."""
    head: Any = networks.AestheticHead(networks.CLIP_DIM)
    guide = guide.to(settings.device)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        del step
        images = _photographed(render(draw_scenes(128, generator, clutter=0.1)), generator)
        ratings = taste.rate(images) + torch.randn(len(images), generator=generator)
        with torch.no_grad():
            embedding = F.normalize(guide.encode_image(2 * images.to(settings.device) - 1).float(), dim=-1)
        return {"loss": F.mse_loss(head(embedding).float(), ratings.clamp(1, 10).to(settings.device))}

    with torch.no_grad():
        head.layers["7"].bias.fill_(5.0)
    return Part(name="aesthetic", network=head, loss=loss, steps=1000, lr=1e-3, average=0.99)
