"""Values and gradients of the penalties, against float64 NumPy and finite differences."""

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import ops

from keras_qareg.numerics import penalties
from keras_qareg.numerics.compiled import CHUNK, chunks
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine
from tests.helpers import gradients

RNG = np.random.default_rng(0)
# A few shapes, as each is compiled anew.
WEIGHTS = hnp.arrays(
    "float32",
    st.sampled_from([1, 40]),
    elements=st.floats(-1e4, 1e4, width=32, allow_nan=False),
)
CENTROIDS = hnp.arrays(
    "float32", st.sampled_from([2, 3, 9]), elements=st.floats(-100, 100, width=32)
)


def sine(w, low, high, levels):
    return np.abs(np.sin(np.pi * (levels - 1) * (w - low) / (high - low)))


def cosine(w, low, high, levels):
    return np.abs(np.cos(np.pi * levels * (w - low) / (high - low)))


def nearest(w, c):
    return np.abs(np.asarray(w, "float64")[..., None] - np.asarray(c, "float64")).min(-1)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("kind, formula", [(Sine, sine), (Cosine, cosine)])
def test_fixed_penalty_is_the_paper_formula_inside_its_basins(kind, formula, levels):
    regularizer = kind(levels, weight_range=(-0.7, 1.1), strength=2.0)
    basins = regularizer.basins()
    w = RNG.uniform(basins[0], basins[-1], 500)
    expected = 2.0 * formula(w, -0.7, 1.1, levels).sum()
    assert float(regularizer(w.astype("float32"))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind, formula", [(Sine, sine), (Cosine, cosine)])
def test_periodic_penalty_is_the_paper_formula_everywhere(kind, formula):
    regularizer = kind(5, weight_range=(-0.5, 0.5), strength=1.0, outside="periodic")
    w = RNG.uniform(-3, 3, 500)
    expected = formula(w, -0.5, 0.5, 5).sum()
    assert float(regularizer(w.astype("float32"))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [Sine, Cosine])
def test_linear_penalty_has_exactly_the_basins_as_minima_and_their_slope_outside(kind):
    regularizer = kind(4, weight_range=(-1.0, 1.0), strength=1.0)
    basins = regularizer.basins()
    spacing = basins[1] - basins[0]
    for outermost, sign in ((basins[0], -1), (basins[-1], 1)):
        steps = np.array([0.1, 0.4, 0.5, 0.6, 1.0, 2.5, 40.0])
        far = (outermost + sign * steps * spacing).astype("float32")
        value, (slope,) = gradients(
            lambda w: penalties.evenly_spaced(w, basins[0], basins[-1], 4), far
        )
        assert value == pytest.approx(np.pi * steps.sum(), rel=1e-4)
        np.testing.assert_allclose(slope, sign * np.pi / spacing, rtol=1e-4)
    grid = np.linspace(-4, 4, 801).astype("float32")
    values = np.array([float(regularizer.penalty(grid[i : i + 1], basins)) for i in range(801)])
    minima = grid[1:-1][(values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])]
    np.testing.assert_allclose(minima, basins, atol=1e-2)


def test_basins_are_those_of_the_contract():
    np.testing.assert_allclose(Sine(5, (-1.0, 1.0)).basins(), [-1, -0.5, 0, 0.5, 1])
    np.testing.assert_allclose(Cosine(4, (-1.0, 1.0)).basins(), [-0.75, -0.25, 0.25, 0.75])


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, CENTROIDS)
def test_nearest_penalties_are_the_formulas(w, c):
    distance = nearest(w, c)
    squared = float(penalties.nearest_squared(w, c))
    assert squared == pytest.approx((distance**2).sum(), rel=1e-3, abs=1e-2)
    exponential = float(penalties.nearest_exponential(w, c, 0.7))
    assert exponential == pytest.approx((1 - np.exp(-0.7 * distance)).sum(), rel=1e-3, abs=1e-2)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, CENTROIDS)
