"""`.tflite` files as C++ source, for microcontrollers that have no files to read."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_qareg import __version__
from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.inspection import litert_content
from keras_qareg.export.litert.micro_proof import measured_arena
from keras_qareg.files import check_new, check_target

SUFFIXES = (".cc", ".h")
# What `Add...()` of TFLite Micro's MicroMutableOpResolver there is for built-in operators (August 2026).
# They have the operators' names, but for capitals and underscores: AddConv2D is of CONV_2D.
_BUILT_IN = """\
    Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd BroadcastArgs
    BroadcastTo CallOnce Cast Ceil Concatenation Conv2D Cos CumSum DepthToSpace DepthwiseConv2D
    Dequantize Div DynamicUpdateSlice Elu EmbeddingLookup Equal Exp ExpandDims Fill Floor FloorDiv
    FloorMod FullyConnected Gather GatherNd Greater GreaterEqual HardSwish If L2Normalization L2Pool2D
    LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd LogicalNot LogicalOr Logistic MaxPool2D Maximum
    Mean Minimum MirrorPad Mul Neg NotEqual Pack Pad PadV2 Prelu Quantize ReadVariable ReduceAll
    ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear ResizeNearestNeighbor ReverseV2 Round Rsqrt
    SelectV2 Shape Sin Slice Softmax SpaceToBatchNd SpaceToDepth Split SplitV Sqrt Square
    SquaredDifference Squeeze StridedSlice Sub Sum Svdf Tanh Transpose TransposeConv
    UnidirectionalSequenceLSTM Unpack VarHandle While ZerosLike
