"""What must be set up before a backend is used, and what makes the tests quick: most of their time is
compiling small programs that run once."""

import gc
import hashlib
import os
import tempfile
from pathlib import Path

# XLA compiles in half the time where it optimizes nothing. Two devices are for data-parallel training.
os.environ["XLA_FLAGS"] = " ".join(
    (
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_force_host_platform_device_count=2",
        os.environ.get("XLA_FLAGS", ""),
    )
)

import keras
import numpy as np
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # What optimizing a graph saves, a program that runs once never earns.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    # Two logical devices, for the tests of tf.distribute.
    _cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
elif keras.backend.backend() == "torch":
    import torch

    # Threads of several test processes wait for each other on the same cores, many times over.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
elif keras.backend.backend() == "jax" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    import jax

    # Most tests train the same small networks: each program is compiled once, for all processes.
    _kept = tempfile.TemporaryDirectory()
    for _name, _value in (
        ("jax_compilation_cache_dir", _kept.name),
        ("jax_persistent_cache_min_compile_time_secs", 0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(_name, _value)
        os.environ[_name.upper()] = str(_value)


def pytest_collection_modifyitems(config, items):
    """What needs no backend runs on TensorFlow alone."""
    if keras.backend.backend() == "tensorflow":
        return
    dropped = [item for item in items if item.get_closest_marker("one_backend")]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if not item.get_closest_marker("one_backend")]


_at_first: dict[str, dict] = {}


def pytest_collection_finish(session):
    """What was imported stays, so collecting garbage, as each conversion to `.tflite` does, skips it."""
    gc.collect()
    gc.freeze()
    for module in {item.module for item in session.items if hasattr(item, "module")}:
        if hasattr(module, "RNG"):
            _at_first[module.__name__] = module.RNG.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers(request):
    """A test has the same random numbers whatever ran before it."""
    keras.utils.set_random_seed(0)
    if request.module.__name__ in _at_first:
        request.module.RNG.bit_generator.state = _at_first[request.module.__name__]


@pytest.fixture(scope="module", autouse=True)
def garbage_is_collected_once():
    """TensorFlow keeps the graphs of compiled steps: to look through all of them takes a second."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def converted_once(tmp_path_factory):
    """Keras and TensorFlow convert each model once, in seconds; the rest of an export is quick."""
    convert, folder = keras.Model.export, tmp_path_factory.getbasetemp()
    # All processes of one run of the tests have their folders in one.
    kept = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "converted"
    kept.mkdir(exist_ok=True)

    def export(model, filepath, format="tf_saved_model", **options):
        if format != "litert":
            return convert(model, filepath, format, **options)
        told = dict(options)
        if samples := told.pop("representative_dataset", None):
            told["samples"] = list(samples())
        key = hashlib.sha256(model.to_json().encode())
        for part in [*model.get_weights(), *keras.tree.flatten(told)]:
            key.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
        found = kept / key.hexdigest()
        if found.exists():
            Path(filepath).write_bytes(found.read_bytes())
            return None
        convert(model, filepath, format, **options)
        draft = found.with_suffix(f".{os.getpid()}")
        draft.write_bytes(Path(filepath).read_bytes())
        draft.replace(found)
        return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "export", export)
        yield
