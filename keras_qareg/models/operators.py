"""What the operations of a model are in a full-integer file, as far as their ranges go.

TensorFlow Lite's quantization specification says which operators have integer forms, which of them
want the same range on all sides, and which have ranges that the runtime prescribes.
"""

from __future__ import annotations

import numbers
from typing import Any

import keras
from keras.layers import BatchNormalization, Layer

from keras_qareg.layers import WeightNormalized
from keras_qareg.models.accounting import inner_layer
from keras_qareg.models.flattening import Call

# What an operation may be:
KERNEL = "kernel"  # multiplies with a kernel; a normalization and a ReLU behind it are part of it
FUSING = "fusing"  # has a range of its own; a ReLU behind it is part of it
SCALED = "scaled"  # the same of one tensor, and numbers
OWN = "own"  # has a range of its own
SAME = "same"  # outputs are some of the inputs, so that they are on the grid of these
ROUNDED = "rounded"  # outputs must have the range of the inputs, and are rounded to it
JOINED = "joined"  # all inputs and the output must have one range
FIXED = "fixed"  # the range is prescribed
RELU = "relu"
NORM = "norm"
THROUGH = "through"  # does nothing in inference
# Activations that are part of the operator before them.
FUSED = ("linear", "relu", "relu6")
# Step and zero point that the runtime prescribes, by the bits of codes.
PRESCRIBED = {
    8: {"softmax": (2.0**-8, -128), "sigmoid": (2.0**-8, -128), "tanh": (2.0**-7, 0)},
    16: dict.fromkeys(("softmax", "sigmoid", "tanh"), (2.0**-15, 0)),
}
_KERNELS = ("Conv1D", "Conv2D", "DepthwiseConv2D", "Dense")
_POOLS = ("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D")
_POOLING = (*_POOLS, "MaxPool", "AveragePool")
_KINDS = {
    **dict.fromkeys((*_KERNELS, "WNQConv2D", "WNQDepthwiseConv2D", "WNQDense"), KERNEL),
    **dict.fromkeys(("Add", "Subtract", "Multiply"), FUSING),
    "Rescaling": SCALED,
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D", "Mean"), OWN),
    **dict.fromkeys(("LeakyReLU", "LeakyRelu", "Gelu", "HardSilu"), OWN),
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D", "MaxPool", "Flatten", "Reshape"), SAME),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D", "Permute", "Transpose"), SAME),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D"), SAME),
    **dict.fromkeys(("UpSampling1D", "RepeatVector", "GetItem", "Squeeze", "ExpandDims"), SAME),
    **dict.fromkeys(("AveragePooling1D", "AveragePooling2D", "AveragePool"), ROUNDED),
    **dict.fromkeys(("Concatenate", "Maximum", "Minimum"), JOINED),
    **dict.fromkeys(("Softmax", "Sigmoid", "Tanh"), FIXED),
    **dict.fromkeys(("Relu", "Relu6"), RELU),
    **dict.fromkeys(("BatchNormalization", "FreezableBatchNormalization"), NORM),
    **dict.fromkeys(("Dropout", "SpatialDropout1D", "SpatialDropout2D", "Identity"), THROUGH),
    **dict.fromkeys(("GaussianNoise", "GaussianDropout", "ActivityRegularization"), THROUGH),
}
_BY_ACTIVATION = {
    **dict.fromkeys(("softmax", "sigmoid", "tanh"), FIXED),
    **dict.fromkeys(("relu", "relu6"), RELU),
    **dict.fromkeys(("leaky_relu", "gelu", "hard_silu"), OWN),
    "linear": THROUGH,
}
_PIECED = ("silu", "hard_sigmoid")  # as `splitting` writes them
_KNOWN = ", ".join(sorted({*_BY_ACTIVATION, *_PIECED} - {"linear"}))
_GENERAL = (
    "Quantize what is before and behind it as models of their own, or leave activations in floating "
    "point: export.litert does so without ranges."
)
# What to do instead, by the beginning of the name of a class.
_INSTEAD = {
    "SeparableConv": "Write it as a DepthwiseConv2D and a Conv2D of kernel size 1.",
    "Conv2DTranspose": "Write it as an UpSampling2D and a Conv2D.",
    "DepthwiseConv1D": "Write it as a DepthwiseConv2D, with an axis of size 1.",
    "Normalization": "Give it the last axis, or none.",
    "Average": "Write it as an Add and a Rescaling.",
}


