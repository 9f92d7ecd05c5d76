"""CLIPs in open_clip's format, from one file of weights."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.basics.precision import DType, dtype_of, full_dtype_of, rounded, run_in, settled, wide
from guidedgen.zoo.files import read_state
from guidedgen.zoo.needed import OPEN_CLIP, Needed

if TYPE_CHECKING:
    import open_clip

_PLAIN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}  # what the description of a plain CLIP holds
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}  # numbers that OpenAI's state dicts carry


class OpenClip:
    """A CLIP that open_clip describes: zoo.Clip, with the tokenizer that comes with open_clip.

    `architecture` is a name of open_clip's, or a JSON file that describes a model as those of open_clip do. OpenAI's weights need a
    name that ends in "-quickgelu". `path` is the file of weights, or a folder or hub repository that holds `filename` (None: a
    name that open_clip's have, safetensors first): a state dict of tensors, alone or under "state_dict". Images are prepared on
    tensors, so that gradients reach the pixels, by CLIP's mean and deviation at the network's size, bicubic and antialiased:

        crop    the shorter side fits, the middle is kept (OpenAI, open_clip, whose middle may be a pixel off where the rest is odd)
        pad     the longer side fits, the rest is black, nothing is clamped (tgxs002/HPSv2, hpsv2/src/open_clip/transform.py)

    `dtype` as for `zoo.clip.HubClip`. Raises UsageError where the architecture is unknown or not a plain CLIP, or the file is
    missing.
    """

    def __init__(
        self,
        *,
        name: str,
        architecture: str,
        path: str | Path,
        filename: str | None = None,
        fit: Literal["crop", "pad"] = "crop",
        device: torch.device | str = "cpu",
        dtype: DType = "float32",
        key: str = "clip.path",
    ) -> None:
        self.name = name
        self.fit = fit
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        self.architecture = architecture
        description = _describe(architecture, key)
        self.dim: int = description["embed_dim"]
        self.size: int = description["vision_cfg"].get("image_size", 224)
        [needed] = self.reads(path=path, filename=filename, key=key)
        self.file = needed.locate_weights()
        self._key = key
        self._described = Path(architecture).expanduser() if architecture.endswith(".json") else None

    @staticmethod
    def reads(*, path: str | Path, filename: str | None = None, key: str = "clip.path", **_: object) -> tuple[Needed, ...]:
        """What is read: the weights."""
        return (Needed(name=str(path), key=key, weights=(OPEN_CLIP if filename is None else (filename,),)),)

    @property
    def network(self) -> open_clip.model.CLIP:
        """The frozen network, loaded at first use."""
        return _load(self.file, self.architecture, self.device, self._key, self.dtype)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by in training: exp of the stored parameter."""
        return float(self.network.logit_scale.exp())

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer(context_length=self.network.context_length)

    def encode_image(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d of unit length, differentiable."""
        pixels = pictures.check(images, self.name).to(self.device, full_dtype_of(self.network))
        pixels = pictures.resize(pixels, self.size) if self.fit == "crop" else pad(pixels, self.size)
        return self.encode_pixels(pictures.normalise(pixels, pictures.CLIP_MEAN, pictures.CLIP_STD))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels that are prepared already, b 3 size size and normalised -> b d of unit length, differentiable."""
        network = self.network
        pixels = pixels.to(self.device, full_dtype_of(network))
        return run_in(dtype_of(network), lambda x: _unit(network.encode_image(x)), pixels)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """-> b d of unit length. Longer texts are cut to the model's length, the end token kept."""
        return _unit(self.network.encode_text(self._tokenizer(list(texts)).to(self.device)))


def _unit(embedding: Tensor) -> Tensor:
    return F.normalize(wide(embedding), dim=-1)


def pad(images: Tensor, side: int) -> Tensor:
    """b 3 side side: the longer side scaled to `side`, the rest of the square filled with 0 around the middle."""
    height, width = images.shape[-2:]
    scale = side / max(height, width)
    size = (round(height * scale), round(width * scale))
    if size != (height, width):
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    down, right = side - size[0], side - size[1]
    return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))


def absent(*, name: str, instead: str, group: str = "reward") -> NoReturn:
    """What a zoo names where it has no network for an option of a group: always a UsageError."""
    raise UsageError(f"zoo: the lab has no network for {group}={name}; choose {group}={instead}, or zoo=hub for the published one")


def _describe(architecture: str, key: str) -> dict[str, Any]:
    """A model's description, read without importing open_clip, which takes seconds."""
    file = Path(architecture).expanduser()
    if file.suffix != ".json":
        spec = importlib.util.find_spec("open_clip")
        assert spec is not None and spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0]) / "model_configs"
        names = {path.stem: path for path in folder.glob("*.json")}
        if architecture not in names:
            close = difflib.get_close_matches(architecture, names, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{key}: architecture={architecture}: open_clip has no such model{hint}")
        file = names[architecture]
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{key}: architecture={architecture}: cannot be read ({error})") from error
    if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(description) <= _PLAIN or "hf_model_name" in description["text_cfg"]:
        raise UsageError(f"{key}: architecture={architecture}: not a plain CLIP, which is all that is supported")
    return description


# Loading may first happen inside inference mode, whose tensors could never be differentiated through afterwards.
@functools.cache
@torch.inference_mode(False)
def _load(file: Path, architecture: str, device: torch.device, key: str, dtype: DType) -> open_clip.model.CLIP:
    from open_clip.model import CLIP

    state = {name: value for name, value in read_state(file, key=key).items() if name not in _NOT_WEIGHTS}
    with torch.random.fork_rng(devices=[]):  # it is initialised at random first
        network = CLIP(**_describe(architecture, key))
    expected = {name: value.shape for name, value in network.state_dict().items()}
    wrong = [name for name in expected | state if name not in state or state[name].shape != expected.get(name)]
    if wrong:
        raise UsageError(f"{key}={file}: not the weights of {architecture}: {len(wrong)} tensors differ, {wrong[0]} first")
    network.load_state_dict(state)
    return rounded(network.float().eval().requires_grad_(False).to(device), dtype)
