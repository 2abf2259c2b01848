"""The geometry of the charts: values over time become paths, points and ticks.

All coordinates are percentages of the plot, from its upper left corner, so that a drawing fits any width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

_DAY_S = 86_400
_TIME_STEPS_S = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, _DAY_S,
)  # fmt: skip
_HEADROOM = 1.08
_LOW_BAND = 60
"""Scales up to this percentage of the plot's height get fewer ticks."""

Values = Sequence[float | None]
"""One value per bucket, or None."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A gridline and its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle: a pause or a bar."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Point:
    """A bucket in a chart: its column, the position of its value, and its text."""

    left: float
    width: float
    x: float
    y: float | None
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart, ready to be drawn. ``stat`` summarizes its values in the caption.

    ``marked`` points are highlighted, ``flagged`` ones are regressions.
    """

    title: str
    unit: str
    stat: str
    description: str
    ticks: Sequence[Tick]
    line: str
    points: Sequence[Point]
    marked: Sequence[Point] = ()
    flagged: Sequence[Point] = ()
    area: str = ""
    faint_line: str = ""
    bars: Sequence[Box] = ()
    bar_ticks: Sequence[Tick] = ()


class Axis(ABC):
    """The time axis that charts share, in Unix seconds, and the column of each value on it."""

    begin: float
    end: float
    most_ticks: int
    joins: bool
    """Whether a line continues across a column without a value."""

    def x(self, at: float) -> float:
        """The position of a moment."""
        return round(100 * (at - self.begin) / (self.end - self.begin), 2)

    @abstractmethod
    def column(self, index: int) -> tuple[float, float, float]:
        """Left edge, position of the value and right edge of a column."""

    @abstractmethod
    def follows(self, index: int) -> bool:
        """Whether a line connects a value to the one before it."""

    def pauses(self) -> list[Box]:
        """The gaps in which nothing ran, over the whole height."""
        return []

    def ticks(self) -> list[Tick]:
        """Ticks at round times in UTC, at most one more than ``most_ticks``."""
        length = self.end - self.begin
        days = math.ceil(length / _DAY_S / self.most_ticks) * _DAY_S
        step = next((s for s in _TIME_STEPS_S if length / s <= self.most_ticks), days)
        first, last = math.ceil(self.begin / step), math.floor(self.end / step)
        return [Tick(self.x(i * step), _moment_label(i * step, step)) for i in range(first, last + 1)]


class TimeAxis(Axis):
    """Time in buckets. ``spans`` are their starts and widths, in Unix seconds."""

    most_ticks = 7
    joins = False

    def __init__(self, spans: Sequence[tuple[float, float]]) -> None:
        self.spans = spans
        if spans:
            self.begin, self.end = spans[0][0], sum(spans[-1])

    def column(self, index: int) -> tuple[float, float, float]:
        start, width = self.spans[index]
        return self.x(start), self.x(start + width / 2), self.x(start + width)

    def follows(self, index: int) -> bool:
        if index == 0:
            return False
        start, width = self.spans[index - 1]
        return self.spans[index][0] < start + 1.5 * width

    def pauses(self) -> list[Box]:
        gaps = [i for i in range(1, len(self.spans)) if not self.follows(i)]
        edges = [(self.column(i - 1)[2], self.column(i)[0]) for i in gaps]
        return [Box(left, 0, round(right - left, 2), 100) for left, right in edges]


class MomentAxis(Axis):
    """Single moments, each with a column that reaches half-way to its neighbours.

    Args:
        moments: ascending, in Unix seconds.
        begin: the start of the axis, which several charts share so that they line up.
        end: its end.
    """

    most_ticks = 4
    joins = True

    def __init__(self, moments: Sequence[float], *, begin: float, end: float) -> None:
        self.moments = moments
        self.begin, self.end = begin, end

    def column(self, index: int) -> tuple[float, float, float]:
        here, last = self.moments[index], len(self.moments) - 1
        left = (self.moments[index - 1] + here) / 2 if index else self.begin
        right = (here + self.moments[index + 1]) / 2 if index < last else self.end
        return self.x(left), self.x(here), self.x(right)

    def follows(self, index: int) -> bool:
        return index > 0


