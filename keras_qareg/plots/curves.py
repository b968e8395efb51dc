"""Penalties over weights; accuracy and loss against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_qareg.plots import style
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def penalty_curves(
    levels: int = 4, weight_range: tuple[float, float] = (-1.0, 1.0), *, sharpness: float = 5.0
) -> Figure:
    """The four penalties over a range of weights (Figures 1 and 2 of arXiv 2602.03614).

    Each is drawn in parts of its highest hill between two basins, so that all have one scale.

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

    Example:

    >>> figure = penalty_curves(levels=3)
    >>> [panel.get_title() for panel in figure.axes]
    ['Sine', 'Cosine', 'NearestSquared', 'NearestExponential']

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#basins
    """
    low, high = weight_range
    margin = 0.2 * (high - low)
    weights = np.linspace(low - margin, high + margin, 401, dtype="float32")
    uneven = low + (high - low) * np.linspace(0.05, 0.95, levels, dtype="float32") ** 1.3
    drawn: list[tuple[Any, Any]] = []
    for kind in (Sine, Cosine):
        fixed = kind(levels, weight_range)
        drawn.append((fixed, np.asarray(fixed.basins())))
    drawn.append((NearestSquared(levels), uneven))
    drawn.append((NearestExponential(levels, sharpness=sharpness), uneven))
    panels = style.axes(2, 2, height=2.6, sharex=True, sharey=True)
    for panel, (regularizer, basins) in zip(panels.flat, drawn, strict=True):
        penalties = np.array([float(regularizer.penalty(w[None], basins)) for w in weights])
        inside = (weights > basins.min()) & (weights < basins.max())
        panel.plot(weights, penalties / penalties[inside].max(), color=style.WEIGHTS)
        panel.plot(basins, np.zeros_like(basins), "o", color=style.CENTROIDS, clip_on=False)
        style.label(panel, title=type(regularizer).__name__)
        panel.set_ylim(0, 1.8)
    for panel in panels[-1]:
        panel.set_xlabel("weight", fontsize=style.TEXT)
    for panel in panels[:, 0]:
        panel.set_ylabel("penalty / highest hill", fontsize=style.TEXT)
    return panels[0, 0].figure


def accuracy_size(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    size_label: str = "bytes",
    reference: float | None = None,
) -> Figure:
    """Accuracy against size, a line a method.

    Args:
        series: From the name of a method to its `(bytes, accuracy)` pairs.
        size_label: What the sizes are. Defaults to `"bytes"`.
        reference: The accuracy of the float model, drawn as a dashed line. Defaults to `None`, without.

    Returns:
        A `matplotlib.figure.Figure` with a logarithmic size axis.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw.

    Example:

    >>> ours = [(28_416, 83.4), (48_224, 84.5)]
    >>> figure = accuracy_size({"trained": ours}, reference=84.75)
    >>> figure.axes[0].get_xlabel()
    'bytes'

    See also: https://keras-qareg.github.io/keras-qareg/choosing.html#how-small
    """
    if not any(series.values()):
        raise ValueError("Expected at least one (size, accuracy) pair. Received: none")
    (panel,) = style.axes().flat
    markers = style.MARKERS * len(series)
    for (name, pairs), marker in zip(series.items(), markers, strict=False):
        panel.plot(*zip(*sorted(pairs), strict=True), marker=marker, label=name)
    if reference is not None:
        style.baseline(panel, reference)
    style.sizes(panel)
    style.label(panel, x=size_label, y="accuracy")
    style.legend(panel)
    return panel.figure


def plan(plan: Any) -> Figure:
    """The loss of a plan against its bytes, beside other budgets and one number of levels for all.

    Args:
        plan: A `Plan`, of `allocate`.

    Returns:
        A `matplotlib.figure.Figure` with two logarithmic axes.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:

    >>> from keras_qareg.plans import PlannedKernel
    >>> row = PlannedKernel("fc/kernel", weights=128, levels=4, bytes=48, loss=0.01)
    >>> figure = plan(qareg.Plan("smallest", 1500, 0.01, rows=(row,)))
    >>> figure.axes[0].get_xlabel()
    'size of the file (smallest)'

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#levels-by-budget
    """
    (panel,) = style.axes().flat
    if plan.curve:
        curve = zip(*sorted(plan.curve), strict=True)
        panel.plot(*curve, "-", color=style.WEIGHTS, label="levels by budget")
    if plan.uniform:
        points = zip(*plan.uniform.values(), strict=True)
        panel.plot(*points, "o", color=style.GREY, label="the same levels for all kernels")
        for levels, point in plan.uniform.items():
            panel.annotate(
                str(levels), point, xytext=(6, 4), textcoords="offset points", fontsize=style.SMALL
            )
    panel.plot([plan.bytes], [plan.loss], "D", color=style.CENTROIDS, label="this plan")
    panel.set_yscale("log")
    style.sizes(panel)
    style.label(panel, x=f"size of the file ({plan.weights})", y="divergence from the float model")
    style.legend(panel)
    return panel.figure
