"""Where the bytes of a file are: all of them, and each where it belongs."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.inspection import describe_litert, stored_constants
from keras_qareg.export.litert.sections import Sections, sections
from keras_qareg.export.litert.writer import to_bytes
from tests.export.litert.test_micro import IMAGES, network
from tests.helpers import tensorflow_only


@pytest.mark.one_backend
def test_sections_say_shares_of_the_whole():
    found = Sections(600, 100, 50, 0, 40, 10, 200)
    assert found.total == 1000
    assert str(found) == (
        "weights 60.0 %, tables 10.0 %, biases 5.0 %, names 4.0 %, metadata 1.0 %, records 20.0 %"
    )


@tensorflow_only
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_each_byte_is_told_of_once(normalize, tmp_path):
    model, path = network(normalize), tmp_path / "m.tflite"
    shared = qareg.share_weights(model, 16)
    kernels = sum(w.numpy().size for w in qareg.layers.kernels(model))
    biases = 4 * (24 + 24 + 30 + 10)
    cases = {
        ("float32", None): (4 * kernels, 4 * kernels),
        ("float16", None): (2 * kernels, 2 * kernels),
        ("int8", True): (kernels, kernels),
        ("codebook", None): (kernels / 2, kernels),
        ("tflm", None): (kernels / 2, kernels),
    }
    for (weights, data), (least, most) in cases.items():
        report = qareg.export.litert(shared, path, weights, IMAGES if data else None)
        found = report.sections
        assert found.total == path.stat().st_size == report.bytes, weights
        assert least <= found.weights <= most, weights
        # A half for float16; what little has two axes or is shared may stand elsewhere.
        assert found.biases == (biases / 2 if weights == "float16" else biases), weights
        assert (
            found.records > 1000
            and f"\n  bytes: weights {100 * found.weights / found.total:.1f} %" in (str(report))
        )
        assert (found.tables > 0) == (weights in ("int8", "codebook", "tflm"))
    assert describe_litert(path).startswith(f"bytes: {sections(path.read_bytes())}\n")


@tensorflow_only
def test_an_embedding_is_no_table_and_loops_have_weights(tmp_path):
    model = keras.Sequential(
        [keras.Input((6,)), layers.Embedding(50, 8), layers.SimpleRNN(5), layers.Dense(3)]
    )
    for bias in (model.layers[1].cell.bias, model.layers[2].bias):
        bias.assign(np.linspace(0.1, 1, bias.shape[0]))
    found = qareg.export.litert(model, tmp_path / "m.tflite", "float32").sections
    kernels = 50 * 8 + 8 * 5 + 5 * 5 + 5 * 3
    assert found.weights == 4 * kernels and found.tables == 0
    assert 4 * 3 <= found.biases <= 4 * (3 + 5)


@tensorflow_only
def test_names_are_not_needed_and_what_is_written_once_counts_once(tmp_path):
    """The converter names all tensors, and writes equal vectors again; our files do not."""
    path = tmp_path / "m.tflite"
    before = qareg.export.litert(network(), path, "float32").sections
    content = to_bytes(flatbuffer.read(path.read_bytes()))
    found = sections(content)
    assert found.total == len(content) and found.names < before.names / 4
    assert 0 < found.records < before.records
    assert (found.weights, found.biases) == (before.weights, before.biases)
    names = [stored.name for stored in stored_constants(flatbuffer.read(content))]
    assert len(set(names)) == len(names) and all(names)
    path.write_bytes(content)
    assert "\nconstant 0:" in describe_litert(path)


@tensorflow_only
def test_both_halves_of_indices_are_weights(tmp_path):
    """Of 12 levels, an index is a sum of one of 3 values, 20 a word, and one of 4, 16 a word."""
    model = keras.Sequential([keras.Input((64,)), layers.Dense(192)])
    shared = qareg.share_weights(model, 12, table="float32")
    found = qareg.export.litert(shared, tmp_path / "m.tflite", "codebook").sections
    assert found.weights == 4 * (-(-64 * 192 // 20) + 64 * 192 // 16)
