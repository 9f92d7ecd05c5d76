"""Results belong to what files hold: a file that changes makes another run, or another judgement, and never shows an old one."""

import copy
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from safetensors.torch import save_file

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.lab.networks import WEIGHTS
from guidedgen.runs import composition, config, contents, experiment, identity, judging, preparation, rejudging
from guidedgen.runs.store import RunFailed, RunFolder
from guidedgen.studies import cautions, page

trained = pytest.mark.skipif(not (WEIGHTS / "generator" / "model_index.json").exists(), reason="the lab's weights are missing")
QUICK = ["device=cpu", "dtype=float32", "tracker=none", "scheduler.num_steps=2", "metrics=none"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def configured(*overrides: str, **nodes: Any) -> DictConfig:
    cfg = composition.composed([*QUICK, *overrides])
    for key, node in nodes.items():
        OmegaConf.update(cfg, key.replace("__", "."), node, merge=False, force_add=True)
    return cfg


def picture(file: Path, grey: int) -> Path:
    Image.new("RGB", (64, 64), (grey, 40, 90)).save(file)
    return file


# Digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that have been read, with the grain of the file system's clock left out of account."""
    digest, found = hashlib.file_digest, []

    def counted(stream: Any, name: str) -> Any:
        found.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(contents, "_GRAIN", -60)
    return found


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process begins."""
    for name in ("_known", "_fresh", "_read"):
        monkeypatch.setattr(contents, name, type(getattr(contents, name))())


def test_a_large_file_is_read_once_by_all_processes(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100_000)
    forget(monkeypatch)
    for _ in range(3):
        assert contents.of(file) == {"weights": hashlib.sha256(b"a" * 100_000).hexdigest()}
        forget(monkeypatch)
    assert reads == [str(file)]
    file.write_bytes(b"b" * 100_000)
    assert contents.of(file) == {"weights": hashlib.sha256(b"b" * 100_000).hexdigest()}


@pytest.mark.parametrize("size", [10, 100_000])
def test_an_edit_of_equal_size_in_the_same_second_is_seen(tmp_path: Path, size: int) -> None:
    file = tmp_path / "prompts.txt"
    for letter in b"abc":
        file.write_bytes(bytes([letter]) * size)
        os.utime(file, ns=(1_700_000_000_000_000_000,) * 2)  # and where its time is set back
        assert contents.sha256(file) == hashlib.sha256(bytes([letter]) * size).hexdigest()


def test_what_was_written_a_moment_ago_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second write may leave size and times as they are."""
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100_000)
    monkeypatch.setattr(contents, "_stamp", lambda path: [100_000, *[int(os.stat(file).st_ctime_ns)] * 2, 1, 1])
    contents.sha256(file)
    assert str(file) not in contents._known and str(file) not in contents._fresh


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: cache.write_bytes(b""),
        lambda cache: cache.write_bytes(b"\xff{"),
        lambda cache: cache.write_bytes(b"[" * 100_000),
        lambda cache: cache.write_text("[1]"),
        lambda cache: cache.write_text('{"/x": 1, "/y": [[1], "a"], "/z": [[1, 2, 3, 4, 5], "no digest"]}'),
        lambda cache: cache.mkdir(),
        lambda cache: os.mkfifo(cache),
        lambda cache: (cache.parent.rmdir(), cache.parent.write_bytes(b"")),
    ],
)
def test_a_cache_that_cannot_be_used_is_ignored(
    tmp_path: Path, damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tried: Callable[..., None]
) -> None:
    cache = tmp_path / "cache" / "guidedgen" / "digests.json"
    cache.parent.mkdir(parents=True)
    damage(cache)
    monkeypatch.setattr(contents, "_GRAIN", -60)
    forget(monkeypatch)
    file = tmp_path / "weights"
    file.write_bytes(b"a" * 100_000)
    assert contents.of(file) == {"weights": hashlib.sha256(b"a" * 100_000).hexdigest()}
    tried("used")


