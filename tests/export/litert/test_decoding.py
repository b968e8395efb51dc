"""Codebooks of small kernels, which one chain of operators decodes."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export import packing
from keras_qareg.export.litert import flatbuffer
from tests.helpers import tensorflow_only

RNG = np.random.default_rng(0)


def network(levels):
    """Six convolutions, normalized or not, whose kernels have these numbers of values."""
    keras.utils.set_random_seed(0)
    inputs = hidden = keras.Input((16, 16, 3))
    for place, count in enumerate(levels):
        kind = layers.DepthwiseConv2D if place == 2 else layers.Conv2D
        size = {"depth_multiplier": 4} if place == 2 else {"filters": 24}
        layer = kind(kernel_size=3, padding="same", **size, name=f"c{place}")
        hidden = layer(hidden)
        values = RNG.normal(size=count).astype("float32")
        layer.kernel.assign(RNG.choice(values, layer.kernel.shape))
        if place % 2:
            normalize = layers.BatchNormalization()
            hidden = normalize(hidden)
            normalize.gamma.assign(RNG.uniform(-2.0, 2.0, normalize.gamma.shape))
        hidden = layers.ReLU()(hidden)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(hidden))


def operators(path):
    """The names of the operators of each graph."""
    model = flatbuffer.read(path.read_bytes())
    return [
        [flatbuffer.operator_name(model, operator) for operator in graph.operators]
        for graph in model.subgraphs
    ]


@tensorflow_only
@pytest.mark.parametrize(
    ("levels", "divisions"), [((4,) * 6, 1), ((3, 3, 3, 200, 200, 200), 2), ((5, 6, 5, 6, 5, 6), 1)]
)
def test_small_kernels_share_their_operators(levels, divisions, tmp_path):
    """Each kernel is proved in the export; levels of about one number share words too."""
    model, path = network(levels), tmp_path / "m.tflite"
    report = qareg.export.litert(model, path, "codebook")
    assert {kernel.form for kernel in report.kernels} == {"codebook"}
    main, ahead = operators(path)
    assert main.count("READ_VARIABLE") == main.count("SPLIT_V") == 1
    assert ahead.count("CUMSUM") == divisions
    assert report.max_output_difference <= 1e-5 * report.output_range
    assert "and 6 rewritten kernels" in qareg.export.verify(model, path)


@tensorflow_only
def test_tables_of_channels_share_them_too(tmp_path):
    model = qareg.wnq(network((2,) * 6), bits=2, skip=())
    report = qareg.export.litert(model, tmp_path / "m.tflite", "codebook")
    assert {kernel.form for kernel in report.kernels} == {"codebook"}
    (_, ahead) = operators(tmp_path / "m.tflite")
    assert ahead.count("CUMSUM") == 1


@tensorflow_only
def test_large_kernels_and_few_have_operators_of_their_own(tmp_path):
    model = keras.Sequential([keras.Input((300,)), layers.Dense(200), layers.Dense(100)])
    path = tmp_path / "m.tflite"
    qareg.export.litert(qareg.share_weights(model, 4), path, "codebook")
    main, ahead = operators(path)
    assert "CUMSUM" not in ahead and main.count("READ_VARIABLE") == 2
    qareg.export.litert(qareg.share_weights(model, 4), path, "codebook", decode_once=False)
    ((*names,),) = operators(path)
    assert "READ_VARIABLE" not in names and names.count("CAST") == 2


@pytest.mark.one_backend
@pytest.mark.parametrize("levels", [2, 8, 16, 32, 64, 100, 256])
def test_words_are_near_their_limit(levels):
    size = 100_000
    base = packing.lower_base(levels, size)
    assert packing.words_bytes(levels, size) <= 1.045 * size * np.log2(levels) / 8 + 500
    assert base == 1 or packing.words_bytes(levels, size) < 4 * size / packing.indices_a_word(
        levels
    )
