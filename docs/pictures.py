"""Draws the pictures of the methods' pages on the lab: python docs/pictures.py [NAME ...]. An hour on one core.

`law` is that of docs/law.md: how many of 4,000 outputs of each sampler fall where, on a mixture of eight normal distributions.
"""

import shutil
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import guidedgen
from guidedgen.studies import law

# Each method with the settings of the lab's tables, on six prompts.
COMMANDS = {
    "relations": ["experiment=start"],
    "best_of_n": ["experiment=codex/lab/aesthetic", "row=codex/best_of_4"],
    "code": ["experiment=codex/lab/aesthetic", "row=codex/code_4"],
    "codex": ["experiment=referee/lab/compbench", "row=referee/codex"],
    "mpgd": ["experiment=codex/lab/aesthetic", "row=codex/mpgd"],
    "freedom": ["experiment=codex/lab/aesthetic", "row=codex/freedom"],
    "universal": ["experiment=codex/lab/aesthetic", "row=codex/universal"],
    "classifier_guidance": ["experiment=codex/lab/aesthetic", "row=codex/one_step"],
    "doodl": ["experiment=doodl/lab/vocabulary", "metrics.per_class=null"],
    "adjoint_dpm": ["experiment=adjoint/lab/vocabulary", "metrics.per_class=null"],
    "adjoint_tuning": ["experiment=adjoint/lab/effect"],
    "blip_inversion": ["experiment=referee/lab/compbench", "row=referee/full"],
    "sdedit": ["experiment=codex/lab/ti2i", "row=codex/sdedit", "dataset.prompts.limit=2"],
}
HERE = Path(__file__).resolve().parent


def draw_law(path: Path, particles: int = 32, runs: int = 4_000) -> None:
    """The samplers' outputs as histograms, the darker the more."""
    (left, right, height), bin_width, scale = (-3.2, 7.6, 3.2), 0.12, 28  # where pictures lie, and pixels of one unit
    outputs = {name: x for name, x in law.mixture_outputs(particles, runs).items() if name != "fk_steering, sum"}
    bins = [round((right - left) / bin_width), round(2 * height / bin_width)]
    wide, high = round((right - left) * scale), round(2 * height * scale)
    sheet = Image.new("RGB", (3 * (wide + 10), -(-len(outputs) // 3) * (high + 34)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (name, x) in enumerate(outputs.items()):
        counts = torch.histogramdd(x.float(), bins=bins, range=[left, right, -height, height]).hist.T.flip(0)
        shade = (counts / (0.006 * runs)).clamp(max=1).sqrt()  # the same scale in all
        colours = torch.stack([255 - 235 * shade, 255 - 190 * shade, 255 - 120 * shade], -1).to(torch.uint8)
        across, down = i % 3 * (wide + 10) + 5, i // 3 * (high + 34)
        label = name if name in ("target", "base") else f"{name}, N = {particles}"
        draw.text((across, down + 6), label, "black", font)
        sheet.paste(Image.fromarray(colours.numpy()).resize((wide, high), Image.Resampling.NEAREST), (across, down + 28))
        draw.rectangle((across, down + 28, across + wide - 1, down + 27 + high), outline=(200, 200, 200))
    sheet.save(path, optimize=True)


def main(names: list[str]) -> None:
    """Draws those of these names, or all."""
    for name in names or [*COMMANDS, "law"]:
        if name == "law":
            draw_law(HERE / "pictures" / "law.png")
            continue
        count = 8 if name == "relations" else 6
        limit = [] if name == "sdedit" else [f"dataset.limit={count}"]
        given = ["tracker=none", "dtype=float32", "samples_per_prompt=1", "metrics=none", "study=pictures", f"batch_size={count}"]
        result = guidedgen.run([*COMMANDS[name], *given, *limit])
        for prompt in result.prompts:
            print(f"{name}: {prompt}")
        grid = result.grid(columns=count)
        (HERE / "pictures").mkdir(exist_ok=True)
        if name == "relations":  # with its prompts
            shutil.copy(result.folder / "images" / "grid.png", HERE / "pictures" / f"{name}.png")
            continue
        large = grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.BICUBIC)
        large.save(HERE / "pictures" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
