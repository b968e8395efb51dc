"""Each number and each switch that a public call takes is checked, and the error names it."""

import inspect
import typing

import keras
import numpy as np
import pytest

import keras_qareg as qareg
from tests.helpers import BACKEND, compiled, error_of

IMAGES = np.random.default_rng(0).random((16, 6, 6, 1)).astype("float32")
LABELS = np.arange(16) % 3
pytestmark = pytest.mark.one_backend
# Values that no number of their kind, and no switch, may be.
WRONG = {bool: ("yes", 2), int: ("4", 2.5, True, -3), float: ("0.5", float("nan"), True)}


def network():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(8, name="dense"),
            keras.layers.Dense(3, name="logits"),
        ]
    )


def allocated(**given):
    budget = {} if given.keys() & {"target_ratio", "max_loss"} else {"target_bytes": 1500}
    settings = {"data": IMAGES, "weights": "archive", "verbose": 0}
    return qareg.allocate(network(), **{**settings, **budget, **given})


def shared(**given):
    return qareg.share_weights(network(), **{"levels": 4, "verbose": 0, **given})


def aware(**given):
    return qareg.quantization_aware(network(), qareg.regularizers.Sine(4), **given)


def compressed(**given):
    settings = {"levels": 4, "epochs": 1, "verbose": 0}
    return qareg.compress(compiled(network()), IMAGES, LABELS, **{**settings, **given})


CALLS = {
    qareg.allocate: allocated,
    qareg.compress: compressed,
    qareg.distill: lambda **given: qareg.distill(network(), network(), **given),
    qareg.quantization_aware: aware,
    qareg.quantize_activations: lambda **given: qareg.quantize_activations(
        network(), IMAGES, **given
    ),
    qareg.recalibrate: lambda **given: qareg.recalibrate(network(), IMAGES, **given),
    qareg.share_weights: shared,
    qareg.wnq: lambda **given: qareg.wnq(network(), **given),
    qareg.export.save_archive: lambda **given: qareg.export.save_archive(
        network(), "model.qareg", **given
    ),
    qareg.layers.QuantizationAware: lambda **given: qareg.layers.QuantizationAware(
        keras.layers.Dense(8), qareg.regularizers.Sine(4), **given
    ),
    qareg.layers.SharedWeights: lambda **given: qareg.layers.SharedWeights(
        keras.layers.Dense(8), **{"levels": 4, **given}
    ),
    qareg.quantizers.ActivationQuantizer: lambda **given: qareg.quantizers.ActivationQuantizer(
        **{"bits": 2, **given}
    ),
    **{
        kind: kind
        for kind in (
            qareg.callbacks.FreezeBatchNormalization,
            qareg.callbacks.PenaltySchedule,
            qareg.callbacks.PruningSchedule,
            qareg.quantizers.WeightNormalizationQuantizer,
            qareg.regularizers.Cosine,
            qareg.regularizers.DKM,
            qareg.regularizers.NearestExponential,
            qareg.regularizers.NearestSquared,
            qareg.regularizers.Sine,
        )
    },
}
if BACKEND == "tensorflow":
    CALLS[qareg.export.litert] = lambda **given: qareg.export.litert(network(), "a.tflite", **given)


def kind_of(hint):
    """Of an annotation the type that it is made of, `None` where that is none of `WRONG`."""
    parts = set(typing.get_args(hint)) or {hint}
    # Whatever is a setting too may be a text: the name of a file.
    of_one = parts <= {bool, int, float, str, type(None)}
    return next((kind for kind in WRONG if kind in parts and of_one), None)


def cases():
    for function in CALLS:
        hints = typing.get_type_hints(
            getattr(function, "__init__", function) if inspect.isclass(function) else function
        )
        for name, hint in hints.items():
            for value in WRONG.get(kind_of(hint), ()):
                if name != "return" and not (name == "verbose" and value is True):
                    yield pytest.param(
                        function, name, value, id=f"{function.__name__}-{name}-{value}"
                    )


@pytest.mark.parametrize(("function", "name", "value"), cases())
def test_a_wrong_number_or_switch_is_an_error_that_names_it(function, name, value):
    message = error_of(CALLS[function], **{name: value})
    assert name in message and repr(value) in message


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (
            qareg.wnq,
            {"signed_activations": True},
            "Expected `activation_bits` with signed_activations=True. Received: activation_bits=None",
        ),
        (
            qareg.allocate,
            {"representative_data": IMAGES},
            "Expected weights='int8' or 'tflm' with `representative_data`: other forms of file are not "
            "calibrated. Received: weights='archive'",
        ),
    ],
)
def test_arguments_that_would_not_count_are_errors(function, given, message):
    assert error_of(CALLS[function], **given) == message


def test_ranges_are_not_placed_without_data():
    assert error_of(qareg.quantize_activations, network(), method="mse") == (
        "Expected `data` to place ranges by. Received: data=None and method='mse', batch_size=32, "
        "steps=None"
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="files of LiteRT need TensorFlow")
def test_what_decodes_nothing_is_not_told_when():
    said = error_of(CALLS[qareg.export.litert], weights="float32", decode_once=False)
    assert said == (
        "Expected a form whose kernels may be tables, as 'smallest', with decode_once=False. Received: "
        "weights='float32'"
    )


def test_numbers_of_numpy_are_numbers():
    schedule = qareg.callbacks.PenaltySchedule(np.int64(1), power=np.float32(2))
    assert schedule.warmup_epochs == 1 and schedule.power == 2
    assert qareg.callbacks.PruningSchedule(np.float32(0.5)).target_sparsity == 0.5
    assert qareg.callbacks.FreezeBatchNormalization(steps=np.int32(3)).steps == 3
    assert allocated(target_bytes=np.int64(1500)).bytes <= 1500
