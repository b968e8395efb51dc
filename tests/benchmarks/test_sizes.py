"""The benchmark of sizes on models in files, and the limits that it holds files to."""

import json

import keras
import pytest
from keras import layers

import keras_qareg as qareg
from benchmarks import size
from benchmarks.limits import Kernel, Limits
from tests.helpers import run, tensorflow_only


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("float32", 4000),
        ("int8", 1000 + 4 * 10),  # the factors of the BatchNormalization are in the scales
        ("int4", 500 + 4 * 10),
        ("int8 arithmetic", 1000 + 4 * 10),
        ("codebook", 375 + 20 + 4 * 10),  # five levels take three bits
        ("tflm", 375 + 20 + 4 * 10),
        ("tflm int8", 375 + 5 + 4 * 10),
    ],
)
def test_the_limits_of_one_kernel(form, wanted):
    kernel = Kernel("a", 1000, 5, 20, 10, normalized=True, per_channel=False)
    assert kernel.bytes(form) == wanted
    alone = Kernel("a", 1000, 5, 20, 10, normalized=False, per_channel=False)
    saved = 0 if form in ("float32", "int8 arithmetic", "tflm int8") else 4 * 10
    saved -= 4 if form in ("int8", "int4") else 0
    assert alone.bytes(form) == wanted - saved


def tiny():
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((12, 12, 3)),
        layers.Conv2D(16, 3, use_bias=False, name="conv"),
        layers.BatchNormalization(),
        layers.ReLU(),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.Flatten(),
        layers.Dense(24, name="fc"),
    ]
    return keras.Sequential(stack, name="tiny")


@tensorflow_only
def test_the_limits_of_a_model(tmp_path):
    shared = qareg.share_weights(tiny(), 4)
    report = qareg.export.litert(shared, tmp_path / "m.tflite", "float32")
    limits = Limits(shared, (tmp_path / "m.tflite").read_bytes())
    found = {kernel.path.split("/")[-2]: kernel for kernel in limits.kernels}
    assert [name for name, kernel in found.items() if kernel.normalized] == ["conv"]
    assert [kernel.channels for kernel in limits.kernels] == [16, 16, 24]
    # The offsets of the BatchNormalization are a bias in the file; biases of zeros are not there.
    assert 4 * 16 <= limits.others <= 4 * (16 + 16 + 24) + 64
    weights = sum(kernel.size for kernel in limits.kernels)
    assert limits.bytes("float32", report) == 4 * weights + limits.others + limits.structure
    assert 0.9 < limits.bytes("float32", report) / report.bytes < 1.0
    assert limits.structure == report.sections.records


@tensorflow_only
@pytest.mark.slow
def test_models_in_files(tmp_path):
    tiny().save(tmp_path / "tiny.h5")
    words = ["--models", tmp_path / "tiny.h5", "--levels", 4, "--wnq", "--out", tmp_path]
    printed = run("-m", "benchmarks.size", *words)
    rows = [json.loads(line) for line in (tmp_path / "size_models.jsonl").read_text().splitlines()]
    assert [(row["model"], row["kind"]) for row in rows] == [
        ("tiny", "even"),
        ("tiny", "int8"),
        ("tiny", "WNQ"),
    ]
    for row in rows:
        assert all(row[form] > row[f"{form} limit"] for form in size.FILES)
        assert f"{row['int8']:,} ({row['int8'] / row['int8 limit']:.2f})" in printed
    assert (tmp_path / "size_models.png").exists()
