"""Models that need classes of the user, and files of older Keras."""

import json
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

from keras_qareg.cli import paths
from keras_qareg.models.legacy import objects
from tests.helpers import small_cnn, tensorflow_only

NOT_COMPARED = "are not compared with those in Keras 2, because tf_keras "
MINE = """
import keras
from keras.layers import Dense
class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
def squared(values):
    return values * values
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A model with a layer and a function of `mine.py`, as Keras writes it, in both formats."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    for name, text in {
        "bad": "import nothing_such",
        "program": "raise SystemExit(2)",
        "typo": "def",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    names = {"__name__": "elsewhere"}
    exec(MINE, names)
    stack = [keras.Input((6,)), names["Twice"](), keras.layers.Dense(8, names["squared"])]
    model = keras.Sequential(stack, name="mine")
    for suffix in ("keras", "h5"):
        model.save(tmp_path / f"mine.{suffix}")
    return tmp_path


def test_custom_objects_come_from_a_module_or_a_file(mine, run):
    for name in ("mine", "mine.py", mine / "mine.py"):
        status, printed, errors = run("inspect", "mine.keras", "--custom-objects", name)
        assert (status, errors) == (0, "") and "/kernel" in printed
    words = ["archive", "mine.keras", "--out", "mine.qareg", "--custom-objects", "mine.py"]
    assert run(*words)[0] == 0
    words = ["verify", "mine.keras", "mine.qareg", "--custom-objects", "mine"]
    assert run(*words)[1] == "mine.qareg: equal: all 2 tensors, bit for bit\n"
    words = ["unarchive", "mine.qareg", "--out", "b.keras", "--custom-objects", "mine"]
    assert run(*words)[0] == 0
    assert not {"Twice", "squared"} & set(keras.saving.get_custom_objects())


def test_what_is_unknown_is_named(mine, run, refused):
    said = (
        "Expected to know 'Twice', which {} has. Received: nothing of that name. Add "
        "--custom-objects with the module or .py file that defines it"
    )
    for name in ("mine.keras", "mine.h5"):
        assert refused("inspect", name) == said.format(name)
    assert run("archive", "mine.keras", "--out", "m.qareg", "--custom-objects", "mine")[0] == 0
    assert refused("unarchive", "m.qareg", "--out", "b.keras") == said.format("m.qareg")
    expected = (
        "Expected --custom-objects to name a module that can be imported, or a .py file. Received: "
    )
    for name, why in {
        "bad.py": "ModuleNotFoundError: No module named 'nothing_such'",
        "bad": "ModuleNotFoundError: No module named 'nothing_such'",
        "program.py": "SystemExit: 2",
        "typo.py": "SyntaxError: invalid syntax (typo.py, line 1)",
    }.items():
        found = refused("inspect", "mine.keras", "--custom-objects", name)
        assert found == f"{expected}{name} ({why})"
    found = refused("inspect", "mine.keras", "--custom-objects", "absent.py")
    assert found.startswith(f"{expected}absent.py (FileNotFoundError: ")


def test_code_in_a_file_is_not_run(tmp_path, refused):
    stack = [keras.Input((6,)), keras.layers.Lambda(lambda x: x), keras.layers.Dense(2)]
    keras.Sequential(stack).save(tmp_path / "m.keras")
    assert refused("inspect", tmp_path / "m.keras") == (
        f"Expected a model without code in its file. Received: {tmp_path}/m.keras with a Lambda "
        "layer, whose code would run here. If you trust it, open it in Python with "
        "keras.saving.load_model(path, safe_mode=False) and call keras_qareg there"
    )


@pytest.fixture
def legacy(tmp_path):
    """An HDF5 file as Keras 2 wrote them, and a function that changes its configuration."""
    stack = [keras.Input((8, 8, 4)), keras.layers.DepthwiseConv2D(3, name="depth")]
    model = keras.Sequential(
        [*stack, keras.layers.Flatten(), keras.layers.Dense(3, name="out")], name="old"
    )
    model.compile("sgd", "mse", metrics=["mae"])
    model.save(tmp_path / "old.h5")

    def change(text):
        with h5py.File(tmp_path / "old.h5", "r+") as file:
            config = json.loads(file.attrs["model_config"])
            text(config["config"]["layers"])
            file.attrs["model_config"] = json.dumps(config)
            file.attrs.update(keras_version="2.4.0", backend="tensorflow")
        return tmp_path / "old.h5"

    return change


def test_files_of_keras_2(legacy, run, refused):
    path = legacy(lambda layers: layers[1]["config"].update(groups=1))
    status, printed, errors = run("inspect", path)
    assert status == 0 and "depth/kernel" in printed and NOT_COMPARED in errors
    legacy(lambda layers: layers[1]["config"].update(unheard=1))
    assert refused("inspect", path) == (
        "Expected settings that layers of Keras 3 have. Received: DepthwiseConv2D 'depth' with "
        "unheard=1."
    )
    legacy(lambda layers: layers[1].update(class_name="Mine"))
    assert refused("inspect", path) == (
        f"Expected to know 'Mine', which {path} has. Received: nothing of that name. Add "
        "--custom-objects with the module or .py file that defines it"
    )


@tensorflow_only
def test_a_loss_that_is_unknown_is_needed_for_tuning_alone(legacy, tmp_path, run, refused):
    path = legacy(lambda layers: layers[1]["config"].update(groups=1))
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["training_config"])
        config["loss"] = {"class_name": "Unheard", "config": {"fn": "unheard"}}
        file.attrs["training_config"] = json.dumps(config)
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 8, 8, 4)), y=np.zeros((4, 3)))
    words = ["compress", path, "--out", tmp_path / "m.tflite", "--levels", 4]
    status, _, errors = run(*words)
    assert status == 0 and NOT_COMPARED in errors
    status, _, errors = run(*words, "--force", "--data", tmp_path / "data.npz")
    compared, first, second = errors.splitlines()
    assert NOT_COMPARED in compared
    assert status == 2 and first.startswith(
        "keras-qareg: warning: 'old' is not compiled, because Keras 3 has not its optimizer, "
        "loss or metrics (it has no Unheard)."
    )
    assert second.endswith("Name one, for example --loss sparse_categorical_crossentropy")
    words += ["--force", "--data", tmp_path / "data.npz", "--epochs", 1, "--loss", "mse"]
    assert run(*words)[0] == 0


@pytest.mark.one_backend
def test_what_needs_tf_keras_says_so(tmp_path, monkeypatch, refused):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").touch()
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as file:
        file.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        file.writestr("config.json", "{}")
        file.writestr("model.weights.h5", "")
    monkeypatch.setattr(paths, "has_tf_keras", lambda: False)
    monkeypatch.setattr(objects, "tf_keras", lambda: None)
    assert refused("inspect", tmp_path / "saved") == (
        f"Expected a Keras model file (.keras or .h5). Received: {tmp_path}/saved, which is a "
        "TensorFlow SavedModel, which Keras 3 cannot open. If Keras 2 wrote it, tf_keras can: pip "
        "install 'keras-qareg[tf-keras]'"
    )
    assert refused("inspect", tmp_path / "old.keras") == (
        f"Expected tf_keras, to open {tmp_path}/old.keras, which Keras 2 wrote. Received: none. Install "
        "it with pip install 'keras-qareg[tf-keras]'."
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("name", ["saved", "old.keras"])
def test_what_tf_keras_wrote(tmp_path, run, name):
    k2 = pytest.importorskip("tf_keras")
    model = k2.Sequential([k2.Input((4,)), k2.layers.Dense(3, name="out")])
    model.save(tmp_path / name, save_format="tf" if name == "saved" else "keras")
    status, printed, errors = run("inspect", tmp_path / name)
    assert (status, errors) == (0, "") and "out/kernel" in printed


@pytest.mark.one_backend
def test_weights_alone_are_no_model(tmp_path, refused):
    small_cnn().save_weights(tmp_path / "m.weights.h5")
    assert refused("inspect", tmp_path / "m.weights.h5") == (
        f"Expected a Keras model file (.keras or .h5). Received: {tmp_path}/m.weights.h5, which has "
        "weights alone. Load them into the model and save that as .keras"
    )


@pytest.mark.one_backend
def test_a_damaged_model_takes_one_line(saved, refused):
    content = bytearray((saved / "model.keras").read_bytes())
    content[3000:3100] = bytes(np.random.default_rng(0).integers(0, 256, 100, "uint8"))
    (saved / "damaged.keras").write_bytes(content)
    assert refused("inspect", saved / "damaged.keras").startswith(
        f"Expected a readable Keras model file. Received: {saved}/damaged.keras ("
    )