class Reads:
    """What a user's own class may look like; it is of this module, which is its package."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    @cached_property
    def loaded(self) -> Path:
        return Path(__file__)


def test_an_object_s_files_are_those_of_its_parts_too(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text(name)
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "e").write_text("e")
    (tmp_path / "folder" / ".git").write_text("hidden")
    (tmp_path / "folder" / "loop").symlink_to(tmp_path / "folder")
    built = Reads(
        text=str(tmp_path / "a"), word="b", path=tmp_path / "b", many={"x": [Reads(path=tmp_path / "c")]},
        files=[str(tmp_path / "d")], folder=f"{tmp_path}/folder", missing=tmp_path / "missing", here=".", root="/",
    )  # fmt: skip
    assert built.loaded  # since it was built
    found = contents.of(built, packages=[f"{__name__}."])
    assert {name: digest[:6] for name, digest in found.items()} == {
        name: hashlib.sha256(name[-1].encode()).hexdigest()[:6] for name in ("a", "b", "c", "d", "folder/inner/e")
    }
    assert contents.of(built) == {}  # nothing of other packages
    assert contents.of(tmp_path / "a", tmp_path / "folder" / ".." / "a") == contents.of(tmp_path / "a")  # one file


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    for folder in "xy":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_text(folder)
    found = contents.of([tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"])
    assert found == {name: hashlib.sha256(text.encode()).hexdigest() for name, text in {"a.png": "x", "a.png (2)": "y"}.items()}


def test_a_snapshot_of_the_hub_is_known_by_its_commit(tmp_path: Path, reads: list[str]) -> None:
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    (repository / "blobs").mkdir(parents=True)
    (snapshot / "unet").mkdir(parents=True)

    def add(name: str) -> None:
        (repository / "blobs" / Path(name).name).write_text(name)
        (snapshot / name).symlink_to(os.path.relpath(repository / "blobs" / Path(name).name, (snapshot / name).parent))

    add("config.json")
    commit = {"org/name": f"commit {snapshot.name}"}
    assert contents.of(snapshot) == contents.of(snapshot / "config.json") == commit
    add("unet/model.safetensors")  # fetched later
    assert contents.of(snapshot) == commit and reads == []
    (snapshot / "own.json").write_text("put there by hand")
    assert contents.of(snapshot) == {**commit, "org/name/own.json": hashlib.sha256(b"put there by hand").hexdigest()}


def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Callable[..., None]
) -> None:
    file = tmp_path / "secret"
    file.write_text("")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(UsageError, match=f"{file}: cannot be read \\(Permission denied\\)"):
        contents.of(file)
    tried("refused")


@trained
@pytest.mark.parametrize("grain", [2, -60])  # with and without a digest that is kept
def test_what_was_loaded_from_a_file_is_not_used_when_that_has_changed(
    tmp_path: Path, grain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidedgen.models import stable_diffusion
    from guidedgen.models.stable_diffusion_folder import StableDiffusionFolder

    monkeypatch.setattr(contents, "_GRAIN", grain)
    file = tmp_path / "weights"
    file.write_text("a")
    contents.sha256(file)
    stable_diffusion._token_counts(StableDiffusionFolder.open("lab"), ("a red circle",))
    file.touch()
    contents.sha256(file)
    assert stable_diffusion._token_counts.cache_info().currsize
    file.write_text("b")
    contents.sha256(file)
    assert not stable_diffusion._token_counts.cache_info().currsize


# Numbers


@pytest.mark.parametrize("same", [(2, 2.0), (1, 1.0, 1e0), (0, 0.0, -0.0), ([1, 2.0], [1.0, 2]), ({"a": 3}, {"a": 3.0})])
def test_a_number_has_one_identity_however_it_is_spelled(same: tuple[Any, ...]) -> None:
    assert len({config.identity({"method": {"weight": value}}) for value in same}) == 1


def test_what_is_no_such_number_has_another(tried: Callable[..., None]) -> None:
    values = [1, True, "1", None, 1.5, 0, False, "", [1], float("inf"), 10**17, 10**17 + 2]
    assert len({config.identity({"method": {"weight": value}}) for value in values}) == len(values)
    tried("used", len(values))


@trained
def test_a_command_names_one_run_by_equal_numbers(tmp_path: Path) -> None:
    folders = {
        identity.folder_of_run(configured(f"outputs={tmp_path}", f"model.guidance_scale={value}")) for value in ("2", "2.0", "2e0")
    }
    assert len(folders) == 1


# What a run is made of


def lab_model(folder: Path) -> Path:
    shutil.copytree(WEIGHTS / "generator", folder)
    return folder


def flip(file: Path) -> None:
    """Another file of the same size: its last byte is another one."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _prompts(folder: Path) -> tuple[DictConfig, Path]:
    (folder / "prompts.txt").write_text("a red circle\na blue square\n")
    return configured("dataset=text", f"dataset.path={folder}/prompts.txt"), folder / "prompts.txt"


