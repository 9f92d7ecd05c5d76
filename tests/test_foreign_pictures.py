"""Pictures that people bring: each is read as it is seen, against Pillow or by hand, or refused with a reason, through every door."""

import errno
import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.datasets.animals import Animals
from guidedgen.datasets.image_to_image import ImageToImage
from guidedgen.datasets.jsonl import Jsonl
from guidedgen.datasets.references import read_reference
from guidedgen.metrics.classes import ClassFolders
from guidedgen.metrics.frechet import frechet_distance
from guidedgen.rewards.style import References
from guidedgen.runs import evaluate

Tried = Callable[..., None]
RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
RGB[:12, :20] = (255, 0, 0)  # one corner tells which way is up
RAMP = np.linspace(0, 65535, 24 * 40).round().astype(np.uint16).reshape(24, 40)


def tensor(array: np.ndarray) -> Tensor:
    """H W 3 or H W in [0, 1] -> 1 3 H W."""
    found = torch.from_numpy(np.array(array, dtype=np.float32))
    return (found.permute(2, 0, 1) if found.ndim == 3 else found.expand(3, -1, -1))[None]


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def close(path: Path, expected: Tensor, levels: float = 0.01) -> None:
    found = images.read(path)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert float((found - images.check(expected)).abs().max()) <= levels / 255


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "WEBP", "lossless": True}, {"format": "TIFF"},
                                     {"format": "TIFF", "compression": "tiff_lzw"}, {"format": "JPEG", "quality": 100, "subsampling": 0}])  # fmt: skip
def test_a_picture_is_turned_as_its_exif_says(orientation: int, options: dict, tmp_path: Path, tried: Tried) -> None:
    """As the EXIF standard has it: row 0 and column 0 of what is stored are these sides of what is seen."""
    seen = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2), 6: RGB[::-1].transpose(1, 0, 2),
        7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: RGB[:, ::-1].transpose(1, 0, 2),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = saved(tmp_path / "x", Image.fromarray(RGB), exif=exif, **options)
    close(path, tensor(seen / 255), 6 if options["format"] == "JPEG" else 0.01)
    tried("used")


def test_exif_that_is_nonsense_says_nothing(tmp_path: Path, tried: Tried) -> None:
    for exif in (b"Exif\0\0XX*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0" * 30, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40):
        close(saved(tmp_path / "x.png", Image.fromarray(RGB), exif=exif), tensor(RGB / 255))
        tried("used")


def test_distances_of_turned_pictures_are_those_of_upright_ones(tmp_path: Path, tried: Tried) -> None:
    """The Fréchet distance, on features that tell up from down, of one set stored both ways to another set."""
    generator, upright, turned, ours = np.random.default_rng(1), tmp_path / "upright", tmp_path / "turned", []
    upright.mkdir(), turned.mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    for i in range(6):
        picture = generator.integers(0, 256, (16, 16, 3)) * np.linspace(0, 1, 16)[:, None, None]
        picture = Image.fromarray(picture.astype(np.uint8))
        picture.save(upright / f"{i}.png")
        picture.transpose(Image.Transpose.ROTATE_180).save(turned / f"{i}.png", exif=exif)
        ours.append(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(i)))

    def features(batches: object) -> np.ndarray:
        return torch.cat([x.mean(1)[:, ::8, ::8].flatten(1) for x in batches]).double().numpy()  # type: ignore[attr-defined]

    def distance(folder: Path) -> float:
        pictures = evaluate.Images.of_folder(evaluate.check_reference(folder))
        return frechet_distance(features(ours), features(pictures.batches(4, "cpu")))

    assert distance(turned) == distance(upright)
    for file in turned.iterdir():  # the test can tell: without the tag they stand on their heads
        Image.fromarray(np.asarray(Image.open(file))).save(file)
    assert distance(turned) != pytest.approx(distance(upright), rel=0.05)
    tried("used")


# Depth


