"""What was set on layers and weights by hand, and what a class does in its own way, comes along."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.regularizers import NearestSquared
from tests.helpers import arrays, error_of, predict
from tests.models.test_cloning import OfFunctional, OfSequential, PrivateAttributes

INPUTS = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")


def net():
    keras.utils.set_random_seed(0)
    inside = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="deep")], name="inside")
    return keras.Sequential(
        [keras.Input((8,)), layers.Dense(6, name="first"), inside, layers.Dense(3, name="last")]
    )


def flags(model):
    return [(weight.path, weight.trainable) for weight in model.weights]


def test_what_was_frozen_by_hand_stays_so():
    model = net()
    model.trainable = False
    model.get_layer("inside").get_layer("deep").trainable = True
    model.get_layer("first").bias.trainable = True
    copied = qareg.strip(model)
    assert not copied.trainable and flags(copied) == flags(model)
    assert [layer.trainable for layer in copied.layers] == [False, False, False]
    assert copied.get_layer("inside").get_layer("deep").trainable
    back = qareg.strip(qareg.quantization_aware(model, NearestSquared(3)))
    assert flags(back) == flags(model)


@pytest.mark.parametrize("trainable", ["centroids", "centroids+rest"])
def test_centroids_of_a_frozen_model_train(trainable):
    model = net()
    model.trainable = False
    shared = qareg.share_weights(model, 3, trainable=trainable)
    assert [weight.name for weight in shared.trainable_variables] == [
        "centroids",
        "centroid_sizes",
    ] * 3
    model = net()
    model.get_layer("last").bias.trainable = False
    shared = qareg.share_weights(model, 3, trainable=trainable)
    rest = [weight.name for weight in shared.trainable_variables if weight.name == "bias"]
    assert len(rest) == (2 if trainable == "centroids+rest" else 0)
    assert len(qareg.strip(shared).trainable_variables) == 6


def test_a_constraint_that_was_set_later_holds():
    model = net()
    kernel = model.get_layer("last").kernel
    kernel.assign(np.abs(arrays(kernel)[0]))
    kernel.constraint = keras.constraints.NonNeg()
    wrapped = qareg.quantization_aware(model, NearestSquared(3))
    for layer in (qareg.strip(model).get_layer("last"), wrapped.get_layer("last").layer):
        assert isinstance(layer.kernel.constraint, keras.constraints.NonNeg)
    shared = qareg.share_weights(model, 3)
    assert isinstance(shared.get_layer("last").centroids[0].constraint, keras.constraints.NonNeg)


class Scaling(layers.Layer):
    """Reads settings that its maker sets later, of all kinds."""

    def call(self, inputs):
        factor = getattr(self, "factors", (1.0,))[0]
        return getattr(self, "function", lambda x: x)(inputs * factor)


def test_settings_of_all_kinds_come_along():
    model = keras.Sequential([keras.Input((8,)), Scaling(name="s"), layers.Dense(4, name="d")])
    layer = model.get_layer("s")
    layer.factors, layer.function, layer.names = (3.0, 2), keras.ops.tanh, {"a": [1, 2]}
    copied = qareg.strip(model)
    np.testing.assert_array_equal(predict(copied, INPUTS), predict(model, INPUTS))
    copied.get_layer("s").names["a"].append(3)
    assert list(layer.names["a"]) == [1, 2]


class Own(layers.Layer):
    """A layer that is none of Keras's, with a kernel."""

    def build(self, input_shape):
        self.kernel = self.add_weight(name="kernel", shape=(8, 4))
        self.built = True

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.kernel)


def test_what_wrappers_put_on_a_layer_does_not_come_along(tmp_path):
    """Those leave their kernels out of files, which a plain layer must not."""
    model = keras.Sequential([keras.Input((8,)), Own(name="own")])
    plain = qareg.strip(qareg.share_weights(model, 3))
    plain.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Own": Own})
    np.testing.assert_array_equal(predict(loaded, INPUTS), predict(plain, INPUTS))
    assert "save_own_variables" not in vars(plain.get_layer("own"))


