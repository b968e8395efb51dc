"""The studies of issue-sized runs, made tiny: they run, resume, and say what they found."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

import keras_qareg as qareg
from examples import architectures
from examples.study import Study, mean_and_deviation, written
from examples.training import FallingRate
from tests.helpers import run, slow_but_on_tensorflow


@pytest.mark.one_backend
def test_a_study_goes_on_where_it_stopped(tmp_path, capsys):
    path, calls = tmp_path / "deep" / "rows.jsonl", []

    def compute(cell):
        calls.append(cell["seed"])
        if cell["seed"] == 2 and len(calls) == 3:
            raise KeyboardInterrupt
        return {"tuned": 90.0 + cell["seed"]}

    cells = [{"method": "a", "seed": seed} for seed in range(4)]
    with pytest.raises(KeyboardInterrupt):
        Study(path, ("method", "seed")).run(cells, compute, "tuned")
    with path.open("a") as file:
        file.write('{"method": "a", "se')  # killed while it wrote
    rows = Study(path, ("method", "seed")).run(cells, compute, "tuned")
    assert calls == [0, 1, 2, 2, 3] and [row["tuned"] for row in rows] == [90, 91, 92, 93]
    assert {"commit", "backend", "device"} <= set(rows[-1])
    assert "[2/2] seed 3: tuned 93.00 (about 0 s left)" in capsys.readouterr().out
    assert mean_and_deviation(rows, "tuned") == (91.5, pytest.approx(1.29, abs=0.01))
    assert written(rows[:1], "tuned") == "90.00"
    assert written(rows, "tuned", 1) == "91.5 ± 1.3"
    drawn = Study(path, ("method", "seed")).tabulated(
        [*cells, {"method": "b", "seed": 0}], compute, "tuned", str, draw=True
    )
    assert drawn == rows and len(calls) == 5, "what was not run stays so"
    again = Study(path, ("method", "seed"))
    assert again.rows == rows, "half a line spoils no row behind it"
    anew = Study(path, ("method", "seed"), anew=True)
    assert anew.run(cells[:1], lambda cell: {"tuned": 1.0}, "tuned")[0]["tuned"] == 1.0
    assert [row["tuned"] for row in Study(path, ("method",)).rows] == [1.0]
    assert sorted(file.name for file in path.parent.iterdir()) == ["rows.jsonl", "rows.txt"]
    with pytest.raises(ValueError, match="Received none"):
        Study(path, ("method",)).tabulated([{"method": "b"}], compute, "tuned", str, draw=True)


def test_the_learning_rate_falls_step_by_step():
    seen = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            seen.append(float(self.model.optimizer.learning_rate))

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.5), "mse")
    callbacks = [FallingRate(0.5), Rates()]
    model.fit(np.ones((4, 2)), np.ones(4), batch_size=1, epochs=2, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(seen, [0.5] * 4 + [0.5, 0.375, 0.25, 0.125], rtol=1e-6)


def write_pets(folder, count=8):
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for kind, color in (("cat", 60), ("dog", 180)):
            (folder / f"pets-{part}" / kind).mkdir(parents=True)
            for i in range(count):
                pixels = random.normal(color, 30, (32, 32, 3)).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).save(folder / f"pets-{part}" / kind / f"{i}.png")


@slow_but_on_tensorflow
# The slow network has normalization, dropout and more convolutions.
@pytest.mark.parametrize("network", ["lenet", pytest.param("alexnet", marks=pytest.mark.slow)])
def test_the_regularizer_experiment_runs_and_resumes(network, tmp_path):
    write_pets(tmp_path)
    words = ["-m", "examples.cifar10_regularizers", "--network", network, "--width", 0.05]
    words += ["--dataset", "pets", "--data-dir", tmp_path, "--epochs", 3, "--tuning-epochs", 1]
    words += ["--seeds", 1, "--levels", 4, "--batch-size", 16, "--augment"]
    words += ["--methods", "k-means", "NearestExponential", "--out", tmp_path / "out"]
    printed = run(*words, "--layers", "conv")
    assert "[2/2] method NearestExponential: tuned" in printed
    printed = run(*words, "--layers", "conv", "all")
    assert "[1/2] layers all, method k-means: tuned" in printed
    lines = (tmp_path / "out" / f"cifar10_regularizers_{network}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["layers"], row["method"]) for row in rows] == [
        (layers, method)
        for layers in ("conv", "all")
        for method in ("k-means", "NearestExponential")
    ]
    for row in rows:
        assert 0 <= row["bits"] <= 2 and 0 <= row["tuned"] <= 100 and row["archive"] > 1000
    assert rows[0]["archive"] > rows[2]["archive"]
    assert len({row["float"] for row in rows}) == 1
    picture = tmp_path / "out" / f"cifar10_regularizers_{network}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    table = picture.with_suffix(".txt").read_text()
    assert table in printed
    printed = run(*words, "--layers", "conv", "--methods", "Sine", "--straight-through")
    assert "[1/1]" in printed
    file = tmp_path / "out" / f"cifar10_regularizers_{network}_straight_through.jsonl"
    (row,) = map(json.loads, file.read_text().splitlines())
    assert row["straight_through"] and row["trained"] == row["shared"], "sharing changes nothing"
    assert table in run(*words, "--layers", "conv", "all", "dense", "--draw")


@pytest.mark.one_backend
def test_ratios_are_to_k_means_of_the_same_seed():
    from examples.cifar10_regularizers import relative, tabulate

    cell = {"layers": "all", "levels": 4, "float": 70.0, "trained": 60.0, "bits": 2.0, "archive": 9}
    rows = [
        {**cell, "method": "k-means", "seed": 0, "shared": 20.0, "tuned": 50.0},
        {**cell, "method": "k-means", "seed": 1, "shared": 10.0, "tuned": 40.0},
        {**cell, "method": "Sine", "seed": 1, "shared": 50.0, "tuned": 60.0},
    ]
    assert [(row["before"], row["after"]) for row in relative(rows)] == [
        (0.4, 1),
        (0.25, 1),
        (1.25, 1.5),
    ]
    assert "1.5000" in tabulate(rows).splitlines()[-1], "not the ratio of the means, 60 / 45"
    assert np.isnan(relative(rows[2:])[0]["after"]), "without k-means there is none"


@slow_but_on_tensorflow
@pytest.mark.parametrize(
    ("more", "cells"),
    [
        (["LSQ"], 1),
        # Five networks more, and 3-bit inputs.
        pytest.param(["WNQ uniform", "LSQ", "--inputs", 3], 6, marks=pytest.mark.slow),
    ],
    ids=["short", "long"],
)
def test_the_wnq_experiment_runs_and_resumes(more, cells, tmp_path):
    write_pets(tmp_path)
    out = tmp_path / "out"
    words = ["-m", "examples.cifar_wnq", "--network", "lenet", "--width", 0.1, "--seeds", 1]
    words += ["--dataset", "pets", "--data-dir", tmp_path, "--epochs", 2, "--batch-size", 16]
    words += ["--start", "float", "--bits", 2, "--augment", "--weight-decay", 1e-4, "--out", out]
    printed = run(*words, "--methods", "WNQ", "LQ-Nets")
    assert "[3/3]" in printed
    printed = run(*words, "--methods", "WNQ", "LQ-Nets", *more)
    assert f"[{cells}/{cells}]" in printed, "three cells were there"
    rows = [json.loads(line) for line in (out / "cifar_wnq.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows[:3]] == ["float", "WNQ", "LQ-Nets"]
    # This network has no batch normalization to recalibrate after the last epoch.
    assert all(len(row["curve"]) == 2 and row["curve"][-1] == row["accuracy"] for row in rows)
    assert all(row["weight_decay"] == 1e-4 for row in rows)
    assert all(0 < error < 1 for error in rows[1]["errors"].values())
    assert len(rows[1]["errors"]) == 2, "all kernels but the first and the last"
    for name in ("curves", "errors", "histograms"):
        assert (out / f"cifar_wnq_{name}.png").read_bytes().startswith(b"\x89PNG")
    if keras.backend.backend() == "tensorflow":
        exports = (out / "cifar_wnq_export.jsonl").read_text().splitlines()
        for row in map(json.loads, exports):
            assert row["litert"] == row["keras"] and row["bytes"] < row["float_bytes"]
        assert len(exports) == 1 + ("WNQ uniform" in more)


@pytest.fixture
def imagenet():
    """A few random images instead; and the settings of Keras that the program changes are put back."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=8):
        yield
    keras.config.set_dtype_policy("float32")


