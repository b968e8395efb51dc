"""The levels of all kernels that together harm least, in so many bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from keras_qareg.allocation.costs import Kernel
from keras_qareg.allocation.files import KernelCosts
from keras_qareg.allocation.network import Levels
from keras_qareg.allocation.sensitivity import interpolated
from keras_qareg.export.packing import CHAIN_BYTES
from keras_qareg.numerics.knapsack import choose

# The steps of the budget where many menus are compared.
_COARSE = 512
# How often a choice is made anew that takes more bytes together than its parts.
_TRIES = 3


class _Options(NamedTuple):
    """What a kernel may have: levels, bytes, and the base of its words where it shares operators."""

    levels: list[int | None]
    costs: np.ndarray
    harms: np.ndarray
    bases: list[int | None]


class Solver:
    """Chooses levels under a budget.

    Args:
        costs: The bytes of kernels.
        losses: For each kernel, the divergence at a few levels of it alone.

    Attributes:
        scales: What the losses of each kernel are multiplied by, `(kernels,)`: 1, or what was found of
            them among the others.
    """

    def __init__(
        self,
        costs: KernelCosts,
        losses: Sequence[Mapping[int, float]],
    ):
        self._costs = costs
        self.scales = np.ones(len(losses))
        self._options = [
            self._options_of(kernel, curve)
            for kernel, curve in zip(costs.kernels, losses, strict=True)
        ]
        self._losses = losses

    def bytes(self, levels: Levels) -> int:
        """Bytes of all kernels, with so many levels of each."""
        return self._costs.total(levels)

    def harms(self, levels: Levels) -> np.ndarray:
        """The divergence that each kernel is to cause, `(kernels,)`."""
        return np.array(
            [
                0.0
                if count is None
                else scale * float(interpolated(np.array([count]), *_ordered(curve))[0])
                for count, curve, scale in zip(levels, self._losses, self.scales, strict=True)
            ]
        )

    def neighbours(self, place: int, levels: int | None, step: int) -> list[int | None]:
        """The next levels that a kernel may have: more, or fewer (`step` -1); none, one or two."""
        known = self._options[place].levels
        at = known.index(levels) if levels in known else -1
        if at < 0:  # as few others are worth their bytes
            return []
        return [known[i] for i in (at + step, at + 2 * step) if 0 <= i < len(known)]

    @property
    def bases(self) -> list[int]:
        """The levels that are worth their bytes in some kernel."""
        found = {
            count for options in self._options for count in options.levels if count is not None
        }
        return sorted(found)

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
        for _ in range(_TRIES):
            found = choose(costs, harms, left, **({} if buckets is None else {"buckets": buckets}))
            if found is None:
                break
            levels = [
                options.levels[places[place]]
                for options, places, place in zip(self._options, allowed, found, strict=True)
            ]
            over = self.bytes(levels) - budget
            if over <= 0:
                return levels
            left -= over  # what kernels share is not in the bytes of each
        return None

    def _options_of(self, kernel: Kernel, curve: Mapping[int, float]) -> _Options:
        """All numbers of levels that are worth their bytes: no more are to be had for as many bits."""
        every = np.arange(2, min(256, kernel.size - 1) + 1)
        bare = replace(kernel, tables=0, factors=0)
        bits = np.array([self._costs.of(bare, int(levels)) for levels in every])
        kept = every[np.append(bits[1:] > bits[:-1], True)]
        levels: list[int | None] = [int(count) for count in kept]
        harms = interpolated(kept, *_ordered(curve))
        if self._costs.form != "int8":  # where nothing is float
            levels, harms = [*levels, None], np.append(harms, 0.0)
        costs = np.array([self._costs.of(kernel, count) for count in levels])
        bases = [count if self._costs.shares(kernel, count) else None for count in levels]
        return _Options(levels, costs, harms, bases)


def _ordered(curve: Mapping[int, float]) -> tuple[list[int], list[float]]:
    probes = sorted(curve)
    return probes, [curve[levels] for levels in probes]
