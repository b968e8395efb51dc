"""How figures look: colours that everyone can tell apart, letters that stay readable, plain numbers.

All figures of the package, of benchmarks and of examples are made here. They are of one width, at which
their letters can be read at half the size too. Needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito without its yellow, which is too light for lines; grey is for the others.
BLUE, RED, GREEN, PURPLE, ORANGE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)
COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
GREY, INK = "#7d8b99", "#333f4a"
MARKERS = "osD^vPX*"
WEIGHTS, CENTROIDS = BLUE, RED
# Inches, dots an inch, points; of a line of the legend, letters.
WIDTH, DPI, TEXT, SMALL, LINE = 7.0, 144, 11, 10, 76


def axes(rows: int = 1, columns: int = 1, *, height: float = 3.6, **shared: Any) -> Any:
    """A figure of the common width, and its empty panels.

    Args:
        rows: Panels from top to bottom. Defaults to 1.
        columns: Panels from left to right. Defaults to 1.
        height: Inches of a row. Defaults to 3.6.
        **shared: `sharex` and `sharey`, as in matplotlib's `subplots`.

    Returns:
        The panels as an array of shape `(rows, columns)`; each knows its `figure`.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:

    >>> (panel,) = axes(height=2.0).flat
    >>> panel.figure.get_size_inches().tolist()
    [7.0, 2.0]
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'keras-qareg[plots]'") from error
    figure = Figure(figsize=(WIDTH, rows * height), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, **shared)
    for panel in panels.flat:
        panel.set_prop_cycle(color=COLORS)
        panel.tick_params(labelsize=SMALL)
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return panels


def label(panel: Axes, *, title: str = "", x: str = "", y: str = "") -> None:
    """Writes what a panel shows, and what its axes are."""
    panel.set_title(title, fontsize=TEXT)
    panel.set_xlabel(x, fontsize=TEXT)
    panel.set_ylabel(y, fontsize=TEXT)


def legend(panel: Axes) -> None:
    """Explains the marks of all panels of a figure below them, where they cover no curve."""
    found: dict[str, Any] = {}
    for each in panel.figure.axes:
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    columns = max(1, min(len(found), LINE // (6 + max(map(len, found), default=1))))
    panel.figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
    )


def baseline(panel: Axes, value: float, *, along: str = "x", name: str = "float") -> None:
    """A dashed line at what the float network has, along the axis `"x"` or `"y"`."""
    line = panel.axhline if along == "x" else panel.axvline
    line(value, color=INK, linewidth=1, linestyle="--", label=name, zorder=1)


def ticks(panel: Axes, axis: str, values: Iterable[float]) -> None:
    """Makes an axis, `"x"` or `"y"`, logarithmic, with these numbers on it as they are."""
    places = sorted(set(values))
    getattr(panel, f"set_{axis}scale")("log")
    getattr(panel, f"set_{axis}ticks")(places, [number_text(value) for value in places])
    getattr(panel, f"{axis}axis").minorticks_off()


def sizes(panel: Axes, axis: str = "x") -> None:
    """Makes an axis, `"x"` or `"y"`, logarithmic, with bytes on it as kB and MB.

    Example:

    >>> (panel,) = axes().flat
    >>> _ = panel.plot([12_000, 150_000, 2_100_000], [70, 80, 85])
    >>> sizes(panel)
    >>> [panel.xaxis.get_major_formatter()(value) for value in (20_000, 1e6)]
    ['20 kB', '1 MB']
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(panel, f"set_{axis}scale")("log")
    found = getattr(panel, f"{axis}axis")
    low, high = found.get_data_interval()
    # Of a narrow range, more numbers, so that there are at least two.
    steps = {6: (1, 1.5, 2, 3, 4, 5, 6, 8), 200: (1, 2, 3, 5), np.inf: (1,)}
    subs = next(found for ratio, found in steps.items() if high <= ratio * low)
    found.set_major_locator(LogLocator(subs=subs))
    found.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
    found.set_minor_formatter(NullFormatter())


def number_text(number: float) -> str:
    """A number in few letters: `16`, `100k`, `3M`."""
    unit, name = (1e6, "M") if number >= 1e6 else (1e3, "k") if number >= 1e4 else (1, "")
    return f"{number / unit:g}{name}"


def size_text(size: float) -> str:
    """Bytes in few letters: `20 kB`, `1.5 MB`."""
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size:g} B"


def broken(name: str, width: int) -> str:
    """A long name on several lines, broken behind `/` or `_`, so that it covers no other.

    Example:

    >>> print(broken("stage_1_1_conv_1/kernel", 16))
    stage_1_1_conv_
    1/kernel
    """
    lines = [""]
    for part in name.replace("/", "/\0").replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def spread(count: int, room: int) -> float:
    """How thick, or how opaque, each of many marks is to be: 1 where there is room for all."""
    return float(np.clip(room / max(1, count), 0.15, 1.0))
