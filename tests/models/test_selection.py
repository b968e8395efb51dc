"""Which weights are kernels, where their names do not say so."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import QuantizationAware, SharedWeights
from keras_qareg.regularizers import NearestSquared
from tests.helpers import arrays, error_of


@keras.saving.register_keras_serializable("tests")
class Mixer(layers.Layer):
    """A layer whose weights have names of their author's."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(input_shape[-1], self.units))
        self.mix_a = self.add_weight(name="mix_a", shape=(self.units, self.units))
        self.scale = self.add_weight(name="scale", shape=(self.units,), initializer="uniform")
        self.built = True

    def call(self, inputs):
        return ops.matmul(ops.matmul(inputs, self.w), self.mix_a) * self.scale

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def network() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8,)), Mixer(128, name="mixer"), layers.Dense(3, name="out")], name="net"
    )


SELECTORS = {
    "a name": ("w", ["w"]),
    "patterns": (["*kernel", "mix_*", "w"], ["w", "mix_a", "kernel"]),
    "a path": ("mixer/w", []),
    "a function": (lambda layer, weight: weight.name in ("w", "scale"), ["w", "scale"]),
}


@pytest.mark.parametrize(("weights", "names"), SELECTORS.values(), ids=SELECTORS)
def test_weights_of_other_names_are_shared_and_saved(weights, names, tmp_path):
    model, inputs = network(), np.ones((2, 8), "float32")
    if not names:  # paths are those inside a layer
        message = error_of(lambda: qareg.share_weights(model, 4, weights=weights))
        assert message.endswith("No weight of theirs is in weights='mixer/w'.")
        return
    for shared in (
        qareg.share_weights(model, 4, weights=weights),
        qareg.share_weights(
            qareg.quantization_aware(model, NearestSquared(4), weights=weights), weights=weights
        ),
    ):
        few = {w.name for w in qareg.strip(shared).weights if len(np.unique(w)) <= 4}
        assert few - {"bias"} == set(names)
        assert [path.split("/")[-1] for path in qareg.codebooks(shared)] == names
        plain = qareg.strip(shared)
        np.testing.assert_array_equal(*arrays(plain(inputs), shared(inputs)))
        assert [p.split("/")[-1] for p in qareg.codebooks(plain, weights=weights)] == names
        shared.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        np.testing.assert_array_equal(*arrays(loaded(inputs), shared(inputs)))


def test_wrappers_take_names():
    inputs = np.ones((2, 8), "float32")
    for layer in (
        SharedWeights(Mixer(4), levels=2, kernel_names=["w"]),
        QuantizationAware(Mixer(4), NearestSquared(2), kernel_names=["mix_*", "w"]),
    ):
        layer(inputs)
        assert next(kernel.name for kernel in layer.kernels) == "w"
        again = type(layer).from_config(layer.get_config())
        assert again.kernel_names == layer.kernel_names
    assert "kernel_names" not in SharedWeights(layers.Dense(4), levels=2).get_config()


def test_what_was_left_out_is_said():
    model = network()
    rule = (
        "A kernel is a weight whose name ends in 'kernel' or 'embeddings'; name others in `weights`, as "
        "weights=['*kernel', 'w']."
    )
    paths = [model.layers[0].w.path, model.layers[0].mix_a.path]
    for transform in (
        lambda: qareg.share_weights(model, 4),
        lambda: qareg.quantization_aware(model, NearestSquared(4)),
    ):
        with pytest.warns(UserWarning) as warned:
            transform()
        said = [str(its.message) for its in warned if its.category is UserWarning]
        assert said == [f"Left as they are: {paths}. {rule}"]
    summary = qareg.report.summary(model)
    assert summary.left_out == tuple(paths)
    assert str(summary).endswith(f"not named as kernels are (`weights`): {', '.join(paths)}")
    assert not qareg.report.summary(model, weights=["w", "mix_a"]).left_out
    alone = keras.Sequential([keras.Input((8,)), Mixer(128, name="mixer")], name="net")
    assert error_of(lambda: qareg.share_weights(alone, 4)) == (
        "Expected a layer to share the weights of in model 'net'. Received: layers='all', of which none "
        f"has a kernel large enough. {rule} There are "
        f"{[alone.layers[0].w.path, alone.layers[0].mix_a.path]}."
    )
    assert error_of(lambda: qareg.share_weights(model, 4, ["mixer"])) == (
        "Expected `layers` to be names of layers with kernels, ['out']. Received unknown names: "
        f"['mixer']. {rule} There are {paths}."
    )


@pytest.mark.one_backend
def test_layers_with_low_rank_adaptation_are_refused():
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(16, name="a"), layers.Dense(8, name="b")], name="m"
    )
    model.get_layer("a").enable_lora(2)
    expected = (
        "Expected layers without low-rank adaptation, whose kernels are sums. Received: ['a'] with "
        "`enable_lora`. Make a model without it, and give each kernel the value of `layer.kernel`, "
        "which is the sum; or leave these out by `layers`."
    )
    model.compile("sgd", "mse")
    x = np.ones((4, 8), "float32")
    for call in (
        lambda: qareg.share_weights(model, 4),
        lambda: qareg.quantization_aware(model, "sine"),
        lambda: qareg.wnq(model, skip=()),
        lambda: qareg.compress(model, x, levels=4, epochs=1, verbose=0),
        lambda: qareg.allocate(model, target_ratio=0.5, data=x, weights="archive", verbose=0),
        lambda: model.fit(x, x, callbacks=[qareg.callbacks.PruningSchedule()], verbose=0),
    ):
        assert error_of(call) == expected
    shared = qareg.share_weights(model, 4, layers=["b"])
    assert [isinstance(layer, SharedWeights) for layer in shared.layers] == [False, True]


@pytest.mark.one_backend
def test_a_class_of_layers_and_names_that_mean_nothing():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(8)]
    )
    shared = qareg.share_weights(model, 4, layers=layers.Conv2D)
    assert [isinstance(layer, SharedWeights) for layer in shared.layers] == [True, False, False]
    assert error_of(lambda: qareg.share_weights(model, 4, weights=["kernel", "nope"])) == (
        "Expected each of `weights` to mean a weight of the model. Received: ['nope'], which mean none"
    )


def test_weights_of_keras_that_are_no_kernels_are_no_matter(recwarn):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, layers.Dense(3)(layers.PReLU()(inputs)))
    qareg.share_weights(model, 2)
    assert not [w for w in recwarn if "Left as they are" in str(w.message)]
