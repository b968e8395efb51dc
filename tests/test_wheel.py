"""The wheel in a bare environment: what a user gets from `pip install`."""

import os
import subprocess
import sys
import venv

import keras
import numpy as np
import pytest

from tests.helpers import ROOT, digits

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def called(*words, cwd):
    """What a program prints, with nothing of this repository on its path."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, capture_output=True, text=True, env=kept, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_makes_a_model_small(tmp_path):
    pack = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT)
    called(sys.executable, *pack, cwd=tmp_path)
    (wheel,) = tmp_path.glob("keras_qareg-*.whl")
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    called(python, *PIP, "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)

    images, labels = digits(512)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images, labels, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "train.npz", x=images, y=labels)

    # The four commands of a new user: install (above), make small, verify, look.
    command = tmp_path / "bare" / "bin" / "keras-qareg"
    floats = called(command, "export", "model.keras", "--out", "float.tflite", cwd=tmp_path)
    assert "bytes" in floats
    words = ["--levels", "16", "--data", "train.npz", "--epochs", "2", "--weights", "smallest"]
    called(command, "compress", "model.keras", *words, "--out", "small.tflite", cwd=tmp_path)
    sizes = [(tmp_path / f"{name}.tflite").stat().st_size for name in ("float", "small")]
    assert sizes[1] < 0.2 * sizes[0]
    program = (
        "import keras, keras_qareg as qareg; model = keras.saving.load_model('model.keras');"
        "file = qareg.export.save_archive(qareg.share_weights(model, 16, verbose=0), 'a.qareg');"
        "print(qareg.export.load_archive(file).count_params(), qareg.__file__)"
    )
    parameters, where = called(python, "-c", program, cwd=tmp_path).split()[-2:]
    assert int(parameters) == model.count_params()
    assert where.startswith(str(tmp_path / "bare"))
