"""Inception features are torch-fidelity's, from weights that were read without unpickling objects."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.inception import FILE, Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state dict of the right names and shapes, under the released file's name."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path_factory.mktemp("inception") / FILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: None)
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = module.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    yield path
    path.unlink()  # 96 MB that need not outlive the test


def test_features(weights: Path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    inception = Inception(path=weights)
    x = torch.rand(2, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    reference = FeatureExtractorInceptionV3("reference", ["2048"], feature_extractor_weights_path=str(weights))
    [expected] = reference((255 * x).round().to(torch.uint8))
    assert torch.equal(inception(x), expected) and expected.shape == (2, 2048) and expected.std() > 0
    assert not inception.network.training and not any(p.requires_grad for p in inception.network.parameters())


def test_found_in_a_folder_and_in_torch_hubs_cache(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert Inception(path=weights.parent).file == weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "checkpoints").symlink_to(weights.parent)
    assert Inception().file.samefile(weights)


def test_other_weights_are_refused(tmp_path: Path):
    pytest.importorskip("torch_fidelity")
    torch.save({"weight": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(UsageError, match="not the weights of the 2015 Inception"):
        Inception(path=tmp_path)(torch.zeros(1, 3, 32, 32))


def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError, match=f"features.path: .*{FILE} is missing; fetch it with: python scripts/fetch.py inception"):
        Inception()


def test_missing_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install torch-fidelity"):
        Inception(path=tmp_path)
