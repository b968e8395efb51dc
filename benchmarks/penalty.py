"""Value and gradients of the penalties: time against Keras's L2 and the naive way, and peak memory.

    python -m benchmarks.penalty --out results          # KERAS_BACKEND says which backend

All run in turn, compiled as in `fit`: on TensorFlow in a graph, on JAX by `jit`. The naive way compares
every weight with every centroid. DKM is no penalty, but what stands in the place of the weights, squared
and summed up. Memory is what a run adds to the peak of a fresh process, in units of
the weights themselves; 1 is the gradient.
"""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops

from benchmarks import results
from benchmarks.timing import extra_peak, in_subprocess, interleaved, ratios
from keras_qareg import regularizers
from keras_qareg.numerics.attention import soft_values
from keras_qareg.report import table

BASELINE, SOFT = "L2", "DKM"
# The naive way needs weights x levels; beyond this many it is left out.
NAIVE_LIMIT = 2e8


def naive(weights: Any, centroids: Any) -> Any:
    distances = ops.square(ops.expand_dims(weights, 1) - ops.expand_dims(centroids, 0))
    return ops.sum(ops.min(distances, axis=1))


def soft(weights: Any, centroids: Any) -> Any:
    """A loss of the soft values of DKM, where they are about halfway to hard."""
    width = (ops.max(centroids) - ops.min(centroids)) / (centroids.shape[0] - 1)
    return ops.sum(ops.square(soft_values(weights, centroids, 0.1 * ops.square(width))))


def penalties(levels: int) -> dict[str, Callable[[Any, Any], Any]]:
    """Functions of weights and centroids."""
    found = {BASELINE: lambda w, c: keras.regularizers.L2(1e-4)(w)}
    for kind in ("Sine", "Cosine", "NearestSquared", "NearestExponential"):
        regularizer = getattr(regularizers, kind)(levels, strength=1.0)
        found[kind] = lambda w, c, r=regularizer: r.penalty(w, c)
    return {**found, SOFT: soft, "naive": naive}


def runner(function: Callable[[Any, Any], Any], weights: Any, centroids: Any) -> Callable[[], None]:
    """Computes value and gradients once, and waits for them."""
    if keras.backend.backend() == "jax":
        import jax

        run = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        return lambda: jax.block_until_ready(run(weights.value, centroids.value))
    if keras.backend.backend() == "torch":
        import torch

        kernel, table = weights.value, centroids.value

        def step() -> None:
            found = torch.autograd.grad(function(kernel, table), (kernel, table), allow_unused=True)
            if kernel.device.type == "cuda":
                torch.cuda.synchronize()
            del found

        return step
    import tensorflow as tf

    kernel, table = weights.value, centroids.value

    @tf.function
    def run() -> Any:
        with tf.GradientTape() as tape:
            value = function(weights, centroids)
        slopes = tape.gradient(value, [kernel, table])
        # Small enough to fetch, and nothing that the gradients need is left out.
        return value, *[slope[:1] for slope in slopes if slope is not None]

    return lambda: [part.numpy() for part in run()]


def variables(size: int, levels: int) -> tuple[keras.Variable, keras.Variable]:
    """Weights as after training, and centroids at their quantiles."""
    weights = np.random.default_rng(0).laplace(scale=0.05, size=size).astype("float32")
    places = (np.arange(levels) + 0.5) / levels
    centroids = np.quantile(weights[:100_000], places).astype("float32")
    return keras.Variable(weights), keras.Variable(centroids)


def extra_memory(name: str, size: int, levels: int) -> float:
    """What one run adds to the peak of this process, in units of the weights."""
    function = penalties(levels)[name]
    small = variables(1000, levels)
    runner(function, *small)()
    weights, centroids = variables(size, levels)
    return extra_peak(lambda: runner(function, weights, centroids)()) / (4 * size)


def measure(size: int, levels: int, rounds: int, with_memory: bool) -> list[dict[str, Any]]:
    """A row for each penalty."""
    weights, centroids = variables(size, levels)
    functions = penalties(levels)
    if size * levels > NAIVE_LIMIT:
        del functions["naive"]
    runs = {name: runner(f, weights, centroids) for name, f in functions.items()}
    seconds, rows = interleaved(runs, rounds), []
    for name, found in ratios(seconds, BASELINE).items():
        row = {"size": size, "levels": levels, "penalty": name, **found}
        row |= {"backend": keras.backend.backend()}
        row["ns_a_weight"] = 1e9 * float(np.median(seconds[name])) / size
        if with_memory and name != "naive":
            words = ("--memory", name, str(size), str(levels))
            row["memory"] = in_subprocess("benchmarks.penalty", *words)
        rows.append(row)
        print(*line_of(row), flush=True)
    return rows


def line_of(row: dict[str, Any]) -> tuple[str, ...]:
    memory = f"{row['memory']:.2f}" if "memory" in row else ""
    spread = f"{row['low']:.2f}-{row['high']:.2f}"
    name = f"{row['size']:,} {row['levels']} {row['penalty']}"
    return name, f"{row['ns_a_weight']:.2f}", f"{row['ratio']:.2f}", spread, memory


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a penalty."""
    header = ("weights, levels, penalty", "ns/weight", "ratio to L2", "quartiles", "memory")
    return table(header, [line_of(row) for row in rows])


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7, 10**7.5])
    parser.add_argument("--levels", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = results.parsed_or_memory(parser, extra_memory)
    sizes, backend = [int(size) for size in arguments.sizes], keras.backend.backend()
    rows = [
        row
        for size in sizes
        for levels in arguments.levels
        for row in measure(size, levels, arguments.rounds, with_memory=size == max(sizes))
    ]
    results.save(arguments.out, f"penalty_{backend}", rows, tabulate)
    largest = [row for row in rows if row["size"] == max(sizes)]
    lines_drawn = results.series(largest, "penalty", "levels", "ns_a_weight")
    results.draw(arguments.out, f"penalty_{backend}", lines_drawn, "levels", "nanoseconds a weight")


if __name__ == "__main__":
    main()
