"""What benchmarks share beside measuring: their arguments, and tables and figures of what they found."""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_qareg.report import table


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
    from keras_qareg import plots

    figure = plots.accuracy_size(series, size_label=x)
    (axis,) = figure.axes
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylabel(y)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=120)


def draw_bars(out: Path, name: str, values: dict[str, float], y: str) -> None:
    """Writes `name.png`: a bar a name, and a line at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    axis.bar(range(len(values)), list(values.values()))
    axis.set_xticks(range(len(values)), list(values), rotation=30, ha="right", fontsize=8)
    axis.axhline(1.0, color="black", linewidth=0.5)
    axis.set_ylabel(y)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=120)


def save(
    out: Path,
    name: str,
    rows: list[dict[str, Any]],
    header: tuple[str, ...],
    lines: list[tuple[str, ...]],
) -> None:
    """Writes `name.jsonl` and `name.txt`, and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    machine = {"python": platform.python_version()}
    (out / f"{name}.jsonl").write_text("".join(json.dumps({**r, **machine}) + "\n" for r in rows))
    text = table(header, lines)
    (out / f"{name}.txt").write_text(text + "\n")
    print(f"\n{text}")
