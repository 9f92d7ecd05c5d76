"""Measures what is shipped: every figure of the model card on scenes and prompts that no training has seen, beside its bar.

A figure's key is `PART/WHAT`; shares are in [0, 1], `psnr` in dB, `position` in px. The generator is examined as a user would
run it, by diffusers' own pipeline, and judged by the scene classifier; its pictures go to a folder, to be looked at.
"""

from __future__ import annotations

import itertools
import math
import random
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from guidedgen.basics import vision_language
from guidedgen.basics.images import to_pil
from guidedgen.basics.noise import generator as stream
from guidedgen.lab import captions, hardening, networks, preference, referees, statements, taste
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.judge import Verdict, judge, verdict
from guidedgen.lab.networks import WEIGHTS, AestheticHead, SceneClassifier
from guidedgen.lab.render import render
from guidedgen.lab.training import LATENT_SCALE
from guidedgen.lab.world import SHAPES, Scenes, draw_scenes

if TYPE_CHECKING:
    import open_clip
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
    from tokenizers import Tokenizer

# Figure -> the range it has to lie in. What has no bar is reported for information.
BARS: dict[str, tuple[float, float]] = {
    "vae/psnr": (30, math.inf),
    "classifier/one object": (0.99, 1),
    "classifier/two objects": (0.97, 1),
    "classifier/texture": (0.95, 1),
    "classifier/background": (0.99, 1),
    "classifier/position": (0, 1),
    **{
        f"clip-{name}/{what}": (low, 1.0)
        for name in networks.CLIPS
        for what, low in {"retrieval": 0.85, "shape": 0.85, "swap": 0.75}.items()
    },
    "clip-preference/choice": (0.75, 1),
    "clip-preference/choice, over the guide's": (0.02, 1),
    "blip2/attribute": (0.95, 1),
    "blip2/match, attacked": (0.85, 1),
    "vqa/answer": (0.97, 1),
    "generator/single": (0.98, 1),
    "generator/colour": (0.85, 1),
    # What guidance is shown on must be neither hopeless nor solved already.
    **{f"generator/{family}": (0.10, 0.75) for family in ("texture", "spatial", "three", "background", "unseen")},
    "flow/single": (0.98, 1),
    "flow/colour": (0.85, 1),
    # At least as right as the shipped generator.
    "flow/texture": (0.17, 0.75),
    "flow/spatial": (0.57, 0.75),
    "flow/three": (0.65, 0.75),
    "flow/background": (0.27, 0.75),
    "flow/unseen": (0.55, 0.75),
    "turbo/single": (0.90, 1),
}

# Part -> the shipped files it is examined from.
PARTS = {
    "vae": ("generator/vae/diffusion_pytorch_model.safetensors",),
    "classifier": ("classifier.safetensors",),
    "clip-guide": ("clip-guide.safetensors",),
    "clip-preference": (
        "clip-preference.safetensors",
        "clip-guide.safetensors",
        "generator/vae/diffusion_pytorch_model.safetensors",
    ),
    "clip-judge": ("clip-judge.safetensors",),
    "aesthetic": ("aesthetic.safetensors", "clip-guide.safetensors"),
    "blip2": ("blip2.safetensors", "generator/vae/diffusion_pytorch_model.safetensors"),
    "vqa": ("vqa.safetensors", "generator/vae/diffusion_pytorch_model.safetensors"),
    "generator": ("generator/model_index.json", "classifier.safetensors"),
    "flow": ("flow/model_index.json", "classifier.safetensors"),
    "turbo": ("turbo/model_index.json", "generator/model_index.json", "classifier.safetensors"),
}

# Generator -> how it is sampled.
SAMPLING: dict[str, dict[str, Any]] = {
    "generator": {"steps": 50, "guidance_scale": 5.0},
    "flow": {"steps": 28, "guidance_scale": 5.0},
    "turbo": {"steps": 2, "guidance_scale": 1.0},
}

# Family of prompts -> number of pictures. There are 56 single objects, so each is drawn twice.
NUMBERS = {
    "single": 112, "colour": 128, "texture": 96, "spatial": 96, "three": 96, "background": 96, "unseen": 96,
    "complex": 64, "shape": 64, "fine": 16,
}  # fmt: skip


