"""Running LiteRT files: on a batch, on the clock, and to see what a runtime makes of their kernels."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

_TIMED_RUNS = 30


def interpreter_of(path: Path) -> Any:
    """What runs a file; raises a `RuntimeError` where it needs operators that are not built in."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter


def signature(file: str | os.PathLike[str], delegate: bool = True) -> Any:
    """What runs a file by the names of its inputs and outputs, with XNNPACK or without."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return Interpreter(str(file), experimental_op_resolver_type=kind).get_signature_runner()


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
        List of output arrays, in the order of the outputs of the Keras model.
    """
    runner = signature(path, delegate)
    details = runner.get_input_details()
    if not isinstance(inputs, dict):
        inputs = dict(zip(sorted(details, key=natural), keras.tree.flatten(inputs), strict=True))
    outputs = runner(
        **{name: np.asarray(part, details[name]["dtype"]) for name, part in inputs.items()}
    )
    return [outputs[name] for name in sorted(outputs, key=natural)]


def natural(name: str) -> list[Any]:
    """So that `output_10` comes after `output_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def tensor_values(
    content: bytes, tensors: Iterable[tuple[int, str]]
) -> dict[tuple[int, str], np.ndarray]:
    """What tensors of a file are after a run, as the runtime computed them, without delegates.

    Args:
        content: A `.tflite` file.
        tensors: The places of graphs, and the names of tensors in them.

    Returns:
        The arrays of those that the file has.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    _set_zeros(interpreter)
    interpreter.invoke()
    found = {}
    wanted = set(tensors)
    for graph in {graph for graph, _ in wanted}:
        for detail in interpreter.get_tensor_details(graph):
            if (graph, detail["name"]) in wanted:
                values = interpreter.get_tensor(detail["index"], graph)
                found[graph, detail["name"]] = values
    return found


def delegated(file: Path) -> set[str]:
    """The names of the tensors that enter operators of the XNNPACK delegate, in the main graph."""
    interpreter = interpreter_of(file)
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    operators: list[Any] = interpreter._get_ops_details()
    inside: set[str] = set()
    for operator in operators:
        if operator["op_name"] == "DELEGATE":
            taken = {names.get(int(i), "") for i in operator["inputs"]}
            given = {names.get(int(i), "") for i in operator["outputs"]}
            inside |= {name.removesuffix("/codes") for name in taken} - given
    return inside


def time_ratio(file: Path, reference: Path) -> float:
    """Median time of a run of a file, in units of that of another; both are run in turn.

    Args:
        file: A `.tflite` file.
        reference: Another, with the same inputs.

    Returns:
        The median of the ratios, with inputs of the shapes in the files (batches of one).
    """
    runs = [_prepared(path) for path in (file, reference)]
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


def _prepared(path: Path) -> Callable[[], None]:
    interpreter = interpreter_of(path)
    _set_zeros(interpreter)
    run: Callable[[], None] = interpreter.invoke
    return run


def _set_zeros(interpreter: Any) -> None:
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
