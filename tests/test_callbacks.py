"""The schedule, its survival of interruptions, the record, and the optimizer of the centroids."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.callbacks import CentroidHistory, PenaltySchedule
from keras_qareg.layers import QuantizationAware
from keras_qareg.models.selection import wrappers
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.tables import evenly_spaced
from keras_qareg.regularizers import NearestExponential, NearestSquared, Sine
from tests.helpers import compiled, digits, error_of, small_cnn, snapshot

IMAGES, LABELS = digits(64)


def model_to_train(regularizer=None, **kwargs):
    regularizer = regularizer or NearestSquared(4)
    return compiled(qareg.quantization_aware(small_cnn(), regularizer, **kwargs))


def train(model, epochs, *callbacks, **kwargs):
    return model.fit(
        IMAGES, LABELS, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **kwargs
    )


class StopAfter(keras.callbacks.Callback):
    """An interruption: as a crash would, before the epoch after this one begins."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch + 1:
            raise InterruptedError


def test_the_strength_warms_up_ramps_and_holds():
    model, history = model_to_train(NearestSquared(4, strength=2.0)), CentroidHistory()
    train(model, 7, PenaltySchedule(warmup_epochs=2, ramp_epochs=4, power=2), history)
    expected = [0, 0, 2 / 16, 2 * 4 / 16, 2 * 9 / 16, 2, 2]
    np.testing.assert_allclose(history.strengths["fc"], expected, rtol=1e-6)
    assert history.epochs == list(range(7))


def test_defaults_follow_the_epochs_of_fit():
    model, history = model_to_train(NearestSquared(4, strength=2.0)), CentroidHistory()
    train(model, 9, PenaltySchedule(), history)
    # A third of 9 without penalty, then a ramp to the end.
    expected = [0, 0, 0, *2 * ((np.arange(6) + 1) / 6) ** 6]
    np.testing.assert_allclose(history.strengths["fc"], expected, rtol=1e-6)


