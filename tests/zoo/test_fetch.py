"""scripts/fetch.py can bring everything that conf/zoo/hub.yaml names, and no more of a repository than is read."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from guidedgen.types import UsageError
from guidedgen.zoo import files

ROOT = Path(__file__).resolve().parents[2]
ZOO = yaml.safe_load((ROOT / "conf" / "zoo" / "hub.yaml").read_text())
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def fetch() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "scripts" / "fetch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nodes(tree: dict) -> Iterator[dict]:
    if "_target_" in tree:
        yield tree
    for value in tree.values():
        if isinstance(value, dict):
            yield from nodes(value)


def test_every_network_of_the_zoo_can_be_fetched(fetch: ModuleType):
    kinds = (fetch.REWARDS, fetch.METRICS)
    brought = {*fetch.SD15, *(part for kind in kinds for parts in kind.values() for part in parts)}
    for node in nodes(ZOO):
        for key in ("path", "tokenizer"):
            assert node.get(key) is None or node[key] in brought, node
        if "weights" in node:
            assert fetch.PICKLED[node["path"]] == node["weights"]
        if "filename" in node:
            assert node["filename"] in fetch.ONLY[node["path"]]
        if "tokenizer" in node:
            assert fetch.ONLY[node["tokenizer"]] == files.TOKENIZER
    assert {name for name, node in ZOO.items() if "path" in node and node["path"] is None} <= brought


def test_reward_names_are_those_of_conf(fetch: ModuleType):
    assert set(fetch.REWARDS) <= {file.stem for file in (ROOT / "conf" / "reward").glob("*.yaml")}
    assert not set(fetch.REWARDS) & set(files.DOWNLOADS)


def test_one_file_of_a_repository_is_enough(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, wanted in fetch.ONLY.items():
        with pytest.raises(UsageError, match=f"offline; fetch it with: python scripts/fetch.py {name}"):
            fetch.fetch(name)
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        snapshot = repository / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / wanted[0]).write_bytes(b"")
        assert fetch.fetch(name) == snapshot
