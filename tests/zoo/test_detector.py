"""OWLv2 against transformers' own pipeline, at tiny size with random weights; detections read from a file."""

import json
import math
from pathlib import Path

import pytest
import torch

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.zoo.detector import DetectionFile, Owlv2

SIDE = 32


def save(folder: Path, seed: int = 0) -> Path:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", *letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    words = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=40)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": SIDE, "width": SIDE}), words).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": 0}
    text = {**size, **ends, "vocab_size": len(tokens), "max_position_embeddings": 40}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=16))
        for layer in (network.box_head.dense2, network.class_head.logit_scale, network.class_head.logit_shift):
            torch.nn.init.normal_(layer.weight, std=0.5)  # boxes and confidences that differ
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("owlv2"))


def pictures(height: int = SIDE, width: int = SIDE, count: int = 2) -> torch.Tensor:
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height))
    return images.to_bytes(noise).float() / 255


@pytest.mark.parametrize("size", [(SIDE, SIDE), (64, 64), (40, 64)])
def test_detections_of_one_label_are_those_of_transformers_pipeline(folder: Path, size: tuple[int, int]) -> None:
    from transformers import pipeline

    shown = pictures(*size)
    detect = pipeline("zero-shot-object-detection", model=str(folder), device="cpu")
    found = Owlv2(name="tiny", path=folder, threshold=0.05)(shown, [["red car"]] * 2)
    for own, picture in zip(found, images.to_pil(shown), strict=True):
        expected = detect(picture, candidate_labels=["a photo of a red car"], threshold=0.05)
        assert len(expected) > 1
        assert [label for label, _, _ in own] == ["red car"] * len(expected)
        assert [confidence for _, confidence, _ in own] == pytest.approx([one["score"] for one in expected], abs=1e-5)
        for (_, _, box), one in zip(own, expected, strict=True):
            edges = [one["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")]  # cut to whole px
            limits = [(0, size[1]), (0, size[0])] * 2
            assert [side * high for side, (_, high) in zip(box, limits, strict=True)] == pytest.approx(
                [min(max(edge, low), high) for edge, (low, high) in zip(edges, limits, strict=True)], abs=1
            )


def test_of_a_box_the_likeliest_label_counts(folder: Path) -> None:
    detector = Owlv2(name="tiny", path=folder, threshold=0.0)
    shown = pictures(count=1)
    (both,) = detector(shown, [["cat", "red car"]])
    alone = [{box: confidence for _, confidence, box in detector(shown, [[label]])[0]} for label in ("cat", "red car")]
    assert len(both) == len(alone[0]) == 16
    for label, confidence, box in both:
        cat, car = (one[box] for one in alone)
        assert (label, confidence) == (
            ("cat", pytest.approx(cat, abs=1e-6)) if cat > car else ("red car", pytest.approx(car, abs=1e-6))
        )
    assert {label for label, _, _ in both} == {"cat", "red car"}


def test_boxes_are_shares_of_the_picture(folder: Path) -> None:
    """A wide picture is padded below to a square, with black as OWLv2 was trained; on the picture, boxes are that much higher."""
    detector = Owlv2(name="tiny", path=folder, threshold=0.0)
    wide = pictures(32, 64, 1)
    square = torch.nn.functional.pad(wide, (0, 0, 0, 32))
    (on_wide,), (on_square,) = (detector(shown, [["cat"]]) for shown in (wide, square))
    assert [one[1] for one in on_wide] == pytest.approx([one[1] for one in on_square], abs=1e-6)
    for (_, _, box), (_, _, other) in zip(on_wide, on_square, strict=True):
        assert box == pytest.approx([min(edge * scale, 1) for edge, scale in zip(other, (1, 2, 1, 2), strict=True)], abs=1e-5)


def test_files_as_the_hub_has_them(folder: Path, tmp_path: Path) -> None:
    """google/owlv2-base-patch16-ensemble: preprocessor_config.json, vocab.json and merges.txt, from before version 5."""
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    prepared = {"image_processor_type": "Owlv2ImageProcessor", "processor_class": "Owlv2Processor", "resample": 2}
    prepared |= {"size": {"height": SIDE, "width": SIDE}, "do_pad": True, "do_resize": True, "rescale_factor": 1 / 255}
    texts = {
        "preprocessor_config.json": json.dumps(prepared), "vocab.json": json.dumps(words), "merges.txt": "#version: 0.2\n",
        "tokenizer_config.json": json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 40, "pad_token": "<pad>"}),
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found = [Owlv2(name="tiny", path=path)(pictures(), [["cat", "dog"]] * 2) for path in (folder, tmp_path)]
    assert found[0] == found[1]


