"""Benchmark files that are not part of this repository: their sources, where they are stored, and their checksums."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.datasets.tasks import expand, read_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Released files: the folder they are in on the web, at a commit, and the SHA-256 of each by its name."""

    url: str
    files: Mapping[str, str]


_GITHUB = "https://raw.githubusercontent.com"
SOURCES = {
    "t2i_compbench": Source(
        url=f"{_GITHUB}/Karine-Huang/T2I-CompBench/1b7094991a57f3c22abdd4f6e8ba6c1a15517073/examples/dataset",
        files={
            "color_val.txt": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
            "shape_val.txt": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
            "texture_val.txt": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
            "spatial_val.txt": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
            "3d_spatial_val.txt": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
            "non_spatial_val.txt": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
            "numeracy_val.txt": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
            "complex_val.txt": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
            "complex_val_spatial.txt": "6c7ac0ab75c7c9080cfc7b421fb059b9b0febb98471707aeedf58771088abc02",
            "complex_val_action.txt": "d49ee4c7f99e3f3379fb8704a54ff5288b83bb412971edf616a4721c2473308e",
            "complex_val_spatialaction.txt": "e02ddc7fed812e6577e7386ec2137ce0a994a5ce19771661f68df7ac349a6ca9",
        },
    ),
    "hpdv2": Source(
        url=f"{_GITHUB}/mihirp1998/AlignProp/b22918afd53f254f2ba66eb1233d94121aade5fc/assets",
        files={"hps_v2_all_eval.txt": "1af515e74b71687531d6a4e83489b10c7214a8d5c4da04621c45bf76fe739049"},
    ),
    "drawbench": Source(
        url=f"{_GITHUB}/tinnerhrhe/EvoSearch-codes/f2b6ba7d21237ae975c521d3fe086f65ba84b43c/FLUX",
        files={"DrawBench_Prompts.csv": "b7de16c8be6a345e3562f657a55300194695200b12a727ff6291059d31d215d5"},
    ),
    "parti_prompts": Source(
        url=f"{_GITHUB}/google-research/parti/5a657978134374ce28973948331b319adef164bd",
        files={"PartiPrompts.tsv": "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb"},
    ),
    "geneval": Source(
        url=f"{_GITHUB}/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f/prompts",
        files={"evaluation_metadata.jsonl": "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"},
    ),
}


def kept(name: str) -> Path:
    """The folder for the files that `python scripts/fetch.py data NAME` downloads. Raises UsageError: there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache, "guidedgen", name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"XDG_CACHE_HOME={cache}: there is no home folder {Path(cache).parts[0]}; name another") from error


def find(name: str, file: str, path: str | None) -> Path:
    """Where one file of SOURCES is: `path` is the file, a folder that holds it, or None for the folder that it is fetched to.

    Raises:
        BadValue: the option `path` leads to no such file.
    """
    found = expand("path", str(kept(name)) if path is None else path)
    if path is None or found.is_dir():
        found = expand("path", file, found)
    if not found.is_file():
        rule = f"there is no {found}; fetch it with: python scripts/fetch.py data {name}"
        raise BadValue("path", "null" if path is None else path, rule)
    return found


@contextlib.contextmanager
def reading(name: str, found: Path) -> Iterator[None]:
    """A block that reads what `find` found: where it refuses a file that was fetched, the message says to fetch it again."""
    try:
        yield
    except BadValue as error:
        if found.parent.resolve() != kept(name).resolve():
            raise
        wrong, _, _ = error.rule.partition("; ")  # what follows is the way out for other files
        raise BadValue(error.name, error.value, f"{wrong}; fetch it again with: python scripts/fetch.py data {name}") from error


def read_released(name: str, file: str, path: str | None) -> str:
    """The text of one file of SOURCES, its line ends made one newline each, without white space after its last line.

    `path` is as `find` takes it.

    Raises:
        BadValue: the option `path` leads to no such file, or to one that holds something else (line ends and white space after
            the last line aside).
    """
    found = find(name, file, path)
    with reading(name, found):
        text = read_text("path", str(found)).rstrip()
        if SOURCES[name].files[file] not in _digests(text):
            raise BadValue("path", str(found), f"is not {file} as released ({SOURCES[name].url}); dataset=text takes any file")
    return text


def _digests(text: str) -> Iterator[str]:
    """The SHA-256 of the files that a text may have been released as: their checksums count line ends and how the file ends, which
    editors and git change. PartiPrompts' last line ends in an empty column.
    """
    for end in ("", "\n", "\t\n"):
        for newline in ("\n", "\r\n"):
            yield hashlib.sha256((text + end).replace("\n", newline).encode()).hexdigest()
