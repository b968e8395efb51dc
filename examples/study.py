"""What studies share: cells that are run once and kept, means over seeds, and the time that is left."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

Row = dict[str, Any]


class Study:
    """Rows of a JSON-lines file, one a cell: a run that was killed goes on where it stopped.

    Args:
        path: The file; it is appended to.
        keys: The names of what tells cells apart, for example `("method", "seed")`.
        anew: Whether to run all cells anew; the rows of before stay in the file until all are there.
    """

    def __init__(self, path: Path, keys: Sequence[str], anew: bool = False):
        self.path, self.keys = path, tuple(keys)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.with_name(f"{path.name}.new") if anew else path
        if anew:
            self._file.unlink(missing_ok=True)
        text = self._file.read_text() if self._file.exists() else ""
        # The last line of a run that was killed may be half a line.
        self._torn = bool(text) and not text.endswith("\n")
        self.rows = [row for row in map(_parsed, text.splitlines()) if row is not None]
        self._began, self._done = time.time(), 0

    def find(self, cell: Row) -> Row | None:
        """The row of a cell, if it was run."""
        same = [row for row in self.rows if all(row.get(k) == cell.get(k) for k in self.keys)]
        return same[-1] if same else None

    def run(self, cells: Iterable[Row], compute: Callable[[Row], Row], say: str) -> list[Row]:
        """The rows of all cells; those that are missing are computed, appended and told of.

        Args:
            cells: What tells each cell apart, by `keys`.
            compute: Gives the figures of a cell.
            say: The name of the figure to print.
        """
        cells = list(cells)
        missing = [cell for cell in cells if self.find(cell) is None]
        telling = [k for k in self.keys if len({cell.get(k) for cell in cells}) > 1] or self.keys
        for place, cell in enumerate(missing, start=1):
            row = {**cell, **compute(cell), **circumstances()}
            with self._file.open("a") as file:
                file.write("\n" * self._torn + json.dumps(row) + "\n")
            self._torn = False
            self.rows.append(row)
            left = (time.time() - self._began) / place * (len(missing) - place)
            name = ", ".join(f"{key} {cell[key]}" for key in telling if key in cell)
            print(
                f"[{place}/{len(missing)}] {name}: {say} {row[say]:.2f} (about {left:.0f} s left)",
                flush=True,
            )
        if self._file != self.path and self._file.exists():
            self._file.replace(self.path)
        return [row for cell in cells if (row := self.find(cell)) is not None]

    def tabulated(
        self,
        cells: Iterable[Row],
        compute: Callable[[Row], Row],
        say: str,
        tabulate: Callable[[list[Row]], str],
        draw: bool = False,
    ) -> list[Row]:
        """What `run` gives; the table of it is printed, and written beside the file of the rows.

        With `draw`, nothing is computed: the rows are those of the cells that were run before.

        Raises:
            ValueError: If there is no row.
        """
        if draw:
            cells = [cell for cell in cells if self.find(cell) is not None]
        rows = self.run(cells, compute, say)
        if not rows:
            raise ValueError(f"Expected rows of these settings in {self.path}. Received none.")
        text = tabulate(rows)
        self.path.with_suffix(".txt").write_text(text + "\n")
        print(f"\n{text}\n")
        return rows


def mean_and_deviation(rows: Iterable[Row], figure: str) -> tuple[float, float]:
    """The mean of a figure over rows, and its standard deviation (0 for one row).

    The mean is NaN where a row does not have the figure.
    """
    values = np.array([row.get(figure, np.nan) for row in rows], "float64")
    return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0


def written(rows: Iterable[Row], figure: str, digits: int = 2) -> str:
    """A mean and its deviation as `12.34 ± 0.56`; of one row, the figure alone."""
    rows = list(rows)
    mean, deviation = mean_and_deviation(rows, figure)
    spread = f" ± {deviation:.{digits}f}" if len(rows) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def at_least(least: int) -> Callable[[str], int]:
    """What reads an integer of the command line that has a least value, for `argparse`."""

    def integer(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"expected {least} or more, received {value}")
        return value

    return integer


def _parsed(line: str) -> Row | None:
    try:
        row: Row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row


def circumstances() -> Row:
    """Commit, backend and device, to be kept with every figure."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    device = f"{os.cpu_count()} cores"
    if keras.backend.backend() == "jax":
        import jax

        kind = jax.devices()[0]
        device = device if kind.platform == "cpu" else kind.device_kind
    return {
        "commit": commit,
        "backend": keras.backend.backend(),
        "device": device,
        "machine": platform.machine(),
    }
