"""The words of the command line. What is out of range is refused here, before anything is loaded."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from keras_qareg import __version__, settings
from keras_qareg.cli.backend import wanted_backend
from keras_qareg.cli.messages import CommandError
from keras_qareg.cli.numbers import integer, number, size

WEIGHTS = (
    *("auto", "smallest", "int8-exact", "int4-exact", "int2-exact", "codebook", "tflm"),
    *("float32", "float16", "int8"),
)
ACCELERATORS = (
    *("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256"),
    *("ethos-u65-256", "ethos-u65-512"),
    *("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
)
TABLES, SCALES = ("int8", "even", "float32"), ("auto", "kernel", "channel")
METHODS = (
    *("auto", "sine", "cosine", "nearest_squared", "nearest_exponential"),
    *("dkm", "wnq", "kmeans"),
)
# What sharing takes of each layer, and what is meant where nothing is said.
_SHARING = {"levels": 16, "table": "int8", "scale": "auto", "group_size": None}
_BUDGETS = ("levels", "target-bytes", "target-ratio")


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see `{self.prog} --help`)")


class _Version(argparse.Action):
    """Prints versions from what is installed, without an import of it."""

    def __init__(self, **settings: Any):
        super().__init__(nargs=0, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        backend = wanted_backend()
        # TensorFlow has packages of several names.
        names = importlib.metadata.packages_distributions()
        keras, engine = (_version(name, names.get(name, [])) for name in ("keras", backend))
        print(f"keras-qareg {__version__}\n{keras}\nbackend {engine}")
        parser.exit()


def _version(name: str, packages: Sequence[str]) -> str:
    if not packages:
        return f"{name} (not installed)"
    return f"{name} {importlib.metadata.version(packages[0])}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Args:
        arguments: Its words; `None`: those of the process.

    Raises:
        CommandError: If a word is unknown, missing, or a number out of its range.
    """
    parser = _Parser(
        prog="keras-qareg", description="Make Keras models small: share weights, export, inspect."
    )
    parser.add_argument("--version", action=_Version, help="show versions and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    adding = (_add_compress, _add_export, _add_archive, _add_verify, _add_inspect, _add_report)
    for add in adding:
        add(commands)
    return parser.parse_args(arguments)


def _add_compress(commands: Any) -> None:
    compress = _command(
        commands,
        "compress",
        "plan, train for few values, share weights, and write a checked file",
        "FILE.tflite or FILE.qareg",
    )
    _add_budgets(compress)
    _add_tables(compress)
    _add_training(compress)
    _add_checks(compress)
    _add_weights(compress)


def _add_budgets(compress: argparse.ArgumentParser) -> None:
    compress.add_argument("--levels", type=integer("--levels", 2, 256), help="values a kernel (16)")
    compress.add_argument(
        "--target-bytes",
        type=size("--target-bytes"),
        metavar="BYTES",
        help="or the most bytes of the file, for which levels are planned: 60000, 60k, 1.5M",
    )
    compress.add_argument(
        "--target-ratio",
        type=number("--target-ratio", "above 0, up to 1", lambda ratio: 0 < ratio <= 1),
        metavar="RATIO",
        help="or the same as a share of the float32 file (of the float32 weights, for an archive)",
    )
    compress.add_argument(
        "--config",
        type=_configuration,
        metavar="FILE.yaml",
        help="levels, table, scale and group_size of each layer: by its name, a pattern or its type",
    )
    compress.add_argument(
        "--layers", choices=("all", "conv", "dense"), default="all", help="default: all"
    )
    compress.add_argument(
        "--shrink",
        action="store_true",
        help="first remove channels that do nothing, as pruning leaves them; outputs stay the same",
    )
    compress.add_argument(
        "--dry-run", action="store_true", help="print the plan of a budget, and write no model"
    )


def _add_tables(compress: argparse.ArgumentParser) -> None:
    compress.add_argument(
        "--table",
        choices=TABLES,
        help="values: whole numbers of 8 bits times a step (int8, the default), consecutive ones "
        "(even), or any (float32)",
    )
    compress.add_argument(
        "--scale",
        choices=SCALES,
        help="one step a kernel, or one a channel; auto (default): what costs nothing in the file",
    )
    compress.add_argument(
        "--group-size",
        type=integer("--group-size", 1),
        metavar="CHANNELS",
        help="channels that have one table (all); with --data, --method kmeans trains these",
    )


def _add_training(compress: argparse.ArgumentParser) -> None:
    compress.add_argument("--data", type=Path, metavar="FILE.npz", help=_DATA + _TARGETS)
    compress.add_argument(
        "--method", choices=METHODS, help="of training (auto: sine); kmeans tunes alone"
    )
    compress.add_argument("--epochs", type=integer("--epochs", 1), help="epochs on --data (10)")
    compress.add_argument(
        "--batch-size", type=integer("--batch-size", 1), help="examples a step (64)"
    )
    compress.add_argument(
        "--learning-rate",
        type=number("--learning-rate", "above 0", lambda rate: rate > 0),
        help="of Adam, at the start (0.001 for 4 levels, 0.0003 for 16, and between)",
    )
    compress.add_argument(
        "--seed", type=integer("--seed", 0), help="of random numbers, for the same result again"
    )
    compress.add_argument("--loss", help="Keras loss for targets, where the model was not compiled")


def _add_checks(compress: argparse.ArgumentParser) -> None:
    compress.add_argument(
        "--validation-data",
        type=Path,
        metavar="FILE.npz",
        help="other examples, to choose epochs by and to report on; as --data",
    )
    compress.add_argument(
        "--max-accuracy-drop",
        type=number("--max-accuracy-drop", "from 0 to 100", lambda drop: 0 <= drop <= 100),
        metavar="POINTS",
        help="percentage points of accuracy on --validation-data that may be lost; more: status 1 "
        "and no file",
    )
    compress.add_argument(
        "--json", type=Path, metavar="FILE", help="also write what was done and found, for programs"
    )
    compress.add_argument(
        "--quiet", action="store_true", help="print nothing but errors and the last line"
    )


_DATA = "arrays of examples: x, or one by the name of each input"
_TARGETS = "; optionally y, or one by the name of each output, and sample_weight. To train on"


def _add_export(commands: Any) -> None:
    export = _command(
        commands, "export", "write a model as .tflite and compare it with Keras", "FILE.tflite"
    )
    export.add_argument(
        "--data", type=Path, metavar="FILE.npz", help=f"{_DATA}. They calibrate int8"
    )
    _add_weights(export)


def _add_archive(commands: Any) -> None:
    archive = _command(commands, "archive", "write a model as one small archive", "FILE.qareg")
    archive.add_argument(
        "--float-dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="of tensors that are not shared (default: float32)",
    )
    archive.add_argument(
        "--fold",
        action="store_true",
        help="for inference: each batch normalization as one factor and one offset a channel",
    )
    archive.add_argument(
        "--effort",
        choices=("fast", "best"),
        default="fast",
        help="best takes fewer bytes and ten times as long; it needs numba (default: fast)",
    )
    archive.add_argument(
        "--target-bytes",
        type=size("--target-bytes"),
        metavar="BYTES",
        help="the most bytes of the file, for which kernels are clustered; `compress` does less harm",
    )
    _command(
        commands,
        "unarchive",
        "write the model of an archive as .keras",
        "MODEL.keras",
        "FILE.qareg",
    )


def _add_verify(commands: Any) -> None:
    verify = _command(
        commands,
        "verify",
        "whether a .tflite or an archive is a model: status 0 if it is, 1 if not",
    )
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.add_argument("--data", type=Path, metavar="FILE.npz", help=f"{_DATA}. To run both on")


def _add_inspect(commands: Any) -> None:
    help_ = "what is in a model, an archive or a .tflite: levels, values, bytes"
    _command(commands, "inspect", help_, source="FILE")


def _add_report(commands: Any) -> None:
    help_ = "write a page that shows what is in a model, an archive or a .tflite"
    report = _command(commands, "report", help_, "REPORT.html", source="FILE")
    report.add_argument(
        "--reference",
        type=Path,
        metavar="MODEL.keras",
        help="of a model: the one before, whose weights and errors are shown",
    )
    report.add_argument(
        "--plan",
        type=Path,
        metavar="PLAN.yaml",
        help="of a model: a plan that Plan.save wrote, whose curve and losses are shown",
    )


def _command(
    commands: Any, name: str, help_: str, out: str | None = None, source: str = "MODEL.keras"
) -> argparse.ArgumentParser:
    """A command that reads one file and, with `out`, writes another one."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=help_)
    parser.add_argument("source", type=Path, metavar=source)
    parser.add_argument(
        "--custom-objects",
        metavar="MODULE",
        help="module or .py file with the layers and functions of the model that Keras does not have",
    )
    if out is not None:
        parser.add_argument("--out", type=Path, required=True, metavar=out)
        parser.add_argument("--force", action="store_true", help="replace an existing file")
    return parser


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="default: auto; int8 and tflm (for TFLite Micro) are full integer with --data",
    )
    parser.add_argument(
        "--decode-each-run",
        action="store_true",
        help="look codebooks up in each run, for runtimes without variables",
    )
    parser.add_argument(
        "--input-shape",
        nargs="+",
        type=_shape,
        metavar="SHAPE",
        help="sizes of inputs that are open in the model, without the batch: 224x224x3, or a=8x8 b=4",
    )
    for end in ("input", "output"):
        parser.add_argument(
            f"--{end}-type",
            choices=("float32", "int8", "uint8"),
            default="float32",
            help=f"of the {end}s of a full-integer file (default: float32)",
        )
    parser.add_argument(
        "--npu",
        choices=ACCELERATORS,
        metavar="ACCELERATOR",
        help="also say what Vela makes of a full-integer int8 file, for example for ethos-u55-128",
    )
    parser.add_argument(
        "--c-array",
        action="store_true",
        help="also write the file as C++ source for TFLite Micro: a .cc and a .h beside it",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write a page that shows what is in the file: a .html beside it",
    )


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """The name of an input, or none, and its shape."""
    first, named, rest = text.partition("=")
    name, sizes = (first, rest) if named else ("", first)
    parts = re.split("[x,]", sizes)
    if not all(part.isdecimal() and int(part) for part in parts):
        raise CommandError(
            f"Expected --input-shape with sizes such as 224x224x3, or a=8x8. Received: {text}"
        )
    return name, tuple(map(int, parts))


def input_shapes(options: argparse.Namespace) -> Any:
    """The shapes as `export.litert` takes them: one, a list, or a dict by the names of inputs."""
    given = options.input_shape
    if given is None:
        return None
    names = [name for name, _ in given]
    if all(names) and len(set(names)) == len(names):
        return dict(given)
    if any(names):
        raise CommandError(
            "Expected --input-shape with a name of its own for each shape, or without names. "
            f"Received: {', '.join(name or 'none' for name in names)}"
        )
    shapes = [shape for _, shape in given]
    return shapes if len(shapes) > 1 else shapes[0]


def _configuration(text: str) -> tuple[Path, dict[str, Any]]:
    """A configuration and where it is from."""
    try:
        return Path(text), settings.read(text)
    except (OSError, ValueError) as error:
        raise CommandError(f"--config: {error}") from error


def sharing(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of sharing that were given as words or in `--config`, or else their defaults.

    Where there is a budget, there are no levels.

    Raises:
        CommandError: If one was given as both, or the configuration has others.
    """
    path, config = options.config or (None, {})
    others = [name for name in config if name not in _SHARING]
    if others:
        raise CommandError(
            f"Expected --config with {', '.join(_SHARING)} alone. Received: {path} with "
            f"{', '.join(others)}"
        )
    words = {name: getattr(options, name) for name in _SHARING}
    budgets = [name for name in _BUDGETS if getattr(options, name.replace("-", "_")) is not None]
    if len(budgets) > 1:
        raise CommandError(
            "Expected one of --levels, --target-bytes and --target-ratio. Received: "
            f"{' and '.join(f'--{name}' for name in budgets)}"
        )
    both = [(name, name) for name in config if words[name] is not None]
    both += [(name, "levels") for name in budgets if "levels" in config and name != "levels"]
    for word, key in both:
        name = word.replace("_", "-")
        raise CommandError(f"Expected --{name} or --config with {key}. Received: both")
    given = {name: word for name, word in words.items() if word is not None}
    planned = {} if budgets in ([], ["levels"]) else {"levels": None}
    return {**_SHARING, **config, **given, **planned}
