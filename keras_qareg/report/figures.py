"""Figures of the page, as SVG: distributions of weights, parts of a whole, losses against bytes.

Their texts are readable on a phone, where a figure is about as wide as its coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_qareg.numerics.clustering import MAX_LEVELS
from keras_qareg.report.markup import Markup, joined, number, tag

WIDTH, _PANEL, _SPACE, _EDGE = 360, 78, 22, 8
BINS = 72


def distribution(
    before: np.ndarray | None, after: np.ndarray | None, label: str, noun: str = "weights"
) -> Markup | None:
    """Weights before quantization as a histogram, and below it how many weights each value has after.

    Args:
        before: The weights before, or `None` where these are unknown.
        after: The weights after, or `None` where they are not quantized.
        label: What it shows, for those who do not see it.
        noun: What the numbers are.

    Returns:
        SVG; `None` where there is no finite number to draw.
    """
    parts = [
        (kind, title, values[np.isfinite(values)].astype("float64"))
        for kind, title, values in (
            ("before", f"{noun} before" if after is not None else noun, before),
            ("after", f"{noun} after" if before is not None else noun, after),
        )
        if values is not None
    ]
    parts = [part for part in parts if part[2].size]
    if not parts:
        return None
    low = min(float(values.min()) for *_, values in parts)
    high = max(float(values.max()) for *_, values in parts)
    if low == high:
        low, high = low - max(abs(low), 1e-3) / 2, high + max(abs(high), 1e-3) / 2
    drawn, floor = [], 0.0
    for kind, title, values in parts:
        floor += _SPACE + _PANEL
        drawn.append(_panel(kind, title, values, (low, high), floor))
    for tick in _ticks(low, high):
        x = _along(tick, low, high)
        ends = {"text_anchor": "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"}
        drawn.append(tag("path", d=f"M{x:.1f} {floor:.1f}v4", class_="axis"))
        drawn.append(tag("text", number(tick), x=f"{x:.1f}", y=f"{floor + 17:.1f}", **ends))
    return _figure(int(floor) + 22, label, *drawn)


def _panel(
    kind: str, title: str, values: np.ndarray, ends: tuple[float, float], floor: float
) -> Markup:
    places, counts = np.unique(values, return_counts=True)
    # A small kernel has few weights, but each of its own value.
    few = places.size <= min(MAX_LEVELS, values.size // 2 if kind == "before" else MAX_LEVELS)
    if few:
        most, said = int(counts.max()), "a value"
        shape = "".join(
            f"M{_along(place, *ends):.1f} {floor:g}v-{_PANEL * count / most:.1f}"
            for place, count in zip(places, counts, strict=True)
        )
    else:
        counts, edges = np.histogram(values, BINS, ends)
        most, said = int(counts.max()), "a bar"
        tops = [f"V{floor - _PANEL * count / most:.1f}" for count in counts]
        sides = [f"H{_along(edge, *ends):.1f}" for edge in edges[1:]]
        steps = "".join(top + side for top, side in zip(tops, sides, strict=True))
        shape = f"M{_EDGE} {floor:g}{steps}V{floor:g}z"
    many = " many" if few and places.size > 64 else ""
    return joined(
        tag("text", f"{title}: up to {most:,} {said}", x=_EDGE, y=f"{floor - _PANEL - 7:g}"),
        tag("path", d=shape, class_=f"{kind} {'stems' + many if few else 'bars'}"),
        tag("path", d=f"M{_EDGE} {floor:g}H{WIDTH - _EDGE}", class_="axis"),
    )


def _along(value: float, low: float, high: float) -> float:
    """Where a value is from left to right."""
    return _EDGE + (WIDTH - 2 * _EDGE) * (value - low) / (high - low)


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range."""
    raw = (high - low) / most
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * part for part in (1, 2, 5, 10) if base * part >= raw)
    return [step * place for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def bar(part: float, whole: float) -> Markup:
    """A bar, as long as the share of a part in the longest; what it shows stands beside it."""
    drawn = tag("rect", width=f"{100 * part / whole if whole else 0:.2f}", height=10)
    options: dict[str, Any] = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none"}
    return tag("svg", drawn, class_="bar", aria_hidden="true", focusable="false", **options)


def stacked(parts: Sequence[float]) -> Markup:
    """Parts of a whole in one bar; a table below it says what they are."""
    drawn, start, whole = [], 0.0, sum(parts) or 1.0
    for place, part in enumerate(parts):
        width = 100 * part / whole
        if part:
            x = f"{start:.3f}"
            drawn.append(tag("rect", x=x, width=f"{width:.3f}", height=10, class_=f"part-{place}"))
        start += width
    options: dict[str, Any] = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none"}
    return tag("svg", *drawn, class_="stacked", aria_hidden="true", focusable="false", **options)


def curve(
    points: Sequence[tuple[float, float]],
    uniform: Mapping[int, tuple[float, float]],
    chosen: tuple[float, float],
    label: str,
) -> Markup | None:
    """Losses against bytes, both logarithmic.

    Args:
        points: Bytes and losses of other budgets.
        uniform: The same of one number of levels for all kernels, by that number.
        chosen: Those of the plan.
        label: What it shows, for those who do not see it.

    Returns:
        SVG; `None` where no loss is above 0.
    """
    every = [point for point in (*points, *uniform.values(), chosen) if min(point) > 0]
    if not every:
        return None
    spans = [_span([point[axis] for point in every]) for axis in (0, 1)]
    left, top, height = 48, 24, 200

    def at(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (
            (math.log10(value) - low) / (high - low)
            for value, (low, high) in zip(point, spans, strict=True)
        )
        return left + (WIDTH - left - 16) * x, top + height * (1 - y)

    floor, end = top + height, WIDTH - 16
    drawn = [
        tag("text", "loss", x=4, y=12),
        tag("text", "bytes of the file", x=end, y=floor + 34, text_anchor="end"),
    ]
    for value in _decades(*spans[0]):
        x = at((value, 10 ** spans[1][0]))[0]
        drawn.append(tag("path", d=f"M{x:.1f} {top}V{floor + 4}", class_="grid"))
        drawn.append(tag("text", _short(value), x=f"{x:.1f}", y=floor + 18, text_anchor="middle"))
    for value in _decades(*spans[1]):
        y = at((10 ** spans[0][0], value))[1]
        drawn.append(tag("path", d=f"M{left - 4} {y:.1f}H{end}", class_="grid"))
        drawn.append(tag("text", number(value, 1), x=left - 7, y=f"{y + 4:.1f}", text_anchor="end"))
    line = [at(point) for point in sorted(points) if min(point) > 0]
    if line:
        d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
        drawn.append(tag("path", d=d, class_="line"))
    drawn += _dots({str(levels): at(p) for levels, p in uniform.items() if min(p) > 0})
    if min(chosen) > 0:
        x, y = at(chosen)
        drawn.append(tag("path", d=f"M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7-7z", class_="chosen"))
    return _figure(floor + 40, label, *drawn)


def _dots(places: Mapping[str, tuple[float, float]]) -> list[Markup]:
    """Dots with labels, but for those that would cover another one."""
    drawn: list[Markup] = []
    taken: list[tuple[float, float]] = []
    for label, (x, y) in places.items():
        drawn.append(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=4, class_="dot"))
        if all(abs(x - a) > 20 or abs(y - b) > 12 for a, b in taken):
            near = x > WIDTH - 40
            ends = {"text_anchor": "end"} if near else {}
            drawn.append(
                tag("text", label, x=f"{x - 7 if near else x + 7:.1f}", y=f"{y - 6:.1f}", **ends)
            )
            taken.append((x, y))
    return drawn


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Where a logarithmic axis begins and ends."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = 0.06 * (high - low) or 0.2
    return low - margin, high + margin


def _decades(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis: powers of ten, or more where these are few."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [step * 10.0**power for power in powers for step in steps]
        found = [value for value in found if low <= math.log10(value) <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 7)]
    return found


def _short(value: float) -> str:
    """Bytes in few characters: 1.5k, 2M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _figure(height: int, label: str, *content: Any) -> Markup:
    size: dict[str, Any] = {"viewBox": f"0 0 {WIDTH} {height}"}
    return tag("svg", *content, class_="figure", role="img", aria_label=label, **size)
