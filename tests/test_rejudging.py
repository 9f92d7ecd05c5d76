"""A stored run is judged again: by what is asked for and nothing else, and damage is reported in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, experiment, preparation, rejudging
from guidedgen.runs.job import Job
from guidedgen.runs.store import RunFolder
from guidedgen.studies import page, tables

OPTIONS = ["method=best_of_n", "method.num_particles=2", "reward=clip_text", "metrics=lab_compbench", "dataset.limit=3",
           "scheduler.num_steps=3", "device=cpu", "tracker=none", "study=made"]  # fmt: skip

pytestmark = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")


def prepared(outputs: Path) -> Job:
    return preparation.prepare(composition.composed([*OPTIONS, f"outputs={outputs}"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a guided run and its unguided one."""
    job = prepared(tmp_path_factory.mktemp("outputs"))
    experiment.run(job)
    return job.folder.path.parent


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The guided run of a copy of it, which may be damaged."""
    shutil.copytree(made, tmp_path / made.name)
    return next((tmp_path / made.name).glob("best_of_n-*"))


def base_of(run: Path) -> Path:
    return next(run.parent.glob("base-*"))


def refused(run: Path, *overrides: str) -> str:
    """The line by which it is, before any network is loaded."""
    with pytest.raises(UsageError) as caught:
        rejudging.judge_again(run, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# By what


def judged(run: Path, *overrides: str) -> set[str]:
    return set(rejudging.judge_again(run, overrides)["scores"])


@pytest.mark.parametrize(
    ("overrides", "scores"),
    [
        (["metrics=none"], set()),
        (["metrics=lab"], {"clip_score", "taste", "scene"}),
        (["metrics.scorers={}"], set()),
        (["metrics=lab", "~metrics.scorers.taste"], {"clip_score", "scene"}),
        (["metrics=none", "+metrics.scorers.mine={_target_: guidedgen.lab.judge.TasteOracle}"], {"mine"}),
    ],
)
def test_options_replace_what_is_stored(run: Path, overrides: list[str], scores: set[str]) -> None:
    assert judged(run, *overrides, "metrics.distances={}") == {"clip_text", *scores}


def test_options_in_a_folder_of_one_s_own(run: Path, tmp_path: Path) -> None:
    option_file = tmp_path / "mine" / "metrics" / "tasteful.yaml"
    option_file.parent.mkdir(parents=True)
    option_file.write_text("scorers: {tasteful: {_target_: guidedgen.lab.judge.TasteOracle}}\ndistances: {}\n")
    assert set(rejudging.judge_again(run, ["metrics=tasteful"], tmp_path / "mine")["scores"]) == {"clip_text", "tasteful"}
    with pytest.raises(UsageError, match="did you mean tasteful"):
        rejudging.judge_again(run, ["metrics=tastful"], tmp_path / "mine")
    with pytest.raises(UsageError, match="tasteful"):
        rejudging.judge_again(run, ["metrics=tasteful"])
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        rejudging.judge_again(run, ["batch_size=2"], tmp_path / "nowhere")


def test_an_option_is_what_a_run_with_it_has(run: Path) -> None:
    fresh = composition.composed([*OPTIONS, "metrics=lab", "reward=multi", "dtype=float32", "zoo_dtype=float32"])
    OmegaConf.resolve(fresh)
    cfg = rejudging.changed(config.read_whole(run / "config.yaml"), ["reward=multi", "metrics=lab"])
    OmegaConf.resolve(cfg)
    assert cfg.metrics == fresh.metrics and cfg.reward == fresh.reward


def test_another_reward_judges_and_the_guide_stays(run: Path) -> None:
    """What is marked shares a network with what has guided, clip_text, which the aesthetic reward does."""
    for reward, shares in {"aesthetic": True, "compressibility": False}.items():
        metrics = rejudging.judge_again(run, [f"reward={reward}", "metrics=none"])
        assert set(metrics["scores"]) == {reward} and metrics["reward"] == "clip_text"
        assert metrics["scores"][reward]["shares_guide"] == shares
    assert tables.study_table(run.parent) and page.write(run.parent)  # where there is no score of the reward


def test_the_zoo_is_that_of_the_options_chosen_with_it(run: Path) -> None:
    cfg = rejudging.changed(config.read_whole(run / "config.yaml"), ["metrics=lab", "zoo=hub"])
    assert cfg.metrics.scorers.clip_score.clip == OmegaConf.load(config.CONF / "zoo" / "hub.yaml").judge
    assert cfg.reward.clip._target_ == "guidedgen.zoo.clip.LabClip"  # which is as it was stored


def test_stored_networks_follow_the_device(run: Path) -> None:
    cfg = config.read_whole(run / "config.yaml")
    assert cfg.metrics.scorers.scene.device == cfg.zoo.judge.device == "cpu"
    cfg = rejudging.changed(cfg, ["device=cuda:1"])
    assert cfg.metrics.scorers.scene.device == cfg.reward.clip.device == cfg.model.device == "cuda:1"


def test_stored_networks_follow_their_dtype(run: Path) -> None:
    cfg = config.read_whole(run / "config.yaml")
    assert cfg.zoo_dtype == cfg.reward.clip.dtype == cfg.zoo.vqa.dtype == cfg.dtype == "float32"
    cfg = rejudging.changed(cfg, ["zoo_dtype=bfloat16"])
    assert cfg.reward.clip.dtype == cfg.zoo.vqa.dtype == "bfloat16" and cfg.model.dtype == "float32"


CHOICES = "metrics, reward, zoo, reference, reference_seed, batch_size, device, zoo_dtype, allow_targets"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("metrisc=lab", f"there is no key 'metrisc'; did you mean metrics?; when judging choose from {CHOICES}"),
        ("model=sd15", f"model has made the pictures, which stay; when judging choose from {CHOICES}"),
        ("dataset.limit=1", f"dataset has made the pictures, which stay; when judging choose from {CHOICES}"),
        ("metrics=lab_compbnch", "no such option; did you mean lab_compbench?; choose from hub, lab, lab_compbench, none, "),
        ("metrics=foo", "no such option; choose from hub, lab, "),
        ("metrics=null", "no such option; choose from hub, lab, "),
        ("metrics=lab,none", "several values; give one"),
        ("metrics@x=lab", "there is no key 'metrics@x'; did you mean metrics?"),
        ("~metrics", "metrics is always there; give it as metrics=..."),
        ("+reference=none", "reference is always there; give it as reference=..."),
        ("reference=null", "expected base, none or a folder"),
        ("reference=bsae", "no such folder; give base, none, or a folder of images"),
        ("zoo=hub", "stored metrics have their networks; choose some that take them from the zoo"),
        ("zoo.judge.name=lab-guide", "stored metrics have their networks; choose some that take them from the zoo"),
        ("metrics.scorers=1", "expected a mapping"),
        ("metrics.scorers=null", "expected a mapping"),
        ("metrics.distances=[1]", "expected a mapping"),
        ("metrics.scorers.taste=1", "expected a "),
        ("metrics.scorers.tatse=1", "there is no key 'metrics.scorers.tatse'; did you mean metrics.scorers.taste?; choose from clip_score, "),
        ("~metrics.scorers.tatse", "there is no key 'metrics.scorers.tatse'; did you mean metrics.scorers.taste?; choose from clip_score, "),
        ("~metrics.scorers.taste=1", "takes no value; give it as ~metrics.scorers.taste"),
        ("+metrics.scorers.taste={}", "there is one already; metrics.scorers.taste=... changes it"),
        ("+metrics.scorer={}", "there is no key 'metrics.scorer'; did you mean metrics.scorers?; choose from scorers, distances, per_class"),
        ("reference.folder=x", "there is no key 'reference.folder'"),
        ("allow_targets=3", "expected a list"),
        ("metrics.scorers.taste=[a, b", "cannot be read as key=value"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_refused_with_its_choices(made: Path, override: str, line: str) -> None:
    [run] = made.glob("best_of_n-*")
    before = (run / "metrics.json").read_bytes()
    assert refused(run, override).startswith(f"{override}: {line}")
    assert (run / "metrics.json").read_bytes() == before


def test_a_new_key_is_checked_where_it_is_built(made: Path) -> None:
    [run] = made.glob("best_of_n-*")
    assert refused(run, "+metrics.scorers.x=1").startswith("metrics.scorers.x=1: expected a ")
    assert refused(run, "reward.prefx=a") == (
        "reward.prefx: guidedgen.rewards.clip_text.ClipText has no such option; did you mean prefix?"
    )
    assert refused(run, "metrics=t2i_unidet").startswith("metrics.scorers.spatial_unidet.detector.path: missing")


# What is damaged


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: path.unlink(), "is missing; "),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "is not a readable image ("),
        (lambda path: path.write_bytes(path.read_bytes()[:-12]), "is not a readable image ("),
        (lambda path: path.write_bytes(path.read_bytes()[:200] + b"none" + path.read_bytes()[204:]), "is not a readable image ("),
        (lambda path: path.write_bytes(b""), "is not a readable image ("),
    ],
)
@pytest.mark.parametrize("which", ["own", "base"])
def test_a_damaged_image_is_named(run: Path, which: str, damage: Callable[[Path], object], line: str) -> None:
    folder = run if which == "own" else base_of(run)
    image = folder / list(RunFolder(folder).records().values())[1].image
    damage(image)
    message = refused(run, "metrics=none")
    assert message.startswith(f"{image}: {line}")
    assert message.endswith("its own command makes it anew" if which == "own" else "the same with method=base makes it anew")


def truncated(text: str) -> str:
    return text[: text.index("\ndataset:")]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda _: "{a: ", "not a run's config (while parsing"),
        (lambda _: "- 1\n- 2\n", "not a run's config (a list)"),
        (lambda _: "", "not a whole run's config: it has no run"),
        (lambda _: "hello", "not a run's config (no mapping); remove it, and the run's own command writes it anew"),
        (lambda _: "\0", "not a run's config ("),
        (truncated, "not a whole run's config: it has no zoo"),
        (lambda text: text[: text.index("\nmodel:")] + "\nmodel: lab", "not a run's config (model=lab: expected a mapping)"),
        (lambda text: text.replace("name: lab\n", "name: ${nowhere}\n", 1), "not a run's config (model.name=${nowhere}: refers to another key"),
    ],
)  # fmt: skip
def test_a_damaged_config_is_named(run: Path, spoil: Callable[[str], str], line: str) -> None:
    file = run / "config.yaml"
    file.write_text(spoil(file.read_text()))
    assert refused(run).startswith(f"{file}: {line}")


def test_a_run_without_its_unguided_one_says_so(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere" / run.name
    shutil.copytree(run, alone)
    base = base_of(run).name
    assert refused(alone) == f"{alone}: its unguided run {base} is not in the same folder; reference=none judges without"
    assert not (alone.parent / base).exists()
    assert "base" not in rejudging.judge_again(alone, ["reference=none", "metrics=none"])["scores"]["clip_text"]
    shutil.copytree(base_of(run), alone.parent / base)
    assert "base" in rejudging.judge_again(alone, ["reference=base", "metrics=none"])["scores"]["clip_text"]


@pytest.mark.parametrize("line", [b'{"task": "a", "seed"', b'{"name": "somebody", "age": 7}', b"7"])
@pytest.mark.parametrize("which", ["own", "base"])
def test_a_damaged_record_is_reported_and_its_sample_is_not_judged(
    run: Path, which: str, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the same one on the other side: what is compared is of the same prompts."""
    folder = run if which == "own" else base_of(run)
    log = folder / "records.jsonl"
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    metrics = rejudging.judge_again(run, ["metrics=none"])
    assert (metrics["samples"], metrics["reference_samples"], metrics["missing"]) == (2, 2, 1)
    err = capsys.readouterr().err
    assert f"{folder}: 1 of 3 samples missing (damaged lines of records.jsonl: 1), and not judged; " in err and err.count("\n") == 1


def test_a_torn_last_line_is_of_a_sample_that_is_not_made_yet(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = run / "records.jsonl"
    log.write_bytes(log.read_bytes()[:-9])
    (run / "DONE").unlink()
    metrics = rejudging.judge_again(run, ["metrics=none"])
    assert (metrics["samples"], metrics["missing"]) == (2, 1)
    assert capsys.readouterr().err.endswith("1 of 3 samples missing, and not judged; its own command makes what is missing\n")


def test_what_is_damaged_comes_again_by_the_run_s_own_command(run: Path) -> None:
    whole = {path.name: path.read_bytes() for path in (run / "images").glob("*.png")}
    log = run / "records.jsonl"
    before = [json.loads(line)["task"] for line in log.read_text().splitlines()]
    log.write_bytes(b"\n".join([b'{"name": "somebody"}', *log.read_bytes().split(b"\n")[1:]]))
    experiment.run(prepared(run.parent.parent))
    assert sorted(json.loads(line)["task"] for line in log.read_text().splitlines()) == sorted(before)
    assert {path.name: path.read_bytes() for path in (run / "images").glob("*.png")} == whole
