"""Writes the tables of the documentation from the rows that `results` has.

    python -m docs.tables            # results/*.txt, and all pages that show tables

A page shows a table below a comment that names it, `<!-- python -m docs.tables NAME -->`; what stands
there is replaced. A test expects that nothing changes, so that no figure on a page differs from what was
measured.
"""

import functools
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from docs.draw import ROOT, pareto_rows, rows
from examples.study import mean_and_deviation

Row = dict[str, Any]
# Who makes a text of rows: of those with this name, and with names that go on after it.
PROGRAMS = {
    "ablations": "benchmarks.ablations:tabulate",
    "accuracy": "benchmarks.accuracy:tabulate",
    "accuracy_steps": "benchmarks.accuracy:tabulate_steps",
    "archive": "benchmarks.archive:tabulate",
    "archive_models": "benchmarks.archive:tabulate_models",
    "cifar10_regularizers": "examples.cifar10_regularizers:tabulate",
    "cifar_wnq": "examples.cifar_wnq:tabulate",
    "compress": "benchmarks.compress:tabulate",
    "deep_compression": "examples.deep_compression:tabulate",
    "digits": "examples.digits:tabulate",
    "integer": "benchmarks.integer:tabulate",
    "kmeans": "benchmarks.kmeans:tabulate",
    "mlperf_tiny": "benchmarks.mlperf_tiny:tabulate",
    "mlperf_tiny_ranges": "benchmarks.mlperf_tiny:tabulate_ranges",
    "pareto": "benchmarks.pareto:tabulate",
    "penalty": "benchmarks.penalty:tabulate",
    "plan": "benchmarks.plan:tabulate",
    "recipe": "benchmarks.recipe:tabulate",
    "scaling": "benchmarks.scaling:tabulate",
    "size": "benchmarks.size:tabulate",
    "step": "benchmarks.step:tabulate",
    "wnq_digits": "examples.wnq_digits:tabulate",
    "wnq_error": "benchmarks.wnq_error:tabulate",
}
# Rows that no table has: bytes of files of networks that others have; runs of before.
_BEFORE = ("ten_epochs", "three_levels", "five_levels", "channels")
UNTOLD = (
    *(
        f"cifar_wnq{its}_export"
        for its in ("", "_100_epochs", "_35_epochs", "_all_images", "_half", "_lower_rate")
    ),
    *(f"cifar_wnq_{its}" for its in ("100_epochs_float", "100_epochs_20_more", "validation")),
    *(f"deep_compression_resnet8_{its}" for its in _BEFORE),
    *(
        f"deep_compression_lenet_{its}"
        for its in ("more_zeros", "fewer_epochs", "five_levels", "one_training")
    ),
)
# What one may want, the call, its training, and whose rows have its bytes and accuracy: study and cell.
_LITERT, _SMALLEST = "`export.litert(model, path, {})`", ', `"smallest"`'
USES = (
    ("the float file", _LITERT.format('"float32"'), "none", "pareto", "keras_qareg, float32"),
    ("half", _LITERT.format('"float16"'), "none", "pareto", "keras_qareg, float16"),
    (
        "a quarter, float activations, at float speed",
        "`share_weights(model, 256)`",
        "none",
        "pareto",
        "keras_qareg, 256 levels, not recalibrated",
    ),
    (
        "a quarter, in whole numbers",
        _LITERT.format('"int8", x'),
        "none",
        "pareto",
        "keras_qareg, full int8",
    ),
    (
        "the same, learned",
        '`quantize_activations`, `fit`, `"int8"`',
        "5 epochs",
        "integer",
        "8 bits",
    ),
    (
        "a fifth",
        "`share_weights(model, 64)`" + _SMALLEST,
        "none",
        "pareto",
        "keras_qareg, 64 levels, not recalibrated",
    ),
    (
        "a seventh, at once",
        "`share_weights(model, 16)`, `recalibrate`" + _SMALLEST,
        "none",
        "pareto",
        "keras_qareg, 16 levels",
    ),
    (
        "a seventh, without labels",
        "`compress(model, x, levels=16)`" + _SMALLEST,
        "10 epochs",
        "compress",
        "16 levels, inputs alone",
    ),
    (
        "a seventh",
        "`compress(model, x, y, levels=16)`" + _SMALLEST,
        "10 epochs",
        "compress",
        "16 levels",
    ),
    (
        "an eleventh",
        "`compress(model, x, y, levels=4)`" + _SMALLEST,
        "10 epochs",
        "compress",
        "4 levels",
    ),
    (
        "a budget in bytes",
        "`compress(model, x, y, target_bytes=30_000)`" + _SMALLEST,
        "10 epochs",
        "compress",
        "30 kB .tflite",
    ),
    (
        "the smallest download",
        '`compress(model, x, y, target_bytes=24_000, form="archive")`, `export.save_archive`',
        "10 epochs",
        "compress",
        "24 kB archive",
    ),
)
PEERS = (
    ("TensorFlow's converter, full int8", "TensorFlow's converter, full int8"),
    ("litert-quantizer, int8, the best of four", "litert-quantizer, dynamic int8, min/max"),
    ("litert-quantizer, int4, the best of five", "litert-quantizer, weight-only int4, MSE"),
    (
        "TFMOT's clustering, 16 levels, two epochs, int8 weights",
        "TFMOT clustering, 16 levels, dynamic",
    ),
)
MARK = re.compile(
    r"(?P<mark><!-- python -m docs\.tables (?P<name>\S+) -->\n\n)"
    r"(?P<table>```text\n(?:(?!```).*\n)*```\n|(?:\|.*\n)+|)",
)


