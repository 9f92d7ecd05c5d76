"""Points and curves as SVG: axes with round ticks, names where there is space, the rest in titles that show on hovering.

Colours and shapes are classes, `c0` to `c7` and `base`; the page's style sheet says what they look like.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from guidedgen.studies.html import Markup, tag

_WIDTH, _HEIGHT = 480, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 16, 46  # margins around the axes
_COLOURS, _SHAPES = 8, 5
_LETTER, _LINE = 6.1, 12  # px of a letter and a line of the labels
_BANDS = 4  # curves from which on bands hide each other
_TINY = 1e-100  # below which differences are none
_SPREAD = 8  # the largest value over the smallest from which on an axis is logarithmic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """How a run looks everywhere on the page."""

    number: int | None = None  # None: unguided

    @property
    def colour(self) -> str:
        """Class of its colour."""
        return "base" if self.number is None else f"c{self.number % _COLOURS}"

    @property
    def shape(self) -> int:
        """Which of the marks."""
        return 0 if self.number is None else self.number % _SHAPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A run in a plot, with its interval along y where there is one."""

    name: str
    style: Style
    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A run's mean over its samples by step, with the range that holds the middle 80 %."""

    name: str
    style: Style
    steps: Sequence[float]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The Pareto front: indices of the points (x, y) that no other point dominates, where lower x and higher y are better; by x.

    Equal points are all on the front.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    found: list[int] = []
    best, equal = -math.inf, None
    for i in order:
        if points[i][1] > best or points[i] == equal:
            found.append(i)
            best, equal = points[i][1], points[i]
    return found


