"""`compress` with budgets, gates, and what it writes for programs."""

import json

import keras
import numpy as np
import pytest

import keras_qareg as qareg
from keras_qareg.cli import options
from keras_qareg.cli.gate import Gate
from keras_qareg.options import METHODS
from tests.helpers import compiled, digits, predict, small_cnn, tensorflow_only


@pytest.fixture
def trained(tmp_path):
    """A folder with a model that knows some digits, data with labels and without, and others."""
    images, labels = digits(320)
    model = compiled(small_cnn())
    model.optimizer.learning_rate = 0.3
    model.fit(images, labels, epochs=8, verbose=0)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "data.npz", x=images[:128], y=labels[:128])
    np.savez(tmp_path / "inputs.npz", x=images[:128])
    np.savez(tmp_path / "others.npz", x=images[128:], y=labels[128:])
    return tmp_path


def compress(folder, out, *words):
    """The words that compress the model of a folder."""
    return ["compress", folder / "model.keras", "--out", folder / out, *words]


@tensorflow_only
def test_a_file_of_a_budget_with_a_record(trained, run):
    words = compress(trained, "m.tflite", "--data", trained / "inputs.npz", "--epochs", 1)
    words += [
        "--target-bytes",
        "4k",
        "--weights",
        "smallest",
        "--json",
        trained / "m.json",
        "--report",
    ]
    status, printed, errors = run(*words)
    assert (status, errors) == (0, "")
    size = (trained / "m.tflite").stat().st_size
    assert 3000 < size <= 4000
    assert printed.startswith(f"Planning levels on {trained}/inputs.npz\n")
    said = (
        "whole file: smallest",
        "levels as said above; without targets the float model teaches\n",
        "tuned  " if "tuned  " in printed else "recalibrated  ",
        "largest difference from Keras",
    )
    places = [printed.index(text) for text in said]
    assert places == sorted(places)
    assert printed.splitlines()[-1].startswith(f"{trained}/m.tflite: {size:,} bytes, smallest; div")
    found = json.loads((trained / "m.json").read_text())
    assert found["plan"]["bytes"] <= 4000 and found["levels"] is found["accuracy"] is None
    assert found["plan"]["kernels"][0]["path"] == "cnn/conv/kernel"
    assert found["stages"][0]["name"] == "float" and found["before"]["divergence"] == 0
    assert found["after"]["divergence"] > 0 and found["file"]["bytes"] == size
    assert found["file"]["path"] == f"{trained}/m.tflite"
    assert found["file"]["proof"]["max_output_difference"] < 1e-4
    assert sorted(path.suffix for path in trained.iterdir()) == [
        *(".html", ".json", ".keras", ".npz", ".npz", ".npz", ".tflite"),
    ]
    page = (trained / "m.html").read_text()
    assert "What runs where" in page and "the same levels for all kernels" in page


def test_an_archive_of_a_ratio_in_one_line(trained, run):
    words = compress(trained, "m.qareg", "--data", trained / "data.npz", "--epochs", 1)
    words += ["--method", "kmeans"]  # which leaves indices, and so their entropy, as planned
    words += ["--validation-data", trained / "others.npz", "--max-accuracy-drop", 50, "--quiet"]
    words += ["--target-ratio", 0.5, "--json", trained / "m.json"]
    status, printed, errors = run(*words)
    assert (status, errors) == (0, "")
    found, size = json.loads((trained / "m.json").read_text()), (trained / "m.qareg").stat().st_size
    weights = keras.saving.load_model(trained / "model.keras").count_params()
    assert size == found["file"]["bytes"] <= 0.5 * 4 * weights == 0.5 * found["file"]["float_bytes"]
    assert found["file"]["proof"] == "equal: all 6 tensors, bit for bit"
    before, after = (100 * found["accuracy"][name]["accuracy"] for name in ("float", "compressed"))
    assert printed == (
        f"{trained}/m.qareg: {size:,} bytes, archive; accuracy {after:.2f} % (float: {before:.2f} %)\n"
    )
    images, labels = digits(320)
    for path, wanted in (("model.keras", before), ("m.qareg", after)):
        load = qareg.export.load_archive if path == "m.qareg" else keras.saving.load_model
        right = predict(load(trained / path), images[128:]).argmax(-1) == labels[128:]
        assert 100 * right.mean() == pytest.approx(wanted)


@pytest.mark.one_backend
def test_a_gate_keeps_a_worse_model_out(trained, run):
    words = compress(trained, "m.qareg", "--levels", 2, "--json", trained / "m.json", "--quiet")
    words += ["--validation-data", trained / "others.npz", "--max-accuracy-drop", 0]
    status, printed, errors = run(*words)
    found = json.loads((trained / "m.json").read_text())
    before, after = (100 * found["accuracy"][name]["accuracy"] for name in ("float", "compressed"))
    assert (status, printed) == (1, "") and errors == (
        "keras-qareg: Expected to lose at most 0 points of accuracy. Received: accuracy "
        f"{after:.2f} % (float: {before:.2f} %), {before - after:.2f} points less. No model is "
        "written\n"
    )
    assert found["file"] is None and not found["accuracy"]["passed"]
    assert not (trained / "m.qareg").exists()


