"""Finds weights: a local path, the local hub cache, the hub; in this order, and never more than the files asked for.

The cache comes first so that a run does not change when a repository does. No pickled object is read: safetensors, or state
dicts through torch's `weights_only` unpickler.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidedgen.types import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SAFE = ("*.safetensors", "*.json", "*.txt")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt")
# Files that hold a tokenizer's words, any group of which will do. Where there is none, transformers makes a tokenizer that knows no
# word, and says nothing.
BERT_WORDS = (("tokenizer.json",), ("vocab.txt",))
CLIP_WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"))

# Files that are not on the hub: file name, URL, SHA-256 or its first digits.
DOWNLOADS = {
    "aesthetic": (
        "sac+logos+ava1-l14-linearMSE.pth",
        "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
    "inception": (
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "vgg16": (
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af",
    ),
}


def locate(
    name_or_path: str | Path,
    *,
    key: str,
    files: Sequence[str] = SAFE,
    required: Sequence[str] = (),
    one_of: Sequence[Sequence[str]] = (),
    revision: str = "main",
) -> Path:
    """The folder of a local model, or of the snapshot of a hub repository, which is downloaded where needed.

    `files` are the patterns that are downloaded (as in fnmatch: `*` matches `/` too). Each glob pattern of `required` must match a
    file, and so must each in one of the groups of `one_of`. `key` is the config key of the name, for messages. Raises UsageError:
    not there, offline, incomplete, no such name.
    """
    name = str(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise UsageError(f"{key}={name}: is a file; a folder or a hub name (org/name) is needed")
    if not folder.is_dir():
        check_name(name, key)
        folder = _snapshot(name, key, files, required, one_of, revision)
    if missing := _missing(folder, required, one_of):
        raise UsageError(f"{key}={name}: has no {missing} (looked in {folder})")
    return folder


def locate_network(
    name_or_path: str | Path,
    *,
    key: str,
    files: Sequence[str],
    weights: str,
    one_of: Sequence[Sequence[str]] = (),
    revision: str = "main",
) -> Path:
    """The folder of a network in transformers' format, by `locate`: its config, its weights and `files`.

    `weights` names the file of the weights ("model.safetensors"), which its shards and their index may stand for.
    """
    stem, dot, kind = weights.rpartition(".")
    wanted = ("config.json", *files, weights, f"{weights}.index.json", f"{stem}-*{dot}{kind}")
    required = ("config.json", f"{stem}*{dot}{kind}")
    return locate(name_or_path, key=key, files=wanted, required=required, one_of=one_of, revision=revision)


def read_config(folder: Path, *, source: str, kind: str | None = None) -> dict[str, Any]:
    """The config.json of a network in transformers' format; `source` is what messages call the folder.

    Raises UsageError where it is no JSON object as transformers reads them, or the model is of another type than `kind`.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: its config.json cannot be read ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("vision_config") or {}, dict):
        raise UsageError(f"{source}: its config.json does not describe a network")
    if kind is not None and config.get("model_type") != kind:
        article = "an" if kind[0] in "aeiou" else "a"
        raise UsageError(f"{source}: holds a model of type {config.get('model_type')}; {article} {kind} is needed")
    return config


