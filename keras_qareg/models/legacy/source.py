"""What a model of Keras 2 is made of: its configuration, its weights, and how it was compiled.

Read from HDF5 files without Keras 2; `objects` reads the same from objects of tf_keras.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Weights = list[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A model of Keras 2.

    Attributes:
        config: Its configuration, as `to_json` writes it.
        weights: For each layer of it, by name, the names and values of all weights inside, first those
            that train: the order of HDF5 files.
        training: How it was compiled (`optimizer_config`, `loss`, `metrics`, ...); `None`: it was not.
    """

    config: dict[str, Any]
    weights: dict[str, Weights]
    training: dict[str, Any] | None


def read_h5(path: Path) -> Source:
    """Reads an HDF5 file of Keras 2.

    Raises:
        ValueError: If it holds no model, or one of another version of Keras.
    """
    import h5py

    with h5py.File(path) as file:
        _check(path, file.attrs)
        groups = file["model_weights"]
        weights = {name: _weights(groups[name]) for name in _names(groups.attrs, "layer_names")}
        own = groups.get("top_level_model_weights")
        if own is not None and _names(own.attrs, "weight_names"):
            raise ValueError(
                "Expected all weights of a model to be those of its layers. Received: "
                f"{path}, whose model has weights of its own. Make a layer that holds them."
            )
        training = _text(file.attrs.get("training_config", "null"))
        return Source(config_of(file.attrs), weights, json.loads(training))


def config_of(attributes: Any) -> dict[str, Any]:
    """The configuration of the model in an HDF5 file, from its attributes."""
    config: dict[str, Any] = json.loads(_text(attributes["model_config"]))
    return config


def _check(path: Path, attributes: Any) -> None:
    if "model_config" not in attributes:
        raise ValueError(
            f"Expected a file of a whole model. Received: {path}, which has weights alone. Load them "
            "into the model that they are of, and save that."
        )
    version = _text(attributes.get("keras_version", "1"))
    if not version.startswith("2."):
        remedy = (
            "Save it with Keras 2 first."
            if version.startswith("1")
            else "Open it with keras.saving.load_model."
        )
        raise ValueError(
            f"Expected a file of Keras 2. Received: {path}, a file of Keras {version}. {remedy}"
        )
    backend = _text(attributes.get("backend", "tensorflow"))
    if backend != "tensorflow":  # others turn the kernels of convolutions
        raise ValueError(
            f"Expected a file of Keras 2 on TensorFlow. Received: {path}, written on {backend}."
        )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _names(attributes: Any, key: str) -> list[str]:
    """A list of names; Keras splits long ones, as an attribute has at most 64 kB."""

    def parts() -> Iterator[Any]:
        if key in attributes:
            yield from attributes[key]
        number = 0
        while f"{key}{number}" in attributes:
            yield from attributes[f"{key}{number}"]
            number += 1

    return [_text(name) for name in parts()]


def _weights(group: Any) -> Weights:
    return [(name, np.asarray(group[name])) for name in _names(group.attrs, "weight_names")]
