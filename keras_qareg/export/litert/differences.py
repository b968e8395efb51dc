"""Where a file that rounds is furthest from Keras: the signal-to-noise ratio behind each layer.

Tensors of a file need not have names, and a file has fewer of them than the model has layers: a
BatchNormalization and an activation go into the convolution before them. So layers are found by values:
in the float32 file of the same model, where those that are there are equal but for rounding. The file
that rounds has its operators in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.precision import in_float32
from keras_qareg.export.litert.runtime import input_details, prepared, restored
from keras_qareg.export.litert.samples import in_batches
from keras_qareg.export.litert.signature import Signature
from keras_qareg.layers.keras_private import graph_parents, is_graph, layers_inside

_SAMPLES = 4
# Decibels from which a tensor of the float32 file is a layer's output; one of a file that rounds, where
# the order of its operators is another one.
_EQUAL, _LIKELY = 40.0, 10.0
_CASTS = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class LayerDifference:
    """How far the output of a layer is from Keras's.

    Attributes:
        layer: The name of the layer, after those of the models that it is in: `"backbone/conv1"`.
        decibels: The signal-to-noise ratio: 10 log10 of the sum of squares of Keras's output over that
            of the differences. 20 more are a tenth of the difference.
    """

    layer: str
    decibels: float

    def __str__(self) -> str:
        return f"{self.layer} {self.decibels:.1f} dB"


def layer_differences(
    model: keras.Model,
    signature: Signature,
    inputs: dict[str, np.ndarray],
    content: bytes,
    reference: bytes,
) -> tuple[LayerDifference, ...]:
    """How far a file is from Keras behind each layer, on a few samples.

    Args:
        model: The Keras model.
        signature: Its inputs.
        inputs: What to run on, by name.
        content: The `.tflite` file, as LiteRT runs it.
        reference: The float32 file of the same model.

    Returns:
        The layers that the file has, the furthest first; none of a model whose layers cannot be told
        apart, as of a subclassed one.
    """
    try:
        found = list(_differences(model, signature, inputs, content, reference))
    # The file has been proved; this is but a hint, and a layer may raise whatever it likes.
    except Exception:
        return ()
    return tuple(sorted(found, key=lambda difference: difference.decibels))


def _differences(
    model: keras.Model,
    signature: Signature,
    inputs: dict[str, np.ndarray],
    content: bytes,
    reference: bytes,
) -> Iterator[LayerDifference]:
    if not is_graph(model) or any(getattr(x, "stateful", False) for x in layers_inside(model)):
        return
    inputs = {name: array[:_SAMPLES] for name, array in inputs.items()}
    with in_float32(model):
        outputs = _outputs(model, keras.tree.flatten(signature.structured(inputs)))
    exact, rounded = (_activations(file, signature, inputs) for file in (reference, content))
    same_order = [name for name, _ in exact] == [name for name, _ in rounded]
    taken: set[int] = set()
    for name, want in outputs:
        place = _nearest(want, exact, _EQUAL)
        # Flatten and Dropout give what the layer before them gave.
        if place is None or place in taken:
            continue
        taken.add(place)
        other = place if same_order else _nearest(want, rounded, _LIKELY)
        if other is not None and rounded[other][1].size == want.size:
            yield LayerDifference(name, _decibels(want, rounded[other][1]))


def _outputs(
    model: keras.Model, inputs: list[Any], prefix: str = ""
) -> list[tuple[str, np.ndarray]]:
    """The names and outputs of the layers of a graph, of models inside it too, in its order."""
    named = []
    for layer in model.layers:
        try:
            output = layer.output
        except (AttributeError, ValueError):  # it is used in several places
            continue
        floats = isinstance(output, keras.KerasTensor) and "float" in output.dtype
        if floats and not isinstance(layer, keras.layers.InputLayer):
            named.append((layer, output))
    arrays = keras.Model(model.inputs, [output for _, output in named])(inputs, training=False)
    arrays = arrays if isinstance(arrays, list | tuple) else [arrays]
    found = []
    for (layer, _), array in zip(named, arrays, strict=True):
        if is_graph(layer):
            before = [parent.output for parent in graph_parents(model)[layer]]
            given = keras.Model(model.inputs, before)(inputs, training=False)
            found += _outputs(layer, keras.tree.flatten(given), f"{prefix}{layer.name}/")
        found.append((f"{prefix}{layer.name}", ops.convert_to_numpy(array).astype("float32")))
    return found


def _activations(
    content: bytes, signature: Signature, inputs: dict[str, np.ndarray]
) -> list[tuple[str, np.ndarray]]:
    """What each operator of the main graph gives first, and its name, but for casts and constants."""
    own = [x.name for x in signature.leaves]
    signature = signature.as_in(input_details(content))
    names = [x.name for x in signature.leaves]
    count = min(len(array) for array in inputs.values())
    step = signature.leaves[0].shape[0] or count
    model = flatbuffer.read(content)
    places = _places(model)
    batches: list[list[np.ndarray]] = [[] for _ in places]
    for start in range(0, count, step):
        parts = [inputs[name][start : start + step] for name in own]
        batch = in_batches(signature, dict(zip(names, parts, strict=True)))
        interpreter = prepared(content, batch, delegate=False, keep=True)
        interpreter.invoke()
        details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
        for found, (_, place) in zip(batches, places, strict=True):
            found.append(restored(interpreter.get_tensor(place), details[place]))
    return [
        (name, np.concatenate([np.atleast_1d(part) for part in found])[:count])
        for (name, _), found in zip(places, batches, strict=True)
    ]


def _places(model: Any) -> list[tuple[str, int]]:
    """The operators of the main graph that depend on its inputs, and the places of what they give."""
    graph, found = model.subgraphs[0], []
    depends = {int(place) for place in graph.inputs}
    for operator in graph.operators:
        outputs = flatbuffer.listed(operator.outputs)
        if depends.isdisjoint(flatbuffer.listed(operator.inputs)):
            continue
        depends.update(outputs)
        name = flatbuffer.operator_name(model, operator)
        if name not in _CASTS and outputs:
            found.append((name, outputs[0]))
    return found


def _nearest(want: np.ndarray, tensors: list[tuple[str, np.ndarray]], least: float) -> int | None:
    """The place of the tensor of this size that is nearest, if it is near enough."""
    near = [
        (_decibels(want, values), -place)
        for place, (_, values) in enumerate(tensors)
        if values.size == want.size and np.issubdtype(values.dtype, np.floating)
    ]
    best, place = max(near, default=(-np.inf, 0))
    return -place if best >= least else None


def _decibels(want: np.ndarray, got: np.ndarray) -> float:
    """The signal-to-noise ratio; infinite where they are equal, or where there is no signal."""
    wide = want.reshape(-1).astype("float64")
    noise = np.square(wide - got.reshape(-1)).sum()
    signal = np.square(wide).sum()
    return float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")