@pytest.mark.one_backend
def test_a_dry_run_is_the_plan_alone(trained, run, monkeypatch):
    monkeypatch.setattr("keras_qareg.compressing.compressed", None)
    words = compress(trained, "m.qareg", "--data", trained / "inputs.npz", "--target-ratio", 0.5)
    status, printed, errors = run(*words, "--dry-run", "--json", trained / "plan.json")
    assert (status, errors) == (0, "") and printed.startswith("kernel  ")
    assert printed.splitlines()[-1].startswith("whole file: archive")
    found = json.loads((trained / "plan.json").read_text())["plan"]
    assert found["form"] == "archive" and f"{found['bytes']:,}" in printed.splitlines()[-1]
    assert len(found["kernels"]) == 3 and not (trained / "m.qareg").exists()


@pytest.mark.one_backend
def test_a_file_that_training_made_too_large_is_not_kept(trained, refused, monkeypatch):
    before = sorted(trained.iterdir())

    def swapped(model, data, validation_data, options):
        return qareg.compressing.Compressed(qareg.share_weights(model, levels=2, layers="conv"))

    monkeypatch.setattr("keras_qareg.compressing.compressed", swapped)
    words = compress(trained, "m.qareg", "--data", trained / "inputs.npz", "--quiet")
    said = refused(*words, "--target-bytes", "3k", "--json", trained / "m.json")
    assert said.startswith("Expected a file of at most 3,000 bytes. Received: ")
    assert "were trained, so it is not kept. Ask for about " in said
    assert sorted(trained.iterdir()) == before


@pytest.mark.one_backend
def test_what_does_not_fit_the_model(trained, refused):
    np.savez(trained / "images.npz", images=np.zeros((5, 8, 8, 1)))
    words = compress(trained, "m.qareg", "--data")
    assert refused(*words, trained / "images.npz") == (
        f"Expected --data to hold x, the input of the model. Received: {trained}/images.npz, which "
        "holds images"
    )
    assert refused(*words, trained / "inputs.npz", "--loss", "mse") == (
        "Expected examples with y, the targets, with --loss. Received: none"
    )
    words = compress(trained, "m.qareg", "--max-accuracy-drop", 1, "--validation-data")
    assert refused(*words, trained / "inputs.npz") == (
        f"Expected --validation-data to hold y, the targets. Received: {trained}/inputs.npz, which "
        "holds x"
    )
    small_cnn().save(trained / "model.keras")
    np.savez(trained / "values.npz", x=np.zeros((5, 8, 8, 1)), y=np.zeros((5, 10)))
    assert refused(*words, trained / "values.npz", "--loss", "mse") == (
        "Expected a model compiled with an accuracy metric or a loss of classification, with "
        "--max-accuracy-drop. Received: 'cnn' with the loss mean_squared_error"
    )


@pytest.mark.one_backend
def test_accuracies_are_those_of_keras():
    """By the metrics of the model, of several outputs too, and by its loss alone."""
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(64, 6)).astype("float32"), random.integers(0, 2, (64, 1))
    keras.utils.set_random_seed(0)
    for loss, name in (("binary_crossentropy", "sigmoid"), ("categorical_crossentropy", "softmax")):
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation=name)])
        targets = labels if name == "sigmoid" else keras.utils.to_categorical(labels, 3)
        targets = np.repeat(targets, 3, 1) if name == "sigmoid" else targets
        found = []
        for metrics in (None, ["accuracy"], ["binary_accuracy"]):
            model.compile("sgd", loss, metrics=metrics)
            found.append(Gate(model, (inputs, targets, None), 1, 32).before)
        (same,) = found[2 if name == "sigmoid" else 1].values()
        assert found[0] == {"accuracy": pytest.approx(same)}
    logits = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    logits.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    gate = Gate(logits, (inputs, labels, None), 1, 32)
    right = (predict(logits, inputs) > 0) == labels
    assert gate.before == {"accuracy": pytest.approx(right.mean())}
    verdict = gate.verdict(logits)
    assert verdict.drop == 0 and verdict.passed


@pytest.mark.one_backend
def test_words_are_those_of_the_package():
    from keras_qareg.export.litert.convert import WEIGHTS
    from keras_qareg.numerics.tables import SCALES, TABLES

    assert options.METHODS == METHODS
    assert sorted(options.WEIGHTS) == sorted(WEIGHTS)
    assert (options.TABLES, options.SCALES) == (TABLES, SCALES)


def test_dead_channels_go_first(tmp_path, run):
    model = small_cnn()
    layer = model.get_layer("fc")
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel * (np.arange(16) < 10), bias])
    model.save(tmp_path / "model.keras")
    words = ["--shrink", "--levels", 4, "--json", tmp_path / "m.json"]
    status, printed, errors = run(*compress(tmp_path, "m.qareg", *words))
    assert (status, errors) == (0, "")
    assert "Removing channels that do nothing: 1,110 weights become 720\n" in printed
    assert json.loads((tmp_path / "m.json").read_text())["shrink"] is True
    smaller = qareg.export.load_archive(tmp_path / "m.qareg")
    assert smaller.get_layer("fc").units == 10
