"""What each command does. Files and numbers are checked before Keras is imported."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_qareg.cli.arrays import Arrays
from keras_qareg.cli.backend import check_backend
from keras_qareg.cli.messages import CommandError, plain, tell
from keras_qareg.cli.opening import custom_objects, load_model, opening
from keras_qareg.cli.options import input_shapes, sharing
from keras_qareg.cli.paths import Kind, check_model, check_output, kind_of

MISMATCH = 1


def run(options: argparse.Namespace) -> int:
    """Runs the command that was parsed and returns its exit status."""
    return _COMMANDS[options.command](options) or 0


_EPOCHS = 5


def say(text: Any) -> None:
    """Prints something at once, also into a pipe."""
    print(text, flush=True)


def _compress(options: argparse.Namespace) -> None:
    conversion, its = _conversion(options), sharing(options)
    _check_files(options)
    data = None if options.data is None else Arrays(options.data, targets=True)
    if data is None and options.epochs is not None:
        raise ValueError("Expected --data to tune on, with --epochs. Received: --epochs alone.")
    check_model(options.source)
    check_backend(converts=True)
    with custom_objects(options.custom_objects):
        from keras_qareg.compressing import Options, compressed
        from keras_qareg.config import explain
        from keras_qareg.models.selection import check_built
        from keras_qareg.report import summary

        if options.seed is not None:
            _seed(options.seed)  # before layers are made, which draw seeds of their own
        model, examples = load_model(options.source, compiled=data is not None), None
        check_built(model)
        if data is not None:
            examples = data.for_model(model)
            _prepare(model, examples, options)
        if options.config is not None:
            say(explain(model, options.config[1]))
        tuning = "" if data is None else f", and tuning them on {data.path}"
        many = isinstance(its["levels"], dict)
        most = "as said above" if many else f"at most {its['levels']} levels a kernel"
        say(f"Sharing weights, {most}{tuning}")
        way = Options(
            layers=options.layers,
            epochs=options.epochs or _EPOCHS,
            **its,
            # A bar is drawn over and over, which in a file or a pipe is a mess.
            verbose="auto" if sys.stdout.isatty() else 2,
        )
        done = compressed(model, examples, options=way)
        if done.stages:
            say(done)
        shared = done.model
        say(summary(shared, model))
        say("Exporting and comparing with Keras")
        # The shared model, whose tables say how each kernel is held; not what strip makes of it.
        inputs = None if examples is None else examples[0]
        _write_files(shared, inputs, options, conversion)


def _seed(seed: int) -> None:
    import keras

    keras.utils.set_random_seed(seed)


def _prepare(model: Any, examples: tuple[Any, Any, Any], options: argparse.Namespace) -> None:
    """Compiles a model that has no loss, and computes it once, before anything long begins."""
    import keras

    has_loss = model.compiled and model.loss is not None
    if options.loss is not None and has_loss:
        tell(f"warning: {options.source} is compiled with a loss, so --loss is not used")
    elif options.loss is not None:
        keras.losses.get(options.loss)  # raises where there is no such loss
        model.compile(loss=options.loss)
    elif not model.compiled:
        raise _without_loss(options)
    if type(model).train_step is not keras.Model.train_step:
        return  # it knows what its loss is
    inputs, targets, weights = keras.tree.map_structure(
        lambda array: None if array is None else array[:1], examples
    )
    # Keras and each backend have errors of their own for what does not fit.
    try:
        outputs = model(inputs, training=False)
    except Exception as error:
        shapes = _shapes(inputs)
        raise CommandError(
            f"Expected --data that the model takes. Received: {shapes} ({plain(error)})"
        ) from error
    try:
        model.compute_loss(x=inputs, y=targets, y_pred=outputs, sample_weight=weights)
    except Exception as error:
        if model.loss is None:
            raise _without_loss(options) from error
        raise CommandError(
            "Expected targets in --data that fit the model's loss and its outputs of "
            f"{_shapes(outputs)}. Received: {_shapes(targets)} ({plain(error)})"
        ) from error


def _without_loss(options: argparse.Namespace) -> CommandError:
    return CommandError(
        f"Expected a compiled model to tune. Received: {options.source} without a loss. "
        "Name one, for example --loss sparse_categorical_crossentropy"
    )


def _shapes(values: Any) -> str:
    import keras

    shapes = [str((None, *leaf.shape[1:])) for leaf in keras.tree.flatten(values)]
    return f"shape{'s' * (len(shapes) > 1)} {', '.join(shapes)}"


def _export(options: argparse.Namespace) -> None:
    conversion = _conversion(options)
    _check_files(options)
    data = None if options.data is None else Arrays(options.data, targets=False)
    check_model(options.source)
    check_backend(converts=True)
    with custom_objects(options.custom_objects):
        model = load_model(options.source)
        inputs = None if data is None else data.for_model(model)
        say("Exporting and comparing with Keras")
        _write_files(model, inputs, options, conversion)


def _conversion(options: argparse.Namespace) -> dict[str, Any]:
    """What else `export.litert` takes.

    Raises:
        CommandError: If what is asked for cannot be had, which is said before anything long begins.
    """
    if options.npu is not None and (options.weights != "int8" or options.data is None):
        raise CommandError(
            "Expected --weights int8 and --data with --npu, which takes full-integer files. Received: "
            f"--weights {options.weights}{'' if options.data else ' without --data'}"
        )
    return {
        "decode_once": not options.decode_each_run,
        "input_shape": input_shapes(options),
        "input_type": options.input_type,
        "output_type": options.output_type,
        "npu": options.npu,
    }


def _check_files(options: argparse.Namespace) -> None:
    check_output(options.out, options.source, force=options.force, suffix=".tflite")
    for suffix in (".cc", ".h") if options.c_array else ():
        check_output(options.out.with_suffix(suffix), options.source, force=options.force)


def _write_files(
    model: Any, inputs: Any, options: argparse.Namespace, conversion: dict[str, Any]
) -> None:
    """Writes a `.tflite`, and its C++ source where that is asked for: all files, or none."""
    from keras_qareg.export.litert.c_array import c_array
    from keras_qareg.export.litert.convert import litert

    out = options.out
    if not options.c_array:
        say(litert(model, out, options.weights, inputs, **conversion))
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as folder:
        report = litert(model, Path(folder) / out.name, options.weights, inputs, **conversion)
        source = c_array(report.path)
        for file in (report.path, source.source, source.header):
            file.replace(out.parent / file.name)
    say(dataclasses.replace(report, path=out))
    moved = {"source": out.with_suffix(".cc"), "header": out.with_suffix(".h")}
    say(dataclasses.replace(source, **moved))


def _archive(options: argparse.Namespace) -> None:
    check_output(options.out, options.source, force=options.force)
    check_model(options.source)
    check_backend()
    with custom_objects(options.custom_objects):
        from keras_qareg.export.archive.archive import describe, save_archive

        model = load_model(options.source)
        say(describe(save_archive(model, options.out, float_dtype=options.float_dtype)))


def _unarchive(options: argparse.Namespace) -> None:
    check_output(options.out, options.source, force=options.force, suffix=".keras")
    kind = kind_of(options.source)
    if kind is not Kind.ARCHIVE:
        raise CommandError(
            f"Expected an archive of keras-qareg. Received: {options.source}, which is {kind.value}"
        )
    check_backend()
    with custom_objects(options.custom_objects):
        from keras_qareg.export.archive.archive import load_archive

        with opening(options.source):
            model = load_archive(options.source)
        out = options.out
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.stem}-") as folder:
            draft = Path(folder) / out.name
            model.save(draft)
            draft.replace(out)
    say(f"{out}: {out.stat().st_size:,} bytes")


def _verify(options: argparse.Namespace) -> int:
    check_model(options.source)
    kind = kind_of(options.file)
    if kind not in (Kind.ARCHIVE, Kind.LITERT):
        raise CommandError(
            f"Expected a .tflite file or an archive. Received: {options.file}, which is {kind.value}"
        )
    check_backend()
    with custom_objects(options.custom_objects):
        from keras_qareg.export import ArchiveError
        from keras_qareg.export.verification import verify

        model = load_model(options.source)
        _described(options.file, kind)  # raises where the file is damaged
        try:
            with opening(options.file):
                say(f"{options.file}: {verify(model, options.file)}")
        except ArchiveError:
            raise
        except ValueError as error:
            # The package says of a mismatch what it expected; others, as LiteRT, say what failed.
            if not str(error).startswith("Expected "):
                raise
            tell(plain(error))
            return MISMATCH
    return 0


def _inspect(options: argparse.Namespace) -> None:
    kind = kind_of(options.source)
    if kind not in (Kind.ARCHIVE, Kind.LITERT):
        check_model(options.source)
    check_backend()
    with custom_objects(options.custom_objects):
        if kind in (Kind.ARCHIVE, Kind.LITERT):
            say(_described(options.source, kind))
        else:
            from keras_qareg.report import summary

            say(summary(load_model(options.source)))


def _described(path: Path, kind: Kind) -> str:
    from keras_qareg.export.archive.archive import describe
    from keras_qareg.export.litert.inspection import describe_litert

    return describe(path) if kind is Kind.ARCHIVE else describe_litert(path)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "compress": _compress,
    "export": _export,
    "archive": _archive,
    "unarchive": _unarchive,
    "verify": _verify,
    "inspect": _inspect,
}
