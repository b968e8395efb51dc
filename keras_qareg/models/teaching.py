"""What a teacher gives for data that stay the same: computed once, not in each epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_qareg.data import Data
from keras_qareg.models.trial import difference, is_random, outputs_of

# Outputs may take as much memory as the inputs do, or so many bytes.
_KEPT_BYTES = 1 << 26
# Relative; examples that do not see each other give the same in any batch, but for rounding.
_SAME, _TRIED = 1e-4, 8


def known_outputs(
    teacher: keras.Model, data: Data, batch_size: int
) -> tuple[np.ndarray, ...] | None:
    """The outputs of a model for all examples, as float32 arrays in the order of `keras.tree.flatten`.

    Args:
        teacher: A built model.
        data: What it is to be called with.
        batch_size: How many examples at a time.

    Returns:
        The outputs; or `None` where they must be computed anew each time: data are not arrays, have
            sample weights, or take less memory than the outputs; an output is random, or depends on
            the rest of its batch.
    """
    # Keras spreads sample weights over all targets, these outputs among them.
    if data.whole is None or data.steps is not None or data.whole[2] is not None:
        return None
    some = next(data.batches(_TRIED))[0]
    few = outputs_of(teacher, some)
    (count, given), (rows, _) = map(_size, (data.whole[0], some))
    if any(array.shape[:1] != (rows,) or array.dtype.kind not in "fiub" for array in few):
        return None
    needed = sum(array.size for array in few) * 4 * count // rows
    if needed > max(given, _KEPT_BYTES) or is_random(teacher, some) or _mixes(teacher, some, few):
        return None
    if type(teacher).predict_step is keras.Model.predict_step:
        found = keras.tree.flatten(teacher.predict(data.whole[0], batch_size, verbose=0))
    else:  # may give something else
        parts = [outputs_of(teacher, inputs) for inputs, _, _ in data.batches(batch_size)]
        found = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return tuple(array.astype("float32") for array in found)


def _size(inputs: Any) -> tuple[int, int]:
    """How many examples, and how many bytes."""
    arrays = [array for array in keras.tree.flatten(inputs) if array is not None]
    # Texts are tensors, which do not tell.
    return len(arrays[0]), sum(getattr(array, "nbytes", 0) for array in arrays)


def _mixes(teacher: keras.Model, some: Any, outputs: list[np.ndarray]) -> bool:
    """Whether an example has other outputs without the others of its batch."""
    first = keras.tree.map_structure(lambda x: None if x is None else x[:1], some)
    pairs = zip(outputs, outputs_of(teacher, first), strict=True)
    return any(difference(together[:1], alone) > _SAME for together, alone in pairs)
