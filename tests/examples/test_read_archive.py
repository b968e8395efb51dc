"""Archives read without the package, and the example of the specification by hand."""

import re

import numpy as np
import pytest
from keras import ops

import keras_qareg as qareg
from examples import read_archive
from keras_qareg.export.archive.kernels import encode_kernel
from keras_qareg.numerics.codebook import Codebook
from tests.helpers import ROOT, small_cnn

pytestmark = pytest.mark.one_backend


def test_the_worked_example_by_hand():
    text = (ROOT / "docs" / "formats.md").read_text().split("### An example")[1]
    section = bytes.fromhex(re.search(r"```\n([0-9a-f \n]+)```", text)[1])
    kernel = np.array([[0, 0, 0], [1, 0, 0], [-0.5, 0, 0], [0, 0, 0]])
    book = Codebook([-0.5, 0.0, 1.0], np.searchsorted([-0.5, 0, 1], kernel))
    assert encode_kernel(book) == section
    assert list(section[:3]) == [1, 3 - 1, 0]  # codes and a step, three levels, one table
    codes, slope = np.frombuffer(section[3:6], "i1"), section[6]
    assert (codes.tolist(), slope, section[7]) == ([1, 0, -2], 8, 7)
    step = np.frombuffer(section[8:12], "<f4")
    state = int.from_bytes(section[12:], "little")  # two words, of which the last is the highest

    def symbol(ends):
        nonlocal state
        low = state % 2**24
        found = max(place for place, end in enumerate(ends[:-1]) if end <= low)
        state = state // 2**24 * (ends[found + 1] - ends[found]) + low - ends[found]
        return found

    def ends_of(weights):
        sums, k = [sum(weights[:i]) for i in range(len(weights) + 1)], len(weights)
        return [i + sums[i] * (2**24 - k) // sums[k] for i in range(k + 1)]

    weights = [2**20]
    while len(weights) < 16:
        weights.append(1 + weights[-1] * 17 // 32)
    differences = [symbol(ends_of(weights)) for _ in range(3)]
    assert differences == [0, 2, 1]  # 0, 1 and -1, the first from isqrt(12 // 9)
    roots = [1, 1 + 1, 2 - 1]
    ends = ends_of([root * root for root in roots])
    assert ends == [0, 2796203, 13981012, 2**24]
    indices = [symbol(ends) for _ in range(12)]
    assert state == 0
    np.testing.assert_array_equal((codes[indices] * step).reshape(4, 3), kernel)


@pytest.mark.parametrize("options", [{}, {"fold": True}, {"float_dtype": "bfloat16"}])
def test_a_reader_that_knows_the_specification_alone(options, tmp_path, monkeypatch, capsys):
    model = small_cnn(normalize=True)
    random = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(random.uniform(0.5, 2, weight.shape))
    for layer in model.layers:
        if layer.name == "fc":  # rows and columns of different spread
            spread = random.lognormal(0, 1, (54, 1)) * random.lognormal(0, 1, 16)
            layer.kernel.assign(random.normal(size=(54, 16)) * spread)
    shared = qareg.share_weights(model, {"conv": 4, "fc": 16})
    file = qareg.export.save_archive(shared, tmp_path / "model.qareg", **options)
    monkeypatch.setattr("sys.argv", ["read_archive", str(file)])
    read_archive.main()
    assert "0/kernel" not in capsys.readouterr().out.splitlines()[0]
    _, tensors = read_archive.read(file.read_bytes())
    loaded = qareg.export.load_archive(file)
    for (name, values), weight in zip(tensors, loaded.weights, strict=True):
        assert name.rpartition("/")[2] == weight.name
        np.testing.assert_array_equal(values, ops.convert_to_numpy(weight))


@pytest.mark.parametrize(
    ("table", "scale"),
    [("int8", "kernel"), ("int8", "channel"), ("float32", "kernel"), ("even", "kernel")],
)
def test_groups_of_channels(table, scale):
    model = small_cnn()
    shared = qareg.share_weights(model, 4, table=table, scale=scale, group_size=4)
    for book in qareg.codebooks(shared).values():
        found = read_archive.read_kernel(encode_kernel(book), book.indices.shape)
        np.testing.assert_array_equal(found, book.weights)