@slow_but_on_tensorflow
@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("blocks", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_imagenet_is_trained_on_and_written(blocks, tmp_path, monkeypatch):
    words = ["-m", "examples.imagenet_wnq", "--batch-size", 4, "--width", 0.05, "--epochs", 2]
    words += ["--bits", 2, "--out", tmp_path]
    if blocks == 1:
        stages = architectures._residual_stages
        short = lambda x, channels, _: stages(x, channels[:1], 1)  # noqa: E731
        monkeypatch.setattr(architectures, "_residual_stages", short)
    printed = run(*words)
    assert "Epoch 2/2" in printed and "val_top_5" in printed
    (row,) = map(json.loads, (tmp_path / "imagenet_wnq.jsonl").read_text().splitlines())
    assert 0 <= row["top_1"] <= row["top_5"] <= 100 and row["bits"] == 2
    model = keras.saving.load_model(tmp_path / "resnet18.keras")
    assert model.output_shape == (None, 1000) and row["keras"] > 0
    assert isinstance(model.get_layer("stage_1_1_conv_1"), qareg.layers.WNQConv2D)
    assert model.get_layer("stage_1_1_conv_1").compute_dtype == "bfloat16"
    assert len((tmp_path / "epochs.csv").read_text().splitlines()) == 3
    if keras.backend.backend() == "tensorflow":
        assert (tmp_path / "resnet18.tflite").stat().st_size == row["tflite"]
    assert "Epoch" not in (again := run(*words)) and "Trained before" in again


def test_kernels_alone_decay_by_what_the_gradients_of_papers_add_up_to():
    from examples.training import sgd

    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()]
    )
    optimizer = sgd(0.1, 1e-3)
    optimizer.build(model.trainable_variables)
    before = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_variables]
    nothing = [keras.ops.zeros(weight.shape) for weight in model.trainable_variables]
    for _ in range(2):
        optimizer.apply(nothing, model.trainable_variables)
    after = [keras.ops.convert_to_numpy(weight) for weight in model.trainable_variables]
    np.testing.assert_allclose(after[0], before[0] * (1 - 0.1 * 1e-2) ** 2, rtol=1e-6)
    assert all((a == b).all() for a, b in zip(after[1:], before[1:], strict=True))
