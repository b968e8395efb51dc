"""The search for rates: what a bit of each kernel may cost, for an archive of so many bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from keras_qareg.allocation.files import archive_bytes, float_bytes
from keras_qareg.allocation.network import PROBES, Network
from keras_qareg.allocation.searching import Unmet
from keras_qareg.export.archive.archive import coded_bytes
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.rate_distortion import FURTHEST, lowest_price
from keras_qareg.plans import PlannedKernel, Point

# Levels between which harm is about as large as squared error says.
_FITTED = (4, 8, 16)
# How often the range of prices, which are powers of two, is halved.
_HALVINGS = 11
# How much more or less a kernel may count among the others than alone.
_MOST_SCALE = 8.0
# What all kernels take to: one rate each, or levels of k-means.
Choice = tuple[float, ...]


class RateSearch:
    """Finds one price of a bit for all kernels, each by how sensitive it is.

    The harm of a kernel is about its sensitivity times its squared error. The best split of bytes is
    then that at which a bit costs the same harm everywhere: each kernel is clustered for the least
    squared error plus `price / sensitivity` times its bits (`numerics.rate_distortion`).

    Args:
        network: The network.
        losses: The divergence of each kernel alone, by levels.
        done: Called after each measurement.

    Attributes:
        float_bytes: Bytes of all weights as float32.
    """

    def __init__(
        self,
        network: Network,
        losses: Sequence[Mapping[int, float]],
        done: Callable[[], None],
    ):
        self.network, self._done = network, done
        self.float_bytes = float_bytes(network)
        self.sensitivities = np.array(
            [self._sensitivity(place, curve) for place, curve in enumerate(losses)]
        )
        self._books: dict[Choice, dict[str, Codebook]] = {}
        self._sizes: dict[Choice, int] = {}
        self._losses: dict[Choice, float] = {}

    def _sensitivity(self, place: int, curve: Mapping[int, float]) -> float:
        """Harm a squared error, the geometric mean at a few numbers of levels."""
        alone: list[int | None] = [None] * len(self.network.kernels)
        path, found = self.network.kernels[place].path, []
        for levels in [n for n in _FITTED if n in curve] or list(curve):
            alone[place] = levels
            error = self.network.error(place, self.network.books(alone)[path])
            if error > 0 and curve[levels] > 0:
                found.append(math.log(curve[levels] / error))
        return math.exp(float(np.mean(found))) if found else 1e-12

    def books(self, rates: Choice) -> dict[str, Codebook]:
        """The codebooks at some rates."""
        if rates not in self._books:
            self._books[rates] = self.network.rated(rates)
        return self._books[rates]

    def bytes(self, rates: Choice) -> int:
        """Bytes of the archive."""
        if rates not in self._sizes:
            self._sizes[rates] = self._size(self.books(rates))
        return self._sizes[rates]

    def loss(self, rates: Choice) -> float:
        """The measured divergence."""
        if rates not in self._losses:
            self._losses[rates] = self.network.harm(self.books(rates))
            self._done()
        return self._losses[rates]

    def under_bytes(self, budget: int) -> Choice:
        """The rates of the least divergence, in no more bytes; measured together, and mended.

        Raises:
            Unmet: If there are none.
        """
        best = self._fit(budget)
        self._weigh(best)
        found = self._fit(budget)
        return min(best, found, key=self.loss)

    def under_loss(self, most: float) -> Choice:
        """The rates of the fewest bytes, with no more divergence."""
        low, high = -FURTHEST, FURTHEST
        best = self._rates(low)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            rates = self._rates(middle)
            if self.loss(rates) <= most:
                low, best = middle, rates
            else:
                high = middle
        return best

    def curve(self, size: int) -> list[Point]:
        """Bytes and measured divergence of what was tried."""
        return sorted({(self.bytes(rates), self.loss(rates)) for rates in self._books})

    def uniform(self) -> dict[int, Point]:
        """Bytes and measured divergence of one number of levels for all kernels, by k-means."""
        found = {}
        for levels in PROBES:
            same = self.network.uniform(levels)
            found[levels] = (self._size(self.network.books(same)), self.network.loss(same))
            self._done()
        return found

    def rows(self, rates: Choice) -> tuple[PlannedKernel, ...]:
        """A row for each kernel."""
        rows = []
        for place, (kernel, rate) in enumerate(zip(self.network.kernels, rates, strict=True)):
            book = self.books(rates)[kernel.path]
            size = coded_bytes(book)
            harm = self.sensitivities[place] * self.network.error(place, book)
            most = self.network.most_levels(place)
            rows.append(PlannedKernel(kernel.path, kernel.size, most, size, float(harm), rate))
        return tuple(rows)

    def _size(self, books: Mapping[str, Codebook]) -> int:
        return archive_bytes(self.network, books)

    def _rates(self, price: float) -> Choice:
        """The rate of each kernel, at a price of a bit, relative to a middle one, in powers of two."""
        spreads = [float(np.var(self.network.probe.weights[k.path])) for k in self.network.kernels]
        middle = float(np.median(self.sensitivities * spreads)) * 4.0**-3
        return tuple(float(rate) for rate in middle * 2.0**price / self.sensitivities)

    def _fit(self, budget: int) -> Choice:
        """The lowest price at which an archive has no more bytes, about."""
        weights = sum(kernel.size for kernel in self.network.kernels)
        price = lowest_price(lambda price: self.bytes(self._rates(price)), budget, weights)
        if price is None:
            raise Unmet(self.bytes(self._rates(FURTHEST)))
        return self._rates(price)

    def _weigh(self, rates: Choice) -> None:
        """Measures what each kernel does among the others: the divergence without it, as float."""
        books, whole = self.books(rates), self.loss(rates)
        for place, kernel in enumerate(self.network.kernels):
            harm = self.sensitivities[place] * self.network.error(place, books[kernel.path])
            others = {path: book for path, book in books.items() if path != kernel.path}
            among = max(whole - self.network.harm(others), 0.0)
            self._done()
            if harm > 0:
                scale = np.clip(among / harm, 1 / _MOST_SCALE, _MOST_SCALE)
                self.sensitivities[place] *= float(np.sqrt(scale))
