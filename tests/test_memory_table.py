"""What scripts/memory.py counts on tensors without content is what real ones hold."""

import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.models.folder import Folder

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "sd15": {
        "network": {
            "sample_size": 8, "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 4, "layers_per_block": 1,
        },
        "tokens": (16, 32),
    },
    "sd3_medium": {
        "network": {
            "sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32,
            "joint_attention_dim": 32, "pooled_projection_dim": 16, "pos_embed_max_size": 8,
        },
        "tokens": (16, 32), "pooled": 16,
    },
}  # fmt: skip
VAE = {"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Folder, "open", Folder.__dict__["open"])  # put back afterwards
    return runpy.run_path(str(ROOT / "scripts" / "memory.py"))


@pytest.mark.parametrize("name", TINY)
def test_the_count_is_that_of_real_tensors(script: dict[str, Any], name: str) -> None:
    """To the byte, but for temporaries inside of kernels."""
    full, own = script["ARCHITECTURES"][name], TINY[name]
    (network, given), (vae, options) = full.network, full.vae
    tiny = dataclasses.replace(
        full, **{**own, "network": (network, {**given, **own["network"]}), "vae": (vae, {**options, **VAE})},
    )  # fmt: skip
    script["ARCHITECTURES"][name] = tiny
    faked, real = (script["count"](name, None, 1, fake=fake) for fake in (True, False))
    assert faked.keys() == real.keys() == set(script["COLUMNS"])
    for column, value in real.items():
        assert faked[column] == pytest.approx(value, rel=0.01), column
    weights = real["network"] + real["autoencoder"]
    assert weights < real["sampling"] < min(real["DOODL"], real["CoDeX"], real["CoDeX, decoder"])
    assert real["CoDeX, decoder"] < real["CoDeX"] and real["with offload"] < real["sampling"]


def test_weights_are_counted_in_full(script: dict[str, Any]) -> None:
    """860 M parameters of Stable Diffusion 1.5's UNet and 84 M of its autoencoder, in half precision."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    found = script["ARCHITECTURES"]["sd15"]
    import diffusers

    with FakeTensorMode():
        counts = [
            sum(p.numel() for p in getattr(diffusers, kind)(**given).parameters()) for kind, given in (found.network, found.vae)
        ]
    assert counts == [859_520_964, 83_653_863]  # of runwayml/stable-diffusion-v1-5


def test_a_model_that_is_not_listed_is_refused(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["sd16"], ["sd15", "--batch-size", "0"]):
        monkeypatch.setattr(sys, "argv", ["memory.py", *arguments])
        with pytest.raises(UsageError, match="use sd15|from 1 to 10000"):
            script["main"]()
