"""The files that hold a network's weights: which there are, and whether their headers are those of whole files of plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.files import read_state
from guidedgen.zoo.needed import index_name, placed_in

_LFS = b"version https://git-lfs"  # how a pointer of Git LFS begins, which a clone without it has instead of the file
_PLAIN = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "float64",
    "float32",
    "float16",
    "bfloat16",
)  # numbers of weights, by safetensors and by torch


def choose(there: Collection[str], names: Sequence[str]) -> str | None:
    """The first of these files of weights that is among those that are there, whole or in pieces (by its index)."""
    return next((name for name in names if name in there or index_name(name) in there), None)


def variants(there: Collection[str], names: Sequence[str]) -> list[str]:
    """Files of the same weights in another precision or of another average: diffusion_pytorch_model.fp16.safetensors."""
    stems = [name.rpartition(".")[0] for name in names]
    return sorted(file for file in there if any(file.startswith(f"{stem}.") for stem in stems) and not file.endswith(".json"))


def check_weights(folder: Path, name: str, source: str, *, quantised: bool = False) -> None:
    """Checks the weights in the file `name` of the folder, or in its pieces and their index; `source` is what messages call them.

    Only headers are read. Raises UsageError where a file is a pointer of Git LFS, cut off, pickled code or quantised (unless it is
    said to be), or the pieces are not those of their index.
    """
    index = folder / index_name(name)
    stored = {key: file.name for file in weight_files(folder, name, source) for key in _header(file, source, quantised)}
    if (folder / name).exists() or not index.exists():
        return
    placed = placed_in(index, source)
    if wrong := sorted(key for key in placed | stored if placed.get(key) != stored.get(key)):
        raise UsageError(f"{source}: {index.name} is not of these pieces: {len(wrong)} tensors differ, {wrong[0]} first")


def weight_files(folder: Path, name: str, source: str) -> list[Path]:
    """The file `name` of the folder, or the pieces of it that its index names. Raises UsageError where a piece is not there."""
    index = folder / index_name(name)
    if (folder / name).exists() or not index.exists():
        return [folder / name]
    pieces = sorted(set(placed_in(index, source).values()))
    for piece in pieces:
        if Path(piece).name != piece or not (folder / piece).is_file():
            raise UsageError(f"{source}: {piece}, which {index.name} names, is not there; fetch it again")
    return [folder / piece for piece in pieces]


def is_pointer(start: bytes) -> bool:
    """Whether a file that begins like this is a pointer of Git LFS."""
    return start.startswith(_LFS)


def _header(file: Path, source: str, quantised: bool) -> Mapping[str, str]:
    """The type of each tensor's numbers."""
    try:
        if not file.is_file():  # a pipe would never end
            raise OSError("it is no file")
        with file.open("rb") as stream:
            start = stream.read(len(_LFS))
    except OSError as error:
        raise UsageError(f"{source}: {file.name} cannot be read ({error.strerror or error})") from error
    if is_pointer(start):
        raise UsageError(f"{source}: {file.name} is a pointer of Git LFS and not the file itself; get that with: git lfs pull")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as tensors:
                kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118  it is no dictionary
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{source}: {file.name} is cut off or damaged ({error}); fetch it again") from error
    else:
        try:
            state = read_state(file, key="file", device="meta")
        except UsageError as error:
            reason = str(error).removeprefix(f"file={file}: ")
            raise UsageError(f"{source}: {file.name} is {reason}") from error
        kinds = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in state.items()}
    for key, kind in kinds.items():
        if key.endswith("weight") and kind not in _PLAIN and not quantised:
            raise UsageError(
                f"{source}: {file.name} is quantised: {key} is of type {kind}; weights in float32, float16 or bfloat16 are needed"
            )
    return kinds
