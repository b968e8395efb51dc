"""The proof of a file for TFLite Micro: that runtime runs it, where its package is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from keras_qareg.export.litert import flatbuffer, micro_run
from keras_qareg.export.litert.micro import expanded
from keras_qareg.export.litert.runtime import input_details, stored

# Enough to measure in.
_ARENA_BYTES = 64 << 20
# Preparing operators takes memory for a while, besides what is in use then: so many 32nds are tried.
_MORE = (128, 64, 32, 16, 8, 4, 2, 1, 0)
# The runtime begins its arena at a multiple of 16 bytes, and gives memory out in such pieces.
_ALIGNMENT = 16


def prove_micro(content: bytes, inputs: dict[str, np.ndarray]) -> tuple[str, int | None]:
    """Runs a file in TFLite Micro, and the same without `TFLM_DECODE`: they must agree to the bit.

    Args:
        content: A `.tflite` file of `rewrite_micro`.
        inputs: What it is run on, by name.

    Returns:
        What was found, for the report: also where the package `tflite-micro` is not installed, or does
        not run some layer of the model; and the arena that the file ran in, in bytes.

    Raises:
        ValueError: If the outputs are not the same.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        return "not run in TFLite Micro (`pip install tflite-micro` to have it done)", None
    plain = expanded(content)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plain").write_bytes(plain)
        (folder / "file").write_bytes(content)
        np.savez(folder / "inputs.npz", *_in_order(plain, inputs))
        count = len(flatbuffer.read(plain).subgraphs[0].outputs)
        found, said = _run(folder, [("plain", _ARENA_BYTES), ("file", _ARENA_BYTES)], count)
        if not found:
            return f"TFLite Micro does not run some layer of this model ({said})", None
        if len(found) < 2 or not _equal(*found):
            raise ValueError(
                "Expected the outputs of the plain file in TFLite Micro. Received: "
                f"{'other ones' if len(found) == 2 else said}. Nothing was written; please report the "
                "model."
            )
        arena = _least_arena(folder, said, found[0])
    return f"equal in TFLite Micro, to the bit, in an arena of {arena:,} bytes", arena


def measured_arena(content: bytes) -> tuple[int | None, str]:
    """The memory that TFLite Micro needs for the tensors of a file, whatever wrote it.

    Args:
        content: A `.tflite` file.

    Returns:
        The least arena that it ran in, in bytes; and where that was. Or `None`, and why there is none.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        return None, "the package tflite-micro is not installed"
    model = flatbuffer.read(content)
    if any(code.customCode == b"ethos-u" for code in model.operatorCodes):
        return None, "this machine has no Ethos-U NPU"
    graph = model.subgraphs[0]
    kinds = {0: "float32", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
    tensors = [graph.tensors[int(place)] for place in graph.inputs]
    if any(tensor.type not in kinds for tensor in tensors):
        return None, "an input has a type that NumPy does not have"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "file").write_bytes(content)
        inputs = [np.zeros(np.abs(tensor.shape), kinds[tensor.type]) for tensor in tensors]
        np.savez(folder / "inputs.npz", *inputs)
        found, said = _run(folder, [("file", _ARENA_BYTES)], len(graph.outputs))
        if not found:
            return None, f"TFLite Micro does not run it here ({said})"
        arena = _least_arena(folder, said, found[0])
    version = importlib.metadata.version("tflite-micro")
    return arena, f"tflite-micro {version}, {platform.system()} {platform.machine()}"


def _least_arena(folder: Path, said: str, outputs: list[np.ndarray]) -> int:
    """The smallest arena of those tried in which `file` runs, after it ran in a large one."""
    used = int(re.findall(r"Arena allocation total (\d+) bytes", said)[-1])
    sizes = [
        (used + used * more // 32) // _ALIGNMENT * _ALIGNMENT + 2 * _ALIGNMENT for more in _MORE
    ]
    in_little, _ = _run(folder, [("file", size) for size in sizes], len(outputs))
    if any(not _equal(outputs, others) for others in in_little):
        raise ValueError(
            f"Expected the same outputs of TFLite Micro in arenas of {sizes} bytes. Received: "
            "other ones. Nothing was written; please report the model."
        )
    return sizes[len(in_little) - 1] if in_little else _ARENA_BYTES


def _run(
    folder: Path, runs: list[tuple[str, int]], count: int
) -> tuple[list[list[np.ndarray]], str]:
    """The outputs of those runs that succeeded, and what the runtime said: all, or why it ended."""
    for old in folder.glob("[0-9]*.npz"):
        old.unlink()
    arguments = [word for file, arena in runs for word in (file, str(arena), str(count))]
    done = subprocess.run(
        [sys.executable, "-P", micro_run.__file__, str(folder), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found: list[list[np.ndarray]] = []
    for number in range(len(runs)):
        file = folder / f"{number}.npz"
        if not file.exists():
            reasons = [
                line
                for line in done.stderr.split("\n")
                if re.match("Node |Didn't|RuntimeError", line)
            ]
            return found, reasons[0] if reasons else f"it ended with {done.returncode}"
        with np.load(file) as outputs:
            found.append([outputs[f"arr_{place}"] for place in range(count)])
    return found, done.stderr


def _equal(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(some, others, strict=True))


def _in_order(content: bytes, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The inputs in the order of the graph, as this runtime takes them, in the types of the file."""
    arrays = {
        int(detail["index"]): stored(inputs[name], detail)
        for name, detail in input_details(content).items()
    }
    return [arrays[int(place)] for place in flatbuffer.read(content).subgraphs[0].inputs]
