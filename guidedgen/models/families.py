"""Which family a folder of diffusers is of, by its model_index.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.models.folder import INDEX
from guidedgen.models.latent import LatentModel
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_3 import StableDiffusion3
from guidedgen.models.stable_diffusion_3_folder import StableDiffusion3Folder
from guidedgen.models.stable_diffusion_folder import StableDiffusionFolder
from guidedgen.zoo.needed import Needed

_GUIDANCE = {StableDiffusion: 7.5, StableDiffusion3: 7.0}  # what their pipelines take


def any_model(
    *,
    path: str,
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    truncate_prompts: bool = False,
    batch_size: int = 8,
    learned: str | Sequence[Any] | Mapping[str, Any] | None = None,
) -> LatentModel:
    """The model in a folder or a repository of the hub, of whichever supported family it is. A `guidance_scale` of None is that of
    the family's pipeline. Raises BadValue and UsageError as the families do.
    """
    family = _family(path)
    scale = _GUIDANCE[family] if guidance_scale is None else guidance_scale
    options: dict[str, Any] = {"t5": _has_t5(path)} if family is StableDiffusion3 else {}
    return family(
        path=path, name=name, device=device, dtype=dtype, guidance_scale=scale, negative_prompt=negative_prompt,
        truncate_prompts=truncate_prompts, batch_size=batch_size, learned=learned, **options,
    )  # fmt: skip


def _reads(*, path: str, **_: object) -> tuple[Needed, ...]:
    family = _family(path)
    return family.reads(path=path, **({"t5": _has_t5(path)} if family is StableDiffusion3 else {}))


any_model.reads = _reads  # type: ignore[attr-defined]  # what scripts/fetch.py asks of every target


def reads(files: Iterable[str], path: str) -> tuple[Needed, ...]:
    """What is read of a folder or repository with these files in it."""
    family = StableDiffusion3 if any(file.split("/")[0] == "transformer" for file in files) else StableDiffusion
    return family.reads(path=path)


def _index(path: str) -> Mapping[str, Any]:
    if not isinstance(path, str) or not path:
        raise BadValue("path", path, "must be a folder or a hub name (org/name)")
    place = Needed(name=path, key="model.path", files=(INDEX,), required=(INDEX,), one_of=(), weights=())
    try:
        found = json.loads((place.locate() / INDEX).read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"model.path={path}: cannot read {INDEX} ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"model.path={path}: {INDEX} is no JSON object")
    return found


def _family(path: str) -> type[StableDiffusion] | type[StableDiffusion3]:
    if path == "lab":
        return StableDiffusion
    name = _index(path).get("_class_name")
    if name in StableDiffusion3Folder.PIPELINES:
        return StableDiffusion3
    if name in StableDiffusionFolder.PIPELINES:
        return StableDiffusion
    supported = ", ".join([StableDiffusionFolder.PIPELINES[0], StableDiffusion3Folder.PIPELINES[0]])
    raise UsageError(f"model.path={path}: a {name} (model_index.json) is not supported; supported: {supported}")


def _has_t5(path: str) -> bool:
    entry = _index(path).get("text_encoder_3")
    return isinstance(entry, list) and entry[-1] is not None
