"""What is read of models: which files of which folder or repository. A run finds them by it, and `scripts/fetch.py` downloads them.

Each class of the zoo that has weights elsewhere, and the model, says by its `reads`, of its own options, what its constructor
locates.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from guidedgen.basics.errors import UsageError
from guidedgen.zoo import hub, web

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
             "merges.txt")  # fmt: skip
# Of any network of transformers.
PROCESSOR = ("*.json", "*.txt", "*.model", "*.jinja")
# Files that hold a tokenizer's words, any group of which will do. Where there is none, transformers makes a tokenizer that knows no
# word, and says nothing.
BERT_WORDS = (("tokenizer.json",), ("vocab.txt",))
CLIP_WORDS = (("tokenizer.json",), ("vocab.json", "merges.txt"))

# Names of weights, the better ones first. Not all repositories of the hub have safetensors; `.bin` is read as tensors only.
TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")
# open_clip's own; what is called as transformers' weights are may be those, which are named otherwise inside.
OPEN_CLIP = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


class Download(NamedTuple):
    """A file that is not on the hub."""

    file: str
    url: str
    sha256: str  # all of it, or its beginning
    size: int  # bytes


_PREDICTOR_V1 = "https://github.com/LAION-AI/aesthetic-predictor/raw/6d122adad522ab246644d9dc1c6d7a3810ee255f"
_PREDICTOR_V2 = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/6934dd81792f086e613a121dbce43082cb8be85e"
DOWNLOADS = {
    "aesthetic": Download(
        "sac+logos+ava1-l14-linearMSE.pth",
        f"{_PREDICTOR_V2}/sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        3714759,
    ),
    "aesthetic_v1_l14": Download(
        "sa_0_4_vit_l_14_linear.pth",
        f"{_PREDICTOR_V1}/sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        4071,
    ),
    "aesthetic_v1_b32": Download(
        "sa_0_4_vit_b_32_linear.pth",
        f"{_PREDICTOR_V1}/sa_0_4_vit_b_32_linear.pth",
        "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
        3047,
    ),
    "inception": Download(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95628359,
    ),
    "vgg16": Download(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553433881,
    ),
    "vgg19": Download(
        "vgg19-dcbb9e9d.pth",
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "dcbb9e9d",  # as much of it as the file's name has, which is what torch itself checks
        574673361,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What of a part is on this machine, in files and bytes; and what is missing, with its bytes where they are known.

    `where` it is, where nothing is missing.
    """

    where: Path | None = None
    files: int = 0
    size: int = 0
    missing: Sequence[tuple[str, int | None]] = ()


class Part(Protocol):
    """What a run looks for, and `scripts/fetch.py` downloads."""

    @property
    def name(self) -> str:
        """What it is called."""

    def survey(self) -> Survey:
        """What of it is there, and undamaged. Raises UsageError where that cannot be found out, as where there is no such thing."""

    def download(self) -> Path:
        """Downloads what is missing, and checks it. Raises UsageError."""


