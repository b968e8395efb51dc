"""Which layer gets which value: precedence, conflicts, keys that match nothing, in all transforms."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.layers import QuantizationAware, SharedWeights
from keras_qareg.models.configuring import LEVELS, REGULARIZER, resolve
from keras_qareg.models.selection import select
from keras_qareg.regularizers import NearestSquared, Sine
from tests.helpers import error_of, small_cnn
from tests.kinds import functional


class Wide(layers.Dense):
    """A subclass of a layer of Keras."""


def network():
    """Layers of several types, one inside a wrapper, two of one name in two models, and an LSTM."""
    keras.utils.set_random_seed(0)
    inside = [
        keras.Sequential([keras.Input((12,)), layers.Dense(12, name="fc")], name=name)
        for name in ("one", "two")
    ]
    inputs = keras.Input((5, 8))
    hidden = layers.TimeDistributed(layers.Dense(12, name="inner"), name="timed")(inputs)
    hidden = layers.LSTM(12, name="rnn")(hidden)
    hidden = Wide(12, name="block_1")(hidden)
    for model in inside:
        hidden = model(hidden)
    return keras.Model(inputs, layers.Dense(4, name="out")(hidden), name="net")


def values(model, setting, argument=LEVELS):
    """What each kernel gets, by its path, and why."""
    found = resolve(argument, setting, model, select(model)).choices
    return {kernel.path: (choice.value, choice.why) for kernel, choice in found}


@pytest.mark.one_backend
def test_the_closest_key_counts():
    rnn = ["rnn/lstm_cell/kernel", "rnn/lstm_cell/recurrent_kernel"]
    setting = {
        "*": 2,
        "Layer": 3,
        layers.Dense: 4,
        "Wide": 5,
        "o*": 6,
        "rnn": 7,
        rnn[1]: 8,
        "two/fc/kernel": "float",
        "TimeDistributed": 4,
    }
    assert values(network(), setting) == {
        "timed/inner/kernel": (4, "type Dense"),
        rnn[0]: (7, "name 'rnn'"),
        rnn[1]: (8, f"path '{rnn[1]}'"),
        "block_1/kernel": (5, "type Wide"),
        "one/fc/kernel": (6, "pattern 'o*'"),
        "two/fc/kernel": (None, "path 'two/fc/kernel'"),
        "out/kernel": (6, "pattern 'o*'"),
    }
    rest = "left as it is: nothing matches"
    kept = values(network(), {"Dense": None, "rnn": 4})
    assert {why for _, why in kept.values()} == {"type Dense", "name 'rnn'"}
    assert values(network(), {"rnn": 4})["out/kernel"] == (None, rest)
    assert set(values(network(), {"rnn": 4, "*": 9}).values()) == {(4, "name 'rnn'"), (9, "'*'")}
    assert set(values(network(), 4).values()) == {(4, "for all")}


@pytest.mark.one_backend
def test_functions_see_the_layers_inside_and_plans_are_dicts_of_paths():
    model = qareg.quantization_aware(network(), Sine(16), levels={"Wide": None, "*": 4})
    seen = []

    def levels(layer):
        seen.append(type(layer).__name__)
        return 8 if isinstance(layer, Wide) else "float"

    found = values(model, levels)
    assert found["block_1/kernel"] == (8, "by the function")
    assert found["out/kernel"] == (None, "by the function")
    assert seen == ["TimeDistributed", "LSTM", "Wide", "Dense", "Dense", "Dense"]
    plan = SimpleNamespace(levels={"net/rnn/lstm_cell/kernel": 4, "two/fc/kernel": None})
    found = values(model, plan)
    assert [value for value, _ in found.values()] == [None, 4, None, None, None, None, None]


@pytest.mark.one_backend
def test_paths_hold_after_copying_and_loading(tmp_path):
    """Keras leaves the names of models and wrappers out of paths then."""
    model = network()
    keys = dict.fromkeys(values(model, 2), 4)
    copied = dict.fromkeys(qareg.codebooks(qareg.share_weights(model, 2)), 4)
    assert {value for value, _ in values(model, copied).values()} == {4}
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects={"Wide": Wide})
    assert {value for value, _ in values(loaded, keys).values()} == {4}


@pytest.mark.one_backend
def test_wrong_keys_and_values():
    model = functional()
    listed = "'shared' (Dense), 'deep' (Dense), 'first' (Dense), 'second' (Dense)"
    unknown = (
        "Expected the keys of `levels` to be names, paths or patterns of layers with kernels in model "
        f"'two_heads', or their types: {listed}. Received keys that match none: "
    )
    said = {
        "frist": "'frist' (did you mean 'first'?)",
        "conv_*": "'conv_*'",
        layers.Conv2D: "'Conv2D'",
        "dense": "'dense' (did you mean 'Dense' or 'deep'?)",
        "norm": "'norm'",
    }
    for key, text in said.items():
        assert error_of(values, model, {key: 4, "*": 2}) == unknown + text
    two = {"f*": 4, "*t": 8, "Dense": 2}
    assert error_of(values, model, two) == (
        "Expected one value of `levels` for layer 'first'. Received: 4 by pattern 'f*', 8 by pattern "
        "'*t'. Give the layer a key of its own: its name."
    )
    assert values(model, {**two, "first": 16})["first/kernel"] == (16, "name 'first'")
    assert values(model, {"f*": 4, "*t": 4})["first/kernel"] == (4, "pattern 'f*'")
    apart = {"TimeDistributed": 4, "Dense": 8}
    assert error_of(values, network(), apart) == (
        "Expected one value of `levels` for layer 'timed'. Received: 4 by type TimeDistributed, 8 by "
        "type Dense. Give the layer a key of its own: its name."
    )
    plain = "Expected `levels` to be an integer from 2 to 256. Received: levels="
    assert error_of(values, model, {"first": 1}) == f"Key 'first': {plain}1"
    assert error_of(values, model, {layers.Dense: "8"}) == f"Key Dense: {plain}'8'"
    assert error_of(values, model, lambda _: 2.5) == f"Layer 'shared': {plain}2.5"
    assert error_of(values, model, "four") == f"{plain}'four'"
    assert error_of(values, model, {4: 4}) == (
        "Expected the keys of `levels` to be names, paths or patterns of them, or types of layers. "
        "Received: 4"
    )


@pytest.mark.one_backend
def test_keys_of_layers_that_are_left_out():
    model = small_cnn()
    assert error_of(qareg.share_weights, model, {"conv": 4, "fc": 4}, "dense") == (
        "Expected the keys of `levels` to match layers that are to be changed. Received keys that match "
        "only layers left out by `layers`: 'conv' ('conv'). Give these None, or take them out of the "
        "configuration."
    )
    shared = qareg.share_weights(model, {"conv": None, "fc": 4}, "dense")
    assert [type(x).__name__ for x in shared.layers[::2]] == ["Conv2D", "SharedWeights"]
    assert error_of(qareg.share_weights, model, 4, "dense", table={"Conv2D": "even"}) == (
        "Expected the keys of `table` to match layers that are to be changed. Received keys that match "
        "only layers left out by `layers`: 'Conv2D' ('conv'). Take them out of the configuration."
    )
    assert error_of(qareg.wnq, model, {"Dense": 2, "out": 4}) == (
        "Expected the keys of `bits` to match layers that are to be changed. Received keys that match "
        "only layers left out by `layers`, by `skip`, or because WNQ has no layer of their kind: 'out' "
        "('out'). Give these None, or take them out of the configuration."
    )


def distinct(layer):
    return [len(np.unique(book.centroids[: book.levels_used])) for book in layer.codebooks()]


def test_levels_tables_and_scales_by_layer():
    model = small_cnn()
    shared = qareg.share_weights(
        model,
        {"conv": 3, "Dense": 9, "out": None},
        table={"conv": "even", "fc": "float32"},
        scale={"conv": "kernel"},
    )
    conv, fc = shared.get_layer("conv"), shared.get_layer("fc")
    assert (conv.levels, conv.table, conv.table_scale) == (3, "even", "kernel")
    assert (fc.levels, fc.table, fc.table_scale) == (9, "float32", "kernel")
    assert distinct(conv) == [3] and distinct(fc) == [9]
    plain = qareg.strip(shared)
    assert [len(np.unique(plain.get_layer(name).kernel)) for name in ("conv", "fc")] == [3, 9]
    np.testing.assert_array_equal(plain.get_layer("out").kernel, model.get_layer("out").kernel)
    small = qareg.compress(model, levels={"fc": 2, "*": 4}, table=lambda layer: None)
    counts = [len(np.unique(small.get_layer(name).kernel)) for name in ("conv", "fc", "out")]
    assert counts == [4, 2, 4]


def test_kernels_of_one_layer_have_levels_of_their_own(tmp_path):
    model = network()
    kernel, recurrent = "rnn/lstm_cell/kernel", "rnn/lstm_cell/recurrent_kernel"
    for table in ("int8", "even"):
        shared = qareg.share_weights(model, {kernel: 3, recurrent: 7}, table=table, scale="kernel")
        rnn = shared.get_layer("rnn")
        assert list(rnn.levels) == rnn.kernel_levels == [3, 7] == distinct(rnn)
        file = tmp_path / f"{table}.keras"
        shared.save(file)
        loaded = keras.saving.load_model(file, custom_objects={"Wide": Wide})
        assert distinct(loaded.get_layer("rnn")) == [3, 7]
        plain = qareg.strip(shared).get_layer("rnn").weights
        assert [len(np.unique(weight)) for weight in plain[:2]] == [3, 7]
    one = qareg.share_weights(model, {recurrent: 4})
    assert one.get_layer("rnn").kernel_names == ["lstm_cell/recurrent_kernel"]
    given = [ops.convert_to_numpy(w) for w in qareg.strip(one).get_layer("rnn").weights]
    np.testing.assert_array_equal(given[0], model.get_layer("rnn").weights[0])
    assert len(np.unique(given[1])) == 4
    rows = qareg.report.summary(one, model).rows
    assert [row.levels for row in rows] == [None, None, 4, None, None, None, None]
    file = qareg.export.save_archive(one, tmp_path / "one.qareg")
    assert "equal: all " in qareg.export.verify(one, file)
    assert error_of(SharedWeights(layers.LSTM(4, name="lstm"), [2, 4, 8]).build, (None, 5, 8)) == (
        "Expected one of `levels` for each of 2 kernels of layer 'lstm'. Received: levels=[2, 4, 8]"
    )


@pytest.mark.parametrize("kind", [Sine, NearestSquared])
def test_kernels_of_one_layer_are_trained_under_levels_of_their_own(kind, tmp_path):
    model = network()
    kernel, recurrent = "rnn/lstm_cell/kernel", "rnn/lstm_cell/recurrent_kernel"
    aware = qareg.quantization_aware(model, kind(16), levels={kernel: 3, recurrent: 7})
    rnn = aware.get_layer("rnn")
    assert [x.shape[0] for x in rnn.centroids] == [3, 7]
    rnn.place_centroids()
    # Each kernel pays what it would in a layer whose regularizer has its levels.
    for place, levels in enumerate((3, 7)):
        alone = qareg.quantization_aware(model, kind(levels), ["rnn"]).get_layer("rnn")
        alone.place_centroids()
        np.testing.assert_allclose(rnn.penalties()[place], alone.penalties()[place], rtol=1e-5)
    aware.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras", custom_objects={"Wide": Wide})
    assert loaded.get_layer("rnn").levels == [3, 7]
    shared = qareg.share_weights(aware, layers=["rnn"], table="float32").get_layer("rnn")
    assert distinct(shared) == [3, 7]
    if kind is Sine:
        for book, table in zip(shared.codebooks(), rnn.tables(), strict=True):
            np.testing.assert_array_equal(book.centroids, table)
    only = qareg.quantization_aware(model, kind(16), levels={recurrent: 7}).get_layer("rnn")
    assert only.levels is None and only.regularizer.levels == 7 and len(only.centroids) == 1


def test_regularizers_by_layer():
    model = small_cnn()
    aware = qareg.quantization_aware(
        model,
        {"conv": {"name": "sine", "strength": 0.5}, "*": NearestSquared(4)},
        levels={"Conv2D": 3, "fc": 8},
        table={"fc": "float32"},
    )
    conv, fc = aware.get_layer("conv"), aware.get_layer("fc")
    assert repr(conv.regularizer) == repr(Sine(3, strength=0.5)) and conv.table == "int8"
    assert repr(fc.regularizer) == repr(NearestSquared(8)) and fc.table == "float32"
    assert not isinstance(aware.get_layer("out"), QuantizationAware)
    shared = qareg.share_weights(aware, layers=["conv", "fc"])
    assert [shared.get_layer(name).levels for name in ("conv", "fc")] == [3, 8]
    assert error_of(qareg.quantization_aware, model, {"conv": "cosin"}) == (
        "Key 'conv': Expected a regularizer of keras_qareg, its class, None, or one of ['cosine', "
        "'dkm', 'nearest_exponential', 'nearest_squared', 'sine']. Received: 'cosin'"
    )
    assert error_of(qareg.quantization_aware, model, {"name": "sine", "levls": 4}) == (
        "Expected arguments of the regularizer Sine, ['levels', 'weight_range', 'strength', 'outside', "
        "'table', 'zero_basin']. Received others: ['levls']"
    )


@pytest.mark.one_backend
def test_regularizers_that_are_the_same_do_not_disagree():
    same = {"f*": Sine(4), "*c": {"name": "sine", "levels": 4}}
    assert values(small_cnn(), same, REGULARIZER)["cnn/fc/kernel"][1] == "pattern 'f*'"
    other = {"f*": Sine(4), "*c": Sine(4, strength=1)}
    assert "by pattern 'f*'" in error_of(values, small_cnn(), other, REGULARIZER)


@pytest.mark.one_backend
def test_bits_by_layer():
    model = qareg.wnq(
        small_cnn(),
        {"Dense": 3, "out": "float", "*": 1},
        activation_bits={"fc": 4},
        skip=(),
    )
    conv, fc, out = (model.get_layer(name) for name in ("conv", "fc", "out"))
    assert (conv.quantizer.bits, conv.activation_quantizer) == (1, None)
    assert (fc.quantizer.bits, fc.activation_quantizer.bits) == (3, 4)
    assert type(out) is layers.Dense
