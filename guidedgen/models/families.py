"""Which family a folder of diffusers is of, by its model_index.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.models.dit import Dit
from guidedgen.models.flux import Flux
from guidedgen.models.folder import INDEX, bundled
from guidedgen.models.latent import LatentModel
from guidedgen.models.pixart import PixArt
from guidedgen.models.pixel import Pixel
from guidedgen.models.sana import Sana
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_3 import StableDiffusion3
from guidedgen.models.stable_diffusion_xl import StableDiffusionXl
from guidedgen.process.classifier_free import Guidance
from guidedgen.zoo.needed import Needed

FAMILIES: Sequence[type[LatentModel]] = (StableDiffusion, StableDiffusionXl, StableDiffusion3, Flux, PixArt, Sana, Dit, Pixel)


def any_model(
    *,
    path: str,
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    guidance_scale: float | None = None,
    embedded_guidance: float | None = None,
    negative_prompt: str = "",
    truncate_prompts: bool = False,
    batch_size: int = 8,
    learned: str | Sequence[Any] | Mapping[str, Any] | None = None,
    size: int | Sequence[int] | None = None,
    offload: bool = False,
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    quantization: str | None = None,
    weaker: str | None = None,
    guidance: Guidance | None = None,
    clip_sample: bool | None = None,
) -> LatentModel:
    """The model in a folder or a repository of the hub, of whichever supported family it is. A `guidance_scale` of None is that of
    the family's pipeline; `embedded_guidance` is for families with networks that are given it, `clip_sample` for models of pixels.
    Raises BadValue and UsageError as the families do.
    """
    family, index = _family(path)
    options, known = family.options_of(index), {field.name for field in dataclasses.fields(family)}
    for name, value, rule in (
        ("embedded_guidance", embedded_guidance, "this model's network is not given its guidance; use null"),
        ("clip_sample", clip_sample, "is for models of pixels, and this model has latents; use null"),
    ):
        if value is not None and name not in known:
            raise BadValue(name, value, rule)
        if value is not None:
            options[name] = value
    return family(
        path=path, name=name, device=device, dtype=dtype, negative_prompt=negative_prompt, truncate_prompts=truncate_prompts,
        batch_size=batch_size, learned=learned, size=size, offload=offload, vae_tiling=vae_tiling, vae_slicing=vae_slicing,
        quantization=quantization, weaker=weaker, guidance=guidance,
        guidance_scale=family.guidance_of(path) if guidance_scale is None else guidance_scale, **options,
    )  # fmt: skip


def reads(*, path: str, weaker: str | None = None, **_: object) -> tuple[Needed, ...]:
    """What is read of such a folder or repository."""
    family, index = _family(path)
    return family.reads(path=path, weaker=weaker, **family.options_of(index))


any_model.reads = reads  # type: ignore[attr-defined]  # what scripts/fetch.py asks of every target


def _family(path: str) -> tuple[type[LatentModel], Mapping[str, Any]]:
    """The family, and what model_index.json says."""
    if bundled(path):
        return StableDiffusion, {}
    index = _index(path)
    name = index.get("_class_name")
    for family in FAMILIES:
        if name in family.FOLDER.PIPELINES:
            return family, index
    supported = ", ".join(family.FOLDER.PIPELINES[0] for family in FAMILIES)
    raise UsageError(f"model.path={path}: a {name} (model_index.json) is not supported; supported: {supported}")


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
