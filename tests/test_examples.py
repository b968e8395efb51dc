"""The demo and the studies, made small: every step runs, and what they write can be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import BACKEND

ROOT = Path(__file__).parent.parent


def run(*words):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_demo_runs(tmp_path):
    printed = run("examples/digits.py", "--epochs", 3, "--tuning-epochs", 1, "--out", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "digits.jsonl").read_text().splitlines()]
    methods = ["k-means", "Sine", "Cosine", "NearestSquared", "NearestExponential"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["levels"] == 4 and 0 < row["entropy"] <= 2.0
        assert all(5 < row[key] <= 100 for key in ("float", "shared", "tuned"))
    assert "[5/5] seed 0, 4 levels, NearestExponential" in printed
    assert (tmp_path / "digits.txt").read_text() in printed
    for name in ("histograms.png", "penalties.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    if BACKEND == "tensorflow":
        assert all(row["gzip"] < row["tflite"] for row in rows)
        assert "in LiteRT" in printed and (tmp_path / "best.tflite").stat().st_size > 100_000


@pytest.mark.slow
def test_the_recipe_resumes(tmp_path):
    words = ["-m", "benchmarks.recipe", "--levels", 4, "--out", tmp_path]
    run(*words, "--seeds", 1)
    first = (tmp_path / "recipe.jsonl").read_text()
    assert len(first.splitlines()) == 1 + 4 * 5
    printed = run(*words, "--seeds", 1)
    assert (tmp_path / "recipe.jsonl").read_text() == first
    assert "4 NearestExponential" in printed