"""
_ADDED = {name.lower(): name for name in _BUILT_IN.split()}
_CUSTOM = {
    "TFLM_DECODE": "Decode",
    "ethos-u": "EthosU",
    "CIRCULAR_BUFFER": "CircularBuffer",
    "TFLite_Detection_PostProcess": "DetectionPostprocess",
}
_BYTES_A_LINE = 12


@dataclass(frozen=True)
class CArray:
    """The C++ source of a `.tflite` file.

    Attributes:
        source: The `.cc` file, which has the bytes.
        header: The `.h` file.
        bytes: How many bytes there are.
        operators: What the model needs of TFLite Micro: the names behind `Add`, such as `"Conv2D"`.
        arena_bytes: The arena that the header states, or `None` where it was not measured.

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#c-source
    """

    source: Path
    header: Path
    bytes: int
    operators: tuple[str, ...]
    arena_bytes: int | None

    def __str__(self) -> str:
        arena = "of a size that was not measured"
        if self.arena_bytes is not None:
            arena = f"of {self.arena_bytes:,} bytes"
        return (
            f"{self.source}, {self.header.name}: {self.bytes:,} bytes, {len(self.operators)} operators, "
            f"an arena {arena}"
        )


def c_array(
    path: str | os.PathLike[str], name: str | None = None, *, force: bool = False
) -> CArray:
    """Writes a `.tflite` file as C++ source: `model.cc` and `model.h` beside `model.tflite`.

    The header declares the array and its size, states the arena that the file ran in where TFLite
    Micro's package is installed (`pip install keras-qareg[micro]`), and has a function that adds the
    operators of the model to a `MicroMutableOpResolver`.

    Args:
        path: The `.tflite` file: of `export.litert`, of Vela, or another one.
        name: What names in the source begin with; by default that of the file, without what C does
            not allow.
        force: Whether to replace files that exist. Defaults to `False`.

    Returns:
        A `CArray`.

    Raises:
        ValueError: If it is no `.tflite` file, has operators that TFLite Micro has not, or `name` is no
            name in C.
        FileExistsError: If there are such files, and no `force`.

    Example:

    >>> from keras_qareg.export.litert.c_array import identifier
    >>> identifier("keywords-4bit"), identifier("8bit")
    ('keywords_4bit', 'model_8bit')

    See also: https://keras-qareg.github.io/keras-qareg/formats.html#c-source
    """
    path = check_target(path, ".tflite")
    content = litert_content(path)
    if name is not None and name != identifier(name):
        raise ValueError(f"Expected a name in C, such as '{identifier(name)}'. Received: {name!r}")
    source, header = (check_new(path.with_suffix(suffix), force) for suffix in SUFFIXES)
    operators = _operators(content, path)
    arena, told = measured_arena(content)
    name = name or identifier(path.stem)
    texts = {
        source: _source(content, name, header.name),
        header: _header(len(content), name, path.name, operators, (arena, told)),
    }
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        for file, text in texts.items():
            (Path(folder) / file.name).write_text(text, encoding="utf-8")
        for file in texts:
            (Path(folder) / file.name).replace(file)
    return CArray(source, header, len(content), operators, arena)


def identifier(text: str) -> str:
    """A name in C that is as near to a text as can be."""
    # Two underscores, and one at the beginning, are the compiler's own.
    name = re.sub("_+", "_", re.sub(r"[^A-Za-z0-9]", "_", text)).strip("_") or "model"
    return name if name[0].isalpha() else f"model_{name}"


def _operators(content: bytes, path: Path) -> tuple[str, ...]:
    """What is behind `Add` for each operator, in alphabetical order.

    Raises:
        ValueError: If TFLite Micro has no such operator.
    """
    model = flatbuffer.read(content)
    names = {_name(model, o) for graph in model.subgraphs for o in graph.operators or []}
    found = {name: _added(name) for name in names}
    missing = sorted(name for name, added in found.items() if added is None)
    if missing:
        raise ValueError(
            f"Expected a file of operators that TFLite Micro has. Received: {path} with "
            f"{', '.join(missing)}. Write the model without the layers that need them."
        )
    return tuple(sorted(added for added in found.values() if added is not None))


def _name(model: Any, operator: Any) -> str:
    name = flatbuffer.operator_name(model, operator)
    custom = model.operatorCodes[operator.opcodeIndex].customCode
    return custom.decode(errors="replace") if name == "CUSTOM" and custom else name


def _added(name: str) -> str | None:
    return _CUSTOM.get(name) or _ADDED.get(name.replace("_", "").lower())


def _source(content: bytes, name: str, header: str) -> str:
    lines = [
        ", ".join(f"0x{byte:02x}" for byte in content[start : start + _BYTES_A_LINE])
        for start in range(0, len(content), _BYTES_A_LINE)
    ]
    listed = ",\n    ".join(lines)
    return (
        f"// Written by keras_qareg {__version__}.\n"
        f'#include "{header}"\n\n'
        f"alignas(16) const unsigned char {name}_data[{name}_data_size] = {{\n    {listed}}};\n"
    )


def _header(
    size: int, name: str, file: str, operators: tuple[str, ...], arena: tuple[int | None, str]
) -> str:
    guard = f"{name.upper()}_H_"
    bytes_, told = arena
    constant = f"constexpr std::size_t {name}_arena_size"
    stated = f"// {name}_arena_size: not measured, {told}."
    if bytes_ is not None:
        stated = (
            f"// The least arena of those tried that it ran in: {told}.\n"
            f"// Pointers of 32 bits take less, other kernels may take more.\n{constant} = {bytes_};"
        )
    calls = " &&\n         ".join(f"resolver.Add{operator}() == 0" for operator in operators)
    return f"""// {file} as an array. Written by keras_qareg {__version__}.
#ifndef {guard}
#define {guard}

#include <cstddef>

constexpr std::size_t {name}_data_size = {size};
extern const unsigned char {name}_data[{name}_data_size];

{stated}

// Adds the operators of the model, and no others:
//   tflite::MicroMutableOpResolver<{len(operators)}> resolver;
//   if (!{name}_add_operators(resolver)) return kTfLiteError;
template <typename Resolver>
bool {name}_add_operators(Resolver& resolver) {{
  return {calls or "true"};
}}

#endif  // {guard}
"""
