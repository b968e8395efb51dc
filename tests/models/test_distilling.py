"""A network that learns from another: what is minimized, on which outputs, and what stays as it is."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from keras_qareg.models.distilling import kinds_of_outputs, losses_of_outputs, shares_of_outputs
from tests.helpers import error_of


def net(activation=None, units=3, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, "relu", name="a"),
            layers.Dense(units, activation, name="b"),
        ]
    )


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(64, 8)).astype("float32")


def softened(outputs, kind, temperature):
    outputs = np.clip(outputs.astype("float64"), 1e-7, 1) if "prob" in kind else outputs
    if kind == "probabilities":
        outputs = np.log(outputs)
    if kind == "probability":
        outputs = np.log(outputs / np.clip(1 - outputs, 1e-7, 1))
    if kind in ("probability", "logit"):
        outputs = np.stack([outputs, 0 * outputs], -1)
    powers = np.exp(outputs / temperature)
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("activation", "loss", "kind"),
    [
        ("softmax", None, "probabilities"),
        ("sigmoid", None, "probability"),
        (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True), "logits"),
        (None, keras.losses.BinaryCrossentropy(from_logits=True), "logit"),
        (None, "mse", "values"),
    ],
)
def test_the_divergence_of_each_kind(x, activation, loss, kind):
    teacher, student = net(activation), net(activation, seed=1)
    if loss is not None:
        teacher.compile("sgd", loss)
    assert kinds_of_outputs(teacher) == [kind]
    trainer = qareg.distill(student, teacher, temperature=3.0, weight=0.5)
    trainer.compile("sgd")
    found = trainer.evaluate(x, batch_size=64, verbose=0, return_dict=True)
    wanted, got = (model.predict(x, verbose=0) for model in (teacher, student))
    if kind == "values":
        expected = np.mean((got - wanted) ** 2 / (wanted.var(0) + 1e-3 * (wanted**2).mean(0)))
    else:
        p, q = (softened(outputs, kind, 3.0) for outputs in (wanted, got))
        expected = 9.0 * np.mean((p * np.log(p / q)).sum(-1))
    np.testing.assert_allclose(found["divergence"], expected, rtol=1e-3)
    np.testing.assert_allclose(found["loss"], 0.5 * expected, rtol=1e-3)
    if "agreement" in found:
        np.testing.assert_allclose(found["agreement"], np.mean(wanted.argmax(1) == got.argmax(1)))


def test_inputs_alone_bring_a_student_to_its_teacher(x):
    teacher = net("softmax")
    before = [ops.convert_to_numpy(w).copy() for w in teacher.weights]
    student = net("softmax", seed=1)
    trainer = qareg.distill(student, teacher)
    trainer.compile(keras.optimizers.Adam(0.01))
    history = trainer.fit(x, epochs=15, verbose=0, validation_data=(x,)).history
    assert history["val_divergence"][-1] < 0.5 * history["val_divergence"][0]
    assert len(trainer.trainable_variables) == len(student.trainable_variables)
    for weight, value in zip(teacher.weights, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), value)
    assert teacher.trainable


def test_labels_and_penalties_count_too(x):
    teacher = net("softmax")
    student = qareg.quantization_aware(teacher, qareg.regularizers.NearestSquared(4, strength=0.5))
    for layer in student.layers:
        layer.place_centroids()
    y = np.arange(64) % 3
    trainer = qareg.distill(student, teacher)
    trainer.compile(
        keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    history = trainer.fit(x, y, batch_size=64, verbose=0).history
    penalty = sum(sum(layer.penalties()) for layer in student.layers)
    own = keras.losses.sparse_categorical_crossentropy(y, student.predict(x, verbose=0))
    own = float(np.mean(ops.convert_to_numpy(own)))
    assert penalty > 0
    np.testing.assert_allclose(
        history["loss"][0], history["divergence"][0] + own + penalty, rtol=1e-4
    )
    assert "accuracy" in history


@pytest.mark.one_backend
def test_several_outputs_count_as_they_were_compiled(x):
    inputs = keras.Input((8,))
    outputs = {"p": layers.Dense(2, name="p")(inputs), "q": layers.Dense(2, name="q")(inputs)}
    teacher = keras.Model(inputs, outputs)
    teacher.compile("sgd", {"p": "mse", "q": "mse"}, loss_weights={"p": 0.0, "q": 1.0})
    student = keras.models.clone_model(teacher)
    student.get_layer("q").set_weights(teacher.get_layer("q").get_weights())
    trainer = qareg.distill(student, teacher)
    trainer.compile("sgd")
    assert trainer.evaluate(x, verbose=0, return_dict=True)["divergence"] == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.one_backend
def test_outputs_of_a_dict_are_called_by_its_keys(x):
    inputs = keras.Input((8,))
    heads = [layers.Dense(2, name=name)(inputs) for name in ("zeta", "alpha")]
    # The name of each layer is the key of the other.
    model = keras.Model(inputs, {"alpha": heads[0], "zeta": heads[1]})
    losses = {
        "alpha": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "zeta": "mse",
    }
    model.compile("sgd", losses, loss_weights={"alpha": 1.0, "zeta": 0.0})
    assert kinds_of_outputs(model) == ["logits", "values"]
    assert shares_of_outputs(model, 2) == [1.0, 0.0]
    assert losses_of_outputs(model, 2) == [losses["alpha"], "mse"]


@pytest.mark.one_backend
def test_what_is_refused():
    with pytest.raises(
        ValueError, match=r"Expected `temperature` to be a positive number. Received: temperature=0"
    ):
        qareg.distill(net(), net(), temperature=0)
    with pytest.raises(
        ValueError, match=r"Expected `weight` to be a number, 0 or more. Received: weight=-1"
    ):
        qareg.distill(net(), net(), weight=-1)
    with pytest.raises(ValueError, match="Expected a teacher whose outputs have the shapes"):
        qareg.distill(net(), net(units=4))


@pytest.mark.one_backend
def test_the_student_is_what_is_saved_and_transformed(tmp_path):
    trainer = qareg.distill(net(), net())
    its = "A Distiller trains a student, and is neither saved nor transformed itself: take its `student`"
    with pytest.raises(NotImplementedError, match=its):
        trainer.save(tmp_path / "model.keras")
    for transform in (qareg.strip, lambda model: qareg.wnq(model, skip=())):
        with pytest.raises(ValueError, match=its) as error:
            transform(trainer)
        assert "Give the class" not in str(error.value)


def test_metrics_of_labels_are_left_out_without_labels():
    teacher, student = net("softmax"), net("softmax", seed=1)
    x, y = np.ones((8, *student.input_shape[1:]), "float32"), np.zeros(8)
    always = {"loss", "divergence", "agreement"}
    for labels, expected in ((None, always), (y, {*always, "accuracy"})):
        trainer = qareg.distill(student, teacher)
        trainer.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        assert set(trainer.fit(x, labels, verbose=0).history) == expected


def two_outputs(kind):
    inputs = keras.Input((4,))
    first, second = (keras.layers.Dense(2, name=name)(inputs) for name in ("a", "b"))
    return keras.Model(inputs, kind(first, second))


def test_sample_weights_of_each_output_count():
    teacher, student = (two_outputs(lambda a, b: {"a": a, "b": b}) for _ in range(2))
    trainer = qareg.distill(student, teacher)
    trainer.compile("sgd", {"a": "mse", "b": "mse"})
    x, y = np.ones((8, 4), "float32"), {name: np.zeros((8, 2)) for name in "ab"}
    nothing = {name: np.zeros(8) for name in "ab"}
    assert trainer.evaluate(x, y, verbose=0, return_dict=True)["divergence"] > 0
    found = trainer.evaluate(x, y, sample_weight=nothing, verbose=0, return_dict=True)
    assert found["divergence"] == found["loss"] == 0


@pytest.mark.parametrize("kind", [lambda a, b: {"x": a, "y": b}, lambda a, b: [a, b]])
def test_a_teacher_of_another_structure_is_refused(kind):
    student = two_outputs(lambda a, b: {"a": a, "b": b})
    assert "Expected a teacher whose outputs have the shapes" in error_of(
        qareg.distill, student, two_outputs(kind)
    )
    assert qareg.distill(two_outputs(lambda a, b: (a, b)), two_outputs(lambda a, b: [a, b]))
