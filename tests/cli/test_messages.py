"""What is left of the errors and warnings of libraries."""

import logging
import tempfile
import warnings

import keras
import numpy as np
import pytest

from keras_qareg.cli.messages import CommandError, plain, quiet_libraries


def error_of(function, *arguments):
    with pytest.raises(Exception) as caught:
        function(*arguments)
    return caught.value


def test_an_error_of_keras_is_its_reason_alone():
    dense = keras.layers.Dense(2, name="a")
    dense.build((None, 3))
    model = keras.Sequential([keras.Input((3,)), dense], name="m")
    assert plain(error_of(model, np.zeros((1, 4), "float32"))) == (
        "Input 0 with name 'None' of layer 'a' is incompatible with the layer: expected axis -1 of "
        "input shape to have value 3, but received input with shape (1, 4)"
    )
    config = {"class_name": "Unheard", "config": {"name": "a"}, "module": None}
    config["registered_name"] = "Unheard"
    said = plain(error_of(keras.saving.deserialize_keras_object, config))
    assert "Unheard" in said and "{" not in said
    outer = keras.saving.serialize_keras_object(model)
    outer["config"]["layers"].append(config)
    said = plain(error_of(keras.saving.deserialize_keras_object, outer))
    assert "Could not locate class 'Unheard'." in said and "{" not in said and len(said) < 400


@pytest.mark.one_backend
def test_an_error_of_tensorflow_has_no_nodes():
    import tensorflow as tf

    multiply = tf.function(lambda a, b: tf.linalg.matmul(a, b))
    shapes = [tf.TensorSpec((None, None)), tf.TensorSpec((None, None))]
    function = multiply.get_concrete_function(*shapes)
    for call in (multiply, function):
        said = plain(error_of(call, tf.zeros((2, 3)), tf.zeros((2, 3))))
        assert "[2,3]" in said and "{{" not in said and "\n" not in said
        assert "Detected at" not in said and "__inference" not in said


@pytest.mark.one_backend
def test_colours_folders_and_line_ends_go():
    folder = tempfile.gettempdir()
    for text, said in {
        "\x1b[1mToo\n\n  large\x1b[0m": "Too large",
        f"Expected {folder}/tmpabcd1234/m.tflite": "Expected m.tflite",
        "Expected /home/me/.model-abcd1234/model.tflite to be": "Expected model.tflite to be",
        "Bad.\n\nArguments received by Dense.call():\n  • x": "Bad.",
    }.items():
        assert plain(ValueError(text)) == plain(CommandError(text)) == said
    assert plain(KeyError("a")) == "KeyError: 'a'"
    assert plain(MemoryError()) == "MemoryError"
    assert plain(ValueError()) == "ValueError"


@pytest.mark.one_backend
def test_warnings_of_the_package_take_a_line_and_others_none(capsys):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="a")])
    model.add(keras.layers.Dense(40, name="b"))
    from keras_qareg import share_weights

    with quiet_libraries():
        warnings.warn("of others", stacklevel=1)
        logging.getLogger("absl").error("of others")
        for _ in "ab":
            share_weights(model, levels=16)
    assert capsys.readouterr().err == (
        "keras-qareg: warning: Layer 'a' is left as it is: its largest kernel has 6 weights, no more "
        "than levels=16.\n"
    )
    assert not logging.root.manager.disable
