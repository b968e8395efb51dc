"""Pruning under optimizers that remember: averages of weights, momentum, one inside another."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.callbacks import PruningSchedule
from keras_qareg.regularizers import NearestSquared
from tests.helpers import arrays

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(64, n)).astype("float32") for n in (16, 4))
OPTIMIZERS = keras.optimizers


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((16,)), layers.Dense(24, "relu"), layers.Dense(4)])


def zeros_of(model):
    """The share of zeros in the kernels that a network computes with."""
    return [float((kernel == 0).mean()) for kernel in arrays(*kernels_of(model))]


def kernels_of(model):
    return [layer.kernel for layer in qareg.strip(model).layers if layer.weights]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: OPTIMIZERS.Adam(0.01, use_ema=True),
        lambda: OPTIMIZERS.LossScaleOptimizer(OPTIMIZERS.Adam(0.01, use_ema=True)),
        lambda: qareg.optimizers.with_centroid_optimizer(OPTIMIZERS.SGD(0.01, use_ema=True), 0.1),
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_averages_of_weights_keep_the_zeros(optimizer):
    model, schedule = net(), PruningSchedule(0.75)
    model.compile(optimizer(), "mse")
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[schedule])
    assert zeros_of(model) == [0.75, 0.75]


def integer(model):
    return qareg.quantize_activations(model, X)


def regularized(model):
    return qareg.quantization_aware(model, NearestSquared(8, zero_basin=True))


def reassigned(model):
    return qareg.share_weights(model, 8, trainable="assignments", zero_centroid=True)


@pytest.mark.filterwarnings("ignore:Ranges of activations", "ignore:QuantizationAware layers are")
@pytest.mark.parametrize("transform", [integer, regularized, reassigned])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: OPTIMIZERS.Adam(0.01),
        lambda: OPTIMIZERS.SGD(0.01, momentum=0.9, nesterov=True),
        lambda: OPTIMIZERS.LossScaleOptimizer(OPTIMIZERS.AdamW(0.01)),
    ],
)
def test_training_that_goes_on_moves_no_zero(transform, optimizer):
    model, schedule = transform(net()), PruningSchedule(0.75, end=1.0)
    model.compile(optimizer(), "mse")
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[schedule])
    gone = [kernel == 0 for kernel in arrays(*kernels_of(model))]
    assert all(mask.mean() >= 0.75 for mask in gone)
    model.fit(X, Y, epochs=2, verbose=0)
    for kernel, mask in zip(arrays(*kernels_of(model)), gone, strict=True):
        assert not kernel[mask].any()


def test_weights_that_are_assigned_anew_are_pruned_at_once():
    model = reassigned(net())
    model.compile("adam", "mse")
    schedule = PruningSchedule(0.75, begin=1.0, end=1.0)
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[schedule])
    assert min(zeros_of(model)) >= 0.75


@pytest.mark.one_backend
def test_a_channel_without_a_scale_behind_it_is_nothing():
    keras.utils.set_random_seed(0)
    stack = [
        layers.Dense(8, name="first"),
        layers.BatchNormalization(scale=False),
        layers.ReLU(),
        layers.Dense(4),
    ]
    model = keras.Sequential([keras.Input((16,)), *stack])
    model.compile("adam", "mse")
    schedule = PruningSchedule(0.5, end=0.1, structure="channels", layers=["first"])
    model.fit(X, Y, epochs=1, batch_size=16, verbose=0, callbacks=[schedule])
    assert [*map(len, qareg.shrink(model).layers[0].get_weights())] == [16, 4]
