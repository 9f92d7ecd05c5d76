"""Weights are found in a folder, in the hub's cache, and on a hub; what is missing ends in one line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.clip import HubClip
from guidedgen.zoo.files import locate, locate_file, read_state
from guidedgen.zoo.hub import commit_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, for this process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fill(cache: Path, folder: Path) -> Path:
    """The folder's files as a snapshot of org/name, made by hand."""
    repository = cache / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, repository / "snapshots" / COMMIT))


CODE = """
import json
from guidedgen.basics.errors import UsageError
from guidedgen.zoo.files import locate, locate_file

def attempt(call):
    try:
        return str(call())
    except UsageError as error:
        return f"refused: {{error}}"

print(json.dumps([attempt(call) for call in ({calls},)]))
"""


def run(*calls: str, **environment: str) -> list[str]:
    """The outcome of each call in a fresh process: huggingface_hub reads its environment when imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    code = CODE.format(calls=", ".join(f"lambda: {call}" for call in calls))
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=kept | settings | environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def org(online: Any, clip_folder: Path) -> Any:
    """The hub of this process, which holds org/name: the tiny CLIP and a pickle."""
    files = {path.name: path.read_bytes() for path in clip_folder.iterdir()}
    online.repositories["org/name"] = files | {"pytorch_model.bin": b"a pickle", "onnx/model.safetensors": b"another"}
    return online


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(UsageError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder(clip_folder: Path):
    assert locate(clip_folder, key="model.path", required=("config.json", "model*.safetensors")) == clip_folder
    assert locate(str(clip_folder), key="model.path") == clip_folder


def test_cache_made_by_hand(cache: Path, clip_folder: Path):
    snapshot = fill(cache, clip_folder)
    assert locate("org/name", key="model.path", required=("config.json",)) == snapshot
    assert locate_file("org/name", "config.json", key="model.path") == snapshot / "config.json"
    assert run("locate('org/name', key='k')", HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1") == [str(snapshot)]


def test_clip_from_the_cache_is_the_clip_of_the_folder(cache: Path, clip_folder: Path):
    fill(cache, clip_folder)
    cached, local = (HubClip(name="tiny", path=path).encode_text(["a cat"]) for path in ("org/name", clip_folder))
    assert torch.equal(cached, local)


def test_missing_offline_is_one_line_with_the_way_out(cache: Path):
    for call, file in (
        (lambda: locate("org/name", key="model.path"), ""),
        (lambda: locate_file("org/name", "x.pth", key="model.path"), "/x.pth"),
    ):
        assert refusal(call) == (
            "model.path=org/name: not on this machine and the hub is offline; fetch it with: python scripts/fetch.py org/name"
            + file
        )


def test_incomplete_cache_is_as_good_as_missing(cache: Path, clip_folder: Path):
    (fill(cache, clip_folder) / "model.safetensors").unlink()
    assert "python scripts/fetch.py org/name" in refusal(locate, "org/name", key="k", required=("model*.safetensors",))


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "a/b/..", "a/b@", "two words", "~/a"])
def test_neither_a_path_nor_a_name(cache: Path, name: str):
    assert refusal(locate, name, key="model.path").startswith(f"model.path={name}: no such path")


def test_incomplete_folder_and_file_for_folder(tmp_path: Path):
    assert "has no config.json" in refusal(locate, tmp_path, key="k", required=("config.json",))
    assert "has no head.pth" in refusal(locate_file, tmp_path, "head.pth", key="k")
    (tmp_path / "file").touch()
    assert "is a file" in refusal(locate, tmp_path / "file", key="k")


def names(hub: Any) -> set[str]:
    return {file for file, _ in hub.asked}


def test_download_takes_only_what_is_needed_and_stays(org: Any, monkeypatch: pytest.MonkeyPatch):
    wanted = ("*.json", "model.safetensors")
    snapshot = locate("org/name", key="model.path", files=wanted)
    assert snapshot.parts[-4:] == ("hub", "models--org--name", "snapshots", org.commit("org/name"))
    assert names(org) == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    org.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate("org/name", key="model.path", files=wanted) == snapshot
    assert not org.asked


def test_clip_from_a_hub_is_located_when_built(org: Any, clip_folder: Path):
    folder = HubClip(name="tiny", path="org/name").folder
    assert {path.name for path in folder.iterdir()} == {path.name for path in clip_folder.iterdir()}
    assert names(org) == {path.name for path in clip_folder.iterdir()}


def test_nothing_heavy_is_imported_to_locate():
    [loaded] = run("[name for name in ('torch', 'transformers', 'diffusers') if name in __import__('sys').modules]")
    assert loaded == "[]"


def test_an_incomplete_cache_is_completed(org: Any, clip_folder: Path):
    snapshot = locate("org/name", key="k", files=("config.json", "model.safetensors"), required=("config.json",))
    (snapshot / "model.safetensors").unlink()
    assert locate("org/name", key="k", files=("*.safetensors",), required=("config.json", "model*.safetensors")) == snapshot
    assert (snapshot / "model.safetensors").read_bytes() == (clip_folder / "model.safetensors").read_bytes()


def test_single_file_and_absent_things(org: Any, clip_folder: Path):
    path = locate_file("org/name", "config.json", key="k")
    assert path.read_bytes() == (clip_folder / "config.json").read_bytes()
    there = org.endpoint
    assert refusal(locate, "org/other", key="k") == f"k=org/other: no such path, and no such public repository at {there}"
    assert refusal(locate_file, "org/name", "none.pth", key="k") == f"k=org/name: has no none.pth at {there}"
    lacking = refusal(locate, "org/name", key="k", required=("unet/*.json",))
    assert lacking == f"k=org/name: has no unet/*.json at {there}"
    assert refusal(locate, "org/name@v2", key="k") == "k=org/name@v2: has no revision v2"
    assert names(org) == {"config.json"}


def test_a_repositorys_folder_at_a_commit(org: Any):
    commit = org.commit("org/name")
    path = locate_file(f"org/name/onnx@{commit}", "model.safetensors", key="k")
    assert path.read_bytes() == b"another" and path.parts[-4:-1] == ("snapshots", commit, "onnx")
    assert commit_of(path.parent) == commit_of(path.parent.parent) == commit and commit_of(Path("/")) is None


def test_gated(org: Any):
    org.gated.add("org/name")
    message = refusal(locate, "org/name", key="k")
    assert message == f"k=org/name: its authors ask you to accept terms on {org.endpoint}/org/name, then: hf auth login"


def test_unreachable_hub(tmp_path: Path):
    [refused] = run("locate('org/name', key='k')", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert refused.startswith("refused: k=org/name: download from http://127.0.0.1:9 failed")
    assert refused.endswith("python scripts/fetch.py org/name") and "\n" not in refused


def test_sha256(tmp_path: Path):
    path = tmp_path / "head.pth"
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert locate_file(path, "", key="k", sha256=abc.upper()) == path
    assert locate_file(tmp_path, "head.pth", key="k", sha256=abc) == path
    assert f"has SHA-256 {abc}, expected 00" in refusal(locate_file, path, "", key="k", sha256="00" * 32)


class Trap:
    """Unpickling this runs code."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, (os.environ["TRAP"],))


def test_pickled_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    assert "pickled objects are refused" in refusal(read_state, tmp_path / "trap.pth", key="k")
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "text.pth").write_text("no weights at all")
    refusal(read_state, tmp_path / "text.pth", key="k")
    torch.save([1, 2], tmp_path / "list.pth")
    refusal(read_state, tmp_path / "list.pth", key="k")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9])
def test_state_dicts_that_are_cut_off(tmp_path: Path, suffix: str, share: float):
    from safetensors.torch import save_file

    path = tmp_path / f"state.{suffix}"
    state = {f"layer.{i}": torch.rand(40, 40) for i in range(4)}
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not a state dict of tensors" in refusal(read_state, path, key="k")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_state_dict_round_trip(tmp_path: Path, suffix: str):
    from safetensors.torch import save_file

    state = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5])}
    path = tmp_path / f"state.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    read = read_state(path, key="k")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    assert read_state(path, key="k", device="meta")["a"].shape == (2, 3)
