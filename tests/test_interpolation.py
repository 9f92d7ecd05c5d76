"""Hydra's ${...} is filled in once. What is left of it is text, however often a run's config is resolved, stored and read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import config, experiment, identity, preparation, rejudging
from guidedgen.runs.store import RunFolder
from guidedgen.runs.tracker import Tracker
from guidedgen.studies import status, sweeps

Tried = Callable[..., None]
ESCAPED, TEXT = r"a \${seed} circle", "a ${seed} circle"
QUICK = ["scheduler.num_steps=2", "tracker=none", "device=cpu", "metrics=none", "seed=3"]

needs_lab = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")

pieces = st.lists(st.sampled_from([*"\\${}ab .:'\"\n猫", "${", "\\${", "${seed}", "${oc.env:HOME}"]), max_size=8).map("".join)
values = st.recursive(
    pieces | st.integers() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        return compose("config", overrides=[*QUICK, *overrides])


@given(values)
@settings(max_examples=100, deadline=None)
def test_a_text_survives_any_number_of_readings(value: Any) -> None:
    """Random texts of the characters that mean something to OmegaConf, at any depth, and referred to from elsewhere."""
    cfg = OmegaConf.create({"seed": 0, "value": config.escaped(value), "other": "${value}"})
    for _ in range(3):
        cfg = config.resolved(OmegaConf.create(OmegaConf.to_yaml(config.resolved(cfg))))
        assert OmegaConf.to_container(cfg, resolve=True) == {"seed": 0, "value": value, "other": value}


def test_what_is_resolved_keeps_its_values_and_its_guard() -> None:
    cfg = composed()
    found = config.resolved(cfg)
    assert found == cfg and OmegaConf.to_container(found) == OmegaConf.to_container(cfg, resolve=True)
    assert found.model.device == "cpu" and OmegaConf.is_struct(found)


def test_objects_get_their_texts_as_they_are() -> None:
    """Options of any depth, as plain values: of a list, of a mapping, of a node inside a node."""
    cfg = OmegaConf.create({
        "seed": 0,
        "dataset": {
            "_target_": "guidedgen.datasets.image_to_image.ImageToImage",
            "prompts": {"_target_": "guidedgen.datasets.templated.Templated", "template": r"\${seed} {prompt} ${seed} \\\${x}",
                        "prompts": {"_target_": "guidedgen.datasets.prompt.OnePrompt", "prompt": ESCAPED}},
            "images": [r"\${seed}.png", "${seed}.png"],
        },
    })  # fmt: skip
    for tree in (cfg, config.resolved(cfg), config.resolved(config.resolved(cfg))):
        built = config.build(tree.dataset, "dataset")
        assert built.images == ["${seed}.png", "0.png"] and type(built.images) is list
        (task,) = built.prompts.tasks()
        assert task.prompt == rf"${{seed}} {TEXT} 0 \${{x}}"


@pytest.mark.parametrize(("name", "value"), [("_partial_", True), ("_recursive_", False)])
def test_a_node_is_built_whole(name: str, value: bool, tried: Tried) -> None:
    node = {"_target_": "guidedgen.datasets.prompt.OnePrompt", "prompt": "a", name: value}
    with pytest.raises(UsageError, match=rf"^dataset\.{name}={value}: expected {not value}"):
        config.build(OmegaConf.create(node), "dataset")
    tried("refused")


def test_a_wrong_value_is_reported_by_its_whole_key() -> None:
    inner = {"_target_": "guidedgen.datasets.prompt.OnePrompt", "prompt": " "}
    node = OmegaConf.create({"_target_": "guidedgen.datasets.templated.Templated", "prompts": inner})
    with pytest.raises(UsageError, match=r"^dataset\.prompts\.prompt= : is empty"):
        config.build(node, "dataset")


@needs_lab
def test_a_prompt_is_filled_in_once(tmp_path: Path, tried: Tried) -> None:
    for given_, prompt in [
        (r"a \${seed} circle", TEXT), ("a ${seed} circle", "a 3 circle"), (r"a \\${seed} circle", r"a \3 circle"),
        (r"a \\\${seed} circle", r"a \${seed} circle"), (r"\${oc.env:HOME}", "${oc.env:HOME}"), (r"\${ and \${x", "${ and ${x"),
    ]:  # fmt: skip
        cfg = composed(f"outputs={tmp_path}", "method=base", "dataset=prompt")
        cfg.dataset.prompt = given_
        assert [sample.task.prompt for sample in preparation.prepare(cfg).samples] == [prompt]
        tried("used")
    with pytest.raises(UsageError, match=r"^\$\{b\}: no such key; for the text itself write \\\$\{b\}, or .*dataset=text"):
        preparation.prepare(composed(f"outputs={tmp_path}", "dataset=prompt", 'dataset.prompt="a ${b}"'))
    tried("refused")


class Seen:
    """A tracker that keeps what is logged."""

    def log(self, **logged: Any) -> None:
        self.logged = logged


@needs_lab
def test_a_run_its_base_and_its_judging_have_the_same_text(
    tmp_path: Path, tried: Tried, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command goes on, from the config that it has stored; so does the unguided run, a mirror, status and evaluate.py."""
    overrides = [
        f"outputs={tmp_path}", "method=best_of_n", "method.num_particles=2", "reward=compressibility", "dataset=prompt",
        f'dataset.prompt="{ESCAPED}"', r'model.negative_prompt="\${device} blue"',
    ]  # fmt: skip
    job = preparation.prepare(composed(*overrides))
    seen: Tracker = Seen()
    object.__setattr__(job, "tracker", seen)
    experiment.run(job)
    assert job.base is not None
    assert job.model.negative_prompt == "${device} blue"
    logged: Mapping[str, Any] = seen.logged  # type: ignore[attr-defined]
    assert (logged["config"]["dataset"]["prompt"], logged["config"]["model"]["negative_prompt"]) == (TEXT, "${device} blue")
    for folder in (job.folder, job.base.folder):
        assert {record.prompt for record in folder.records().values()} == {TEXT}
        stored = config.read_whole(folder.path / "config.yaml")
        assert stored.dataset.prompt == TEXT
        again = preparation.prepare(stored)
        assert (again.run_id, again.model.negative_prompt) == (folder.path.name.rpartition("-")[2], "${device} blue")

    again = preparation.prepare(composed(*overrides))
    assert again.folder.path == job.folder.path == identity.folder_of_run(composed(*overrides))
    capsys.readouterr()
    experiment.run(again)
    assert "already done" in capsys.readouterr().out
    before = (job.folder.path / "metrics.json").read_text()
    rejudging.judge_again(job.folder.path)
    assert (job.folder.path / "metrics.json").read_text() == before
    (run,) = sweeps.runs([*QUICK, *overrides])
    assert status.of_sweep([run])[0].state == "done"
    assert {path.name for path in (tmp_path / "default").iterdir()} == {job.name, job.base.name}
    tried("used", 3)


