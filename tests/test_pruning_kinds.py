"""Pruning where it is easy to go wrong: frozen kernels, heads of attention, outputs, constants."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.callbacks import PenaltySchedule, PruningSchedule
from keras_qareg.regularizers import NearestSquared, Sine
from tests.helpers import arrays, error_of

RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(32, n)).astype("float32") for n in (16, 4))


def fit(model, *callbacks, optimizer=None, y=Y, x=X, epochs=1):
    """Trains a model, and returns it."""
    model.compile(optimizer or keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def half_zero():
    """A network of which half of a kernel is zero, and where."""
    model = keras.Sequential([keras.Input((16,)), layers.Dense(12, "relu"), layers.Dense(4)])
    (kernel,) = arrays(model.layers[0].kernel)
    gone = np.random.default_rng(1).random(kernel.shape) < 0.5
    model.layers[0].kernel.assign(np.where(gone, 0.0, kernel))
    return model, gone


def left(model):
    (kernel,) = arrays(qareg.strip(model).layers[0].kernel)
    return kernel


def mixing():
    """An optimizer whose step of a weight follows from the gradients of others, too."""
    return keras.optimizers.Muon(0.02)


@pytest.mark.parametrize(("table", "group_size"), [("int8", None), ("float32", 4), ("even", None)])
def test_zeros_stay_where_weights_go_to_other_values(table, group_size):
    model, gone = half_zero()
    model.layers[0].kernel_regularizer = keras.regularizers.OrthogonalRegularizer(1.0)
    settings = {"table": table, "group_size": group_size, "trainable": "assignments"}
    shared = fit(qareg.share_weights(model, 8, **settings), epochs=6)
    assert not left(shared)[gone].any() and (left(shared)[~gone] != 0).mean() > 0.5


def test_zeros_stay_under_a_regularizer_that_moves_them():
    model, gone = half_zero()
    model.layers[0].kernel_regularizer = keras.regularizers.OrthogonalRegularizer(1.0)
    trained = fit(qareg.quantization_aware(model, Sine(8)), PenaltySchedule(0), epochs=4)
    assert not left(trained)[gone].any()


@pytest.mark.parametrize(
    "transform",
    [
        lambda model: qareg.quantization_aware(model, Sine(8)),
        lambda model: qareg.share_weights(model, 8, trainable="assignments"),
    ],
)
def test_a_schedule_keeps_zeros_that_the_optimizer_would_move(transform):
    model, gone = half_zero()
    schedules = [PenaltySchedule(0)] if "aware" in str(transform(model).layers[0]) else []
    trained = fit(transform(model), *schedules, PruningSchedule(0.0), optimizer=mixing(), epochs=4)
    assert not left(trained)[gone].any()


def test_zeros_stay_without_straight_through_and_the_layer_computes_with_float_kernels():
    model, gone = half_zero()
    wrapped = qareg.quantization_aware(model, NearestSquared(4), straight_through=False)
    trained = fit(wrapped, PenaltySchedule(0), epochs=2)
    layer = trained.layers[0]
    assert layer.keeps_zeros and not layer.quantizes
    expected, got = (
        np.asarray(ops.convert_to_numpy(m(X))) for m in (qareg.strip(trained), trained)
    )
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not left(trained)[gone].any() and np.unique(left(trained)).size > 8


@pytest.mark.one_backend
def test_frozen_kernels_inside_of_layers_that_train_are_not_pruned():
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(2, 4)
    model = keras.Model(inputs, attention(inputs, inputs))
    attention.query_dense.trainable = False
    z = RNG.normal(size=(8, 5, 8)).astype("float32")
    fit(model, PruningSchedule(0.5), x=z, y=z)
    assert (arrays(attention.query_dense.kernel)[0] != 0).all()
    assert (arrays(attention.key_dense.kernel)[0] == 0).mean() == 0.5


@pytest.mark.one_backend
def test_so_many_of_each_few_are_of_inputs_not_of_heads():
    inputs = keras.Input((5, 8))
    attention = layers.MultiHeadAttention(4, 4)
    model = keras.Model(inputs, layers.Dense(8)(attention(inputs, inputs)))
    z = RNG.normal(size=(8, 5, 8)).astype("float32")
    with pytest.warns(UserWarning, match="does not fit: .*query/kernel.*value/kernel"):
        fit(model, PruningSchedule(0.5, structure="2:4"), x=z, y=z)
    (query, output) = arrays(attention.query_dense.kernel, attention.output_dense.kernel)
    assert (query != 0).all()
    assert ((output == 0).reshape(4, 1, 4, 8).sum(axis=2) == 2).all()  # of those of a head


class Subclassed(keras.Model):
    """Whose first attribute makes the outputs."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.head, self.body = layers.Dense(4, name="head"), layers.Dense(8, "relu", name="body")

    def call(self, x):
        return self.head(self.body(x))


