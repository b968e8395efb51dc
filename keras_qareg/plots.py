"""Figures: kernels and their centroids, penalties, accuracy and loss against size. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_qareg.models import kernel_codebooks
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 80
# Orange and blue of the Okabe-Ito palette: told apart by everyone.
WEIGHTS, CENTROIDS = "#0072B2", "#D55E00"


def weight_histograms(
    model: keras.Model | Mapping[str, keras.Model], *, max_kernels: int = 8
) -> Figure:
    """Each kernel's weights before quantization, with its centroids, and what they become after.

    Args:
        model: A built model with codebooks: shared, quantization-aware, of WNQ layers, or plain with
            few values. Or a dict of such models with the same layers, by what to call them, to be
            drawn one above the other (Figure 3 of arXiv 1907.00593:
            `{"WNQ": wnq(model), "LQ-Nets": wnq(model, normalize=False)}`).
        max_kernels: The first kernels that are drawn. Defaults to 8.

    Returns:
        A `matplotlib.figure.Figure`: histograms of the weights with the centroids of all channels as
        dots, the relative quantization error in their titles; for one model there is below how many
        weights each centroid stands for. Save it with `savefig`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a model is unbuilt or none of its kernels has a codebook.
    """
    if isinstance(model, keras.Model):
        found = _quantized(model, max_kernels)
        axes = _histogram_axes(2, len(found))
        for (before, after), (path, weights, book) in zip(axes.T, found, strict=True):
            _draw_weights(before, path, weights, book)
            _draw_counts(after, book)
        labels = ["before: weights", "after: weights"]
    else:
        rows = [_quantized(each, max_kernels) for each in model.values()]
        axes = _histogram_axes(len(rows), max(map(len, rows)))
        for row, found in zip(axes, rows, strict=True):
            for axis, kernel in zip(row, found, strict=False):
                _draw_weights(axis, *kernel)
        labels = list(model)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("weight", fontsize=8)
    return axes[0, 0].figure


def _quantized(model: keras.Model, most: int) -> list[tuple[str, np.ndarray, Codebook]]:
    """Path, weights before quantization and codebook of the first kernels that have one."""
    found = [
        (path, ops.convert_to_numpy(kernel), book)
        for path, kernel, book in kernel_codebooks(model)
        if book is not None
    ]
    if not found:
        raise ValueError(
            f"Expected a model with codebooks. Received: model '{model.name}', of which every kernel "
            "has more than 256 values. Use keras_qareg.share_weights(model, levels=...) first."
        )
    # A small float kernel has few values too, but none that weights share.
    sharing = [one for one in found if one[2].centroids.size < one[1].size]
    return (sharing or found)[:most]


def _histogram_axes(rows: int, columns: int) -> Any:
    figure = _figure(2.6 * columns + 0.6, 2.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex="col")
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.locator_params(axis="x", nbins=5)
    return axes


def _draw_weights(axis: Any, path: str, weights: np.ndarray, book: Codebook) -> None:
    axis.hist(weights.reshape(-1), bins=BINS, color=WEIGHTS)
    centroids = book.centroids.reshape(-1)
    size = 6 if book.centroids.ndim == 1 else 2
    axis.plot(
        centroids, np.zeros_like(centroids), "o", color=CENTROIDS, clip_on=False, markersize=size
    )
    error = book.relative_error(weights)
    axis.set_title(f"{path}\nrelative error {error:.1e}", fontsize=8)


def _draw_counts(axis: Any, book: Codebook) -> None:
    values, counts = np.unique(book.weights, return_counts=True)
    axis.vlines(values, 0, counts, color=CENTROIDS, linewidth=2)
    axis.set_ylim(bottom=0)


def penalty_curves(
    levels: int = 4, weight_range: tuple[float, float] = (-1.0, 1.0), *, sharpness: float = 5.0
) -> Figure:
    """The four penalties over a range of weights (Figures 1 and 2 of arXiv 2602.03614).

    Args:
        levels: Integer from 2 to 256. Defaults to 4.
        weight_range: `(low, high)` of the fixed basins; the learned ones are drawn at uneven places
            within it.
        sharpness: Of `NearestExponential`. Defaults to 5.

    Returns:
        A `matplotlib.figure.Figure` of four panels, the basins as dots.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If an argument is out of its range.
    """
    low, high = weight_range
    margin = 0.2 * (high - low)
    weights = np.linspace(low - margin, high + margin, 2001, dtype="float32")
    learned = low + (high - low) * np.linspace(0.05, 0.95, levels) ** 1.3
    panels: list[tuple[Any, Any]] = []
    for kind in (Sine, Cosine):
        fixed = kind(levels, weight_range)
        panels.append((fixed, fixed.basins()))
    panels.append((NearestSquared(levels), learned.astype("float32")))
    panels.append((NearestExponential(levels, sharpness=sharpness), learned.astype("float32")))
    figure = _figure(9, 5.2)
    for axis, (regularizer, basins) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        values = [
            regularizer.penalty(weights[i : i + 1], basins) for i in range(0, weights.size, 8)
        ]
        axis.plot(weights[::8], [float(value) for value in values], color=WEIGHTS)
        axis.plot(basins, np.zeros_like(basins), "o", color=CENTROIDS, clip_on=False)
        axis.set_title(type(regularizer).__name__, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("weight", fontsize=8)
        axis.set_ylabel("penalty", fontsize=8)
    return figure


def accuracy_size(
    series: Mapping[str, Sequence[tuple[float, float]]], *, size_label: str = "bytes"
) -> Figure:
    """Accuracy against size, a line a method.

    Args:
        series: From the name of a method to its `(size, accuracy)` pairs.
        size_label: What the sizes are. Defaults to `"bytes"`.

    Returns:
        A `matplotlib.figure.Figure` with a logarithmic size axis.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw.
    """
    if not any(series.values()):
        raise ValueError("Expected at least one (size, accuracy) pair. Received: none")
    figure = _figure(6, 4)
    axis = figure.subplots()
    for (name, pairs), marker in zip(series.items(), "osD^vPX*" * len(series), strict=False):
        sizes, accuracies = zip(*sorted(pairs), strict=True)
        axis.plot(sizes, accuracies, marker=marker, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xlabel(size_label)
    axis.set_ylabel("accuracy")
    axis.legend(fontsize=8)
    return figure


def plan(plan: Any) -> Figure:
    """The loss of a plan against its bytes, beside other budgets and one number of levels for all.

    Args:
        plan: A `Plan`, of `allocate`.

    Returns:
        A `matplotlib.figure.Figure` with two logarithmic axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = _figure(6, 4)
    axis = figure.subplots()
    if plan.curve:
        axis.plot(
            *zip(*sorted(plan.curve), strict=True), "-", color=WEIGHTS, label="levels by budget"
        )
    if plan.uniform:
        sizes, losses = zip(*plan.uniform.values(), strict=True)
        axis.plot(sizes, losses, "o", color="#8a99a8", label="the same for all kernels")
        for levels, point in plan.uniform.items():
            axis.annotate(str(levels), point, xytext=(5, 4), textcoords="offset points", fontsize=7)
    axis.plot([plan.bytes], [plan.loss], "D", color=CENTROIDS, label="this plan")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(f"bytes of the file ({plan.weights})")
    axis.set_ylabel("divergence from the float model")
    axis.legend(fontsize=8)
    return figure


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'keras-qareg[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")
