"""Trains the bundled lab from nothing, or measures what is shipped.

    python scripts/train_lab.py                         everything, one part after another
    python scripts/train_lab.py --parts vae generator --threads 1                                       on two cores, in one shell
    python scripts/train_lab.py --parts clip-guide aesthetic clip-judge classifier --threads 1          and in another: 1 h 25 min
    python scripts/train_lab.py --parts clip-preference --threads 1                                     after both: 12 min
    python scripts/train_lab.py --parts blip2 vqa --threads 1                after the autoencoder, also on a third core: 2 h 30 min
    python scripts/train_lab.py --parts flow-coarse flow --threads 1         after the generator and clip-guide: 10 hours
    python scripts/train_lab.py --parts turbo --threads 1                    after the generator: 1 h
    python scripts/train_lab.py --parts generator --scale 0.1 --folder outputs/weak --into outputs/weak/model     a weaker generator
    python scripts/train_lab.py --evaluate              the figures of the model card, from the shipped weights

A run that was stopped goes on where it was. Checkpoints: outputs/lab; shipped weights: guidedgen/lab/weights.
"""

import argparse
import os
import sys
from pathlib import Path

# Spinning OpenMP threads make a shared machine several times slower; the variable must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.basics.errors import UsageError
from guidedgen.cli import terminal
from guidedgen.runs import options, store


def check(arguments: argparse.Namespace) -> None:
    """Settles the device. Raises UsageError for numbers that cannot be, before anything is made."""
    arguments.device = options.real_device(arguments.device)
    for name, (least, most) in {"seed": (0, 2**62), "scale": (1e-6, 1000), "threads": (1, 1024)}.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} {value}: must be from {least:g} to {most:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        nargs="+",
        metavar="PART",
        help="vae generator classifier clip-guide clip-preference clip-judge aesthetic blip2 vqa flow-coarse flow turbo; or all",
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/lab"), help="checkpoints (default: outputs/lab)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of steps (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--into", type=Path, help="write the generator to this folder, as diffusers reads it, and ship nothing")
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped weights and train nothing")
    parser.add_argument("--card", action="store_true", help="measure the shipped weights and write their model card")
    parser.add_argument("--styles", action="store_true", help="draw the style references again and train nothing")
    arguments = parser.parse_args()

    import torch

    from guidedgen.lab import exam, shipping, training
    from guidedgen.lab.fitting import Settings

    parts = arguments.parts or training.PARTS
    if unknown := set(parts) - set(training.PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; choose from {', '.join(training.PARTS)}")
    check(arguments)
    if arguments.into is not None and parts != ["generator"]:
        parser.error("--into is for --parts generator alone")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        exam.main(arguments.device)
        return
    if arguments.styles:
        shipping.ship_styles()
        return
    settings = Settings(
        folder=arguments.folder,
        device=arguments.device,
        bf16=arguments.precision == "bf16",
        seed=arguments.seed,
        scale=arguments.scale,
    )
    if arguments.card:
        shipping.write_card(settings)
        return
    store.check_writable(arguments.folder, "--folder")
    if arguments.into is None:
        shipping.train(parts, settings)
        return
    store.check_writable(arguments.into, "--into")
    shipping.train_generator(settings, arguments.into)


if __name__ == "__main__":
    terminal.run(main)