@functools.cache
def text(name: str) -> str:
    """The table that a program prints of the rows of a name."""
    known = max((prefix for prefix in PROGRAMS if name.startswith(prefix)), key=len, default=None)
    if known is None:
        raise ValueError(f"Expected a program of {[*PROGRAMS]}. Received: results/{name}.jsonl")
    found = pareto_rows() if name == "pareto" else rows(name)
    tabulate = pkgutil.resolve_name(PROGRAMS[known])
    return f"{tabulate(found)}\n"


def texts() -> list[str]:
    """The names of all tables of text."""
    names = (path.stem for path in (ROOT / "results").glob("*.jsonl"))
    return sorted(name for name in names if name not in UNTOLD)


def measured(study: str, cell: str) -> tuple[int, float]:
    """Bytes of a file and percent of the test images: the mean of the seeds.

    Of a cell that was run more than once: by the most epochs, and of these by the newest settings.
    """
    same = [row for row in rows(study) if row["cell"] == cell]
    newest = max(same, key=lambda row: (row.get("epochs") or 0, same.index(row)))
    same = [row for row in same if all(row.get(k) == newest.get(k) for k in ("rate", "epochs"))]
    if study == "compress":
        form = "archive" if cell.endswith("archive") else "smallest"
        sizes = [row["bytes"][form] for row in same]
    else:
        sizes = [(row["trained"] if study == "integer" else row)["bytes"] for row in same]
    return max(sizes), mean_and_deviation(same, "accuracy")[0]


def uses() -> str:
    """What one may want, how to get it, and what came of it."""
    lines = ["| you want | call | training | bytes | accuracy |", "| --- | --- | --- | --- | --- |"]
    for want, call, training, study, cell in USES:
        size, accuracy = measured(study, cell)
        lines.append(f"| {want} | {call} | {training} | {size:,} | {accuracy:.2f} |")
    return "\n".join(lines) + "\n"


def peers() -> str:
    """What the tools of others make of the same network."""
    lines = ["| tool | bytes | accuracy |", "| --- | --- | --- |"]
    for tool, cell in PEERS:
        size, accuracy = measured("pareto", cell)
        lines.append(f"| {tool} | {size:,} | {accuracy:.2f} |")
    lines.append('| Keras\'s `model.quantize("int8")` | the converter refuses it | |')
    return "\n".join(lines) + "\n"


def target() -> str:
    """The smallest files of MLPerf Tiny's ResNet8 that keep an accuracy."""
    from benchmarks.mlperf_tiny import resnet8

    return f"```text\n{resnet8(ROOT / 'results')}```\n"


# Tables of several studies.
OTHERS = {"uses": uses, "peers": peers, "target": target}


def block(name: str) -> str:
    """What a page shows below the comment that names a table."""
    return OTHERS[name]() if name in OTHERS else f"```text\n{text(name)}```\n"


def written(page: str) -> str:
    """A page with its tables as they are now."""
    return MARK.sub(lambda found: found["mark"] + block(found["name"]), page)


def pages() -> Iterator[Path]:
    """All pages that may show tables."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def main() -> None:
    for name in texts():
        (ROOT / "results" / f"{name}.txt").write_text(text(name))
    for page in pages():
        page.write_text(written(page.read_text()))


if __name__ == "__main__":
    main()
