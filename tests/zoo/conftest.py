"""A tiny CLIP of transformers' own classes as a folder, and a lab of random weights."""

from collections.abc import Iterator
from pathlib import Path

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
    """Random weights in place of the shipped ones, for one test."""
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
