"""Google's tools on one float model, for `benchmarks.pareto`: each gives a `.tflite` file.

TensorFlow's converter; litert-quantizer (formerly ai-edge-quantizer) with each of its algorithms; and
clustering by TensorFlow Model Optimization, from a process that has tf_keras
(`benchmarks.tfmot_clustering`).
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

CONVERTER, QUANTIZER, TFMOT = "TensorFlow's converter", "litert-quantizer", "TFMOT clustering"
# What a peer needs, by the name of its series.
PACKAGES = {
    CONVERTER: ("tensorflow",),
    QUANTIZER: ("litert_quantizer",),
    TFMOT: ("tf_keras", "tensorflow_model_optimization"),
}
LEVELS = (16, 4)


@dataclass(frozen=True)
class Context:
    """What all peers get.

    Attributes:
        model: The float model.
        samples: Float32 inputs to calibrate with.
        recovered: A float32 `.tflite` of kernels that are on a grid already: what
            `dequantized_weight_recovery` wants. A function, as it is not always needed.
        kept: A folder for what is trained.
        data_dir: Where the images are.
        epochs: Of TFMOT's training.
        rate: Its learning rate.
        seed: Its seed.
    """

    model: keras.Model
    samples: np.ndarray
    recovered: Callable[[], bytes]
    kept: Path
    data_dir: Path
    epochs: int
    rate: float
    seed: int = 0

    @cached_property
    def float32(self) -> bytes:
        """The float file, which litert-quantizer starts from."""
        return converted(self.model, "float32", self.samples)


Maker = Callable[[Context], bytes]


def peers() -> dict[str, tuple[str, Maker]]:
    """From the name of a cell to its series and what makes its file; those not installed are said."""
    found: dict[str, tuple[str, Maker]] = {}
    for series, cells in ((CONVERTER, _converter()), (QUANTIZER, _quantizer()), (TFMOT, _tfmot())):
        missing = [name for name in PACKAGES[series] if importlib.util.find_spec(name) is None]
        if missing:
            print(f"Left out {series}: {', '.join(missing)} is not installed.", flush=True)
            continue
        found |= {f"{series}, {name}": (series, maker) for name, maker in cells}
    return found


def _converter() -> Iterator[tuple[str, Maker]]:
    for form in ("float32", "float16", "dynamic int8", "full int8"):
        yield form, partial(_converted, form=form)


def _converted(context: Context, form: str) -> bytes:
    return converted(context.model, form, context.samples)


def converted(model: keras.Model, form: str, samples: np.ndarray) -> bytes:
    """What TensorFlow's converter makes of a model, by its documentation."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if form != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if form == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if form == "full int8":
            converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        content: bytes = converter.convert()
    return content


# Mode, bits of the weights, and the algorithms that take them. Those with "dense" are for dense layers
# alone: convolutions have min/max. Static files have activations of 8 bits. `RECOVERY` does not choose
# values, it finds again those that kernels have: it gets kernels of ours.
RECOVERY = "recovery of our 15 even levels"
_WHOLE = ("min/max", "OCTAV", "MSE")
_RECIPES = (
    ("weight-only", 8, (*_WHOLE, RECOVERY)),
    ("weight-only", 4, (*_WHOLE, RECOVERY)),
    ("dynamic", 8, (*_WHOLE, "hadamard in dense")),
    ("dynamic", 4, (*_WHOLE, "hadamard in dense", "GPTQ in dense", "OSCAR in dense")),
    ("dynamic", 2, ("min/max", "OCTAV")),
    ("static", 8, _WHOLE),
    ("static", 4, _WHOLE),
)


def _quantizer() -> Iterator[tuple[str, Maker]]:
    for mode, bits, algorithms in _RECIPES:
        for algorithm in algorithms:
            maker = partial(_quantized, mode=mode, bits=bits, algorithm=algorithm)
            yield f"{mode} int{bits}, {algorithm}", maker


