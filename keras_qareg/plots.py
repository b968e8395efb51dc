"""Figures: kernels with their centroids, the penalties, accuracy against size. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_qareg.models import kernel_codebooks
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 80
# Orange and blue of the Okabe-Ito palette: told apart by everyone.
WEIGHTS, CENTROIDS = "#0072B2", "#D55E00"


def weight_histograms(model: keras.Model, max_kernels: int = 8) -> Figure:
    """Each kernel's weights before quantization, with its centroids, and what they become after.

    Args:
        model: A built model with codebooks: shared, quantization-aware, or plain with few values.
        max_kernels: The first kernels that are drawn. Defaults to 8.

    Returns:
        A `matplotlib.figure.Figure`: above, the histogram of the weights with the centroids as dots;
        below, how many weights each centroid stands for. Save it with `savefig`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the model is unbuilt or no kernel has a codebook.
    """
    found = [row for row in kernel_codebooks(model) if row[2] is not None][:max_kernels]
    if not found:
        raise ValueError(
            f"Expected a model with codebooks. Received: model '{model.name}', of which every kernel "
            "has more than 256 values. Use keras_qareg.share_weights(model, levels=...) first."
        )
    figure = _figure(2.6 * len(found) + 0.6, 4.6)
    axes = figure.subplots(2, len(found), squeeze=False, sharex="col")
    for (before, after), (path, kernel, book) in zip(axes.T, found, strict=True):
        assert book is not None
        weights = ops.convert_to_numpy(kernel).reshape(-1)
        before.hist(weights, bins=BINS, color=WEIGHTS)
        before.plot(
            book.centroids, np.zeros_like(book.centroids), "o", color=CENTROIDS, clip_on=False
        )
        error = book.relative_error(kernel)
        before.set_title(f"{path}\nrelative error {error:.1e}", fontsize=8)
        after.vlines(book.centroids, 0, book.counts, color=CENTROIDS, linewidth=2)
        after.set_ylim(bottom=0)
        after.set_xlabel("weight", fontsize=8)
        for axis in (before, after):
            axis.tick_params(labelsize=7)
            axis.locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("before: weights", fontsize=8)
    axes[1, 0].set_ylabel("after: weights", fontsize=8)
    return figure


def penalty_curves(
    levels: int = 4, weight_range: tuple[float, float] = (-1.0, 1.0), sharpness: float = 5.0
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
    series: Mapping[str, Sequence[tuple[float, float]]], size_label: str = "bytes"
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


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Figures need matplotlib: pip install 'keras-qareg[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")
