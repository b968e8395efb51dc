"""What is said of MLPerf Tiny's networks: from rows, without the networks."""

import argparse
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_qareg as qareg
from benchmarks import ablations, mlperf_tiny
from examples.data import Images
from tests.helpers import predict

pytestmark = pytest.mark.one_backend


def network():
    stack = [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization()]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(2, activation="softmax")])


def test_the_smallest_file_is_found_in_rows_of_all_studies(tmp_path):
    rows = {
        "compress": [
            {"cell": "4 levels", "epochs": 10, "accuracy": accuracy, "bytes": bytes_}
            for accuracy, bytes_ in (
                (85.0, {"smallest": 28_000, "archive": 23_000}),
                (85.4, {"smallest": 28_100, "archive": 22_000}),
            )
        ],
        "integer": [{"cell": "8 bits", "accuracy": 86.0, "trained": {"bytes": 87_000}}],
        "pareto": [{"cell": "float32", "series": "peer", "accuracy": 84.0, "bytes": 9_000}],
    }
    for name, found in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)) + "\n")
    points = mlperf_tiny.measured(tmp_path)
    assert ("4 levels, 10 epochs, archive", 23_000, 85.2) in points and len(points) == 4
    said = mlperf_tiny.smallest(points, 85.0)
    assert said == "85.00 %: 4 levels, 10 epochs, archive, 23,000 bytes, 85.20 %"
    assert mlperf_tiny.smallest(points, 85.5) == "85.50 %: 8 bits, int8, 87,000 bytes, 86.00 %"
    assert mlperf_tiny.smallest(points, 87.0) == "87.00 %: none; the best file has 86.00 %"


def test_dead_channels_make_a_second_model(tmp_path):
    model = network()
    model.save(tmp_path / "alive.keras")
    assert list(mlperf_tiny.variants(tmp_path / "alive.keras")) == ["alive"]
    kernel = ops.convert_to_numpy(model.layers[0].kernel).copy()
    kernel[..., 1] = 0
    model.layers[0].kernel.assign(kernel)
    model.save(tmp_path / "dead.keras")
    found = mlperf_tiny.variants(tmp_path / "dead.keras")
    assert list(found) == ["dead", "dead, shrunk"]
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(*(predict(each, images) for each in found.values()), atol=1e-6)


@pytest.mark.parametrize("part", [ablations.WHOLE, "centroids alone"])
def test_a_part_of_the_recipe_is_left_out(part):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 8, 8, 3), dtype="uint8")
    data = Images(images, (images.mean(axis=(1, 2, 3)) > 127).astype("int32"), 2)
    given = argparse.Namespace(epochs=2, rate=1e-3, seed=0)
    levels, its = ablations.CELLS[f"4 levels, {part}"]
    found = ablations.made(network(), levels, its, data, given)
    books = qareg.codebooks(found)
    assert len(books) == 2 and all(len(book.centroids) <= 4 for book in books.values())


BYTES = {"smallest": 9, "archive": 8}


def test_a_line_a_part_says_what_it_is_worth():
    rows = [
        {"cell": f"4 levels, {part}", "accuracy": accuracy, "seed": seed, "bytes": BYTES}
        for part, accuracy, seed in (
            (ablations.WHOLE, 80.0, 0),
            (ablations.WHOLE, 90.0, 1),
            ("no teacher", 78.5, 0),
        )
    ]
    first, second = ablations.tabulate(rows).splitlines()[2:]
    assert first.startswith("4 levels, all parts") and "85.00 ± 7.07" in first
    assert second.startswith("4 levels, no teacher") and "-1.50" in second
