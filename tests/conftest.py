"""What must be set up before a backend is used: CPU devices, and what JAX compiles kept for a run."""

import os
import tempfile

import keras

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Two logical devices, for the tests of tf.distribute.
    _cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
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
    """What does not depend on the backend is tested once."""
    if keras.backend.backend() != "tensorflow":
        once = [item for item in items if item.get_closest_marker("one_backend")]
        config.hook.pytest_deselected(items=once)
        items[:] = [item for item in items if not item.get_closest_marker("one_backend")]
