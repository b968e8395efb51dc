"""Files that the command was given: what they are, by their first bytes, and where new ones may go."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from enum import Enum
from pathlib import Path

from keras_qareg.cli.messages import CommandError


class Kind(Enum):
    """What a file is; the value says it in words."""

    KERAS = "a .keras file"
    HDF5 = "an HDF5 file"
    LITERT = "a .tflite file"
    ARCHIVE = "an archive of keras-qareg"
    NPZ = "a .npz file"
    NPY = "a .npy file of one array"
    SAVED_MODEL = "a TensorFlow SavedModel"
    FOLDER = "a folder"
    ZIP = "a .zip file"
    EMPTY = "an empty file"
    UNKNOWN = "a file of another kind"


_BEGINNINGS = {
    b"\x89KQAREG\n": Kind.ARCHIVE,
    b"\x89HDF\r\n\x1a\n": Kind.HDF5,
    b"\x93NUMPY": Kind.NPY,
}
_WHAT_TO_DO = {
    Kind.SAVED_MODEL: (
        "which Keras 3 cannot open. If Keras 2 wrote it, tf_keras can: pip install "
        "'keras-qareg[tf-keras]'"
    ),
    Kind.LITERT: (
        "from which no Keras model can be made. Pass the model that it was made from; `keras-qareg "
        "inspect` shows what is in it"
    ),
    Kind.ARCHIVE: "Make a model of it first: `keras-qareg unarchive {path} --out MODEL.keras`",
}


def kind_of(path: Path) -> Kind:
    """What a file or folder is.

    Raises:
        CommandError: If there is none, or it cannot be read.
    """
    if not path.exists():
        raise CommandError(f"Expected a file. Received: {path}, which does not exist")
    if path.is_dir():
        return Kind.SAVED_MODEL if (path / "saved_model.pb").exists() else Kind.FOLDER
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        return Kind.EMPTY
    if head[4:] == b"TFL3":
        return Kind.LITERT
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        return _kind_of_zip(path)
    return next((k for bytes_, k in _BEGINNINGS.items() if head.startswith(bytes_)), Kind.UNKNOWN)


def _kind_of_zip(path: Path) -> Kind:
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    if "config.json" in names and any(name.startswith("model.weights") for name in names):
        return Kind.KERAS
    return Kind.NPZ if all(name.endswith(".npy") for name in names) else Kind.ZIP


def check_model(path: Path) -> Kind:
    """What a model file is: `Kind.KERAS` or `Kind.HDF5`; `Kind.SAVED_MODEL` where tf_keras is installed.

    Raises:
        CommandError: If it is no model that Keras 3 may open, with what to do.
    """
    if not path.exists():
        raise CommandError(f"Expected a Keras model file. Received: {path}, which does not exist")
    kind = kind_of(path)
    if kind is Kind.SAVED_MODEL and has_tf_keras():
        return kind
    if kind not in (Kind.KERAS, Kind.HDF5):
        # The remedy of an archive is a sentence of its own.
        separator = ". " if kind is Kind.ARCHIVE else ", "
        remedy = _WHAT_TO_DO.get(kind, "").format(path=str(path))
        raise CommandError(
            f"Expected a Keras model file (.keras or .h5). Received: {path}, which is {kind.value}"
            f"{separator + remedy if remedy else ''}"
        )
    suffixes = (".keras",) if kind is Kind.KERAS else (".h5", ".hdf5")
    if path.suffix not in suffixes:
        raise CommandError(
            f"Expected a file name that ends in '{suffixes[0]}', as Keras does of {kind.value}. "
            f"Received: {path}. Rename it"
        )
    return kind


def has_tf_keras() -> bool:
    """Whether what opens saved models is installed; it is not imported."""
    return importlib.util.find_spec("tf_keras") is not None


def check_output(
    path: Path, source: Path, *, force: bool, suffix: str | None = None, name: str = "--out"
) -> None:
    """Whether a command may write a file, which the word `name` of the command line names.

    Raises:
        CommandError: If the name does not end in `suffix`; if the folder does not exist, or cannot be
            written into; if there is a folder of that name; if it is the file to read; if there is a
            file of that name, and no `force`.
    """
    if suffix is not None and path.suffix != suffix:
        raise CommandError(f"Expected a file name that ends in '{suffix}'. Received: {path}")
    if not path.parent.is_dir():
        raise CommandError(
            f"Expected a folder that exists. Received: {path.parent}, which does not"
        )
    if not os.access(path.parent, os.W_OK):
        raise CommandError(
            f"Expected a folder to write into. Received: {path.parent}, which is not"
        )
    if path.is_dir():
        raise CommandError(f"Expected {name} to be a file. Received: {path}, which is a folder")
    if not path.exists():
        return
    if source.exists() and path.samefile(source):
        raise CommandError(
            f"Expected {name} to be another file than the one to read. Received: {path}"
        )
    if not force:
        raise CommandError(
            f"Expected a new file for {name}. Received: {path}, which exists. Add --force to replace it"
        )