def main(
    device: str = "cpu",
    *,
    parts: Iterable[str] = tuple(PARTS),
    numbers: Mapping[str, int] = NUMBERS,
    seed: int = 0,
    folder: Path = Path("outputs/lab/exam"),
) -> dict[str, float]:
    """Examines the shipped parts, prints the table, writes the generator's pictures to `folder`, and returns the figures.

    `numbers` says how many pictures of which families the generator draws. Parts without weights are reported as absent.
    """
    console = Console()
    results: dict[str, float] = {}
    for part in parts:
        missing = [name for name in PARTS[part] if not (WEIGHTS / name).exists()]
        if missing:
            console.print(f"{part}: absent, no {', '.join(missing)} in {WEIGHTS}")
        else:
            results |= _examine_shipped(part, device, numbers, seed, folder)
    console.print(table(results))
    return results


def _examine_shipped(part: str, device: str, numbers: Mapping[str, int], seed: int, folder: Path) -> dict[str, float]:
    if part == "vae":
        return examine_vae(networks.load_vae().to(device), seed)
    if part == "classifier":
        return examine_classifier(networks.load_classifier().to(device), seed)
    if part == "aesthetic":
        return examine_aesthetic(networks.load_aesthetic().to(device), networks.load_clip("guide").to(device), seed)
    if part in SAMPLING:
        pipe = {"generator": load_pipeline, "flow": load_flow, "turbo": load_turbo}[part]()
        return examine_generator(
            pipe.to(device), networks.load_classifier().to(device), seed, part, numbers=numbers, folder=folder,
            **SAMPLING[part],
        )  # fmt: skip
    if part in ("blip2", "vqa"):
        network = referees.load_blip2() if part == "blip2" else referees.load_vqa()
        examine = examine_blip2 if part == "blip2" else examine_vqa
        return examine(network.to(device), networks.load_tokenizer(), networks.load_vae().to(device), seed)
    name, tokenizer = part.removeprefix("clip-"), networks.load_tokenizer()
    clip = networks.load_clip(name).to(device)
    figures = examine_clip(name, clip, tokenizer, seed)
    if name == "preference":
        guide, vae = networks.load_clip("guide").to(device), networks.load_vae().to(device)
        figures |= examine_preference(clip, guide, tokenizer, vae, seed)
    return figures