def _jsonl_picture(folder: Path) -> tuple[DictConfig, Path]:
    picture(folder / "a.png", 10)
    (folder / "tasks.jsonl").write_text('{"prompt": "a red circle", "reference": "a.png", "noise_ratio": 0.5}\n')
    return configured("dataset=jsonl", f"dataset.path={folder}/tasks.jsonl"), folder / "a.png"


def _source_image(folder: Path) -> tuple[DictConfig, Path]:
    picture(folder / "a.png", 10)
    return configured(
        "method=doodl",
        "method.process=edict",
        "method.tied=false",
        "scheduler=ddim",
        "dataset.limit=1",
        f"method.source_image={folder}/a.png",
    ), folder / "a.png"


def _style_picture(folder: Path) -> tuple[DictConfig, Path]:
    picture(folder / "a.png", 10)
    return configured("reward=style_gram_vgg16", f"reward.image={folder}/a.png"), folder / "a.png"


def _clip_picture(folder: Path) -> tuple[DictConfig, Path]:
    picture(folder / "a.png", 10)
    return configured("reward=clip_image", f"reward.image={folder}/a.png"), folder / "a.png"


def _model(name: str) -> Callable[[Path], tuple[DictConfig, Path]]:
    def made(folder: Path) -> tuple[DictConfig, Path]:
        return configured(f"model.path={lab_model(folder / 'model')}"), folder / "model" / name

    return made


def _learned(folder: Path) -> tuple[DictConfig, Path]:
    width = json.loads((WEIGHTS / "generator/text_encoder/config.json").read_text())["hidden_size"]
    (folder / "learned").mkdir()
    save_file({"<effect>": torch.zeros(1, width)}, folder / "learned" / "learned_embeds.safetensors")
    return configured(f"model.learned={folder}/learned"), folder / "learned" / "learned_embeds.safetensors"


def _head(folder: Path) -> tuple[DictConfig, Path]:
    torch.save(torch.nn.Linear(128, 1).state_dict(), folder / "head.pth")
    node = {"_target_": "guidedgen.zoo.aesthetic.LaionHead", "path": str(folder / "head.pth")}
    return configured(reward__head=node), folder / "head.pth"


def _lessons(folder: Path) -> tuple[DictConfig, Path]:
    (folder / "lessons.txt").write_text("a red circle\n")
    node = {"_target_": "guidedgen.datasets.text.TextFile", "path": str(folder / "lessons.txt")}
    return configured("experiment=adjoint/lab/effect", "metrics.per_class=null", method__prompts=node), folder / "lessons.txt"


def _own_reward(folder: Path) -> tuple[DictConfig, Path]:
    (folder / "own.bin").write_bytes(b"weights")
    node = {"_target_": f"{__name__}.Own", "weights": str(folder / "own.bin")}
    return configured(reward=node, allow_targets=[f"{__name__}."]), folder / "own.bin"


class Own:
    """A reward of a user's own package, with a file of its own."""

    differentiable = False
    networks = ()

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def __call__(self, images: torch.Tensor, tasks: Any) -> torch.Tensor:
        return images.flatten(1).mean(1)


SAMPLED = {
    "prompts": _prompts, "jsonl picture": _jsonl_picture, "source image": _source_image, "style picture": _style_picture,
    "clip picture": _clip_picture, "unet": _model("unet/diffusion_pytorch_model.safetensors"), "learned": _learned,
    "vae": _model("vae/diffusion_pytorch_model.safetensors"), "text encoder": _model("text_encoder/model.safetensors"),
    "tokenizer": _model("tokenizer/tokenizer_config.json"), "schedule": _model("scheduler/scheduler_config.json"),
    "reward's network": _head, "lessons": _lessons, "own reward": _own_reward,
}  # fmt: skip
SHARED = {"prompts", "jsonl picture", "unet", "learned", "vae", "text encoder", "tokenizer", "schedule"}  # with the unguided run