def test_the_strength_rises_within_an_epoch():
    class Strengths(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch, self.seen = epoch, getattr(self, "seen", [])

        def on_train_batch_end(self, batch, logs=None):
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            strength = float(ops.convert_to_numpy(self.model.get_layer("fc").strength))
            self.seen.append((self.epoch + (batch + 1) / self.params["steps"], strength))

    model, strengths = model_to_train(NearestSquared(4, strength=2.0)), Strengths()
    train(model, 3, PenaltySchedule(warmup_epochs=1, ramp_epochs=2, power=2), strengths)
    assert len(strengths.seen) >= 6
    for time, strength in strengths.seen:
        assert strength == pytest.approx(2 * (max(0, time - 1) / 2) ** 2)


@pytest.mark.parametrize(
    "strength, wanted, weights",
    [(2.0, 500, 500), (2.0, "auto", None), (2.0, None, None), (None, "auto", 40_000)],
)
def test_the_penalty_of_small_layers_is_larger_in_balance(strength, wanted, weights):
    regularizer = NearestSquared(4, strength=strength)
    model = model_to_train(regularizer)
    train(model, 1, PenaltySchedule(0, 1, balance=wanted))
    sizes = [int(np.prod(layer.kernels[0].shape)) for layer in wrappers(model)]
    assert min(sizes) < 500 < max(sizes)
    for layer, size in zip(wrappers(model), sizes, strict=True):
        factor = 1.0 if weights is None else max(1.0, weights / size)
        strength, balance = (float(x) for x in snapshot([layer.strength, layer.balance]))
        assert (strength, balance) == pytest.approx((regularizer.strength, factor))
        penalty = float(regularizer.penalty(layer.kernels[0], layer.centroids[0]))
        assert layer.penalties() == pytest.approx([strength * balance * penalty])


def test_the_strength_of_small_layers_is_ahead_in_balance():
    model, history = model_to_train(NearestSquared(4, strength=2.0)), CentroidHistory()
    train(model, 4, PenaltySchedule(0, 4, power=3, balance=500), history)
    for layer in wrappers(model):
        factor = max(1.0, 500 / np.prod(layer.kernels[0].shape))
        expected = 2.0 * np.minimum(1.0, factor * ((np.arange(4) + 1) / 4) ** 3)
        np.testing.assert_allclose(history.strengths[layer.name], expected, rtol=1e-5)
    assert len({tuple(strengths) for strengths in history.strengths.values()}) > 1


@pytest.mark.parametrize("regularizer", [NearestSquared(4, strength=0.0), Sine(4, strength=0.0)])
def test_centroids_are_placed_from_the_weights_at_the_end_of_the_warm_up(regularizer):
    class Weights(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.last = snapshot(x.kernels[0] for x in wrappers(self.model))
            self.seen = [*getattr(self, "seen", []), self.last]

    model, history, weights = (
        model_to_train(regularizer, straight_through=False),
        CentroidHistory(),
        Weights(),
    )
    train(model, 4, PenaltySchedule(2, 1), history, weights)
    for place, layer in enumerate(wrappers(model)):
        found = kmeans(weights.seen[1][place], 4)
        expected = regularizer.fit_basins(found)
        if not regularizer.learned:
            expected = evenly_spaced(expected, layer.table)
        path = layer.kernel_paths[0]
        for epoch in (1, 2, 3):  # with strength 0, no loss moves them afterwards
            np.testing.assert_allclose(history.centroids[path][epoch], expected, rtol=1e-5)
        assert not np.allclose(history.centroids[path][0], expected, rtol=1e-5)


def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path):
    def run(folder, interrupted):
        def backup():
            return keras.callbacks.BackupAndRestore(tmp_path / folder)

        model = model_to_train(NearestExponential(4, strength=0.1))
        if interrupted:
            with pytest.raises(InterruptedError):
                train(model, 6, PenaltySchedule(2, 3), backup(), StopAfter(3))
            model = model_to_train(NearestExponential(4, strength=0.1))
        train(model, 6, PenaltySchedule(2, 3), backup())
        return snapshot(model.weights)

    for one, two in zip(run("a", False), run("b", True), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_initial_epoch_continues_the_schedule():
    whole, parts = model_to_train(), model_to_train()
    train(whole, 6, PenaltySchedule(2, 3))
    train(parts, 4, PenaltySchedule(2, 3))
    history = CentroidHistory()
    train(parts, 6, PenaltySchedule(2, 3), history, initial_epoch=4)
    full = parts.get_layer("fc").regularizer.strength
    np.testing.assert_allclose(history.strengths["fc"], [full, full], rtol=1e-6)
    for one, two in zip(whole.weights, parts.weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def events_of(file):
    from tensorboardX.proto.event_pb2 import Event

    content, place, found = file.read_bytes(), 0, {}
    while place < len(content):  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        place += length + 16
    return found


def test_tensorboard_events_hold_the_record_of_every_training(tmp_path):
    history, model = CentroidHistory(log_dir=str(tmp_path)), model_to_train()
    train(model, 2, PenaltySchedule(0, 1), history)
    train(model, 3, PenaltySchedule(0, 1), history, initial_epoch=2)
    first, second = sorted(tmp_path.iterdir(), key=lambda file: file.suffix)
    tags, later = events_of(first), events_of(second)
    assert {epoch for _, epoch in tags} == {0, 1} and {epoch for _, epoch in later} == {2}
    tags |= later
    count = sum(1 + 5 * len(layer.kernels) for layer in wrappers(model))
    assert len(tags) == 3 * count, "a strength a layer; a penalty and four centroids a kernel"
    path = "cnn/fc/kernel"
    for epoch in range(3):
        assert tags["strength/fc", epoch] == pytest.approx(history.strengths["fc"][epoch])
        assert tags[f"penalty/{path}", epoch] == pytest.approx(
            history.penalties[path][epoch], rel=1e-5
        )
        found = [tags[f"centroids/{path}/{j}", epoch] for j in range(4)]
        np.testing.assert_allclose(found, np.sort(history.centroids[path][epoch]), rtol=1e-6)


def test_events_of_an_interrupted_training_are_kept(tmp_path):
    history, model = CentroidHistory(log_dir=str(tmp_path)), model_to_train()
    with pytest.raises(InterruptedError):
        train(model, 3, PenaltySchedule(0, 1), history, StopAfter(1))
    train(model, 3, PenaltySchedule(0, 1), history, initial_epoch=2)
    assert {epoch for file in tmp_path.iterdir() for _, epoch in events_of(file)} == {0, 1, 2}


def test_bad_schedules():
    for arguments, message in [
        ({"warmup_epochs": -1}, "Expected `warmup_epochs` to be an integer, 0 or more, or None. "),
        (
            {"ramp_epochs": 0},
            "Expected `ramp_epochs` to be a positive integer or None. Received: ramp_epochs=0",
        ),
        ({"balance": 0}, "Expected `balance` to be a positive integer, 'auto' or None. "),
        (
            {"initialize": "lloyd"},
            "Expected `initialize` to be 'kmeans', 'quantile', 'uniform' or None",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            PenaltySchedule(**arguments)
    for callback in (PenaltySchedule(), CentroidHistory()):
        with pytest.raises(ValueError, match="Expected a model with QuantizationAware layers for"):
            train(compiled(small_cnn()), 1, callback)
    with pytest.raises(ValueError, match="Expected `method` to be one of"):
        wrappers(model_to_train())[0].place_centroids("lloyd")


def test_centroids_have_a_learning_rate_of_their_own():
    model = qareg.quantization_aware(small_cnn(), NearestSquared(4, strength=1.0))
    optimizer = qareg.optimizers.with_centroid_optimizer(keras.optimizers.SGD(0.0), 0.05)
    compiled(model)
    model.compile(optimizer, model.loss)
    for layer in wrappers(model):  # away from where k-means put them, which is at rest
        layer.centroids[0].assign(layer.centroids[0] + 0.02)
    before = snapshot(model.trainable_variables)
    train(model, 2)
    for old, new in zip(before, model.trainable_variables, strict=True):
        moved = np.abs(old - snapshot([new])[0]).max() > 1e-3
        assert moved == new.name.startswith(("centroids", "centroid_sizes")), new.path


def test_optimizers_round_trip_and_refuse_nonsense(tmp_path):
    optimizer = qareg.optimizers.with_centroid_optimizer("adam", keras.optimizers.SGD(0.1))
    model = qareg.quantization_aware(small_cnn(), NearestSquared(4))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    train(model, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    train(loaded, 1)
    assert [type(part).__name__ for part in loaded.optimizer.optimizers] == ["SGD", "Adam"]
    with pytest.raises(ValueError, match="Expected a positive learning rate for the centroids"):
        qareg.optimizers.with_centroid_optimizer("adam", 0.0)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("validated", [True, False])
def test_usual_callbacks_choose_among_quantized_networks(order, validated, tmp_path):
    images, labels = digits(96)
    model = model_to_train(NearestSquared(2))
    monitor = {"monitor": "val_loss" if validated else "loss"}
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", save_best_only=True, **monitor
    )
    stop = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True, **monitor)
    callbacks = [PenaltySchedule(4, 2), checkpoint, stop][::order]
    data = {"validation_data": (images, labels)} if validated else {}
    history = model.fit(images, labels, epochs=6, verbose=0, callbacks=callbacks, **data).history
    for found in (model, keras.saving.load_model(tmp_path / "best.keras")):
        assert all(layer.quantizes for layer in wrappers(found))
    if validated:
        plain = compiled(qareg.strip(model))
        loss = plain.evaluate(images, labels, verbose=0)
        np.testing.assert_allclose(loss, min(history["val_loss"]), rtol=1e-4)


def test_training_that_stops_early_is_told():
    model = model_to_train(NearestSquared(2))
    stop = keras.callbacks.EarlyStopping(monitor="loss", mode="max", patience=1)
    with pytest.warns(
        UserWarning, match="Training ended after epoch [23] of 9, before the penalty"
    ):
        train(model, 9, PenaltySchedule(4, 2), stop)


class Distiller(keras.Model):
    """A model around a student, which is built by its first batch."""

    def __init__(self, student, teacher, **kwargs):
        super().__init__(**kwargs)
        self.student, self.teacher = student, teacher

    def call(self, inputs):
        return self.student(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean((self.teacher(x) - y_pred) ** 2) + sum(self.losses)


def test_a_student_inside_an_unbuilt_model_is_found():
    images, labels = digits(32)
    student = qareg.quantization_aware(small_cnn(), NearestSquared(2))
    history = CentroidHistory()
    official = keras.distillation.Distiller(
        teacher=small_cnn(),
        student=student,
        distillation_losses=keras.distillation.LogitsDistillation(temperature=2.0),
    )
    for distiller in (Distiller(student, small_cnn()), official):
        if distiller is official:
            distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        else:
            distiller.compile("adam")
        callbacks = [PenaltySchedule(1, 1), history]
        distiller.fit(images, labels, epochs=2, verbose=0, callbacks=callbacks)
        assert all(layer.quantizes for layer in wrappers(student))
    assert len(history.epochs) == 4 and len(history.centroids) == len(wrappers(student))


def test_layers_without_weights_are_refused():
    model = keras.Sequential(
        [QuantizationAware(layers.Dense(4), NearestSquared(2), name="wrapped")]
    )
    schedule = PenaltySchedule()
    schedule.set_model(model)
    assert error_of(lambda: schedule.on_epoch_begin(0)) == (
        "Expected built QuantizationAware layers for PenaltySchedule. Received: ['wrapped'] without "
        "weights. Call the model on a batch first."
    )


@pytest.mark.one_backend
def test_a_warm_up_as_long_as_the_training_is_said():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    trained = qareg.quantization_aware(model, qareg.regularizers.Sine(4))
    trained.compile("sgd", "mse")
    schedule = qareg.callbacks.PenaltySchedule(warmup_epochs=10)
    with pytest.warns(UserWarning, match="after epoch 3 of 3, before the penalty had its full"):
        trained.fit(np.ones((8, 4)), np.ones((8, 3)), epochs=3, verbose=0, callbacks=[schedule])
