"""MLPerf Tiny's reference models in every form, beside the files that their authors made.

    python -m benchmarks.mlperf_tiny --models mlperf_tiny --rows results --out results

Of each model in the folder: the bytes of all forms of `benchmarks.size` with 4 and 16 values a kernel,
and of a `.tflite` and an archive that keep budgets, as shares of the authors' full-integer `.tflite`
(where the folder has one). Then those of full-integer files whose ranges are layers of the model, with
8 bits, 16 and 4 values, and how they agree with Keras (`mlperf_tiny_ranges`). Weights are shared, and
ranges calibrated, without training, on random inputs: bytes do not depend on it. What training makes of
ResNet8's accuracy is read from the rows of `benchmarks.accuracy`, `.compress`, `.integer` and `.pareto`
(`--rows`): `mlperf_tiny_resnet8.txt` has the smallest file that keeps the
benchmark's target, and the smallest within a point of the most accurate one. A run that was stopped
goes on with the first model that `--out` has no rows of.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

import keras_qareg as qareg
from benchmarks import results, size
from examples.study import Row, Study, mean_and_deviation
from keras_qareg.cli.opening import load_model
from keras_qareg.report import table

MODELS = ("resnet8.h5", "vww_96.h5", "kws.keras", "ad01.h5", "sww.h5")
LEVELS, SHARES = (4, 16), (0.5, 0.25)
TARGET = 85.0
OWN = "int8, by the authors"
FORMS = (OWN, *size.FORMS)


def rows_of(file: Path) -> Iterator[Row]:
    """The rows of a model: bytes by the name of a form, for each number of values and each budget.

    Where channels are dead, also those of the model without them.
    """
    own = file.with_name(f"{file.stem}_int8.tflite")
    size_of_own = own.stat().st_size if own.exists() else None
    for name, model in variants(file).items():
        known = {"model": name, OWN: size_of_own}
        with tempfile.TemporaryDirectory() as folder:
            for levels in LEVELS:
                found = size.row(model, levels, "int8", Path(folder))
                yield {**known, **{key: found[key] for key in ("levels", *size.FORMS)}}
            for share in SHARES if size_of_own else ():
                budget = int(share * size_of_own)
                yield {**known, "budget": budget, **within(model, budget, Path(folder))}


def variants(file: Path) -> dict[str, keras.Model]:
    """A model by its name, and what `shrink` makes of it, where that is smaller."""
    model = load_model(file)
    found, shrunk = {file.stem: model}, qareg.shrink(model)
    if shrunk.count_params() < model.count_params():
        found[f"{file.stem}, shrunk"] = shrunk
    return found


def within(model: Any, budget: int, folder: Path) -> Row:
    """Bytes of the files of plans for a budget; none where there is no such plan."""
    found: Row = {}
    for form in ("smallest", "archive"):
        try:
            plan = qareg.allocate(
                model,
                target_bytes=budget,
                data=size.inputs(model),
                weights=form,
                method="kmeans",
                verbose=0,
            )
        except ValueError as error:
            found[f"{form} refused"] = str(error).splitlines()[0]
            continue
        shared = qareg.share_weights(model, plan, verbose=0)
        if form == "archive":
            file = qareg.export.save_archive(shared, folder / "model.qareg")
            found[form] = file.stat().st_size
        else:
            found[form] = qareg.export.litert(shared, folder / "model.tflite", form).bytes
    return found


def with_ranges(file: Path) -> Iterator[Row]:
    """The rows of full-integer files of a model whose activations have ranges."""
    model = load_model(file)
    data = size.inputs(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        for levels in (None, *reversed(LEVELS)):
            network = qareg.share_weights(model, levels, verbose=0) if levels else model
            row: Row = {"model": file.stem, "levels": levels}
            try:
                network = qareg.quantize_activations(network, data)
            except ValueError as error:
                yield {**row, "refused": str(error)}
                continue
            report = qareg.export.litert(network, path, "int8", npu=size.ACCELERATOR)
            micro = qareg.export.litert(network, path, "tflm")
            its: Any = report.agreement
            row |= {"int8": report.bytes, "tflm": micro.bytes, "vela": report.npu_bytes}
            yield {**row, "equal": its.equal, "steps": its.steps}


def measured(rows: Path) -> list[tuple[str, int, float]]:
    """Name, bytes and accuracy (percent, the mean over seeds) of the files of ResNet8 that were run."""
    found: dict[tuple[str, str], list[Row]] = {}
    for study in ("accuracy", "compress", "integer", "pareto"):
        file = rows / f"{study}.jsonl"
        for line in file.read_text().splitlines() if file.exists() else ():
            row = json.loads(line)
            for form, bytes_ in _sizes(study, row):
                point = {"bytes": bytes_, "accuracy": row["accuracy"]}
                epochs = f", {row['epochs']} epochs" if row.get("epochs") else ""
                name = row["cell"] + epochs
                if study == "accuracy":
                    name = f"{row['data']}, {row['levels']} levels, {name}"
                found.setdefault((name, form), []).append(point)
    return [
        (
            f"{cell}, {form}",
            max(row["bytes"] for row in same),
            mean_and_deviation(same, "accuracy")[0],
        )
        for (cell, form), same in found.items()
    ]


def _sizes(study: str, row: Row) -> Iterator[tuple[str, int]]:
    if study in ("accuracy", "compress"):
        known = row.get("bytes") if row.get("data") != "digits" else None
        for form in ("smallest", "archive") if known else ():
            if form in known:
                yield form, known[form]
    elif study == "integer":
        yield "int8", row["trained"]["bytes"]
    elif row.get("bytes"):
        yield row["series"], row["bytes"]


def tabulate(rows: list[Row]) -> str:
    """A line a model and setting: bytes of all forms."""
    return table(("", *FORMS), [line_of(row) for row in rows])


def tabulate_ranges(rows: list[Row]) -> str:
    """A line a model and kind of kernels: full-integer files."""
    header = ("", "int8", "tflm", "vela", "equal", "furthest steps")
    return table(header, [ranges_line_of(row) for row in rows])


def line_of(row: Row) -> tuple[str, ...]:
    """Bytes of a model in each form."""
    setting = f"{row['levels']} values" if "levels" in row else f"within {row['budget']:,}"
    cells = (f"{row[form]:,}" if row.get(form) else "-" for form in FORMS)
    return f"{row['model']}, {setting}", *cells


def ranges_line_of(row: Row) -> tuple[str, ...]:
    """Bytes of full-integer files, and how they agree with Keras."""
    name = f"{row['model']}, {row['levels'] or '8 bits'}" + " values" * bool(row["levels"])
    if "refused" in row:
        return name, *("-",) * 5
    sizes = (f"{row[form]:,}" if row[form] else "-" for form in ("int8", "tflm", "vela"))
    return name, *sizes, f"{100 * row['equal']:.1f} %", str(row["steps"])


def smallest(points: list[tuple[str, int, float]], floor: float) -> str:
    """The smallest file of at least so much accuracy, in words."""
    kept = sorted(point[1:] + point[:1] for point in points if point[2] >= floor)
    if not kept:
        best = max(point[2] for point in points)
        return f"{floor:.2f} %: none; the best file has {best:.2f} %"
    bytes_, accuracy, name = kept[0]
    return f"{floor:.2f} %: {name}, {bytes_:,} bytes, {accuracy:.2f} %"


def resnet8(rows: Path) -> str:
    """The smallest file of ResNet8 that keeps the target, and one point below the best; a line each."""
    points = measured(rows)
    best = max((accuracy for *_, accuracy in points), default=0.0)
    return "".join(f"{smallest(points, floor)}\n" for floor in (TARGET, best - 1.0) if points)


def parsed() -> argparse.Namespace:
    parser = results.parser(__doc__ or "")
    parser.add_argument("--models", type=Path, required=True, help="a folder with these models")
    parser.add_argument("--rows", type=Path, default=Path("results"), help="default: results")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    for name, rows_of_a_model, tabulated in (
        ("mlperf_tiny", rows_of, tabulate),
        ("mlperf_tiny_ranges", with_ranges, tabulate_ranges),
    ):
        rows = Study(arguments.out / f"{name}.jsonl", ("model",)).rows
        done = {row["model"] for row in rows}
        for model in MODELS:
            for row in (
                () if Path(model).stem in done else rows_of_a_model(arguments.models / model)
            ):
                rows.append(row)
                print(json.dumps(row), flush=True)
            results.save(arguments.out, name, rows, tabulated)
    text = resnet8(arguments.rows)
    (arguments.out / "mlperf_tiny_resnet8.txt").write_text(text)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
