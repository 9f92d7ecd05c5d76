"""Files of the web that are not on the hub: downloaded in full and checked, or not at all."""

from __future__ import annotations

import base64
import hashlib
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from pathlib import Path

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without an answer


def size(url: str) -> int | None:
    """The bytes of a file; None where its server does not say, or cannot be reached."""
    try:
        with urllib.request.urlopen(_request(url, method="HEAD"), timeout=_TIMEOUT) as answer:
            return _length(answer.headers)
    except (OSError, HTTPException):
        return None


def download(url: str, path: Path, *, sha256: str | None = None) -> None:
    """Downloads a file to `path`. An interrupted download stays in `path`.partial, and the next call continues
    it; `path` is written last, by renaming, when the whole file is there with its SHA-256.

    Where `sha256` is None, the MD5 that Google's storage sends is checked, and a file of a server that sends none is not resumed.

    Raises:
        OSError: it cannot be had, was interrupted, or is another file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    resumed = partial.exists()
    try:
        if wrong := _download(url, partial, sha256):
            partial.unlink()
            if resumed:  # what was there may have been the beginning of another file
                wrong = _download(url, partial, sha256)
            if wrong:
                partial.unlink(missing_ok=True)
                raise OSError(wrong)
    except HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    partial.replace(path)


def _download(url: str, partial: Path, sha256: str | None) -> str:
    """Downloads what is left of a file; returns what is wrong with the whole, or an empty string."""
    from huggingface_hub.utils.tqdm import tqdm

    checked = sha256 is not None or _md5_of(url) is not None
    start = partial.stat().st_size if checked and partial.exists() else 0
    try:
        answer = urllib.request.urlopen(_request(url, start), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing after `start`
            raise
        answer = urllib.request.urlopen(_request(url), timeout=_TIMEOUT)
    with answer:
        if getattr(answer, "status", None) != 206:
            start = 0  # the whole file comes
        length = _length(answer.headers)
        total = None if length is None else start + length
        with (
            partial.open("ab" if start else "wb") as stream,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=None) as bar,
        ):
            while chunk := answer.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
            have = stream.tell()
        if total is not None and have < total:
            raise OSError(f"the connection ended after {have} of {total} bytes; the same command goes on from there")
        return _wrong(partial, sha256, _md5(answer.headers))


def _wrong(file: Path, sha256: str | None, md5: str | None) -> str:
    for kind, expected in (("sha256", sha256), ("md5", md5 if sha256 is None else None)):
        if expected is not None:
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, kind).hexdigest()
            if not found.startswith(expected):
                return f"invalid hash value: {kind.upper()} {found} where {expected} is expected"
    return ""


def _request(url: str, start: int = 0, method: str = "GET") -> urllib.request.Request:
    headers = {"User-Agent": "guidedgen"} | ({"Range": f"bytes={start}-"} if start else {})
    return urllib.request.Request(url, headers=headers, method=method)


def _length(headers: HTTPMessage) -> int | None:
    found = headers.get("Content-Length", "")
    return int(found) if found.isdecimal() else None


def _md5_of(url: str) -> str | None:
    try:
        with urllib.request.urlopen(_request(url, method="HEAD"), timeout=_TIMEOUT) as answer:
            return _md5(answer.headers)
    except (OSError, HTTPException):
        return None


def _md5(headers: HTTPMessage) -> str | None:
    """In hexadecimal, as `x-goog-hash` has it in base64."""
    for value in headers.get_all("x-goog-hash", []):
        for part in value.split(","):
            kind, _, digest = part.strip().partition("=")
            if kind == "md5":
                return base64.b64decode(digest).hex()
    return None
