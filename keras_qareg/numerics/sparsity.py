"""Which weights to prune: the smallest, alone, in blocks, so many of each few, or whole channels.

See also: https://keras-qareg.github.io/keras-qareg/method.html#pruning
"""

from __future__ import annotations

import math
import numbers
import re
from typing import TypeAlias

import numpy as np

# `"weights"`, `"channels"`, `"2:4"`, or the rows and columns of a block.
Structure: TypeAlias = str | tuple[int, int]


def check_sparsity(sparsity: float) -> float:
    """A sparsity as a float; raises a `ValueError` unless it is from 0 to below 1."""
    numeric = isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool)
    if not (numeric and 0 <= sparsity < 1):
        raise ValueError(
            "Expected `target_sparsity` from 0 to below 1, the share of zeros. "
            f"Received: target_sparsity={sparsity!r}"
        )
    return float(sparsity)


def check_structure(structure: Structure) -> Structure:
    """The same structure, a block as a tuple; raises a `ValueError` where it is none."""
    if structure in ("weights", "channels") or _of_each(structure) is not None:
        return structure
    block = tuple(structure) if isinstance(structure, tuple | list) else ()
    if len(block) == 2 and all(isinstance(n, numbers.Integral) and n > 0 for n in block):
        return block
    raise ValueError(
        "Expected `structure` to be 'weights', 'channels', so many of each few as '2:4', or a block of "
        f"inputs and outputs as (4, 1). Received: structure={structure!r}"
    )


def _of_each(structure: Structure) -> tuple[int, int] | None:
    """Of `"2:4"`, 2 and 4."""
    found = re.fullmatch(r"(\d+):(\d+)", structure) if isinstance(structure, str) else None
    kept, group = (int(found[1]), int(found[2])) if found else (0, 0)
    return (kept, group) if 0 < kept < group else None


def limit(structure: Structure) -> float | None:
    """The sparsity that a structure prescribes: half of `"2:4"`; `None` where it may be any."""
    pair = _of_each(structure)
    return None if pair is None else 1 - pair[0] / pair[1]


def fits(structure: Structure, shape: tuple[int, ...], channel_axes: int) -> bool:
    """Whether kernels of a shape can be pruned so.

    Args:
        structure: The structure.
        shape: The shape of a kernel.
        channel_axes: How many of its last axes count output channels.
    """
    if structure == "weights":
        return True
    if structure == "channels":
        return 0 < channel_axes < len(shape)
    if channel_axes != 1 or len(shape) < 2:
        return False
    pair = _of_each(structure)
    if pair is not None:
        return shape[-2] % pair[1] == 0
    return shape[-2] > structure[0] or shape[-1] > structure[1] or math.prod(shape[:-2]) > 1  # type: ignore[operator]


def polynomial(progress: float, target: float) -> float:
    """The sparsity on the way to a target: fast at first, slow at the end.

    Args:
        progress: Where on the way, from 0 to 1.
        target: The sparsity at the end.

    Returns:
        `target (1 - (1 - progress)^3)`: equation 1 of Zhu, Gupta, arXiv 1710.01878, from no zeros on.

    Example:

    >>> [round(polynomial(progress, 0.8), 3) for progress in (0, 0.5, 1)]
    [0.0, 0.7, 0.8]
    """
    return target * (1.0 - (1.0 - min(max(progress, 0.0), 1.0)) ** 3)


def kept(
    weights: np.ndarray,
    sparsity: float,
    structure: Structure = "weights",
    channel_axes: int = 1,
) -> np.ndarray:
    """Which weights of a kernel stay: the largest; zeros are gone already, and count.

    Args:
        weights: The kernel.
        sparsity: The share of weights that go, from 0 to below 1.
        structure: `"weights"`: one by one; `(rows, columns)`: blocks of so many inputs and outputs, by
            their mean magnitude; `"2:4"`: two of each four inputs of an output stay, once `sparsity` is
            a half; `"channels"`: output channels, by the norm of their weights, one of which stays.
        channel_axes: How many of the last axes count output channels.

    Returns:
        Boolean array in the shape of the weights.

    Example:

    >>> kept(np.array([[0.1, -3.0], [2.0, 0.5]]), 0.5).tolist()
    [[False, True], [True, False]]
    """
    sizes = np.abs(np.asarray(weights, "float32"))
    if structure == "weights":
        return _largest(sizes, sparsity) & (sizes > 0)
    if structure == "channels":
        inputs = tuple(range(sizes.ndim - channel_axes))
        found = _largest(np.square(sizes).mean(axis=inputs), sparsity)
        return np.broadcast_to(found, sizes.shape) & (sizes > 0)
    pair = _of_each(structure)
    if pair is None:
        return _blocks(sizes, sparsity, structure) & (sizes > 0)  # type: ignore[arg-type]
    groups = sizes.reshape(*sizes.shape[:-2], -1, pair[1], sizes.shape[-1])
    ranks = np.argsort(np.argsort(groups, axis=-2, kind="stable"), axis=-2, kind="stable")
    gone = round(min(sparsity * pair[1], pair[1] - pair[0]))
    return (ranks >= gone).reshape(sizes.shape) & (sizes > 0)


def _largest(sizes: np.ndarray, sparsity: float) -> np.ndarray:
    """Which of some numbers stay: one of them at least."""
    count = min(round(sparsity * sizes.size), sizes.size - 1)
    found = np.ones(sizes.size, "bool")
    if count > 0:
        found[np.argpartition(sizes, count - 1, axis=None)[:count]] = False
    return found.reshape(sizes.shape)


def _blocks(sizes: np.ndarray, sparsity: float, block: tuple[int, int]) -> np.ndarray:
    """Which weights stay, by blocks of the last two axes; those at the ends may be smaller."""
    rows, columns = block
    inputs, outputs = sizes.shape[-2:]
    down, across = (np.arange(0, n, step) for n, step in ((inputs, rows), (outputs, columns)))
    sums = np.add.reduceat(np.add.reduceat(sizes, down, axis=-2), across, axis=-1)
    heights, widths = np.diff(np.append(down, inputs)), np.diff(np.append(across, outputs))
    found = _largest(sums / np.multiply.outer(heights, widths), sparsity)
    return found.repeat(heights, axis=-2).repeat(widths, axis=-1)