@pytest.mark.parametrize(
    ("mode", "suffix"), [("I;16", "png"), ("I;16", "tif"), ("I;16B", "tif"), ("I", "tif"), ("I;16", "pgm"), ("I;16", "jp2")]
)
def test_grey_of_16_bits_is_scaled(mode: str, suffix: str, tmp_path: Path, tried: Tried) -> None:
    picture = Image.fromarray(RAMP.astype(np.int32) if mode == "I" else RAMP)
    if mode == "I;16B":
        picture = Image.frombytes(mode, (40, 24), RAMP.astype(">u2").tobytes())
    close(saved(tmp_path / f"x.{suffix}", picture), tensor(RAMP / 65535))
    tried("used")


def test_dark_grey_of_16_bits_stays_dark_and_its_clear_value_is_white(tmp_path: Path, tried: Tried) -> None:
    dark = RAMP // 256
    close(saved(tmp_path / "x.pgm", Image.fromarray(dark)), tensor(dark / 65535))
    close(saved(tmp_path / "x.png", Image.fromarray(dark), transparency=7), tensor(np.where(dark == 7, 65535, dark) / 65535))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    close(saved(tmp_path / "turned.png", Image.fromarray(RAMP), exif=exif), tensor(RAMP[::-1].T / 65535))
    tried("used", 3)


def test_colours_of_16_bits_are_read(tmp_path: Path, tried: Tried) -> None:
    """A PNG written by hand: Pillow writes none."""
    deep = RGB.astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "x.png").write_bytes(png(40, 24, 16, 2, rows))
    close(tmp_path / "x.png", tensor(RGB / 255))
    tried("used")


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# Transparency and colours


def test_transparency_is_laid_on_white(tmp_path: Path, tried: Tried) -> None:
    alpha = np.linspace(0, 255, 24 * 40).round().astype(np.uint8).reshape(24, 40)
    colours = Image.fromarray(np.dstack([RGB, alpha]))
    white = Image.alpha_composite(Image.new("RGBA", (40, 24), "white"), colours).convert("RGB")
    for suffix in ("png", "tif", "tga", "webp"):
        options = {"lossless": True, "exact": True} if suffix == "webp" else {}
        close(saved(tmp_path / f"x.{suffix}", colours, **options), tensor(np.asarray(white) / 255), 1)
    grey = Image.fromarray(np.dstack([RGB[..., 0], alpha]))
    share = alpha / 255
    close(saved(tmp_path / "grey.png", grey), tensor(RGB[..., 0] / 255 * share + 1 - share))
    tried("used", 5)


@pytest.mark.parametrize(("mode", "suffix"), [("P", "png"), ("L", "png"), ("RGB", "png"), ("1", "png"), ("P", "gif"), ("L", "gif")])
def test_a_clear_colour_is_white(mode: str, suffix: str, tmp_path: Path, tried: Tried) -> None:
    picture = Image.fromarray(np.where(RGB[..., :1] > 128, 255, 0).astype(np.uint8).repeat(3, 2)).convert(mode)
    clear = {"P": picture.getpixel((0, 0)), "L": 255, "RGB": (255, 255, 255), "1": 0}[mode]
    expected = np.asarray(picture.convert("RGB")) / 255
    if mode == "1":  # its black is clear, so that nothing but white is left
        expected = np.ones_like(expected)
    close(saved(tmp_path / f"x.{suffix}", picture, transparency=clear), tensor(expected))
    tried("used")


def test_a_palette_with_alpha_is_laid_on_white(tmp_path: Path, tried: Tried) -> None:
    picture = Image.fromarray(RGB).quantize(8)
    opacity = bytes([0, 128, 255, 64, 32, 200, 10, 90])
    close(
        saved(tmp_path / "x.png", picture, transparency=opacity),
        tensor(
            np.asarray(picture.convert("RGB")) / 255 * (a := np.frombuffer(opacity, np.uint8)[np.asarray(picture)][..., None] / 255)
            + 1
            - a
        ),
    )
    tried("used")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_are_seen_as_pillow_shows_them(mode: str, tmp_path: Path, tried: Tried) -> None:
    picture = Image.fromarray(RGB).convert(mode)
    path = saved(tmp_path / "x.tif", picture)
    close(path, tensor(np.asarray(picture.convert("RGB")) / 255))
    tried("used")


