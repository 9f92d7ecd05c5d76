"""What model.path may name of this repository, family by family."""

from collections.abc import Callable

import pytest

from guidedgen.basics.errors import BadValue
from guidedgen.models.families import FAMILIES
from guidedgen.models.latent import LatentModel
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.models.stable_diffusion_3 import StableDiffusion3

THERE = {StableDiffusion: ("lab", "lab:turbo"), StableDiffusion3: ("lab",)}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
@pytest.mark.parametrize("path", ["lab", "lab:turbo", "lab:none"])
def test_what_is_not_bundled_is_refused(family: type[LatentModel], path: str, tried: Callable[..., None]) -> None:
    options = {"t5": False} if family is StableDiffusion3 else {}
    if path in THERE.get(family, ()):
        assert family(path=path, name="tiny", guidance_scale=1.0, **options).latent_shape == (4, 16, 16)
        tried("used")
        return
    with pytest.raises(BadValue, match="no such .*Pipeline is bundled") as caught:
        _ = family(path=path, name="tiny", guidance_scale=1.0, **options).opened
    assert [there in str(caught.value) for there in ("path=lab is there", "path=lab or path=lab:turbo is there")] == [
        family is StableDiffusion3, family is StableDiffusion,
    ]  # fmt: skip
    tried("refused")