def test_a_picture_does_not_depend_on_its_neighbours(folder: Path) -> None:
    detector = Owlv2(name="tiny", path=folder, threshold=0.0)
    shown = pictures(count=3)
    labels = [["cat"], [], ["dog", "red car"]]
    together = detector(shown, labels)
    assert together[1] == []
    for i in (0, 2):
        (alone,) = detector(shown[i : i + 1], labels[i : i + 1])
        assert [label for label, _, _ in alone] == [label for label, _, _ in together[i]]
        assert [one[1] for one in alone] == pytest.approx([one[1] for one in together[i]], abs=1e-6)
    assert {label for label, _, _ in together[0]} == {"cat"}


def test_nothing_asked_is_nothing_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Owlv2(name="tiny", path=folder)
    monkeypatch.setattr(type(detector.network), "forward", None)
    assert detector(pictures(), [[], []]) == [[], []]


def test_the_threshold_is_the_least_confidence(folder: Path) -> None:
    shown = pictures()
    every = Owlv2(name="tiny", path=folder, threshold=0.0)(shown, [["cat"]] * 2)
    middle = every[0][5][1]
    some = Owlv2(name="tiny", path=folder, threshold=middle)(shown, [["cat"]] * 2)
    assert some[0] == [one for one in every[0] if one[1] > middle]
    with pytest.raises(BadValue, match="at least 0 and below 1"):
        Owlv2(name="tiny", path=folder, threshold=1.0)


def test_other_folders_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^zoo.detector.path=.*holds a model of type clip; an owlv2 is needed"):
        Owlv2(name="clip", path=clip_folder, key="zoo.detector.path")
    with pytest.raises(UsageError, match=r"^detector.path=.*has no config.json"):
        Owlv2(name="none", path=tmp_path)


def test_a_folder_without_words_is_refused(tmp_path: Path) -> None:
    """transformers makes a tokenizer that knows no word, to which all that is looked for is the same."""
    folder = save(tmp_path / "owlv2")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match=r"^zoo.detector.path=.*has no tokenizer.json and no vocab.json with merges.txt"):
        Owlv2(name="tiny", path=folder, key="zoo.detector.path")
    (folder / "vocab.json").touch()
    with pytest.raises(UsageError, match="no vocab.json with merges.txt"):
        Owlv2(name="tiny", path=folder)


def test_a_processor_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path / "owlv2")
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(UsageError, match="transformers cannot load its processor") as caught:
        Owlv2(name="tiny", path=folder)(pictures(), [["cat"]] * 2)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_reported(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "owlv2", seed=1)
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if "box_head" not in name}, folder / "model.safetensors")
    detector = Owlv2(name="tiny", path=folder)
    with pytest.raises(UsageError, match="weights lack 6 tensors of an OWLv2, box_head"):
        detector(pictures(), [["cat"]] * 2)


# Detections from a file