@needs_lab
def test_the_runs_of_a_sweep_have_it_too(tmp_path: Path) -> None:
    sweep = sweeps.runs(
        [*QUICK, f"outputs={tmp_path}", "method=base", "dataset=prompt", rf'dataset.prompt="{ESCAPED}","a \${{x}}"']
    )
    single = [identity.folder_of_run(composed(f"outputs={tmp_path}", "method=base", "dataset=prompt", f'dataset.prompt="{prompt}"'))
              for prompt in (ESCAPED, r"a \${x}")]  # fmt: skip
    assert [run.folder for run in sweep] == single


@needs_lab
def test_what_a_file_holds_is_never_filled_in(tmp_path: Path, tried: Tried) -> None:
    lines = ["a ${seed} circle", r"a \${seed} circle", "${oc.env:HOME}", "${"]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    cfg = composed(f"outputs={tmp_path}", "method=base", "dataset=text", f"dataset.path={tmp_path}/x.txt")
    experiment.run(job := preparation.prepare(cfg))
    assert [sample.task.prompt for sample in job.samples] == lines
    assert {record.prompt for record in RunFolder(job.folder.path).records().values()} == set(lines)
    tried("used", len(lines))


@needs_lab
def test_templates_of_rewards_and_of_learning_are_texts_too(tmp_path: Path, tried: Tried) -> None:
    job = preparation.prepare(
        composed(f"outputs={tmp_path}", "method=best_of_n", "reward=blip2", r'reward.template="\${prompt}, \$ {prompt}"')
    )
    assert job.reward.template == r"${prompt}, \$ {prompt}"  # type: ignore[union-attr]
    cfg = composed(f"outputs={tmp_path}", "method=adjoint_tuning", "scheduler=ddim", r'method.target="\${seed} {prompt}"')
    originals = preparation.prepare(cfg).originals
    assert originals is not None and all(sample.task.prompt.startswith("${seed} ") for sample in originals.samples)
    tried("used", 2)


@needs_lab
@pytest.mark.parametrize("text", ["\\a", "a\x1b[31m", "\xa0", "\u202e"])
def test_a_negative_prompt_is_checked_as_prompts_are(text: str, tmp_path: Path, tried: Tried) -> None:
    cfg = composed(f"outputs={tmp_path}", "method=base")
    cfg.model.negative_prompt = text
    if text == "\\a":
        assert preparation.prepare(cfg).model.negative_prompt == text
        tried("used")
        return
    with pytest.raises(UsageError, match="^model.negative_prompt=.*(holds|shows nothing)"):
        preparation.prepare(cfg)
    tried("refused")
