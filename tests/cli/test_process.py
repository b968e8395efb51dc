"""The command as users start it: a process with streams, signals and an environment."""

import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

import keras_qareg
from tests.helpers import BACKEND

COMMAND = [sys.executable, "-m", "keras_qareg"]


def start(*words, **environment):
    """The command in a process of its own, with other variables."""
    settings = {"capture_output": True, "text": True, "check": False}
    return subprocess.run(
        [*COMMAND, *map(str, words)], env={**os.environ, **environment}, **settings
    )


@pytest.mark.one_backend
def test_the_script_is_installed(tmp_path):
    command = Path(sys.executable).with_name("keras-qareg")
    done = subprocess.run(
        [command, "inspect", tmp_path / "no.keras"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"keras-qareg: Expected a file. Received: {tmp_path}/no.keras, which does not exist\n",
    )


@pytest.mark.one_backend
def test_help_needs_no_backend():
    done = start("--help", KERAS_BACKEND="none")
    assert done.returncode == 0 and "usage: keras-qareg" in done.stdout


@pytest.mark.one_backend
def test_version_imports_nothing():
    program = (
        "import sys\nfrom keras_qareg.cli import main\ntry:\n    main(['--version'])\n"
        "except SystemExit:\n    print({'keras', 'numpy', 'tensorflow'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    backend = importlib.metadata.version("tensorflow")
    assert done.stdout == (
        f"keras-qareg {keras_qareg.__version__}\nkeras {keras.__version__}\n"
        f"backend tensorflow {backend}\nset()\n"
    )
    assert start("--version", KERAS_BACKEND="unheard").stdout.endswith(
        "\nbackend unheard (not installed)\n"
    )


@pytest.mark.one_backend
@pytest.mark.slow  # several processes
def test_nothing_but_the_table_is_printed_and_a_closed_pipe_is_no_error(saved):
    """TensorFlow greets at import; here nobody hears it, nor what is printed after `head`."""
    with subprocess.Popen(
        [*COMMAND, "inspect", str(saved / "model.keras")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
    ) as process:
        process.stdout.close()
        assert process.wait() == 0 and process.stderr.read() == ""
    with subprocess.Popen(
        [*COMMAND, "inspect", "absent"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        process.stdout.close()
        assert process.wait() == 2
    done = start("inspect", saved / "model.keras", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("kernel ")


def interrupted(words, folder, ready):
    """Starts the command, presses Ctrl-C when a file is there; its status and errors."""
    with subprocess.Popen(
        [*COMMAND, *words], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        while not (folder / ready).exists():
            time.sleep(0.02)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=50)[1]  # the programs sleep for a minute
        return process.returncode, errors


PLACES = {
    "python": "time.sleep(60)",
    "lost": "try:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)",
    "finalizer": (
        "class Late:\n    def __del__(self):\n        time.sleep(60)\nlate = Late()\ndel late\n"
        "time.sleep(60)"
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool:\n"
        "    list(pool.map(time.sleep, [60, 60]))"
    ),
    "native": (
        "import ctypes\nend = time.monotonic() + 60\n"
        "while time.monotonic() < end: ctypes.CDLL(None).poll(None, 0, 60000)"
    ),
}


@pytest.mark.one_backend
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    "name",
    [name if name == "native" else pytest.param(name, marks=pytest.mark.slow) for name in PLACES],
)
def test_ctrl_c_takes_one_line_wherever_it_comes(name, saved):
    """In an import, where the exception is lost, in threads, and in native code."""
    text = (
        "import pathlib, tempfile, time\n"
        "draft = tempfile.TemporaryDirectory(dir='.', prefix='.draft-')\n"
        f"pathlib.Path('{name}.ready').touch()\n{PLACES[name]}\n"
    )
    (saved / f"{name}.py").write_text(text)
    words = ["inspect", "model.keras", "--custom-objects", f"{name}.py"]
    status, errors = interrupted(words, saved, f"{name}.ready")
    assert (status, errors) == (130, "keras-qareg: interrupted\n")
    assert not list(saved.glob(".draft-*"))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)
def test_a_backend_that_is_missing_is_named(saved):
    """By the variable, and by the configuration that Keras writes where there is none."""
    found = ", ".join(name for name in ("jax", "torch") if importlib.util.find_spec(name))
    message = (
        "keras-qareg: Expected a backend for Keras. Received: KERAS_BACKEND=tensorflow, which is "
        f"not installed. Found: {found}. Set KERAS_BACKEND={found.split(', ')[0]}, or pip install "
        "tensorflow\n"
    )
    words = ["inspect", saved / "model.keras"]
    for environment in (
        {"KERAS_BACKEND": "tensorflow"},
        {"KERAS_BACKEND": "", "KERAS_HOME": str(saved)},
    ):
        done = start(*words, **environment)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    (saved / "keras.json").write_text(json.dumps({"backend": BACKEND}))
    done = start(*words, KERAS_BACKEND="", KERAS_HOME=str(saved))
    assert (done.returncode, done.stderr) == (0, "") and "fc/kernel" in done.stdout


@pytest.mark.one_backend
def test_conversion_needs_tensorflow(saved):
    done = start("export", saved / "model.keras", "--out", saved / "m.tflite", KERAS_BACKEND="jax")
    assert (done.returncode, done.stderr) == (
        2,
        "keras-qareg: Expected the TensorFlow backend, which LiteRT conversion needs. Received: "
        "KERAS_BACKEND=jax. Set KERAS_BACKEND=tensorflow\n",
    )
