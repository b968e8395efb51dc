"""Small integers in the place of a float32 kernel of a LiteRT file: `code * step` by a DEQUANTIZE.

A runtime then multiplies with the kernel that the Keras model has, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qareg.export.litert.flatbuffer import Chain, Constant


def quantize(
    model: Any,
    constant: Constant,
    codes: np.ndarray,
    steps: np.ndarray,
    axis: int | None,
    kind: str,
) -> None:
    """Puts integer codes and a DEQUANTIZE operator in the place of a constant.

    Args:
        model: A `ModelT`, which is changed.
        constant: The constant.
        codes: Integer array in its shape.
        steps: Float32 array of shape `(1,)`, or one step for each slice along `axis`.
        axis: The axis of the channels, or `None`.
        kind: `"int8"`, `"int4"` or `"int2"`.
    """
    chain = Chain(model, constant.graph)
    stored = chain.constant(codes, kind, steps, axis or 0)
    chain.apply("DEQUANTIZE", [stored], [constant.tensor])
    chain.graph.tensors[constant.tensor].buffer = 0
    chain.place()
