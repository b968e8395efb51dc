"""TensorFlow's converter: from a plain model to the bytes of a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.samples import in_batches, in_parts
from keras_qareg.export.litert.signature import Signature, is_flat, misplaced, named_outputs
from keras_qareg.models.accounting import keeping_states
from keras_qareg.models.selection import check_float


@dataclass(frozen=True)
class Source:
    """A model that was converted once, as it can be: others of its files follow from that.

    Attributes:
        model: A plain model, with outputs that a file can name.
        signature: Its inputs as the file takes them.
        inputs: A batch of one example, or of as many as the file takes, by name.
        folder: Where the converter may write.
        float32: The file of the model with all its numbers.
    """

    model: keras.Model
    signature: Signature
    inputs: dict[str, np.ndarray]
    folder: Path
    float32: bytes = field(repr=False)

    @classmethod
    def of(
        cls,
        model: keras.Model,
        signature: Signature,
        inputs: dict[str, np.ndarray],
        folder: Path,
        one: bool,
    ) -> Source:
        """Converts a model.

        Args:
            model: A plain model.
            signature: Its inputs.
            inputs: A few of them by name.
            folder: Where the converter may write.
            one: Whether the file is to take one example at a time, and fixed sizes. Models with loops
                over time have no built-in operators otherwise, and do so in any case.

        Raises:
            ValueError: If LiteRT has no operators for the model, or not with open sizes.
        """
        # Microcontrollers run one example at a time, and need to know it: they do not resize.
        signature = signature.of_one() if one else signature
        if one and signature.open_inputs:
            raise _open(model, signature, "TFLite Micro, which does not resize")
        model, signature = _with_flat_outputs(model, signature, inputs)
        content = _converted(model, signature, folder, {})
        foreign = _foreign(content)
        if foreign and None in [x.shape[0] for x in signature.leaves]:
            signature = signature.of_one()
            content = _converted(model, signature, folder, {})
            foreign = _foreign(content)
        if foreign and signature.open_inputs:
            raise _open(
                model, signature, f"operators {foreign}, which LiteRT does not have built in"
            )
        if foreign:
            raise ValueError(
                f"Expected a model of operators that LiteRT has built in. Received: model "
                f"'{model.name}', which needs {foreign} of TensorFlow."
            )
        inputs = in_batches(signature, {name: array[:1] for name, array in inputs.items()})
        return cls(model, signature, inputs, folder, content)

    def float16(self) -> bytes:
        """The file with float16 constants."""
        import tensorflow as tf

        kinds = {"supported_types": [tf.float16]}
        return self._optimized({"target_spec": kinds})

    def int8(self, data: dict[str, np.ndarray] | None, input_type: str, output_type: str) -> bytes:
        """The file with int8 kernels, and with int8 activations where there are data.

        Args:
            data: Inputs to calibrate on, by name; or `None`.
            input_type: The type of the inputs of the file.
            output_type: The type of its outputs.

        Raises:
            ValueError: If the model has loops over time, and there are data.
        """
        options: dict[str, Any] = {}
        if data is not None:
            self._check_no_loops("Leave out `representative_data`, or unroll")
            options["representative_dataset"] = lambda: iter(in_parts(self.signature, data, 1))
            options |= _ends(input_type, output_type)
        return self._optimized(options)

    def with_ranges(self, input_type: str, output_type: str) -> bytes:
        """The full-integer file of a model that says the ranges of its activations itself.

        Args:
            input_type: The type of the inputs of the file.
            output_type: The type of its outputs.

        Raises:
            ValueError: If the model has loops over time.
        """
        self._check_no_loops("Unroll")
        return self._optimized(_ends(input_type, output_type))

    def _check_no_loops(self, advice: str) -> None:
        loops = len(flatbuffer.read(self.float32).subgraphs) // 2
        if loops:  # calibration inside them ends the process
            raise ValueError(
                "Expected a model without loops over time to make full integer. Received: model "
                f"'{self.model.name}' with {loops} of them. {advice} the recurrent layers "
                "(unroll=True)."
            )

    def _optimized(self, options: dict[str, Any]) -> bytes:
        import tensorflow as tf

        options = {"optimizations": [tf.lite.Optimize.DEFAULT], **options}
        return _converted(self.model, self.signature, self.folder, options)


def _ends(input_type: str, output_type: str) -> dict[str, Any]:
    """Options of the converter for the types of inputs and outputs; it knows int16 as int8."""
    import tensorflow as tf

    kinds = {"inference_input_type": input_type, "inference_output_type": output_type}
    return {
        option: tf.uint8 if kind == "uint8" else tf.int8
        for option, kind in kinds.items()
        if kind != "float32"
    }


def _with_flat_outputs(
    model: keras.Model, signature: Signature, inputs: dict[str, np.ndarray]
) -> tuple[keras.Model, Signature]:
    """The model itself; or one around it whose outputs TensorFlow can name."""
    with keeping_states(model):  # a file begins with what is remembered
        outputs = model(signature.structured(inputs), training=False)
    if is_flat(outputs):
        return model, signature
    symbols = [
        keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name) for x in signature.leaves
    ]
    named = {x.name: symbol for x, symbol in zip(signature.leaves, symbols, strict=True)}
    outputs = model(signature.structured(named), training=False)
    specs = {x.name: x for x in signature.leaves}
    return keras.Model(named, named_outputs(outputs), name=model.name), Signature(specs)


def _converted(
    model: keras.Model, signature: Signature, folder: Path, options: dict[str, Any]
) -> bytes:
    file = folder / "converted.tflite"
    with warnings.catch_warnings():
        # The converter calibrates with an interpreter that it says is deprecated.
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        try:
            model.export(
                file,
                format="litert",
                verbose=False,
                input_signature=[signature.specs],
                **options,
            )
        except Exception as error:
            if signature.open_inputs:
                raise _open(model, signature, f"{type(error).__name__}: {error}") from error
            if type(error).__name__ == "ConverterError":  # pages of the compiler's own language
                check_float(model)
            raise
    content = bytearray(file.read_bytes())
    for held, wanted in misplaced(content, [x.name for x in signature.leaves]):
        held[:] = wanted
    return bytes(content)


def _foreign(content: bytes) -> list[str]:
    """The operators of a file that are TensorFlow's, which runtimes do not have built in."""
    names = [code.customCode or b"" for code in flatbuffer.read(content).operatorCodes]
    return sorted(name.decode() for name in names if name.startswith(b"Flex"))


def _open(model: keras.Model, signature: Signature, problem: str) -> ValueError:
    return ValueError(
        f"Expected fixed sizes for inputs {signature.open_inputs} of model '{model.name}', where None "
        f"is any size. Received: {problem}. Say the sizes as `input_shape`."
    )
