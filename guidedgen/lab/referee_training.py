"""How the lab's vision-language networks are trained: first to see, then to judge statements about what they see.

For the first part of its steps a network learns only what is in each 8 x 8 patch, which takes far fewer pictures than
learning it from texts; that loss is then added to the others. So is the loss of the positions of what a text names, for the
relations. BLIP-2, under which pictures are optimised, at last learns from pictures that were changed to make it err (`hardening`).
"""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidedgen.basics import vision_language
from guidedgen.basics.noise import generator as stream
from guidedgen.lab import captions, hardening, referees, statements
from guidedgen.lab.captions import Description
from guidedgen.lab.fitting import Part, Settings
from guidedgen.lab.render import render
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SHAPES, SIZE, SLOTS, TEXTURES, Scenes, draw_scenes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import AutoencoderKL
    from tokenizers import Tokenizer

    Spoil = Callable[[Tensor, torch.Generator], Tensor]

BATCH = 48  # scenes, with a true and a false statement each
_CODED = 4096  # scenes seen through the autoencoder, as generated pictures are; coded once
_LOOKING = 910  # steps without texts
_SEEING = 2000  # steps after which the vision tower is left as it is: it sees enough, and steps get cheaper
_HARDENING = 6000  # steps after which BLIP-2's pictures are attacked
_RADIUS = 2.0  # of an attack, at most; a thing's other colour, shape or texture is some 5 to 10 away
_NOTHINGS = 6  # pictures of nothing in addition to BATCH scenes, from then on; attacked three times as hard
_NOTHING = len(SHAPES)  # the label of a patch without an object


class PatchHeads(nn.Module):
    """Predicts from a vision tower's tokens what is in each patch, for training alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [len(SHAPES) + 1, len(COLOURS), len(TEXTURES)]
        self.patch, self.scene = nn.Linear(width, sum(self.sizes)), nn.Linear(width, SLOTS + 1 + len(BACKGROUNDS))

    def forward(self, seen: Tensor, scenes: Scenes) -> dict[str, Tensor]:
        """Cross-entropies of b p d tokens, the first of which is the scene's."""
        slot, there = under(scenes, seen.shape[1] - 1)
        row = torch.arange(len(slot))[:, None]
        shape, colour, texture = self.patch(seen[:, 1:]).float().split(self.sizes, -1)
        count, background = self.scene(seen[:, 0]).float().split([SLOTS + 1, len(BACKGROUNDS)], -1)
        kind = torch.where(there, scenes.shape[row, slot], _NOTHING)
        return {
            "shape": F.cross_entropy(shape.flatten(0, 1), kind.flatten()),
            "colour": F.cross_entropy(colour[there], scenes.colour[row, slot][there]),
            "texture": F.cross_entropy(texture[there], scenes.texture[row, slot][there]),
            "scene": 0.3 * (F.cross_entropy(count, scenes.count) + F.cross_entropy(background, scenes.background)),
        }


def under(scenes: Scenes, patches: int) -> tuple[Tensor, Tensor]:
    """The slot of the object nearest to each of the picture's square patches (b p), and whether it is over the patch's centre."""
    side = round(patches**0.5)
    axis = (torch.arange(side) + 0.5) * SIZE / side
    points = torch.stack([axis.expand(side, side), axis[:, None].expand(side, side)], -1).flatten(0, 1)  # p 2
    distance = (points[None, :, None] - scenes.centre[:, None]).norm(dim=-1) - scenes.radius[:, None]  # b p SLOTS
    nearest, slot = distance.masked_fill(~scenes.present[:, None], float("inf")).min(-1)
    return slot, nearest < 0


