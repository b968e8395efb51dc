"""Draws the figures of the documentation, into `docs/figures`.

    python -m docs.draw size pareto
    python -m docs.draw            # all

They are drawn from rows that are kept in `results`; from the small network for scikit-learn's digits,
which is trained first, in up to a minute; or from the package itself.
"""

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).parents[1]
BITS, LEVELS, SHARE = 2, 4, 0.15
# The others are nearly as large as one of these.
FORMS = ("float32", "gzip", "zstd", "int8", "smallest", "archive", "bound")


def rows(name: str) -> list[dict[str, Any]]:
    """What `results` has of a study or benchmark."""
    return [json.loads(line) for line in (ROOT / "results" / f"{name}.jsonl").open()]


def penalties(file: Path) -> None:
    from keras_qareg import plots

    plots.penalty_curves().savefig(file)


@functools.cache
def _digits() -> Any:
    """A float network for digits, and what it was trained on."""
    from examples import training

    data, _ = training.digits()
    return training.train(data, seed=0), data


def histograms(file: Path) -> None:
    from examples import training
    from keras_qareg import plots

    model, data = _digits()
    shared, _ = training.share_and_tune(model, LEVELS, data, data, training.TUNING_EPOCHS)
    plots.weight_histograms(shared).savefig(file)


def plan(file: Path) -> None:
    import keras_qareg as qareg

    model, (images, _) = _digits()
    found = qareg.allocate(model, data=images, target_ratio=SHARE, weights="smallest", verbose=0)
    found.plot().savefig(file)


def wnq_histograms(file: Path) -> None:
    import keras

    import keras_qareg as qareg
    from examples import training

    models = {}
    for name, normalize in reversed(training.NORMALIZE.items()):
        keras.utils.set_random_seed(0)
        model = qareg.wnq(training.digits_network(), BITS, skip=(), normalize=normalize)
        training.fit(model, training.digits()[0], training.EPOCHS, seed=0)
        models[name] = model
    qareg.plots.weight_histograms(models).savefig(file)


def size(file: Path) -> None:
    from benchmarks import size as benchmark

    benchmark.draw(file.parent, file.stem, rows("size"), FORMS)


def pareto_rows() -> list[dict[str, Any]]:
    """Those of `benchmarks.pareto`, and what `benchmarks.compress` trained."""
    from benchmarks import pareto as benchmark

    return rows("pareto") + benchmark.compressed_rows(ROOT / "results" / "compress.jsonl")


def pareto(file: Path) -> None:
    from benchmarks import pareto as benchmark

    benchmark.draw(file.parent, pareto_rows())


def wnq_error(file: Path) -> None:
    from benchmarks import wnq_error as benchmark

    benchmark.figure(rows("wnq_error")).savefig(file)


def cifar10(file: Path) -> None:
    from examples import cifar10_regularizers

    name = file.stem.replace("cifar10", "cifar10_regularizers")
    cifar10_regularizers.draw(rows(f"{name}_straight_through"), file)


def cifar_wnq(file: Path) -> None:
    from examples import cifar_wnq as study

    name, _, what = file.stem.rpartition("_")
    draw = {"curves": study.draw_curves, "errors": study.draw_errors}[what]
    draw(rows(name), file)


def report(file: Path) -> None:
    from examples import report_page

    sys.argv = ["report_page", "--screenshot", str(file)]
    report_page.main()


STEERING = ("summaries", "callbacks", "optimizers", "config", "plans", "pruning")
# Title, what it says below, and the modules of no folder: from the top of the house to its bottom.
FLOORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("cli/", "the command", ("__main__",)),
    ("the whole job", "", ("options", "compressing")),
    ("allocation/", "levels by budget", ()),
    ("report/", "the page, the table", ()),
    ("export/", "files: a folder a format", ()),
    ("what shows and steers", "", STEERING),
    ("plots/", "figures", ()),
    ("models/", "whole-model transforms", ()),
    ("layers/", "who holds variables", ()),
    ("regularizers/", "what pulls weights together", ()),
    ("what a user chooses", "", ("quantizers", "choices", "inputs", "data", "settings", "files")),
    ("numerics/", "pure functions", ()),
)
TINTS, BORDER, EDGE = ("#eef3f8", "#f7f4ec"), "#5b6b7b", 886


