"""The regularizers as Keras objects: configuration, `get`, defaults and errors."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg import regularizers
from keras_qareg.numerics.grids import grid_codes
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine

ALL = [
    Sine(4, weight_range=(-1.0, 0.5), strength=0.1, outside="periodic"),
    Cosine(8),
    NearestSquared(3, strength=2.0),
    NearestExponential(5, sharpness=2.5),
]


@pytest.mark.parametrize("regularizer", ALL, ids=lambda r: type(r).__name__)
def test_configurations_round_trip(regularizer):
    config = regularizers.serialize(regularizer)
    for again in (
        regularizers.deserialize(config),
        regularizers.get(config),
        regularizers.get(
            {"class_name": type(regularizer).__name__, "config": regularizer.get_config()}
        ),
        keras.regularizers.get(keras.regularizers.serialize(regularizer)),
        type(regularizer).from_config(regularizer.get_config()),
    ):
        assert type(again) is type(regularizer)
        assert again.get_config() == regularizer.get_config()
    assert isinstance(regularizer, keras.regularizers.Regularizer)


def test_get():
    assert regularizers.get(None) is None
    assert regularizers.get(ALL[0]) is ALL[0]
    for name, kind in [
        ("sine", Sine),
        ("cosine", Cosine),
        ("nearest_squared", NearestSquared),
        ("nearest_exponential", NearestExponential),
    ]:
        assert type(regularizers.get(name)) is kind
    for wrong in ("l2", 3, {"class_name": "L2", "config": {}}, keras.regularizers.L2()):
        with pytest.raises(
            ValueError, match="Expected a regularizer of keras_qareg, its class, None, or one of"
        ):
            regularizers.get(wrong)


@pytest.mark.parametrize("kind", [Sine, Cosine])
def test_fixed_basins_work_as_a_kernel_regularizer_of_any_layer(kind, tmp_path):
    regularizer = kind(4, strength=0.01)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, kernel_regularizer=regularizer),
            layers.DepthwiseConv2D(3, depthwise_regularizer=regularizer),
            layers.Flatten(),
            layers.Dense(3, kernel_regularizer=regularizer),
        ]
    )
    kernels = [v for v in model.trainable_variables if v.name.endswith("kernel")]
    expected = [float(regularizer(kernel)) for kernel in kernels]
    assert [float(loss) for loss in model.losses] == pytest.approx(expected)
    model.compile("sgd", "mse")
    data = np.random.default_rng(0).normal(size=(8, 6, 6, 2))
    before = sum(expected)
    model.fit(data, np.zeros((8, 3)), epochs=2, verbose=0)
    assert float(sum(model.losses)) != pytest.approx(before)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(sum(loaded.losses)) == pytest.approx(float(sum(model.losses)))


def test_default_strengths_fall_with_the_levels():
    for kind in (Sine, Cosine, NearestSquared, NearestExponential):
        strengths = [kind(levels).strength for levels in (2, 4, 16, 256)]
        assert strengths == sorted(strengths, reverse=True) and strengths[-1] > 0
        assert kind(4, strength=0).strength == 0.0
        assert kind(4, strength=0).default_strength == kind(4).strength == strengths[1]


def test_basins_that_fit_centroids():
    centroids = np.array([-1.0, -0.2, 0.1, 0.8], "float32")
    np.testing.assert_allclose(Sine(4).fit_basins(centroids), np.linspace(-1, 0.8, 4), rtol=1e-6)
    # The cells of the outer centroids end at -1.4 and 1.15.
    middles = -1.4 + 2.55 * (np.arange(4) + 0.5) / 4
    np.testing.assert_allclose(Cosine(4).fit_basins(centroids), middles, rtol=1e-5)
    found = NearestSquared(4).fit_basins(centroids[:2])
    np.testing.assert_array_equal(found, centroids[[0, 1, 1, 1]])
    for kind in (Sine, Cosine):
        np.testing.assert_allclose(kind(2).fit_basins([-0.3, 0.4]), [-0.3, 0.4], rtol=1e-6)
        np.testing.assert_allclose(kind(4).fit_basins([0.25]), 0.25)


@pytest.mark.parametrize("kind", [Sine, Cosine, NearestSquared, NearestExponential])
@pytest.mark.parametrize("levels", [1, 257, 3.5, "many"])
def test_levels_out_of_range(kind, levels):
    with pytest.raises(ValueError) as error:
        kind(levels)
    assert str(error.value) == (
        f"Expected `levels` to be an integer from 2 to 256. Received: levels={levels!r}"
    )


@pytest.mark.parametrize(
    "weight_range", [(1.0, 1.0), (0.5, -0.5), (0.0,), (0.0, np.nan), (-np.inf, 0.0), None, 3]
)
@pytest.mark.parametrize("kind", [Sine, Cosine])
def test_empty_and_reversed_ranges(kind, weight_range):
    with pytest.raises(ValueError) as error:
        kind(4, weight_range=weight_range)
    assert str(error.value) == (
        "Expected `weight_range` to be a pair of finite numbers (low, high) with low < high. "
        f"Received: weight_range={weight_range!r}"
    )


def test_other_arguments_out_of_range():
    for make, message in [
        (
            lambda: Sine(4, outside="clip"),
            "Expected `outside` to be one of ('linear', 'periodic').",
        ),
        (lambda: Sine(4, strength=-1), "Expected `strength` to be a number, 0 or more, or None."),
        (lambda: NearestSquared(4, strength=np.nan), "Expected `strength` to be a number, 0"),
        (
            lambda: NearestExponential(4, sharpness=0),
            "Expected `sharpness` to be a positive number.",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value).startswith(message)


@pytest.mark.parametrize("kind", [NearestSquared, NearestExponential])
def test_a_dynamic_regularizer_used_unwrapped_says_what_to_do(kind):
    with pytest.raises(ValueError) as error:
        kind(4)(ops.ones((3, 3)))
    name = kind.__name__
    assert str(error.value).startswith(
        f"{name} learns its centroids, and a `kernel_regularizer` has"
    )
    assert f"`keras_qareg.layers.QuantizationAware(layer, {name}(...))`" in str(error.value)


def test_names_of_the_package():
    for name in qareg.__all__:
        assert hasattr(qareg, name)


@pytest.mark.parametrize("kind", [Sine, Cosine])
@pytest.mark.parametrize("levels", [2, 4, 5])
def test_even_basins_are_whole_numbers_times_a_step(kind, levels):
    regularizer = kind(levels, weight_range=(-0.4, 0.5), table="even")
    again = regularizers.get(regularizers.serialize(regularizer))
    assert (again.table, kind(levels).table) == ("even", "float32")
    codes = grid_codes(levels)
    for basins in (again.basins(), again.fit_basins(np.linspace(-0.3, 0.2, levels))):
        step = basins[codes == 1][0]
        np.testing.assert_array_equal(basins, codes.astype("float32") * step)
        assert 0.05 < step < 0.5
        penalty = regularizer.penalty(basins, basins)
        assert float(penalty) == pytest.approx(0.0, abs=1e-5)
