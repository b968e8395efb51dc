"""The command, in this process and as users start it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_qareg as qareg
from keras_qareg.cli import main
from tests.helpers import BACKEND, compiled, digits, small_cnn

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)


@pytest.fixture
def saved(tmp_path):
    """A compiled model and some data in files."""
    images, labels = digits(64)
    compiled(small_cnn()).save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    return tmp_path


def run(capsys, *words):
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@tensorflow_only
def test_compress_shares_tunes_and_exports(saved, capsys):
    out = saved / "small.tflite"
    words = ["compress", saved / "model.keras", "--levels", 4, "--out", out]
    status, printed, errors = run(capsys, *words, "--data", saved / "data.npz", "--epochs", 2)
    assert (status, errors) == (0, "")
    assert "Epoch 2/2" in printed and "cnn/fc/kernel" in printed
    assert f"{out.stat().st_size:,} bytes" in printed
    assert printed.count("float32, 4 values") == 3
    status, printed, _ = run(capsys, *words, "--layers", "conv", "--weights", "float16")
    assert status == 0 and "float16" in printed and "Epoch" not in printed


@tensorflow_only
def test_compress_of_an_uncompiled_model_needs_a_loss(saved, capsys):
    small_cnn().save(saved / "bare.keras")
    words = [
        "compress",
        saved / "bare.keras",
        "--out",
        saved / "a.tflite",
        "--data",
        saved / "data.npz",
    ]
    status, _, errors = run(capsys, *words)
    assert status == 2 and "Name one, for example --loss sparse_categorical_crossentropy" in errors
    status, _, _ = run(capsys, *words, "--loss", "sparse_categorical_crossentropy", "--epochs", 1)
    assert status == 0


@tensorflow_only
def test_export_and_inspect(saved, capsys):
    shared = qareg.share_weights(small_cnn(), levels=4)
    shared.save(saved / "shared.keras")
    status, printed, _ = run(capsys, "export", saved / "shared.keras", "--out", saved / "m.tflite")
    assert status == 0 and "largest difference from Keras" in printed


def test_archive_and_back(saved, capsys):
    model = qareg.strip(qareg.share_weights(small_cnn(), levels=4))
    model.save(saved / "four.keras")
    words = ["archive", saved / "four.keras", "--out", saved / "four.qareg"]
    status, printed, errors = run(capsys, *words)
    assert (status, errors) == (0, "")
    assert run(capsys, "inspect", saved / "four.qareg") == (0, printed, "")
    assert "fc/kernel" in printed and "whole file" in printed
    words = ["unarchive", saved / "four.qareg", "--out", saved / "again.keras"]
    assert run(capsys, *words)[0] == 0
    again = keras.models.load_model(saved / "again.keras")
    for old, new in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    status, _, errors = run(capsys, "unarchive", saved / "four.keras", "--out", saved / "b.keras")
    assert status == 2 and "does not begin as one" in errors
    assert not (saved / "b.keras").exists()


def test_verify(saved, capsys):
    model = keras.models.load_model(saved / "model.keras")
    qareg.strip(qareg.share_weights(model, levels=4, snap=True)).save(saved / "four.keras")
    files = [saved / "four.qareg"]
    assert run(capsys, "archive", saved / "four.keras", "--out", files[0])[0] == 0
    if BACKEND == "tensorflow":
        files.append(saved / "four.tflite")
        assert run(capsys, "export", saved / "four.keras", "--out", files[1])[0] == 0
    for file, found in zip(
        files, ("all 6 tensors, bit for bit", "2 rewritten kernels"), strict=False
    ):
        status, printed, _ = run(capsys, "verify", saved / "four.keras", file)
        assert status == 0 and "equal: " in printed and found in printed
        status, _, errors = run(capsys, "verify", saved / "model.keras", file)
        assert status == 2 and "Expected the " in errors
    status, _, errors = run(capsys, "verify", saved / "model.keras", saved / "data.npz")
    assert status == 2 and "Expected a .tflite file. Received: " in errors


def test_inspect_prints_the_table(saved, capsys):
    qareg.share_weights(small_cnn(), levels=4).save(saved / "shared.keras")
    status, printed, errors = run(capsys, "inspect", saved / "shared.keras")
    assert (status, errors) == (0, "")
    model = keras.saving.load_model(saved / "shared.keras")
    assert printed == f"{qareg.report.summary(model)}\n"


@pytest.mark.one_backend
def test_errors_take_one_line_and_leave_nothing(saved, capsys):
    (saved / "corrupt.keras").write_bytes(b"PK\x03\x04 but no archive")
    (saved / "corrupt.npz").write_bytes(b"no arrays")
    np.savez(saved / "names.npz", a=np.zeros(3))
    before = sorted(saved.iterdir())
    model, out = saved / "model.keras", saved / "m.tflite"
    for words, message in [
        (["inspect", saved / "none.keras"], "Expected a Keras model file. Received: "),
        (["inspect", saved / "corrupt.keras"], "Expected a readable .keras file. Received: "),
        (["compress", model, "--out", saved / "no" / "m.tflite"], "Expected a folder that exists."),
        (
            ["compress", model, "--out", saved / "m.bin"],
            "Expected a file name that ends in '.tflite'.",
        ),
        (["compress", model, "--levels", "1", "--out", out], "Expected `levels` to be an integer"),
        (["compress", model, "--out", out, "--data", saved / "x.npz"], "Expected a .npz file."),
        (
            ["compress", model, "--out", out, "--data", saved / "corrupt.npz"],
            "Expected a .npz file with",
        ),
        (
            ["compress", model, "--out", out, "--data", saved / "names.npz"],
            "Expected a .npz file with",
        ),
        (["export", model, "--out", saved / "no" / "m.tflite"], "Expected a folder that exists."),
    ]:
        status, _, errors = run(capsys, *words)
        assert status == 2
        assert errors.startswith(f"keras-qareg: {message}") and errors.count("\n") == 1, errors
    assert sorted(saved.iterdir()) == before


@pytest.mark.one_backend
def test_as_users_start_it(saved):
    command = Path(sys.executable).with_name("keras-qareg")
    done = subprocess.run(
        [command, "inspect", saved / "none.keras"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr == (
        f"keras-qareg: Expected a Keras model file. Received: {saved / 'none.keras'}, which does "
        "not exist\n"
    )
    usage = subprocess.run([command, "compress"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2 and "--out" in usage.stderr


def start(*words, **environment):
    """The command in a process of its own, with other variables."""
    settings = {"capture_output": True, "text": True, "check": False}
    words = [sys.executable, "-m", "keras_qareg", *map(str, words)]
    return subprocess.run(words, env={**os.environ, **environment}, **settings)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_a_backend_that_is_missing_is_named(saved):
    """By the variable, and by the configuration that Keras writes where there is none."""
    found = ", ".join(name for name in ("jax", "torch") if importlib.util.find_spec(name))
    message = (
        "keras-qareg: Expected a backend for Keras. Received: KERAS_BACKEND=tensorflow, which is "
        f"not installed. Found: {found}. Set KERAS_BACKEND={found.split(', ')[0]}, or pip install "
        "tensorflow\n"
    )
    words = ["inspect", saved / "model.keras"]
    for environment in (
        {"KERAS_BACKEND": "tensorflow"},
        {"KERAS_BACKEND": "", "KERAS_HOME": str(saved)},
    ):
        done = start(*words, **environment)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    (saved / "keras.json").write_text(json.dumps({"backend": BACKEND}))
    done = start(*words, KERAS_BACKEND="", KERAS_HOME=str(saved))
    assert (done.returncode, done.stderr) == (0, "") and "fc/kernel" in done.stdout


@pytest.mark.one_backend
def test_help_needs_no_backend():
    done = start("--help", KERAS_BACKEND="none")
    assert done.returncode == 0 and "usage: keras-qareg" in done.stdout
