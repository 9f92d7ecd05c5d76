"""A tiny CLIP of transformers' own classes as a folder, a lab of random weights, and a hub on the loopback."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
import torch

SIDE, LENGTH = 32, 12


def save_clip(folder: Path, *, seed: int = 0) -> Path:
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[("c", "a"), ("ca", "t</w>")]).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = {**size, **ends, "vocab_size": len(tokens), "max_position_embeddings": LENGTH}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def another_clip_folder(tmp_path: Path) -> Path:
    """One that no other test has loaded, to be changed."""
    return save_clip(tmp_path / "clip", seed=1)


@pytest.fixture
def random_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Random weights instead of the shipped ones, for one test."""
    from safetensors.torch import save_file

    from guidedgen.lab import networks
    from guidedgen.zoo import clip, inception

    def forget() -> None:
        for cached in (networks.load_tokenizer, clip._load_lab, inception.load_lab_classifier):
            cached.cache_clear()

    folder = tmp_path / "weights"
    (folder / "generator" / "tokenizer").mkdir(parents=True)
    tokenizer = networks.train_tokenizer()
    tokenizer.save(str(folder / "generator" / "tokenizer" / "tokenizer.json"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {f"clip-{which}": networks.build_clip(which, tokenizer.get_vocab_size()) for which in networks.CLIPS}
        parts |= {"classifier": networks.SceneClassifier(), "aesthetic": networks.AestheticHead(networks.CLIP_DIM)}
    for name, network in parts.items():
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / f"{name}.safetensors")
    monkeypatch.setattr(networks, "WEIGHTS", folder)
    forget()
    yield folder
    forget()


class Hub:
    """A hub on the loopback, as far as huggingface_hub asks one: revisions, trees, and files with their checksums and ranges.

    `repositories` has the files of each by their paths, at one of `commits`. Of `gated` ones files are refused. `cut` has from which byte on nothing of a file
    arrives, `part` how many bytes arrive before a connection ends; `served` has what is sent of a file instead of its content.
    `asked` is what files were asked for, and from which byte.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}
        self.part: dict[str, int] = {}
        self.served: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.endpoint = ""

    def commit(self, repository: str) -> str:
        return self.commits.get(repository, hashlib.sha1(repository.encode()).hexdigest())

    def answer(self, path: str, start: int) -> tuple[int, bytes, dict[str, str]]:
        parts = urllib.parse.unquote(path.partition("?")[0]).strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files, commit = self.repositories.get(name), self.commit(name)
        if files is None:
            return 401, b"{}", {"X-Error-Code": "RepoNotFound"}
        kind, revision, *rest = parts[4:] if parts[0] == "api" else parts[2:]
        if revision not in ("main", commit):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        if kind == "revision":
            found: object = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
            return 200, json.dumps(found).encode(), {"Content-Type": "application/json"}
        if kind == "tree":
            found = [self.entry(file, content) for file, content in files.items()]
            return 200, json.dumps(found).encode(), {"Content-Type": "application/json"}
        if name in self.gated:
            return 403, b"{}", {"X-Error-Code": "GatedRepo"}
        file = "/".join(rest)
        if file not in files:
            return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
        content = self.served.get(file, files[file])
        entry = self.entry(file, files[file])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not start:
            return 200, content, headers
        return 206, content[start:], headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}

    @staticmethod
    def entry(file: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": git}
        if not file.endswith((".json", ".txt")):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                status, body, headers = hub.answer(self.path, start)
                file = urllib.parse.unquote(self.path).partition("/resolve/")[2].partition("/")[2]
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    if file:
                        hub.asked.append((file, start))
                    end = min(hub.part.get(file, len(body)), max(0, hub.cut.get(file, len(body) + start) - start))
                    self.wfile.write(body[:end])

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub().running() as running:
        yield running


@pytest.fixture
def online(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The loopback's hub as the hub of this process, with an empty cache at tmp_path / "hub"; torch.hub's is tmp_path / "torch"."""
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    return hub
