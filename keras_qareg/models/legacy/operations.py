"""Operations of TensorFlow in graphs of Keras 2, in the words of Keras 3.

Each takes what the function of TensorFlow takes, by the same names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

OPERATIONS = ("TFOpLambda", "SlicingOpLambda")


def apply(entry: dict[str, Any], first: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives.

    Args:
        entry: An entry of a configuration, of one of the classes `OPERATIONS`.
        first: The first argument, a tensor or a list of some.
        kwargs: The others.

    Raises:
        ValueError: If Keras 3 has no such operation, or not with these arguments.
    """
    symbol = entry["config"]["function"]
    kwargs = {key: value for key, value in kwargs.items() if key != "name"}
    function = _function(symbol)
    if function is None:
        raise ValueError(
            f"Expected operations that Keras 3 has. Received: tf.{symbol} in '{entry['name']}'. Write "
            "a layer of your own in its place in the Keras 2 model, and the same for Keras 3 in "
            "`custom_objects`."
        )
    try:
        return function(first, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected tf.{symbol} in '{entry['name']}' with arguments that Keras 3 has. Received: "
            f"{sorted(kwargs)} ({error})."
        ) from error


def _function(symbol: str) -> Callable[..., Any] | None:
    symbol = symbol.removeprefix("compat.v1.")
    name = symbol.rpartition(".")[2]
    if symbol in _UNLIKE:
        return _UNLIKE[symbol]
    if name in _BINARY:
        return _binary(_BINARY[name])
    if name in _REDUCTIONS:
        return _reduction(_REDUCTIONS[name])
    if name in _UNARY:
        return _unary(_UNARY[name])
    return None


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(x, y)


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: function(x)


def _reduction(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=None, keepdims=False: function(x, axis=axis, keepdims=bool(keepdims))


_BINARY = {
    "add": ops.add,
    "subtract": ops.subtract,
    "multiply": ops.multiply,
    "divide": ops.true_divide,
    "truediv": ops.true_divide,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "pow": ops.power,
    "equal": ops.equal,
    "not_equal": ops.not_equal,
    "greater": ops.greater,
    "greater_equal": ops.greater_equal,
    "less": ops.less,
    "less_equal": ops.less_equal,
    "logical_and": ops.logical_and,
    "logical_or": ops.logical_or,
    "squared_difference": lambda x, y: ops.square(x - y),
}
_UNARY = {
    "relu": ops.relu,
    "relu6": ops.relu6,
    "selu": ops.selu,
    "elu": ops.elu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "softplus": ops.softplus,
    "softsign": ops.softsign,
    "log_sigmoid": ops.log_sigmoid,
    "abs": ops.abs,
    "negative": ops.negative,
    "square": ops.square,
    "sqrt": ops.sqrt,
    "rsqrt": ops.rsqrt,
    "exp": ops.exp,
    "log": ops.log,
    "log1p": ops.log1p,
    "sin": ops.sin,
    "cos": ops.cos,
    "floor": ops.floor,
    "round": ops.round,
    "sign": ops.sign,
    "reciprocal": ops.reciprocal,
    "logical_not": ops.logical_not,
    "identity": lambda x: x,
    "stop_gradient": ops.stop_gradient,
    "zeros_like": ops.zeros_like,
    "ones_like": ops.ones_like,
}
_REDUCTIONS = {
    "reduce_mean": ops.mean,
    "reduce_sum": ops.sum,
    "reduce_max": ops.max,
    "reduce_min": ops.min,
    "reduce_prod": ops.prod,
    "reduce_std": ops.std,
    "reduce_variance": ops.var,
    "reduce_logsumexp": ops.logsumexp,
    "reduce_all": ops.all,
    "reduce_any": ops.any,
}


def _split(value: Any, num_or_size_splits: Any, axis: int = 0, num: Any = None) -> list[Any]:
    if isinstance(num_or_size_splits, int):
        return ops.split(value, num_or_size_splits, axis=axis)
    return ops.split(value, list(itertools.accumulate(num_or_size_splits))[:-1], axis=axis)


def _matmul(
    a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, **rest: Any
) -> Any:
    _check_unset(rest)
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _check_unset(arguments: dict[str, Any]) -> None:
    given = {key: value for key, value in arguments.items() if value not in (None, False, 0)}
    if given:
        raise ValueError(f"Keras has no {given}")


def _pad(tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: Any = 0) -> Any:
    constant = {"constant_values": constant_values} if mode == "CONSTANT" else {}
    return ops.pad(tensor, paddings, mode=mode.lower(), **constant)


def _squeeze(input: Any, axis: Any = None, **rest: Any) -> Any:
    _check_unset({key: value for key, value in rest.items() if value != []})
    return ops.squeeze(input, axis=tuple(axis) if isinstance(axis, list) else axis)


def _normalized(x: Any, axis: Any = None, epsilon: float = 1e-12, dim: Any = None) -> Any:
    squares = ops.sum(ops.square(x), axis=axis if dim is None else dim, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, epsilon))