@dataclasses.dataclass(frozen=True)
class CachedFile:
    """A file of DOWNLOADS, in torch.hub's cache: a run looks for it, and `scripts/fetch.py` downloads it."""

    name: str

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return cached_file(DOWNLOADS[self.name].file)

    def survey(self) -> Survey:
        """By its SHA-256."""
        if self.path.is_file() and digest(self.path).startswith(DOWNLOADS[self.name].sha256):
            return Survey(where=self.path, files=1, size=self.path.stat().st_size)
        return Survey(missing=[(self.path.name, DOWNLOADS[self.name].size)])

    def download(self) -> Path:
        """Downloads it. Raises UsageError."""
        fetch_url(self.name, DOWNLOADS[self.name].url, self.path, sha256=DOWNLOADS[self.name].sha256)
        return self.path

    def locate(self, *, key: str) -> Path:
        """Where it is. Raises UsageError where it is not."""
        if not self.path.is_file():
            raise UsageError(f"{key}: {self.path} is missing; fetch it with: python scripts/fetch.py {self.name}")
        return self.path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needed:
    """What is read of the folder of a model, or of a repository of the hub: a run looks for it, `scripts/fetch.py` downloads it.

    `name` is the folder or the hub's name (see `hub`), `key` its config key, for messages. `files` are patterns, of which what
    there is is read; each of `required` must match a file, and so must each in one of the groups of `one_of`. `*` does not match
    `/`. `weights` has names of files in the order of preference, a group for each part of the model: one of each group is needed
    and read, whole, or in pieces that its index names.
    """

    name: str
    key: str
    files: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    one_of: tuple[tuple[str, ...], ...] = ()
    weights: tuple[tuple[str, ...], ...] = ()

    @property
    def command(self) -> str:
        """The command that downloads it."""
        location, [*others] = hub.parse(self.name, self.key), [name for group in self.weights for name in group]
        if not self.files and len(others) == 1 and others[0] not in (*TRANSFORMERS, *OPEN_CLIP):
            location = dataclasses.replace(location, folder=location.within(others[0]).removeprefix(f"{location.repository}/"))
        return f"python scripts/fetch.py {location}"

    @property
    def local(self) -> Path | None:
        """The folder (or file) where the name is one; None where it can be the hub's alone."""
        path = Path(self.name).expanduser()
        return path if path.exists() else None

    def locate(self) -> Path:
        """The folder of a local model, or of the snapshot of a hub repository, which is downloaded where needed.

        Raises UsageError: not there, offline, incomplete, no such name.
        """
        folder = self.local
        if folder is None:
            return self.cached() or self.download()
        if folder.is_file():
            raise UsageError(f"{self.key}={self.name}: is a file; a folder or a hub name (org/name) is needed")
        if missing := self.missing(folder):
            raise UsageError(f"{self.key}={self.name}: has no {missing} (looked in {folder})")
        return folder

    def locate_weights(self) -> Path:
        """The file of the weights, which `name` may be itself. Raises UsageError as `locate` does."""
        if self.local is not None and self.local.is_file():
            return self.local
        folder = self.locate()
        return folder / self.found(folder)

    def cached(self) -> Path | None:
        """Its folder in the hub's cache; None where it is not there, or not whole. Raises UsageError for what is no name."""
        folder = hub.cached(hub.parse(self.name, self.key), self.files)
        return None if folder is None or self.missing(folder) else folder

    def download(self) -> Path:
        """Downloads what is not in the hub's cache yet, the weights last. Raises UsageError."""
        location = hub.parse(self.name, self.key)
        if hub.offline():
            raise UsageError(f"{self.key}={self.name}: not on this machine and the hub is offline; fetch it with: {self.command}")
        listed = hub.listing(location, name=self.name, key=self.key)
        return hub.download(location, listed, self.select(listed), name=self.name, key=self.key)

    def survey(self) -> Survey:
        """Of what is in the cache by its checksums; of what is not, by what the hub lists."""
        if self.local is not None:
            files = [self.local] if self.local.is_file() else self._read(self.locate())
            return Survey(where=self.local, files=len(files), size=sum(file.stat().st_size for file in files))
        if folder := self.cached():
            files = self._read(folder)
            whole = [file for file in files if not hub.damaged(file)]
            missing = [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files if file not in whole]
            return Survey(where=folder, files=len(whole), size=sum(file.stat().st_size for file in whole), missing=missing)
        location = hub.parse(self.name, self.key)
        if hub.offline():
            return Survey(missing=[("all of it (the hub is offline)", None)])
        listed = hub.listing(location, name=self.name, key=self.key)
        there = hub.cached(dataclasses.replace(location, revision=listed.commit))
        number, size, missing = 0, 0, []
        for file in (file for stage in self.select(listed) for file in stage):
            if there is not None and (there / file).exists() and not hub.differs(there / file, listed.files[file]):
                number, size = number + 1, size + listed.files[file].size
            else:
                missing.append((file, listed.files[file].size))
        return Survey(files=number, size=size, missing=missing)

    def _read(self, folder: Path) -> list[Path]:
        """The files of a whole folder that are read."""
        names = [self.found(folder, group) for group in range(len(self.weights))]
        wanted = [folder / name for name in names if (folder / name).exists()]
        for name in (name for name in names if not (folder / name).exists()):
            wanted += [folder / index_name(name), *self._pieces(folder, name)]
        return sorted({*wanted, *(path for pattern in self.files for path in folder.glob(pattern) if path.is_file())})

    def missing(self, folder: Path) -> str:
        """The first that a folder lacks, in words; or an empty string."""
        # A cache holds links, which may dangle.
        if lacking := self._lacking(lambda pattern: any(path.exists() for path in folder.glob(pattern))):
            return lacking
        for group in self.weights:
            for name in group:
                if (folder / index_name(name)).exists() and not (folder / name).exists():
                    if lacking := next((piece.name for piece in self._pieces(folder, name) if not piece.exists()), ""):
                        return lacking
                    break
        return ""

    def _pieces(self, folder: Path, name: str) -> list[Path]:
        """The files that weights in pieces are in, by their index."""
        index = folder / index_name(name)
        return [index.parent / piece for piece in sorted(set(placed_in(index, f"{self.key}={self.name}").values()))]

    def select(self, listed: hub.Listing) -> tuple[list[str], list[str]]:
        """Of the files that the hub lists, those that are read: the weights apart. Raises UsageError where it lacks some."""

        def there(pattern: str) -> bool:
            return any(_matches(file, pattern) for file in listed.files)

        if lacking := self._lacking(there):
            raise UsageError(f"{self.key}={self.name}: has no {lacking} at {hub.endpoint()}")
        weights = []
        for group in self.weights:
            name = next(name for name in group if there(name) or there(index_name(name)))
            stem, dot, kind = name.rpartition(".")
            whole = there(name)
            patterns = (name,) if whole else (index_name(name), f"{stem}-*-of-*{dot}{kind}")
            weights += [file for file in listed.files if any(_matches(file, pattern) for pattern in patterns)]
        files = [file for file in listed.files if any(_matches(file, pattern) for pattern in self.files) and file not in weights]
        return files, weights

    def found(self, folder: Path, group: int = 0) -> str:
        """The name of a group's weights that a whole folder has."""
        return next(name for name in self.weights[group] if (folder / name).exists() or (folder / index_name(name)).exists())

    def _lacking(self, there: Callable[[str], bool]) -> str:
        if lacking := [pattern for pattern in self.required if not there(pattern)]:
            return lacking[0]
        if self.one_of and not any(all(map(there, group)) for group in self.one_of):
            return " and no ".join(" with ".join(group) for group in self.one_of)
        for group in self.weights:
            if not any(there(name) or there(index_name(name)) for name in group):
                return " and no ".join(group)
        return ""