def _moment_label(at: int, step: int) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    if at % _DAY_S == 0:
        return f"{moment:%-d %b}"
    return f"{moment:%H:%M}" if step % 60 == 0 else f"{moment:%H:%M:%S}"


@dataclass(frozen=True, slots=True)
class Scale:
    """A vertical axis from zero to ``top``, drawn between two heights of the plot."""

    top: float
    ticks: Sequence[Tick]
    high: float = 0.0
    low: float = 100.0

    def y(self, value: float) -> float:
        """The position of a value."""
        return _place(value, self.top, self.high, self.low)


def scale(
    values: Values,
    label: Callable[[float, int], str],
    *,
    least: float,
    whole: bool = False,
    band: tuple[float, float] = (0.0, 100.0),
) -> Scale:
    """A scale that covers all values, with a few round ticks.

    Args:
        values: the values to cover, none of them negative.
        label: formats a tick, given its value and the number of decimals that the steps need.
        least: the top of the scale if all values are zero.
        whole: whether the values are counts, so that ticks must be whole numbers.
        band: the heights of the plot between which the scale is drawn.
    """
    largest = max((value for value in values if value is not None), default=0.0)
    top = largest * _HEADROOM if largest > 0 else least
    high, low = band
    rough = top / (5 if low - high > _LOW_BAND else 3)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if largest <= 0:
        step = top
    elif whole:
        step = max(step, 1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = [
        Tick(_place(i * step, top, high, low), label(i * step, decimals))
        for i in range(math.floor(top / step + 1e-9) + 1)
    ]
    return Scale(top, ticks, high, low)


def _place(value: float, top: float, high: float, low: float) -> float:
    return round(low - (low - high) * value / top, 2)


def _runs(axis: Axis, values: Values) -> Iterator[list[tuple[int, float]]]:
    """Values by column, split where the axis does not connect them."""
    run: list[tuple[int, float]] = []
    for index, value in enumerate(values):
        if run and ((value is None and not axis.joins) or not axis.follows(index)):
            yield run
            run = []
        if value is not None:
            run.append((index, value))
    if run:
        yield run


def line_path(axis: Axis, measure: Scale, values: Values) -> str:
    """A line through the middles of the buckets, broken at gaps; a lone value is a dot."""
    parts = []
    for run in _runs(axis, values):
        places = [f"{axis.column(i)[1]:g} {measure.y(value):g}" for i, value in run]
        parts.append("M" + "L".join(places) + ("h0" if len(run) == 1 else ""))
    return "".join(parts)


def area_path(axis: Axis, measure: Scale, values: Values) -> str:
    """The area beneath :func:`line_path`."""
    parts = []
    for run in _runs(axis, values):
        if len(run) > 1:
            places = "L".join(f"{axis.column(i)[1]:g} {measure.y(value):g}" for i, value in run)
            first, last = axis.column(run[0][0])[1], axis.column(run[-1][0])[1]
            parts.append(f"M{first:g} {measure.low:g}L{places}L{last:g} {measure.low:g}Z")
    return "".join(parts)


def step_path(axis: Axis, measure: Scale, values: Values) -> str:
    """A line that keeps each value over its bucket's whole width, broken at gaps."""
    parts = []
    for run in _runs(axis, values):
        for place, (index, value) in enumerate(run):
            left, _, right = axis.column(index)
            height = measure.y(value)
            parts.append(f"V{height:g}" if place else f"M{left:g} {height:g}")
            parts.append(f"H{right:g}")
    return "".join(parts)


def bars(axis: Axis, measure: Scale, values: Values) -> list[Box]:
    """A bar for each value above zero, as wide as its bucket."""
    boxes = []
    for index, value in enumerate(values):
        if value:
            left, _, right = axis.column(index)
            top = measure.y(value)
            boxes.append(Box(left, top, round(right - left, 2), round(measure.low - top, 2)))
    return boxes


def points(axis: Axis, measure: Scale, values: Values, texts: Sequence[str]) -> list[Point]:
    """One point per bucket, with its text."""
    made = []
    for index, (value, text) in enumerate(zip(values, texts, strict=True)):
        left, middle, right = axis.column(index)
        height = None if value is None else measure.y(value)
        made.append(Point(left, round(right - left, 2), middle, height, text))
    return made
