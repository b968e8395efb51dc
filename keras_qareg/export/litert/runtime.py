"""Running LiteRT files: on a batch, on the clock, and to see what a runtime makes of their kernels."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.signature import in_models_order

_TIMED_RUNS = 30


def signature(file: str | os.PathLike[str] | bytes) -> Any:
    """What runs a file, or the content of one, by the names of its inputs and outputs.

    Raises:
        ValueError: If the file names neither, as those of other programs may.
    """
    from ai_edge_litert.interpreter import Interpreter

    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    interpreter = Interpreter(model_content=content)
    if len(interpreter.get_signature_list()) != 1:
        raise ValueError(
            "Expected a .tflite file with one signature, which names its inputs and outputs, as Keras "
            f"writes it. Received: one with {len(interpreter.get_signature_list())}."
        )
    return interpreter.get_signature_runner()


def input_details(content: bytes) -> dict[str, Any]:
    """What the runtime says of the inputs of a file, by name: sizes (-1 is any), types, scales."""
    return dict(signature(content).get_input_details())


def prepared(
    content: bytes, inputs: dict[str, np.ndarray], delegate: bool = True, keep: bool = False
) -> Any:
    """An interpreter of a file that has its inputs and need only be invoked.

    Args:
        content: A `.tflite` file.
        inputs: Arrays by the names in its signature. Open axes get their sizes before memory is
            given out: XNNPACK does not take others later.
        delegate: Whether XNNPACK runs what it can. Defaults to `True`.
        keep: Whether tensors inside can be read after a run. Defaults to `False`.

    Raises:
        ValueError: If the inputs are not those of the file.
        RuntimeError: If it needs operators that are not built in, or does not take these sizes.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=kind,
        experimental_preserve_all_tensors=keep,
    )
    details = interpreter.get_signature_runner().get_input_details()
    if set(inputs) != set(details):
        raise ValueError(
            f"Expected inputs by the names in the file, {sorted(details)}. Received: {sorted(inputs)}"
        )
    for name, array in inputs.items():
        if tuple(details[name]["shape"]) != array.shape:
            interpreter.resize_tensor_input(details[name]["index"], array.shape)
    interpreter.allocate_tensors()
    for name, array in inputs.items():
        interpreter.set_tensor(details[name]["index"], stored(array, details[name]))
    return interpreter


def run_by_name(
    content: bytes, inputs: dict[str, np.ndarray], delegate: bool = True
) -> dict[str, np.ndarray]:
    """Runs a file on inputs by name; returns its outputs by name, floats where they are quantized."""
    interpreter = prepared(content, inputs, delegate)
    interpreter.invoke()
    details = interpreter.get_signature_runner().get_output_details()
    return {
        name: restored(interpreter.get_tensor(detail["index"]), detail)
        for name, detail in details.items()
    }


def stored(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Numbers as a tensor of a file holds them: of its type, quantized where it has a scale."""
    kind, (scale, zero_point) = detail["dtype"], detail["quantization"]
    if scale and np.issubdtype(array.dtype, np.floating) and np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        array = np.rint(array / scale + zero_point).clip(limits.min, limits.max)
    return array.astype(kind)


def restored(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """The float32 numbers that a quantized tensor of a file stands for; others as they are."""
    scale, zero_point = detail["quantization"]
    if not scale or not np.issubdtype(array.dtype, np.integer):
        return array
    return (array.astype("float32") - zero_point) * np.float32(scale)


def run_litert(
    path: str | os.PathLike[str], inputs: Any, delegate: bool = True
) -> list[np.ndarray]:
    """Runs a LiteRT file on a batch.

    Args:
        path: The `.tflite` file.
        inputs: An array; or, where the model has several inputs, a dict of arrays by the names in
            the file's signature, which are those of the model's inputs.
        delegate: Whether XNNPACK runs what it can, as by default on phones. Defaults to `True`.

    Returns:
        List of output arrays, in the order of the outputs of the Keras model. Those that the file
        gives as int8 or uint8 with a scale are float32 here, and such inputs may be floats.

    Raises:
        ValueError: If the inputs are not those of the file.
    """
    content = Path(path).read_bytes()
    names = list(input_details(content))
    if not isinstance(inputs, dict):
        parts = [inputs] if len(names) == 1 and hasattr(inputs, "shape") else inputs
        if len(names) != 1 or len(parts) != 1:
            raise ValueError(
                f"Expected a dict of arrays by the names of the inputs, {sorted(names)}. Received: "
                f"{type(inputs).__name__}"
            )
        inputs = {names[0]: parts[0]}
    arrays = {name: np.asarray(part) for name, part in inputs.items()}
    outputs = run_by_name(content, arrays, delegate)
    return [outputs[name] for name in in_models_order(outputs)]


def tensor_values(
    content: bytes, tensors: Iterable[tuple[int, int]], inputs: dict[str, np.ndarray]
) -> dict[tuple[int, int], np.ndarray]:
    """What tensors of a file are after a run, as the runtime computed them, without delegates.

    Args:
        content: A `.tflite` file.
        tensors: The places of graphs, and of tensors in them.
        inputs: What it is run on, by name.

    Returns:
        The arrays of those that the file has, by their places.
    """
    wanted = set(tensors)
    interpreter = prepared(content, inputs, delegate=False, keep=True)
    interpreter.invoke()
    found = {}
    for graph in {graph for graph, _ in wanted}:
        count = len(interpreter.get_tensor_details(graph))
        for place in sorted(place for number, place in wanted if number == graph and place < count):
            found[graph, place] = interpreter.get_tensor(place, graph)
    return found


def delegated(content: bytes, inputs: dict[str, np.ndarray]) -> set[int]:
    """The places of the tensors that enter operators of the XNNPACK delegate, in the main graph.

    A kernel that an operator inside the delegate makes of codes counts by its own place.
    """
    interpreter = prepared(content, inputs)
    model = flatbuffer.read(content)
    made = {
        int(operator.inputs[0]): int(operator.outputs[0])
        for operator in model.subgraphs[0].operators
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE"
    }
    operators: list[Any] = interpreter._get_ops_details()
    inside: set[int] = set()
    for operator in operators:
        if operator["op_name"] == "DELEGATE":
            taken = {int(i) for i in operator["inputs"]}
            inside |= {made.get(i, i) for i in taken} - {int(i) for i in operator["outputs"]}
    return inside


def time_ratio(content: bytes, reference: bytes, inputs: dict[str, np.ndarray]) -> float:
    """Median time of a run of a file, in units of that of another; both are run in turn.

    Args:
        content: A `.tflite` file.
        reference: Another, with the same inputs.
        inputs: What they are run on, by name.

    Returns:
        The median of the ratios.
    """
    runs = [prepared(file, inputs).invoke for file in (content, reference)]
    ratios = []
    for place in range(_TIMED_RUNS + 3):
        seconds = []
        for run in runs:
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        if place >= 3:
            ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)
