"""What things cost against the number of weights, and the slope of it in a log-log plot: 1 is linear.

    python -m benchmarks.scaling --out results

For k = 16: value and gradients of a learned penalty, sharing (k-means and the nearest centroids), and
coding the indices. Seconds are the best of a few runs in turn; only their growth says anything.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from benchmarks import results
from benchmarks.penalty import penalties, runner, variables
from benchmarks.timing import interleaved
from keras_qareg.export.archive.kernels import encode_kernel
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.report import table

LEVELS = 16


def functions(size: int) -> dict[str, Callable[[], Any]]:
    """What is measured, for so many weights."""
    weights, centroids = variables(size, LEVELS)
    array = np.array(keras.ops.convert_to_numpy(weights))
    book = Codebook.nearest(array, kmeans(array, LEVELS))
    found = {
        kind: runner(penalties(LEVELS)[kind], weights, centroids)
        for kind in ("L2", "Sine", "NearestSquared", "NearestExponential")
    }
    found["k-means"] = lambda: kmeans(array, LEVELS)
    found["nearest centroids"] = lambda: Codebook.nearest(array, book.centroids)
    found["archive coding"] = lambda: encode_kernel(book)
    return found


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a function: how its time grows, and what it is for each number of weights."""
    header = ("what", "slope", *(f"ns/weight, {size:,}" for size, _ in rows[0]["points"]))
    lines = [
        (row["what"], f"{row['slope']:.2f}", *(f"{1e9 * t / n:.2f}" for n, t in row["points"]))
        for row in rows
    ]
    return table(header, lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 3e5, 1e6, 3e6, 1e7, 3e7])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes]
    series: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        for name, times in interleaved(functions(size), arguments.rounds).items():
            series.setdefault(name, []).append((size, min(times)))
        print(f"{size:,} weights", flush=True)
    rows = []
    for name, points in series.items():
        # Small ones are the cost of calling; the slope is that of the upper half.
        upper = np.log(np.array(points[len(points) // 2 :]))
        slope = float(np.polyfit(upper[:, 0], upper[:, 1], 1)[0])
        rows.append(
            {"backend": keras.backend.backend(), "what": name, "slope": slope, "points": points}
        )
    results.save(arguments.out, "scaling", rows, tabulate)
    results.draw(arguments.out, "scaling", series, "weights", "seconds")


if __name__ == "__main__":
    main()
