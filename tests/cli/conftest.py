"""A model and data in files, and the command in this process."""

import keras
import numpy as np
import pytest

from keras_qareg.cli import main
from tests.helpers import compiled, digits, small_cnn


@pytest.fixture
def saved(tmp_path):
    """A folder with a compiled model and some data."""
    images, labels = digits(64)
    compiled(small_cnn()).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    return tmp_path


@pytest.fixture
def run(capsys):
    """Runs the command with some words: its status, and what it printed."""

    def start(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return start


@pytest.fixture
def refused(run):
    """Runs the command with words that are wrong, and returns the one line that it says."""

    def start(*words, status=2):
        found, printed, errors = run(*words)
        assert (found, printed) == (status, "")
        assert errors.startswith("keras-qareg: ") and errors.count("\n") == 1
        return errors.removeprefix("keras-qareg: ").rstrip("\n")

    return start


@pytest.fixture
def two_of_each(tmp_path):
    """A model with two inputs and two outputs, and data for it by their names."""
    keras.utils.set_random_seed(0)
    one, two = (keras.Input((6,), name=name) for name in "ab")
    joined = keras.layers.Concatenate()([one, two])
    outputs = [keras.layers.Dense(n, name=name)(joined) for name, n in (("p", 5), ("q", 4))]
    model = keras.Model([one, two], outputs)
    model.compile("sgd", ["mse", "mae"])
    model.save(tmp_path / "lists.keras")
    named = keras.Model({"a": one, "b": two}, dict(zip("pq", outputs, strict=True)))
    named.compile("sgd", {"p": "mse", "q": "mae"})
    named.save(tmp_path / "dicts.keras")
    values = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    arrays = {"a": values, "b": -values, "p": values[:, :5], "q": values[:, :4]}
    np.savez(tmp_path / "all.npz", **arrays, sample_weight=np.ones(32), other=np.zeros(3))
    np.savez(tmp_path / "some.npz", a=values, p=values)
    return tmp_path
