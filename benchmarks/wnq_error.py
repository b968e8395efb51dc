"""Long tails and the quantization error: what normalization changes, layer by layer.

    python -m benchmarks.wnq_error --out results

For each kernel of a CNN, trained on scikit-learn's digits with 2-bit LQ-Nets (no normalization) and with
WNQ, and for synthetic weights of normal, Laplace and Student's t distribution: how heavy the tails are
(kurtosis, which is 3 for normal weights, and max/sigma), and the relative quantization error
||w - w_q||^2 / ||w||^2, at initialization and after training. Writes the rows as JSON lines, prints a
table, and draws tails against errors.

Dividing weights by max|w| cannot change the error of levels that are fitted to them: the levels are
divided too. The rows "synthetic" and "initial" check this. What WNQ changes, it changes in training.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_qareg as qareg
from benchmarks import results
from examples.study import circumstances, mean_and_deviation
from examples.training import EPOCHS, NORMALIZE, digits, digits_network, fit
from keras_qareg.models import kernel_codebooks
from keras_qareg.quantizers import WeightNormalizationQuantizer
from keras_qareg.report import table

SYNTHETIC = {
    "normal": lambda rng, size: rng.normal(size=size),
    "Laplace": lambda rng, size: rng.laplace(size=size),
    "Student's t, 5 degrees": lambda rng, size: rng.standard_t(5, size=size),
    "Student's t, 3 degrees": lambda rng, size: rng.standard_t(3, size=size),
}
SYNTHETIC_SHAPE = (2304, 64)
# Four kernels before and after training, and the synthetic ones, by two methods.
PER_SEED = 2 * (2 * 4 + len(SYNTHETIC))


def tails(weights: np.ndarray) -> dict[str, float]:
    """Kurtosis and max/sigma of a kernel."""
    weights = np.asarray(weights, "float64").reshape(-1)
    centered = weights - weights.mean()
    variance = np.square(centered).mean()
    kurtosis = (centered**4).mean() / variance**2
    return {
        "kurtosis": float(kurtosis),
        "max_sigma": float(np.abs(weights).max() / np.sqrt(variance)),
    }


def synthetic_rows(bits: int, seed: int) -> Iterator[dict[str, Any]]:
    """Fitted levels of synthetic weights, with and without normalization."""
    for name, draw in SYNTHETIC.items():
        weights = draw(np.random.default_rng(seed), SYNTHETIC_SHAPE).astype("float32")
        for method, normalize in NORMALIZE.items():
            quantizer = WeightNormalizationQuantizer(bits, normalize=normalize)
            book = quantizer.codebook(weights, quantizer.fit(weights))
            yield {
                "kernel": name,
                "when": "synthetic",
                "method": method,
                "error": book.relative_error(weights),
                **tails(weights),
            }


def model_rows(model: keras.Model, when: str, method: str) -> Iterator[dict[str, Any]]:
    """Each quantized kernel of a model."""
    for path, kernel, book in kernel_codebooks(model):
        if book is not None and book.centroids.ndim > 1:
            weights = ops.convert_to_numpy(kernel)
            yield {
                "kernel": path.split("/")[-2],
                "when": when,
                "method": method,
                "error": book.relative_error(weights),
                **tails(weights),
            }


def all_rows(bits: int, seeds: int, epochs: int) -> Iterator[dict[str, Any]]:
    """Every row of every seed."""
    data, _ = digits()
    for seed in range(seeds):
        for row in synthetic_rows(bits, seed):
            yield {**row, "bits": bits, "seed": seed}
        for method, normalize in NORMALIZE.items():
            keras.utils.set_random_seed(seed)
            model = qareg.wnq(digits_network(), bits=bits, skip=(), normalize=normalize)
            for row in model_rows(model, "initial", method):
                yield {**row, "bits": bits, "seed": seed}
            fit(model, data, epochs, seed=seed)
            for row in model_rows(model, "trained", method):
                yield {**row, "bits": bits, "seed": seed}


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the seeds averaged."""
    found = []
    for key in dict.fromkeys((r["bits"], r["when"], r["kernel"], r["method"]) for r in rows):
        same = [r for r in rows if (r["bits"], r["when"], r["kernel"], r["method"]) == key]
        names = ("kurtosis", "max_sigma", "error")
        averages = {name: mean_and_deviation(same, name)[0] for name in names}
        found.append(
            {**dict(zip(("bits", "when", "kernel", "method"), key, strict=True)), **averages}
        )
    return found


def tabulate(rows: list[dict[str, Any]]) -> str:
    """A line a kernel: tails and error of LQ-Nets and of WNQ."""
    header = (
        "weights",
        "kurtosis LQ",
        "WNQ",
        "max/sigma LQ",
        "WNQ",
        "rel. error LQ",
        "WNQ",
        "ratio",
    )
    lines = []
    averaged = means(rows)
    for row in averaged:
        if row["method"] != "LQ-Nets":
            continue
        other = next(
            r
            for r in averaged
            if r["method"] == "WNQ" and all(r[k] == row[k] for k in ("bits", "when", "kernel"))
        )
        lines.append(
            (
                f"{row['bits']} bits, {row['when']}: {row['kernel']}",
                *(f"{r['kurtosis']:.2f}" for r in (row, other)),
                *(f"{r['max_sigma']:.2f}" for r in (row, other)),
                *(f"{r['error']:.4f}" for r in (row, other)),
                f"{other['error'] / row['error']:.3f}",
            )
        )
    return table(header, lines)


def figure(rows: list[dict[str, Any]]) -> Any:
    """Max/sigma against the relative error; LQ-Nets as rings, so that WNQ is seen within."""
    from keras_qareg.plots import style

    bits = sorted({row["bits"] for row in rows})
    panels = style.axes(1, len(bits), height=3.6, sharey=True)[0]
    rings = {"markerfacecolor": "none", "markersize": 10, "markeredgewidth": 1.5}
    looks = {
        "LQ-Nets": {"color": style.BLUE, **rings},
        "WNQ": {"color": style.RED, "markersize": 5},
    }
    markers = {"synthetic": "^", "initial": "s", "trained": "o"}
    averaged = means(rows)
    for panel, count in zip(panels, bits, strict=True):
        for (method, look), (when, marker) in itertools.product(looks.items(), markers.items()):
            wanted = (count, method, when)
            same = [r for r in averaged if (r["bits"], r["method"], r["when"]) == wanted]
            points = [r["max_sigma"] for r in same], [r["error"] for r in same]
            panel.plot(*points, marker, label=f"{method}, {when}", **look)
        style.ticks(panel, "x", (1, 2, 5, 10, 20, 50))
        title = "1 bit" if count == 1 else f"{count} bits"
        style.label(panel, title=title, x="largest weight / standard deviation")
    panels[0].set_ylabel("relative quantization error", fontsize=style.TEXT)
    style.legend(panels[0])
    return panels[0].figure


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows, where = [], circumstances()
    with (arguments.out / "wnq_error.jsonl").open("w") as file:
        for bits in arguments.bits:
            for row in all_rows(bits, arguments.seeds, arguments.epochs):
                rows.append(row)
                file.write(json.dumps({**row, **where}) + "\n")
                print(
                    f"\r{len(rows)} of {arguments.seeds * PER_SEED * len(arguments.bits)} rows",
                    end="",
                )
    text = tabulate(rows)
    (arguments.out / "wnq_error.txt").write_text(text + "\n")
    figure(rows).savefig(arguments.out / "wnq_error.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
