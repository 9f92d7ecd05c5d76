"""CLIP score conventions on a CLIP whose cosines are known."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.lab.networks import WEIGHTS
from guidedgen.metrics.clip_score import CONVENTIONS, ClipScore, convention_of
from guidedgen.rewards import Reward
from guidedgen.runs import composition, config, experiment, preparation

COSINES = [0.31, -0.05, 0.27, 0.0, 0.18]
SETS = {"hessel": 2.5 * (0.31 + 0.27 + 0.18) / 5, "torchmetrics": 100 * (0.71 / 5), "t2i_compbench": 0.71 / 5}


@dataclasses.dataclass
class Known:
    """Text is the first axis; an image's cosine to it is its mean grey, mapped from [0, 1] to [-1, 1]."""

    name: str = "known"
    texts: list[str] = dataclasses.field(default_factory=list)
    graphs: list[bool] = dataclasses.field(default_factory=list)

    def encode_image(self, images):
        self.graphs.append(torch.is_grad_enabled())
        cosine = 2 * images.mean(dim=(1, 2, 3)) - 1
        return torch.stack([cosine, (1 - cosine**2).clamp(min=0).sqrt()], dim=1)

    def encode_text(self, texts):
        self.texts = list(texts)
        return torch.tensor([[1.0, 0.0]]).expand(len(texts), 2)


def pictures(cosines):
    return ((torch.tensor(cosines, dtype=torch.float64) + 1) / 2).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def tasks(count):
    return [Task(id=str(i), prompt=f"a cat {i}") for i in range(count)]


@pytest.mark.parametrize(
    ("convention", "each"),
    [
        ("hessel", [0.775, 0.0, 0.675, 0.0, 0.45]),
        ("torchmetrics", [31.0, -5.0, 27.0, 0.0, 18.0]),
        ("t2i_compbench", COSINES),
    ],
)
def test_conventions(convention, each):
    scorer = ClipScore(clip=Known(), convention=convention)
    values = scorer(pictures(COSINES), tasks(5))
    torch.testing.assert_close(values, torch.tensor(each), rtol=1e-5, atol=1e-5)
    assert scorer.aggregate(values) == pytest.approx(SETS[convention], rel=1e-6)


def test_aggregation_golden(golden_metrics):
    golden = golden_metrics["clip_score_aggregation"]
    cosines = torch.tensor(golden["cosines"], dtype=torch.float64)
    keys = {
        "hessel": "hessel_w2_5_clip_each",
        "torchmetrics": "torchmetrics_100_clip_of_mean",
        "t2i_compbench": "t2i_compbench_raw_mean",
    }
    assert keys.keys() == CONVENTIONS.keys()
    for name, key in keys.items():
        convention = convention_of(name)
        assert convention.aggregate(convention.per_image(cosines)) == pytest.approx(golden[key], rel=1e-12), name


def test_the_floor_of_a_negative_set():
    """Cosines -0.2 and 0.1: each is floored by hessel, the mean by torchmetrics, nothing by t2i_compbench."""
    cosines = torch.tensor([-0.2, 0.1], dtype=torch.float64)
    totals = {name: rule.aggregate(rule.per_image(cosines)) for name, rule in CONVENTIONS.items()}
    assert totals == pytest.approx({"hessel": 0.125, "torchmetrics": 0.0, "t2i_compbench": -0.05})


@pytest.mark.parametrize(("convention", "text"), [("hessel", "A photo depicts a cat 0"), ("torchmetrics", "a cat 0")])
def test_prompt_prefix(convention, text):
    clip = Known()
    ClipScore(clip=clip, convention=convention)(pictures([0.1]), tasks(1))
    assert clip.texts == [text]


def test_it_is_a_reward_without_gradients():
    clip = Known()
    scorer = ClipScore(clip=clip)
    assert isinstance(scorer, Reward)
    assert scorer.differentiable is False
    values = scorer(pictures([0.1, 0.2]).clone().requires_grad_(), tasks(2))
    assert not values.requires_grad
    assert clip.graphs == [False]


def test_it_says_what_it_depends_on():
    scorer = ClipScore(clip=Known(name="tiny"), convention="torchmetrics")
    assert (scorer.networks, scorer.described) == (("tiny",), "torchmetrics of tiny")


@pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
@pytest.mark.parametrize(("judge", "shared"), [("lab-guide", True), ("lab-judge", False)])
def test_it_is_marked_where_its_judge_guides(tmp_path, judge, shared):
    given = ["method=best_of_n", "method.num_particles=2", "reward=clip_text", "reference=none", f"zoo.judge.name={judge}"]
    quick = ["scheduler.num_steps=2", "dataset.limit=1", "tracker=none", "device=cpu", f"outputs={tmp_path}"]
    metrics = experiment.run(preparation.prepare(composition.composed([*given, *quick])))
    found = metrics["scores"]["clip_score"]
    assert (found["shares_guide"], found["described"]) == (shared, f"hessel of {judge}")


def test_the_hub_s_judge_and_the_guide_of_aesthetic_v1_have_one_name():
    zoo = OmegaConf.load(config.CONF / "zoo" / "hub.yaml")
    assert zoo.clip_b32.name == zoo.judge.name and zoo.clip_b32.path == zoo.judge.path


def test_unknown_convention_names_the_choices():
    with pytest.raises(
        UsageError, match=r"convention=hesel: choose one of hessel, torchmetrics, t2i_compbench \(did you mean hessel\?\)"
    ):
        ClipScore(clip=Known(), convention="hesel")


def test_wrong_input_is_refused():
    scorer = ClipScore(clip=Known())
    with pytest.raises(ValueError, match="2 images for 1 tasks"):
        scorer(pictures([0.1, 0.2]), tasks(1))
    with pytest.raises(ValueError, match=r"clip score: expected values in \[0, 1\]"):
        scorer(pictures([0.1]) - 1, tasks(1))
    with pytest.raises(ValueError, match="no images"):
        scorer.aggregate([])