def modules(title: str, others: tuple[str, ...]) -> list[str]:
    """The modules of a floor, and its folders with a `/`."""
    if not title.endswith("/"):
        return list(others)
    found = sorted((ROOT / "keras_qareg" / title).iterdir())
    files = [path.stem for path in found if path.suffix == ".py" and path.stem != "__init__"]
    folders = [f"{path.name}/" for path in found if (path / "__init__.py").exists()]
    return [*others, *folders, *files]


def floors(file: Path) -> None:
    """Every module of the package, by what it may import."""
    parts, top = [], 10
    for place, (title, below, others) in enumerate(FLOORS):
        if place:
            arrow = 'stroke="#0072B2" stroke-width="2" marker-end="url(#a)"'
            parts.append(f'<path d="M100 {top - 15} v11" {arrow}/>')
        boxes, bottom = _boxes(modules(title, others), top + 15)
        look = f'rx="6" fill="{TINTS[place % 2]}" stroke="{BORDER}"'
        parts.append(f'<rect x="10" y="{top}" width="890" height="{bottom - top}" {look}/>')
        first = top + (24 if below else 34)
        parts.append(f'<text x="24" y="{first}" font-weight="bold">{escape(title)}</text>')
        if below:
            small = f'y="{top + 43}" fill="#44525f" font-size="12"'
            parts.append(f'<text x="24" {small}>{escape(below)}</text>')
        parts += boxes
        top = bottom + 16
    size = f'width="910" height="{top - 6}" viewBox="0 0 910 {top - 6}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        "<title>The floors of keras_qareg: each may import from those below it</title>",
        '<defs><marker id="a" viewBox="0 0 6 6" refX="3" refY="3" markerWidth="5" markerHeight="5" '
        'orient="auto"><path d="M0 0 L6 3 L0 6 z" fill="#0072B2"/></marker></defs>',
        f'<rect width="910" height="{top - 6}" fill="#fff"/>',
    ]
    file.write_text("\n".join([*head, *parts, "</svg>"]) + "\n")


def _boxes(names: list[str], top: int) -> tuple[list[str], int]:
    """A box a name, from left to right and then below; and where the floor ends."""
    parts, left = [], 205
    for name in names:
        width = 15 + 7 * len(name)
        if left + width > EDGE:
            left, top = 205, top + 34
        place = f'x="{left}" y="{top}" width="{width}" height="28"'
        parts.append(f'<rect {place} rx="4" fill="#fff" stroke="#8a99a8"/>')
        letters = 'text-anchor="middle" font-family="monospace" font-size="11"'
        parts.append(f'<text x="{left + width // 2}" y="{top + 18}" {letters}>{name}</text>')
        left += width + 8
    return parts, top + 43


FIGURES: dict[str, Callable[[Path], None]] = {
    "floors.svg": floors,
    "penalties.png": penalties,
    "histograms.png": histograms,
    "plan.png": plan,
    "wnq_histograms.png": wnq_histograms,
    "report.png": report,
    "size.png": size,
    "pareto.png": pareto,
    "wnq_error.png": wnq_error,
    **{f"cifar10_{kind}.png": cifar10 for kind in ("alexnet", "vgg16")},
    **{f"cifar_wnq_{what}.png": cifar_wnq for what in ("curves", "errors", "peers_curves")},
}


def main() -> None:
    known = {Path(name).stem: name for name in FIGURES}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {[*known]}")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    given = parser.parse_args()
    if unknown := set(given.names) - set(known):
        parser.error(f"Expected names of {[*known]}. Received: {sorted(unknown)}")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or known:
        FIGURES[known[name]](given.out / known[name])
        print(given.out / known[name], flush=True)


if __name__ == "__main__":
    main()
