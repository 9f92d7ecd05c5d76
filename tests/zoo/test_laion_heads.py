"""LAION's aesthetic heads, against the golden values of tests/golden/metrics.json (aesthetic_mlp, aesthetic_real_heads)."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.aesthetic import FILE, SHA256, LaionHead


def v2_state(dim: int = 768) -> dict[str, torch.Tensor]:
    """1/fan_in everywhere, biases 0.1."""
    widths = [dim, 1024, 128, 64, 16, 1]
    state = {}
    for index, fan_in, out in zip((0, 2, 4, 6, 7), widths[:-1], widths[1:], strict=True):
        state |= {f"layers.{index}.weight": torch.full((out, fan_in), 1 / fan_in), f"layers.{index}.bias": torch.full((out,), 0.1)}
    return state


def affine(head: LaionHead) -> tuple[torch.Tensor, float]:
    """The weight and the bias of an affine map."""
    zero = torch.zeros(1, head.dim, requires_grad=True)
    bias = head(zero)
    [weight] = torch.autograd.grad(bias.sum(), zero)
    return weight[0], bias.item()


@pytest.mark.parametrize("version", ["v2", "v1_vit_l_14"])
def test_released_heads(released_head: Callable[[str], Path], golden_metrics: dict, version: str):
    expected = golden_metrics["aesthetic_real_heads"][version]
    folder = released_head(expected["file"]).parent
    head = LaionHead(path=folder, filename=expected["file"], sha256=expected["sha256"])
    weight, bias = affine(head)
    assert weight.norm().item() == pytest.approx(expected["affine_norm"], rel=1e-5)
    assert bias == pytest.approx(expected["affine_bias"], rel=1e-5)
    ends = head(torch.stack([-weight, weight]) / weight.norm())
    assert ends.tolist() == pytest.approx(expected["range_over_unit_vectors"], rel=1e-5)
    assert head(torch.full((1, 768), 768**-0.5)).item() == pytest.approx(expected["ones_over_sqrt768"], rel=1e-5)


def test_default_file_is_the_released_v2(released_head: Callable[[str], Path], golden_metrics: dict):
    assert golden_metrics["aesthetic_real_heads"]["v2"]["sha256"] == SHA256
    assert LaionHead(path=released_head(FILE).parent, sha256=SHA256).file.name == FILE


def test_v1_of_the_small_clip(released_head: Callable[[str], Path]):
    head = LaionHead(path=released_head("sa_0_4_vit_b_32_linear.pth"))
    assert head.dim == 512
    state = torch.load(head.file, map_location="cpu", weights_only=True)  # saved on a GPU
    x = torch.nn.functional.normalize(torch.randn(3, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    torch.testing.assert_close(head(x), x @ state["weight"][0] + state["bias"])


def test_constant_weights(tmp_path: Path):
    """1/sqrt(768) passes five averaging layers, each of which adds 0.1."""
    torch.save(v2_state(), tmp_path / "head.pth")
    head = LaionHead(path=tmp_path / "head.pth")
    assert head(torch.full((2, 768), 768**-0.5)).tolist() == pytest.approx([1 / math.sqrt(768) + 0.5] * 2, rel=1e-6)
    assert not any(p.requires_grad for p in head.network.parameters())


def test_another_width_and_safetensors(tmp_path: Path):
    from safetensors.torch import save_file

    save_file(v2_state(24), tmp_path / "head.safetensors")
    head = LaionHead(path=tmp_path, filename="head.safetensors")
    assert head.dim == 24
    assert head(torch.full((1, 24), 24**-0.5)).item() == pytest.approx(24**-0.5 + 0.5, rel=1e-6)


def relu_state() -> dict[str, torch.Tensor]:
    """As in ava+logos-l14-reluMSE.pth: layers 0 3 6 9 11."""
    renamed = dict(zip("02467", ("0", "3", "6", "9", "11"), strict=True))
    return {f"layers.{renamed[name.split('.')[1]]}.{name.split('.')[2]}": value for name, value in v2_state().items()}


@pytest.mark.parametrize(
    "state", [relu_state(), {}, v2_state() | {"layers.0.weight": torch.zeros(7, 768)}], ids=["relu", "none", "shape"]
)
def test_another_architecture_is_refused_at_once(tmp_path: Path, state: dict[str, torch.Tensor]):
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(UsageError, match="not a linear head of LAION's"):
        LaionHead(path=tmp_path / "head.pth")


def test_wrong_sha256_is_refused_at_once(tmp_path: Path):
    torch.save(v2_state(), tmp_path / FILE)
    with pytest.raises(UsageError, match=f"has SHA-256 .*, expected {SHA256}"):
        LaionHead(path=tmp_path, sha256=SHA256)
