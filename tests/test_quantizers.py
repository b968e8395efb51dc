"""WNQ's quantizers against float64 NumPy, brute force and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_qareg import quantizers
from keras_qareg.quantizers import ActivationQuantizer, WeightNormalizationQuantizer
from tests.helpers import fewer_elsewhere, gradients, program

RNG = np.random.default_rng(0)
STATE = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers():
    """Every test draws the same numbers, whichever ran before it."""
    RNG.bit_generator.state = STATE


def to_numpy(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def all_codes(bits, digits=(-1.0, 1.0)):
    return np.array(digits)[(np.arange(2**bits)[:, None] >> np.arange(bits)) & 1]


def least_squares(values, basis, digits=(-1.0, 1.0)):
    """The basis that fits the nearest levels of the values best, in float64, channel by channel."""
    found = basis.copy()
    for channel in range(values.shape[1]):
        codes = all_codes(basis.shape[0], digits)
        levels = codes @ basis[:, channel]
        nearest = np.abs(values[:, channel, None] - levels).argmin(axis=1)
        found[:, channel] = np.linalg.lstsq(codes[nearest], values[:, channel], rcond=None)[0]
    return found


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_basis_follows_a_float64_reference(bits, normalize):
    quantizer = WeightNormalizationQuantizer(bits, normalize=normalize)
    weights = RNG.standard_t(4, size=(3, 3, 40, 7)).astype("float32") / 5
    basis = quantizer.fit(weights)
    expected, update = to_numpy(basis).astype("float64"), program(quantizer.update)
    for _ in range(50):
        weights = (weights + 0.02 * RNG.normal(size=weights.shape)).astype("float32")
        scale = np.abs(weights).max() if normalize else 1.0
        values = weights.reshape(-1, 7).astype("float64") / scale
        expected = 0.9 * expected + 0.1 * least_squares(values, expected)
        basis = update(weights, basis)
        np.testing.assert_allclose(to_numpy(basis), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", fewer_elsewhere([3, 1, 2, 4]))
def test_the_forward_is_the_nearest_level(bits, per_channel, uniform):
    quantizer = WeightNormalizationQuantizer(bits, per_channel=per_channel, uniform=uniform)
    weights = RNG.laplace(size=(5, 20, 6)).astype("float32")
    weights[0, :3] = 0.0
    basis = quantizer.update(weights, quantizer.fit(weights))
    got = to_numpy(quantizer(weights, basis)).reshape(-1, 6)
    scale = np.abs(weights).max()
    values = weights.reshape(-1, 6) / scale
    for channel in range(6):
        v = to_numpy(basis).reshape(bits, -1)[:, channel if per_channel else 0]
        levels = np.sort((all_codes(bits).astype("float32") * v).sum(axis=1))
        nearest = np.abs(values[:, channel, None] - levels).argmin(axis=1)
        np.testing.assert_allclose(got[:, channel], scale * levels[nearest], rtol=1e-6)
        assert np.unique(got[:, channel]).size <= 2**bits
        if not uniform:  # whose levels are rounded once, as integers times a float
            np.testing.assert_array_equal(got[:, channel], scale * levels[nearest])
    book = quantizer.codebook(weights, basis)
    np.testing.assert_array_equal(book.weights.reshape(-1, 6), got)
    assert book.levels_used <= 2**bits
    assert book.centroids.shape == ((2**bits, 6) if per_channel else (2**bits,))


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_uniform_levels_are_odd_integers_times_one_float(bits):
    quantizer = WeightNormalizationQuantizer(bits, uniform=True)
    weights = RNG.normal(size=(200, 5)).astype("float32")
    basis = quantizer.fit(weights)
    for _ in range(5):
        basis = quantizer.update(weights + 0.1, basis)
    levels = quantizer.codebook(weights, basis).centroids
    step = np.float32(np.abs(weights).max()) * to_numpy(basis)[0]
    codes = np.arange(1 - 2**bits, 2**bits, 2, dtype="float32")
    np.testing.assert_array_equal(levels, codes[:, None] * step)


def test_uniform_steps_have_the_least_error():
    weights = RNG.normal(size=(4000, 1)).astype("float32")
    quantizer = WeightNormalizationQuantizer(2, uniform=True)
    basis = quantizer.fit(weights)

    def error(basis):
        return float(np.square(weights - to_numpy(quantizer(weights, basis))).sum())

    around = [error(to_numpy(basis) * factor) for factor in (0.97, 1.0, 1.03)]
    assert around[1] == min(around)


def test_step_one_has_its_true_gradient():
    """Against finite differences in float64, the largest weight among them."""
    weights = np.array([[0.3, -0.9], [0.1, 0.5]])
    force = RNG.normal(size=weights.shape)
    quantizer = WeightNormalizationQuantizer(2)

    def loss(w):
        return ops.sum(ops.multiply(force.astype("float32"), quantizer.normalized(w)[0]))

    _, (slope,) = gradients(loss, weights.astype("float32"))
    numeric = np.zeros_like(weights)
    for place in np.ndindex(*weights.shape):
        shift = np.zeros_like(weights)
        shift[place] = 1e-6
        up, down = ((weights + sign * shift) for sign in (1, -1))
        difference = force * (up / np.abs(up).max() - down / np.abs(down).max())
        numeric[place] = difference.sum() / 2e-6
    np.testing.assert_allclose(slope, numeric, rtol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_step_two_is_passed_straight_through(normalize):
    """All weights but the largest get the gradient of their quantized value, unchanged."""
    quantizer = WeightNormalizationQuantizer(2, normalize=normalize)
    weights = RNG.normal(size=(40, 3)).astype("float32")
    weights[7, 1] = -9.0
    basis = quantizer.fit(weights)
    force = RNG.normal(size=weights.shape).astype("float32")
    _, (slope,) = gradients(lambda w: ops.sum(ops.multiply(force, quantizer(w, basis))), weights)
    expected = force.copy()
    if normalize:  # w' = w / s: what s = |w[7, 1]| does to all others; none through step 3
        expected[7, 1] += (force * weights).sum() / 9.0
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5)


def test_no_gradient_reaches_the_basis():
    quantizer = WeightNormalizationQuantizer(2)
    weights = RNG.normal(size=(40, 3)).astype("float32")
    basis = to_numpy(quantizer.fit(weights))
    both = (weights, basis)
    _, (slope, on_basis) = gradients(lambda w, v: ops.sum(quantizer(w, v) + 0 * ops.sum(v)), *both)
    assert np.abs(slope).max() > 0 and not on_basis.any()


@pytest.mark.parametrize("bits", fewer_elsewhere([3, 1, 2, 4]))
@pytest.mark.parametrize("kind", ["constant", "zero", "two values", "one weight"])
def test_degenerate_channels_are_solved(bits, kind):
    weights = RNG.normal(size=(1 if kind == "one weight" else 30, 3)).astype("float32")
    weights[:, 0] = {"constant": 0.25, "zero": 0.0}.get(kind, weights[:, 0])
    if kind == "two values":
        weights[:, 0] = np.where(np.arange(30) % 2, 0.5, -0.25)
    quantizer = WeightNormalizationQuantizer(bits)
    basis, update = quantizer.fit(weights), program(quantizer.update)
    for _ in range(100):
        basis = update(weights, basis)
    quantized = to_numpy(quantizer(weights, basis))
    assert np.isfinite(to_numpy(basis)).all() and np.isfinite(quantized).all()
    if kind != "two values" or bits > 1:
        np.testing.assert_allclose(quantized[:, 0], weights[:, 0], atol=1e-3)


def test_a_kernel_of_zeros_stays_zero():
    zeros = np.zeros((10, 3), "float32")
    quantizer = WeightNormalizationQuantizer(3)
    basis = quantizer.update(zeros, quantizer.fit(zeros))
    assert not to_numpy(quantizer(zeros, basis)).any()
    # And learns from there once the weights are something.
    weights, update = RNG.normal(size=(200, 3)).astype("float32"), program(quantizer.update)
    for _ in range(200):
        basis = update(weights, basis)
    assert quantizer.codebook(weights, basis).relative_error(weights) < 0.06


def test_nan_stays_nan_and_raises_nothing():
    """As everywhere in Keras, so that `TerminateOnNaN` sees it."""
    weights = np.full((10, 3), np.nan, "float32")
    quantizer = WeightNormalizationQuantizer(2)
    assert np.isnan(to_numpy(quantizer.update(weights, np.ones((2, 3), "float32")))).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_the_fit_is_near_the_best_for_normal_weights(bits):
    """Max (1960): 0.1175 of the variance with 4 levels, 0.01154 with 16 that are evenly spaced."""
    weights = RNG.normal(size=(200_000, 1)).astype("float32")
    book = WeightNormalizationQuantizer(bits).codebook(
        weights, WeightNormalizationQuantizer(bits).fit(weights)
    )
    assert book.relative_error(weights) < {2: 0.1175, 4: 0.01154}[bits] * 1.02


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8])
def test_activations_take_their_nearest_level(bits):
    quantizer = ActivationQuantizer(bits)
    inputs = np.maximum(RNG.normal(size=(6, 4, 4, 9)), 0).astype("float32")
    basis = np.zeros(bits, "float32")
    np.testing.assert_array_equal(to_numpy(quantizer(inputs, basis)), inputs)
    update = program(quantizer.update)
    for _ in range(60):
        basis = update(inputs, basis)
    got = to_numpy(quantizer(inputs, basis))
    codes = all_codes(bits, (0.0, 1.0)).astype("float32")
    levels = np.sort((codes * to_numpy(basis)).sum(axis=1))
    nearest = levels[np.abs(inputs[..., None] - levels).argmin(axis=-1)]
    np.testing.assert_allclose(got, nearest, atol=1e-5)
    assert np.unique(got).size <= 2**bits and got.min() == 0.0
    error = np.square(got - inputs).sum() / np.square(inputs).sum()
    assert error < {1: 0.25, 2: 0.07, 3: 0.025, 4: 0.007, 5: 0.003, 8: 1e-4}[bits]


@pytest.mark.parametrize("bits", [2, 5])
def test_the_activation_basis_follows_a_float64_reference(bits):
    quantizer = ActivationQuantizer(bits)
    basis = quantizer.update(np.abs(RNG.normal(size=(500,))), np.zeros(bits, "float32"))
    expected, update = to_numpy(basis).astype("float64"), program(quantizer.update)
    for _ in range(50):
        inputs = np.maximum(RNG.normal(size=(2000, 1)), 0).astype("float32")
        fitted = least_squares(inputs.astype("float64"), expected[:, None], (0.0, 1.0))
        expected = 0.9 * expected + 0.1 * fitted[:, 0]
        basis = update(inputs, basis)
        np.testing.assert_allclose(to_numpy(basis), expected, atol=2e-5)


def test_the_gradient_of_activations_is_clipped():
    quantizer = ActivationQuantizer(2)
    inputs = np.array([-0.5, 0.0, 0.4, 2.9, 3.0, 3.1], "float32")
    force = np.arange(1.0, 7.0, dtype="float32")

    def slope(basis):
        return gradients(lambda x: ops.sum(ops.multiply(force, quantizer(x, basis))), inputs)[1][
            0
        ].tolist()

    assert slope(np.array([2.0, 1.0], "float32")) == [0.0, 2.0, 3.0, 4.0, 5.0, 0.0]
    assert slope(np.zeros(2, "float32")) == force.tolist()


def test_configurations():
    for quantizer in (
        WeightNormalizationQuantizer(
            3, normalize=False, per_channel=False, momentum=0.5, uniform=True
        ),
        ActivationQuantizer(8, momentum=0.99),
    ):
        config = quantizers.serialize(quantizer)
        again = quantizers.get(config)
        assert type(again) is type(quantizer) and again.get_config() == quantizer.get_config()
        assert quantizers.get(again) is again
        clone = type(quantizer).from_config(quantizer.get_config())
        assert clone.get_config() == quantizer.get_config()
    assert quantizers.get(None) is None
    assert isinstance(quantizers.get("activation"), ActivationQuantizer)
    with pytest.raises(ValueError) as error:
        quantizers.get("binary")
    assert str(error.value) == (
        "Expected a quantizer of keras_qareg, its class, None, or one of ['activation', "
        "'weight_normalization']. Received: 'binary'"
    )


@pytest.mark.parametrize("bits", [0, 5, -1, 2.0, "2", None, True])
def test_bad_bits(bits):
    with pytest.raises(ValueError) as error:
        WeightNormalizationQuantizer(bits)
    expected = f"Expected `bits` to be an integer from 1 to 4. Received: bits={bits!r}"
    assert str(error.value) == expected


def test_bad_arguments():
    with pytest.raises(ValueError, match="Expected `bits` to be an integer from 1 to 8"):
        ActivationQuantizer(9)
    with pytest.raises(
        ValueError, match="Expected `momentum` to be a number from 0 to below 1. Rec"
    ):
        WeightNormalizationQuantizer(2, momentum=1)
    assert WeightNormalizationQuantizer(np.int64(3)).bits == 3
    assert (
        keras.saving.get_registered_name(ActivationQuantizer) == "keras_qareg>ActivationQuantizer"
    )
