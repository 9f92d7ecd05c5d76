"""Repositories of the hub: their names, their files on this machine and on the hub, and downloads.

A name is `org/name`, `org/name/folder` for a model in a folder of a repository, and either with `@revision`: a branch, a
tag or a commit. Without one it is the main branch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guidedgen.basics.errors import UsageError

MAIN = "main"
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Location:
    """A folder of a repository at a revision; `folder` is empty for the repository itself."""

    repository: str
    folder: str = ""
    revision: str = MAIN

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return "/".join(filter(None, [self.repository, self.folder])) + revision

    def within(self, file: str) -> str:
        """The path in the repository of a file of this folder."""
        return f"{self.folder}/{file}" if self.folder else file


@dataclasses.dataclass(frozen=True)
class File:
    """A file as the hub lists it. `sha256` is known of large files."""

    size: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a location at a commit, by their paths in its folder."""

    commit: str
    files: Mapping[str, File]


def parse(name: str, key: str) -> Location:
    """The location that a name stands for. Raises UsageError where this can be no name of the hub's."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    path, revision = name.rsplit("@", 1) if "@" in name else (name, MAIN)
    parts = path.split("/")
    try:
        if path.startswith((".", "/", "~")) or not revision or not all(part.strip(".") for part in parts[2:]):
            raise HFValidationError
        validate_repo_id("/".join(parts[:2]))
    except HFValidationError:
        raise UsageError(f"{key}={name}: no such path, and not a hub name (org/name)") from None
    return Location("/".join(parts[:2]), "/".join(parts[2:]), revision)


def commit_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache (or of one inside it); None of any other folder."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            return parent.name
    return None


def cached(location: Location, files: Sequence[str] = ()) -> Path | None:
    """The location's folder in the cache; None where it is not there, or known to lack one of these files (patterns) that the
    repository has.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # To the hub's client `*` matches `/` too: a pattern that begins with it would ask for files of other folders.
    patterns = [location.within(file) for file in files if not file.startswith("*")]
    try:
        snapshot = snapshot_download(
            location.repository, revision=location.revision, allow_patterns=patterns, local_files_only=True
        )
    except LocalEntryNotFoundError:  # nothing there, or a download was interrupted
        return None
    folder = Path(snapshot) / location.folder
    return folder if folder.is_dir() else None


def offline() -> bool:
    """Whether the hub must not be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def listing(location: Location, *, name: str, key: str) -> Listing:
    """What the hub has at a location. Raises UsageError where that cannot be found out."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api, prefix = HfApi(), f"{location.folder}/" if location.folder else ""
    with refusing(location, name=name, key=key):
        commit = location.revision
        if not _COMMIT.fullmatch(commit):
            commit = str(api.model_info(location.repository, revision=commit).sha)
        found = [
            entry
            for entry in api.list_repo_tree(location.repository, recursive=True, revision=commit)
            if isinstance(entry, RepoFile) and entry.path.startswith(prefix)
        ]
    files = {entry.path.removeprefix(prefix): File(entry.size, entry.lfs.sha256 if entry.lfs else None) for entry in found}
    return Listing(commit, files)


def download(location: Location, listed: Listing, stages: Sequence[Sequence[str]], *, name: str, key: str) -> Path:
    """Downloads files of a location, stage by stage, and checks them; returns their folder. What is there already is not downloaded
    again unless it has another size or checksum than the hub says. Raises UsageError.

    An interrupted download goes on where it stopped, and if a file of the last stage is there, all the rest is.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    with refusing(location, name=name, key=key), _quietly():
        there = cached(dataclasses.replace(location, revision=listed.commit))
        for file in (file for stage in stages for file in stage):
            if there is not None and (there / file).exists() and differs(there / file, listed.files[file]):
                hf_hub_download(location.repository, location.within(file), revision=listed.commit, force_download=True)
        for stage in filter(None, stages):
            for file in stage:
                _download_large(location, file, listed)
            patterns = [glob.escape(location.within(file)) for file in stage]
            snapshot = snapshot_download(location.repository, revision=location.revision, allow_patterns=patterns)
    folder = Path(snapshot) / location.folder
    for file in (file for stage in stages for file in stage):
        if not (folder / file).is_file() or differs(folder / file, listed.files[file]):
            _drop(folder / file)
            raise UsageError(f"{key}={name}: {file} did not arrive as {endpoint()} has it; the same command tries again")
    return folder


def _download_large(location: Location, file: str, listed: Listing) -> None:
    """Downloads a file to where the cache keeps it under its SHA-256, if the hub lists that: then the client has but to link it.

    The client's own downloads begin anew when they have been interrupted; this one goes on, in a later process too.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    entry, folder = listed.files[file], repo_folder_name(repo_id=location.repository, repo_type="model")
    if entry.sha256 is None:
        return
    blob = Path(constants.HF_HUB_CACHE, folder, "blobs", entry.sha256)
    lock = Path(constants.HF_HUB_CACHE, ".locks", folder, f"{entry.sha256}.lock")  # the client's own
    partial = blob.with_name(f"{blob.name}.incomplete")
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if partial.exists() and partial.stat().st_size > entry.size:
            partial.unlink()
        with partial.open("ab") as stream:
            url = hf_hub_url(location.repository, location.within(file), revision=listed.commit)
            headers, have = build_hf_headers(), stream.tell()
            http_get(url, stream, resume_size=have, headers=headers, expected_size=entry.size, displayed_filename=file)
        if _digest(partial) != entry.sha256:
            partial.unlink()
            raise OSError(f"{file} arrived with another checksum")
        partial.replace(blob)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The hub's client says nothing of attempts that it repeats, and draws bars on a terminal alone."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars and not sys.stderr.isatty():
            enable_progress_bars()


def differs(path: Path, listed: File) -> bool:
    """Whether a file is not the one that is listed."""
    if path.stat().st_size != listed.size:
        return True
    return listed.sha256 is not None and _digest(path) != listed.sha256


def damaged(path: Path) -> bool:
    """Whether a file of the cache is not what it was: it is kept under its SHA-256 if it is a large one. False where the cache does
    not tell, as for a local file.
    """
    if not path.is_symlink():
        return False
    kept = Path(os.readlink(path))
    return kept.parent.name == "blobs" and _SHA256.fullmatch(kept.name) is not None and _digest(path) != kept.name


def _drop(path: Path) -> None:
    """Removes a file of the cache, and what a link of it leads to."""
    for one in (path.resolve(), path):
        one.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def endpoint() -> str:
    """Where the hub is."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextlib.contextmanager
def refusing(location: Location, *, name: str, key: str) -> Iterator[None]:
    """Makes a UsageError of one line of whatever the hub's client raises inside."""
    from huggingface_hub import errors

    try:
        yield
    except UsageError:
        raise
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{key}={name}: its authors ask you to accept terms on {endpoint()}/{location.repository}, then: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(f"{key}={name}: no such path, and no such public repository at {endpoint()}") from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{key}={name}: has no revision {location.revision}") from error
    except Exception as error:  # whatever a network or a disk throws; the cause stays chained, the user gets one line
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{key}={name}: download from {endpoint()} failed ({type(error).__name__}: {reason}); "
            f"try again with: python scripts/fetch.py {name}"
        ) from error