def _resized(
    images: Any,
    size: Sequence[int],
    method: str = "bilinear",
    preserve_aspect_ratio: bool = False,
    antialias: bool = False,
) -> Any:
    _check_unset({"preserve_aspect_ratio": preserve_aspect_ratio})
    found = ops.image.resize(
        images, size, interpolation=method, antialias=antialias, data_format="channels_last"
    )
    # TensorFlow gives float32 but for the nearest neighbour.
    return found if method == "nearest" else ops.cast(found, "float32")


def _item(tensor: Any, slice_spec: Any, var: Any = None) -> Any:
    _check_unset({"var": var})
    several = isinstance(slice_spec, list)
    return tensor[tuple(map(_index, slice_spec)) if several else _index(slice_spec)]


def _index(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    if part.get("class_name") == "__ellipsis__":
        return ...
    return slice(part["start"], part["stop"], part["step"])


def _gather(params: Any, indices: Any, axis: Any = None, **rest: Any) -> Any:
    _check_unset(rest)
    return ops.take(params, indices, axis=axis or 0)


def _softmax(logits: Any, axis: Any = None, dim: Any = None) -> Any:
    return ops.softmax(logits, axis=-1 if axis is None else axis)


def _log_softmax(logits: Any, axis: Any = None) -> Any:
    return ops.log_softmax(logits, axis=-1 if axis is None else axis)


_UNLIKE: dict[str, Callable[..., Any]] = {
    "__operators__.getitem": _item,
    "__operators__.add": _binary(ops.add),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "clip_by_value": lambda t, clip_value_min, clip_value_max: ops.clip(
        t, clip_value_min, clip_value_max
    ),
    "concat": lambda values, axis: ops.concatenate(values, axis=axis),
    "stack": lambda values, axis=0: ops.stack(values, axis=axis),
    "unstack": lambda value, num=None, axis=0: ops.unstack(value, num, axis=axis),
    "math.add_n": lambda inputs: sum(inputs[1:], inputs[0]),
    "expand_dims": lambda input, axis: ops.expand_dims(input, axis),
    "squeeze": _squeeze,
    "reshape": lambda tensor, shape: ops.reshape(tensor, shape),
    "transpose": lambda a, perm=None, conjugate=False: ops.transpose(a, perm),
    "split": _split,
    "tile": lambda input, multiples: ops.tile(input, multiples),
    "pad": _pad,
    "gather": _gather,
    "linalg.matmul": _matmul,
    "linalg.l2_normalize": _normalized,
    "math.l2_normalize": _normalized,
    "image.resize": _resized,
    "one_hot": lambda indices, depth: ops.one_hot(indices, depth),
    "where": lambda condition, x, y: ops.where(condition, x, y),
    "math.argmax": lambda input, axis=None: ops.argmax(input, axis=axis or 0),
    "nn.softmax": _softmax,
    "nn.log_softmax": _log_softmax,
    "nn.leaky_relu": lambda features, alpha=0.2: ops.leaky_relu(features, alpha),
    "nn.gelu": lambda features, approximate=False: ops.gelu(
        features, approximate=bool(approximate)
    ),
    "nn.silu": lambda features, beta=1.0: features * ops.sigmoid(beta * features),
    "keras.activations.relu": keras.activations.relu,
    "keras.activations.softmax": _softmax,
    "keras.activations.swish": ops.silu,
    "keras.activations.gelu": lambda x, approximate=False: ops.gelu(x, approximate=approximate),
    "keras.activations.leaky_relu": lambda x, alpha=0.2: ops.leaky_relu(x, alpha),
    "keras.activations.exponential": ops.exp,
    "keras.activations.linear": lambda x: x,
}
