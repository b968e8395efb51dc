"""Exact one-dimensional k-means against its peers: time, peak memory, and squared error.

    python -m benchmarks.kmeans --out results

Weights are half Laplace, half normal. Peers: scikit-learn's `KMeans` with one start and with ten, its
`MiniBatchKMeans`, and `kmeans1d` from PyPI where it is installed; where weights x levels are many, the
slow ones are left out. Errors are relative to the lowest that any of them found. Memory is what a run
adds to the peak of a fresh process, in units of the weights.
"""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np

from benchmarks import results
from benchmarks.timing import extra_peak, in_subprocess
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.report import table

OURS = "keras_qareg"
# Weights x levels that a peer is asked for.
LIMITS = {
    OURS: 1e12,
    "KMeans, 1 start": 3e8,
    "KMeans, 10 starts": 3e7,
    "MiniBatchKMeans": 5e7,
    "kmeans1d": 3e7,
}


def weights(size: int) -> np.ndarray:
    random = np.random.default_rng(0)
    half = size // 2
    parts = random.laplace(scale=0.05, size=half), random.normal(scale=0.05, size=size - half)
    return np.concatenate(parts).astype("float32")


def peers() -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """Functions of weights and levels that give centroids."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    def of(kind: type, **arguments: Any) -> Callable[[np.ndarray, int], np.ndarray]:
        def run(w: np.ndarray, k: int) -> np.ndarray:
            model = kind(n_clusters=k, random_state=0, **arguments)
            return model.fit(w[:, None]).cluster_centers_[:, 0]

        return run

    found = {
        OURS: kmeans,
        "KMeans, 1 start": of(KMeans, n_init=1),
        "KMeans, 10 starts": of(KMeans, n_init=10),
        "MiniBatchKMeans": of(MiniBatchKMeans, n_init=1),
    }
    if importlib.util.find_spec("kmeans1d"):
        import kmeans1d

        found["kmeans1d"] = lambda w, k: np.array(kmeans1d.cluster(w, k).centroids)
    return found


def squared_error(w: np.ndarray, centroids: np.ndarray) -> float:
    nearest = Codebook.nearest(w, centroids).weights
    return float(np.square(w.astype("float64") - nearest).sum())


def extra_memory(name: str, size: int, levels: int) -> float:
    w, run = weights(size), peers()[name]
    run(w[:1000], min(levels, 16))
    return extra_peak(lambda: run(w, levels)) / w.nbytes


def measure(size: int, levels: int) -> list[dict[str, Any]]:
    """A row for ours, of three runs, then one for each peer, of one."""
    w, rows = weights(size), []
    for name, run in peers().items():
        if size * levels > LIMITS[name]:
            continue
        times = []
        for _ in range(3 if name == OURS else 1):
            began = time.perf_counter()
            centroids = run(w, levels)
            times.append(time.perf_counter() - began)
        row = {
            "weights": size,
            "levels": levels,
            "method": name,
            "seconds": float(np.median(times)),
        }
        memory = in_subprocess("benchmarks.kmeans", "--memory", name, str(size), str(levels))
        rows.append({**row, "error": squared_error(w, centroids), "memory": memory})
        print(json.dumps(rows[-1]), flush=True)
    best = min(row["error"] for row in rows)
    ours = rows[0]["seconds"]
    return [
        {**row, "ratio": row["seconds"] / ours, "excess": row["error"] / best - 1} for row in rows
    ]


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a method."""
    lines = [
        (
            f"{row['weights']:,} {row['levels']} {row['method']}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['excess']:.1e}",
            f"{row['memory']:.1f}",
        )
        for row in rows
    ]
    header = ("weights, levels, method", "seconds", "ratio to ours", "excess error", "memory")
    return table(header, lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e6, 15e6])
    parser.add_argument("--levels", type=int, nargs="+", default=[4, 16, 64, 256])
    arguments = results.parsed_or_memory(parser, extra_memory)
    rows = [
        row for size in arguments.sizes for k in arguments.levels for row in measure(int(size), k)
    ]
    results.save(arguments.out, "kmeans", rows, tabulate)
    largest = max(row["weights"] for row in rows)
    drawn = [row for row in rows if row["weights"] == largest]
    lines_drawn = results.series(drawn, "method", "levels", "seconds")
    results.draw(arguments.out, "kmeans", lines_drawn, "levels", f"seconds for {largest:,} weights")


if __name__ == "__main__":
    main()
