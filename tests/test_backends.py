"""All backends against the same formulas in NumPy and float64, and so against each other.

Values are compared to 1e-5; sums over many weights are so too, of their size.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg import quantizers
from keras_qareg.numerics import assignment, penalties
from keras_qareg.numerics.codebook import Codebook, lookup
from keras_qareg.numerics.compiled import custom_gradient
from keras_qareg.quantizers import ActivationQuantizer, WeightNormalizationQuantizer
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine
from tests.helpers import BACKEND, arrays, compiled, digits, gradients, small_cnn

RNG = np.random.default_rng(7)
WEIGHTS = RNG.normal(scale=0.3, size=(37, 8)).astype("float32")
CENTROIDS = np.array([0.31, -0.4, 0.05, -0.12], "float32")
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def members(weights, centroids):
    """The place of the nearest centroid of each weight."""
    return np.abs(weights[..., None] - centroids).argmin(axis=-1)


def sums_by_member(values, places, count):
    return np.array([values[places == place].sum() for place in range(count)])


def evenly_spaced(weights, basins):
    """The penalty of a sine or cosine in float64, its slope, and none for the basins."""
    step = (basins[-1] - basins[0]) / (len(basins) - 1)
    offset = weights - basins[members(weights, basins)]
    beyond = (weights < basins[0]) | (weights > basins[-1])
    angle = np.pi * offset / step
    value = np.where(beyond, np.abs(angle), np.abs(np.sin(angle)))
    slope = np.pi / step * np.sign(offset) * np.where(beyond, 1.0, np.cos(angle))
    return value.sum(), slope, np.zeros(len(basins))


def nearest(weights, basins, value, slope):
    """A penalty of the distance to the nearest basin in float64, and both gradients."""
    places = members(weights, basins)
    distance = weights - basins[places]
    slopes = slope(distance)
    return value(distance).sum(), slopes, -sums_by_member(slopes, places, len(basins))


REFERENCES = {
    "Sine": (Sine(4), evenly_spaced),
    "Cosine": (Cosine(4), evenly_spaced),
    "NearestSquared": (
        NearestSquared(4),
        lambda w, c: nearest(w, c, np.square, lambda d: 2 * d),
    ),
    "NearestExponential": (
        NearestExponential(4, sharpness=3.0),
        lambda w, c: nearest(
            w,
            c,
            lambda d: 1 - np.exp(-3 * np.abs(d)),
            lambda d: 3 * np.exp(-3 * np.abs(d)) * np.sign(d),
        ),
    ),
}


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_penalties(kind, graph):
    regularizer, reference = REFERENCES[kind]
    basins = CENTROIDS if regularizer.learned else regularizer.basins()
    value, slopes = gradients(regularizer.penalty, WEIGHTS, basins, graph=graph)
    expected, of_weights, of_basins = reference(WEIGHTS.astype("float64"), basins.astype("float64"))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slopes[0], of_weights, **EXACT)
    np.testing.assert_allclose(slopes[1], of_basins, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", REFERENCES)
def test_penalties_of_many_weights(kind):
    """More than are taken at a time on a CPU, and no multiple of it."""
    weights = RNG.normal(scale=0.3, size=300_001).astype("float32")
    regularizer, reference = REFERENCES[kind]
    basins = CENTROIDS if regularizer.learned else regularizer.basins()
    value, slopes = gradients(regularizer.penalty, weights, basins, graph=True)
    expected, of_weights, of_basins = reference(weights.astype("float64"), basins.astype("float64"))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    # A weight in the middle of two basins may be nearer to either in float32: a few have the slope of
    # the other, up to 3, which the sums over members then have too.
    apart = np.abs(slopes[0] - of_weights) > 1e-4
    assert apart.sum() <= 3
    np.testing.assert_allclose(slopes[1], of_basins, rtol=1e-5, atol=3.0)


CLOSE = np.array([0.1, 0.1, 0.1 + 1e-7, 9.0], "float32")
MANY = np.concatenate([CLOSE, np.linspace(-1, 1, 16)]).astype("float32")


@pytest.mark.parametrize("centroids", [CENTROIDS, CLOSE, MANY])
def test_nearest_is_passed_straight_through(centroids):
    """The last tables have midpoints too near for a look-up: where each is not compared, a search."""
    force = RNG.normal(size=WEIGHTS.shape).astype("float32")

    def loss(weights, centroids):
        return ops.sum(ops.multiply(force, assignment.nearest(weights, centroids)))

    expected = Codebook.nearest(WEIGHTS, centroids).weights
    np.testing.assert_array_equal(*arrays(assignment.nearest(WEIGHTS, centroids)), expected)
    value, (of_weights, of_centroids) = gradients(loss, WEIGHTS, centroids)
    np.testing.assert_allclose(value, (force * expected).sum(dtype="float64"), **EXACT)
    np.testing.assert_array_equal(of_weights, force)
    for level in np.unique(centroids):
        total = force[expected == level].sum(dtype="float64")
        np.testing.assert_allclose(of_centroids[centroids == level].sum(), total, **EXACT)


def test_lookup():
    indices = RNG.integers(0, 4, (9, 5)).astype("uint8")
    force = RNG.normal(size=indices.shape).astype("float32")
    value, (slope,) = gradients(
        lambda table: ops.sum(ops.multiply(force, lookup(table, ops.array(indices)))), CENTROIDS
    )
    np.testing.assert_allclose(value, (force * CENTROIDS[indices]).sum(dtype="float64"), **EXACT)
    np.testing.assert_allclose(slope, sums_by_member(force, indices, 4), **EXACT)


# WNQ: levels +-v_1 +-v_2 of w / max|w|, in each column.


def levels_of(basis):
    """All levels of each channel, and the signs that make them: `(4, channels)`, `(4, 2)`."""
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)])
    return signs @ basis, signs


def fitted(normalized, basis):
    """One round of least squares in float64: the basis that fits the nearest levels best."""
    levels, signs = levels_of(basis)
    found = np.empty_like(basis)
    for channel in range(basis.shape[1]):
        chosen = signs[members(normalized[:, channel], levels[:, channel])]
        found[:, channel] = np.linalg.lstsq(chosen, normalized[:, channel])[0]
    return found


def start_of(normalized):
    return 0.5 * 0.996 * np.outer([1.0, 2.0], np.sqrt(np.square(normalized).mean(axis=0)))


def test_wnq_starts_and_updates_by_least_squares(monkeypatch):
    quantizer = WeightNormalizationQuantizer(2, momentum=0.9)
    normalized = WEIGHTS.astype("float64") / np.abs(WEIGHTS).max()
    basis = start_of(normalized)
    (updated,) = arrays(quantizer.update(WEIGHTS, basis.astype("float32")))
    expected = 0.9 * basis + 0.1 * fitted(normalized, basis)
    np.testing.assert_allclose(updated, expected, **EXACT)
    for _ in range(20):
        basis = fitted(normalized, basis)
    np.testing.assert_allclose(*arrays(quantizer.start(WEIGHTS)), basis, **EXACT)
    monkeypatch.setattr(quantizers, "known", lambda _: None)  # as in the middle of a program
    np.testing.assert_allclose(*arrays(quantizer.start(WEIGHTS)), basis, **EXACT)


@pytest.mark.parametrize("normalize", [True, False])
def test_wnq_has_its_value_and_its_gradient(normalize):
    quantizer = WeightNormalizationQuantizer(2, normalize=normalize)
    (basis,) = arrays(quantizer.fit(WEIGHTS))
    weights, force = WEIGHTS.astype("float64"), RNG.normal(size=WEIGHTS.shape)
    scale = np.abs(weights).max() if normalize else 1.0
    levels, _ = levels_of(basis.astype("float64"))
    columns = range(weights.shape[1])
    quantized = np.stack(
        [levels[members(weights[:, c] / scale, levels[:, c]), c] for c in columns], axis=1
    )
    value, (slope,) = gradients(
        lambda w: ops.sum(ops.multiply(force.astype("float32"), quantizer(w, basis))), WEIGHTS
    )
    np.testing.assert_allclose(value, (force * scale * quantized).sum(), **EXACT)
    expected = force.copy()
    if normalize:
        largest = np.unravel_index(np.abs(weights).argmax(), weights.shape)
        expected[largest] -= (force * weights).sum() / weights[largest]
    np.testing.assert_allclose(slope, expected, **EXACT)


def test_activations_have_their_levels_their_gradient_and_their_update():
    quantizer, basis = ActivationQuantizer(2), np.array([1.0, 2.0], "float32")
    inputs = np.array([[-0.4, 0.3, 0.9], [1.6, 2.7, 3.4]], "float32")
    force = np.arange(1.0, 7.0, dtype="float32").reshape(inputs.shape)
    value, (slope,) = gradients(lambda x: ops.sum(ops.multiply(force, quantizer(x, basis))), inputs)
    levels = np.array([[0.0, 0.0, 1.0], [2.0, 3.0, 3.0]])
    assert value == pytest.approx((force * levels).sum())
    np.testing.assert_array_equal(slope, force * [[0, 1, 1], [1, 1, 0]])
    bits = np.array([[0, 0], [0, 0], [1, 0], [0, 1], [1, 1], [1, 1]])
    best = np.linalg.lstsq(bits, np.maximum(inputs, 0).ravel())[0]
    (updated,) = arrays(quantizer.update(inputs, basis))
    np.testing.assert_allclose(updated, 0.9 * basis + 0.1 * best, **EXACT)


# Training.


def dense_model(wrap):
    model = keras.Sequential([keras.Input((8,)), layers.Dense(5, use_bias=False, name="fc")])
    model.get_layer("fc").kernel.assign(WEIGHTS[:8, :5])
    return wrap(model)


def test_a_step_of_tuning_moves_centroids_by_the_sum_over_their_members():
    model = dense_model(lambda model: qareg.share_weights(model, 4, table="float32"))
    layer = model.get_layer("fc")
    (book,) = layer.codebooks()
    inputs, targets = RNG.normal(size=(6, 8)), RNG.normal(size=(6, 5))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    for _ in range(2):  # the second shows that gradients of the first are gone
        (table,) = arrays(layer.centroids[0])
        kernel = table.astype("float64")[book.indices]
        by_kernel = 2 / targets.size * inputs.T @ (inputs @ kernel - targets)
        expected = table - 0.1 * sums_by_member(by_kernel, book.indices, 4)
        model.train_on_batch(inputs.astype("float32"), targets.astype("float32"))
        np.testing.assert_allclose(*arrays(layer.centroids[0]), expected, **EXACT)


def test_a_step_under_a_penalty_moves_weights_and_centroids():
    regularizer = NearestSquared(4, strength=0.01)
    model = dense_model(lambda model: qareg.quantization_aware(model, regularizer, table="float32"))
    layer = model.get_layer("fc")
    layer.place_centroids()
    inputs, targets = RNG.normal(size=(6, 8)), RNG.normal(size=(6, 5))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    for _ in range(2):
        kernel, table = (a.astype("float64") for a in arrays(layer.kernels[0], layer.centroids[0]))
        places = members(kernel, table)
        through = 2 / targets.size * inputs.T @ (inputs @ table[places] - targets)
        pull = 2 * 0.01 * (kernel - table[places])
        of_table = sums_by_member(through - pull, places, 4)
        model.train_on_batch(inputs.astype("float32"), targets.astype("float32"))
        np.testing.assert_allclose(
            *arrays(layer.kernels[0]), kernel - 0.1 * (through + pull), **EXACT
        )
        np.testing.assert_allclose(*arrays(layer.centroids[0]), table - 0.1 * of_table, **EXACT)


def test_a_quantizer_of_inputs_uses_the_basis_that_it_had():
    """PyTorch assigns in place: what was read before must not change with it."""
    layer = qareg.layers.WNQDense(3, bits=1, activation_bits=2)
    inputs = np.abs(RNG.normal(size=(16, 8))).astype("float32")
    layer(inputs, training=True)
    before = layer.activation_basis.numpy().copy()
    (kernel,) = arrays(layer.quantized_kernel)
    (outputs,) = arrays(layer(inputs, training=True))
    (quantized,) = arrays(layer.activation_quantizer(inputs, before))
    np.testing.assert_allclose(outputs, quantized @ kernel, **EXACT)
    assert not np.array_equal(before, layer.activation_basis.numpy())


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch keeps gradients until they are zeroed")
@pytest.mark.parametrize("transform", ["share", "aware", "wnq"])
def test_all_that_trains_is_a_parameter_of_its_model(transform):
    model = {
        "share": lambda model: qareg.share_weights(model, 4),
        "aware": lambda model: qareg.quantization_aware(model, NearestSquared(4)),
        "wnq": lambda model: qareg.wnq(model, skip=()),
    }[transform](small_cnn())
    images, labels = digits(16)
    compiled(model).fit(images, labels, verbose=0)
    parameters = {id(parameter) for parameter in model.parameters()}
    assert {id(variable.value) for variable in model.trainable_variables} <= parameters
    model.zero_grad()
    assert all(variable.value.grad is None for variable in model.trainable_variables)


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch can tell")
def test_what_cannot_be_differentiated_twice_says_so():
    import torch

    weights = torch.tensor(WEIGHTS, requires_grad=True)
    value = penalties.nearest_squared(weights, CENTROIDS)
    (slope,) = torch.autograd.grad(value, weights, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        slope.sum().backward()


def test_an_error_inside_is_raised_as_it_is():
    """Once: Keras's own decorator runs a function that failed again on PyTorch."""
    calls = []

    def fail(x):
        calls.append(x)
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        custom_gradient(fail)(ops.ones(3))
    assert len(calls) == 1
