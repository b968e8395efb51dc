"""Operations that a full-integer file has as several, written as these.

A convolution with `silu` is three operators there: the convolution, a sigmoid and a product, and each
has a range. So it becomes three layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Activation, Layer, Multiply, Normalization, ReLU, Rescaling

from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.flattening import Call, Flat, Value
from keras_qareg.models.operators import FUSED, KERNEL, NoIntegerForm, activation_of, kind_of

# A layer, and what it reads: the pieces before it by number, -1 for what the activation is of.
Piece = tuple[str, Callable[..., Layer], tuple[int, ...]]
_PIECES: dict[str, list[Piece]] = {
    "silu": [
        ("sigmoid", functools.partial(Activation, "sigmoid"), (-1,)),
        ("silu", Multiply, (-1, 0)),
    ],
    "hard_sigmoid": [
        ("moved", functools.partial(Rescaling, 1.0, offset=3.0), (-1,)),
        ("clipped", functools.partial(ReLU, 6.0), (0,)),
        ("hard_sigmoid", functools.partial(Rescaling, 1 / 6), (1,)),
    ],
}
# Operations that are activations of such names.
_OPERATIONS = {"Silu": "silu", "HardSigmoid": "hard_sigmoid"}


def split(flat: Flat) -> set[int]:
    """Writes operations that a file has as several as these, in the list of calls of a model.

    Args:
        flat: The model, which is changed.

    Returns:
        The identities of layers whose activations became calls of their own.
    """
    made: dict[tuple[int, str], Layer] = {}
    calls, linear = [], set()
    for call in flat.calls:
        activation, pieces = _activation_behind(call), _pieces_of(call.operation)
        if activation is not None:
            linear.add(id(call.operation))
            value = Value(call.outputs[0].shape, call.outputs[0].dtype)
            calls.append(Call(call.operation, call.args, call.kwargs, [value], call.name))
            behind = inner_layer(call.operation).activation
            one: list[Piece] = [(activation, functools.partial(Activation, behind), (-1,))]
            calls += _written(call, value, _PIECES.get(activation, one), made, whole=False)
        elif pieces:
            calls += _written(call, call.inputs[0], pieces, made, whole=True)
            flat.replaced += [call.operation] if isinstance(call.operation, Layer) else []
        else:
            calls.append(call)
    flat.calls = calls
    return linear


def _activation_behind(call: Call) -> str | None:
    """The activation of a layer with a kernel that is an operator of its own."""
    layer = inner_layer(call.operation) if isinstance(call.operation, Layer) else None
    if layer is None or isinstance(layer, Activation) or activation_of(layer) in FUSED:
        return None
    try:
        return activation_of(layer) if kind_of(call) == KERNEL else None
    except NoIntegerForm:
        return None  # which is said later


def _pieces_of(operation: Any) -> list[Piece]:
    """What an operation is written as: nothing where it stays."""
    if isinstance(operation, Activation):
        return _PIECES.get(activation_of(operation), [])
    if isinstance(operation, Rescaling):
        both = np.any(np.asarray(operation.scale) != 1) and np.any(operation.offset)
        return _affine(operation.scale, operation.offset, moved_first=False) if both else []
    if isinstance(operation, Normalization) and all(n == 1 for n in operation.mean.shape[:-1]):
        return _normalizing(operation)
    name = _OPERATIONS.get(type(operation).__name__)
    return [] if isinstance(operation, Layer) or name is None else _PIECES[name]


def _affine(scale: Any, offset: Any, moved_first: bool) -> list[Piece]:
    """A factor and a summand, each where it does something; one piece at least."""
    pairs: list[tuple[str, Callable[..., Layer], bool]] = [
        ("scaled", functools.partial(Rescaling, scale), bool(np.any(np.asarray(scale) != 1))),
        ("moved", functools.partial(Rescaling, 1.0, offset=offset), bool(np.any(offset))),
    ]
    wanted = [pair[:2] for pair in (pairs[::-1] if moved_first else pairs) if pair[2]]
    wanted = wanted or [("same", functools.partial(Activation, "linear"))]
    return [(label, make, (place - 1,)) for place, (label, make) in enumerate(wanted)]


def _normalizing(layer: Normalization) -> list[Piece]:
    """What a layer that was adapted to data computes, with its mean and variance as constants."""
    mean, variance = (
        np.asarray(ops.convert_to_numpy(part), "float64").reshape(-1)
        for part in (layer.mean, layer.variance)
    )
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    scale, offset = (deviation, mean) if layer.invert else (1.0 / deviation, -mean)
    # A number where all channels have the same; else a list, as a configuration holds it.
    factor, summand = (x.tolist() if np.ptp(x) else float(x[0]) for x in (scale, offset))
    return _affine(factor, summand, moved_first=not layer.invert)


def _written(
    call: Call, value: Value, pieces: list[Piece], made: dict[tuple[int, str], Layer], whole: bool
) -> list[Call]:
    """The calls of the pieces, of which the last returns what the call does.

    Args:
        call: The call.
        value: What the first pieces read.
        pieces: The pieces.
        made: The layers that were made for them, for operations that are called again.
        whole: Whether the pieces are all of the call: then the last has its name.
    """
    policy = getattr(inner_layer(call.operation), "dtype_policy", None)
    outputs: list[Value] = []
    found = []
    for place, (label, make, reads) in enumerate(pieces):
        last = place == len(pieces) - 1
        key = (id(call.operation), label)
        if key not in made:
            made[key] = make(
                name=call.name if whole and last else f"{call.name}_{label}", dtype=policy
            )
        outputs.append(call.outputs[0] if last else Value(value.shape, value.dtype))
        given = [value if source < 0 else outputs[source] for source in reads]
        args = (given if len(given) > 1 else given[0],)
        found.append(Call(made[key], args, {}, [outputs[-1]], made[key].name, is_new=True))
    return found
