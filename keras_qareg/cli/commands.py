"""What each command does. Files and numbers are checked before Keras is imported."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from keras_qareg.cli.arrays import Arrays
from keras_qareg.cli.backend import check_backend
from keras_qareg.cli.compress import compress
from keras_qareg.cli.messages import CommandError, plain, tell
from keras_qareg.cli.opening import custom_objects, load_model, opening
from keras_qareg.cli.paths import Kind, check_model, check_output, kind_of
from keras_qareg.cli.writing import check_files, conversion_of, say, write_litert

MISMATCH = 1


def run(options: argparse.Namespace) -> int:
    """Runs the command that was parsed and returns its exit status."""
    return _COMMANDS[options.command](options) or 0


def _export(options: argparse.Namespace) -> None:
    conversion = conversion_of(options)
    check_files(options)
    data = None if options.data is None else Arrays(options.data, targets=False)
    check_model(options.source)
    check_backend(converts=True)
    with custom_objects(options.custom_objects):
        model = load_model(options.source)
        inputs = None if data is None else data.for_model(model)
        say("Exporting and comparing with Keras")
        for report in write_litert(model, inputs, options, conversion):
            say(report)


def _archive(options: argparse.Namespace) -> None:
    check_output(options.out, options.source, force=options.force)
    check_model(options.source)
    check_backend()
    with custom_objects(options.custom_objects):
        from keras_qareg.export.archive.archive import save_archive
        from keras_qareg.export.archive.reading import describe

        model = load_model(options.source)
        names = ("float_dtype", "fold", "effort", "target_bytes")
        say(describe(save_archive(model, options.out, **{n: getattr(options, n) for n in names})))


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
    data = None if options.data is None else Arrays(options.data, targets=False)
    check_backend()
    with custom_objects(options.custom_objects):
        from keras_qareg.export import ArchiveError
        from keras_qareg.export.verification import verify

        model = load_model(options.source)
        _described(options.file, kind)  # raises where the file is damaged
        inputs = None if data is None else data.for_model(model)
        try:
            with opening(options.file):
                say(f"{options.file}: {verify(model, options.file, inputs)}")
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
            from keras_qareg.summaries import summary

            say(summary(load_model(options.source)))


def _report(options: argparse.Namespace) -> None:
    source, out = options.source, options.out
    check_output(out, source, force=options.force, suffix=".html")
    is_file = kind_of(source) in (Kind.ARCHIVE, Kind.LITERT)
    given = {"--reference": options.reference, "--plan": options.plan}
    if not is_file:
        check_model(source)
    elif any(given.values()):
        word = next(word for word, value in given.items() if value is not None)
        raise CommandError(f"Expected {word} with a model alone. Received: {word} with {source}")
    if options.reference is not None:
        check_model(options.reference)
    check_backend()
    with custom_objects(options.custom_objects):
        from keras_qareg.plans import Plan
        from keras_qareg.report import html

        plan = None if options.plan is None else Plan.load(options.plan)
        reference = None if options.reference is None else load_model(options.reference)
        html(source if is_file else load_model(source), out, reference, plan=plan)
    say(f"{out}: {out.stat().st_size:,} bytes. Open it in a browser")


def _described(path: Path, kind: Kind) -> str:
    from keras_qareg.export.archive.reading import describe
    from keras_qareg.export.litert.inspection import describe_litert

    return describe(path) if kind is Kind.ARCHIVE else describe_litert(path)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "compress": compress,
    "export": _export,
    "archive": _archive,
    "unarchive": _unarchive,
    "verify": _verify,
    "inspect": _inspect,
    "report": _report,
}
