"""The style references are what their functions draw, and nothing like each other."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from guidedgen.basics.errors import BadValue
from guidedgen.basics.images import to_bytes
from guidedgen.lab import shipping, styles
from guidedgen.lab.world import SIZE


@pytest.mark.parametrize("name", styles.STYLES)
def test_the_shipped_picture_is_the_one_that_is_drawn(name: str) -> None:
    with Image.open(styles.file(name)) as picture:
        assert (picture.mode, picture.size) == ("RGB", (SIZE, SIZE))
        shipped = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    drawn = to_bytes(styles.draw(name)[None])[0]
    # A level of 255 is what another machine's sine may round the other way.
    assert (shipped.int() - drawn.int()).abs().max() <= 1


def test_drawing_again_gives_the_same_files(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        monkeypatch.setattr(shipping, "WEIGHTS", folder)
        shipping.ship_styles()
    files = [{path.name: path.read_bytes() for path in (tmp_path / side / "styles").iterdir()} for side in "ab"]
    assert files[0] == files[1]
    assert set(files[0]) == {f"{name}.png" for name in styles.STYLES}


def test_an_unknown_style_is_named_with_the_choices() -> None:
    with pytest.raises(BadValue, match="reference='cubist': no such style; choices: mosaic, night, stripes, pastel") as caught:
        styles.file("cubist")
    assert caught.value.name == "reference"


def test_palettes_and_textures_differ() -> None:
    pictures = {name: styles.draw(name) for name in styles.STYLES}
    for a, b in itertools.combinations(pictures.values(), 2):
        assert (a.mean((1, 2)) - b.mean((1, 2))).abs().max() > 0.2
    # Share of neighbours in a row and in a column that differ visibly: stripes change down the picture only.
    across = {name: ((p[:, :, 1:] - p[:, :, :-1]).abs().amax(0) > 0.1).float().mean().item() for name, p in pictures.items()}
    down = {name: ((p[:, 1:] - p[:, :-1]).abs().amax(0) > 0.1).float().mean().item() for name, p in pictures.items()}
    assert across["stripes"] == 0 < 0.2 < down["stripes"]
    assert across["pastel"] < 0.1 < 0.2 < across["mosaic"]
    assert 0.05 < across["night"] < across["mosaic"]
