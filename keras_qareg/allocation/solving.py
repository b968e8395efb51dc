"""The levels of all layers that together harm least, in so many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from keras_qareg.allocation.costs import Costs, Kernel
from keras_qareg.allocation.sensitivity import interpolated
from keras_qareg.export.packing import CHAIN_BYTES
from keras_qareg.numerics.knapsack import choose

# Levels of each layer; `None` is float.
Levels = Sequence[int | None]
# The steps of the budget where many menus are compared.
_COARSE = 512


class _Options(NamedTuple):
    """What a layer may have: levels, bytes, and the base of its words where it shares operators."""

    levels: list[int | None]
    costs: np.ndarray
    harms: np.ndarray
    bases: list[int | None]


class Solver:
    """Chooses levels under a budget.

    Args:
        costs: The bytes of kernels.
        layers: The kernels of each layer.
        losses: For each layer, the divergence at a few levels of it alone.

    Attributes:
        scales: What the losses of each layer are multiplied by, `(layers,)`: 1, or what was found of
            them among the others.
    """

    def __init__(
        self,
        costs: Costs,
        layers: Sequence[Sequence[Kernel]],
        losses: Sequence[Mapping[int, float]],
    ):
        self._costs, self._layers = costs, layers
        self.scales = np.ones(len(layers))
        self._options = [
            self._options_of(kernels, curve)
            for kernels, curve in zip(layers, losses, strict=True)
        ]
        self._losses = losses

    def bytes(self, levels: Levels) -> int:
        """Bytes of all kernels, with so many levels in each layer."""
        return self._costs.total(
            [
                count
                for kernels, count in zip(self._layers, levels, strict=True)
                for _ in kernels
            ]
        )

    def harms(self, levels: Levels) -> np.ndarray:
        """The divergence that each layer is to cause, `(layers,)`."""
        return np.array(
            [
                0.0
                if count is None
                else scale * float(interpolated(np.array([count]), *_ordered(curve))[0])
                for count, curve, scale in zip(levels, self._losses, self.scales, strict=True)
            ]
        )

    def neighbours(self, place: int, levels: int | None, step: int) -> list[int | None]:
        """The next levels that a layer may have: more, or fewer (`step` -1); none, one or two."""
        known = self._options[place].levels
        at = known.index(levels) if levels in known else -1
        if at < 0:  # as few others are worth their bytes
            return []
        return [known[i] for i in (at + step, at + 2 * step) if 0 <= i < len(known)]

    def least(self) -> list[int | None]:
        """The levels of the fewest bytes, all with one base."""
        return [options.levels[int(np.argmin(options.costs))] for options in self._options]

    def most(self) -> int:
        """Bytes with which nothing is to gain: of the costliest levels."""
        return sum(int(options.costs.max()) for options in self._options)

    def solve(self, budget: float) -> list[int | None] | None:
        """The levels that harm least in so many bytes of all kernels; `None` where none fit.

        Where kernels share operators, each number of levels has its own, so that few different ones are
        best: these are added one by one, while that helps.
        """
        bases = sorted({b for options in self._options for b in options.bases if b is not None})
        if not bases:
            return self._solved(budget, set(), None)
        menu: set[int] = set()
        best = self._harm(budget, {min(bases)})
        while len(menu) < len(bases):
            tries = [menu | {base} for base in bases if base not in menu]
            tries += [menu - {old} | {base} for old in menu for base in bases if base not in menu]
            scored = [(self._harm(budget, tried), sorted(tried)) for tried in tries]
            harm, found = min(scored)
            if menu and harm >= best:
                break
            menu, best = set(found), harm
        return self._solved(budget, menu, None)

    def _harm(self, budget: float, menu: set[int]) -> float:
        found = self._solved(budget, menu, _COARSE)
        return np.inf if found is None else float(self.harms(found).sum())

    def _solved(
        self, budget: float, menu: set[int], buckets: int | None
    ) -> list[int | None] | None:
        allowed = [
            [place for place, base in enumerate(options.bases) if base is None or base in menu]
            for options in self._options
        ]
        if not all(allowed):
            return None
        costs = [o.costs[places] for o, places in zip(self._options, allowed, strict=True)]
        harms = [
            scale * o.harms[places]
            for o, places, scale in zip(self._options, allowed, self.scales, strict=True)
        ]
        left = budget - CHAIN_BYTES * max(0, len(menu) - 1)
        found = choose(costs, harms, left, **({} if buckets is None else {"buckets": buckets}))
        if found is None:
            return None
        return [
            options.levels[places[place]]
            for options, places, place in zip(self._options, allowed, found, strict=True)
        ]

    def _options_of(self, kernels: Sequence[Kernel], curve: Mapping[int, float]) -> _Options:
        """All numbers of levels that are worth their bytes: no more are to be had for the same."""
        most = min(256, max(kernel.size for kernel in kernels) - 1)
        every = np.arange(2, most + 1)
        # The most levels for so many bits.
        bare = [replace(kernel, tables=0, factors=0) for kernel in kernels]
        bits = np.array([sum(self._costs.of(kernel, int(n)) for kernel in bare) for n in every])
        kept = np.append(bits[1:] > bits[:-1], True)
        levels: list[int | None] = [int(n) for n in every[kept]]
        bases = [n if self._costs.shares(kernels, n) else None for n in levels]
        costs = np.array([sum(self._costs.of(kernel, n) for kernel in kernels) for n in levels])
        harms = interpolated(every[kept], *_ordered(curve))
        if self._costs.form != "int8":  # where nothing is float
            whole = sum(self._costs.of(kernel, None) for kernel in kernels)
            levels.append(None)
            bases.append(None)
            harms, costs = np.append(harms, 0.0), np.append(costs, whole)
        return _Options(levels, costs, harms, bases)


def _ordered(curve: Mapping[int, float]) -> tuple[list[int], list[float]]:
    probes = sorted(curve)
    return probes, [curve[levels] for levels in probes]
