"""The `keras-qareg` command."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_qareg import __version__

EXIT_ERROR = 2
BACKENDS = ("tensorflow", "jax", "torch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: Words of the command line; `None`: those of the process.

    Returns:
        The exit status: 0, or 2 after an error, which is told in one line on standard error.
    """
    options = _parser().parse_args(arguments)
    try:
        _check_backend()
        options.run(options)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"keras-qareg: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("keras-qareg: interrupted", file=sys.stderr)
        return 130
    return 0


def _check_backend() -> None:
    """Raises an `ImportError` where Keras is going to ask for a backend that is not installed."""
    wanted = _wanted_backend()
    if "keras" in sys.modules or wanted not in BACKENDS or importlib.util.find_spec(wanted):
        return
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    remedy = f"Set KERAS_BACKEND={found[0]}, or p" if found else "P"
    raise ImportError(
        f"Expected a backend for Keras. Received: KERAS_BACKEND={wanted}, which is not installed. "
        f"Found: {', '.join(found) or 'none'}. {remedy}ip install {wanted}"
    )


def _wanted_backend() -> str:
    """What Keras takes: the variable, else its configuration file, else TensorFlow."""
    file = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "keras.json"
    try:
        configured = json.loads(file.read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        configured = None
    return str(os.environ.get("KERAS_BACKEND") or configured or "tensorflow")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-qareg", description="Make Keras models small: share weights, export, inspect."
    )
    parser.add_argument("--version", action="version", version=f"keras-qareg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_compress, _add_export, _add_archive, _add_verify, _add_inspect):
        add(commands)
    return parser


def _add_compress(commands: Any) -> None:
    compress = commands.add_parser(
        "compress", help="share weights, tune centroids, export a .tflite"
    )
    compress.add_argument("model", type=Path, metavar="MODEL.keras")
    compress.add_argument("--out", type=Path, required=True, metavar="FILE.tflite")
    compress.add_argument("--levels", type=int, default=16, help="values a kernel (default: 16)")
    compress.add_argument(
        "--layers", choices=("all", "conv", "dense"), default="all", help="default: all"
    )
    compress.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="arrays x and y to tune the centroids on"
    )
    compress.add_argument("--epochs", type=int, default=5, help="epochs of tuning (default: 5)")
    compress.add_argument(
        "--snap",
        action="store_true",
        help="evenly spaced values, which a .tflite holds as small integers",
    )
    compress.add_argument("--loss", help="Keras loss for tuning, where the model was not compiled")
    _add_weights(compress)
    compress.set_defaults(run=_compress)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export", help="write a model as .tflite and compare it with Keras"
    )
    export.add_argument("model", type=Path, metavar="MODEL.keras")
    export.add_argument("--out", type=Path, required=True, metavar="FILE.tflite")
    export.add_argument(
        "--data", type=Path, metavar="FILE.npz", help="array x: samples, which calibrate int8"
    )
    _add_weights(export)
    export.set_defaults(run=_export)


def _add_archive(commands: Any) -> None:
    archive = commands.add_parser("archive", help="write a model as one small archive")
    archive.add_argument("model", type=Path, metavar="MODEL.keras")
    archive.add_argument("--out", type=Path, required=True, metavar="FILE.qareg")
    archive.add_argument(
        "--float-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of tensors that are not shared (default: float32)",
    )
    archive.set_defaults(run=_archive)

    unarchive = commands.add_parser("unarchive", help="write the model of an archive as .keras")
    unarchive.add_argument("archive", type=Path, metavar="FILE.qareg")
    unarchive.add_argument("--out", type=Path, required=True, metavar="MODEL.keras")
    unarchive.set_defaults(run=_unarchive)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="whether a .tflite or an archive is a model")
    verify.add_argument("model", type=Path, metavar="MODEL.keras")
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.set_defaults(run=_verify)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect", help="what is in a model, an archive or a .tflite: levels, values, bytes"
    )
    inspect.add_argument("model", type=Path, metavar="FILE")
    inspect.set_defaults(run=_inspect)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    exact = ("auto", "smallest", "int8-exact", "int4-exact", "int2-exact", "codebook", "tflm")
    choices = (*exact, "float32", "float16", "int8")
    parser.add_argument(
        "--weights",
        choices=choices,
        default="auto",
        help="default: auto; int8 and tflm (for TFLite Micro) are full integer with --data",
    )
    parser.add_argument(
        "--decode-each-run",
        action="store_true",
        help="look codebooks up in each run, for runtimes without variables",
    )