def _quantized(context: Context, mode: str, bits: int, algorithm: str) -> bytes:
    """What litert-quantizer makes of TensorFlow's float32 file."""
    from litert_quantizer import qtyping, quantizer
    from litert_quantizer.algorithm_manager import AlgorithmName

    names = {
        "min/max": AlgorithmName.MIN_MAX_UNIFORM_QUANT,
        "OCTAV": AlgorithmName.OCTAV,
        "MSE": AlgorithmName.MSE,
        RECOVERY: AlgorithmName.DEQUANTIZED_WEIGHT_RECOVERY,
        "hadamard in dense": AlgorithmName.DECOMPOSED_HADAMARD_ROTATION,
        "GPTQ in dense": AlgorithmName.GPTQ,
        "OSCAR in dense": AlgorithmName.OSCAR,
    }
    operation = qtyping.TFLOperationName
    every, kernels = operation.ALL_SUPPORTED, (operation.CONV_2D, operation.FULLY_CONNECTED)
    recovering = algorithm == RECOVERY
    content = context.recovered() if recovering else context.float32
    made = quantizer.Quantizer(bytearray(content))
    plain = "min/max" if "dense" in algorithm else algorithm
    chosen = names[plain]
    if mode == "weight-only":
        made.add_weight_only_config(".*", every, bits, algorithm_key=chosen)
    elif mode == "dynamic":
        made.add_dynamic_config(".*", every, bits, algorithm_key=chosen)
    else:
        made.add_static_config(".*", every, 8, 8, algorithm_key=names["min/max"])
        for kind in kernels:
            made.add_static_config(".*", kind, 8, bits, algorithm_key=chosen)
    if plain != algorithm:
        made.add_dynamic_config(
            ".*", operation.FULLY_CONNECTED, bits, algorithm_key=names[algorithm]
        )
    calibration = None
    if made.need_calibration:
        calibration = made.calibrate(_calibration(context))
    result = made.quantize(calibration, enable_progress_report=False)
    return bytes(result.quantized_model)


def _calibration(context: Context) -> dict[str, list[dict[str, np.ndarray]]]:
    from keras_qareg.export.litert.runtime import signature

    (name,) = signature(context.float32).get_input_details()
    return {"serving_default": [{name: sample[None]} for sample in context.samples]}


def _tfmot() -> Iterator[tuple[str, Maker]]:
    for levels in LEVELS:
        for form in ("float32", "dynamic", "int8"):
            yield f"{levels} levels, {form}", partial(_clustered, levels=levels, form=form)


def _clustered(context: Context, levels: int, form: str) -> bytes:
    """A file of TFMOT's clustered model, which is trained once for all forms."""
    folder = context.kept / f"tfmot_{levels}_{context.epochs}_{context.rate:g}"
    settings = {
        "data-dir": context.data_dir,
        "levels": levels,
        "epochs": context.epochs,
        "rate": context.rate,
        "seed": context.seed,
    }
    trained_by_tfmot("tfmot_clustering", context.model, folder, settings)
    return (folder / f"{form}.tflite").read_bytes()


def trained_by_tfmot(
    program: str, model: keras.Model, folder: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """What a program of `benchmarks` found that has tf_keras, in a process of its own; run once.

    Args:
        program: Its name.
        model: ResNet8, whose weights it gets.
        folder: Where it writes its files, and `done.json` last.
        settings: Its other options.
    """
    done = folder / "done.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        weights = folder / "weights.npz"
        arrays: Any = {each.path: np.asarray(each) for each in model.weights}
        np.savez(weights, **arrays)
        given = {"weights": weights, "out": folder, **settings}
        words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", f"benchmarks.{program}", *words]
        subprocess.run(command, check=True, env={**os.environ, "TF_USE_LEGACY_KERAS": "1"})
    found: dict[str, Any] = json.loads(done.read_text())
    return found


def unsupported(error: Exception) -> dict[str, Any]:
    """The figures of a file that a peer could not make, or LiteRT not run."""
    return {"accuracy": 0.0, "error": f"{type(error).__name__}: {error}"[:200]}
