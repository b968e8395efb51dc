"""Training on several devices and machines: the same weights as in one process, and none lost."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from examples import distribution
from tests.helpers import BACKEND, ROOT, run

ON_TENSORFLOW = pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
MODELS = ("regularized", "wnq")


def start(*words, **environment):
    """A process of tests/worker.py."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.examples.worker", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": BACKEND, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(replicas, *processes):
    for process in processes:
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed[-3000:]
        assert f"{replicas} replicas" in printed


def start_workers(models, folder, **dies):
    """Two workers on this machine; `dies` names the epoch in which one of them dies."""
    with socket.socket() as first, socket.socket() as second:
        ports = []
        for each in (first, second):
            each.bind(("localhost", 0))
            ports.append(each.getsockname()[1])
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    found = []
    for index in range(2):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        words = ["--dies-in", dies[f"worker_{index}"]] if f"worker_{index}" in dies else []
        found.append(start("workers", folder, *models, *words, TF_CONFIG=json.dumps(task)))
    return found


def weights(file):
    with np.load(file) as found:
        return dict(found)


def assert_same(found, expected, atol=0.0):
    assert found.keys() == expected.keys()
    for path in found:
        np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=atol, err_msg=path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The weights after training on one device, by the kind of model."""
    folder = tmp_path_factory.mktemp("alone")
    assert "1 replicas" in run("-m", "tests.examples.worker", "none", folder, *MODELS)
    return {model: weights(folder / model / "worker-0.npz") for model in MODELS}


@pytest.mark.slow
@ON_TENSORFLOW
def test_two_workers_train_as_one_process(alone, tmp_path):
    finish(2, *start_workers(MODELS, tmp_path))
    for model, learned in zip(MODELS, ("centroids", "basis"), strict=True):
        first, second = (weights(tmp_path / model / f"worker-{i}.npz") for i in range(2))
        assert_same(first, second)
        assert_same(first, alone[model], atol=1e-5)
        assert sum(path.endswith(learned) for path in first) >= 2


@pytest.mark.slow  # four processes for each model
@ON_TENSORFLOW
@pytest.mark.parametrize("model", MODELS)
def test_a_worker_that_died_goes_on_where_it_was(model, alone, tmp_path):
    survivor, dead = start_workers([model], tmp_path, worker_1=2)
    dead.communicate(timeout=300)
    assert dead.returncode == 9
    survivor.kill()  # it waits for the other
    survivor.communicate()
    kept = tmp_path / model
    assert not list(kept.glob("*.npz")) and len(list(kept.glob("backup-*"))) == 2
    workers = start_workers([model], tmp_path)
    printed = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    for text in printed:
        assert "Epoch 3/4" in text and "Epoch 2/4" not in text
    first, second = (weights(kept / f"worker-{i}.npz") for i in range(2))
    assert_same(first, second)
    assert_same(first, alone[model], atol=1e-5)


@pytest.mark.slow  # a process of its own: the tests of layers train on two replicas in theirs
@ON_TENSORFLOW
def test_mirrored_devices_train_as_one(alone, tmp_path):
    finish(2, start("mirrored", tmp_path, *MODELS))
    for model in MODELS:
        assert_same(weights(tmp_path / model / "worker-0.npz"), alone[model], atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="a distribution of JAX")
def test_data_parallel_devices_train_as_one(alone, tmp_path):
    printed = run("-m", "tests.examples.worker", "data-parallel", tmp_path, *MODELS)
    assert "2 replicas" in printed
    for model in MODELS:
        assert_same(weights(tmp_path / model / "worker-0.npz"), alone[model], atol=1e-5)


def test_what_a_backend_does_not_have_is_refused(monkeypatch):
    wrong = "data-parallel" if BACKEND == "tensorflow" else "mirrored"
    other = "jax" if BACKEND == "tensorflow" else "tensorflow"
    with (
        pytest.raises(ValueError, match=f"Expected KERAS_BACKEND={other}"),
        distribution.distributed(wrong),
    ):
        pass
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="TF_CONFIG"), distribution.distributed("workers"):
            pass
    with distribution.distributed("none"):
        assert distribution.replicas() == 1 and distribution.worker() == 0
