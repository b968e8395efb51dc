"""What is in the file of a model beside its numbers: each thing once, and nothing that is not read."""

import json
import zlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import flatbuffer, writer
from keras_qareg.export.litert.runtime import run_by_name
from tests.helpers import tensorflow_only


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network, its float32 file, and the same written by us."""
    keras.utils.set_random_seed(0)
    stack = [keras.Input((12, 12, 3), name="image")]
    for name in "abc":
        stack += [layers.Conv2D(8, 3, padding="same", name=name), layers.ReLU()]
    stack += [layers.Flatten(), layers.Dense(8, name="d"), layers.Softmax()]
    model = keras.Sequential(stack, name="net")
    path = tmp_path_factory.mktemp("files") / "model.tflite"
    qareg.export.litert(model, path, "float32")
    content = path.read_bytes()
    return content, writer.compacted(content, "float32")


@tensorflow_only
def test_the_same_is_computed(files):
    image = {"image": np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype("float32")}
    for delegate in (True, False):
        before, after = (run_by_name(content, image, delegate)["output_0"] for content in files)
        np.testing.assert_array_equal(before, after)
    assert len(files[1]) < len(files[0]) - 900


@tensorflow_only
def test_ends_keep_their_names_and_constants_are_named_by_the_metadata(files):
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    before, after = (read_model_from_bytearray(bytearray(content)) for content in files)
    (graph,), (old,) = after.subgraphs, before.subgraphs
    ends = {*graph.inputs, *graph.outputs}
    assert {i for i, tensor in enumerate(graph.tensors) if tensor.name} == ends
    assert [graph.tensors[i].name for i in ends] == [old.tensors[i].name for i in ends]
    assert [s.signatureKey for s in after.signatureDefs] == [b"serving_default"]
    (entry,) = (m for m in after.metadata if m.name == flatbuffer.METADATA)
    names = json.loads(zlib.decompress(bytes(after.buffers[entry.buffer].data)))
    assert [name[:2] for name in names] == [[0, c.tensor] for c in flatbuffer.constants(after)]
    again = flatbuffer.read(files[1]).subgraphs[0]
    assert all(again.tensors[place].name == name.encode() for _, place, name, _ in names)
    assert {m.name for m in after.metadata} == {flatbuffer.METADATA, b"min_runtime_version"}


@tensorflow_only
def test_nothing_is_written_twice_or_not_at_all(files):
    from ai_edge_litert import schema_py_generated as schema

    content = files[1]
    model = flatbuffer.read(content)
    assert all(tensor.quantization is None for tensor in model.subgraphs[0].tensors)
    held = [bytes(b.data) for b in model.buffers if b.data is not None]
    assert len(set(held)) == len(held) == len(model.buffers) - 1
    used = {operator.opcodeIndex for operator in model.subgraphs[0].operators}
    assert used == set(range(len(model.operatorCodes)))
    packed = schema.Model.GetRootAs(content, 0)
    graph = packed.Subgraphs(0)
    # The activations of the convolutions are one record: equal shapes, no names.
    places = [graph.Tensors(i)._tab.Pos for i in range(graph.TensorsLength())]
    assert len(set(places)) < len(places)
    for place in range(packed.BuffersLength()):
        buffer = packed.Buffers(place)
        if buffer.DataLength():
            assert buffer._tab.Vector(buffer._tab.Offset(4)) % writer.ALIGNMENT == 0


@pytest.mark.one_backend
def test_what_only_looks_alike_is_written_apart():
    """A float 1.0 and an integer 1 in the same place; vectors of other widths with the same bytes."""
    builder = writer.sharing_builder(16)

    def table(slot):
        builder.StartObject(2)
        slot(0, 1, 0)
        return builder.EndObject()

    whole, again = table(builder.PrependInt32Slot), table(builder.PrependInt32Slot)
    assert whole == again != table(builder.PrependFloat32Slot)
    wide, narrow = (
        builder.CreateNumpyVector(np.array(values, kind))
        for values, kind in (([1, 0], "int32"), ([1], "int64"))
    )
    assert wide != narrow and wide == builder.CreateNumpyVector(np.array([1, 0], "int32"))
    texts = [builder.CreateString(text) for text in ("a", "b", "a")]
    assert texts[0] == texts[2] != texts[1]
    before = builder.Offset()
    for first, second in ((texts[0], texts[1]), (texts[1], texts[0]), (texts[0], texts[1])):
        builder.StartVector(4, 2, 4)
        builder.PrependUOffsetTRelative(second)
        builder.PrependUOffsetTRelative(first)
        builder.EndVector()
    assert builder.Offset() - before == 24  # two vectors of three words
