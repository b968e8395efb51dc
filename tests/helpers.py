"""What several test modules need: gradients on any backend, small models, and programs that run."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from sklearn.datasets import load_digits

BACKEND = keras.backend.backend()
# How a step may run; Inductor of PyTorch takes a minute to compile one.
_MARKS = [pytest.mark.slow] if BACKEND == "torch" else []
STEPS = [pytest.param({"jit_compile": True}, marks=_MARKS), {"run_eagerly": True}]
ROOT = Path(__file__).parent.parent
# Programs run in short on one backend, where they are quickest; on the others with the slow tests.
slow_but_on_tensorflow = pytest.mark.slow if BACKEND != "tensorflow" else lambda test: test


def fewer_elsewhere(values):
    """Parameters that mean much the same to a backend: all of them on TensorFlow; on the others the
    first, and the rest with the slow tests."""
    first, *rest = values
    slow = [] if BACKEND == "tensorflow" else [pytest.mark.slow]
    sets = (value if isinstance(value, tuple) else (value,) for value in rest)
    return [first, *(pytest.param(*its, marks=slow) for its in sets)]


tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="LiteRT export needs the TensorFlow backend"
)


def gradients(function, *arrays, graph=False):
    """Value and gradients of a scalar function, as NumPy, on the backend in use.

    With `graph` they run as in `fit`: on TensorFlow in a graph, where penalties are compiled.
    """
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if BACKEND == "torch":
        import torch

        # A copy, so that the array of a variable gets no gradient.
        tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
        value = function(*tensors)
        found = torch.autograd.grad(value, tensors, materialize_grads=True)
        return float(value.detach()), [np.asarray(ops.convert_to_numpy(grad)) for grad in found]
    if BACKEND == "jax":
        import jax

        value, grads = jax.value_and_grad(function, argnums=tuple(range(len(tensors))))(*tensors)
    else:
        import tensorflow as tf

        def run(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(*tensors)
            return value, tape.gradient(value, tensors)

        value, grads = (tf.function(run) if graph else run)(*tensors)
    return float(value), [ops.convert_to_numpy(grad) for grad in grads]


def program(function):
    """A function of arrays as one program, as in `fit`: eagerly, each operation takes its time."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


def digits(count=256):
    """The first images of scikit-learn's digits: `(count, 8, 8, 1)` in [0, 1], and labels."""
    images, labels = load_digits(return_X_y=True)
    return (images[:count].reshape(-1, 8, 8, 1) / 16).astype("float32"), labels[:count]


def small_cnn(normalize=False):
    """A convolution, a dense layer and an output, named `conv`, `fc` and `out`."""
    keras.utils.set_random_seed(0)
    stack = [
        keras.Input((8, 8, 1)),
        layers.Conv2D(6, 3, strides=2, activation="relu", name="conv"),
        *([layers.BatchNormalization(name="norm")] if normalize else []),
        layers.Flatten(name="flatten"),
        layers.Dense(16, activation="relu", name="fc"),
        layers.Dense(10, name="out"),
    ]
    return keras.Sequential(stack, name="cnn")


def compiled(model, **kwargs):
    """The model compiled for integer labels and logits; other optimizers take longer to trace."""
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), **kwargs)
    return model


def forget_compiled():
    """Makes PyTorch compile for these shapes: Inductor 2.13 fails on some that it takes for dynamic.

    It takes sizes for dynamic that it has seen change, in the models of other tests too.
    """
    if BACKEND == "torch":
        import torch

        torch.compiler.reset()


def predict(model, inputs):
    """Outputs in inference, without the retracing of `predict`."""
    return np.asarray(ops.convert_to_numpy(model(inputs, training=False)))


def arrays(*tensors):
    """Their values: PyTorch gives none to NumPy where a gradient may be asked for."""
    return [np.asarray(ops.convert_to_numpy(tensor)) for tensor in tensors]


def snapshot(variables):
    """Copies of their values: on JAX, an array of a variable is a view that training overwrites."""
    return [np.array(ops.convert_to_numpy(variable)) for variable in variables]


def error_of(function, *arguments, **keywords):
    """The text of the `ValueError` that a call raises."""
    with pytest.raises(ValueError) as error:
        function(*arguments, **keywords)
    return str(error.value)


def two_devices():
    """Two logical CPU devices of TensorFlow, which conftest.py sets up; else the test is skipped."""
    import tensorflow as tf

    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("needs two logical CPU devices, which conftest.py sets up")
    return devices


def run(*words):
    """What a program prints: a module in this process, all else in one of its own."""
    words = list(map(str, words))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("KERAS_BACKEND", BACKEND)
        if words[0] != "-m":
            settings = {"capture_output": True, "text": True, "check": True}
            return subprocess.run([sys.executable, *words], **settings).stdout
        patch.setattr(sys, "argv", words[1:])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            except SystemExit as end:
                assert not end.code, end.code
    return out.getvalue()
