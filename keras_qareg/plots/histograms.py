"""Histograms of kernels, with the values that they are given."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_qareg.models import kernel_codebooks
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.plots import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 60
# Values that stand apart as dots in a panel, and as lines.
DOTS, LINES = 16, 64

# Path, weights before quantization, codebook.
Kernel = tuple[str, np.ndarray, Codebook]


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
        dots, or lines where there are many; the relative quantization error in their titles; for one
        model there is below what share of the weights each centroid stands for. Save it with
        `savefig`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a model is unbuilt or none of its kernels has a codebook.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="fc")])
    >>> figure = weight_histograms(qareg.share_weights(model, levels=4, verbose=0))
    >>> [panel.get_ylabel() for panel in figure.axes]
    ['before, % a bin', 'after, % a value']

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#few-values
    """
    if isinstance(model, keras.Model):
        found = _quantized(model, max_kernels)
        panels = _panels(("before, % a bin", "after, % a value"), len(found))
        for (before, after), kernel in zip(panels, found, strict=True):
            _draw_weights(before, kernel)
            _draw_counts(after, kernel[2])
    else:
        rows = [_quantized(each, max_kernels) for each in model.values()]
        panels = _panels([f"{name}, % a bin" for name in model], max(map(len, rows)))
        for stack, kernels in zip(panels, itertools.zip_longest(*rows), strict=True):
            for panel, kernel in zip(stack, kernels, strict=True):
                if kernel is not None:
                    panel.sharey(stack[0])
                    _draw_weights(panel, kernel)
    return panels[0][0].figure


def _quantized(model: keras.Model, most: int) -> list[Kernel]:
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


def _panels(labels: Any, kernels: int) -> list[list[Any]]:
    """A stack of panels for each kernel, one a label, up to three stacks side by side."""
    columns = next(n for n in (3, 2, 1) if n == 1 or not kernels % n or kernels > 4)
    blocks = -(-kernels // columns)
    grid = style.axes(blocks * len(labels), columns, height=1.9)
    for row, label in zip(grid, itertools.cycle(labels), strict=False):
        row[0].set_ylabel(label, fontsize=style.TEXT)
    stacks = []
    for block in np.split(grid, blocks):
        for stack in block.T:
            for panel in stack[1:]:
                panel.sharex(stack[0])
            stack[-1].set_xlabel("weight", fontsize=style.TEXT)
            stacks.append(list(stack))
    for panel in itertools.chain(*stacks[kernels:]):
        panel.remove()
    return stacks[:kernels]


def _draw_weights(panel: Any, kernel: Kernel) -> None:
    path, weights, book = kernel
    shares = np.full(weights.size, 100 / weights.size)
    panel.hist(weights.reshape(-1), bins=BINS, weights=shares, color=style.WEIGHTS)
    values = book.centroids.reshape(-1)
    marker, size = ("o", 6) if values.size <= DOTS else ("|", 9)
    panel.plot(
        values,
        np.zeros_like(values),
        marker,
        color=style.CENTROIDS,
        clip_on=False,
        markersize=size,
        alpha=style.spread(values.size, LINES),
    )
    error = f"relative error {book.relative_error(weights):.2g}"
    panel.set_title(f"{style.broken(path, 24)}\n{error}", fontsize=style.SMALL)
    panel.locator_params(axis="both", nbins=4)


def _draw_counts(panel: Any, book: Codebook) -> None:
    values, counts = np.unique(book.weights, return_counts=True)
    width = 3 * style.spread(values.size, DOTS)
    panel.vlines(values, 0, 100 * counts / counts.sum(), color=style.CENTROIDS, linewidth=width)
    panel.set_ylim(bottom=0)
    panel.locator_params(axis="both", nbins=4)
