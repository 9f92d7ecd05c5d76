"""The lab's networks behind the zoo's protocols, with random weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics.errors import UsageError
from guidedgen.lab import networks
from guidedgen.zoo.aesthetic import LabHead
from guidedgen.zoo.clip import LabClip
from guidedgen.zoo.inception import LabInception


def noise(side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("which", ["guide", "preference", "judge"])
def test_clip(random_lab: Path, which: str):
    clip, network = LabClip(name=f"lab-{which}"), networks.load_clip(which)
    texts = ["a red circle", "a blue square and a green triangle"]
    tokens = networks.tokenize(networks.load_tokenizer(), texts)
    torch.testing.assert_close(clip.encode_image(noise()), F.normalize(network.encode_image(2 * noise() - 1), dim=-1))
    torch.testing.assert_close(clip.encode_text(texts), F.normalize(network.encode_text(tokens), dim=-1))
    assert clip.encode_text(texts).shape == (2, clip.dim)
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)  # open_clip's at the start of training
    assert clip.network is LabClip(name=f"lab-{which}").network
    x = noise(96).requires_grad_()
    [gradient] = torch.autograd.grad(clip.encode_image(x)[:, 0].sum(), x)
    assert gradient.abs().amax((1, 2, 3)).min() > 0


def test_inception_and_head(random_lab: Path):
    features = LabInception()(noise())
    assert features.shape == (2, 120)
    torch.testing.assert_close(features, networks.load_classifier().features(noise()))
    head, embedding = LabHead(), F.normalize(torch.randn(3, networks.CLIP_DIM), dim=-1)
    assert torch.equal(head(embedding), networks.load_aesthetic()(embedding)) and head.dim == networks.CLIP_DIM


def test_missing_weights_are_noticed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(networks, "WEIGHTS", tmp_path)
    builders = {
        "clip-judge": lambda: LabClip(name="lab-judge"),
        "classifier": LabInception,
        "aesthetic": LabHead,
    }
    for part, build in builders.items():
        with pytest.raises(UsageError, match=f"make it with: python scripts/train_lab.py --parts {part}$") as caught:
            build()
        assert "\n" not in str(caught.value)


def test_unknown_name():
    with pytest.raises(UsageError, match="clip.name=lab-critic: no such CLIP; choices: lab-guide, lab-preference, lab-judge"):
        LabClip(name="lab-critic")