def ticks(low: float, high: float) -> list[float]:
    """The multiples in a range of the largest of 1, 2 or 5 times a power of ten that has at least four of its steps there."""
    if not high > low:
        return [low]
    most = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(most))
    step = next(factor * power for factor in (5, 2, 1) if factor * power <= most * 1.001)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in a range of positive numbers, or powers alone where that is more than eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [[factor * 10.0**power for power in powers for factor in factors] for factors in ((1, 2, 5), (1,))]
    inside = [[value for value in values if low * 0.999 <= value <= high * 1.001] for values in found]
    return inside[0] if len(inside[0]) <= 8 else inside[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    """Values to pixels, from `start` to `end`."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @staticmethod
    def around(values: Sequence[float], *, log: bool, start: float, end: float) -> _Axis:
        """An axis with a margin at both ends of the values; a logarithmic one where it is asked for and the values need it."""
        low, high = min(values), max(values)
        if log and low > _TINY and high / low > _SPREAD:
            margin = (high / low) ** 0.06
            return _Axis(low=low / margin, high=high * margin, log=True, start=start, end=end)
        margin = 0.06 * (high - low)
        if high - low <= _TINY:
            margin = 0.5 * abs(high) if abs(high) > _TINY else 0.5
        return _Axis(low=low - margin, high=high + margin, log=False, start=start, end=end)

    def __call__(self, value: float) -> float:
        turn: Callable[[float], float] = math.log if self.log else float
        share = (turn(value) - turn(self.low)) / (turn(self.high) - turn(self.low))
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def _axes(x_values: Sequence[float], y_values: Sequence[float], *, log_x: bool, log_y: bool) -> tuple[_Axis, _Axis]:
    return (
        _Axis.around(x_values, log=log_x, start=_LEFT, end=_WIDTH - _RIGHT),
        _Axis.around(y_values, log=log_y, start=_HEIGHT - _BOTTOM, end=_TOP),
    )


def _frame(x: _Axis, y: _Axis, x_label: str, y_label: str) -> Iterator[Markup]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in y.ticks:
        yield tag("line", x1=_LEFT, x2=right, y1=y(value), y2=y(value), class_="rule")
        yield tag("text", f"{value:.4g}", x=_LEFT - 7, y=y(value) + 4, text_anchor="end")
    for value in x.ticks:
        yield tag("line", x1=x(value), x2=x(value), y1=bottom, y2=bottom + 5, class_="axis")
        yield tag("text", f"{value:.5g}", x=x(value), y=bottom + 18, text_anchor="middle")
    yield tag("line", x1=_LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")
    across, down = (_LEFT + right) / 2, (_TOP + bottom) / 2
    yield tag("text", x_label + ", log scale" * x.log, x=across, y=_HEIGHT - 8, text_anchor="middle", class_="name")
    turned = f"rotate(-90 14 {down})"
    yield tag("text", y_label + ", log scale" * y.log, x=14, y=down, transform=turned, text_anchor="middle", class_="name")


def _svg(described: str, *parts: Markup) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=described)


def mark(style: Style, x: float, y: float, size: float = 5) -> Markup:
    """A run's mark: a circle, square, triangle, diamond or cross of its colour, at a position."""
    side, half, long, tall = (round(share * size, 1) for share in (2, 1.3, 1.4, 2.2))
    paths = {
        1: f"M{x - size:.1f} {y - size:.1f}h{side}v{side}h{-side}z",
        2: f"M{x:.1f} {y - half:.1f}l{half} {tall}h{-2 * half:.1f}z",
        3: f"M{x:.1f} {y - long:.1f}l{long} {long}l{-long} {long}l{-long} {-long}z",
        4: f"M{x - size:.1f} {y - size:.1f}l{side} {side}m0 {-side}l{-side} {side}",
    }
    if style.shape == 0:
        return tag("circle", cx=x, cy=y, r=size, class_=f"mark {style.colour}")
    return tag("path", d=paths[style.shape], class_=f"mark {style.colour}{' open' if style.shape == 4 else ''}")


def scatter(points: Sequence[Point], x_label: str, y_label: str, *, log_x: bool = False, more_x: bool = False) -> Markup:
    """Runs in a plane with the Pareto front of low x and high y as a line, of high x where `more_x` of it is better, and their
    intervals along y.
    """
    ends = [end for point in points for end in (point.y, point.low, point.high) if end is not None]
    x, y = _axes([point.x for point in points], ends, log_x=log_x, log_y=False)
    best = front([(-point.x if more_x else point.x, point.y) for point in points])
    on_front = set(best)
    line = tag("polyline", points=" ".join(f"{x(points[i].x)},{y(points[i].y)}" for i in best), class_="front")
    parts = []
    for i, point in enumerate(points):
        left, whisker, text = x(point.x), None, f"{point.name}: {y_label} {point.y:.4g}"
        if point.low is not None and point.high is not None:
            text += f" ({point.low:.4g} to {point.high:.4g})"
            whisker = tag("line", x1=left, x2=left, y1=y(point.low), y2=y(point.high), class_=f"whisker {point.style.colour}")
        title = tag("title", f"{text}, {x_label} {point.x:.4g}{', on the front' if i in on_front else ''}")
        parts.append(tag("g", title, whisker, mark(point.style, left, y(point.y)), class_="point"))
    names = _placed([(point.name, x(point.x), y(point.y)) for point in points])
    return _svg(f"{y_label} against {x_label}", *_frame(x, y, x_label, y_label), line, *parts, *names)


def _placed(points: Sequence[tuple[str, float, float]]) -> Iterator[Markup]:
    """Names next to their points where they hide neither a point nor another name; others are left to the titles."""
    taken = _Boxes()
    for _, x, y in points:
        taken.add((x - 6, y - 6, x + 6, y + 6))
    for name, x, y in points:
        text = name if len(name) <= 24 else f"{name[:10]}…{name[-13:]}"  # the end distinguishes runs
        width = _LETTER * len(text)
        for left, middle in itertools.product((x + 9, x - 9 - width, x - width / 2), (y + 4, y - 9, y + 17)):
            box = (left, middle - _LINE + 2, left + width, middle + 2)
            inside = box[0] >= _LEFT and box[2] <= _WIDTH and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM
            if inside and not taken.hit(box):
                taken.add(box)
                yield tag("text", text, x=round(left, 1), y=round(middle, 1), class_="label")
                break


class _Boxes:
    """Boxes (left, top, right, bottom) in squares of the plot, so that a new one is compared with those around it alone."""

    _SQUARE = 32  # px

    def __init__(self) -> None:
        self._there: dict[tuple[int, int], set[tuple[float, float, float, float]]] = {}

    def _squares(self, box: tuple[float, float, float, float]) -> Iterator[tuple[int, int]]:
        left, top, right, bottom = (int(end // self._SQUARE) for end in box)
        return itertools.product(range(left, right + 1), range(top, bottom + 1))

    def add(self, box: tuple[float, float, float, float]) -> None:
        for square in self._squares(box):
            self._there.setdefault(square, set()).add(box)

    def hit(self, box: tuple[float, float, float, float]) -> bool:
        return any(_overlap(box, other) for square in self._squares(box) for other in self._there.get(square, ()))


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def lines(curves: Sequence[Curve], x_label: str, y_label: str, *, log_y: bool = False) -> Markup:
    """Means by step, in bands where there are few curves."""
    banded = len(curves) <= _BANDS
    heights = [value for curve in curves for value in ((*curve.lows, *curve.highs) if banded else curve.means)]
    x, y = _axes([step for curve in curves for step in curve.steps], heights, log_x=False, log_y=log_y)
    bands, means = [], []
    for curve in curves:
        there = [f"{x(step)},{y(high)}" for step, high in zip(curve.steps, curve.highs, strict=True)]
        back = [f"{x(step)},{y(low)}" for step, low in zip(curve.steps, curve.lows, strict=True)]
        bands.append(tag("polygon", points=" ".join([*there, *reversed(back)]), class_=f"band {curve.style.colour}"))
        points = [(x(step), y(mean)) for step, mean in zip(curve.steps, curve.means, strict=True)]
        first, last = (f"{curve.means[i]:.4g} at {curve.steps[i]:g}" for i in (0, -1))
        title = tag("title", f"{curve.name}: {first}, {last}")
        line = tag("polyline", points=" ".join(f"{left},{top}" for left, top in points), class_=f"curve {curve.style.colour}")
        means.append(tag("g", title, line, mark(curve.style, *points[-1], size=4), class_="point"))
    return _svg(f"{y_label} by {x_label}", *_frame(x, y, x_label, y_label), *(bands if banded else ()), *means)


def swatch(style: Style) -> Markup:
    """A run's mark alone, to stand before its name."""
    return tag("svg", mark(style, 8, 8), viewBox="0 0 16 16", class_="swatch", aria_hidden="true")
