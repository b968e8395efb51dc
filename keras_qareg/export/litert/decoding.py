"""Codebooks in a LiteRT file: packed indices and tables, and the operators that make kernels of them.

Indices are digits of 32-bit words (`packing.packed_words`). FLOOR_DIV by the powers of the base and
FLOOR_MOD by the base take them out (in each run: words are bytes, and a table has the digits of each);
GATHER looks them up in a table; MUL multiplies by the factors of a BatchNormalization. A large kernel
has these operators to itself. Small ones share them, because a dozen operators each would outweigh their
weights: the indices of all stand one behind the other, and each place is told which kernel and which
channel it is in:

    place                                            RANGE
    kernel    how many kernels began before          SCATTER_ND of ones at their beginnings, CUMSUM
    channel   (place - start) // length % channels   five numbers of each kernel, by GATHER
    value     tables[index + first] * factors[channel + first]

This happens once, ahead of the first run, in a graph of its own, whose result a variable keeps; or in
each run, for runtimes without variables, and then each kernel alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_qareg.export.litert.flatbuffer import Chain, Constant, add_graph
from keras_qareg.export.litert.recognition import Recognized, along
from keras_qareg.export.packing import (
    chains,
    indices_a_word,
    lower_base,
    packed_words,
    unpacked_words,
)

Kernel = tuple[Constant, Recognized]


def decode(model: Any, alone: Sequence[Kernel], together: Sequence[Kernel], once: bool) -> None:
    """Puts packed indices, tables, and the operators that look them up in the place of constants.

    Args:
        model: A `ModelT`, which is changed.
        alone: Constants with operators of their own, and what they are.
        together: Constants of the main graph that share operators, if it happens once.
        once: Whether this happens before the first run, and the kernels are kept in variables.
    """
    if once and (alone or together):
        _decode_once(model, alone, together)
    elif alone:
        for constant, found in alone:
            chain = Chain(model, constant.graph)
            _kernel(chain, found, constant.tensor, once)
            chain.place()
    for constant, _ in (*alone, *together):
        model.subgraphs[constant.graph].tensors[constant.tensor].buffer = 0


def _decode_once(model: Any, alone: Sequence[Kernel], together: Sequence[Kernel]) -> None:
    ahead = Chain(model, add_graph(model))
    for number, (constant, found) in enumerate(alone):
        values = ahead.tensor(found.indices.shape, "float32")
        _kernel(ahead, found, values, once=True)
        chain = Chain(model, constant.graph)
        _keep(ahead, values, chain, constant.tensor, str(number))
        chain.place()
    if together:
        stream, chain = _stream(ahead, together), Chain(model, 0)
        kept = chain.tensor((stream.size,), "float32")
        _keep(ahead, stream.tensor, chain, kept, "all")
        _take_apart(chain, stream._replace(tensor=kept), together)
        chain.place()
    ahead.place()
    main = Chain(model, 0)
    main.apply("CALL_ONCE", [], [], initSubgraphIndex=len(model.subgraphs) - 1)
    main.place()


def _keep(ahead: Chain, values: int, chain: Chain, output: int, name: str) -> None:
    """Keeps what one graph computes in a variable, and reads it in another."""
    variable = {"container": b"", "sharedName": name.encode()}
    handle = ahead.result("VAR_HANDLE", [], (), "resource", **variable)
    ahead.apply("ASSIGN_VARIABLE", [handle, values], [])
    handle = chain.result("VAR_HANDLE", [], (), "resource", **variable)
    chain.apply("READ_VARIABLE", [handle], [output])


def _indices(chain: Chain, indices: np.ndarray, levels: int, once: bool) -> int:
    """Packed indices taken apart: int32 tensor `(size,)`."""
    levels, shape = max(levels, 2), (indices.size,)
    if not once:
        return _digits_of_bytes(chain, indices, levels)
    base = lower_base(levels, indices.size)
    if base == 1:
        return _digits(chain, indices, levels)
    low = _digits(chain, indices % base, base)
    high = _digits(chain, indices // base, max(2, -(-levels // base)))
    high = chain.result("MUL", [high, chain.constant(base, "int32")], shape, "int32")
    return chain.result("ADD", [high, low], shape, "int32")


def _digits(chain: Chain, indices: np.ndarray, base: int) -> int:
    words, digits = packed_words(indices, base), indices_a_word(base)
    shape = (words.size, digits)
    stored = chain.constant(words[:, None], "int32")
    powers = chain.constant(base ** np.arange(digits), "int32")
    numbers = chain.result("FLOOR_DIV", [stored, powers], shape, "int32")
    numbers = chain.result("FLOOR_MOD", [numbers, chain.constant(base, "int32")], shape, "int32")
    return _first(chain, numbers, words.size * digits, indices.size)


def _digits_of_bytes(chain: Chain, indices: np.ndarray, base: int) -> int:
    """The same by a table of all bytes, of a kilobyte or two: divisions would take most of a run."""
    words, digits = packed_words(indices, base, 8), indices_a_word(base, 8)
    stored = chain.constant(words, "uint8")
    numbers = chain.cast(stored, words.shape, "uint8", "int32")
    if digits > 1:
        rows = unpacked_words(np.arange(base**digits, dtype="uint8"), base)
        table, shape = chain.constant(rows, "int32"), (words.size, digits)
        numbers = chain.result("GATHER", [table, numbers], shape, "int32", axis=0)
    return _first(chain, numbers, words.size * digits, indices.size)


def _first(chain: Chain, numbers: int, size: int, count: int) -> int:
    """So many of the numbers in a row; the last word may not be full."""
    numbers = chain.result("RESHAPE", [numbers], (size,), "int32", newShape=[size])
    if size == count:
        return numbers
    begin, length = chain.constant([0], "int32"), chain.constant([count], "int32")
    return chain.result("SLICE", [numbers, begin, length], (count,), "int32")


def _kernel(chain: Chain, found: Recognized, output: int, once: bool) -> None:
    """From packed indices to one kernel: a table, or one for some channels, and factors of channels."""
    shape, stored, axis = found.indices.shape, found.stored, found.axis or 0
    levels, groups = stored.tables.shape
    indices = _indices(chain, found.indices, levels, once)
    indices = chain.result("RESHAPE", [indices], shape, "int32", newShape=list(shape))
    if groups > 1:
        # The tables stand one behind the other, and an index moves on by those before its own.
        starts = along(levels * (np.arange(shape[axis]) // stored.size), axis, len(shape))
        indices = chain.result("ADD", [indices, chain.constant(starts, "int32")], shape, "int32")
    table = chain.constant(stored.tables.T.reshape(-1), "float32")
    if stored.factors is None:
        chain.apply("GATHER", [table, indices], [output], axis=0)
        return
    values = chain.result("GATHER", [table, indices], shape, "float32", axis=0)
    factors = chain.constant(along(stored.factors, axis, len(shape)), "float32")
    chain.apply("MUL", [values, factors], [output])


class _Stream(NamedTuple):
    """The values of several kernels, one behind the other.

    Attributes:
        tensor: The place of a float32 tensor `(size,)`.
        order: The place of the kernel of each part among those given.
        size: How many values there are.
    """

    tensor: int
    order: list[int]
    size: int


def _stream(chain: Chain, kernels: Sequence[Kernel]) -> _Stream:
    """All values, in one chain of operators for each number of levels that is worth its own."""
    tensors, order = [], []
    for levels, members in chains(
        [(len(found.tables), found.indices.size) for _, found in kernels]
    ).items():
        founds = [kernels[place][1] for place in members]
        flat = np.concatenate([found.indices.reshape(-1) for found in founds])
        indices = _indices(chain, flat, levels, once=True)
        tensors.append(_looked_up(chain, indices, flat.size, founds))
        order += members
    size = sum(found.indices.size for _, found in kernels)
    if len(tensors) > 1:
        tensors = [chain.result("CONCATENATION", tensors, (size,), "float32", axis=0)]
    return _Stream(tensors[0], order, size)


class _Layout(NamedTuple):
    """Where in the stream, its tables and its factors one kernel is: a row of five to seven numbers."""

    start: int
    length: int  # weights in a row that are in one channel
    channels: int
    table: int
    factor: int
    stride: int  # from a table to that of the next channels
    group: int  # channels that have one table


def _looked_up(chain: Chain, indices: int, size: int, founds: list[Recognized]) -> int:
    """The values at all places of a stream: float32 tensor `(size,)`."""
    layouts, tables, factors = _layouts(founds)
    rows = np.array(layouts, "int32")
    if not rows[:, 5].any():  # no kernel has several tables
        rows = rows[:, :5]
    elif (rows[:, 6] == 1).all():
        rows = rows[:, :6]
    columns = _columns(chain, rows, size)

    def apply(name: str, left: int, right: int, kind: str = "int32", **options: Any) -> int:
        return chain.result(name, [left, right], (size,), kind, **options)

    zero, one = chain.constant(0, "int32"), chain.constant(1, "int32")
    limit = chain.constant(size, "int32")
    place = chain.result("RANGE", [zero, limit, one], (size,), "int32")
    channel = apply("FLOOR_DIV", apply("SUB", place, columns[0]), columns[1])
    channel = apply("FLOOR_MOD", channel, columns[2])
    first = columns[3]
    if len(columns) > 5:
        group = channel if len(columns) == 6 else apply("FLOOR_DIV", channel, columns[6])
        first = apply("ADD", first, apply("MUL", group, columns[5]))
    table = chain.constant(tables, "float32")
    values = apply("GATHER", table, apply("ADD", indices, first), "float32", axis=0)
    if (factors == 1).all():
        return values
    factor = chain.constant(factors, "float32")
    factor = apply("GATHER", factor, apply("ADD", channel, columns[4]), "float32", axis=0)
    return apply("MUL", values, factor, "float32")


def _layouts(founds: list[Recognized]) -> tuple[list[_Layout], np.ndarray, np.ndarray]:
    """The layout of each kernel, and all tables and factors: first a 1, for kernels without any."""
    layouts, tables, factors = [], [], [np.ones(1, "float32")]
    start, table, factor = 0, 0, 1
    for found in founds:
        stored, shape = found.stored, found.indices.shape
        levels, groups = stored.tables.shape
        tables.append(stored.tables.T.reshape(-1))
        if stored.factors is None and groups == 1:
            layouts.append(_Layout(start, found.indices.size, 1, table, 0, 0, 1))
        else:
            axis = found.axis or 0
            place = (start, math.prod(shape[axis + 1 :]), shape[axis], table, factor)
            layouts.append(_Layout(*place, *((levels, stored.size) if groups > 1 else (0, 1))))
            ones = np.ones(shape[axis], "float32")
            factors.append(ones if stored.factors is None else stored.factors)
            factor += shape[axis]
        start, table = start + found.indices.size, table + tables[-1].size
    return layouts, np.concatenate(tables), np.concatenate(factors)


def _columns(chain: Chain, rows: np.ndarray, size: int) -> list[int]:
    """The numbers of the kernel that each place of a stream is in: tensors `(size,)`, or scalars."""
    count, width = rows.shape
    if count == 1:
        return [chain.constant(number, "int32") for number in rows[0]]
    stored = chain.constant(rows, "int32")
    starts = chain.constant(rows[1:, :1], "int32")
    ones = chain.constant(np.ones(count - 1), "int32")
    shape, axis = chain.constant([size], "int32"), chain.constant(0, "int32")
    begins = chain.result("SCATTER_ND", [starts, ones, shape], (size,), "int32")
    kernel = chain.result("CUMSUM", [begins, axis], (size,), "int32")
    numbers = chain.result("GATHER", [stored, kernel], (size, width), "int32", axis=0)
    columns = [chain.tensor((size,), "int32") for _ in range(width)]
    chain.apply("UNPACK", [numbers], columns, num=width, axis=1)
    return columns


def _take_apart(chain: Chain, stream: _Stream, kernels: Sequence[Kernel]) -> None:
    """From the values of all kernels to each in its shape."""
    members = [kernels[place] for place in stream.order]
    sizes = [found.indices.size for _, found in members]
    parts = [chain.tensor((size,), "float32") for size in sizes]
    splits, axis = chain.constant(sizes, "int32"), chain.constant(0, "int32")
    chain.apply("SPLIT_V", [stream.tensor, splits, axis], parts, numSplits=len(parts))
    for part, (constant, found) in zip(parts, members, strict=True):
        shape = list(found.indices.shape)
        chain.apply("RESHAPE", [part], [constant.tensor], newShape=shape)
