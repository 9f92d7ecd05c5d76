"""Files of networks that are cut off, empty or of another form end in one line, whichever class reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.blip2 import HubBlip2
from guidedgen.zoo.classifier import HubClassifier
from guidedgen.zoo.clip import HubClip
from guidedgen.zoo.detector import Owlv2
from guidedgen.zoo.filter import SafetyChecker
from guidedgen.zoo.vqa import BlipVqa, ImageTextToText

READERS: dict[str, Callable[[Path], object]] = {
    "clip": lambda folder: HubClip(name="x", path=folder, key="zoo.x.path"),
    "blip": lambda folder: BlipVqa(name="x", path=folder, key="zoo.x.path"),
    "blip-2": lambda folder: HubBlip2(name="x", path=folder, head=folder / "config.json", key="zoo.x.path"),
    "owlv2": lambda folder: Owlv2(name="x", path=folder, key="zoo.x.path"),
    "classifier": lambda folder: HubClassifier(name="x", path=folder, key="zoo.x.path"),
    "filter": lambda folder: SafetyChecker(path=folder, key="zoo.x.path"),
    "any": lambda folder: ImageTextToText(path=folder, key="zoo.x.path"),
}
CONFIGS = {
    "cut off": ("{", "cannot be read"),
    "empty": ("", "cannot be read"),
    "marked": ('\ufeff{"model_type": "clip"}', "cannot be read .*BOM"),
    "list": ("[]", "does not describe a network"),
    "null": ("null", "does not describe a network"),
    "parts": ('{"vision_config": [1]}', "does not describe a network"),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("reader", READERS)
def test_configs(tmp_path: Path, reader: str, config: str) -> None:
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    text, message = CONFIGS[config]
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=f"^zoo.x.path=.*: its config.json {message}") as caught:
        READERS[reader](tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", ["clip", "blip", "blip-2", "owlv2"])
def test_words_that_are_not_there(tmp_path: Path, reader: str) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match=r"^zoo.x.path=.*: has no tokenizer.json and no vocab"):
        READERS[reader](tmp_path)


@pytest.mark.parametrize("labels", ['["cat"]', '{"cat": 0}', "{}", "3"])
def test_labels_that_are_none(tmp_path: Path, labels: str) -> None:
    for name in ("model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "config.json").write_text(f'{{"id2label": {labels}}}')
    with pytest.raises(UsageError, match="its config names no labels"):
        READERS["classifier"](tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 5000])
def test_weights_that_are_cut_off(another_clip_folder: Path, kept: int) -> None:
    file = another_clip_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    clip = HubClip(name="x", path=another_clip_folder)
    with pytest.raises(UsageError, match="clip: model.safetensors is cut off or damaged") as caught:
        clip.encode_text(["a cat"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 9000])
def test_state_dicts_that_are_cut_off(another_clip_folder: Path, kept: int) -> None:
    from safetensors.torch import load_file

    file = another_clip_folder / "pytorch_model.bin"
    torch.save(load_file(another_clip_folder / "model.safetensors"), file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UsageError, match="clip: pytorch_model.bin is not a state dict of tensors"):
        HubClip(name="x", path=another_clip_folder, weights=file.name).encode_text(["a cat"])


def test_weights_of_another_size(another_clip_folder: Path) -> None:
    config = (another_clip_folder / "config.json").read_text()
    (another_clip_folder / "config.json").write_text(config.replace('"hidden_size": 16', '"hidden_size": 32'))
    with pytest.raises(
        UsageError, match="the weights have 73 tensors of another shape than a CLIP by its config, text_model.embeddings"
    ):
        HubClip(name="x", path=another_clip_folder).encode_text(["a cat"])


def _in_pieces(folder: Path, state: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    names = sorted(state)
    pieces = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for piece, own in pieces.items():
        save_file({name: state[name] for name in own}, folder / piece, {"format": "pt"})
    weight_map = {name: piece for piece, own in pieces.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def _rename(folder: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({f"{prefix}{name}": value for name, value in load_file(file).items()}, file, {"format": "pt"})


def _change(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    state = load_file(file)
    save_file(state | change(state), file, {"format": "pt"})


def _lose_a_piece(folder: Path) -> None:
    from safetensors.torch import load_file

    _in_pieces(folder, load_file(folder / "model.safetensors"))
    (folder / "model-00002-of-00002.safetensors").unlink()


WRONG_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        ),
        "model.safetensors is a pointer of Git LFS",
    ),
    "compiled": (lambda folder: _rename(folder, "_orig_mod."), "of a CLIP were saved under torch.compile: 78 keys"),
    "parallel": (lambda folder: _rename(folder, "module."), "of a CLIP were saved under DataParallel: 78 keys"),
    "others": (
        lambda folder: _change(folder, lambda _: {"extra": torch.ones(2)}),
        "hold 1 tensors that .* does not have, extra first",
    ),
    "quantised": (
        lambda folder: _change(folder, lambda state: {"text_projection.weight": state["text_projection.weight"].char()}),
        "is quantised: text_projection.weight is of type I8",
    ),
    "piece": (_lose_a_piece, "has no model-00002-of-00002.safetensors"),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_weights_that_would_be_used_in_part(
    another_clip_folder: Path, wrong: str, tried: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    break_it, message = WRONG_WEIGHTS[wrong]
    break_it(another_clip_folder)
    capfd.readouterr()
    with pytest.raises(UsageError, match=message) as caught:
        HubClip(name="x", path=another_clip_folder).network  # noqa: B018
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    tried("refused")


def test_numbers_of_positions_may_be_left_over_and_pieces_are_put_together(
    another_clip_folder: Path, clip_folder: Path, tried: Callable[..., None]
) -> None:
    from safetensors.torch import load_file

    state = load_file(another_clip_folder / "model.safetensors")
    counted = {f"{part}_model.embeddings.position_ids": torch.arange(4)[None] for part in ("text", "vision")}
    _in_pieces(another_clip_folder, state | counted)
    loaded = HubClip(name="x", path=another_clip_folder).network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    tried("used")


@pytest.mark.parametrize("text", ["{", "", "[]", None])
def test_tokenizers(another_clip_folder: Path, text: str | None) -> None:
    file = another_clip_folder / "tokenizer.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2] if text is None else text)
    with pytest.raises(UsageError, match="^zoo.x.path=.*: transformers cannot load its tokenizer") as caught:
        HubClip(name="x", path=another_clip_folder, key="zoo.x.path").encode_text(["a cat"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("reader", "kind"), [("blip", "blip"), ("any", "llava")])
def test_tokenizers_of_those_that_answer(tmp_path: Path, reader: str, kind: str) -> None:
    for name, text in {
        "model.safetensors": "",
        "tokenizer.json": '{"model": ',
        "config.json": f'{{"model_type": "{kind}"}}',
    }.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="^zoo.x.path=.*: transformers cannot load its (tokenizer|processor)") as caught:
        READERS[reader](tmp_path)(torch.rand(1, 3, 8, 8), ["a?"])
    assert "\n" not in str(caught.value)


def test_memory_that_runs_out_is_no_malformed_file(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever judges goes on with smaller batches then."""
    from transformers import CLIPModel

    from guidedgen.zoo.pretrained import load_pretrained

    def fail(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(CLIPModel, "from_pretrained", fail)
    with pytest.raises(torch.OutOfMemoryError):
        load_pretrained(CLIPModel, clip_folder, what="a CLIP", safetensors=True, device=torch.device("cpu"))
