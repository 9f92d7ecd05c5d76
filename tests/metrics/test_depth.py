"""The 3-D spatial score of T2I-CompBench++ and the depth it needs: rules, oddities, and transformers' own DPT."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detections import Found

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.metrics.depth import Spatial3d, holds, score
from guidedgen.metrics.noun_phrases import Rules
from guidedgen.zoo.depth import HubDepth

SIDE = 479  # px, of a square picture
A, B = (100.0, 200.0, 200.0, 300.0), (150.0, 200.0, 250.0, 300.0)  # intersection over union 1 / 3


class Slope:
    """A picture of depth whose nearness grows downwards, as the benchmark reads it: to the right of the picture."""

    name = "slope"

    def __call__(self, images):
        b, _, height, width = images.shape
        return torch.linspace(0, 1, height)[None, :, None].expand(b, height, width)


def rows(side=SIDE):
    return torch.arange(side).float()[:, None].expand(side, side)


def test_a_relation_holds_as_far_as_the_boxes_overlap():
    near = rows()  # larger for larger x, because the axes are swapped: B is nearer than A
    assert holds(-1, A, B, near) == pytest.approx(2 / 3)
    assert holds(1, B, A, near) == pytest.approx(2 / 3)
    assert holds(1, A, B, near) == holds(-1, B, A, near) == 0
    assert holds(-1, A, (101, 200, 201, 300), near) == 1
    assert holds(-1, A, (300, 200, 400, 300), near) == 0  # they do not overlap
    assert holds(1, A, B, torch.zeros(SIDE, SIDE)) == holds(-1, A, B, torch.zeros(SIDE, SIDE)) == 0
    assert holds(-1, A, (150, 200, 150.5, 300), near) == 0  # no pixel


def test_the_axes_of_the_depth_are_swapped():
    assert holds(-1, A, B, rows().mT) == 0  # the boxes are equally high


def test_score_by_its_parts():
    found = [("a cat", 0.9, A), ("dog", 0.8, B)]
    assert score(-1, ["cat", "dog"], found, rows()) == pytest.approx(0.25 * 1.7 + 1 / 3)
    assert score(1, ["cat", "dog"], found, rows()) == pytest.approx(0.25 * 1.7)
    assert score(1, ["cat", "dog"], found[:1], rows()) == pytest.approx(0.225)
    assert score(1, ["cat", "bird"], [*found, ("cat", 0.1, B)], rows()) == pytest.approx(0.225)  # the first of them
    assert score(1, ["bird", "dog"], found, rows()) == pytest.approx(0.2)
    assert score(1, ["bird", "tree"], found, rows()) == score(1, ["cat", "dog"], [], rows()) == 0
    # Labels are read until both have been met, and the last of each counts.
    again = [("cat", 0.9, A), ("cat", 0.5, B), ("dog", 0.8, A), ("dog", 0.1, B)]
    assert score(1, ["cat", "dog"], again, rows()) == pytest.approx(0.25 * 1.3 + 1 / 3)


def test_it_reads_pictures():
    """Boxes are shares of the picture's sides: those above, on a picture of 96 px."""
    found = [(label, 1.0, tuple(edge / SIDE for edge in box)) for label, box in (("person", A), ("dog", B))]
    prompts = ["a boy behind a dog", "a man in front of a dog", "a dog hidden by a girl", "a dog near a man"]
    metric = Spatial3d(detector=Found(*found), depth=Slope(), parser=Rules())
    values = metric(torch.full((4, 3, 96, 96), 0.5), [Task(id=prompt, prompt=prompt) for prompt in prompts])
    assert values[:3].tolist() == pytest.approx([0.5 + 1 / 3, 0.5, 0.5], abs=1e-3) and math.isnan(values[3])
    assert metric.networks == ("found", "slope") and metric.described.startswith(
        "detections by found; depth by slope; nouns by rules"
    )
    unknown = Spatial3d(detector=Found(None), depth=Slope(), parser=Rules())
    assert unknown(torch.zeros(1, 3, 8, 8), [Task(id="0", prompt=prompts[0])]).isnan().all()


def test_every_prompt_of_the_benchmark_is_read(released):
    metric = Spatial3d(detector=Found(), depth=Slope(), parser=Rules())
    for prompt in released("t2i_compbench", "3d_spatial_val.txt").read_text().splitlines():
        sign, things = metric._read(prompt)
        assert sign == (1 if "in front of" in prompt else -1) and len(things) == 2, prompt


@pytest.fixture(scope="module")
def dpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import DPTConfig, DPTForDepthEstimation

    folder = tmp_path_factory.mktemp("dpt")
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DPTForDepthEstimation(config).save_pretrained(folder)
    return folder


def test_depth_is_transformers_own(dpt: Path):
    from transformers import DPTForDepthEstimation

    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    near = HubDepth(name="tiny", path=dpt, size=32)(pictures)
    shown = F.interpolate(pictures, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        plain = DPTForDepthEstimation.from_pretrained(dpt).eval()(pixel_values=2 * shown - 1).predicted_depth
    for found, depth in zip(near, plain, strict=True):
        torch.testing.assert_close(found, (depth - depth.min()) / (depth.max() - depth.min()), rtol=0, atol=1e-5)
    assert HubDepth(name="tiny", path=dpt, size=32)(torch.rand(1, 3, 48, 64)).shape == (1, 48, 64)


def test_what_is_no_depth_estimator_is_refused(dpt: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors").write_bytes((dpt / "model.safetensors").read_bytes())
    with pytest.raises(UsageError, match="depth"):
        HubDepth(name="tiny", path=tmp_path)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="depth.path"):
        HubDepth(name="tiny", path=tmp_path / "nowhere")