@pytest.mark.one_backend
def test_channels_of_outputs_stay():
    model = Subclassed()
    model(X)
    wrong = PruningSchedule(0.5, structure="channels")
    model.compile("adam", "mse")
    assert error_of(model.fit, X, Y, verbose=0, callbacks=[wrong]) == (
        "Expected `layers` to be names or a function, without those that make outputs, to prune "
        "channels of a model whose graph is unknown. Received: layers='all' for 'subclassed' of type "
        "Subclassed"
    )
    fit(model, PruningSchedule(0.5, structure="channels", layers=["body"]))
    live = (arrays(model.body.kernel)[0] != 0).any(axis=0)
    assert live.sum() == 4 and (arrays(model.head.kernel)[0] != 0).all()
    inside = Subclassed()
    outer = keras.Sequential([keras.Input((16,)), layers.Dense(16, name="first"), inside])
    fit(outer, PruningSchedule(0.5, structure="channels"))
    assert (arrays(outer.get_layer("first").kernel)[0] != 0).any(axis=0).sum() == 8
    assert all((arrays(x.kernel)[0] != 0).all() for x in (inside.head, inside.body))
    alone = keras.Sequential([keras.Input((16,)), layers.Dense(4)])
    alone.compile("adam", "mse")
    said = error_of(alone.fit, X, Y, verbose=0, callbacks=[wrong])
    assert "all that they choose are last layers, which stay whole" in said


@pytest.mark.one_backend
def test_one_block_alone_cannot_go():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(4)])
    model.compile("adam", "mse")
    schedule = PruningSchedule(0.5, structure=(100, 100))
    said = error_of(model.fit, X, Y, verbose=0, callbacks=[schedule])
    assert said.startswith("Expected a kernel to prune in model 'sequential")


@pytest.mark.one_backend
def test_a_model_that_trains_another_has_its_outputs():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="a"), layers.Dense(4)])
    trainer = qareg.distill(model, keras.models.clone_model(model))
    trainer.compile("adam")
    trainer.fit(X, epochs=1, verbose=0, callbacks=[PruningSchedule(0.5, structure="channels")])
    assert (arrays(model.get_layer("a").kernel)[0] != 0).any(axis=0).sum() == 4
    assert (arrays(model.layers[-1].kernel)[0] != 0).any(axis=0).all()


@pytest.mark.one_backend
def test_named_layers_are_not_last_for_being_the_last_named():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, name="a"), layers.Dense(4)])
    fit(model, PruningSchedule(0.5, structure="channels", layers=["a"]))
    assert (arrays(model.get_layer("a").kernel)[0] != 0).any(axis=0).sum() == 4


def test_constant_channels_stay_what_they_are():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, "relu"), layers.Dense(4)])
    kernel, bias = (array.copy() for array in arrays(*model.layers[0].weights))
    kernel[:, :4], bias[:4] = 0.0, 2.0
    model.layers[0].set_weights([kernel, bias])
    (before,) = arrays(model(X))
    schedule = PruningSchedule(0.0, structure="channels")
    fit(model, schedule, optimizer=keras.optimizers.SGD(0.0))
    np.testing.assert_array_equal(arrays(model(X))[0], before)


@pytest.mark.one_backend
def test_what_is_no_switch_is_refused():
    assert NearestSquared(4, zero_basin=np.True_).zero_basin is True
    assert error_of(NearestSquared, 4, zero_basin=1) == (
        "Expected `zero_basin` to be True, False or 'auto'. Received: 1"
    )
    model, gone = half_zero()
    shared = qareg.share_weights(model, 4, zero_centroid=np.True_)
    assert shared.layers[0].zero_centroid is True and not left(shared)[gone].any()
    assert error_of(qareg.share_weights, model, 4, zero_centroid=1) == (
        "Expected `zero_centroid` to be True, False or 'auto'. Received: 1"
    )


@pytest.mark.parametrize("group_size", [None, 4])
def test_kernels_whose_tables_have_no_zero_are_not_said_to_be_pruned(group_size):
    if group_size is None:
        model = keras.Sequential([keras.Input((5, 8)), layers.GRU(6, name="gru"), layers.Dense(4)])
        wrong, x = "recurrent_kernel", RNG.normal(size=(32, 5, 8))
    else:
        model = keras.Sequential(
            [keras.Input((16,)), layers.Dense(12, name="gru"), layers.Dense(4)]
        )
        wrong, x = "kernel", X
    kernel = qareg.layers.kernels(model.layers[0])[0]
    values = arrays(kernel)[0].copy()
    values[::2, :4] = 0.0
    kernel.assign(values)
    settings = {"group_size": group_size, "trainable": "assignments"}
    shared = qareg.share_weights(model, 8, **settings)
    schedule = PruningSchedule({"gru": 0.5, "*": None})
    assert error_of(lambda: fit(shared, schedule, x=x)) == (
        f"Expected share_weights with zero_centroid=True, to prune '{wrong}' of layer 'gru'. "
        "Received: SharedWeights, which computes with other values than 0. Prune first, then quantize "
        "or share."
    )
    fit(shared, PruningSchedule({"gru": 0.0, "*": None}), x=x)
    assert not qareg.codebooks(shared)[kernel.path].weights[values == 0].any()
    able = qareg.share_weights(model, 8, zero_centroid=True, **settings)
    fit(able, schedule, x=x, epochs=3)
    computed = {path: np.mean(book.weights == 0) for path, book in qareg.codebooks(able).items()}
    held = {path: share for path, share in computed.items() if "gru" in path}
    assert len(schedule.sparsity()) == len(held) and min(held.values()) >= 0.5


@pytest.mark.parametrize("settings", [{"levels": {"first": None, "*": 8}}, {"layers": ["last"]}])
def test_zeros_stay_in_kernels_that_compress_leaves_float(settings):
    model, gone = half_zero()
    model.layers[0].name, model.layers[1].name = "first", "last"
    model.compile(keras.optimizers.Adam(0.01), "mse")
    before = left(model)
    small = qareg.compress(model, X, Y, epochs=3, verbose=0, **settings)
    assert not left(small)[gone].any() and (left(small) != before).mean() > 0.4
