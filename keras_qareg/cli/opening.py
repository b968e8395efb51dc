"""Models that the command opens, and the classes that they need."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from keras_qareg.cli.messages import CommandError, plain
from keras_qareg.cli.paths import Kind, check_model

# How Keras says, in .keras files and in HDF5 files, that it knows no such class or function.
_UNKNOWN = re.compile(
    r"Could not locate (?:class|function) '([^']+)'|Unknown [\w ]+: '([^']+)'"
    r"|Could not deserialize class '([^']+)' because its parent module"
    r"|Expected layers that Keras 3 has\. Received: '[^']*' of class (\w+)"
)
_LAMBDA = re.compile(r"(?i)`?lambda`? .*safe_mode", re.DOTALL)


@contextlib.contextmanager
def custom_objects(name: str | None) -> Iterator[None]:
    """Makes the classes and functions of a module known to Keras.

    Args:
        name: The name of a module, or the path of a `.py` file; `None`: none.

    Raises:
        CommandError: If it cannot be imported.
    """
    objects = {} if name is None else _objects(_imported(name))
    import keras

    # Not a scope: another one inside, as of an archive, would hide it.
    known = keras.saving.get_custom_objects()
    before = {name: known[name] for name in objects if name in known}
    known.update(objects)
    try:
        yield
    finally:
        for name in objects:
            known.pop(name, None)
        known.update(before)


@contextlib.contextmanager
def opening(path: Path) -> Iterator[None]:
    """Says of a file that cannot be opened which class or function it needs.

    Raises:
        CommandError: If Keras does not know one.
    """
    try:
        yield
    except Exception as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is None:
            raise
        name = next(filter(None, unknown.groups()))
        raise CommandError(
            f"Expected to know '{name}', which {path} has. Received: nothing of that name. Add "
            "--custom-objects with the module or .py file that defines it"
        ) from error


def _imported(name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _from_file(Path(name).resolve(strict=True))
        # The command's own folder is first in the path, not the one that it was started in.
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    # A program, which reads the command line, exits.
    except (Exception, SystemExit) as error:
        raise CommandError(
            "Expected --custom-objects to name a module that can be imported, or a .py file. "
            f"Received: {name} ({plain(error, typed=True)})"
        ) from error


def _from_file(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.parent))  # for the modules beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    known = sys.modules.setdefault(path.stem, module)  # where dataclasses look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is module:
            del sys.modules[path.stem]
        raise
    return module


def _objects(module: ModuleType) -> dict[str, Any]:
    """Classes and functions by their names, less those of Keras; what is registered is known already."""
    return {
        name: found
        for name, found in vars(module).items()
        if callable(found)
        and not name.startswith("__")
        and not str(getattr(found, "__module__", "")).startswith("keras.")
    }


def load_model(path: Path, *, compiled: bool = False) -> Any:
    """Opens a model of Keras 3 or of Keras 2.

    Args:
        path: The file, or the folder of a saved model.
        compiled: Whether to compile it as it was; else its loss may be one that is not known here.

    Raises:
        CommandError: If it is none, or needs a class that is unknown.
    """
    kind = check_model(path)
    if kind is Kind.HDF5:
        _check_h5(path)
    import keras

    import keras_qareg  # (registers the layers that the file may name)
    from keras_qareg.models.legacy import written_by_keras_2

    old = kind is Kind.SAVED_MODEL or written_by_keras_2(path)
    try:
        with opening(path):
            if old:
                return keras_qareg.from_tf_keras(path, compile=compiled)
            if kind is Kind.KERAS:
                return keras.saving.load_model(path, compile=compiled)
            return _load_h5(path, compiled)
    except CommandError:
        raise
    except Exception as error:
        if old and str(error).startswith("Expected "):
            raise CommandError(plain(error)) from error
        raise CommandError(_reason(path, error)) from error


def _check_h5(path: Path) -> None:
    import h5py

    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise CommandError(
                "Expected a Keras model file (.keras or .h5). Received: "
                f"{path}, which has weights alone. Load them into the model and save that as .keras"
            )


def _load_h5(path: Path, compiled: bool) -> Any:
    import keras

    # Keras does not find these short names in such files.
    known = {"mse": keras.losses.mean_squared_error, "mae": keras.losses.mean_absolute_error}
    if compiled:
        try:
            return keras.saving.load_model(path, custom_objects=known)
        # Of a loss, say, that is unknown here; the model may be fine.
        except Exception as error:
            model = keras.saving.load_model(path, custom_objects=known, compile=False)
            warnings.warn(f"{path} is taken as not compiled: {plain(error)}", stacklevel=2)
            return model
    return keras.saving.load_model(path, custom_objects=known, compile=False)


def _reason(path: Path, error: Exception) -> str:
    if _LAMBDA.search(str(error)):
        return (
            f"Expected a model without code in its file. Received: {path} with a Lambda layer, whose "
            "code would run here. If you trust it, open it in Python with "
            "keras.saving.load_model(path, safe_mode=False) and call keras_qareg there"
        )
    return f"Expected a readable Keras model file. Received: {path} ({plain(error)})"