def profile(kind: str) -> bytes:
    """Of wide RGB: Pillow's sRGB with red and green exchanged, which no reader can overlook."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if kind == "sRGB":
        return plain
    red, green = plain.index(b"rXYZ"), plain.index(b"gXYZ")
    return b"".join([plain[:red], b"gXYZ", plain[red + 4 : green], b"rXYZ", plain[green + 4 :]])


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_an_embedded_profile_is_converted_to_srgb(suffix: str, tmp_path: Path, tried: Tried) -> None:
    flat = Image.new("RGB", (16, 16), (255, 128, 0))
    own, options = profile("exchanged"), {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"x.{suffix}", flat, icc_profile=own, **options)
    close(path, tensor(np.full((16, 16, 3), (128, 255, 0)) / 255), 6)
    srgb = saved(tmp_path / f"y.{suffix}", flat, icc_profile=profile("sRGB"), **options)
    assert torch.equal(images.read(srgb), images.read(saved(tmp_path / f"z.{suffix}", flat, **options)))  # to the last bit
    tried("used", 2)


def test_a_profile_under_transparency_counts_and_a_damaged_one_says_nothing(tmp_path: Path, tried: Tried) -> None:
    half = Image.new("RGBA", (16, 16), (255, 0, 0, 128))
    path = saved(tmp_path / "x.png", half, icc_profile=profile("exchanged"))
    close(path, tensor(np.full((16, 16, 3), (127, 255, 127)) / 255), 6)
    for wrong in (b"not a profile", profile("sRGB")[:200]):
        for mode in ("RGB", "L", "P"):
            picture = Image.fromarray(RGB).convert(mode)
            close(saved(tmp_path / "x.png", picture, icc_profile=wrong), tensor(np.asarray(picture.convert("RGB")) / 255))
    close(saved(tmp_path / "x.png", Image.fromarray(RGB[..., 0]), icc_profile=profile("exchanged")), tensor(RGB[..., 0] / 255))
    tried("used", 8)


def test_stored_pictures_are_read_to_the_last_bit(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(images.png(tensor(RGB / 255)[0]))
    assert torch.equal(images.read(tmp_path / "x.png")[0], torch.from_numpy(RGB.copy()).permute(2, 0, 1).float() / 255)


def test_a_picture_in_memory_is_left_as_it_is() -> None:
    picture = Image.fromarray(RGB)
    picture.getexif()[ExifTags.Base.Orientation] = 6
    images.from_pil([picture])
    assert picture.size == (40, 24) and picture.getexif()[ExifTags.Base.Orientation] == 6
    torch.testing.assert_close(images.from_pil([picture]), tensor(np.asarray(ImageOps.exif_transpose(picture)) / 255))


def test_a_grey_profile_is_converted_too(tmp_path: Path, tried: Tried) -> None:
    """One of light itself, gamma 1: in sRGB its middle grey is far brighter. By the standard's formula."""
    s15 = struct.pack(">3i", *(round(value * 65536) for value in (0.9642, 1, 0.8249)))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + s15, b"kTRC": b"curv\0\0\0\0" + struct.pack(">IHH", 1, 256, 0)}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s12x4s", offset + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    own = head.ljust(68, b"\0") + s15 + bytes(128 - 80) + struct.pack(">I", len(tags)) + table + body
    light = np.linspace(0, 1, 24 * 40).reshape(24, 40)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    grey = Image.fromarray((light * 255).round().astype(np.uint8))
    path = saved(tmp_path / "x.png", grey, icc_profile=own)
    assert float((images.read(path) - tensor(srgb)).abs().mean()) < 0.01 < 0.1 < np.abs(srgb - light).mean()
    tried("used")


def test_a_phone_s_picture_with_a_second_one_behind_it_is_its_first(tmp_path: Path, tried: Tried) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options = {"quality": 100, "subsampling": 0, "exif": exif}
    Image.fromarray(RGB).save(
        tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(RGB[:12, :20])], **options
    )
    with Image.open(tmp_path / "x.jpg") as picture:
        assert (picture.format, picture.n_frames) == ("MPO", 2)
    close(tmp_path / "x.jpg", tensor(RGB[::-1].transpose(1, 0, 2) / 255), 6)
    tried("used")


