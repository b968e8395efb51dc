"""How the default strengths were chosen: accuracy on a validation split of the digits, by strength.

    python -m benchmarks.recipe --out benchmarks/results

For each regularizer and number of levels, trains with several multiples of the default strength and
prints accuracy before and after tuning, beside k-means after plain training. The test images take no
part. A line of `recipe.jsonl` is written as each cell is done; a run that was cut off goes on from
there. `--shard I N` does every N-th cell, so that N processes can share the work.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np

from examples.digits import BASELINE, METHODS, load, share_and_tune, split, train
from keras_qareg.report import table

KEY = ("method", "levels", "factor", "seed")


def cells(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell of the study, the seeds outermost, so that a cut leaves whole seeds."""
    found = []
    for seed, levels, method in product(range(arguments.seeds), arguments.levels, METHODS):
        factors = [1.0] if method == BASELINE else arguments.factors
        found += [dict(zip(KEY, (method, levels, f, seed), strict=True)) for f in factors]
    return found


def run(cell: dict[str, Any], train_data: Any, validation: Any) -> dict[str, Any]:
    """Trains, shares and tunes one cell; its accuracies are those on the validation split."""
    kind, regularizer = METHODS[cell["method"]], None
    if kind is not None:
        default = kind(cell["levels"])
        regularizer = kind(cell["levels"], strength=cell["factor"] * default.strength)
    model = train(train_data, cell["seed"], regularizer)
    _, figures = share_and_tune(model, cell["levels"], train_data, validation)
    keras.backend.clear_session()
    return {**cell, "strength": regularizer.strength if regularizer else 0.0, **figures}


def results_table(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, and the spread of the accuracy after tuning."""
    header = ("levels, method", "strength", "seeds", "float", "shared", "tuned", "std")
    lines = []
    groups = sorted({(r["levels"], list(METHODS).index(r["method"]), r["factor"]) for r in rows})
    for levels, place, factor in groups:
        method = list(METHODS)[place]
        same = [
            r for r in rows if (r["levels"], r["method"], r["factor"]) == (levels, method, factor)
        ]
        means = [f"{np.mean([r[key] for r in same]):.2f}" for key in ("float", "shared", "tuned")]
        spread = f"{np.std([r['tuned'] for r in same]):.2f}"
        strength = f"{same[0]['strength']:.2g}"
        lines.append((f"{levels} {method}", strength, str(len(same)), *means, spread))
    return table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.1, 1.0, 10.0])
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1], metavar=("I", "N"))
    parser.add_argument("--out", type=Path, default=Path("output"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "recipe.jsonl"

    def done() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    (images, labels), _ = load()
    train_data, validation = split(images, labels)
    finished = {tuple(row[key] for key in KEY) for row in done()}
    shard, shards = arguments.shard
    left = [
        cell
        for place, cell in enumerate(cells(arguments))
        if place % shards == shard and tuple(cell.values()) not in finished
    ]
    began = time.time()
    for place, cell in enumerate(left, start=1):
        row = run(cell, train_data, validation)
        with path.open("a") as file:
            file.write(json.dumps({**row, "backend": keras.backend.backend()}) + "\n")
        seconds = (time.time() - began) / place * (len(left) - place)
        print(f"[{place}/{len(left)}] {row} (about {seconds:.0f} s left)", flush=True)
    print(results_table(done()))


if __name__ == "__main__":
    main()
