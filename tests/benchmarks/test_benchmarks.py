"""The benchmarks of speed, made tiny: they run and write what they say. No time is asserted."""

import json

import keras
import psutil
import pytest

from benchmarks import timing
from benchmarks.timing import interleaved, peak_bytes, ratios
from examples.training import digits_network
from tests.helpers import BACKEND, run, slow_but_on_tensorflow


@pytest.fixture(params=["here", pytest.param("processes", marks=pytest.mark.slow)])
def peaks(request, monkeypatch):
    """Where peaks of memory are measured: a process for each, as users have it, takes seconds."""
    if request.param == "here":
        monkeypatch.setattr(timing, "in_subprocess", in_this_process)


def in_this_process(*words):
    return json.loads(run("-m", *words).strip().splitlines()[-1])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.one_backend
def test_functions_are_timed_in_turn():
    order = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "a", "b", "b", *["a", "b"] * 3]
    assert {len(times) for times in seconds.values()} == {3}
    found = ratios({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 12.0]}, "a")
    assert found["b"] == {"ratio": 2.0, "low": 1.5, "high": 2.5}
    before, in_use = peak_bytes(), psutil.Process().memory_info().rss
    block = bytearray(64 << 20)
    # The peak may have been higher before.
    assert peak_bytes() >= max(before, in_use + (len(block) >> 1))


@slow_but_on_tensorflow
@pytest.mark.usefixtures("peaks")
def test_the_penalty_benchmark_runs(tmp_path):
    words = ["--sizes", 2000, "--levels", 4, "--rounds", 2, "--out", tmp_path]
    printed = run("-m", "benchmarks.penalty", *words)
    rows = rows_of(tmp_path / f"penalty_{BACKEND}.jsonl")
    names = ["L2", "Sine", "Cosine", "NearestSquared", "NearestExponential", "DKM", "naive"]
    assert [row["penalty"] for row in rows] == names and rows[0]["ratio"] == 1.0
    assert (
        "2,000 4 NearestExponential" in printed and (tmp_path / f"penalty_{BACKEND}.txt").exists()
    )


@pytest.mark.one_backend
@pytest.mark.usefixtures("peaks")
def test_the_kmeans_and_archive_benchmarks_run(tmp_path):
    pytest.importorskip("numba")
    run("-m", "benchmarks.kmeans", "--sizes", 3000, "--levels", 4, "--out", tmp_path)
    rows = rows_of(tmp_path / "kmeans.jsonl")
    assert rows[0]["method"] == "keras_qareg" and rows[0]["excess"] <= 1e-6
    assert all(row["excess"] >= 0 for row in rows) and (tmp_path / "kmeans.png").exists()
    run("-m", "benchmarks.archive", "--weights", 20_000, "--levels", 4, 16, "--out", tmp_path)
    rows = rows_of(tmp_path / "archive.jsonl")
    assert [row["kind"] for row in rows] == ["normal", "normal", "spread", "spread"]
    for row in rows:
        bound = 1.02 if row["kind"] == "normal" else 0.95
        assert row["best"]["to_entropy"] <= row["fast"]["to_entropy"] <= bound


@pytest.mark.one_backend
def test_the_comparison_of_ways_runs_and_resumes(tmp_path):
    keras.utils.set_random_seed(0)
    digits_network().save(tmp_path / "accuracy_digits_0.keras")
    names = ["float", "re-assignment", "compress"]
    words = ["--levels", 4, "--epochs", 2, "--rounds", 0, "--out", tmp_path, "--cells", *names]
    run("-m", "benchmarks.accuracy", *words)
    rows = rows_of(tmp_path / "accuracy.jsonl")
    assert [row["cell"] for row in rows] == names
    assert all(row["accuracy"] > 20 for row in rows), "far from chance, of an untrained network"
    whole, *small = (row["bytes"]["smallest"] for row in rows)
    assert max(small) < whole / 6
    printed = run("-m", "benchmarks.accuracy", *words)
    assert rows_of(tmp_path / "accuracy.jsonl") == rows and "digits, 4 levels, compress" in printed
    run("-m", "benchmarks.accuracy", *words[:-3], "compress", "--rounds", 2, "--steps")
    (row,) = rows_of(tmp_path / "accuracy_steps.jsonl")
    assert row["step"] > 0 and "accuracy" not in row


@slow_but_on_tensorflow
def test_the_scaling_benchmark_runs(tmp_path):
    words = ["--sizes", 1000, 2000, 4000, 8000, "--rounds", 1, "--out", tmp_path]
    run("-m", "benchmarks.scaling", *words)
    rows = rows_of(tmp_path / "scaling.jsonl")
    assert {"L2", "NearestSquared", "k-means", "archive coding"} <= {row["what"] for row in rows}
    assert all(len(row["points"]) == 4 for row in rows) and (tmp_path / "scaling.png").exists()


@pytest.mark.slow
def test_the_step_benchmark_of_networks_runs(tmp_path):
    printed = run("-m", "benchmarks.step", "--rounds", 2, "--out", tmp_path)
    rows = rows_of(tmp_path / f"step_lenet_{BACKEND}.jsonl")
    assert {"plain", "L2", "NearestSquared", "WNQ, 2 bits"} <= {row["model"] for row in rows}
    assert "share_weights" in printed and (tmp_path / f"step_lenet_{BACKEND}.png").exists()
