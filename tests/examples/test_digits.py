"""The demo and the studies, made small: every step runs, and what they write can be read."""

import json

import pytest
import sklearn.datasets

from benchmarks import size
from examples import wnq_digits
from tests.helpers import BACKEND, run, slow_but_on_tensorflow


@slow_but_on_tensorflow
def test_the_demo_runs_in_short(tmp_path, monkeypatch):
    few = sklearn.datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda **_: [part[:400] for part in few])
    check_the_demo(tmp_path, "-m", "examples.digits", "--epochs", 2)


@pytest.mark.slow  # as users start it, on all images
def test_the_demo_runs(tmp_path):
    check_the_demo(tmp_path, "examples/digits.py", "--epochs", 3)


def check_the_demo(tmp_path, *words):
    printed = run(*words, "--tuning-epochs", 1, "--out", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "digits.jsonl").read_text().splitlines()]
    methods = ["k-means", "Sine", "Cosine", "NearestSquared", "NearestExponential"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["levels"] == 4 and 0 < row["entropy"] <= 2.0
        assert all(5 < row[key] <= 100 for key in ("float", "shared", "tuned"))
    assert "[5/5] method NearestExponential: tuned" in printed
    assert (tmp_path / "digits.txt").read_text() in printed
    for name in ("histograms.png", "penalties.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    if BACKEND == "tensorflow":
        assert all(row["gzip"] < row["tflite"] for row in rows)
        assert "in LiteRT" in printed
        assert 42_000 < (tmp_path / "best.tflite").stat().st_size < 0.27 * 167_660  # float32


@slow_but_on_tensorflow
def test_deep_compression_runs_in_short(tmp_path, monkeypatch):
    few = sklearn.datasets.load_digits(return_X_y=True)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda **_: [part[:400] for part in few])
    printed = run("-m", "examples.deep_compression", "--epochs", 2, "--out", tmp_path)
    lines = (tmp_path / "deep_compression_digits.jsonl").read_text().splitlines()
    rows = {row["step"]: row for row in map(json.loads, lines)}
    first, shrunk, last = (rows[s] for s in ("float", "channels pruned, shrunk", "file"))
    assert shrunk["weights"] < 0.7 * first["weights"] and last["weights"] == shrunk["weights"]
    assert last["zeros"] >= rows["weights pruned"]["zeros"] > 79
    assert (tmp_path / "deep_compression_digits.qareg").stat().st_size == last["archive"]
    assert last["archive"] < rows["tuned"]["archive"]
    assert last["ratio"] > 30 and (tmp_path / "deep_compression_digits.txt").read_text() in printed


@pytest.mark.slow
def test_the_wnq_study_runs_in_short(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wnq_digits, "BITS", ((2, None), (2, 2)))
    monkeypatch.setattr("sys.argv", ["wnq_digits", "--epochs", "2", "--out", str(tmp_path)])
    wnq_digits.main()
    check_the_wnq_study(tmp_path, capsys.readouterr().out)


@pytest.mark.slow  # kernels of 1 and 3 bits too, as users start it
def test_the_wnq_study_runs(tmp_path):
    check_the_wnq_study(
        tmp_path, run("examples/wnq_digits.py", "--epochs", 2, "--out", tmp_path), kinds=4
    )


def check_the_wnq_study(tmp_path, printed, kinds=2):
    lines = (tmp_path / "wnq_digits.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["method"] for row in rows] == ["float", *["LQ-Nets", "WNQ"] * kinds]
    for row in rows[1:]:
        assert 0 < row["entropy"] <= row["bits"] and 0 < row["error"] < 0.5
        assert 50 < row["accuracy"] <= 100
    telling = "layers inner, bits 2, inputs 2, method WNQ: accuracy"
    assert f"[{len(rows)}/{len(rows)}] {telling}" in printed
    assert (tmp_path / "wnq_digits.txt").read_text() in printed
    assert (tmp_path / "wnq_histograms.png").read_bytes().startswith(b"\x89PNG")
    assert BACKEND != "tensorflow" or "in LiteRT" in printed


@pytest.mark.slow
def test_the_analysis_of_errors_runs(tmp_path):
    words = ["--bits", 1, "--seeds", 1, "--epochs", 1, "--out", tmp_path]
    printed = run("-m", "benchmarks.wnq_error", *words)
    rows = [json.loads(line) for line in (tmp_path / "wnq_error.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * (4 + 4 + 4)
    errors = {(row["when"], row["kernel"], row["method"]): row["error"] for row in rows}
    for when, kernel, _ in errors:
        if when != "trained":  # what is only divided has the same error
            assert errors[when, kernel, "WNQ"] == pytest.approx(
                errors[when, kernel, "LQ-Nets"], rel=1e-3
            )
    kurtosis = {row["kernel"]: row["kurtosis"] for row in rows if row["when"] == "synthetic"}
    assert kurtosis["normal"] == pytest.approx(3.0, abs=0.1)
    assert kurtosis["Laplace"] == pytest.approx(6.0, abs=0.5)
    assert (tmp_path / "wnq_error.png").exists()
    assert "1 bits, trained: logits" in printed


@slow_but_on_tensorflow
def test_the_step_benchmark_runs(tmp_path):
    printed = run("-m", "benchmarks.wnq_step", "--rounds", 2, "--channels", 8, "--out", tmp_path)
    assert "WNQConv2D, 2 bits" in printed
    record = json.loads((tmp_path / f"wnq_step_{BACKEND}.json").read_text())
    assert {len(times) for times in record["seconds"].values()} == {2}


ON_TENSORFLOW = pytest.mark.skipif(BACKEND != "tensorflow", reason="LiteRT export needs TensorFlow")


@pytest.mark.slow  # some seconds, and each form has tests of its own
@ON_TENSORFLOW
def test_the_sizes_of_one_model(tmp_path):
    row = {"model": "size", **size.row(size.network(), 4, "int8", tmp_path)}
    assert_sizes(row)
    assert f"{row['codebook']:,} ({row['codebook'] / row['codebook limit']:.2f})" in size.line_of(
        row
    )


@pytest.mark.slow  # four models in all forms
@ON_TENSORFLOW
def test_the_size_benchmark_runs(tmp_path):
    run("-m", "benchmarks.size", "--levels", 4, "--out", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "size.jsonl").read_text().splitlines()]
    assert [(row["model"], row["kind"]) for row in rows] == [
        ("size", "even"),
        ("size", "int8"),
        ("size, normalized", "even"),
        ("size, normalized", "int8"),
    ]
    for row in rows:
        assert_sizes(row)


def assert_sizes(row):
    # Other tensors take less than in the bound, which has them as float32.
    assert 0.95 * row["bound"] < row["archive"] < min(0.85 * row["gzip"], 0.85 * row["zstd"])
    assert row["archive"] < row["smallest"] <= row["auto"] <= row["float32"] < 1.2e6
    assert row["auto"] <= 295_000 + 5000 * ("normalized" in row["model"])  # a byte a weight
    for form in size.FILES:
        assert row[f"{form} limit"] < row[form] < 1.5 * row[f"{form} limit"], form


@pytest.mark.slow
def test_the_recipe_resumes(tmp_path):
    words = ["-m", "benchmarks.recipe", "--levels", 4, "--out", tmp_path]
    run(*words, "--seeds", 1)
    first = (tmp_path / "recipe.jsonl").read_text()
    assert len(first.splitlines()) == 1 + 4 * 7
    printed = run(*words, "--seeds", 1)
    assert (tmp_path / "recipe.jsonl").read_text() == first
    assert "4 NearestExponential" in printed
