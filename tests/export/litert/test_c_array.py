"""`.tflite` files as C++ source: compiled, where there is a compiler, and read back."""

import importlib.util
import re
import shutil
import subprocess

import keras
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.export.litert import c_array as module
from keras_qareg.export.litert.c_array import identifier
from keras_qareg.export.litert.micro_proof import measured_arena
from tests.export.litert.test_micro import IMAGES, network
from tests.helpers import tensorflow_only

COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
MICRO = importlib.util.find_spec("tflite_micro") is not None
PROGRAM = """
#include <cstdint>
#include <cstdio>
#include "{header}"
struct Resolver {{
  int added = 0;
  {methods}
}};
int main() {{
  Resolver resolver;
  const bool aligned = reinterpret_cast<std::uintptr_t>({name}_data) % 16 == 0;
  if (!aligned || !{name}_add_operators(resolver) || resolver.added != {count}) return 1;
  if ({arena}) return 2;
  return std::fwrite({name}_data, 1, {name}_data_size, stdout) != {name}_data_size;
}}
"""


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model", "model"),
        ("k=4, even", "k_4_even"),
        ("8bit", "model_8bit"),
        ("__a__b", "a_b"),
        ("größe", "gr_e"),
        ("..", "model"),
    ],
)
def test_names_are_valid_in_c(text, name):
    assert identifier(text) == name


@pytest.mark.one_backend
def test_all_that_tflite_micro_adds_are_operators():
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {name: module._added(name) for name in vars(BuiltinOperator) if name[0].isupper()}
    assert {found for found in names.values() if found} == set(module._ADDED.values())
    assert (names["CONV_2D"], names["PADV2"], names["CUMSUM"]) == ("Conv2D", "PadV2", "CumSum")
    assert names["CUSTOM"] is names["TOPK_V2"] is None
    assert module._added("TFLM_DECODE") == "Decode" and module._added("ethos-u") == "EthosU"


@tensorflow_only
@pytest.mark.parametrize("data", [None, IMAGES], ids=["float", "int8"])
def test_the_source_has_the_bytes_of_the_file(data, tmp_path):
    path = tmp_path / "key words-4.tflite"
    shared = qareg.share_weights(network(), 4)
    ends = {} if data is None else {"input_type": "int8", "output_type": "int8"}
    report = qareg.export.litert(shared, path, "tflm", data, **ends)
    found = qareg.export.c_array(path)
    assert found.source.name == "key words-4.cc" and found.header.name == "key words-4.h"
    assert {"Conv2D", "Decode", "DepthwiseConv2D", "FullyConnected", "Reshape"} <= set(
        found.operators
    )
    header = found.header.read_text()
    assert f"tflite::MicroMutableOpResolver<{len(found.operators)}> resolver;" in header
    # That of the report, which ran on other inputs.
    assert found.arena_bytes == report.arena_bytes and (report.arena_bytes is not None) == MICRO
    if MICRO:
        assert f"constexpr std::size_t key_words_4_arena_size = {report.arena_bytes};" in header
        assert re.search(r"tried that it ran in: tflite-micro [\w.]+, \w+ \w+\.\n", header)
        assert f"an arena of {report.arena_bytes:,} bytes" in str(found)
    if COMPILER is None:
        pytest.skip("there is no C++ compiler")
    methods = "\n".join(f"int Add{name}() {{ return ++added, 0; }}" for name in found.operators)
    arena = f"key_words_4_arena_size != {found.arena_bytes}" if MICRO else "false"
    program = PROGRAM.format(
        header=found.header.name,
        methods=methods,
        count=len(found.operators),
        name="key_words_4",
        arena=arena,
    )
    (tmp_path / "main.cc").write_text(program)
    words = [COMPILER, "-std=c++11", "-Wall", "-Wextra", "-Werror", "main.cc", found.source.name]
    subprocess.run([*words, "-o", "main"], cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "main"], capture_output=True, check=True)
    assert done.stdout == path.read_bytes()


@tensorflow_only
def test_files_are_replaced_on_request_alone_and_nothing_half_written_stays(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    qareg.export.litert(model, path)
    monkeypatch.setattr(module, "measured_arena", lambda content: (None, "no such program"))
    found = qareg.export.c_array(path, "mine")
    assert "// mine_arena_size: not measured, no such program.\n" in found.header.read_text()
    assert "arena_size =" not in found.header.read_text() and "not measured" in str(found)
    found.header.unlink()
    before = found.source.read_text()
    with pytest.raises(FileExistsError) as error:
        qareg.export.c_array(path)
    assert str(error.value) == (
        f"Expected a new file. Received: {tmp_path / 'm.cc'}, which exists. Pass force=True to "
        "replace it"
    )
    assert found.source.read_text() == before and not found.header.exists()
    found.header.mkdir()
    with pytest.raises(FileExistsError, match="which is a folder"):
        qareg.export.c_array(path, force=True)
    found.header.rmdir()
    assert "m_data" in qareg.export.c_array(path, force=True).source.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.cc", "m.h", "m.tflite"]
    with pytest.raises(ValueError, match="Expected a name in C, such as 'a_b'. Received: 'a-b'"):
        qareg.export.c_array(path, "a-b", force=True)
    path.write_bytes(b"PK and more")
    with pytest.raises(ValueError, match="which does not begin as one"):
        qareg.export.c_array(path, force=True)


@tensorflow_only
def test_operators_that_tflite_micro_has_not_are_named(tmp_path):
    inputs = keras.Input((4, 4))
    outputs = keras.layers.Lambda(lambda x: keras.ops.sort(x))(inputs)
    qareg.export.litert(keras.Model(inputs, outputs), tmp_path / "m.tflite")
    with pytest.raises(
        ValueError, match=r"TFLite Micro has. Received: .* with TOPK_V2\. Write the"
    ):
        qareg.export.c_array(tmp_path / "m.tflite")
    assert [file.name for file in tmp_path.iterdir()] == ["m.tflite"]


@tensorflow_only
@pytest.mark.skipif(not MICRO, reason="needs tflite-micro")
def test_a_file_that_does_not_run_has_no_arena(tmp_path):
    """Operators that decode two bits are none that this runtime has a kernel for."""
    path = tmp_path / "m.tflite"
    model = keras.Sequential([keras.Input((40,)), layers.Dense(30)])
    qareg.export.litert(qareg.share_weights(model, 4, table="even"), path, "int2-exact")
    arena, why = measured_arena(path.read_bytes())
    assert arena is None and why.startswith("TFLite Micro does not run it here (")
