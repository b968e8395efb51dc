"""What calls of layers and operations do with channels, which are the last axis of tensors.

A call either mixes channels (each of its outputs is a sum over all inputs) or keeps them apart (each of
its outputs comes from one channel of each input).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.layers import Layer

from keras_qareg.models.operators import activation_of

# Each output channel depends on the same channel of the input alone, with slopes of about 1 at most.
_ACTIVATIONS = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish"),
    *("tanh", "sigmoid", "softplus", "softsign", "hard_sigmoid", "hard_silu", "hard_tanh"),
)
_ACTIVATION_LAYERS = ("ReLU", "LeakyReLU", "ELU")
_ACTIVATION_OPERATIONS = (
    *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Silu", "Gelu", "Mish", "Tanh"),
    *("Sigmoid", "Softplus", "Softsign", "HardSigmoid", "HardSilu", "HardTanh"),
)
_SAME = (
    *("ActivityRegularization", "Identity"),
    *(f"{kind}{n}D" for kind in ("UpSampling", "Cropping") for n in (1, 2, 3)),
    *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
)
# What puts zeros beside constants: in training, dropout does.
_ZEROING = (
    *(f"{kind}{n}D" for kind in ("ZeroPadding", "SpatialDropout") for n in (1, 2, 3)),
    *("Dropout", "GaussianDropout"),
)

Function = Callable[[np.ndarray], np.ndarray]


@dataclass
class Mixing:
    """Each output channel is a sum over all input channels.

    Attributes:
        sums: What the kernel does with constant inputs: `(inputs, outputs)`, summed over its places.
        sizes: Sums of magnitudes, of the same shape.
        offset: The bias: `(outputs,)`.
        activation: What is done to each output; `None`: something that mixes them.
        pads: Whether constant inputs give no constant outputs, because zeros beside the inputs count,
            or must stay for another reason.
    """

    sums: np.ndarray
    sizes: np.ndarray
    offset: np.ndarray
    activation: Function | None
    pads: bool


@dataclass
class Keeping:
    """Each output channel comes from one channel of each input, or of one of them.

    Attributes:
        places: For each input, the output channels that each of its channels becomes: `(channels, n)`.
        scale: What a constant is multiplied with: `(outputs,)`.
        size: What a difference is multiplied with at most.
        offset: What is added.
        activation: What is done to each output.
        pads: As in `Mixing`.
    """

    places: list[np.ndarray]
    scale: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    activation: Function
    pads: bool = False


@dataclass
class Rule:
    """What a call does with channels, and what of its layer is made smaller with them.

    Attributes:
        does: What it does.
        axes: Of each weight by name, what each axis counts: `"in"`, `"out"`, `"between"` or nothing.
        settings: Of the configuration, what counts output channels.
        between: How many channels a layer has between two kernels for each of its inputs.
    """

    does: Mixing | Keeping
    axes: dict[str, tuple[str | None, ...]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    between: int = 1


def rule_of(node: Any) -> Rule | None:
    """The rule of a call in a graph; `None` where channels cannot be followed through it."""
    operation = node.operation
    shapes = [tuple(x.shape) for x in (*node.input_tensors, *node.outputs)]
    tensors = [x for x in node.arguments._flat_arguments if hasattr(x, "shape")]
    if (
        any(len(shape) < 2 or shape[-1] is None for shape in shapes)
        or len(node.outputs) != 1
        or len(tensors) != len(node.input_tensors)  # constants and weights among its arguments
        or any(hasattr(x, "shape") for x in keras.tree.flatten(node.arguments.kwargs))  # a mask
        or not type(operation).__module__.startswith("keras.")
        or getattr(operation, "data_format", None) == "channels_first"
        or getattr(operation, "lora_enabled", False)
    ):
        return None
    sizes = [shape[-1] for shape in shapes[:-1]]
    find = _rule_of_layer if isinstance(operation, Layer) else _rule_of_operation
    found = find(operation, sizes, shapes)
    return found if found is None or _is_finite(found.does) else None


def _is_finite(does: Mixing | Keeping) -> bool:
    parts = (does.sizes if isinstance(does, Mixing) else does.size, does.offset)
    return all(np.isfinite(part).all() for part in parts)


def _rule_of_operation(operation: Any, sizes: list[int], shapes: list[Any]) -> Rule | None:
    name = type(operation).__name__
    if name == "Add":  # which may be of one tensor and a number
        return _joined(sizes, shapes) if len(sizes) > 1 else None
    if name == "Concatenate":
        return _concatenated(operation.axis, sizes, shapes)
    return _same(sizes[0], operation.call) if name in _ACTIVATION_OPERATIONS else None


def _rule_of_layer(layer: Any, sizes: list[int], shapes: list[Any]) -> Rule | None:
    name = type(layer).__name__
    if name == "BatchNormalization" and layer.axis not in (-1, len(shapes[0]) - 1):
        return None
    if name in _WITH_KERNELS:
        return _WITH_KERNELS[name](layer, sizes[0])
    if name == "Add":
        return _joined(sizes, shapes)
    if name == "Concatenate":
        return _concatenated(layer.axis, sizes, shapes)
    if name in _ACTIVATION_LAYERS:
        return _same(sizes[0], layer.call)
    if name == "Activation":
        activation = _activation(layer)
        return None if activation is None else _same(sizes[0], activation)
    if name in _SAME:
        return _same(sizes[0])
    if name in _ZEROING:
        return Rule(replace(_apart(sizes[0]), pads=True))
    if name in ("Flatten", "Reshape"):
        return _reshaped(name, shapes)
    return None


def _reshaped(name: str, shapes: list[Any]) -> Rule | None:
    """All axes but that of the examples as one, or channels that stay the last axis."""
    before, after = shapes
    if name == "Reshape" and before[-1] == after[-1]:
        return Rule(_apart(before[-1]), settings=("target_shape",))
    if name == "Reshape" or None in before[1:]:
        return None
    channels, count = before[-1], math.prod(before[1:-1])
    places = np.arange(count)[None] * channels + np.arange(channels)[:, None]
    return Rule(_apart(channels * count, [places]))


def _apart(channels: int, places: list[np.ndarray] | None = None) -> Keeping:
    """What does nothing to channels but to put those of each input at some places."""
    one = np.ones(channels)
    its = [np.arange(channels)[:, None]] if places is None else places
    return Keeping(its, one, one, np.zeros(channels), _identity)


def _same(channels: int, activation: Callable[[Any], Any] | None = None) -> Rule:
    does = _apart(channels)
    return Rule(does if activation is None else replace(does, activation=_computed(activation)))


def _joined(sizes: list[int], shapes: list[Any]) -> Rule | None:
    if len({(len(shape), shape[-1]) for shape in shapes}) > 1:
        return None  # one of them stands for several channels
    return Rule(_apart(sizes[0], [np.arange(sizes[0])[:, None]] * len(sizes)))


def _concatenated(axis: int, sizes: list[int], shapes: list[Any]) -> Rule | None:
    if axis not in (-1, len(shapes[0]) - 1):
        return None
    starts = np.cumsum([0, *sizes])
    places = [s + np.arange(n)[:, None] for s, n in zip(starts, sizes, strict=False)]
    return Rule(_apart(sum(sizes), places))


def _identity(values: np.ndarray) -> np.ndarray:
    return values


def _computed(function: Callable[[Any], Any]) -> Function:
    """A function of tensors as one of an array of channels."""

    def of_array(values: np.ndarray) -> np.ndarray:
        tensor = ops.convert_to_tensor(values[None], "float32")
        return np.asarray(ops.convert_to_numpy(function(tensor))[0], "float64")

    return of_array


def _activation(layer: Any) -> Function | None:
    """The activation of a layer, where it leaves channels apart."""
    name = activation_of(layer)
    if name == "linear":
        return _identity
    known = name in _ACTIVATIONS and keras.activations.get(name) is layer.activation
    return _computed(layer.activation) if known else None


def weights_of(layer: Layer) -> dict[str, np.ndarray]:
    """The weights of a layer by name, as arrays."""
    return {w.name: np.asarray(ops.convert_to_numpy(w)) for w in layer.weights}


def _mixing(
    layer: Any,
    kernel: np.ndarray,
    sizes: np.ndarray,
    pads: bool,
    axes: dict[str, tuple[str | None, ...]],
    between: int = 1,
) -> Rule:
    """The rule of a layer by its kernel, `(places, inputs, outputs)`, and its magnitudes."""
    bias = np.zeros(kernel.shape[-1]) if layer.bias is None else weights_of(layer)["bias"]
    if getattr(layer.bias, "constraint", None) is not None:
        pads = True  # what a constant adds would not stay in such a bias
    does = Mixing(kernel.sum(0), sizes.sum(0), bias.astype("float64"), _activation(layer), pads)
    settings = ("units",) if isinstance(layer, keras.layers.Dense) else ("filters",)
    return Rule(does, {**axes, "bias": ("out",)}, settings, between)


def _of_dense(layer: Any, channels: int) -> Rule | None:
    kernel = weights_of(layer)["kernel"].astype("float64")[None]
    return _mixing(layer, kernel, abs(kernel), False, {"kernel": ("in", "out")})


def _pads(layer: Any) -> bool:
    return layer.padding != "valid" and math.prod(layer.kernel_size) > 1


def _of_convolution(layer: Any, channels: int) -> Rule | None:
    if layer.groups != 1:
        return None
    kernel = weights_of(layer)["kernel"].astype("float64")
    axes = {"kernel": (*(None,) * (kernel.ndim - 2), "in", "out")}
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    return _mixing(layer, kernel, abs(kernel), _pads(layer), axes)


def _of_transposed(layer: Any, channels: int) -> Rule:
    # Outputs lie between inputs, and some get more of the places of a kernel than others.
    kernel = weights_of(layer)["kernel"].astype("float64")
    axes = {"kernel": (*(None,) * (kernel.ndim - 2), "out", "in")}
    kernel = kernel.reshape(-1, *kernel.shape[-2:]).swapaxes(1, 2)
    return _mixing(layer, kernel, abs(kernel), True, axes)


def _of_depthwise(layer: Any, channels: int) -> Rule | None:
    activation = _activation(layer)
    if activation is None:
        return None
    kernel = weights_of(layer)["kernel"].astype("float64")
    axes = {"kernel": (*(None,) * (kernel.ndim - 2), "in", None), "bias": ("out",)}
    flat = kernel.reshape(math.prod(kernel.shape[:-2]), -1)
    count = flat.shape[1]
    bias = np.zeros(count) if layer.bias is None else weights_of(layer)["bias"]
    places = [np.arange(count).reshape(channels, -1)]
    return Rule(
        Keeping(places, flat.sum(0), abs(flat).sum(0), bias, activation, _pads(layer)), axes
    )


def _of_separable(layer: Any, channels: int) -> Rule:
    found = weights_of(layer)
    depthwise, pointwise = (
        found[name].astype("float64") for name in ("depthwise_kernel", "pointwise_kernel")
    )
    nothing = (None,) * (depthwise.ndim - 2)
    axes = {
        "depthwise_kernel": (*nothing, "in", None),
        "pointwise_kernel": (*nothing, "between", "out"),
    }
    each = depthwise.reshape(-1, *depthwise.shape[-2:])
    behind = pointwise.reshape(*depthwise.shape[-2:], -1)
    sums, sizes = (
        np.einsum("im,imo->io", a.sum(0), b)[None]
        for a, b in ((each, behind), (abs(each), abs(behind)))
    )
    return _mixing(layer, sums, sizes, _pads(layer), axes, between=depthwise.shape[-1])


def _of_normalization(layer: Any, channels: int) -> Rule | None:
    if getattr(layer, "renorm", False):
        return None
    found = {name: array.astype("float64") for name, array in weights_of(layer).items()}
    scale = found.get("gamma", 1.0) / np.sqrt(found["moving_variance"] + layer.epsilon)
    offset = found.get("beta", 0.0) - found["moving_mean"] * scale
    places = [np.arange(channels)[:, None]]
    return Rule(
        Keeping(places, scale, abs(scale), offset, _identity), dict.fromkeys(found, ("out",))
    )


def _of_prelu(layer: Any, channels: int) -> Rule | None:
    alpha = weights_of(layer)["alpha"].astype("float64")
    if alpha.size != channels or alpha.shape[-1] != channels:
        return None  # slopes that differ by place, or that all channels share
    slopes = alpha.reshape(-1)
    does = replace(
        _apart(channels),
        activation=lambda values: np.where(values < 0, slopes * values, values),
        size=np.maximum(1.0, abs(slopes)),
    )
    return Rule(does, {"alpha": (*(None,) * (alpha.ndim - 1), "out")})


_WITH_KERNELS: dict[str, Callable[[Any, int], Rule | None]] = {
    "Dense": _of_dense,
    **{f"Conv{n}D": _of_convolution for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _of_transposed for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _of_depthwise for n in (1, 2)},
    **{f"SeparableConv{n}D": _of_separable for n in (1, 2)},
    "BatchNormalization": _of_normalization,
    "PReLU": _of_prelu,
}
