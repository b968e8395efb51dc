"""The proof of archives: what it must notice, beside tensors."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.export import load_archive, save_archive, verify
from keras_qareg.export.archive import archive as writing
from keras_qareg.export.archive import folding, proof
from tests.helpers import error_of

RNG = np.random.default_rng(0)


def relu(x):
    """No more than Keras's does on small numbers."""
    return ops.clip(x, 0.0, 1e6)


def my_cubic(x):
    """A function whose name leads to nothing of Keras's."""
    return x * x * x


class L2(keras.regularizers.Regularizer):
    """A regularizer that is registered by the name of another."""

    def __call__(self, weights):
        return 0.0 * ops.sum(weights)

    def get_config(self):
        return {}


def dense(**options):
    return keras.Sequential([keras.Input((6,)), layers.Dense(4, name="fc", **options)])


def made_again(what):
    return (
        "Expected a model whose configuration leads to its own functions and classes. Received: "
        f"{what}. Give yours a name that no other has."
    )


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: qareg.share_weights(model, 4)])
def test_a_function_with_the_name_of_one_of_kerass(wrap, tmp_path):
    model = wrap(dense(activation=relu))
    message = error_of(save_archive, model, tmp_path / "m.qareg")
    assert message == made_again(
        f"`activation` of layer 'fc' is {__name__}.relu, and made again it is "
        "keras.src.activations.activations.relu"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.one_backend
def test_other_objects_with_the_names_of_others(tmp_path):
    path = tmp_path / "m.qareg"
    keras.saving.register_keras_serializable("tests_proof", "Penalty")(L2)
    first = dense(kernel_regularizer=L2())
    save_archive(first, path)

    class Other(L2):
        """Registered later, by the same name."""

    keras.saving.register_keras_serializable("tests_proof", "Penalty")(Other)
    message = error_of(verify, first, path)
    assert "`kernel_regularizer` of layer 'fc'" in message and "Other. Give yours" in message


@pytest.mark.one_backend
def test_functions_and_lambdas_of_the_users_own(tmp_path):
    path = tmp_path / "m.qareg"
    for activation in (my_cubic, layers.LeakyReLU(0.3)):
        model = dense(activation=activation)
        assert verify(model, save_archive(model, path)) == "equal: all 2 tensors, bit for bit"
    model = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda x: 3 * x), layers.Dense(4)])
    assert verify(model, save_archive(model, path)) == "equal: all 2 tensors, bit for bit"
    with pytest.warns(
        UserWarning, match="cannot be made again here .Could not interpret activation"
    ):
        save_archive(dense(activation=lambda x: x * x), path)
    file = save_archive(dense(activation=my_cubic), path)
    loaded = load_archive(file, custom_objects={"my_cubic": my_cubic})
    assert loaded.get_layer("fc").activation is my_cubic


@pytest.mark.one_backend
def test_the_same_tensors_in_another_network_are_refused(tmp_path):
    model, other = dense(activation="relu"), dense(activation="tanh")
    other.set_weights(model.get_weights())
    path = save_archive(model, tmp_path / "m.qareg")
    message = error_of(verify, other, path)
    assert message == (
        f"Expected the settings of model '{other.name}' in {path}. Received: others, in "
        "['layers.1.activation']. Pass the model that the file was made of, or write the file anew."
    )
    twice = keras.Sequential([keras.Input((6,)), layers.Rescaling(2.0), layers.Dense(4, name="fc")])
    once = keras.Sequential([keras.Input((6,)), layers.Rescaling(1.0), layers.Dense(4, name="fc")])
    once.set_weights(twice.get_weights())
    assert "['layers.1.scale']" in error_of(verify, once, save_archive(twice, path))
    assert verify(twice, path).startswith("equal")


def normalized():
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(5, 3, name="conv"), layers.BatchNormalization()]
    model = keras.Sequential(stack)
    for weight in model.weights:
        weight.assign(RNG.uniform(0.5, 1.5, weight.shape))
    return model


def test_folding_is_not_proved_by_itself(tmp_path, monkeypatch):
    model = normalized()

    def wrong(plain, arrays, books):
        arrays, books = folding.folded(plain, arrays, books)
        return [array * 1.001 if array.ndim == 1 else array for array in arrays], books

    for module in (writing, proof):
        monkeypatch.setattr(module, "folded", wrong)
    message = error_of(save_archive, model, tmp_path / "m.qareg", fold=True)
    assert message.startswith(
        f"Expected a network with the outputs of model '{model.name}', within 0.0001 of the largest. "
        "Received: a difference of 0.00"
    )
    assert message.endswith("Leave out `fold=True`.")
    monkeypatch.undo()
    for float_dtype in ("float32", "float16"):
        path = save_archive(model, tmp_path / "m.qareg", fold=True, float_dtype=float_dtype)
        assert "outputs within " in verify(model, path, RNG.normal(size=(3, 8, 8, 3)))


class Noise(layers.Layer):
    """Random in inference too."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seed = keras.random.SeedGenerator()

    def call(self, inputs):
        return inputs + keras.random.normal(ops.shape(inputs), seed=self.seed)


@pytest.mark.one_backend
def test_states_are_taken_over_and_left_alone(tmp_path):
    model = keras.Sequential([keras.Input((6,)), Noise(name="noise"), layers.Dense(4)])
    seed = np.array(model.get_layer("noise").seed.state)
    path = save_archive(model, tmp_path / "m.qareg")
    assert verify(model, path) == "equal: all 2 tensors, bit for bit"
    np.testing.assert_array_equal(seed, model.get_layer("noise").seed.state)
    loop = keras.Sequential([keras.Input((5, 3), batch_size=2), layers.LSTM(4, stateful=True)])
    loop(np.ones((2, 5, 3)))
    before = [np.array(state) for state in loop.layers[0].states]
    assert verify(loop, save_archive(loop, path)) == "equal: all 3 tensors, bit for bit"
    for old, new in zip(before, loop.layers[0].states, strict=True):
        np.testing.assert_array_equal(old, new)