class NoIntegerForm(ValueError):  # noqa: N818
    """Why an operation has no integer form, and what to do: ends a sentence."""


def kind_of(call: Call) -> str:
    """What an operation is in a full-integer file.

    Raises:
        NoIntegerForm: If it has no integer form.
    """
    operation = call.operation
    layer = inner_layer(operation) if isinstance(operation, Layer) else operation
    name = type(layer).__name__
    ours = isinstance(layer, WeightNormalized) or name == "FreezableBatchNormalization"
    if not (ours or type(layer).__module__.startswith("keras.")):
        raise NoIntegerForm(_GENERAL)
    if isinstance(layer, keras.layers.Activation):
        found = _BY_ACTIVATION.get(activation_of(layer))
        if found is None:
            raise NoIntegerForm(f"Use one of {_KNOWN}.")
        return found
    if isinstance(layer, keras.layers.ReLU):
        return _kind_of_relu(layer)
    if isinstance(layer, keras.layers.UpSampling2D):
        return _kind_of_resizing(layer)
    if name.startswith("Random") and isinstance(layer, Layer):
        return THROUGH  # augments images in training
    if name not in _KINDS:
        said = [text for start, text in _INSTEAD.items() if name.startswith(start)]
        raise NoIntegerForm(said[0] if said else _GENERAL)
    _check(call, layer, _KINDS[name])
    return _KINDS[name]


def _kind_of_relu(layer: Any) -> str:
    if (
        layer.threshold
        or layer.max_value not in (None, 6)
        or (layer.negative_slope and layer.max_value)
    ):
        raise NoIntegerForm("Use one with max_value=6 or without, and with threshold=0.")
    return OWN if layer.negative_slope else RELU


def _kind_of_resizing(layer: Any) -> str:
    if layer.interpolation not in ("nearest", "bilinear"):
        raise NoIntegerForm("Use interpolation='nearest' or 'bilinear'.")
    return SAME if layer.interpolation == "nearest" else ROUNDED


def _check(call: Call, layer: Any, kind: str) -> None:
    """Raises `NoIntegerForm` where an operation of a kind that has one is called in another way."""
    count = len(call.inputs)
    if kind == FUSING and isinstance(layer, Layer) and count != 2:
        raise NoIntegerForm("Take two tensors at a time.")
    given = keras.tree.flatten((call.args, call.kwargs))
    joined = [x for x in given if hasattr(x, "shape") or isinstance(x, numbers.Number)]
    if kind == JOINED and not isinstance(layer, Layer) and len(joined) > count:
        raise NoIntegerForm("Join tensors of the model alone, without constants.")
    if getattr(layer, "activation_quantizer", None) is not None:
        raise NoIntegerForm("It quantizes its inputs itself: make it with activation_bits=None.")
    if kind == NORM and getattr(layer, "renorm", False):
        raise NoIntegerForm("Make it anew with renorm=False.")


def activation_of(layer: Any) -> str:
    """The name of a layer's activation; `"linear"` where it has none."""
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "linear"
    return str(getattr(activation, "__name__", type(activation).__name__))


def prescribed(call: Call, bits: int) -> tuple[float, int]:
    """The step and the zero point of an operation of the kind `FIXED`."""
    is_activation = isinstance(call.operation, keras.layers.Activation)
    name = activation_of(call.operation) if is_activation else type(call.operation).__name__
    return PRESCRIBED[bits][name.lower()]


def is_hard_silu(call: Call) -> bool:
    """Whether an operation is a hard SiLU, as a layer or as one."""
    names = activation_of(call.operation), type(call.operation).__name__
    return "hard_silu" in names or "HardSilu" in names


def pools(call: Call) -> bool:
    """Whether an operation is a pooling, which a ReLU behind it becomes a part of."""
    return type(call.operation).__name__ in _POOLING


def folds(norm: Any, layer: Any, rank: int) -> bool:
    """Whether a batch normalization is one of the output channels of a layer.

    Args:
        norm: The normalization.
        layer: The layer before it, without wrappers.
        rank: Number of axes of the tensor between.
    """
    first = getattr(layer, "data_format", None) == "channels_first"
    channels = 1 if first else rank - 1
    return isinstance(norm, BatchNormalization) and norm.axis in (channels, channels - rank)
