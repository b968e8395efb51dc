"""Configurations in files and dicts, and what is said of them."""

import math

import pytest

import keras_qareg as qareg
from keras_qareg.layers import SharedWeights
from tests.helpers import error_of, small_cnn
from tests.kinds import MODELS

pytestmark = pytest.mark.one_backend

TEXT = """
levels:
  conv: float
  "f*": 4      # a comment
  "*": 8
regularizer: {name: sine, strength: 0.5}
table: {Dense: even}
bits: 2
"""
CONFIG = {
    "levels": {"conv": "float", "f*": 4, "*": 8},
    "regularizer": {"name": "sine", "strength": 0.5},
    "table": {"Dense": "even"},
    "bits": 2,
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def test_a_file_goes_wherever_a_setting_goes(file):
    assert qareg.config.load(file) == qareg.config.load(str(file)) == CONFIG
    model = small_cnn()
    shared = qareg.share_weights(model, str(file), table=file)
    kinds = [(x.levels, x.table) for x in shared.layers if isinstance(x, SharedWeights)]
    assert kinds == [(4, "even"), (8, "even")]
    aware = qareg.quantization_aware(model, file, levels=file)
    assert [aware.get_layer(name).regularizer.levels for name in ("fc", "out")] == [4, 8]
    assert aware.get_layer("fc").regularizer.strength == 0.5
    assert qareg.wnq(model, file).get_layer("fc").quantizer.bits == 2
    assert error_of(qareg.share_weights, model, file, scale=file) == (
        f"Expected a key `scale` in {file}. Received: levels, regularizer, table, bits"
    )


def test_what_each_layer_gets_and_why(file):
    model = small_cnn()
    found = qareg.config.explain(model, file)
    assert (found.arguments, found.rows[0].values["levels"]) == (tuple(CONFIG), None)
    assert found.rows[1].reasons == {
        "levels": "pattern 'f*'",
        "regularizer": "for all",
        "table": "type Dense",
        "bits": "for all",
    }
    assert "Sine(levels=16, strength=0.5)" in str(found)
    assert found.rows[0].reasons["table"] == "default: nothing matches"
    assert str(qareg.config.explain(model, {"levels": file, "bits": {"Dense": 1}})) == (
        "layer    type  weights  levels           why   bits                             why\n"
        "-----  ------  -------  ------  ------------  -----  ------------------------------\n"
        "conv   Conv2D       54   float   name 'conv'  float  left as it is: nothing matches\n"
        "fc      Dense      864       4  pattern 'f*'      1                      type Dense\n"
        "out     Dense      160       8           '*'      1                      type Dense"
    )
    assert str(found) == str(qareg.config.explain(model, CONFIG))


def test_what_is_wrong_with_a_configuration(tmp_path):
    file, model = tmp_path / "c.yml", small_cnn()
    keys = (
        "['levels', 'regularizer', 'table', 'scale', 'group_size', 'bits', 'activation_bits', "
        "'target_sparsity']"
    )
    cases = {
        "level: 4": f"Expected a configuration with some of the keys {keys}. Received unknown keys: "
        "'level' (did you mean 'levels'?)",
        "- 4": f"Expected a dict with some of the keys {keys}. Received: [4]",
        "": f"Expected a dict with some of the keys {keys}. Received: None",
        "levels: {on: 4}": "Expected texts as the keys of `levels`. Received: [True]. Put them in "
        "quotes.",
        "levels: {a: 4, a: 8}": "Expected each key once. Received twice or more: ['a']",
        "table: int4": "Expected `table` to be one of ('int8', 'even', 'float32'). Received: "
        "table='int4'",
        "levels: {a: 1}": "Key 'a': Expected `levels` to be an integer from 2 to 256. Received: "
        "levels=1",
        "bits: {a: 5}": "Key 'a': Expected `bits` to be an integer from 1 to 4. Received: bits=5",
    }
    for text, said in cases.items():
        file.write_text(text)
        assert error_of(qareg.config.load, file) == f"{file}: {said}"
    file.write_text("levels: {*: 4}")
    assert error_of(qareg.config.load, file).startswith(
        f"{file}: Expected YAML, with keys such as '*' or 'block_*' in quotes. Received: while"
    )
    absent = tmp_path / "absent.yaml"
    with pytest.raises(
        FileNotFoundError, match="Expected a YAML file. Received: .*, which does not"
    ):
        qareg.share_weights(model, absent)
    assert error_of(qareg.config.load, tmp_path / "c.json") == (
        f"Expected a YAML file, .yaml or .yml. Received: {tmp_path / 'c.json'}"
    )
    assert error_of(qareg.config.explain, model, 4) == (
        f"Expected a dict with some of the keys {keys}. Received: 4"
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_of_every_kind_of_model_has_a_row(name):
    make, _, names = MODELS[name]
    model = make()
    found = qareg.config.explain(model, {"levels": 4, "bits": 2})
    assert [row.name for row in found.rows] == names
    assert {row.values["levels"] for row in found.rows} == {4}
    kernels = [weight.shape for weight in model.weights if weight.name == "kernel"]
    assert sum(row.weights for row in found.rows) == sum(map(math.prod, kernels))
