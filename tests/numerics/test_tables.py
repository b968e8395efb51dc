"""Tables of whole numbers: found from centroids, and found again in kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook
from keras_qareg.numerics.grids import integer_grid, integer_weights
from keras_qareg.numerics.tables import (
    channel_table,
    evenly_spaced,
    float_parts,
    int8_parts,
    int8_table,
    rounded,
    rounded_freely,
)
from tests.helpers import arrays, gradients

RNG = np.random.default_rng(0)


def values_of(codes, step):
    return codes.astype("float32") * step


def squared_error(weights, centroids):
    return np.square(Codebook.nearest(weights, centroids).weights - weights).sum()


@pytest.mark.one_backend
@pytest.mark.parametrize("levels", [2, 3, 4, 16, 64])
def test_rounding_to_int8_costs_next_to_nothing(levels):
    losses = {"normal": [], "laplace": [], "standard_t": []}
    for kind in [*losses] * 5:
        degrees = (5,) if kind == "standard_t" else ()
        weights = (0.05 * getattr(RNG, kind)(*degrees, size=20_000)).astype("float32")
        best = kmeans(weights, levels)
        codes, step = int8_table(best, Codebook.nearest(weights, best).counts)
        assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= 127 and step > 0
        loss = squared_error(weights, values_of(codes, step)) / squared_error(weights, best)
        losses[kind].append(loss)
    normal, laplace, outliers = map(np.median, losses.values())
    assert max(normal, laplace) < (1.005 if levels <= 16 else 1.3)
    # Outliers 20 deviations away make the step of many levels coarse.
    assert outliers < {16: 1.01, 64: 1.3}.get(levels, 1.005)


@pytest.mark.one_backend
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=20), st.floats(1e-6, 1e3))
def test_what_is_an_int8_table_already_stays_to_the_bit(listed, step):
    table = np.unique(values_of(np.array(listed), np.float32(step)))
    codes, found = int8_table(table)
    np.testing.assert_array_equal(values_of(codes, found), table)
    parts = int8_parts(table[:, None])
    centroids, sizes, unit = parts
    np.testing.assert_array_equal(centroids * sizes, table)
    assert np.array_equal(np.rint(centroids / unit), centroids / unit)
    assert 64 <= np.abs(centroids / unit).max() <= 127 or not table.any()


@pytest.mark.one_backend
def test_tables_of_zeros_and_with_zeros():
    assert int8_table(np.zeros(3))[0].tolist() == [0, 0, 0]
    assert int8_table(np.array([-0.3, 0.0, 0.123456]))[0][1] == 0
    assert int8_parts(np.zeros((2, 3), "float32"))[1].tolist() == [1, 1, 1]
    assert int8_parts(RNG.normal(size=(5, 2)).astype("float32")) is None
    assert float_parts(RNG.normal(size=(5, 2)).astype("float32")) is None


@pytest.mark.one_backend
@pytest.mark.parametrize("rounding", [True, False])
def test_channels_share_a_table_times_a_step_each(rounding):
    scales = RNG.lognormal(sigma=1.0, size=12).astype("float32")
    weights = (RNG.normal(size=(50, 12)) * scales).astype("float32")
    weights[:, 5] *= 1e-8  # dead

    def cluster(values, importance):
        centroids = kmeans(values, 4, zero_centroid=True, importance=importance)
        return Codebook.nearest(values, centroids)

    kernel = np.where(np.arange(12) == 5, 0, weights).astype("float32")
    book = channel_table(kernel.reshape(5, 10, 3, 4), 2, cluster, rounding)
    assert book.centroids.shape == (4, 3, 4) and not book.weights[:, :, 1, 1].any()
    tables = book.centroids.reshape(4, -1)
    centroids, sizes, _ = (int8_parts if rounding else float_parts)(tables)
    np.testing.assert_allclose(np.outer(centroids, sizes), tables, rtol=0 if rounding else 1e-6)
    # Better than one table for all, and than the same table without the choice of steps.
    one = Codebook.nearest(kernel, kmeans(kernel, 4, zero_centroid=True))
    assert book.relative_error(kernel.reshape(book.indices.shape)) < one.relative_error(kernel)


@pytest.mark.one_backend
def test_weighted_kmeans_is_kmeans_of_repeated_weights():
    weights, times = RNG.normal(size=300), RNG.integers(1, 5, 300)
    for zero in (False, True):
        expected = kmeans(np.repeat(weights, times), 5, zero_centroid=zero)
        found = kmeans(weights, 5, zero_centroid=zero, importance=times)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.one_backend
@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 16),
    st.integers(4, 30),
    st.integers(2, 40),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_int8_tables_are_found_again_in_channels(levels, count, channels, seed, signed):
    """Also where a channel has some of the levels alone, as depthwise kernels do."""
    random = np.random.default_rng(seed)
    table = random.choice(np.arange(-127, 128), levels, replace=False).astype("float32")
    steps = random.lognormal(size=channels).astype("float32")
    if signed:
        steps *= random.choice([-1, 1], channels).astype("float32")
    weights = random.choice(table, (count, channels)) * steps
    found = integer_weights(weights, 1)
    if np.count_nonzero(weights) - channels < 6:
        return
    codes, found_steps = found
    np.testing.assert_array_equal(codes * found_steps, weights)
    book = Codebook.exact(weights, channel_axes=1)
    np.testing.assert_array_equal(book.weights, weights)


@pytest.mark.one_backend
def test_a_depthwise_kernel_keeps_its_levels():
    table = np.array([-97, -60, -33, -20, -12, -5, 0, 5, 9, 17, 26, 40, 55, 70, 88, 127], "float32")
    steps = RNG.lognormal(size=64).astype("float32")
    weights = (RNG.choice(table, (9, 64)) * steps).reshape(3, 3, 64, 1)
    book = Codebook.exact(weights, channel_axes=2)
    np.testing.assert_array_equal(book.weights, weights)
    assert len(book.centroids) <= 18 and book.grid is not None
    assert book.table_bytes == len(book.centroids) + 4 * 64
    whole = RNG.choice(table, (9, 64)) * np.float32(0.0123)
    book = Codebook.exact(whole, channel_axes=1)
    assert book.centroids.shape == (16,) and book.table_bytes == 16 + 4
    codes, step = integer_grid(book.centroids[:, None])
    np.testing.assert_array_equal(codes, table)
    assert step == np.float32(0.0123)


@pytest.mark.one_backend
@pytest.mark.slow
def test_large_kernels_do_not_take_long():
    floats = RNG.normal(size=(5000, 3000)).astype("float32")
    assert integer_weights(floats, 1) is None and Codebook.exact(floats, 1) is None
    table = RNG.choice(np.arange(-127, 128), 16, replace=False).astype("float32")
    steps = RNG.lognormal(size=3000).astype("float32")
    weights = RNG.choice(table, floats.shape) * steps
    book = Codebook.exact(weights, 1)
    assert len(book.centroids) == 16
    np.testing.assert_array_equal(book.weights, weights)


def test_gradients_pass_the_rounding():
    raw = np.array([-70.0, -63.4, 0.3, 0.74, 1.3, 70.0], "float32")
    upstream = np.array([1.0, 2.0, 3.0, 4.0, 5.0, -6.0], "float32")
    value, (grad,) = gradients(lambda c: ops.vdot(rounded(c, ops.array(0.5)), upstream), raw)
    expected = np.array([-63.5, -63.5, 0.5, 0.5, 1.5, 63.5])
    assert value == pytest.approx((expected * upstream).sum())
    # What is clipped is not driven farther out: -70 up by gradient 1, 70 up by -6.
    np.testing.assert_allclose(grad, [0, 2, 3, 4, 5, 0])
    _, (grad,) = gradients(lambda c: ops.vdot(rounded(c, ops.array(0.5)), -upstream), raw)
    np.testing.assert_allclose(grad, -upstream)


@pytest.mark.parametrize("table", ["int8", "even"])
def test_free_rounding_gives_what_files_hold(table):
    raw = RNG.normal(size=8).astype("float32")
    (found,) = arrays(rounded_freely(raw, table))
    codes, step = int8_table(found)
    np.testing.assert_array_equal(values_of(codes, step), found)
    if table == "even":
        assert np.sort(codes).tolist() == list(range(-4, 4))
    else:
        assert np.abs(found - raw).max() <= 0.51 * np.abs(raw).max() / 127
    np.testing.assert_array_equal(np.argsort(found), np.argsort(raw))
    _, (grad,) = gradients(lambda c: ops.vdot(rounded_freely(c, table), raw), raw)
    np.testing.assert_allclose(grad, raw, rtol=1e-6)
    (zeros,) = arrays(rounded_freely(np.zeros(4, "float32"), table))
    assert not zeros.any()


@pytest.mark.one_backend
@pytest.mark.parametrize("levels", [2, 4, 16, 64, 255])
@pytest.mark.parametrize("ends", [(-0.3, 0.3), (-0.4, 0.5), (0.1, 0.9)])
def test_evenly_spaced_basins_stay_so(levels, ends):
    basins = np.linspace(*ends, levels, dtype="float32")
    found = evenly_spaced(basins, "int8")
    codes, _ = integer_grid(found[:, None])
    gaps = np.diff(codes.astype(int))
    assert (gaps == gaps[0]).all() or levels > 64
    assert np.abs(found - basins).max() <= 0.6 / 127 * np.abs(basins).max()
    np.testing.assert_array_equal(evenly_spaced(found, "int8"), found)
    np.testing.assert_array_equal(evenly_spaced(basins, "float32"), basins)