def _compress(options: argparse.Namespace) -> None:
    from keras_qareg.export.files import check_target
    from keras_qareg.export.litert.convert import litert
    from keras_qareg.models import compress
    from keras_qareg.report import summary

    check_target(options.out, ".tflite")
    data = None if options.data is None else _load_arrays(options.data, "x", "y")
    model = _load_model(options.model)
    if data is not None and not model.compiled:
        if options.loss is None:
            raise ValueError(
                f"Expected a compiled model to tune. Received: {options.model} without a loss. "
                "Name one, for example --loss sparse_categorical_crossentropy"
            )
        model.compile(loss=options.loss)
    print(f"Sharing weights: at most {options.levels} values a kernel", flush=True)
    small = compress(
        model,
        options.levels,
        options.layers,
        data=data,
        epochs=options.epochs,
        snap=options.snap,
    )
    print(summary(small), flush=True)
    print("Exporting and comparing with Keras", flush=True)
    samples = None if data is None else data[0]
    print(
        litert(
            small, options.out, options.weights, samples, decode_once=not options.decode_each_run
        )
    )


def _export(options: argparse.Namespace) -> None:
    from keras_qareg.export.files import check_target
    from keras_qareg.export.litert.convert import litert

    check_target(options.out, ".tflite")
    samples = None if options.data is None else _load_arrays(options.data, "x")[0]
    model = _load_model(options.model)
    print(
        litert(
            model, options.out, options.weights, samples, decode_once=not options.decode_each_run
        )
    )


def _archive(options: argparse.Namespace) -> None:
    from keras_qareg.export.archive.archive import describe, save_archive
    from keras_qareg.export.files import check_target

    check_target(options.out)
    print(
        describe(
            save_archive(_load_model(options.model), options.out, float_dtype=options.float_dtype)
        )
    )


def _unarchive(options: argparse.Namespace) -> None:
    from keras_qareg.export.archive.archive import load_archive
    from keras_qareg.export.files import check_target

    check_target(options.out, ".keras")
    load_archive(options.archive).save(options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


def _verify(options: argparse.Namespace) -> None:
    from keras_qareg.export.verification import verify

    print(f"{options.file}: {verify(_load_model(options.model), options.file)}")


def _inspect(options: argparse.Namespace) -> None:
    from keras_qareg.export.archive.archive import describe
    from keras_qareg.export.archive.container import is_archive
    from keras_qareg.export.litert.inspection import describe_litert, is_litert
    from keras_qareg.report import summary

    if options.model.is_file() and is_archive(options.model):
        print(describe(options.model))
    elif options.model.is_file() and is_litert(options.model):
        print(describe_litert(options.model))
    else:
        print(summary(_load_model(options.model)))


def _load_model(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"Expected a Keras model file. Received: {path}, which does not exist")
    import keras

    import keras_qareg  # noqa: F401  (registers the layers that the file may name)

    try:
        return keras.saving.load_model(path)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"Expected a readable .keras file. Received: {path} ({reason})") from error


def _load_arrays(path: Path, *names: str) -> tuple[Any, ...]:
    import numpy as np

    if not path.is_file():
        raise ValueError(f"Expected a .npz file. Received: {path}, which does not exist")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return tuple(arrays[name] for name in names)
    except Exception as error:
        wanted = " and ".join(f"'{name}'" for name in names)
        raise ValueError(
            f"Expected a .npz file with arrays {wanted}. Received: {path} ({error})"
        ) from error
