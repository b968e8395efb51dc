"""One function for models of Keras 2, wherever they are."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import keras

from keras_qareg.models.legacy import objects
from keras_qareg.models.legacy.comparing import check_same
from keras_qareg.models.legacy.graphs import build
from keras_qareg.models.legacy.layers import layer_name
from keras_qareg.models.legacy.source import Source, read_h5
from keras_qareg.models.legacy.training import compile_as
from keras_qareg.models.legacy.weights import assign

_CUSTOM = "tf_keras does not know `custom_objects`"


def from_tf_keras(
    model: Any,
    *,
    custom_objects: dict[str, Any] | None = None,
    compile: bool = True,
    tolerance: float = 1e-5,
) -> keras.Model:
    """Makes a Keras 3 model of one of Keras 2, with the same outputs.

    The layers are made again from the configuration, and called as they were; operations of TensorFlow
    in the graph become operations of Keras. Every weight is found by its name. Wrappers of TFMOT's
    pruning and clustering are stripped. Where tf_keras is installed, both models compute random inputs,
    and their outputs must be the same; where it is not, or cannot open a file, there is a warning.

    Args:
        model: A Functional or Sequential model of tf_keras; or the path of what Keras 2 wrote: an `.h5`
            file, which needs no tf_keras, or a `.keras` file or the folder of a saved model, which do
            (`pip install keras-qareg[tf-keras]`). Models with wrappers of TFMOT need that too
            (`keras-qareg[tfmot]`).
        custom_objects: Classes of Keras 3 for layers that are not Keras's, and functions, by the names
            that they have in the model. They come before the classes of Keras.
        compile: Whether to compile the model as the old one was. Its optimizer has the learning rate of
            now, and states that start anew. Where Keras 3 has no such optimizer, loss or metric, the
            model is left as it is, with a warning.
        tolerance: The largest difference of outputs, relative to the largest magnitude of each;
            models of low precision have 32 steps of it in any case.

    Returns:
        A model with the same names of layers (with `_` for `/`). States of `stateful=True` layers
        start at zero.

    Raises:
        ValueError: If Keras 3 cannot make the model (a `Lambda` layer, a subclassed model, TFMOT's
            `quantize_model`, a class, operation or setting that it has not); if a weight has no
            counterpart; if outputs differ.
        ImportError: If tf_keras or TFMOT is needed, and not installed.

    Example:

    >>> folder = tempfile.TemporaryDirectory()
    >>> path = Path(folder.name) / "old.h5"
    >>> import h5py, json
    >>> dense = {"name": "dense", "units": 1, "batch_input_shape": [None, 2], "use_bias": False}
    >>> layers = [{"class_name": "Dense", "config": dense}]
    >>> config = {"class_name": "Sequential", "config": {"name": "old", "layers": layers}}
    >>> with h5py.File(path, "w") as file:  # as Keras 2 writes it
    ...     file.attrs.update(keras_version="2.15.0", model_config=json.dumps(config))
    ...     weights = file.create_group("model_weights")
    ...     weights.attrs["layer_names"] = ["dense"]
    ...     kernel = np.array([[2.0], [3.0]], "float32")
    ...     weights["dense/dense/kernel:0"] = kernel
    ...     weights["dense"].attrs["weight_names"] = ["dense/kernel:0"]
    >>> model = qareg.from_tf_keras(path)
    >>> float(model(np.ones((1, 2)))[0, 0])
    5.0

    See also: https://keras-qareg.github.io/keras-qareg/models.html#from-keras-2-and-tfmot
    """
    custom = dict(custom_objects or {})
    if objects.is_tf_keras(model):
        source, original, reason = objects.source_of(model), model, ""
    elif isinstance(model, str | os.PathLike):
        source, original, reason = _read(Path(model), custom)
    else:
        raise ValueError(
            "Expected a model of tf_keras, or the path of one. Received: "
            f"{type(model).__name__}{' of Keras 3' if isinstance(model, keras.Model) else ''}."
        )
    made = build(source.config, custom)
    names = {layer.name: layer for layer in made.layers}
    layers = {name: names[layer_name(name)] for name in source.weights if layer_name(name) in names}
    assign(made, layers, source)
    if original is not None:
        check_same(made, original, tolerance)
    else:
        warnings.warn(
            f"The outputs of the model in {model} are not compared with those in Keras 2, because "
            f"{reason}. Compare them where you can.",
            stacklevel=2,
        )
    if compile:
        compile_as(made, source.training, custom)
    return made


def _read(path: Path, custom: dict[str, Any]) -> tuple[Source, Any, str]:
    """What is in a file, and the model of tf_keras; or `None`, and why that cannot be had."""
    if not path.exists():
        raise FileNotFoundError(
            f"Expected a model of Keras 2. Received: {path}, which is not there."
        )
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ValueError(
                f"Expected a saved model. Received: {path}, a folder without saved_model.pb."
            )
    elif zipfile.is_zipfile(path):
        if not written_by_keras_2(path):
            raise ValueError(
                f"Expected a file of Keras 2. Received: {path}, which is none. Open files of Keras 3 "
                "with keras.saving.load_model."
            )
    else:
        source = read_h5(path)
        if not objects.is_wrapped(source.config):
            return source, *(_to_compare(path, source) if not custom else (None, _CUSTOM))
    try:
        original = objects.opened(path)
    except AttributeError as error:
        if not path.is_dir():
            raise
        raise ValueError(
            f"Expected the folder of a saved model of Keras 2. Received: {path}, which tf_keras cannot "
            f"open ({error}), as of what `model.export` of Keras 3 wrote. Pass the model itself, saved "
            "as .keras."
        ) from error
    return objects.source_of(original), original, ""


def _to_compare(path: Path, source: Source) -> tuple[Any, str]:
    """The model of tf_keras in a file; or `None`, and why it cannot be had."""
    if objects.tf_keras() is None:
        return None, "tf_keras is not installed (pip install 'keras-qareg[tf-keras]')"
    if '"Lambda"' in json.dumps(source.config):
        return None, "the code of its Lambda layers would run"
    try:
        return objects.opened(path), ""
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        return None, f"tf_keras cannot open it ({type(error).__name__}: {reason[:200]})"


def written_by_keras_2(path: Path) -> bool:
    """Whether a `.keras` or HDF5 file is one of Keras 2, or of a version that it does not say."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if "metadata.json" not in file.namelist():
                return False
            version = json.loads(file.read("metadata.json")).get("keras_version", "")
        return str(version).startswith("2.")
    import h5py

    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "2")
    version = version.decode() if isinstance(version, bytes) else str(version)
    return version.startswith(("1.", "2."))