def _changed(file: Path) -> None:
    """The same kind of file, of the same size where that is simple, that holds something else."""
    if file.suffix == ".png":
        picture(file, 11)
    elif file.suffix in (".txt", ".json"):
        file.write_text(file.read_text().replace("red", "hex").replace("{\n", "{\n ", 1))
    elif file.suffix == ".pth":
        torch.save(torch.nn.Linear(128, 1).state_dict(), file)
    else:
        flip(file)


@trained
@pytest.mark.parametrize("kind", SAMPLED)
def test_a_file_that_decides_a_sample_is_part_of_its_run(kind: str, tmp_path: Path, tried: Callable[..., None]) -> None:
    """And of the unguided run where it decides that too; where the same is written again nothing changes."""
    cfg, file = SAMPLED[kind](tmp_path)
    cfg.outputs = str(tmp_path / "outputs")
    job = preparation.prepare(cfg)
    assert job.folder.path == identity.folder_of_run(cfg) and job.base is not None
    file.touch()
    again = preparation.prepare(cfg)
    assert again.folder.path == job.folder.path and again.contents == job.contents
    _changed(file)
    other = preparation.prepare(cfg)
    assert other.folder.path == identity.folder_of_run(cfg) != job.folder.path and other.base is not None
    assert (other.base.folder.path != job.base.folder.path) == (kind in SHARED)
    assert contents.changed(job.contents, other.contents)
    tried("used")


@trained
def test_every_shipped_network_is_some_object_s_file() -> None:
    nodes = OmegaConf.create({"device": "cpu", "zoo_dtype": "float32", **OmegaConf.load(config.CONF / "zoo" / "lab.yaml")})
    built = {
        name: config.build(node, name)
        for name, node in nodes.items()
        if OmegaConf.is_config(node) and "absent" not in node._target_
    }
    assert {name: bool(contents.of(network)) for name, network in built.items()} == dict.fromkeys(built, True)
    cfg = configured("metrics=lab_compbench")
    judges = [config.build(node, name) for name, node in cfg.metrics.scorers.items() if name != "taste"]
    assert all(contents.of(judge) for judge in judges)
    found = {name for name in contents.of(built, judges, config.build(cfg.model, "model")) if name.endswith(".safetensors")}
    assert {Path(name).name for name in found} == {file.name for file in WEIGHTS.rglob("*.safetensors")}


# What it is judged by


def _pictures(folder: Path) -> tuple[DictConfig, Path]:
    (folder / "real").mkdir()
    picture(folder / "real" / "a.png", 10), picture(folder / "real" / "b.png", 20)
    return configured(f"reference={folder}/real"), folder / "real" / "a.png"


def _classes(folder: Path) -> tuple[DictConfig, Path]:
    (folder / "classes" / "circle").mkdir(parents=True)
    picture(folder / "classes" / "circle" / "a.png", 10), picture(folder / "classes" / "circle" / "b.png", 20)
    node = {"_target_": "guidedgen.metrics.classes.PerClass", "features": {"_target_": "guidedgen.zoo.inception.LabInception"},
            "pictures": {"_target_": "guidedgen.metrics.classes.ClassFolders", "path": str(folder / "classes")}}  # fmt: skip
    options = ["dataset=prompt", "dataset.prompt=a red circle", "samples_per_prompt=2"]
    return configured(*options, metrics__per_class=node), folder / "classes" / "circle" / "b.png"


def _detections(which: str) -> Callable[[Path], tuple[DictConfig, Path]]:
    def made(folder: Path) -> tuple[DictConfig, Path]:
        picture(folder / "a.png", 10)
        found = {"image": "a.png", "width": 64, "height": 64, "detections": [{"label": "cat", "score": 0.5, "box": [1, 1, 9, 9]}]}
        (folder / "found.json").write_text(json.dumps(found))
        detector = {"_target_": "guidedgen.zoo.detector.DetectionFile", "name": "x", "path": str(folder / "found.json")}
        node = {"_target_": "guidedgen.metrics.spatial.Spatial", "detector": detector,
                "parser": {"_target_": "guidedgen.metrics.noun_phrases.Rules"}}  # fmt: skip
        return configured(metrics__scorers={"spatial": node}), folder / which

    return made


def _judge_s_head(folder: Path) -> tuple[DictConfig, Path]:
    cfg, file = _head(folder)
    node = copy.deepcopy(cfg.reward)
    return configured(metrics__scorers={"other": OmegaConf.to_container(node, resolve=True)}), file


