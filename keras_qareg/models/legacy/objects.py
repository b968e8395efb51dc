"""Models of tf_keras, Keras 2 as a package of its own: opened, freed of TFMOT's wrappers, and read.

Nothing here imports tf_keras or TFMOT before it is used.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_qareg.models.legacy.layers import Config, class_name, refusal_of_tfmot
from keras_qareg.models.legacy.source import Source, Weights

_PRUNED = ("PruneLowMagnitude",)
_CLUSTERED = ("ClusterWeights", "ClusterWeightsMHA")


def is_tf_keras(model: Any) -> bool:
    """Whether an object is a model of tf_keras, or of Keras 2 in TensorFlow."""
    names = ("tf_keras", "keras")  # TensorFlow before 2.16 has Keras 2 under the name of Keras 3
    modules = [sys.modules.get(name) for name in names]
    return any(
        isinstance(model, module.Model)
        for module in modules
        if module is not None and str(getattr(module, "__version__", "")).startswith("2.")
    )


def tf_keras() -> Any:
    """The package; `None` where it is not installed."""
    try:
        return importlib.import_module("tf_keras")
    except ImportError:
        return None


def opened(path: Path) -> Any:
    """A model of tf_keras from a file or folder, not compiled where Keras 2 cannot.

    Raises:
        ImportError: If tf_keras is not installed, or TFMOT, whose wrappers the model has.
        ValueError: If it is one of TFMOT's `quantize_model`.
    """
    package = tf_keras()
    if package is None:
        raise ImportError(
            f"Expected tf_keras, to open {path}, which Keras 2 wrote. Received: none. Install it with "
            "pip install 'keras-qareg[tf-keras]'."
        )
    written = _written(path)
    if b'"QuantizeWrapper' in written or b'"QuantizeLayer"' in written:
        raise ValueError(refusal_of_tfmot("QuantizeWrapper", str(path)))
    with _scopes(written):
        try:
            return package.models.load_model(path)
        except (TypeError, ValueError, KeyError, AttributeError):  # of a loss, say, or of the model
            return package.models.load_model(path, compile=False)


def _written(path: Path) -> bytes:
    """What names the classes of a model in a file or folder."""
    metadata = path / "keras_metadata.pb"
    if path.is_dir():
        return metadata.read_bytes() if metadata.exists() else b""
    if path.suffix == ".keras":
        import zipfile

        with zipfile.ZipFile(path) as file:
            return file.read("config.json")
    import h5py

    with h5py.File(path) as file:
        config = file.attrs["model_config"]
    return config if isinstance(config, bytes) else str(config).encode()


@contextlib.contextmanager
def _scopes(written: bytes) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if any(name.encode() in written for name in _PRUNED):
            stack.enter_context(_tfmot().sparsity.keras.prune_scope())
        if any(name.encode() in written for name in _CLUSTERED):
            stack.enter_context(_tfmot().clustering.keras.cluster_scope())
        yield


def _tfmot() -> Any:
    try:
        return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise ImportError(
            "Expected TFMOT, to strip its wrappers from the model. Received: none. Install it with "
            "pip install 'keras-qareg[tfmot]', or pass a stripped model."
        ) from error


def is_wrapped(config: Config) -> bool:
    """Whether a model has wrappers of TFMOT that can be stripped."""
    return any(f'"{name}"' in json.dumps(config) for name in (*_PRUNED, *_CLUSTERED))


def _stripped(model: Any) -> Any:
    """A copy of a model without TFMOT's wrappers; the model itself where there are none."""
    names = {type(layer).__name__ for layer in model.submodules}
    if not names & {*_PRUNED, *_CLUSTERED}:
        return model
    tfmot, package = _tfmot(), importlib.import_module(type(model).__module__.partition(".")[0])
    with _scopes(" ".join(names).encode()):
        # Stripping builds a model from the layers of the one that it is given.
        copied = package.models.clone_model(model)
        copied.set_weights(model.get_weights())
    if names & set(_CLUSTERED):
        copied = tfmot.clustering.keras.strip_clustering(copied)
    if names & set(_PRUNED):
        _mask(copied)
        copied = tfmot.sparsity.keras.strip_pruning(copied)
    return copied


def _mask(model: Any) -> None:
    """Sets pruned weights to zero, as the wrappers do when they are called."""
    for layer in model.submodules:
        if type(layer).__name__ in _PRUNED:
            for weight, mask, _ in layer.pruning_vars:
                weight.assign(weight * mask)


def source_of(model: Any) -> Source:
    """What a model is made of, without TFMOT's wrappers.

    Raises:
        ValueError: If its configuration does not say that.
        ImportError: If it has wrappers, and TFMOT is not installed.
    """
    _check(model)
    bare = _stripped(model)
    config = json.loads(bare.to_json())
    layers = {layer.name: layer for layer in bare.layers}
    _add_vocabularies(config, layers)
    weights = {name: _weights(layer) for name, layer in layers.items()}
    return Source(config, weights, _compiled(model))


def _check(model: Any) -> None:
    named = f"'{model.name}' ({type(model).__name__})"
    if not hasattr(model, "_is_graph_network") or not (
        model._is_graph_network or hasattr(model, "pop")
    ):
        raise ValueError(
            f"Expected a Functional or Sequential model. Received: {named}, whose own code calls its "
            "layers. Write the same class for Keras 3, and set its weights from `get_weights()`."
        )
    if not model.built or model.inputs is None:
        raise ValueError(
            f"Expected a model that knows the shape of its inputs. Received: {named}. Call "
            "build(input_shape) on it, or give it an Input."
        )
    if getattr(model, "_self_extra_variables", None):
        raise ValueError(f"Expected all weights in layers. Received: {named} with others.")


def _weights(layer: Any) -> Weights:
    found = [*layer.trainable_weights, *layer.non_trainable_weights]
    weights = {
        id(weight): weight for weight in found if hasattr(weight, "numpy")
    }  # no vocabularies
    return [(weight.name, weight.numpy()) for weight in weights.values()]


def _add_vocabularies(entry: Config, layers: dict[str, Any]) -> None:
    """Puts into a configuration what `adapt` found and Keras 2 leaves out of it."""
    for inner in entry["config"]["layers"]:
        name, config = class_name(inner), inner["config"]
        layer: Any = layers.get(config.get("name"))
        if name in ("StringLookup", "IntegerLookup", "TextVectorization"):
            vocabulary = layer.get_vocabulary(include_special_tokens=False)
            config["vocabulary"] = [
                getattr(word, "item", lambda w=word: w)() for word in vocabulary
            ]
        elif name == "Discretization" and config.get("bin_boundaries") is None:
            config.update(bin_boundaries=[float(b) for b in layer.bin_boundaries], num_bins=None)
        elif "layers" in config:
            _add_vocabularies(inner, {part.name: part for part in layer.layers})


def _compiled(model: Any) -> Config | None:
    """How a model is compiled, in the words of HDF5 files."""
    if not getattr(model, "optimizer", None):
        return None
    found: Config = dict(model.get_compile_config() or {})
    found.pop("optimizer", None)
    optimizer = model.optimizer
    found["optimizer_config"] = {
        "class_name": type(optimizer).__name__,
        "config": optimizer.get_config(),
    }
    return found
