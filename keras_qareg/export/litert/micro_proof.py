"""The proof of a file for TFLite Micro: that runtime runs it, where its package is installed."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.micro import expanded
from keras_qareg.export.litert.runtime import input_details, stored

# Enough to measure in. Besides what is then in use, preparing operators takes memory for a while.
_ARENA_BYTES, _STEPS = 64 << 20, 32
# The runtime begins its arena at a multiple of 16 bytes, and gives memory out in such pieces.
_ALIGNMENT = 16


def prove_micro(content: bytes, inputs: dict[str, np.ndarray]) -> tuple[str, int | None]:
    """Runs a file in TFLite Micro, and the same without `TFLM_DECODE`: they must agree to the bit.

    Args:
        content: A `.tflite` file of `rewrite_micro`.
        inputs: What it is run on, by name.

    Returns:
        What was found, for the report: also where the package `tflite-micro` is not installed, or has
        no operator for some layer of the model; and the arena that the file ran in, in bytes.

    Raises:
        ValueError: If the outputs are not the same.
    """
    try:
        import tflite_micro  # noqa: F401
    except ImportError:
        return "not run in TFLite Micro (`pip install tflite-micro` to have it done)", None
    arrays = _in_order(content, inputs)
    try:
        plain, _ = _run(expanded(content), arrays, _ARENA_BYTES)
    except RuntimeError as error:
        return f"TFLite Micro does not run some layer of this model ({error})", None
    try:
        _, used = _run(content, arrays, _ARENA_BYTES)
        decoded, arena = _run_in_little(content, arrays, used)
    except RuntimeError as error:
        raise ValueError(
            f"Expected TFLite Micro to run the file as it runs the plain one. Received: {error}"
        ) from error
    if not all(np.array_equal(*pair, equal_nan=True) for pair in zip(plain, decoded, strict=True)):
        raise ValueError(
            "Expected the outputs of the plain file in TFLite Micro. Received: other ones. Nothing "
            "was written; please report the model."
        )
    return f"equal in TFLite Micro, to the bit, in an arena of {arena:,} bytes", arena


def _in_order(content: bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The inputs in the order of the graph, as this runtime takes them, in the types of the file."""
    runnable = expanded(content)
    details = {
        int(detail["index"]): stored(inputs[name], detail)
        for name, detail in input_details(runnable).items()
    }
    return [details[int(place)] for place in flatbuffer.read(runnable).subgraphs[0].inputs]


def _run(content: bytes, inputs: list[np.ndarray], arena: int) -> tuple[list[np.ndarray], int]:
    """The outputs of a file, and how much of the arena is in use."""
    from tflite_micro import runtime

    with tempfile.TemporaryFile() as said, _errors_into(said):
        try:
            interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena)
            for place, array in enumerate(inputs):
                interpreter.set_input(array, place)
            interpreter.invoke()
            interpreter.print_allocations()
        except RuntimeError as error:
            raise RuntimeError(_last_line(said) or str(error)) from error
        said.seek(0)
        found = re.search(rb"Arena allocation total (\d+) bytes", said.read())
    count = len(flatbuffer.read(content).subgraphs[0].outputs)
    return [interpreter.get_output(i) for i in range(count)], int(found[1]) if found else arena


def _run_in_little(
    content: bytes, inputs: list[np.ndarray], used: int
) -> tuple[list[np.ndarray], int]:
    """The outputs of a file in an arena that is hardly larger than it must be, and its size."""
    arena = used
    while True:
        arena = -(-(arena + used // _STEPS) // _ALIGNMENT) * _ALIGNMENT
        try:
            return _run(content, inputs, arena)[0], arena
        except RuntimeError:
            if arena >= _ARENA_BYTES:
                raise


@contextlib.contextmanager
def _errors_into(file: IO[bytes]) -> Iterator[None]:
    """The runtime writes what it has to say to the error output of the process, below Python."""
    before = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