JUDGED = {"reference": _pictures, "classes": _classes, "detections": _detections("found.json"),
          "detected picture": _detections("a.png"), "judge's network": _judge_s_head}  # fmt: skip


@trained
@pytest.mark.parametrize("kind", JUDGED)
def test_a_file_that_decides_a_judgement_makes_another_one(kind: str, tmp_path: Path, tried: Callable[..., None]) -> None:
    cfg, file = JUDGED[kind](tmp_path)
    cfg.outputs = str(tmp_path / "outputs")
    job = preparation.prepare(cfg)
    before = judging.judged_by(job)
    file.touch()
    assert judging.judged_by(preparation.prepare(cfg)) == before
    if file.name == "found.json":
        file.write_text(file.read_text().replace("0.5", "0.6"))
    else:
        _changed(file)
    other = preparation.prepare(cfg)
    assert judging.judged_by(other) != before and other.folder.path == job.folder.path
    tried("used")


# Runs


def made(cfg: DictConfig) -> tuple[Path, dict[str, Any]]:
    job = preparation.prepare(cfg)
    experiment.run(job)
    return job.folder.path, job.folder.read_json("metrics.json")


def prompts_of(run: Path) -> set[str]:
    return {record.prompt for record in RunFolder(run).records().values()}


def study(folder: Path, particles: int = 2) -> DictConfig:
    options = ["method=best_of_n", f"method.num_particles={particles}", "reward=clip_text", "dataset=text"]
    return configured(*options, f"dataset.path={folder}/prompts.txt", f"outputs={folder}/outputs", "study=s")


TWO, THREE = "a red circle\na blue square\n", "a green star\na red circle\na yellow ring\n"


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    """A folder with a run of two prompts and one, of the same command but for an option, of the three that the file holds now."""
    (tmp_path / "prompts.txt").write_text(TWO)
    made(study(tmp_path))
    (tmp_path / "prompts.txt").write_text(THREE)
    made(study(tmp_path, 3))
    return tmp_path


