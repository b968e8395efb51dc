"""Keeping kernels that train to the bytes that a plan for an archive gave them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras

from keras_qareg.export import save_archive
from keras_qareg.export.archive.archive import coded_bytes
from keras_qareg.layers import QuantizationAware
from keras_qareg.models.selection import wrappers

# How far rates may go from the planned ones, and how often that range is halved; how often an epoch they
# follow the bytes, and by how much at most.
_WIDEST, _HALVINGS, _TIMES, _STEP = 64.0, 12, 10, 2.0


def archive_bytes(model: keras.Model) -> int:
    """The size of the archive of a model."""
    with tempfile.TemporaryDirectory() as folder:
        return save_archive(model, Path(folder) / "model.qareg").stat().st_size


def keep_within(model: keras.Model, most: int) -> float:
    """Places the centroids of all kernels anew, by rates at which their indices and tables just fit.

    All planned rates are multiplied with one factor: what a bit costs everywhere.

    Args:
        model: A model of `quantization_aware` with the rates of a plan.
        most: Bytes of the coded kernels together.

    Returns:
        The factor.
    """
    layers = _rated(model)
    low, high = 1 / _WIDEST, _WIDEST
    for _ in range(_HALVINGS):
        factor = (low * high) ** 0.5
        if _placed_bytes(layers, factor) <= most:
            high = factor
        else:
            low = factor
    _placed_bytes(layers, high)
    return high


def _rated(model: keras.Model) -> list[QuantizationAware]:
    found = [layer for layer in wrappers(model) if isinstance(layer, QuantizationAware)]
    return [layer for layer in found if layer.rates is not None]


def _placed_bytes(layers: list[QuantizationAware], factor: float) -> int:
    """Bytes of the kernels in an archive, once their centroids are placed by rates times a factor."""
    for layer in layers:
        layer.place_centroids(rate_factor=factor)
    return sum(coded_bytes(book) for layer in layers for book in layer.codebooks())


class KeepWithin(keras.callbacks.Callback):
    """Keeps kernels in their bytes while they train: weights do not stay where few bits code them.

    Ten times an epoch the centroids and borders are placed anew, at rates that follow the bytes; after
    each epoch, by `keep_within`.

    Args:
        model: As there.
        most: As there.
    """

    def __init__(self, model: keras.Model, most: int):
        super().__init__()
        self.network, self.most = model, most
        self.factor = keep_within(model, most)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        steps = (self.params or {}).get("steps")
        if batch and steps and not batch % -(-steps // _TIMES):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()  # during an epoch, Keras keeps the weights elsewhere
            size = _placed_bytes(_rated(self.network), self.factor)
            self.factor *= min(_STEP, max(1 / _STEP, (size / self.most) ** 2))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.factor = keep_within(self.network, self.most)