class MadeFromItsConfig(layers.Layer):
    """Keeps the configuration of the layer that it makes, and gives its copies names of their own."""

    def __init__(self, inner, name="outer", **kwargs):
        super().__init__(name=f"{name}_0" if kwargs else name, **kwargs)
        self.inner_config = inner
        self.inner = keras.saving.deserialize_keras_object(
            dict(inner, config=dict(inner["config"]))
        )

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.built = True

    def call(self, inputs):
        return self.inner(inputs)

    def get_config(self):
        return {**super().get_config(), "inner": self.inner_config}

    @classmethod
    def from_config(cls, config):
        config["inner"]["config"].pop("dtype")  # takes apart what it is given
        return cls(**config)


def test_a_configuration_that_a_layer_keeps_stays_whole():
    inner = keras.saving.serialize_keras_object(layers.Dense(4, name="dense"))
    model = keras.Sequential([keras.Input((8,)), MadeFromItsConfig(inner)])
    for _ in range(2):
        shared = qareg.share_weights(model, 3)
    assert [layer.name for layer in qareg.strip(shared).layers] == ["outer"]
    assert list(qareg.codebooks(shared)) == [model.weights[0].path]
    assert "dtype" in model.layers[0].inner_config["config"]


@pytest.mark.parametrize("kind", [OfFunctional, OfSequential, PrivateAttributes])
def test_a_changed_model_that_its_class_could_not_load_is_not_saved(kind, tmp_path):
    model = kind(name="mine")
    model(INPUTS)
    shared = qareg.share_weights(model, 3)
    names = {OfFunctional: ["first", "last"], OfSequential: ["first"]}.get(kind, ["hidden", "out"])
    assert error_of(lambda: shared.save(tmp_path / "model.keras")) == (
        f"Expected 'mine' ({kind.__name__}) to have its changed layers in its configuration, so that a "
        f"saved model can be loaded. Received: one without {names}, because its own "
        "`get_config()` makes the layers. Save its weights (`save_weights`), or the plain model that "
        "keras_qareg.strip makes of it."
    )
    outer = keras.Sequential([keras.Input((8,)), shared])
    with pytest.raises(ValueError, match="to have its changed layers"):
        outer.save(tmp_path / "model.keras")
    shared.save_weights(tmp_path / "model.weights.h5")
    other = qareg.share_weights(kind(name="mine") if kind is not PrivateAttributes else model, 3)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(predict(other, INPUTS), predict(shared, INPUTS))
    np.testing.assert_array_equal(predict(qareg.strip(shared), INPUTS), predict(shared, INPUTS))


def attention():
    inputs = keras.Input((5, 8))
    found = layers.MultiHeadAttention(2, 3, name="attention")
    return keras.Model(inputs, layers.Dense(2)(found(inputs, inputs)))


def recurrent():
    inputs = keras.Input((3, 6, 6, 2))
    return keras.Model(inputs, layers.Dense(4)(layers.Flatten()(layers.ConvLSTM2D(3, 2)(inputs))))


@pytest.mark.parametrize("make", [attention, recurrent])
def test_layers_that_are_made_by_build_are_frozen_with_those_that_make_them(make, tmp_path):
    shared = qareg.share_weights(make(), 4)
    assert {v.path.split("/")[-1].split("_")[-1] for v in shared.trainable_variables} <= {
        *("centroids", "sizes"),
    }
    shared.save(tmp_path / "shared.keras")
    again = keras.saving.load_model(tmp_path / "shared.keras")
    assert len(again.trainable_variables) == len(shared.trainable_variables)
    model = make()
    model.layers[1].trainable = False
    for transform in (
        lambda model: qareg.share_weights(model, 4, trainable="assignments"),
        lambda model: qareg.quantization_aware(model, NearestSquared(4)),
    ):
        frozen = transform(model)
        assert not frozen.layers[1].layer.trainable_variables
        frozen.save(tmp_path / "frozen.keras")
        again = keras.saving.load_model(tmp_path / "frozen.keras")
        assert len(again.trainable_variables) == len(frozen.trainable_variables)
        assert not again.layers[1].layer.trainable_variables
