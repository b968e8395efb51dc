"""The inputs that a file and Keras are compared on: the user's, else random ones."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_qareg.data import samples
from keras_qareg.export.litert.runtime import input_details
from keras_qareg.export.litert.signature import OPEN_SIZES, Signature
from keras_qareg.models.accounting import keeping_states
from keras_qareg.models.trial import fewest

SAMPLES = 8
# So many of the examples that somebody gives for a comparison count.
GIVEN = 64


def users_data(model: keras.Model, data: Any, count: int) -> Any:
    """The first of the user's inputs in the structure that a model is called with; `None` of none."""
    return None if data is None else samples(data, model, count=count, name="representative_data")


def sample_inputs(model: keras.Model, signature: Signature, data: Any) -> dict[str, np.ndarray]:
    """A few inputs of a model by name.

    Args:
        model: The model.
        signature: Its inputs.
        data: Inputs in the structure that it is called with, or `None` for random ones. Open axes
            then get the first size that the model can be called with.

    Raises:
        ValueError: If the data have other shapes than `signature`, or no size does.
    """
    if data is not None:
        inputs = {name: part[:SAMPLES] for name, part in signature.named(data).items()}
        for spec in signature.leaves:
            shape = inputs[spec.name].shape
            if any(m not in (None, n) for m, n in zip(spec.shape[1:], shape[1:], strict=True)):
                raise ValueError(
                    f"Expected `representative_data` of shape {tuple(spec.shape)} for input "
                    f"'{spec.name}'. Received: shape={shape}"
                )
        return in_batches(signature, inputs)
    words = fewest(model)
    if not signature.open_inputs:
        return random_inputs(signature, words)
    problem: Exception | None = None
    for size in OPEN_SIZES:
        inputs = random_inputs(signature.of_size(size), words)
        try:
            with keeping_states(model):
                model(signature.structured(inputs), training=False)
        # A model may raise whatever it likes about sizes that it is not made for.
        except Exception as error:
            problem = problem or error
        else:
            return inputs
    raise ValueError(
        f"Expected a model that can be called with one of the sizes {OPEN_SIZES} on its open axes. "
        f"Received: inputs {signature.open_inputs} of model '{model.name}' ({problem}). Say the sizes "
        "as `input_shape`, or pass `representative_data`."
    ) from problem


def random_inputs(signature: Signature, words: int | None = None) -> dict[str, np.ndarray]:
    """Numbers that inputs of their types could be: bytes of images, words of a vocabulary of a size."""
    random, inputs = np.random.default_rng(0), {}
    for spec in signature.leaves:
        shape = (spec.shape[0] or SAMPLES, *spec.shape[1:])
        if np.issubdtype(spec.dtype, np.floating):
            inputs[spec.name] = random.normal(size=shape).astype(spec.dtype)
        else:
            count = words or (256 if spec.dtype == "uint8" else 2)
            inputs[spec.name] = random.integers(0, count, shape).astype(spec.dtype)
    return inputs


def in_batches(signature: Signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first of so many examples as there must be in a batch."""
    return {
        spec.name: np.resize(inputs[spec.name], (spec.shape[0], *inputs[spec.name].shape[1:]))
        if spec.shape[0]
        else inputs[spec.name]
        for spec in signature.leaves
    }


def in_parts(
    signature: Signature, inputs: dict[str, np.ndarray], size: int | None = None
) -> list[dict[str, np.ndarray]]:
    """All examples, as many at a time as there must be in a batch; the last batch is filled up.

    Where there may be any number, they are `size`, by default all.
    """
    count = len(next(iter(inputs.values())))
    size = signature.leaves[0].shape[0] or size or count
    parts = [
        {k: v[start : start + size] for k, v in inputs.items()} for start in range(0, count, size)
    ]
    return [in_batches(signature, part) for part in parts]


def batch_size(content: bytes) -> int | None:
    """The number of examples that a file takes at once, or `None` for any number."""
    sizes = {
        int(detail["shape_signature"][0])
        for detail in input_details(content).values()
        if len(detail["shape_signature"])
    }
    return None if -1 in sizes else max(sizes, default=None)
