"""What benchmarks share beside measuring: their arguments, and tables and figures of what they found."""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.study import circumstances

# What rows say of where they come from; `recorded`: the commit that added them, where no other is known.
ORIGIN = ("commit", "recorded", "backend", "device", "machine", "python")


def parser(documentation: str) -> argparse.ArgumentParser:
    """A parser with `--out` that says the first line of a module's documentation."""
    found = argparse.ArgumentParser(description=documentation.split("\n")[0])
    found.add_argument("--out", type=Path, default=Path("output"), help="default: output")
    return found


def parsed_or_memory(
    parser: argparse.ArgumentParser, extra_memory: Callable[[str, int, int], float]
) -> argparse.Namespace:
    """What was parsed; a process that was started for `--memory` prints what it found and ends."""
    parser.add_argument(
        "--memory",
        nargs=3,
        metavar=("NAME", "SIZE", "LEVELS"),
        help="print the memory of one function, and no more",
    )
    found = parser.parse_args()
    if found.memory:
        name, size, levels = found.memory
        print(json.dumps(extra_memory(name, int(size), int(levels))))
        raise SystemExit
    return found


def series(
    rows: list[dict[str, Any]], name: str, x: str, y: str
) -> dict[str, list[tuple[float, float]]]:
    """The `(x, y)` pairs of the rows of each name, for `draw`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row[name], []).append((row[x], row[y]))
    return found


def draw(
    out: Path, name: str, series: dict[str, list[tuple[float, float]]], x: str, y: str
) -> None:
    """Writes `name.png`: a line a series, both axes logarithmic."""
    from keras_qareg.plots import style

    (panel,) = style.axes(height=4.4).flat
    for place, (label, pairs) in enumerate(series.items()):
        look = {"marker": style.MARKERS[place % len(style.MARKERS)]}
        if place >= len(style.COLORS):  # the same colours once more
            look |= {"linestyle": "--", "markerfacecolor": "white"}
        panel.plot(*zip(*sorted(pairs), strict=True), label=label, **look)
    panel.set_yscale("log")
    if y == "bytes":
        style.sizes(panel, "y")
    style.ticks(panel, "x", {place for pairs in series.values() for place, _ in pairs})
    style.label(panel, x=x, y=y)
    style.legend(panel)
    out.mkdir(parents=True, exist_ok=True)
    panel.figure.savefig(out / f"{name}.png")


def draw_bars(out: Path, name: str, values: dict[str, float], x: str) -> None:
    """Writes `name.png`: a bar a name, from 0 on, and a line at 1."""
    from keras_qareg.plots import style

    (panel,) = style.axes(height=1 + 0.3 * len(values)).flat
    panel.barh(range(len(values)), list(values.values()), color=style.BLUE)
    panel.set_yticks(range(len(values)), list(values))
    panel.invert_yaxis()
    panel.axvline(1.0, color=style.INK, linewidth=1, linestyle="--")
    style.label(panel, x=x)
    out.mkdir(parents=True, exist_ok=True)
    panel.figure.savefig(out / f"{name}.png")


def save(
    out: Path,
    name: str,
    rows: list[dict[str, Any]],
    tabulate: Callable[[list[dict[str, Any]]], str],
) -> None:
    """Writes `name.jsonl` and `name.txt`, and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    where = {**circumstances(), "python": platform.python_version()}
    (out / f"{name}.jsonl").write_text("".join(json.dumps({**r, **where}) + "\n" for r in rows))
    text = tabulate(rows)
    (out / f"{name}.txt").write_text(text + "\n")
    print(f"\n{text}")
