"""Draws the pictures of the methods' pages on the lab: python docs/pictures.py [NAME ...]. Half an hour on one core."""

import shutil
import sys
from pathlib import Path

from PIL import Image

import guidedgen

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


def main(names: list[str]) -> None:
    """Draws those of these names, or all."""
    for name in names or COMMANDS:
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