def load_turbo() -> StableDiffusionPipeline:
    """The shipped few-step generator as diffusers loads it: fp32, LCM, silent."""
    from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    root = WEIGHTS / "turbo"
    pipe = StableDiffusionPipeline.from_pretrained(
        WEIGHTS / "generator", unet=UNet2DConditionModel.from_pretrained(root / "unet", dtype=torch.float32),
        scheduler=LCMScheduler.from_pretrained(root / "scheduler"), dtype=torch.float32,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_flow() -> StableDiffusion3Pipeline:
    """The shipped flow as diffusers loads it: fp32, silent."""
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(WEIGHTS / "flow", text_encoder_3=None, tokenizer_3=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline() -> StableDiffusionPipeline:
    """The shipped generator as diffusers loads it: fp32, DDIM, silent."""
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "generator", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def passed(results: Mapping[str, float]) -> dict[str, bool]:
    """Whether each figure that has a bar keeps it."""
    return {key: BARS[key][0] <= value <= BARS[key][1] for key, value in results.items() if key in BARS}


def table(results: Mapping[str, float]) -> Table:
    """The figures, their bars, and pass or miss."""
    columns = Table("figure", "value", "bar", "")
    marks = {key: "[green]pass" if kept else "[red]miss" for key, kept in passed(results).items()}
    for key, value in results.items():
        columns.add_row(key, number(key, value), bar(key), marks.get(key, ""))
    return columns


def number(key: str, value: float) -> str:
    """A figure as it is printed."""
    what = key.split("/")[1]
    if what.startswith("psnr"):
        return f"{value:.2f} dB"
    if what == "position":
        return f"{value:.2f} px"
    if what in ("latent std", "pearson", "spearman"):
        return f"{value:.3f}"
    return f"{100 * value:.1f} %"


def bar(key: str) -> str:
    """The bar of a figure as it is printed; empty where it has none."""
    if key not in BARS:
        return ""
    low, high = BARS[key]
    if key == "classifier/position":
        return f"<= {number(key, high)}"
    return f">= {number(key, low)}" if high >= 1 else f"{number(key, low)} to {number(key, high)}"


# The companions


def _held_out(part: str, seed: int, n: int, counts: tuple[float, ...] = (0.42, 0.46, 0.12), textured: float = 0.45) -> Scenes:
    """Scenes of the whole world from a random stream that training, whose keys start with its seed, never draws from."""
    return draw_scenes(n, stream("exam", part, seed), counts=counts, textured=textured)


@torch.no_grad()
def examine_vae(vae: AutoencoderKL, seed: int = 0, n: int = 512) -> dict[str, float]:
    """Reconstruction through the posterior's mean: the mean of the pictures' PSNR, and the PSNR of the mean squared error."""
    errors, latents = [], []
    for images in torch.split(render(_held_out("vae", seed, n)), 64):
        latent = vae.encode(2 * images.to(vae.device) - 1).latent_dist.mean
        decoded = (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1).cpu()
        errors.append((decoded - images).square().mean((1, 2, 3)))
        latents.append(latent.cpu())
    error = torch.cat(errors)
    return {
        "vae/psnr": float((-10 * error.log10()).mean()),
        "vae/psnr, pooled": float(-10 * error.mean().log10()),
        "vae/latent std": float(torch.cat(latents).std((0, 2, 3)).mean() * LATENT_SCALE),
    }


@torch.no_grad()
def examine_classifier(classifier: SceneClassifier, seed: int = 0, n: int = 1024) -> dict[str, float]:
    """n scenes each of one, two and three objects, all four textures equally likely.

    `objects`: all of the scene's colours and shapes right and nothing else seen, as `judge` decides. Attributes and position
    (mean distance between centres) are per object, read where the shape is, whether or not it was noticed.
    """
    device = next(classifier.parameters()).device
    figures: dict[str, float] = {}
    right: dict[str, list[Tensor]] = {"texture": [], "size": [], "position": [], "count": [], "background": []}
    for count, name in enumerate(("one object", "two objects", "three objects")):
        counts = tuple(float(i == count) for i in range(3))
        scenes = _held_out(f"classifier/{name}", seed, n, counts, textured=0.75).to(device)
        whole = []
        for i in range(0, n, 256):
            part = scenes[i : i + 256]
            reading = classifier(render(part))
            whole.append(verdict(reading, captions.describe(part)).objects)
            rows, slots = part.present.nonzero().unbind(1)
            kinds = part.shape[rows, slots]
            right["texture"].append(reading.texture[rows, kinds].argmax(-1) == part.texture[rows, slots])
            right["size"].append(reading.size[rows, kinds].argmax(-1) == part.size[rows, slots])
            right["position"].append((reading.centre[rows, kinds] - part.centre[rows, slots]).norm(dim=-1))
            right["count"].append(reading.count.argmax(-1) == part.count)
            right["background"].append(reading.background.argmax(-1) == part.background)
        figures[f"classifier/{name}"] = _mean(whole)
    return figures | {f"classifier/{what}": _mean(values) for what, values in right.items()}


def _mean(values: Sequence[Tensor]) -> float:
    return float(torch.cat(list(values)).double().mean())


@torch.no_grad()
def examine_clip(name: str, clip: open_clip.model.CLIP, tokenizer: Tokenizer, seed: int = 0, n: int = 512) -> dict[str, float]:
    """What a CLIP can tell apart.

    `retrieval`: the picture's own full caption comes first among n different ones. `shape`: of single objects, "a star" and the
    like against each other, over all shapes. `swap`: of two objects, the true caption against the one with their colours traded.
    """
    scenes = _distinct(_held_out(f"clip-{name}/retrieval", seed, 2 * n), n)
    seen = _embed_images(clip, render(scenes))
    read = _embed_texts(clip, tokenizer, [str(d) for d in captions.describe(scenes)])
    retrieved = (seen @ read.T).argmax(1) == torch.arange(n, device=seen.device)

    single = _held_out(f"clip-{name}/shape", seed, n, counts=(1.0, 0.0, 0.0))
    kinds = _embed_texts(clip, tokenizer, [str(Thing(shape=shape)) for shape in SHAPES])
    shape = (_embed_images(clip, render(single)) @ kinds.T).argmax(1).cpu() == single.shape[:, 0]

    pairs = _held_out(f"clip-{name}/swap", seed, n, counts=(0.0, 1.0, 0.0))
    true = captions.describe(pairs)
    seen = _embed_images(clip, render(pairs))
    score, swapped = (
        (seen * _embed_texts(clip, tokenizer, [str(d) for d in said])).sum(1) for said in (true, [_swap_colours(d) for d in true])
    )
    figures = {"retrieval": retrieved, "shape": shape, "swap": score > swapped}
    return {f"clip-{name}/{what}": _mean([right]) for what, right in figures.items()}


def _distinct(scenes: Scenes, n: int) -> Scenes:
    """The first n scenes that nobody would describe alike."""
    first: dict[str, int] = {}
    for i, description in enumerate(captions.describe(scenes)):
        first.setdefault(str(description), i)
    return scenes[torch.tensor(sorted(first.values())[:n])]


def _swap_colours(description: Description) -> Description:
    a, b = description.things
    swapped = (Thing(b.colour, a.shape, a.texture, a.size), Thing(a.colour, b.shape, b.texture, b.size))
    return Description(swapped, description.relation, description.background)


def _embed_images(clip: open_clip.model.CLIP, images: Tensor) -> Tensor:
    device = clip.logit_scale.device
    return torch.cat([F.normalize(clip.encode_image(2 * chunk.to(device) - 1), dim=-1) for chunk in torch.split(images, 256)])


def _embed_texts(clip: open_clip.model.CLIP, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    ids = networks.tokenize(tokenizer, texts).to(clip.logit_scale.device)
    return torch.cat([F.normalize(clip.encode_text(chunk), dim=-1) for chunk in torch.split(ids, 256)])


@torch.no_grad()
def examine_preference(
    clip: open_clip.model.CLIP, guide: open_clip.model.CLIP, tokenizer: Tokenizer, vae: AutoencoderKL, seed: int = 0, n: int = 1024
) -> dict[str, float]:
    """In what share of n pairs the CLIP's cosine prefers the picture of the higher utility, noise left out.

    Pairs as in training, but for blur and noise. `prompt`: those of which one is more faithful; `taste`: the others, where the
    rating decides. Beside it the guide's cosine, which knows nothing of taste.
    """
    pairs = preference.draw_pairs(n, stream("exam", "preference", seed))
    sides = (pairs.first, pairs.second)
    images = [torch.cat([preference.show(side[i : i + 64], vae) for i in range(0, n, 64)]) for side in sides]
    utilities = [preference.utility(side, pairs.prompts, shown) for side, shown in zip(sides, images, strict=True)]
    better = utilities[0] > utilities[1]
    faithful = [preference.faithfulness(side, pairs.prompts) for side in sides]
    kinds = {"": torch.ones_like(better), ", prompt": faithful[0] != faithful[1], ", taste": faithful[0] == faithful[1]}
    figures: dict[str, float] = {}
    for who, network in {"": clip, ", guide's": guide}.items():
        read = _embed_texts(network, tokenizer, [str(said) for said in pairs.prompts])
        first, second = ((read * _embed_images(network, shown)).sum(1).cpu() for shown in images)
        right = (first > second) == better
        figures |= {f"clip-preference/choice{kind}{who}": _mean([right[rows]]) for kind, rows in kinds.items()}
    gain = figures["clip-preference/choice"] - figures["clip-preference/choice, guide's"]
    return figures | {"clip-preference/choice, over the guide's": gain}


@torch.no_grad()
def examine_aesthetic(head: AestheticHead, guide: open_clip.model.CLIP, seed: int = 0, n: int = 1024) -> dict[str, float]:
    """How the head's scores correlate with the formula it learned from."""
    images = render(_held_out("aesthetic", seed, n))
    pair = torch.stack([head(_embed_images(guide, images)).cpu(), taste.rate(images)]).double()
    ranks = pair.argsort(1).argsort(1).double()
    return {"aesthetic/pearson": float(torch.corrcoef(pair)[0, 1]), "aesthetic/spearman": float(torch.corrcoef(ranks)[0, 1])}


@torch.no_grad()
def examine_blip2(
    network: vision_language.QFormer, tokenizer: Tokenizer, vae: AutoencoderKL, seed: int = 0, n: int = 1024
) -> dict[str, float]:
    """Whether a scene's caption is told from the same with one thing false (`captions.corrupt`), on n scenes, every other one seen
    through the autoencoder.

    `attribute`: the true one matches better, where a colour, shape or texture was changed or traded; `relation` and `background`:
    where that was changed. `match`: each alone is found to match or not to, at probability 1/2; `match, attacked`: on the first
    n / 4 pictures, each changed by an L2 norm of 0.5 (of pixels in [0, 1]) to make the network err about that caption. `caption`:
    the true one has the lower captioning loss; `sum`: the lower sum of both losses.
    """
    scenes, start = _held_out("blip2", seed, n), referees.special(tokenizer)["[DEC]"]
    said = _true_and_false(captions.describe(scenes), random.Random(f"exam blip2 {seed}"))
    logits, losses, withstood = [], [], []
    for i in range(0, n, 64):
        images = 2 * preference.show(scenes[i : i + 64], vae).to(vae.device) - 1
        seen = network.see(images)
        for label, texts in zip((1, 0), zip(*said[i : i + 64], strict=True), strict=True):
            ids, mask = (tensor.to(vae.device) for tensor in referees.tokenise(tokenizer, [str(text) for text in texts]))
            logits.append(network.match(seen, ids, mask).cpu())
            losses.append(network.caption(seen, ids, mask, start).cpu())
            if few := max(0, min(len(images), math.ceil(n / 4) - i)):
                withstood.append(_withstood(network, images[:few], ids[:few], mask[:few], label))
    true, false = (-torch.cat(logits[side::2]).log_softmax(1)[:, 1] for side in (0, 1))  # matching losses
    told, mistold = torch.cat(losses[::2]), torch.cat(losses[1::2])
    kinds = [
        next((name for name in ("relation", "background") if getattr(a, name) != getattr(b, name)), "attribute") for a, b in said
    ]
    figures = {}
    for kind in ("attribute", "relation", "background"):
        rows = torch.tensor([kind == other for other in kinds])
        figures[f"blip2/{kind}"] = _mean([(true < false)[rows]])
    return figures | {
        "blip2/match": _mean([true < math.log(2), false >= math.log(2)]),
        "blip2/match, attacked": _mean(withstood),
        "blip2/caption": _mean([told < mistold]),
        "blip2/sum": _mean([true + told < false + mistold]),
    }


@torch.enable_grad()
def _withstood(network: vision_language.QFormer, images: Tensor, ids: Tensor, mask: Tensor, label: int) -> Tensor:
    """Whether each picture is still found to match (label 1) or not to (0) after ten steps of an attack."""
    target = torch.full((len(images),), label, device=images.device)

    def losses(images: Tensor) -> Tensor:
        return F.cross_entropy(network.match(network.see(images), ids, mask), target, reduction="none")

    spoilt = hardening.attacked(images, losses, torch.ones(len(images), device=images.device), steps=10)  # of [-1, 1]
    with torch.no_grad():
        return (losses(spoilt) < math.log(2)).cpu()


def _true_and_false(truths: Sequence[Description], rng: random.Random) -> list[tuple[Description, Description]]:
    """A caption of each scene, and the same made false in one point."""
    pairs = []
    for truth in truths:
        while True:
            said = captions.parse(captions.caption(truth, rng))
            if said is not None and not statements.holds(false := captions.corrupt(said, rng), truth):
                pairs.append((said, false))
                break
    return pairs


@torch.no_grad()
def examine_vqa(network: Any, tokenizer: Tokenizer, vae: AutoencoderKL, seed: int = 0, n: int = 1024) -> dict[str, float]:
    """Share of right answers to two questions on each of n scenes, one to be answered with yes and one with no (see
    `statements.question`); every other scene is seen through the autoencoder. Beside it the share where a relation is asked for.
    """
    scenes, special = _held_out("vqa", seed, n), referees.special(tokenizer)
    rng = random.Random(f"exam vqa {seed}")
    pairs = [statements.question(truth, rng) for truth in captions.describe(scenes)]
    right = []
    for i in range(0, n, 64):
        images = 2 * preference.show(scenes[i : i + 64], vae).to(vae.device) - 1
        for texts, positive in zip(zip(*pairs[i : i + 64], strict=True), (True, False), strict=True):
            ids, mask = (tensor.to(vae.device) for tensor in referees.tokenise(tokenizer, texts))
            ids[:, 0] = special["[ENC]"]
            logits = vision_language.answer(network, images, ids, mask, special["[DEC]"])
            right.append(((logits[:, special["yes"]] > logits[:, special["no"]]) == positive).cpu())
    yes, no = torch.cat(right[::2]), torch.cat(right[1::2])
    related = torch.tensor([any(f" {word} " in true for word in ("of", "above", "below")) for true, _ in pairs])
    return {
        "vqa/answer": _mean([yes, no]),
        "vqa/answer, yes": _mean([yes]),
        "vqa/answer, no": _mean([no]),
        "vqa/answer, relation": _mean([yes[related], no[related]]),
    }


# The generator


def examine_generator(
    pipe: StableDiffusionPipeline | StableDiffusion3Pipeline,
    classifier: SceneClassifier,
    seed: int = 0,
    name: str = "generator",
    *,
    numbers: Mapping[str, int] = NUMBERS,
    folder: Path | None = None,
    steps: int = 50,
    guidance_scale: float = 5.0,
    batch: int = 32,
) -> dict[str, float]:
    """Share of pictures that show all their prompt asks for, per family, and of each aspect that the family asks for.

    `name` is the part the figures are of. With a folder, writes FAMILY.png there: each picture over its prompt, framed green
    where it was judged right and red elsewhere.
    """
    figures: dict[str, float] = {}
    for family, number in numbers.items():
        texts = list(itertools.islice(itertools.cycle(itertools.islice(captions.prompts(family, seed), number)), number))
        descriptions = [said for text in texts if (said := captions.parse(text))]
        drawn = []
        for i in track(range(0, number, batch), family, transient=True):
            noise = [stream("exam", name, seed, family, j) for j in range(i, min(i + batch, number))]
            drawn.append(
                pipe(
                    texts[i : i + batch], generator=noise, num_inference_steps=steps, guidance_scale=guidance_scale,
                    output_type="pt",
                ).images
            )  # fmt: skip
        images = torch.cat(drawn)
        found = judge(images, descriptions, classifier)
        figures[f"{name}/{family}"] = _mean([found.right])
        figures |= {f"{name}/{family}, {aspect}": share for aspect, share in _aspects(found, descriptions).items()}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            grid(images, texts, found.right.tolist()).save(folder / f"{family}.png")
    return figures


def _aspects(found: Verdict, descriptions: Sequence[Description]) -> dict[str, float]:
    """Shares of the aspects that were asked for, where that is more than the objects."""
    first = descriptions[0]
    asked = {
        "textures": any(thing.texture for thing in first.things), "relation": bool(first.relation),
        "background": bool(first.background),
    }  # fmt: skip
    names = [name for name, said in asked.items() if said]
    return {name: _mean([getattr(found, name)]) for name in ["objects", *names] if names}


def grid(images: Tensor, texts: Sequence[str], right: Sequence[bool], columns: int = 8) -> Image.Image:
    """A sheet of images (b 3 H W in [0, 1]) at twice their size, framed by verdict, over their texts."""
    side, frame, line = 2 * images.shape[-1], 4, 11
    width, height = side + 4 * frame, side + 4 * frame + 5 * line
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, text, good) in enumerate(zip(to_pil(images), texts, right, strict=True)):
        x, y = i % columns * width + frame, i // columns * height + frame
        draw.rectangle((x, y, x + side + 2 * frame - 1, y + side + 2 * frame - 1), "limegreen" if good else "red")
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x + frame, y + frame))
        draw.multiline_text((x, y + side + 2 * frame), "\n".join(textwrap.wrap(text, width // 6)), "black", spacing=1)
    return sheet
