"""The search for levels: what parts predict, what the file takes, what the whole plan does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_qareg.allocation.files import File
from keras_qareg.allocation.network import FIRST, PROBES, Levels, Network
from keras_qareg.allocation.solving import Solver
from keras_qareg.plans import PlannedKernel, Point

# Files that are written for one budget; the share of it that is not worth another.
_FILES, _NEAR = 4, 0.005
# How much more than a budget a file may take by what is known, to be written in spite of it.
_LIKELY = 1.05
# Rounds in which each kernel is measured among the others, and exchanges that are tried.
ROUNDS, EXCHANGES = 2, 8
# Budgets of the curve, and steps of the bisection for a loss.
POINTS, STEPS = 8, 10
# How much more or less a kernel may count among the others than alone.
_FURTHEST = 8.0


class Unmet(Exception):  # noqa: N818
    """A budget is less than the least file.

    Attributes:
        least: Bytes of that.
    """

    def __init__(self, least: int):
        super().__init__(least)
        self.least = least


class Search:
    """Finds levels for one form of files.

    Args:
        network: The network.
        file: Its files.
        losses: The divergence of each kernel alone, by levels.
        done: Called after each measurement.
    """

    def __init__(
        self,
        network: Network,
        file: File,
        losses: Sequence[Mapping[int, float]],
        done: Callable[[], None],
    ):
        self.network, self.file, self._done = network, file, done
        self.solver = Solver(file.costs, losses)
        first = network.uniform(FIRST)
        self.base = file.bytes(first) - self.solver.bytes(first)
        self._losses: dict[tuple[int | None, ...], float] = {}

    @property
    def float_bytes(self) -> int:
        """Bytes of the float32 file."""
        return self.file.float_bytes

    def bytes(self, levels: Levels) -> int:
        """Bytes of the file."""
        return self.file.bytes(levels)

    def loss(self, levels: Levels) -> float:
        """The measured divergence."""
        if tuple(levels) not in self._losses:
            self._losses[tuple(levels)] = self.network.loss(levels)
            self._done()
        return self._losses[tuple(levels)]

    def fit(self, budget: int) -> list[int | None]:
        """The levels that should harm least, of those whose file has no more bytes.

        Raises:
            Unmet: If there are none.
        """
        best: list[int | None] | None = None
        aim = budget
        for _ in range(_FILES):
            levels = self.solver.solve(aim - self.base)
            if levels is None:
                break
            size = self._measured(levels)
            if size <= budget:
                best = self._better(levels, best)
                if budget - size < _NEAR * budget:
                    break
            else:  # what others take is not known so well
                aim -= size - budget
        return best or self._least(budget)

    def _measured(self, levels: Levels) -> int:
        """Bytes of a file that is written, which tell what there is beside the kernels."""
        size = self.file.bytes(levels)
        self.base = size - self.solver.bytes(levels)
        return size

    def _least(self, budget: int) -> list[int | None]:
        levels = self.solver.least()
        size = self._measured(levels)
        if size > budget:
            raise Unmet(size)
        return levels

    def _better(self, levels: list[int | None], best: list[int | None] | None) -> list[int | None]:
        if best is None:
            return levels
        return min(levels, best, key=lambda found: float(self.solver.harms(found).sum()))

    def under_bytes(self, budget: int) -> list[int | None]:
        """The levels of the least divergence, in no more bytes; measured together, and mended.

        Raises:
            Unmet: If there are none.
        """
        best = self.fit(budget)
        best = self._with_uniform(best, budget)
        for _ in range(ROUNDS):
            self._weigh(best)
            found = self.fit(budget)
            if found == best:
                break
            if self.loss(found) >= self.loss(best):
                break
            best = found
        best = self._exchanged(best, budget)
        self._measured(best)
        return best

    def under_loss(self, most: float) -> list[int | None]:
        """The levels of the fewest bytes, with no more divergence."""
        low, high = self.solver.bytes(self.solver.least()), self.solver.most()
        best: list[int | None] = [None] * len(self.network.kernels)
        for _ in range(STEPS):
            budget = (low + high) // 2
            levels = self.solver.solve(budget)
            if levels is not None and self.loss(levels) <= most:
                high = min(budget, self.solver.bytes(levels))
                best = levels
            else:
                low = budget
        return best

    def curve(self, size: int) -> list[Point]:
        """Bytes and measured divergence of plans for other budgets, to four times `size`."""
        # What is known of parts may be more than there is in a small file.
        least = max(0, self.base + self.solver.bytes(self.solver.least()))
        most = min(self.base + self.solver.most(), 4 * size)
        points = []
        for budget in np.geomspace(least + 1, max(most, least + 2), POINTS):
            levels = self.solver.solve(budget - self.base)
            if levels is not None:
                points.append((self.base + self.solver.bytes(levels), self.loss(levels)))
        return sorted(set(points))

    def uniform(self) -> dict[int, Point]:
        """Bytes and measured divergence of one number of levels for all kernels."""
        found = {}
        for levels in PROBES:
            same = self.network.uniform(levels)
            found[levels] = (self.base + self.solver.bytes(same), self.loss(same))
        return found

    def rows(self, levels: Levels) -> tuple[PlannedKernel, ...]:
        """A row for each kernel."""
        return tuple(
            PlannedKernel(
                kernel.path, kernel.size, count, self.file.costs.of(kernel, count), float(harm)
            )
            for kernel, count, harm in zip(
                self.file.costs.kernels, levels, self.solver.harms(levels), strict=True
            )
        )

    def _with_uniform(self, best: list[int | None], budget: int) -> list[int | None]:
        """The largest number of levels for all kernels that fits, if that is measured to be better."""
        likely = [
            same
            for same in map(self.network.uniform, self.solver.bases)
            if self.base + self.solver.bytes(same) <= _LIKELY * budget
        ]
        for same in reversed(likely[-_FILES:]):
            if self._measured(same) <= budget:
                return min(same, best, key=self.loss)
        return best

    def _weigh(self, levels: list[int | None]) -> None:
        """Measures what each kernel does among the others: the divergence without it, as float."""
        whole, harms = self.loss(levels), self.solver.harms(levels)
        for place, harm in enumerate(harms):
            if levels[place] is not None and harm > 0:
                others = list(levels)
                others[place] = None
                among = max(whole - self.loss(others), 0.0)
                scale = np.clip(among / harm, 1 / _FURTHEST, _FURTHEST)
                self.solver.scales[place] *= np.sqrt(scale)

    def _exchanged(self, best: list[int | None], budget: int) -> list[int | None]:
        """Tries more levels for one kernel and fewer for another, the most promising first."""
        tried = {tuple(best)}
        for _ in range(EXCHANGES):
            found = self._most_promising(best, budget, tried)
            if found is None:
                break
            tried.add(tuple(found))
            if self.loss(found) < self.loss(best) and self.file.bytes(found) <= budget:
                best = found
        return best

    def _most_promising(
        self, best: list[int | None], budget: int, tried: set[tuple[int | None, ...]]
    ) -> list[int | None] | None:
        """Of all plans that differ in one or two kernels by a step, the one that should harm least."""
        found: list[tuple[float, list[int | None]]] = []
        for place in range(len(best)):
            for up in self.solver.neighbours(place, best[place], 1):
                raised = [*best[:place], up, *best[place + 1 :]]
                for other in [None, *(i for i in range(len(best)) if i != place)]:
                    downs = (
                        [None] if other is None else self.solver.neighbours(other, best[other], -1)
                    )
                    for down in downs:
                        changed = list(raised)
                        if other is not None:
                            changed[other] = down
                        fits = self.base + self.solver.bytes(changed) <= budget
                        if fits and tuple(changed) not in tried:
                            found.append((float(self.solver.harms(changed).sum()), changed))
        return min(found, key=lambda pair: pair[0])[1] if found else None
