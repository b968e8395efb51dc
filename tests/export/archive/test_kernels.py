"""Sections of kernels and of other tensors: whatever goes in comes out, in few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_qareg.export.archive import mixing, mixing_loops
from keras_qareg.export.archive.ans import Reader, StreamError, Writer, frequencies
from keras_qareg.export.archive.archive import coded_bytes
from keras_qareg.export.archive.fields import Cursor, FieldError, varint
from keras_qareg.export.archive.kernels import coding_of, decode_kernel, encode_kernel
from keras_qareg.export.archive.manifest import TOGETHER, Tensor
from keras_qareg.export.archive.tensors import decode_tensors, encode_tensors, numpy_dtype
from keras_qareg.numerics.clustering import kmeans
from keras_qareg.numerics.codebook import Codebook
from tests.helpers import error_of

pytestmark = pytest.mark.one_backend
RNG = np.random.default_rng(0)


def bound(book):
    return book.indices.size * book.entropy / 8


@pytest.mark.parametrize("levels", [2, 3, 16, 256])
@pytest.mark.parametrize("size", [100, 550])
def test_indices_without_structure_take_their_entropy(levels, size):
    frequencies = RNG.dirichlet(np.ones(levels))
    indices = RNG.choice(levels, (size, size), p=frequencies)
    book = Codebook(np.arange(levels) - levels // 2, indices)
    section = encode_kernel(book)
    np.testing.assert_array_equal(decode_kernel(section, (size, size)).weights, book.weights)
    # About a byte for each frequency, which are as they like.
    assert len(section) <= 1.0005 * bound(book) + 1.2 * levels + book.table_bytes + 12
    assert coded_bytes(book) == len(section) + len(varint(len(section))) + 4


@pytest.mark.parametrize("channels", [(), (5,)])
def test_centroids_that_are_equal_or_unused_take_no_bytes(channels):
    table = np.sort(RNG.integers(-9, 9, 8)).astype("float32")
    book = Codebook(np.multiply.outer(table, np.ones(channels)), RNG.integers(0, 8, (30, 5)))
    values, indices = np.unique(book.weights, return_inverse=True)
    least = Codebook(np.multiply.outer(values, np.ones(channels)), indices.reshape(30, 5))
    wide = np.concatenate([book.centroids[:4], 99 + book.centroids, book.centroids[4:]])
    more = Codebook(wide, np.where(book.indices < 4, book.indices, 8 + book.indices))
    assert encode_kernel(more) == encode_kernel(least)
    np.testing.assert_array_equal(decode_kernel(encode_kernel(more), (30, 5)).weights, book.weights)


def spread(shape, seed=0):
    """Weights whose rows and columns differ in spread."""
    random = np.random.default_rng(seed)
    weights = random.laplace(size=shape) * random.lognormal(0, 0.6, shape[-1])
    return (weights * random.lognormal(0, 0.6, shape[-2:-1])[:, None]).astype("float32")


@pytest.mark.parametrize(("shape", "levels"), [((256, 200), 4), ((3, 3, 96, 64), 16)])
def test_rows_and_columns_of_different_spread_take_less(shape, levels):
    weights = spread(shape)
    book = Codebook.nearest(weights, kmeans(weights, levels))
    section = encode_kernel(book)
    assert coding_of(section).startswith("ans ") and len(section) < 0.92 * bound(book)
    np.testing.assert_array_equal(decode_kernel(section, shape).weights, book.weights)


@pytest.mark.parametrize("shape", [(200, 150), (3, 3, 40, 1), (3, 3, 20, 30)])
def test_mixed_contexts_take_still_less(shape):
    pytest.importorskip("numba")
    weights = RNG.normal(size=shape)
    if len(shape) == 2:  # neighbors alike, which no class of rows or columns tells
        weights *= np.exp(1.5 * np.sin(np.add.outer(np.arange(200), np.arange(150)) / 8))
    book = Codebook.nearest(weights, kmeans(weights, 8))
    fast, best = (encode_kernel(book, effort) for effort in ("fast", "best"))
    np.testing.assert_array_equal(decode_kernel(best, shape).weights, book.weights)
    assert len(best) <= (0.96 if len(shape) == 2 else 1) * len(fast)


def test_numba_only_makes_mixing_faster(monkeypatch):
    """The same bytes from plain Python, which computes with whole numbers of any size."""
    pytest.importorskip("numba")
    matrix = RNG.binomial(6, 0.4, (5, 2, 9)).astype("uint8")
    coded = mixing.encode_mixed(matrix, 7)
    with monkeypatch.context() as patch, np.errstate(all="raise"):
        for name, function in vars(mixing_loops).copy().items():
            if hasattr(function, "py_func"):
                patch.setattr(mixing_loops, name, function.py_func)
        assert mixing.encode_mixed(matrix, 7) == coded
    np.testing.assert_array_equal(mixing.decode_mixed(coded, matrix.shape, 7), matrix)


def test_without_numba_there_is_a_message(monkeypatch):
    monkeypatch.setattr(mixing_loops, "COMPILED", False)
    with pytest.raises(ImportError) as error:
        mixing.encode_mixed(np.zeros((2, 2, 2), "uint8"), 2)
    assert str(error.value) == (
        "Expected numba, which effort='best' of archives needs. Received: no such module. Install it by "
        "`pip install keras-qareg[best]`"
    )


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 40), st.integers(1, 40)),
    st.integers(0, 4),
    st.integers(1, 256),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_any_kernel_comes_back(shape, rank, levels, seed, channels):
    random, shape = np.random.default_rng(seed), shape[4 - rank :]
    counts = shape[rank - 1 :] if channels and rank else ()
    centroids = random.normal(size=(levels, *counts))
    if seed % 2 and levels < 256:  # whole numbers of 8 bits
        centroids = np.multiply.outer(random.choice(255, levels, replace=False) - 127, centroids[0])
    indices = np.minimum(random.geometric(random.uniform(0.05, 1), shape) - 1, levels - 1)
    book = Codebook(centroids, indices)
    section = encode_kernel(book)
    found = decode_kernel(section, shape)
    np.testing.assert_array_equal(found.weights, book.weights)
    assert len(section) <= 6 + levels + 4 * centroids.size + indices.size * np.log2(levels) / 8 + 8


DTYPES = ("float32", "float16", "bfloat16", "int64", "uint8", "bool", "float64")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES),
            st.lists(st.integers(0, 6), max_size=3),
            st.sampled_from(["bits", "normal", "same"]),
        ),
        max_size=6,
    ),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.integers(0, 2**32 - 1),
)
def test_any_other_tensors_come_back(kinds, float_dtype, seed):
    random, tensors, arrays = np.random.default_rng(seed), [], []
    for place, (dtype, shape, values) in enumerate(kinds):
        size = int(np.prod(shape))
        array = random.normal(size=size).astype(numpy_dtype(dtype))
        if values == "bits" and dtype != "bool":
            array = np.frombuffer(random.bytes(array.nbytes), array.dtype)
        elif values == "same":
            array = np.full(size, array[0] if size else 0, array.dtype)
        tensors.append(Tensor(f"{place}/{'ab'[place % 2]}", tuple(shape), dtype, TOGETHER))
        arrays.append(array.reshape(shape))
    found = decode_tensors(encode_tensors(tensors, arrays, float_dtype), tensors, float_dtype)
    with np.errstate(all="ignore"):
        for array, other in zip(arrays, found, strict=True):
            assert (array.dtype, array.shape) == (other.dtype, other.shape)
            if array.dtype == np.float32 and float_dtype != "float32":
                array = array.astype(numpy_dtype(float_dtype)).astype("float32")
                np.testing.assert_array_equal(array, other)
            else:
                assert array.tobytes() == other.tobytes()


def test_numbers_take_fewer_bytes():
    """Exponents of layers' biases take three bits or so of eight."""
    arrays = [0.1 * RNG.normal(size=64).astype("float32") for _ in range(10)] + [
        np.ones(64, "float32")
    ]
    tensors = [Tensor(f"{place}/bias", (64,), "float32", TOGETHER) for place in range(11)]
    assert len(encode_tensors(tensors, arrays, "float32")) < 0.86 * 4 * 640
    assert len(encode_tensors(tensors, arrays, "bfloat16")) < 0.72 * 2 * 640


def test_streams_say_what_is_wrong():
    assert frequencies(np.array([0, 0, 7])).sum() == 1 << 24
    assert error_of(frequencies, np.zeros(3, int)) == (
        "Expected weights with a sum from 1 to 2^39. Received: 0"
    )
    writer = Writer()
    writer.put(np.array([0, 1, 1, 0, 1] * 20), [1, 2])
    reader = Reader(writer.finish())
    reader.take(20, [1, 2])
    with pytest.raises(StreamError, match="Expected the end of a stream. Received: more of it"):
        reader.close()
    cursor = Cursor(varint(5) + varint(1 << 40))
    assert (cursor.varint(), cursor.varint()) == (5, 1 << 40)
    with pytest.raises(FieldError, match="Expected 1 more bytes. Received: 0"):
        cursor.byte()
    with pytest.raises(FieldError, match="Expected a whole number below"):
        Cursor(b"\xff" * 12).varint()