# What is refused


def animation(path: Path) -> None:
    Image.fromarray(RGB).save(path, save_all=True, append_images=[Image.fromarray(RGB[::-1])])


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "float": ("x.tif", lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), "floating-point .* range is not known"),
    "float map": ("x.pfm", lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), "floating-point"),
    "32 bits": ("x.tif", lambda path: Image.fromarray(RAMP.astype(np.int32) * 9).save(path), "32 bits"),
    "negative": ("x.tif", lambda path: Image.fromarray(RAMP.astype(np.int32) - 9).save(path), "32 bits"),
    "labels": ("x.tif", lambda path: Image.fromarray(RAMP.astype(np.int32) // 9000).save(path), "32 bits"),
    "gif": ("x.gif", animation, "holds 2 pictures"),
    "webp": ("x.webp", animation, "holds 2 pictures"),
    "apng": ("x.png", animation, "holds 2 pictures"),
    "pages": ("x.tif", animation, "holds 2 pictures"),
    "one pixel": ("x.png", lambda path: Image.new("RGB", (1, 1)).save(path), "1 x 1 px: a side needs 2 px"),
    "a line": ("x.png", lambda path: Image.new("RGB", (2, 201)).save(path), "2 x 201 px: .*100 times"),
    "no pixel": ("x.png", lambda path: path.write_bytes(png(0, 0, 8, 2, b"")), "x.png"),
    "bomb": ("x.png", lambda path: path.write_bytes(png(100_000, 100_000, 8, 2, b"\0")), "decompression bomb"),
    "cut jpeg": ("x.jpg", lambda path: cut(path), "truncated"),
    "cut png": ("x.png", lambda path: cut(path), "x.png"),
    "cut webp": ("x.webp", lambda path: cut(path), "x.webp"),
    "cut tiff": ("x.tif", lambda path: cut(path), "x.tif"),
    "cut gif": ("x.gif", lambda path: cut(path), "x.gif"),
    "empty": ("x.png", lambda path: path.write_bytes(b""), "not an image that Pillow can read"),
    "text": ("x.jpg", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), "not an image"),
    "postscript": ("x.png", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"), "EPS"),
    "pipe": ("x.png", lambda path: os.mkfifo(path), "is no regular file"),
    "device": ("x.png", lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    "dangling": ("x.png", lambda path: path.symlink_to("nothing"), "No such file|is missing"),
    "circle": ("x.png", lambda path: path.symlink_to(path.name), "symbolic links"),
}  # fmt: skip


def cut(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, {".jpg": "JPEG", ".tif": "TIFF"}.get(path.suffix, path.suffix[1:].upper()))
    path.write_bytes(buffer.getvalue()[: -len(buffer.getvalue()) // 3])


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_refused_at_every_door(kind: str, tmp_path: Path, tried: Tried) -> None:
    name, make, reason = REFUSED[kind]
    folder = tmp_path / "cat"
    folder.mkdir()
    make(folder / name)
    Image.fromarray(RGB).save(folder / "good.png")
    (tmp_path / "tasks.jsonl").write_text(f'{{"prompt": "a cat", "reference": "cat/{name}"}}')
    path, cat = str(folder / name), Task(id="cat", prompt="a cat", reference=str(folder / name))
    doors: list[tuple[type[Exception], Callable[[], object]]] = [
        (OSError, lambda: images.read(folder / name)),
        (BadValue, lambda: read_reference("source_image", path)),
        (BadValue, lambda: ImageToImage(prompts=Animals(limit=1), images=[path]).tasks()),
        (BadValue, lambda: Jsonl(path=str(tmp_path / "tasks.jsonl")).tasks()),
        (UsageError, lambda: References(reward="r", image=path, embed=lambda x: x)),
        (UsageError, lambda: References(reward="r", image=None, embed=lambda x: x).check([cat])),
        (UsageError, lambda: evaluate.check_reference(folder)),
        (UsageError, lambda: ClassFolders(path=str(tmp_path)).check([cat])),
    ]
    for raised, door in doors:
        with pytest.raises(raised) as refused:
            door()
        assert name in str(refused.value) and "\n" not in str(refused.value)
        assert re.search(reason, str(refused.value))
        tried("refused")


# Folders


def test_every_suffix_that_pillow_decodes_is_taken(tmp_path: Path, tried: Tried, capsys: pytest.CaptureFixture[str]) -> None:
    known = Image.registered_extensions()
    written = [
        suffix for suffix, kind in known.items() if kind in Image.SAVE and suffix in images.suffixes() - {".im", ".msp", ".xbm"}
    ]
    for suffix in written:
        try:
            Image.fromarray(RGB).save(tmp_path / f"x{suffix.upper()}")
        except (OSError, ValueError):  # of a few that hold no RGB
            continue
    folder = evaluate.Images.of_folder(evaluate.check_reference(tmp_path))
    assert {".png", ".jpg", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".jfif", ".jp2"} <= {
        path.suffix.lower() for path in folder.paths
    }
    assert len(folder) == len(list(tmp_path.iterdir())) == sum(len(batch) for batch in folder.batches(1, "cpu"))
    assert capsys.readouterr().err == ""
    tried("used", len(folder))


def test_what_a_folder_holds_besides_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str], tried: Tried) -> None:
    Image.fromarray(RGB).save(tmp_path / "b.PNG"), Image.fromarray(RGB).save(tmp_path / "a.jpeg")
    for name in (".DS_Store", "._a.jpeg", "c\n.heic", "d.txt", "e.eps", evaluate.GRID):
        (tmp_path / name).write_text("x")
    (tmp_path / "more.png").mkdir()
    for _ in range(2):
        folder = evaluate.check_reference(tmp_path)
        assert [path.name for path in evaluate.Images.of_folder(folder).paths] == ["a.jpeg", "b.PNG"]
    left = "left out 5 of 7 entries, which are no pictures of the set: 'c\\n.heic', d.txt, e.eps, ..."
    assert capsys.readouterr().err == f"guidedgen: {tmp_path}: {left}\n"
    tried("used")


def test_a_file_is_decoded_once_while_it_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    whole = images.read
    monkeypatch.setattr(images, "read", lambda path: decoded.append(path) or whole(path))
    Image.fromarray(RGB).save(tmp_path / "x.png")
    for _ in range(3):
        evaluate.check_reference(tmp_path)
    assert decoded == [tmp_path / "x.png"]
    Image.fromarray(RGB[:20]).save(tmp_path / "x.png")
    evaluate.check_reference(tmp_path)
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("~nobody-at-all/x", "cannot be read .*home"), ("x" * 300, "cannot be read .File name too long"), ("a\0b", "no such folder"),
        ("/dev/zero", "no such folder"),
    ],
)  # fmt: skip
def test_folders_that_are_none(folder: str, reason: str, tried: Tried) -> None:
    with pytest.raises(UsageError, match=f"^reference=.*: {reason}"):
        evaluate.check_reference(Path(folder))
    tried("refused")


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(RGB).save(tmp_path / "x.png")
    assert evaluate.check_reference(Path("~")) == tmp_path
    References(reward="r", image="~/x.png", embed=lambda x: x)
    with pytest.raises(UsageError, match="^reward.image=~nobody-at-all/x.png: cannot be read"):
        References(reward="r", image="~nobody-at-all/x.png", embed=lambda x: x)
    tried("used", 2), tried("refused")


def test_what_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried) -> None:
    """Said for the system, as the superuser may read all."""

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    Image.fromarray(RGB).save(tmp_path / "x.png")
    with monkeypatch.context() as patch, pytest.raises(UsageError, match="x.png is not a readable image .Permission denied"):
        patch.setattr(Image, "open", refuse)
        evaluate.check_reference(tmp_path)
    monkeypatch.setattr(Path, "iterdir", refuse)
    for door in (
        lambda: evaluate.check_reference(tmp_path),
        lambda: ClassFolders(path=str(tmp_path)).check([Task(id="cat", prompt="a cat")]),
    ):
        with pytest.raises(UsageError, match="cannot be read .Permission denied"):
            door()
    tried("refused", 3)
