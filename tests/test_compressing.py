"""The whole job: what is trained, what is chosen, what is kept of the model, and what is refused."""

import re
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.allocation.fitting import fit_archive
from keras_qareg.compressing import compressed
from keras_qareg.export.archive.archive import size_of
from keras_qareg.models.training import usual_rate
from keras_qareg.options import Options
from keras_qareg.plans import PlannedKernel
from tests.helpers import BACKEND, predict


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("levels", "rate"),
    [(2, 1e-3), (4, 1e-3), (8, 5.48e-4), (16, 3e-4), (64, 3e-4), ({"a": 4, "b": 16}, 4.7e-4)],
)
def test_the_learning_rate_falls_with_the_levels(levels, rate):
    model = keras.Sequential([keras.Input((10,)), layers.Dense(10, name="a")])
    model.add(layers.Dense(17, name="b"))
    network = qareg.quantization_aware(model, "sine", levels=levels)
    assert usual_rate(network) == pytest.approx(rate, rel=0.01)
    assert usual_rate(model) == 1e-3, "where nothing trains under a regularizer"


@pytest.fixture(scope="module")
def task():
    """A network that was trained on a task of three classes, and the task."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(768, 8)).astype("float32")
    y = np.abs(x[:, :3]).argmax(axis=1)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(48, name="a"),
            layers.BatchNormalization(name="n"),
            layers.ReLU(),
            layers.Dense(24, "relu", name="b"),
            layers.Dense(3, "softmax", name="c"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(x, y, epochs=15, verbose=0)
    return model, x, y


def values_of(model):
    return [ops.convert_to_numpy(weight).copy() for weight in model.weights]


def distinct(model):
    kernels = [model.get_layer(name).kernel for name in "abc"]
    return [len(np.unique(ops.convert_to_numpy(kernel))) for kernel in kernels]


def test_inputs_alone_are_enough(task):
    model, x, y = task
    before = values_of(model)
    done = compressed(model, x, (x, y), Options(levels=4, epochs=4, seed=1, verbose=0))
    names = [stage.name for stage in done.stages]
    assert names == ["float", "quantized", "trained", "recalibrated", "tuned"]
    first, *_, last = done.stages
    assert first.results["divergence"] == pytest.approx(0, abs=1e-6)
    assert first.results["accuracy"] == pytest.approx(
        model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    )
    assert last.results["divergence"] < 0.8 * done.stages[1].results["divergence"]
    assert last.results["accuracy"] > done.stages[1].results["accuracy"]
    plain = qareg.strip(done.model)
    assert max(distinct(plain)) <= 4
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
    table = str(done).splitlines()
    assert table[0].split() == ["step", "accuracy", "agreement", "divergence", "loss"]


@pytest.mark.one_backend
def test_training_that_does_not_help_is_undone(task):
    model, x, _ = task
    options = Options(levels=16, epochs=2, learning_rate=100.0, seed=0, verbose=0)
    done = compressed(model, x, options=options)
    assert not done.stages[2].kept and "\ntrained (undone) " in str(done)
    assert done.stages[2].results == done.stages[1].results


@pytest.mark.slow
def test_a_seed_gives_the_same_model_and_labels_another(task):
    model, x, y = task
    options = {"levels": 4, "epochs": 1, "seed": 3, "verbose": 0}
    one, same = (qareg.compress(model, x, **options) for _ in range(2))
    other = qareg.compress(model, data=(x, y), **options)
    for a, b in zip(one.weights, same.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
    assert any(
        not np.array_equal(ops.convert_to_numpy(a), ops.convert_to_numpy(b))
        for a, b in zip(one.weights, other.weights, strict=True)
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("method", ["wnq", "kmeans", "dkm"])
def test_other_methods(task, method):
    model, x, y = task
    batches = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    done = compressed(model, batches, None, Options(4, epochs=2, method=method, verbose=0))
    first, *_, last = done.stages
    assert last.results["divergence"] < 1.0 and first.name == "float"
    books = qareg.codebooks(done.model)
    assert all(len(np.unique(book.indices)) <= 4 for book in books.values())


@pytest.mark.one_backend
def test_each_layer_may_have_levels_of_its_own(task):
    model, x, _ = task
    small = qareg.compress(model, x, levels={"a": 8, "b": 2}, epochs=1, verbose=0)
    assert distinct(small)[:2] == [8, 2] and distinct(small)[2] > 16


@pytest.mark.one_backend
def test_a_head_that_does_not_count_is_shared_and_not_trained(task):
    keras.utils.set_random_seed(0)
    inputs, x = keras.Input((8,)), task[1][:256]
    trunk = layers.Dense(16, "relu", name="trunk")(inputs)
    heads = {n: layers.Dense(2, name=n, kernel_regularizer="l2")(trunk) for n in ("p", "q")}
    model = keras.Model(inputs, heads)
    model.compile("sgd", {"p": "mse", "q": "mse"}, loss_weights={"p": 0.0, "q": 1.0})
    books = qareg.codebooks(qareg.share_weights(model, 4))
    targets = {"p": np.ones((256, 2)), "q": np.zeros((256, 2))}
    small = qareg.compress(model, x, targets, levels=4, epochs=2, learning_rate=0.05, verbose=0)
    kernels = {name: ops.convert_to_numpy(small.get_layer(name).kernel) for name in ("p", "q")}
    np.testing.assert_array_equal(kernels["p"], books["p/kernel"].weights)
    assert not np.array_equal(kernels["q"], books["q/kernel"].weights)
    assert small.get_layer("p").trainable


@pytest.mark.one_backend
def test_an_archive_stays_in_its_budget(task):
    model, x, y = task
    options = Options(target_bytes=2300, form="archive", epochs=2, seed=0, verbose=0)
    done = compressed(model, (x, y), options=options)
    assert 1980 < size_of(done.model) <= 2300
    assert done.plan.weights == "archive" and not done.plan.rates
    tuned = replace(options, method="kmeans", epochs=1)
    assert compressed(model, (x, y), options=tuned).plan.rates  # of weights that stay


@pytest.mark.one_backend
def test_an_archive_that_cannot_be_kept_is_an_error(task):
    model, x, _ = task
    sizes = {k.path: int(np.prod(k.shape)) for k in qareg.layers.kernels(model)}
    rows = [PlannedKernel(path, size, 16, 1, 0.0) for path, size in sizes.items()]
    plan = qareg.Plan("archive", 150, 0.0, rows=tuple(rows))
    with pytest.raises(
        ValueError, match="no more than 150 bytes. Received: one of .* Ask for more"
    ):
        qareg.compress(model, x[:64], levels=plan, form="archive", epochs=1, verbose=0)


@pytest.mark.one_backend
def test_trained_kernels_are_fitted_into_an_archive(task):
    model = qareg.quantization_aware(task[0], "nearest_squared", levels=8)
    latent = [ops.convert_to_numpy(kernel).copy() for kernel in qareg.layers.kernels(model)]

    def error(shared):
        books = [*qareg.codebooks(shared).values()]
        assert all(len(np.unique(book.indices)) <= 8 for book in books)
        pairs = zip(latent, books, strict=True)
        return sum(float(np.square(kernel - book.weights).sum()) for kernel, book in pairs)

    def share(rates):
        given = {} if rates is None else {"method": "rate-distortion", "rate": rates, "levels": 8}
        return qareg.share_weights(model, scale="kernel", **given)

    nearest = share(None)
    whole = size_of(nearest)
    fitted = fit_archive(model, share, whole - 100)
    assert whole - 130 < size_of(fitted) <= whole - 100
    assert 1.0 < error(fitted) / error(nearest) < 2.1  # half a bit less: 4^(1/2)


@pytest.mark.one_backend
@pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend")
def test_a_tflite_stays_in_its_budget_and_the_form_is_said(task, tmp_path, capsys):
    model, x, _ = task
    small = qareg.compress(model, x, target_bytes=4800, epochs=1, verbose=2)
    line = capsys.readouterr().out.splitlines()[-1]
    said = re.fullmatch(r"Planned for 4,\d+ bytes of export.litert\(model, path, '(\w+)'\)\.", line)
    assert qareg.export.litert(small, tmp_path / "m.tflite", said[1]).bytes <= 4800


@pytest.mark.one_backend
@pytest.mark.parametrize("settings", [{}, {"method": "kmeans"}, {"form": "archive"}])
def test_a_budget_that_the_float_model_fits_changes_nothing(task, settings, tmp_path):
    model, x, _ = task
    said = f"The plan leaves all kernels of model '{model.name}' float, which fit its budget as they are"
    options = Options(target_bytes=10**7, epochs=1, verbose=0, **settings)
    with pytest.warns(UserWarning, match=said):
        done = compressed(model, x, options=options)
    np.testing.assert_array_equal(predict(done.model, x), predict(model, x))
    assert [stage.name for stage in done.stages] == ["float"] and not any(done.plan.levels.values())
    for given in (done.plan, done.plan.save(tmp_path / "plan.yaml")):
        with pytest.warns(UserWarning, match=said):
            copied = qareg.share_weights(model, given)
        assert [type(layer) for layer in copied.layers] == [type(layer) for layer in model.layers]
        with pytest.raises(ValueError, match="wrap in model .* the plan leaves all kernels float"):
            qareg.quantization_aware(model, "Sine", levels=given)


@pytest.mark.one_backend
def test_a_step_of_ones_own_and_no_data(task):
    model, x, y = task

    class Own(keras.Model):
        seen = 0

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = layers.Dense(3, name="inner")

        def call(self, inputs):
            return self.inner(inputs)

        def train_step(self, *args):
            Own.seen += 1
            return super().train_step(*args)

    own = Own()
    own.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    own(x[:1])
    done = compressed(own, (x, y), options=Options(4, epochs=2, verbose=0))
    assert Own.seen and "divergence" not in done.stages[-1].results
    assert compressed(model, None, options=Options(4)).stages == ()


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"levels": 4, "target_bytes": 100},
            "Expected one of `levels`, `target_bytes` and `target_ratio`. Received: levels=4, "
            "target_bytes=100, target_ratio=None",
        ),
        (
            {"x": None, "target_bytes": 100},
            "Expected inputs with a budget, to measure harm on. Received: x=None",
        ),
        (
            {"data": np.zeros((4, 8))},
            "Expected `x` and what belongs to it, or `data`, which holds all. Received: `data` and `x`",
        ),
        (
            {"x": None, "data": np.zeros((4, 8)), "y": np.zeros((4, 3))},
            "Expected `x` and what belongs to it, or `data`, which holds all. Received: `data` and `y`",
        ),
        (
            {"x": None, "validation_data": np.zeros((4, 8))},
            "Expected `x` or `data` to train on. Received: `validation_data`",
        ),
        (
            {"sample_weight": np.ones(768)},
            "Expected `y` with `sample_weight`. Received: `sample_weight`",
        ),
        (
            {"x": (np.zeros((4, 8)), None, np.ones(4))},
            "Expected `x` to have targets where it has sample weights",
        ),
        (
            {"x": None, "levels": 4, "method": "dkm", "epochs": 3},
            "Expected inputs to train on, with epochs=3, method='dkm'. Received: x=None",
        ),
        (
            {"method": "wnq", "levels": 4, "table": "float32", "weights": "kernel"},
            "Expected another method than 'wnq', whose layers have a table a channel of their own "
            "kernels, with weights='kernel', table='float32'.",
        ),
        *(
            (
                {"learning_rate": rate},
                "Expected `learning_rate` to be a positive number. Received: ",
            )
            for rate in (0.0, -1.0, float("nan"), "fast")
        ),
        *(
            (
                {"optimizer": "none", "method": method},
                "Expected `optimizer` to be a Keras optimizer",
            )
            for method in ("sine", "kmeans")
        ),
        (
            {"method": "wnq", "target_bytes": 900},
            "Expected `levels`, not a budget, with method='wnq'.",
        ),
        ({"epochs": 0}, "Expected `epochs` to be a positive integer. Received: epochs=0"),
        (
            {"batch_size": 2.5},
            "Expected `batch_size` to be a positive integer. Received: batch_size=2.5",
        ),
        (
            {"levels": 5, "method": "wnq"},
            "Expected `levels` of 2, 4, 8 or 16 with method='wnq'. Received: levels=5",
        ),
        ({"x": np.zeros((4, 3))}, "Expected `x` to have inputs of shape (None, 8)"),
        (
            {"validation_data": np.zeros((4, 3))},
            "Expected `validation_data` to have inputs of shape (None, 8)",
        ),
        (
            {"y": np.zeros((768, 3))},
            "Expected targets in `x` that fit the model's loss and its outputs of shape (None, 3). "
            "Received: shape (None, 3) (",
        ),
    ],
)
def test_what_is_refused(task, arguments, message):
    model, x, _ = task
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        qareg.compress(model, **{"x": x, "verbose": 0, **arguments})


@pytest.mark.skipif(BACKEND == "torch", reason="Keras trains no stateful layers there")
def test_states_of_the_model_stay(tmp_path):
    inputs = keras.Input(batch_shape=(4, 5, 8))
    layer = layers.LSTM(6, stateful=True)
    model, x = keras.Model(inputs, layer(inputs)), np.ones((4, 5, 8), "float32")
    model(x)
    before = [ops.convert_to_numpy(state).copy() for state in layer.states]
    qareg.compress(model, x, levels=4, epochs=1, batch_size=4, verbose=0)
    if BACKEND == "tensorflow":
        qareg.export.litert(model, tmp_path / "m.tflite", "float32")
    for state, array in zip(layer.states, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(state), array)


@pytest.mark.one_backend
@pytest.mark.parametrize("method", ["sine", "kmeans"])
def test_the_optimizer_that_was_passed_is_copied_and_used(task, method):
    model, x, _ = task
    optimizer = keras.optimizers.SGD(1e-12)
    way = {"levels": 4, "epochs": 2, "method": method, "seed": 0, "verbose": 0}
    one, again = (qareg.compress(model, x, optimizer=optimizer, **way) for _ in range(2))
    assert not optimizer.built
    for a, b in zip(one.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = qareg.compress(model, x, **way)
    assert any((a != b).any() for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras trains no stateful RNN there")
def test_a_model_for_batches_of_one_size_is_compressed():
    inputs = keras.Input(batch_shape=(8, 6, 4))
    model = keras.Model(inputs, layers.Dense(3)(layers.LSTM(6, stateful=True)(inputs)))
    model.compile("adam", "mse")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(32, 6, 4)).astype("float32"), random.normal(size=(32, 3))
    small = qareg.compress(model, x, y, levels=4, epochs=2, batch_size=8, verbose=0)
    assert small.input_shape == (8, 6, 4)
    assert all(book.levels_used <= 4 for book in qareg.codebooks(small).values())