class PlaceHead(nn.Module):
    """Predicts the position of each thing that a text names from the token of its shape. Used in training alone: without it, the
    networks take long to learn relations between positions.
    """

    def __init__(self, width: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.place = nn.Linear(width, 2)
        names = (*SHAPES, "shape")
        self.shapes = torch.tensor([tokenizer.encode(name, add_special_tokens=False).ids[0] for name in names])

    def forward(
        self, read: Tensor, ids: Tensor, descriptions: Sequence[Description], truths: Sequence[Description], scenes: Scenes
    ) -> Tensor:
        """The Huber loss, in patches, of the positions of what is there once; of b l d states, b l ids and b texts and scenes."""
        objects = [
            (row, slot) for row, pair in enumerate(zip(descriptions, truths, strict=True)) for slot in statements.where(*pair)
        ]
        tokens = torch.isin(ids, self.shapes.to(ids.device)).nonzero()
        known = torch.tensor([slot is not None for _, slot in objects])
        rows, slots = torch.tensor([(row, slot) for row, slot in objects if slot is not None]).unbind(1)
        position = self.place(read[tuple(tokens[known.to(ids.device)].unbind(1))]).float()
        return F.smooth_l1_loss(position, scenes.centre[rows, slots].to(position) / 8)


def _show(settings: Settings, vae: AutoencoderKL, spoil: Spoil) -> Callable[[torch.Generator], tuple[Scenes, Tensor]]:
    """Draws BATCH scenes and their pictures, a quarter of them through the autoencoder and most of them spoilt a little."""
    stored = functools.cache(lambda: coded(settings, vae))

    def draw(generator: torch.Generator) -> tuple[Scenes, Tensor]:
        kept, shown = stored()
        rows = torch.randint(len(kept), (BATCH // 4,), generator=generator)
        fresh = draw_scenes(BATCH - len(rows), generator, counts=(0.35, 0.5, 0.15), clutter=0.15, textured=0.5, free=True)
        images = torch.cat([shown[rows].float() / 255, render(fresh)])
        return Scenes.cat([kept[rows], fresh]), 2 * spoil(images, generator) - 1

    return draw


@torch.no_grad()
def coded(settings: Settings, vae: AutoencoderKL) -> tuple[Scenes, Tensor]:
    """Scenes and what they look like through the autoencoder (n 3 64 64, uint8), stored with the checkpoints."""
    count = max(BATCH, round(_CODED * min(1.0, settings.scale)))
    scenes = draw_scenes(count, stream(settings.seed, "coded"), counts=(0.35, 0.5, 0.15), clutter=0.15, textured=0.5, free=True)
    file = settings.folder / "coded.pt"
    if file.exists():
        images = torch.load(file, weights_only=True)
        if len(images) == count:
            return scenes, images
    vae = vae.to(settings.device)
    parts = []
    for i in range(0, count, 64):
        latents = vae.encode((2 * render(scenes[i : i + 64]) - 1).to(settings.device)).latent_dist.mean
        parts.append(((vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu())
    images = torch.cat(parts)
    settings.folder.mkdir(parents=True, exist_ok=True)
    torch.save(images, file)
    return scenes, images


def _trim(ids: Tensor, mask: Tensor, device: str) -> tuple[Tensor, Tensor]:
    longest = int(mask.sum(1).max())
    return ids[:, :longest].to(device), mask[:, :longest].to(device)


def _with_heads(name: str, network: nn.Module, tokenizer: Tokenizer) -> nn.ModuleDict:
    heads = {"patches": PatchHeads(referees.WIDTH), "places": PlaceHead(referees.WIDTH, tokenizer)}
    return nn.ModuleDict({name: network, **heads})


def _look(
    heads: nn.Module, tower: Any, scenes: Scenes, images: Tensor, settings: Settings, *, learns: bool
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """What the vision tower makes of the images, the losses of what is in the patches of those of scenes, which come first,
    and their sum.
    """
    with torch.set_grad_enabled(learns):
        seen = tower(pixel_values=images.to(settings.device)).last_hidden_state
    looks = heads(seen[: len(scenes)], scenes.to(settings.device))
    return seen, looks, torch.stack(list(looks.values())).sum()


def _logged(loss: Tensor, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss} | {name: value.detach() for name, value in parts.items()}


def _share(right: Tensor) -> Tensor:
    return right.float().mean()


def blip2(settings: Settings, vae: AutoencoderKL, tokenizer: Tokenizer, spoil: Spoil) -> Part:
    """Matching, of a true and a false statement about every scene, and captioning, of the true one: with equal weights, as in
    BLIP-2's pretraining, whose contrastive loss is left out as it is in guidance. Hardened at last, where of pictures of nothing
    every statement is false.
    """
    network: Any = _with_heads("blip2", referees.build_blip2(tokenizer.get_vocab_size()), tokenizer)
    qformer, start = network["blip2"], referees.special(tokenizer)["[DEC]"]
    tower = qformer.network.vision_model
    if settings.device == "cpu":  # fused attention's backward in bf16 is slow on a CPU
        for part in (tower, qformer.network.qformer):
            part.set_attn_implementation("eager")
    show = _show(settings, vae, spoil)
    nothing = functools.cache(lambda: hardening.nothings(vae, 512, stream(settings.seed, "nothing")))

    def attacked(images: Tensor, ids: Tensor, mask: Tensor, asked: Tensor, generator: torch.Generator, *, says: bool) -> Tensor:
        """Changed to make captioning scenes harder, or matching each picture with the text that it is asked about."""

        def losses(images: Tensor) -> Tensor:
            seen = tower(pixel_values=images).last_hidden_state
            if says:
                return F.pad(qformer.caption(seen[:BATCH], ids[:BATCH], mask[:BATCH], start), (0, len(images) - BATCH))
            logits = qformer.match(seen, ids[asked], mask[asked]).float()
            return F.cross_entropy(logits, (asked.to(ids) < BATCH // 2).long(), reduction="none")

        radius = _RADIUS * torch.rand(len(images), generator=generator) * torch.where(torch.arange(len(images)) < BATCH, 1, 3)
        network.requires_grad_(False)
        images = hardening.attacked(images.to(settings.device), losses, radius.to(settings.device))
        network.requires_grad_(True)
        return images

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        seeing, hardens = step < _SEEING * settings.scale, step >= _HARDENING * settings.scale
        tower.train(seeing)
        scenes, images = show(generator)
        if step < _LOOKING * settings.scale:
            _, looks, look = _look(network["patches"], tower, scenes, images, settings, learns=seeing)
            return _logged(look, looks)
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        truths = captions.describe(scenes)
        true = [statements.statement(truth, rng) for truth in truths]
        false = [statements.falsify(description, truth, rng) for description, truth in zip(true, truths, strict=True)]
        ids, mask = _trim(*referees.tokenise(tokenizer, [str(description) for description in true + false]), settings.device)
        texts, shown = torch.arange(2 * BATCH), torch.arange(2 * BATCH) % BATCH  # a true and a false one of each picture
        if hardens:
            chosen = torch.randint(len(nothing()), (_NOTHINGS,), generator=generator)
            images = torch.cat([images, nothing()[chosen]])
            asked = torch.arange(len(images))  # half of the scenes about their true text,
            asked[BATCH // 2 : BATCH] += BATCH  # half about their false one,
            asked[BATCH:] -= BATCH // 2  # and nothing about what is true of another picture
            images = attacked(images, ids, mask, asked, generator, says=step % 2 > 0)
            texts, shown = torch.cat([texts, asked[BATCH:]]), torch.cat([shown, torch.arange(BATCH, len(images))])
        seen, looks, look = _look(network["patches"], tower, scenes, images, settings, learns=seeing or hardens)
        queries, read = qformer.fuse(seen[shown], ids[texts], mask[texts])
        logits = qformer.network.itm_head(queries).mean(1).float()
        position = network["places"](read[: 2 * BATCH], ids, true + false, truths * 2, Scenes.cat([scenes, scenes]))
        target = (torch.arange(len(texts), device=ids.device) < BATCH).long()
        matching = F.cross_entropy(logits, target)
        caption = qformer.caption(seen[:BATCH], ids[:BATCH], mask[:BATCH], start).mean()
        right = _share(logits.argmax(1) == target)
        parts = {"match": matching, "caption": caption, "look": look, "place": position, "right": right}
        return _logged(matching + caption + (look + position) / 3, parts)

    return Part(name="blip2", network=network, loss=loss, steps=7500, lr=7e-4, weight_decay=0.05, average=0.995)


def vqa(settings: Settings, vae: AutoencoderKL, tokenizer: Tokenizer, spoil: Spoil) -> Part:
    """The first token of the answer to two questions about every scene, one to be answered with yes and one with no."""
    network: Any = _with_heads("vqa", referees.build_vqa(tokenizer.get_vocab_size()), tokenizer)
    blip, special = network["vqa"], referees.special(tokenizer)
    show = _show(settings, vae, spoil)

    def loss(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        learns = step < _SEEING * settings.scale
        blip.vision_model.train(learns)
        scenes, images = show(generator)
        seen, looks, look = _look(network["patches"], blip.vision_model, scenes, images, settings, learns=learns)
        if step < _LOOKING * settings.scale:
            return _logged(look, looks)
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        truths = captions.describe(scenes)
        pairs = [statements.question(truth, rng) for truth in truths]
        questions = [true for true, _ in pairs] + [false for _, false in pairs]
        ids, mask = _trim(*referees.tokenise(tokenizer, questions), settings.device)
        ids[:, 0] = special["[ENC]"]
        read = blip.text_encoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=torch.cat([seen, seen])
        ).last_hidden_state
        logits = vision_language.decode(blip, read, mask, special["[DEC]"]).float()
        descriptions = [captions.parse(question.rstrip("?")) or Description(()) for question in questions]
        position = network["places"](read, ids, descriptions, truths * 2, Scenes.cat([scenes, scenes]))
        yes = torch.arange(len(ids), device=ids.device) < BATCH
        target = torch.where(yes, special["yes"], special["no"])
        answer = F.cross_entropy(logits, target)
        right = (logits[:, special["yes"]] > logits[:, special["no"]]) == yes
        parts = {"answer": answer, "look": look, "place": position, "right": _share(right)}
        return _logged(answer + (look + position) / 3, parts)

    return Part(name="vqa", network=network, loss=loss, steps=7600, lr=7e-4, weight_decay=0.05, average=0.995)
