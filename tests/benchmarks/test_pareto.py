"""What `benchmarks.pareto` reads, compares, and says; the peers themselves are not run."""

import json

import keras
import numpy as np
import pytest

from benchmarks import pareto, pareto_peers
from examples.data import Images
from tests.helpers import tensorflow_only


def row(series, accuracy, size, epochs=0, gzip=None):
    return {
        "cell": f"{series} {size}",
        "series": series,
        "accuracy": accuracy,
        "bytes": size,
        "gzip": gzip or size,
        "epochs": epochs,
    }


@pytest.mark.one_backend
def test_peers_are_compared_with_the_best_of_ours_in_as_many_bytes(tmp_path):
    ours = [
        row(pareto.OURS, 80.0, 40, gzip=30),
        row(pareto.OURS, 84.0, 60, gzip=50),
        row(pareto.TRAINED, 83.0, 35, epochs=10),
        row(pareto.ARCHIVE, 82.0, 30),
    ]
    peer = row(pareto_peers.QUANTIZER, 81.0, 55, gzip=40)
    trained = row(pareto_peers.TFMOT, 81.0, 55, epochs=2)
    assert pareto.best_of_ours(ours, peer, "bytes") == 80.0
    # An archive is no file that runs: it counts against gzipped files alone.
    assert pareto.best_of_ours(ours, peer, "gzip") == 82.0
    assert pareto.best_of_ours(ours, trained, "bytes") == 83.0
    assert pareto.best_of_ours(ours, row(pareto_peers.TFMOT, 9.0, 20), "bytes") is None
    failed = {"cell": "x", "series": pareto_peers.QUANTIZER, "epochs": 0}
    failed |= pareto_peers.unsupported(ValueError("no such operator"))
    text = pareto.tabulate([*ours, peer, failed])
    assert "80.00 (-1.00)" in text and "82.00 (+1.00)" in text and "cannot be made" in text
    pareto.draw(tmp_path, [*ours, peer, failed])
    assert (tmp_path / "pareto.png").stat().st_size > 1000


@pytest.mark.one_backend
def test_rows_of_compress_become_points(tmp_path):
    path = tmp_path / "compress.jsonl"
    cells = [
        {"cell": "float", "seed": 0, "epochs": 10, "accuracy": 85.0},
        {"cell": "4 levels", "seed": 0, "epochs": 10, "accuracy": 82.0},
        {"cell": "24 kB archive", "seed": 1, "epochs": 10, "accuracy": 81.0},
    ]
    for cell in cells[1:]:
        cell["bytes"] = {"smallest": 30, "archive": 20, "gzip": 25}
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    found = [(r["series"], r["bytes"], r["gzip"]) for r in pareto.compressed_rows(path)]
    archive = (f"{pareto.ARCHIVE}, trained", 20, 20)
    assert found == [(pareto.TRAINED, 30, 25), archive, archive]
    assert pareto.compressed_rows(None) == []


@pytest.mark.one_backend
def test_peers_that_are_not_installed_are_said(monkeypatch, capsys):
    monkeypatch.setattr(pareto_peers.importlib.util, "find_spec", lambda name: None)
    assert pareto_peers.peers() == {}
    assert (
        "Left out litert-quantizer: litert_quantizer is not installed." in capsys.readouterr().out
    )
    monkeypatch.setattr(pareto_peers.importlib.util, "find_spec", lambda name: name)
    assert len(pareto_peers.peers()) == 4 + 26 + 6


@tensorflow_only
def test_accuracy_of_a_file_is_that_of_keras(monkeypatch):
    monkeypatch.setattr(pareto, "BATCH", 4)
    random = np.random.default_rng(0)
    data = Images(random.integers(0, 255, (12, 4, 4, 3), "uint8"), random.integers(0, 3, 12), 3)
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    content = pareto_peers.converted(model, "float32", data.images)
    assert pareto.litert_accuracy(content, data) == pytest.approx(pareto.accuracy(model, data))