def locate_file(repo_or_path: str | Path, filename: str, *, key: str, sha256: str | None = None, revision: str = "main") -> Path:
    """One file: `repo_or_path` is the file itself, a folder that holds `filename`, or a hub repository that does.

    Raises UsageError as `locate` does, and where the content's SHA-256 (hexadecimal) is not `sha256`.
    """
    name = str(repo_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        path = path / filename
        if not path.is_file():
            raise UsageError(f"{key}={name}: has no {filename}")
    elif not path.is_file():
        check_name(name, key)
        path = _hub_file(name, filename, key, revision)
    if sha256 is not None:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != sha256.lower():
            raise UsageError(f"{key}={name}: {path.name} has SHA-256 {found}, expected {sha256.lower()}; fetch it again")
    return path


def locate_download(name: str, *, key: str) -> Path:
    """A file of DOWNLOADS in torch.hub's cache, where `python scripts/fetch.py NAME` puts it. Raises UsageError where it is not."""
    path = download_path(name)
    if not path.is_file():
        raise UsageError(f"{key}: {path} is missing; fetch it with: python scripts/fetch.py {name}")
    return path


def download_path(name: str) -> Path:
    """Where a file of DOWNLOADS is kept."""
    return kept_file(DOWNLOADS[name][0])


def kept_file(filename: str) -> Path:
    """Where a file is kept that is not the hub's: torch.hub's cache, which other packages share."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", filename)


def locate_lab(filename: str, *, key: str, part: str) -> Path:
    """A file of the weights that come with the lab. `part` is its name in `scripts/train_lab.py`. Raises UsageError."""
    from guidedgen.lab.networks import WEIGHTS

    path = WEIGHTS / filename
    if not path.is_file():
        raise UsageError(f"{key}: {path} is missing; make it with: python scripts/train_lab.py --parts {part}")
    return path


def read_state(path: Path, *, key: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a file of torch.save: alone, or under "state_dict" or "model" as in training
    checkpoints.

    Raises UsageError where the file is neither. On the device "meta", shapes are read and numbers are not.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return {name: tensor.to(device) for name, tensor in load_file(path).items()}
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, SafetensorError) as error:  # OSError: cut off in its middle
        raise UsageError(
            f"{key}={path}: not a state dict of tensors ({type(error).__name__}); pickled objects are refused"
        ) from error
    if isinstance(state, dict):
        state = next((state[holder] for holder in ("state_dict", "model") if isinstance(state.get(holder), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"{key}={path}: not a state dict of tensors")
    return state


def check_name(name: str, key: str) -> None:
    """Raises UsageError where this can be no name of a hub repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        if name.startswith((".", "/", "~")):
            raise HFValidationError
        validate_repo_id(name)
    except HFValidationError:
        raise UsageError(f"{key}={name}: no such path, and not a hub name (org/name)") from None


def _missing(folder: Path, required: Sequence[str], one_of: Sequence[Sequence[str]]) -> str:
    """The first pattern that no file matches, or the groups of patterns of which none is there as a whole; or an empty string."""

    def there(pattern: str) -> bool:
        return any(path.exists() for path in folder.glob(pattern))  # a cache holds links, which may dangle

    if lacking := [pattern for pattern in required if not there(pattern)]:
        return lacking[0]
    if one_of and not any(all(map(there, group)) for group in one_of):
        return " and no ".join(" with ".join(group) for group in one_of)
    return ""


def _snapshot(
    name: str, key: str, files: Sequence[str], required: Sequence[str], one_of: Sequence[Sequence[str]], revision: str
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(files)
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=True))
        if not _missing(folder, required, one_of):
            return folder
    except LocalEntryNotFoundError:  # nothing cached, or a download was interrupted
        pass
    wanted = ", ".join(patterns)
    return Path(_download(lambda: snapshot_download(name, revision=revision, allow_patterns=patterns), name, wanted, key, revision))


def _hub_file(name: str, filename: str, key: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, filename, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(_download(lambda: hf_hub_download(name, filename, revision=revision), name, filename, key, revision))


def _download(fetch: Callable[[], str], name: str, wanted: str, key: str, revision: str) -> str:
    from huggingface_hub import constants, errors

    if constants.is_offline_mode():
        raise UsageError(f"{key}={name}: not on this machine and the hub is offline; fetch it with: python scripts/fetch.py {name}")
    try:
        return fetch()
    except errors.GatedRepoError as error:
        raise UsageError(f"{key}={name}: its authors ask you to accept terms on the hub, then: hf auth login") from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(f"{key}={name}: no such path, and no such public repository at {constants.ENDPOINT}") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{key}={name}: has no revision {revision}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise UsageError(f"{key}={name}: has no {wanted} at {constants.ENDPOINT}") from error
    except Exception as error:  # whatever a network throws; the cause stays chained, the user gets one line
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{key}={name}: download from {constants.ENDPOINT} failed ({type(error).__name__}: {reason}); "
            f"try again with: python scripts/fetch.py {name}"
        ) from error
