"""Levels by budget: what a plan promises is what files and outputs then are."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from keras_qareg.allocation.network import Network
from keras_qareg.models.sharing import Tables
from keras_qareg.numerics.divergence import divergence
from tests.helpers import error_of, predict, tensorflow_only


def uneven_model(wide=500, middle=100):
    """Two large layers that add little to the inputs, and two small ones whose every weight counts."""
    keras.utils.set_random_seed(0)
    given = keras.Input((12,))
    inner = layers.Dense(wide, activation="relu", name="wide")(given)
    inner = layers.BatchNormalization(name="norm")(inner)
    inner = layers.Dense(12, name="narrow")(inner)
    outer = layers.Add(name="add")([given, inner])
    outer = layers.Dense(middle, activation="relu", name="middle")(outer)
    outputs = layers.Dense(6, activation="softmax", name="out")(outer)
    model = keras.Model(given, outputs, name="uneven")
    for name, factor in (("narrow", 0.1), ("out", 3.0)):
        model.get_layer(name).kernel.assign(factor * model.get_layer(name).kernel)
    qareg.recalibrate(model, inputs_of(256))
    return model


def inputs_of(count):
    return np.random.default_rng(0).normal(size=(count, 12)).astype("float32")


@pytest.fixture(scope="module")
def inputs():
    return inputs_of(300)


def planned(model, inputs, **kwargs):
    return qareg.allocate(model, data=inputs, verbose=0, **kwargs)


@tensorflow_only
def test_a_plan_meets_its_budget_and_beats_one_number_of_levels(inputs, tmp_path):
    model = uneven_model(1000, 200)
    before = [np.array(weight) for weight in model.weights]

    def made(levels, name):
        shared = qareg.share_weights(model, levels)
        qareg.recalibrate(shared, inputs[:256])
        report = qareg.export.litert(shared, tmp_path / f"{name}.tflite", "smallest")
        return report.bytes, divergence(
            predict(model, inputs), predict(shared, inputs), "probabilities"
        )

    size, loss = made(4, "uniform")
    plan = planned(model, inputs, target_bytes=size, weights="smallest")
    for weight, was in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, was)
    assert plan.bytes <= size
    assert plan.weights == "smallest"
    assert [row.path for row in plan.rows] == [k.path for k in qareg.layers.kernels(model)]
    assert made(plan, "plan")[0] <= size
    assert made(plan, "plan")[1] < 0.8 * loss
    assert plan.uniform[4][0] == pytest.approx(size, rel=0.03)
    losses = [point[1] for point in sorted(plan.curve)]
    assert losses[-1] < 0.1 * losses[0]
    assert plan.plot().axes[0].get_xlabel() == "size of the file (smallest)"


@pytest.mark.one_backend
def test_rates_for_an_archive(inputs, tmp_path):
    model, file = uneven_model(), tmp_path / "model.qareg"

    def made(levels):
        shared = qareg.share_weights(model, levels)
        qareg.recalibrate(shared, inputs[:256])
        qareg.export.save_archive(shared, file)
        loss = divergence(predict(model, inputs), predict(shared, inputs), "probabilities")
        return file.stat().st_size, loss

    size, loss = made(4)
    plan = planned(model, inputs, target_bytes=size, weights="archive")
    assert list(plan.rates) == list(plan.levels) == [k.path for k in qareg.layers.kernels(model)]
    # The statistics of batch normalization are other numbers in the configuration's place.
    assert made(plan)[0] == pytest.approx(plan.bytes, abs=64)
    assert plan.bytes <= size
    assert made(plan)[1] < 0.3 * loss
    written = plan.save(tmp_path / "plan.yaml")
    assert qareg.Plan.load(written) == plan
    books = [qareg.codebooks(qareg.share_weights(model, levels)) for levels in (plan, written)]
    for book, same in zip(*(found.values() for found in books), strict=True):
        np.testing.assert_array_equal(book.weights, same.weights)
    told = qareg.config.explain(model, written).rows
    assert [row.values["levels"] for row in told] == list(plan.levels.values())
    assert error_of(qareg.quantization_aware, model, "sine", levels=str(written)) == (
        "Expected a plan of levels to train under. Received: a plan of rates, which are for weights "
        "that stay where they are. allocate(weights='archive', method='kmeans') plans levels."
    )


@pytest.mark.one_backend
def test_levels_for_an_archive(inputs, tmp_path):
    model, file = uneven_model(), tmp_path / "model.qareg"
    plan = planned(model, inputs, target_ratio=0.2, weights="archive", method="kmeans")
    assert not plan.rates and len(set(plan.levels.values())) > 1
    shared = qareg.share_weights(model, plan)
    qareg.recalibrate(shared, inputs[:256])
    qareg.export.save_archive(shared, file)
    assert file.stat().st_size == pytest.approx(plan.bytes, abs=64)
    assert 0.9 * 0.2 * 4 * model.count_params() < plan.bytes <= 0.2 * 4 * model.count_params()
    refused = error_of(
        qareg.allocate,
        model,
        target_bytes=9000,
        data=inputs,
        weights="auto",
        method="rate-distortion",
    )
    assert refused == (
        "Expected weights='archive' with method='rate-distortion': rates are of no use to others. "
        "Received: weights='auto'"
    )


@tensorflow_only
def test_a_plan_for_the_full_integer_file_of_tflite_micro(inputs, tmp_path):
    model, some = uneven_model(1000, 200), inputs[:32]
    plan = planned(model, some, target_bytes=30_000, weights="tflm", representative_data=some)
    shared = qareg.share_weights(model, plan)
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "tflm", some)
    assert 28_000 < report.bytes <= 30_000
    assert report.bytes == pytest.approx(plan.bytes, abs=64)


@tensorflow_only
@pytest.mark.slow
def test_the_fastest_form_that_meets_a_budget(inputs):
    model = uneven_model()
    fast = planned(model, inputs, target_ratio=0.6)
    assert fast.weights == "auto"
    assert fast.levels["wide/kernel"] == fast.levels["narrow/kernel"] == 256
    assert planned(model, inputs, target_ratio=0.2).weights == "smallest"


@tensorflow_only
def test_the_fewest_bytes_for_a_loss(inputs):
    plan = planned(uneven_model(), inputs, max_loss=0.01, weights="smallest")
    assert plan.loss <= 0.01
    assert plan.bytes < min(size for size, loss in plan.uniform.values() if loss <= 0.01)


@tensorflow_only
def test_a_budget_that_cannot_be_met(inputs, tmp_path):
    model, file = uneven_model(), tmp_path / "least.tflite"
    least = qareg.export.litert(qareg.share_weights(model, 2), file, "smallest").bytes
    assert error_of(planned, model, inputs, target_bytes=1000) == (
        f"Expected target_bytes of at least {least:,}, which model 'uneven' takes with two levels a "
        "kernel and weights='smallest'. Received: 1,000 bytes."
    )


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            "Expected one of `target_bytes`, `target_ratio` and `max_loss`. Received: none of them",
        ),
        (
            {"target_bytes": 9, "max_loss": 0.1},
            "Expected one of `target_bytes`, `target_ratio` and `max_loss`. Received: "
            "{'target_bytes': 9, 'max_loss': 0.1}",
        ),
        (
            {"target_bytes": 0.5},
            "Expected `target_bytes` to be a positive integer. Received: target_bytes=0.5",
        ),
        (
            {"target_ratio": 2},
            "Expected `target_ratio` to be a number above 0, up to 1. Received: target_ratio=2",
        ),
        (
            {"max_loss": -1},
            "Expected `max_loss` to be a positive number. Received: max_loss=-1",
        ),
        (
            {"max_loss": 1, "data": None},
            "Expected `data`, inputs on which harm is measured (no labels are needed). Received: "
            "data=None",
        ),
    ],
)
def test_arguments_that_make_no_sense(given, message):
    assert (
        error_of(qareg.allocate, uneven_model(), **{"data": np.ones((4, 12)), **given}) == message
    )


def test_harm_is_what_recalibration_leaves(inputs):
    """One kernel alone, as by sharing it, measuring normalization anew, and comparing outputs."""
    model = uneven_model()
    network = Network(model, inputs[:256], "all", Tables("int8", "auto", None))
    shared = qareg.share_weights(model, 4, layers=["wide"])
    qareg.recalibrate(shared, inputs[:256])
    outputs = [predict(each, inputs[:256]) for each in (model, shared)]
    got = network.loss([4, None, None, None])
    assert got == pytest.approx(divergence(*outputs, "probabilities"), rel=1e-3)
    assert got > 1e-4
    assert network.loss([None] * 4) == 0


@pytest.fixture
def plan():
    rows = (
        qareg.plans.PlannedKernel("wide/kernel", 6000, 4, 3050, 0.25),
        qareg.plans.PlannedKernel("narrow/kernel", 6000, None, 24000, 0.0),
        qareg.plans.PlannedKernel("out/kernel", 600, 16, 750, 0.001),
    )
    uniform = {4: (7000, 0.5), 16: (8000, 0.125)}
    points = {"curve": ((7000, 0.375),), "uniform": uniform}
    return qareg.Plan("smallest", 7654, 0.251, rows=rows, table="even", **points)


@pytest.mark.one_backend
def test_a_plan_as_a_file(plan, tmp_path):
    file = plan.save(tmp_path / "plan.yaml")
    assert qareg.Plan.load(file) == plan
    model = uneven_model()
    by_file, by_plan = (
        qareg.codebooks(qareg.share_weights(model, levels, table="even")) for levels in (file, plan)
    )
    assert list(by_file) == list(by_plan) == ["wide/kernel", "out/kernel"]
    for levels in (file, plan):
        with pytest.warns(UserWarning, match="planned with table='even', .* Pass table='even' too"):
            qareg.share_weights(model, levels)
    assert [book.levels_used for book in by_file.values()] == [4, 16]
    assert str(plan).splitlines()[3].split()[:4] == ["narrow/kernel", "6,000", "float", "32.00"]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "table: even",
            "tables: even",
            "Expected a plan with ['table', 'scale', 'group_size', 'plan']. Received unknown names: "
            "'tables' (did you mean 'table'?)",
        ),
        (
            "wide/kernel: 4",
            "wide/kernel: 400",
            "Expected levels of 'wide/kernel' from 2 to 256, or float. Received: 400",
        ),
        (
            "out/kernel: 16",
            "uot/kernel: 16",
            "Expected `levels` with ['wide/kernel', 'narrow/kernel', "
            "'out/kernel']. Received unknown names: 'uot/kernel' (did you mean "
            "'out/kernel' or 'narrow/kernel' or 'wide/kernel'?)",
        ),
        (
            "bytes: 7654",
            "bytes: -1",
            "Expected `bytes` to be an integer, 0 or more. Received: bytes=-1",
        ),
        (
            "bytes: 7654",
            "bytes: 7654.5",
            "Expected `bytes` to be an integer, 0 or more. Received: bytes=7654.5",
        ),
        (
            "table: even",
            "table: evne",
            "Expected `table` to be one of ('int8', 'even', 'float32'). Received: table='evne'",
        ),
        (
            "group_size: null",
            "group_size: 2.5",
            "Expected `group_size` to be a positive integer. Received: group_size=2.5",
        ),
        (
            "weights: smallest",
            "weights: smalest",
            "Expected `weights` to be one of ('auto', 'smallest', 'codebook', 'tflm', 'int8-exact', "
            "'int4-exact', 'int2-exact', 'int8', 'archive'). Received: weights='smalest'",
        ),
    ],
)
def test_typos_in_a_file(plan, tmp_path, old, new, message):
    file = plan.save(tmp_path / "plan.yaml")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert error_of(qareg.Plan.load, file) == f"{file}: {message}"


def test_names_of_files(plan):
    assert error_of(plan.save, Path("plan.txt")) == (
        "Expected the name of a YAML file, .yaml or .yml. Received: plan.txt"
    )
    assert error_of(plan.save, Path("nowhere/plan.yaml")) == (
        "Expected a folder that exists. Received: nowhere, which does not"
    )


@pytest.mark.parametrize("form", ["archive", pytest.param("smallest", marks=tensorflow_only)])
def test_a_plan_of_other_sizes_is_refused(tmp_path, form):
    def net(units):
        stack = [keras.layers.Dense(units, "relu", name="a"), keras.layers.Dense(4, name="b")]
        return keras.Sequential([keras.Input((16,)), *stack], name="net")

    x = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    plan = qareg.allocate(net(32), target_ratio=0.6, data=x, weights=form, verbose=0)
    for given in (plan, plan.save(tmp_path / "plan.yaml"), str(tmp_path / "plan.yaml")):
        qareg.share_weights(net(32), given)
        assert error_of(qareg.share_weights, net(128), given) == (
            "Expected the plan of a model with 512 weights in 'net/a/kernel'. Received: a model with "
            "2,048 there. Plan anew with keras_qareg.allocate."
        )