def write(folder: Path, *rows: object) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for i, picture in enumerate(pictures(count=3)):
        (folder / "images" / f"{i}.png").write_bytes(images.png(picture))
    (folder / "found.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return folder / "found.jsonl"


def row(image: str = "images/0.png", **changes: object) -> dict:
    found = [{"label": "car", "score": 0.6, "box": [0, 0, 20, 10]}, {"label": "cat", "score": 0.9, "box": [10, 20, 30, 50]}]
    return {"image": image, "width": 200, "height": 100, "detections": found, **changes}


def one(**changes: object) -> dict:
    """With a single detection."""
    return row(detections=[{"label": "car", "score": 0.6, "box": [0, 0, 20, 10], **changes}])


def test_pictures_are_known_by_their_pixels(tmp_path: Path) -> None:
    detector = DetectionFile(name="unidet", path=write(tmp_path, row("images/1.png", detections=[]), "", row()))
    shown = pictures(count=3)[:2]
    cat, car = ("cat", 0.9, (0.05, 0.2, 0.15, 0.5)), ("car", 0.6, (0.0, 0.0, 0.1, 0.1))
    assert detector(shown, [[], []]) == [[cat, car], []]
    assert detector(shown.flip(0), [["dog"]] * 2) == [[], [cat, car]]


def test_pictures_that_the_file_lacks_are_counted(tmp_path: Path) -> None:
    detector = DetectionFile(name="unidet", path=write(tmp_path, row("images/1.png")))
    with pytest.raises(UsageError, match=r"^detector.path=.*: lacks 2 of 3 pictures that are judged together \(it has 1\)"):
        detector(pictures(count=3), [["cat"]] * 3)


def test_an_editor_s_mark_at_the_beginning_is_read_over(tmp_path: Path) -> None:
    path = write(tmp_path, row())
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(DetectionFile(name="unidet", path=path)(pictures(count=3)[:1], [[]])[0]) == 2


def test_an_empty_file_and_a_picture_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found.jsonl: is empty; a line for each picture is needed"):
        DetectionFile(name="unidet", path=write(tmp_path, "", " "))
    with pytest.raises(UsageError, match="line 3 has the picture of line 1 again"):
        DetectionFile(name="unidet", path=write(tmp_path, row(), row("images/1.png"), row("./images/0.png")))


def test_pictures_that_are_alike(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "images" / "copy.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    same = DetectionFile(name="unidet", path=write(tmp_path, row(), row("images/copy.png")))
    assert len(same(pictures(count=3)[:1], [[]])[0]) == 2
    other = DetectionFile(name="unidet", path=write(tmp_path, row(), row("images/copy.png", detections=[])))
    with pytest.raises(UsageError, match="line 2: .*copy.png looks like that of an earlier line, which finds other things"):
        other(pictures(count=3)[:1], [[]])


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    detector = DetectionFile(name="unidet", path=write(tmp_path, row(), row("notes.txt")))
    with pytest.raises(UsageError, match=r"line 2: .*notes\.txt is no picture that can be read") as caught:
        detector(pictures(count=3)[:1], [[]])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not of the form"),
        ({"image": "images/0.png"}, "line 2 is not of the form .*KeyError"),
        ([], "line 2 is not of the form .*TypeError"),
        (row(width=0), "line 2 is not of the form .*0 x 100 px is no size"),
        (row(height=-100), "line 2 is not of the form .*200 x -100 px is no size"),
        (row(height=math.inf), "line 2 is not of the form .*inf is no number"),
        (row(width="200"), "line 2 is not of the form .*'200' is no number"),
        (row(detections={"label": "a"}), "line 2 is not of the form .*TypeError"),
        (one(score=1.5), r"line 2 is not of the form .*score 1\.5 is not from 0 to 1"),
        (one(score=-0.1), "line 2 is not of the form .*is not from 0 to 1"),
        (one(score=math.nan), "line 2 is not of the form .*nan is no number"),
        (row(width=10**400), "line 2 is not of the form .*OverflowError"),
        (one(score=True), "line 2 is not of the form .*True is no number"),
        (one(box=[1, 2, 3]), "line 2 is not of the form .*is not left, top, right, bottom"),
        (one(box="1234"), "line 2 is not of the form .*is not left, top, right, bottom"),
        (one(box=[30, 20, 10, 50]), "line 2 is not of the form .*has no area"),
        (one(box=[10, 50, 30, 50]), "line 2 is not of the form .*has no area"),
        (one(box=[10, 20, math.nan, 50]), "line 2 is not of the form .*nan is no number"),
        (one(box=[0, 0, 202, 50]), "line 2 is not of the form .*is not on a picture of 200 x 100 px"),
        (one(box=[0, -3, 20, 50]), "line 2 is not of the form .*is not on a picture"),
        (row("images/9.png"), r"line 2: there is no picture .*9\.png"),
    ],
)
def test_files_that_are_none(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(UsageError, match=rf"^detector.path=.*found.jsonl: {message}"):
        DetectionFile(name="unidet", path=write(tmp_path, row("images/1.png"), line))


def test_a_box_may_be_rounded_over_the_edge(tmp_path: Path) -> None:
    detector = DetectionFile(name="unidet", path=write(tmp_path, one(box=[-0.5, 0, 200.5, 100])))
    assert detector(pictures(count=3)[:1], [[]]) == [[("car", 0.6, (-0.5 / 200, 0, 200.5 / 200, 1))]]


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^k=.*cannot be read"):
        DetectionFile(name="unidet", path=tmp_path / "none.jsonl", key="k")
