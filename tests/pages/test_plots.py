"""Fronts, ticks and marks: against brute force and by their definitions."""

import itertools
import random
import xml.etree.ElementTree as ET

import pytest

from guidedgen.studies.plots import Curve, Point, Style, front, lines, log_ticks, scatter, ticks


def dominated(one: tuple[float, float], points: list[tuple[float, float]]) -> bool:
    return any(x <= one[0] and y >= one[1] and (x, y) != one for x, y in points)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_dominates(seed: int) -> None:
    """Against all pairs; few values, so that there are ties and equal points."""
    draw = random.Random(seed)
    points = [(float(draw.randrange(6)), float(draw.randrange(6))) for _ in range(draw.randrange(1, 15))]
    found = front(points)
    assert set(found) == {i for i, point in enumerate(points) if not dominated(point, points)}
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 11), (0.7238, 0.7812), (1e-7, 3e-7), (99, 100.5), (-5, -4.99)])
def test_ticks_are_round_and_enough(low: float, high: float) -> None:
    found = ticks(low, high)
    step = found[1] - found[0]
    assert low <= found[0] + 1e-9 * step and found[-1] <= high + 1e-9 * step
    assert found[0] - low < step and high - found[-1] < step  # none is missing
    assert 4 <= (high - low) / step * 1.001 <= 11
    assert f"{step:.0e}"[0] in "125" and step == pytest.approx(float(f"{step:.0e}"))


@pytest.mark.parametrize(("low", "high"), [(50, 2000), (0.002, 0.03), (1, 1e9)])
def test_log_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = log_ticks(low, high)
    assert 2 <= len(found) <= 10 and found == sorted(found)
    assert all(
        low <= value <= high and f"{value:.0e}"[0] in "125" and value == pytest.approx(float(f"{value:.0e}")) for value in found
    )


def point(name: str, x: float, y: float) -> Point:
    return Point(name=name, style=Style(number=0), x=x, y=y, low=y - 1, high=y + 1)


def test_points_lie_where_their_values_are_and_the_front_joins_them() -> None:
    """A straight line of values is one of pixels; up is more."""
    svg = ET.fromstring(scatter([point(str(i), i, 2.0 * i) for i in range(4)], "cost", "reward"))
    points = [(float(mark.attrib["cx"]), float(mark.attrib["cy"])) for mark in svg.iter("circle")]
    across, down = ([b - a for a, b in itertools.pairwise(axis)] for axis in zip(*points, strict=True))
    assert across == pytest.approx([across[0]] * 3, abs=0.11) and across[0] > 20
    assert down == pytest.approx([down[0]] * 3, abs=0.11) and down[0] < -20
    [line] = [item for item in svg.iter("polyline") if item.attrib["class"] == "front"]
    assert [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()] == points
    assert [title.text for title in svg.iter("title")][1] == "1: reward 2 (1 to 3), cost 1, on the front"


def test_a_cost_that_spans_decades_is_on_a_log_scale() -> None:
    """Equal ratios are equal distances, which 1, 10, 100 would not be on the linear scale of a narrower range."""
    svg = ET.fromstring(scatter([point(str(x), x, x) for x in (1, 10, 100)], "cost", "reward", log_x=True))
    one, ten, hundred = (float(mark.attrib["cx"]) for mark in svg.iter("circle"))
    assert hundred - ten == pytest.approx(ten - one, abs=0.11)
    assert "cost, log scale" in [text.text for text in svg.iter("text")]
    svg = ET.fromstring(scatter([point(str(x), x, x) for x in (1, 2, 4)], "cost", "reward", log_x=True))
    assert "cost" in [text.text for text in svg.iter("text")]


def test_names_do_not_hide_each_other() -> None:
    svg = ET.fromstring(scatter([point(f"run {i}", 0.0, float(i % 2)) for i in range(30)], "cost", "reward"))
    labels = [text for text in svg.iter("text") if text.get("class") == "label"]
    points = {(text.attrib["x"], text.attrib["y"]) for text in labels}
    assert 2 <= len(labels) == len(points) < 30  # the rest is shown on hovering
    assert len(list(svg.iter("title"))) == 30


@pytest.mark.parametrize("number", [None, *range(8)])
def test_one_value_alone_and_hostile_names_are_drawn(number: int | None) -> None:
    alone = Point(name='<b> & "x"', style=Style(number=number), x=0.0, y=3.0)
    titles = [title.text for title in ET.fromstring(scatter([alone, alone], "<x>", "&y")).iter("title")]
    assert titles == ['<b> & "x": &y 3, <x> 0, on the front'] * 2


def test_bands_are_drawn_while_few_curves_share_a_plot() -> None:
    def curve(i: int) -> Curve:
        return Curve(name=str(i), style=Style(number=i), steps=[0, 1], means=[1.0, 2.0], lows=[0.5, 1.5], highs=[1.5, 2.5])

    for count, bands in ((4, 4), (5, 0)):
        svg = ET.fromstring(lines([curve(i) for i in range(count)], "step", "reward"))
        assert len(list(svg.iter("polygon"))) == bands
        assert len(list(svg.iter("polyline"))) == count


def test_sixteen_runs_look_different() -> None:
    looks = {(Style(number=i).colour, Style(number=i).shape) for i in range(40)} | {(Style().colour, Style().shape)}
    assert len(looks) == 41
