"""Fetches weights, so that runs need no network.

python scripts/fetch.py stable-diffusion-v1-5/stable-diffusion-v1-5    a model of the hub, safetensors where it has them
python scripts/fetch.py aesthetic inception vgg16                      files that live elsewhere, checked by SHA-256
python scripts/fetch.py pickscore hps                                  what a reward needs with zoo=hub
python scripts/fetch.py --all                                          what model=sd15 needs with the default reward and metrics
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
    "aesthetic",
    "inception",
)
# Rewards besides the default one, and what conf/zoo/hub.yaml has for them; `aesthetic` alone is a file.
REWARDS = {
    "clip_text": ("openai/clip-vit-large-patch14",),
    "clip_image": (
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    ),
    "pickscore": ("yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    "hps": ("xswu/HPSv2",),
    "classifier": ("google/vit-base-patch16-224",),
    "evasion": ("CompVis/stable-diffusion-safety-checker",),
    "style_gram_clip": ("openai/clip-vit-base-patch16",),
    "style_gram_vgg16": ("vgg16",),
    "style_clip_rn50": ("timm/resnet50_clip.openai",),
}
# Repositories whose main branch has no safetensors: their weights are read as tensors only (torch.load, weights_only).
PICKLED = {
    "openai/clip-vit-base-patch16": "pytorch_model.bin",
    "openai/clip-vit-base-patch32": "pytorch_model.bin",
    "openai/clip-vit-large-patch14-336": "pytorch_model.bin",
}
# Repositories of which only these files are used: the rest are gigabytes.
ONLY = {
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": ("open_clip_model.safetensors",),
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": ("open_clip_model.safetensors",),
    "laion/CLIP-ViT-g-14-laion2B-s12B-b42K": ("open_clip_model.safetensors",),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": files.TOKENIZER,
    "timm/resnet50_clip.openai": ("open_clip_model.safetensors",),
    "xswu/HPSv2": ("HPS_v2.1_compressed.pt",),
}


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
    if name in ONLY:
        return files.locate(name, key="fetch", files=ONLY[name], required=ONLY[name][:1])
    if name in PICKLED:
        files.locate_file(name, PICKLED[name], key="fetch")
    return files.locate(name, key="fetch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"org/name of the hub, or one of: {', '.join([*files.DOWNLOADS, *REWARDS])}")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    names = [*(SD15 if arguments.all else ()), *(part for name in arguments.names for part in REWARDS.get(name, (name,)))]
    if not names:
        parser.error("nothing to fetch: give names, or --all")
    try:
        for name in dict.fromkeys(names):
            print(f"{name}: {fetch(name)}")
    except (UsageError, OSError, RuntimeError) as error:  # torch.hub: RuntimeError for a wrong hash, OSError for the network
        sys.exit(f"fetch: {error}")


if __name__ == "__main__":
    main()