@trained
def test_a_run_of_an_edited_file_is_measured_against_its_own_unguided_run(edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its stored run is judged again as it was made, and says that the file has changed."""
    runs = sorted((edited / "outputs" / "s").iterdir())
    assert [run.name.split("-")[0] for run in runs] == ["base", "base", "best_of_n", "best_of_n"]
    by_prompts = {len(prompts_of(run)): run for run in runs[2:]}
    assert prompts_of(by_prompts[2]) == set(TWO.split("\n")[:2]) and prompts_of(by_prompts[3]) == set(THREE.split("\n")[:3])
    for count, run in by_prompts.items():
        metrics = RunFolder(run).read_json("metrics.json")
        assert (metrics["samples"], metrics["reference_samples"]) == (count, count)
    capsys.readouterr()
    old = by_prompts[2]
    before, images = RunFolder(old).read_json("metrics.json"), sorted((old / "images").glob("*-0.png"))
    bytes_before = [image.read_bytes() for image in images]
    again = rejudging.judge_again(old)
    assert capsys.readouterr().err == (
        f"guidedgen: {old}: changed since it was made: dataset (tasks); its pictures stay, and are judged by what is there now\n"
    )
    assert [image.read_bytes() for image in images] == bytes_before
    assert again["scores"] == before["scores"] and again["reference_samples"] == 2 and "missing" not in again
    assert rejudging.judge_again(by_prompts[3]) and not capsys.readouterr().err
    (edited / "prompts.txt").unlink()  # what was recorded is enough
    assert rejudging.judge_again(by_prompts[3])["scores"].keys() == before["scores"].keys() and not capsys.readouterr().err
    # A page pairs each with its own.
    from guidedgen.studies.study import read_study

    settings = {
        frozenset(record.prompt for record in run.records): run.setting for run in read_study(edited / "outputs" / "s").runs
    }
    assert len(settings) == len(set(settings.values())) == 2
    text = page.write(edited / "outputs" / "s")[0].read_text()
    assert "2 unguided runs" in text and "not record what the files held" not in text


@trained
def test_a_run_that_has_recorded_no_contents_is_read_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was stored before contents were: named by its config alone."""
    (tmp_path / "prompts.txt").write_text(TWO)
    run, metrics = made(study(tmp_path))
    base = next(run.parent.glob("base-*"))
    for folder in (run, base):  # of a run, its guide is a part of it; of the unguided one it is not
        environment = json.loads((folder / "environment.json").read_text())
        del environment["contents"], environment["judged_with"]
        (folder / "environment.json").write_text(json.dumps(environment))
        plain = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        assert isinstance(plain, dict)
        for key in (
            "outputs",
            "study",
            "run",
            "tracker",
            "metrics",
            "zoo",
            "reference",
            "reference_seed",
            "allow_targets",
            "table",
            "shard",
            "gpu_dtype",
            "zoo_dtype",
        ):
            plain.pop(key, None)
        for key in ("size", "offload", "vae_tiling", "vae_slicing", "quantization", "weaker", "guidance"):  # which came later
            del plain["model"][key]
        plain["scheduler"].pop("variance", None)
        del plain["reward"]["clip"]["dtype"]
        plain["reward"] = plain["reward"] if folder == run else None
        name = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
        folder.rename(folder.with_name(f"{folder.name.rpartition('-')[0]}-{name}"))
    run = next((tmp_path / "outputs" / "s").glob("best_of_n-*"))
    capsys.readouterr()
    again = rejudging.judge_again(run)
    assert again["scores"] == metrics["scores"]
    line = f"guidedgen: {run}: what its files held when it was made is not recorded; it is judged by what they hold now\n"
    assert capsys.readouterr().err == line
    assert "1 run does not record what the files held that made it" in page.write(run.parent)[0].read_text()
    other, _ = made(study(tmp_path))  # is never taken to be its command's
    assert other != run and len(list(run.parent.glob("*/DONE"))) == 4


@trained
def test_a_file_that_changes_while_a_run_reads_it_ends_the_run(tmp_path: Path, tried: Callable[..., None]) -> None:
    cfg, file = _jsonl_picture(tmp_path)
    cfg.outputs, cfg.reference = str(tmp_path / "outputs"), "none"
    job = preparation.prepare(cfg)
    before = file.read_bytes()
    picture(file, 11)
    with pytest.raises(RunFailed, match=r"dataset \(tasks\) was changed while the run was at work"):
        experiment.run(job)
    assert not job.folder.records()
    job.folder.close()
    file.write_bytes(before)
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "for the next run"}\n')
    experiment.run(job)
    assert len(job.folder.records()) == 1
    tried("refused")


@trained
def test_an_audited_picture_that_is_blurred_keeps_a_score_of_the_same_network_alone(tmp_path: Path) -> None:
    cfg, file = _judge_s_head(tmp_path)
    cfg.outputs, cfg.dataset.limit, cfg.reference = str(tmp_path / "outputs"), 1, "none"
    run, _ = made(cfg)
    records = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(records.replace('"blurred": false', '"blurred": true'))
    job = preparation.prepare(cfg)
    from guidedgen.runs import evaluate

    assert judging._recorded(job, evaluate.Images.of_run(job.folder)) == {"aesthetic", "other"}
    _changed(file)
    job = preparation.prepare(cfg)
    assert judging._recorded(job, evaluate.Images.of_run(job.folder)) == set()


@pytest.mark.parametrize(("digests", "warned"), [("aa", False), ("ab", True)])
def test_rows_that_networks_of_one_name_but_not_one_content_judged_are_not_to_be_compared(digests: str, warned: bool) -> None:
    rows = [
        SimpleNamespace(metrics={"judged_with": {"metrics": {"head.pth": digest, f"{i}": "x"}}}) for i, digest in enumerate(digests)
    ]
    found = list(cautions._unlike_judges(rows))  # type: ignore[arg-type]
    assert [("head.pth" in caution.text and caution.serious) for caution in found] == [True] * warned


def test_tasks_are_distinguished_by_all_that_they_say(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 10)
    task = {"id": "a", "prompt": "b", "category": "c"}
    different = [
        {}, {"prompt": "x"}, {"id": "x"}, {"category": "x"}, {"reference": str(file)}, {"reference": str(file), "noise_ratio": 0.5},
    ]  # fmt: skip
    digests = [contents.of_tasks([Task(**{**task, **other})]) for other in different]
    assert all(one != other for one, other in itertools.combinations(digests, 2))
    picture(file, 11)
    assert contents.of_tasks([Task(**task, reference=str(file))]) != digests[4]
