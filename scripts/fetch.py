"""Fetches weights and benchmark data, so that runs need no network.

python scripts/fetch.py stable-diffusion-v1-5/stable-diffusion-v1-5    a model of the hub, safetensors where it has them
python scripts/fetch.py aesthetic inception vgg16                      files that live elsewhere, checked by SHA-256
python scripts/fetch.py pickscore t2i_compbench                        what a reward or metrics=t2i_compbench needs with zoo=hub
python scripts/fetch.py --all                                          what model=sd15 needs with the default reward and metrics
python scripts/fetch.py data t2i_compbench hpdv2 drawbench             prompts of benchmarks, checked by SHA-256
"""

import argparse
import hashlib
import http.client
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidedgen.datasets import downloads
from guidedgen.datasets.tasks import check_choice
from guidedgen.types import BadValue, UsageError
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
    "blip2": ("Salesforce/blip2-itm-vit-g", "blip2-caption-head"),
    "vqa": ("Salesforce/blip-vqa-capfilt-large",),
}
METRICS = {
    "t2i_compbench": ("Salesforce/blip-vqa-capfilt-large", "openai/clip-vit-base-patch32", "google/owlv2-base-patch16-ensemble"),
}
# BLIP-2's first stage as its authors published it, without a checksum: salesforce/LAVIS,
# lavis/configs/models/blip2/blip2_pretrain.yaml. A file of this name in torch.hub's cache is not fetched again.
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained.pth"
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
    if name == "blip2-caption-head":
        return caption_head()
    if name in ONLY:
        return files.locate(name, key="fetch", files=ONLY[name], required=ONLY[name][:1])
    if name in PICKLED:
        files.locate_file(name, PICKLED[name], key="fetch")
    return files.locate(name, key="fetch")


def caption_head() -> Path:
    """Makes the captioning head that transformers' BLIP-2 lacks of the authors' checkpoint, which is fetched where needed."""
    import torch
    from safetensors.torch import save_file

    from guidedgen.zoo import blip2

    path = files.kept_file(blip2.HEAD)
    if not path.exists():
        checkpoint = files.kept_file(LAVIS.rpartition("/")[2])
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if not checkpoint.exists():
            torch.hub.download_url_to_file(LAVIS, str(checkpoint))
        state = files.read_state(checkpoint, key="fetch")
        partial = path.with_suffix(".partial")
        save_file(blip2.convert_head(state, str(checkpoint)), partial)
        partial.replace(path)
    return path


def fetch_data(name: str) -> Path:
    """Brings the files of a benchmark that are not there as released; returns their folder. Raises UsageError where it cannot."""
    folder = downloads.kept(name)
    folder.mkdir(parents=True, exist_ok=True)
    for file, digest in downloads.SOURCES[name].files.items():
        path = folder / file
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            continue
        import torch

        url = f"{downloads.SOURCES[name].url}/{file}"
        try:  # it writes beside the file and renames: what was there stays until all of the new one is, with the right checksum
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digest, progress=False)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise UsageError(f"data {name}: cannot be had from {url} ({error})") from error
    return folder


def choose(names: Sequence[str], *, everything: bool) -> tuple[Callable[[str], Path], list[str]]:
    """What brings the names of a command line, and all that it has to bring. Raises UsageError where the names are wrong."""
    if "data" in names:
        if everything or names[0] != "data" or "data" in names[1:]:
            raise UsageError("data: comes first and alone, as in python scripts/fetch.py data hpdv2; weights need another command")
        for name in names[1:]:
            check_data(name)
        if not names[1:]:
            raise UsageError(f"data: names of benchmarks are needed; choose from {', '.join(downloads.SOURCES)}")
        return fetch_data, list(dict.fromkeys(names[1:]))
    parts = REWARDS | METRICS
    wanted = [*(SD15 if everything else ()), *(part for name in names for part in parts.get(name, (name,)))]
    if not wanted:
        raise UsageError("nothing to fetch: give names, or --all")
    for name in wanted:
        check_name(name)
    return fetch, list(dict.fromkeys(wanted))


def check_data(name: str) -> None:
    try:
        check_choice("data", name, downloads.SOURCES)
    except BadValue as error:
        raise UsageError(f"data {name}: {error.rule}") from error


def check_name(name: str) -> None:
    """Raises UsageError unless it is a name that `fetch` knows, a folder or what could be a name of the hub."""
    if name in files.DOWNLOADS or os.path.isdir(os.path.expanduser(name)):
        return
    try:
        files.check_name(name, "fetch")
    except UsageError as error:
        raise UsageError(f"{name}: is no name of the hub (org/name); python scripts/fetch.py --help has the other names") from error


def refuse(message: object, code: int) -> NoReturn:
    print(f"fetch: {message}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join([*files.DOWNLOADS, *REWARDS, *METRICS])
    parser.add_argument("names", nargs="*", help=f"org/name of the hub, or one of: {known}")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    try:
        bring, names = choose(arguments.names, everything=arguments.all)
    except UsageError as error:
        refuse(error, 2)
    try:
        for name in names:
            print(f"{name}: {bring(name)}")
    # torch.hub: RuntimeError for a wrong hash, OSError for the network; UsageError: the hub does not have it, or cannot be reached
    except (UsageError, OSError, RuntimeError) as error:
        refuse(error, 1)


if __name__ == "__main__":
    main()
