"""A copy is compiled with all that its model was compiled with."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared
from tests.helpers import BACKEND, compiled, digits, small_cnn

STEPS = 1 if BACKEND == "torch" else 2
X = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
Y = {"p": 1000 * np.ones((64, 2), "float32"), "q": np.zeros((64, 2), "float32")}


def two_heads() -> keras.Model:
    inputs = keras.Input((8,))
    hidden = layers.Dense(16, "relu")(inputs)
    return keras.Model(inputs, {name: layers.Dense(2, name=name)(hidden) for name in "pq"})


@pytest.mark.parametrize(
    "transform",
    [
        lambda model: qareg.quantization_aware(model, NearestSquared(4)),
        lambda model: qareg.share_weights(model, levels=4),
        qareg.strip,
    ],
)
def test_a_compiled_model_stays_compiled(transform):
    images, labels = digits(32)
    model = compiled(small_cnn(), metrics=["accuracy"])
    transformed = transform(model)
    assert transformed.compiled and model.compiled
    transformed.fit(images, labels, verbose=0)
    assert not transform(small_cnn()).compiled


def test_all_arguments_come_along():
    model = two_heads()
    losses, weights = {"p": "mse", "q": lambda y, p: ops.mean(ops.abs(y - p))}, {"p": 0.0, "q": 2.0}
    model.compile(
        keras.optimizers.SGD(0.5, momentum=0.25),
        losses,
        loss_weights=weights,
        metrics={"q": ["mae", keras.metrics.MeanSquaredError(name="square")]},
        steps_per_execution=STEPS,
        run_eagerly=True,
    )
    model.optimizer.learning_rate = 0.125
    copied = qareg.strip(model)
    assert copied.run_eagerly and copied.steps_per_execution == STEPS and not copied.jit_compile
    assert copied.optimizer is not model.optimizer
    assert float(ops.convert_to_numpy(copied.optimizer.learning_rate)) == 0.125
    assert copied.optimizer.momentum == 0.25
    expected, found = (m.evaluate(X, Y, verbose=0, return_dict=True) for m in (model, copied))
    assert set(found) == set(expected) >= {"loss", "q_mae", "q_square"}
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=1e-5)
    assert found["loss"] < 100  # the head of weight 0 does not count


def test_losses_keep_what_their_configuration_does_not_say():
    model = small_cnn()
    model.compile("sgd", keras.losses.Huber(0.1))  # Keras's configuration of it has no `delta`
    x, y = np.ones((4, 8, 8, 1), "float32"), 5 * np.ones((4, 10), "float32")
    losses = [m.evaluate(x, y, verbose=0) for m in (model, qareg.strip(model))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("scale", [True, False])
def test_loss_scaling_comes_along(scale):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((8,)), layers.Dense(2)])
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", "mse", auto_scale_loss=scale)
    copied = qareg.strip(model)
    assert isinstance(copied.optimizer, keras.optimizers.LossScaleOptimizer) == scale
    assert copied.dtype_policy == model.dtype_policy


class Distilled(keras.Model):
    """Its `compile` has an argument of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)

    def compile(self, optimizer, loss, temperature=1.0, **kwargs):
        self.temperature = temperature
        super().compile(optimizer, loss, **kwargs)

    def call(self, inputs):
        return self.dense(inputs)


def test_a_compile_with_arguments_of_its_own_only_warns(monkeypatch):
    model = Distilled()
    model.compile("sgd", "mse", temperature=3.0)
    model(X)
    with pytest.warns(UserWarning, match="has arguments of its own: .'temperature'.") as warned:
        copied = qareg.strip(model)
    assert not copied.compiled and model.compiled
    assert "Call `compile()` on it" in str(warned[0].message) and len(warned) == 1
    with pytest.warns(UserWarning, match="not compiled"):  # the copies are not; what trains them is
        small = qareg.compress(model, X, Y["q"], levels=4, epochs=2, verbose=0)
    assert len(np.unique(small.dense.kernel)) <= 4
    monkeypatch.setattr(Distilled, "train_step", lambda self, *data: None)
    with (
        pytest.warns(UserWarning, match="not compiled"),
        pytest.raises(ValueError, match="Expected a model with the `compile` of keras.Model"),
    ):
        qareg.compress(model, X, Y["q"], levels=4, epochs=2, verbose=0)


def test_compress_keeps_loss_weights():
    model = two_heads()
    model.compile("adam", {"p": "mse", "q": "mse"}, loss_weights={"p": 0.0, "q": 1.0})
    before = qareg.codebooks(qareg.share_weights(model, levels=4))["p/kernel"].centroids
    options = {"method": "kmeans", "distillation": 0.0, "epochs": 2, "learning_rate": 0.05}
    small = qareg.compress(model, X, Y, levels=4, verbose=0, **options)
    after = np.unique(ops.convert_to_numpy(small.get_layer("p").kernel))
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(
        np.unique(ops.convert_to_numpy(small.get_layer("q").kernel)),
        qareg.codebooks(qareg.share_weights(model, levels=4))["q/kernel"].centroids,
    )


def test_what_is_left_out_of_weight_decay_stays_so():
    model = two_heads()
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    model.compile(optimizer, "mse")
    copied = qareg.strip(model)
    (before,) = (ops.convert_to_numpy(copied.layers[1].kernel).copy(),)
    copied.fit(0 * X, {name: 0 * y for name, y in Y.items()}, verbose=0)
    np.testing.assert_array_equal(ops.convert_to_numpy(copied.layers[1].kernel), before)
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[1].bias])
    model.compile(optimizer, "mse")
    with pytest.warns(UserWarning, match="excluded from weight decay by `var_list`"):
        assert not qareg.strip(model).compiled


@pytest.mark.one_backend
def test_weights_that_do_not_decay_are_told_to_each_optimizer():
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    trained = qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4))
    trained.compile(qareg.optimizers.with_centroid_optimizer(optimizer, 1e-4), "mse")
    for network in (trained, qareg.strip(trained)):
        patterns = [x._exclude_from_weight_decay_pattern for x in network.optimizer.optimizers]
        assert [pattern.pattern for pattern in patterns] == ["bias", "bias"]