def network(
    name_or_path: str | Path,
    *,
    key: str,
    files: Sequence[str] = (),
    weights: str | None = None,
    one_of: Sequence[tuple[str, ...]] = (),
) -> Needed:
    """What is read of a network in transformers' format: its config, its weights and `files`.

    `weights` names the file of the weights; None: safetensors, or where there are none tensors by torch's `weights_only`.
    """
    names = TRANSFORMERS if weights is None else (weights,)
    wanted = ("config.json", *files)
    return Needed(name=str(name_or_path), key=key, files=wanted, required=("config.json",), one_of=tuple(one_of), weights=(names,))


def fetch_url(name: str, url: str, path: Path, *, sha256: str | None = None) -> None:
    """As `web.download`, of what is called `name`. Raises UsageError where it cannot be had."""
    try:
        web.download(url, path, sha256=sha256)
    except OSError as error:
        raise UsageError(f"{name}: cannot be had from {url} ({error})") from error


def again(path: Path) -> str:
    """How to fetch a broken file again, if it is one of DOWNLOADS where fetching puts it; else nothing."""
    names = [name for name in DOWNLOADS if CachedFile(name).path == path]
    return f"; fetch it again with: python scripts/fetch.py {names[0]}" if names else ""


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def cached_file(filename: str) -> Path:
    """Where a file is kept that is not the hub's: torch.hub's cache, which other packages share."""
    import torch

    return Path(torch.hub.get_dir(), "checkpoints", filename)


def _matches(file: str, pattern: str) -> bool:
    return file.count("/") == pattern.count("/") and fnmatch.fnmatchcase(file, pattern)


def index_name(weights: str) -> str:
    """The file that names the pieces of weights."""
    return f"{weights}.index.json"


def placed_in(index: Path, source: str) -> dict[str, str]:
    """The piece that each tensor is in, by an index of weights. Raises UsageError where it cannot be read."""
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not placed or not all(isinstance(piece, str) for piece in placed.values()):
            raise ValueError("weight_map names no files")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{source}: {index.name} cannot be read ({type(error).__name__}: {error})") from error
    return placed
