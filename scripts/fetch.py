"""Fetches weights, so that runs need no network.

python scripts/fetch.py stable-diffusion-v1-5/stable-diffusion-v1-5    a model of the hub, safetensors only
python scripts/fetch.py aesthetic inception                            files that live elsewhere, checked by SHA-256
python scripts/fetch.py --all                                          everything model=sd15 needs with the default metrics
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.types import UsageError
from guidedgen.zoo import files

SD15 = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-large-patch14-336",
    *files.DOWNLOADS,
)
# Repositories whose main branch has no safetensors: their weights are read as tensors only (torch.load, weights_only).
PICKLED = {"openai/clip-vit-base-patch32": "pytorch_model.bin", "openai/clip-vit-large-patch14-336": "pytorch_model.bin"}


def fetch(name: str) -> Path:
    """Brings one model or file and returns where it is. Raises UsageError where it cannot be had."""
    if name in files.DOWNLOADS:
        import torch

        _, url, digest = files.DOWNLOADS[name]
        path = files.download_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
        return path
    if name in PICKLED:
        files.locate_file(name, PICKLED[name], key="fetch")
    return files.locate(name, key="fetch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"org/name of the hub, or one of: {', '.join(files.DOWNLOADS)}")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    names = SD15 if arguments.all else arguments.names
    if not names:
        parser.error("nothing to fetch: give names, or --all")
    try:
        for name in names:
            print(f"{name}: {fetch(name)}")
    except (UsageError, OSError, RuntimeError) as error:  # torch.hub: RuntimeError for a wrong hash, OSError for the network
        sys.exit(f"fetch: {error}")


if __name__ == "__main__":
    main()