@example(np.zeros(1, "float32"), np.array([0.0, 6.7e-38], "float32"))
@example(np.ones(1, "float32"), np.array([0.0, 6.7e-38], "float32"))
@example(np.array([1993.0], "float32"), np.array([4.4466857e-09, 0.0], "float32"))
@example(np.array([-1.0, 0.0, 3.0], "float32"), np.array([0.0, 1e-33, 2e-31], "float32"))
def test_values_and_gradients_are_finite_and_non_negative(w, c):
    w = np.resize(np.concatenate([c, w]), 40)  # weights equal to a centroid
    for penalty in (penalties.nearest_squared, penalties.nearest_exponential):
        value, (by_w, by_c) = gradients(lambda w, c, p=penalty: p(w, c), w, c)
        assert np.isfinite(value) and value >= 0
        assert np.isfinite(by_w).all() and np.isfinite(by_c).all()
        assert by_c.shape == c.shape
    low, high = float(c.min()), float(c.max())
    for outside in penalties.OUTSIDE:
        value, (by_w,) = gradients(
            lambda w, o=outside: penalties.evenly_spaced(w, low, high, 4, outside=o), w
        )
        assert np.isfinite(value) and value >= 0
        assert np.isfinite(by_w).all()


@pytest.mark.parametrize(
    "penalty, reference",
    [
        (penalties.nearest_squared, lambda w, c: nearest(w, c) ** 2),
        (
            lambda w, c: penalties.nearest_exponential(w, c, 3.0),
            lambda w, c: 1 - np.exp(-3.0 * nearest(w, c)),
        ),
    ],
)
def test_gradients_are_finite_differences(penalty, reference):
    c = np.array([0.4, -0.6, 0.1, -0.05], "float64")  # in no order
    w = RNG.uniform(-1, 1, 200)
    # Away from the kinks: midpoints between centroids, and centroids themselves.
    ascending = np.sort(c)
    kinks = np.concatenate([ascending, (ascending[1:] + ascending[:-1]) / 2])
    w = w[np.abs(w[:, None] - kinks).min(-1) > 1e-3]
    upstream = 2.5
    _, (by_w, by_c) = gradients(
        lambda w, c: upstream * penalty(w, c),
        w.astype("float32"),
        c.astype("float32"),
    )
    step = 1e-6
    expected_w = upstream * (reference(w + step, c) - reference(w - step, c)) / (2 * step)
    np.testing.assert_allclose(by_w, expected_w, rtol=1e-3, atol=1e-4)
    for j in range(c.size):
        shift = step * np.eye(c.size)[j]
        difference = (upstream * (reference(w, c + shift) - reference(w, c - shift))).sum()
        assert by_c[j] == pytest.approx(difference / (2 * step), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("outside", penalties.OUTSIDE)
@pytest.mark.parametrize("kind, formula", [(Sine, sine), (Cosine, cosine)])
def test_gradient_of_fixed_basins_is_a_finite_difference(kind, formula, outside):
    regularizer = kind(4, weight_range=(-0.5, 0.7), strength=1.0, outside=outside)
    basins = regularizer.basins().astype("float64")
    w = RNG.uniform(basins[0], basins[-1], 200)
    w = w[np.abs(w[:, None] - basins).min(-1) > 1e-3]
    _, (by_w,) = gradients(regularizer, w.astype("float32"))
    step = 1e-6
    rise = formula(w + step, -0.5, 0.7, 4) - formula(w - step, -0.5, 0.7, 4)
    np.testing.assert_allclose(by_w, rise / (2 * step), rtol=1e-2, atol=2e-3)


def test_gradient_at_a_centroid_is_zero():
    c = np.array([-0.5, 0.25], "float32")
    for penalty in (penalties.nearest_squared, penalties.nearest_exponential):
        _, (by_w, by_c) = gradients(lambda w, c, p=penalty: p(w, c), c, c)
        np.testing.assert_array_equal(by_w, 0)
        np.testing.assert_array_equal(by_c, 0)


def test_a_tie_goes_to_one_centroid_and_an_empty_cluster_gets_no_gradient():
    c = np.array([0.0, 1.0, 50.0], "float32")
    _, (by_w, by_c) = gradients(
        lambda w, c: penalties.nearest_squared(w, c), np.array([0.5], "float32"), c
    )
    np.testing.assert_allclose(by_w, [1.0])
    np.testing.assert_allclose(by_c, [-1.0, 0.0, 0.0])


def test_equal_centroids_share_one_basin():
    value, (by_w, by_c) = gradients(
        lambda w, c: penalties.nearest_squared(w, c),
        np.array([1.0, 3.0], "float32"),
        np.array([2.0, 2.0, 2.0], "float32"),
    )
    assert value == 2.0
    np.testing.assert_allclose(by_w, [-2.0, 2.0])
    assert by_c.sum() == pytest.approx(0.0)
    flat = penalties.evenly_spaced(np.array([1.0, 2.0, 5.0]), 2.0, 2.0, levels=4)
    assert float(flat) == pytest.approx(np.pi * 3 * 4.0, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_weights_are_penalized_in_float32(dtype):
    w = ops.cast(np.full(40_000, 0.75), dtype)
    for value in (
        NearestSquared(2, strength=1.0).penalty(w, np.array([0.0, 2.0], "float32")),
        NearestExponential(2).penalty(w, np.array([0.0, 2.0], "float32")),
        Sine(2, (0.0, 1.0), strength=1.0)(w),
    ):
        assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(NearestSquared(2).penalty(w, np.array([0.0, 2.0], "float32"))) == pytest.approx(
        22_500, rel=1e-4
    )


CLOSE = np.concatenate([[-3.0, 3.0], 1e-4 * np.arange(-20, 21)]).astype("float32")
SPREAD = np.linspace(-0.4, 0.5, 43, dtype="float32")


@pytest.mark.parametrize(
    "centroids",
    [SPREAD, CLOSE, SPREAD[::-1], SPREAD[::-3]],
    ids=["bins", "search", "turned", "compared"],
)
def test_large_kernels_are_penalized_chunk_by_chunk(centroids):
    """Compiled, with a rest, by look-up, by search where centroids crowd into a bin, or each by each."""
    w = RNG.laplace(scale=0.05, size=2 * CHUNK + 85).astype("float32").reshape(-1, 1)
    value, (by_w, by_c) = gradients(penalties.nearest_squared, w, centroids, graph=True)
    ascending = np.sort(centroids)
    midpoints = np.float32(0.5) * ascending[:-1] + np.float32(0.5) * ascending[1:]
    index = np.searchsorted(midpoints, w[:, 0], side="left")
    distance = w[:, 0].astype("float64") - ascending[index]
    assert value == pytest.approx((distance**2).sum(), rel=1e-5)
    np.testing.assert_allclose(by_w[:, 0], 2 * distance, rtol=1e-5, atol=1e-6)
    expected = -2 * np.bincount(index, weights=distance, minlength=centroids.size)
    np.testing.assert_allclose(by_c[np.argsort(centroids)], expected, rtol=1e-3, atol=1e-3)


def test_weights_are_cut_into_equal_chunks_where_they_can_be():
    for size in (0, 1, 1728, 131_071, 262_144, 589_824, 2_359_296, 2 * CHUNK + 85):
        count, chunk, rest = chunks(size)
        assert count * chunk + rest == size and chunk <= CHUNK
        assert rest == 0 or size == 2 * CHUNK + 85
    assert chunks(589_824) == (6, 98_304, 0)


@pytest.mark.parametrize("outside", penalties.OUTSIDE)
def test_compiled_sines_are_the_sine(outside):
    w = RNG.laplace(scale=0.3, size=50_000).astype("float32")
    value, (by_w,) = gradients(
        lambda w: penalties.evenly_spaced(w, -0.4, 0.5, 10, outside=outside), w, graph=True
    )
    turns = np.pi * 10 * (w.astype("float64") + 0.4)
    inside = (w > -0.4) & (w < 0.5) if outside == "linear" else np.ones(w.shape, "bool")
    slopes = np.pi * 10 * np.sign(np.sin(turns)) * np.cos(turns)
    # Close to the kinks float32 may take the other side.
    away = inside & (np.abs(np.sin(turns)) > 1e-3) & (np.abs(np.cos(turns)) > 1e-3)
    np.testing.assert_allclose(by_w[away], slopes[away], rtol=2e-3, atol=2e-3)
    if outside == "periodic":
        assert value == pytest.approx(np.abs(np.sin(turns)).sum(), rel=1e-5)
