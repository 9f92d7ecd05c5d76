"""Aesthetic heads: LAION's predictors v2 (linear MSE) and v1 over unit-length CLIP image embeddings, and the lab's.

    v2   sac+logos+ava1-l14-linearMSE.pth   five linear layers without activations, over OpenAI's ViT-L/14
    v1   sa_0_4_vit_l_14_linear.pth         one linear layer, over OpenAI's ViT-L/14
         sa_0_4_vit_b_32_linear.pth         one linear layer, over OpenAI's ViT-B/32

All are affine in the embedding and clip nothing: over all unit vectors v2 spans -12.8 to 23.2.
Sources: christophschuhmann/improved-aesthetic-predictor, simple_inference.py; LAION-AI/aesthetic-predictor.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.files import locate_file, locate_lab, read_state
from guidedgen.zoo.needed import DOWNLOADS, CachedFile, Needed

FILE, SHA256 = DOWNLOADS["aesthetic"].file, DOWNLOADS["aesthetic"].sha256


class LaionHead:
    """A LAION head, v2 or v1 by what the file holds. `dim` is the width of the embedding it takes.

    `path` is the file, a folder or a hub repository that holds `filename`, or None for what `scripts/fetch.py` downloads
    of that name. Raises UsageError where it is missing, has another SHA-256 than the one given, or holds another architecture (as
    ava+logos-l14-reluMSE.pth does); numbers are read at first use.
    """

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        device: torch.device | str = "cpu",
        filename: str = FILE,
        sha256: str | None = None,
        name: str = "laion-aesthetic",
        key: str = "head.path",
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        [part] = self.reads(path=path, filename=filename, key=key)
        if path is None:
            assert isinstance(part, CachedFile)
            path, sha256 = part.locate(key=key), DOWNLOADS[part.name].sha256
        self.file = locate_file(path, filename, key=key, sha256=sha256)
        self._key = key
        self.dim: int = _build(self._read("meta"), f"{key}={path}")[1]

    @staticmethod
    def reads(
        *, path: str | Path | None = None, filename: str = FILE, key: str = "head.path", **_: object
    ) -> tuple[CachedFile | Needed, ...]:
        """What is read: the file. Raises UsageError where `path` is None and `filename` none that can be downloaded."""
        if path is not None:
            return (Needed(name=str(path), key=key, weights=((filename,),)),)
        names = {download.file: name for name, download in DOWNLOADS.items()}
        if filename not in names:
            raise UsageError(f"{key}: {filename} is nothing that scripts/fetch.py downloads; give its path")
        return (CachedFile(names[filename]),)

    def _read(self, device: str) -> dict[str, Tensor]:
        return read_state(self.file, key=self._key, device=device)

    @functools.cached_property
    @torch.inference_mode(False)
    def network(self) -> nn.Module:
        """The frozen head, loaded at first use."""
        state = self._read("cpu")
        network, _ = _build(state, f"{self._key}={self.file}")
        network.load_state_dict(state, assign=True)
        return network.float().eval().requires_grad_(False).to(self.device)

    def __call__(self, embedding: Tensor) -> Tensor:
        """Unit-length CLIP image embeddings (b d) -> scores (b), about 1 to 10. Differentiable."""
        return self.network(embedding.to(self.device)).reshape(-1)


class LabHead:
    """The lab's aesthetic head, over the embeddings of "lab-guide". Raises UsageError where its weights are missing."""

    name = "lab-aesthetic"

    def __init__(self, *, device: torch.device | str = "cpu", key: str = "head") -> None:
        from guidedgen.lab.networks import CLIP_DIM

        self.device = torch.device(device)
        self.dim: int = CLIP_DIM
        self.files = (locate_lab("aesthetic.safetensors", key=f"{key}={self.name}", part="aesthetic"),)

    @functools.cached_property
    @torch.inference_mode(False)
    def network(self) -> nn.Module:
        """The frozen head, loaded at first use."""
        from guidedgen.lab.networks import load_aesthetic

        return load_aesthetic().to(self.device)

    def __call__(self, embedding: Tensor) -> Tensor:
        """Unit-length embeddings (b d) -> scores (b), about 1 to 10. Differentiable."""
        return self.network(embedding.to(self.device))


def _build(state: dict[str, Tensor], source: str) -> tuple[nn.Module, int]:
    """An empty head for these tensors, and the width of its input. Raises UsageError where none has their names and shapes."""
    from guidedgen.lab.networks import AestheticHead

    first = state.get("weight", state.get("layers.0.weight"))
    dim = first.shape[-1] if first is not None and first.ndim == 2 else 0
    with torch.device("meta"):  # no numbers: they come with the state
        candidates = (nn.Linear(dim, 1), AestheticHead(dim)) if dim else ()
    shapes = {name: tensor.shape for name, tensor in state.items()}
    for network in candidates:
        if shapes == {name: tensor.shape for name, tensor in network.state_dict().items()}:
            return network, dim
    names = ", ".join(sorted({name.rpartition(".")[0] or name for name in state})[:6])
    raise UsageError(f"{source}: holds {names or 'nothing'}, not a linear head of LAION's; {FILE} or an sa_0_4 file is needed")
