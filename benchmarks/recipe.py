"""How the defaults were chosen: accuracy on a validation split of the digits, one change at a time.

    python -m benchmarks.recipe --out results

For each regularizer and number of levels, trains with the defaults and with each of them changed: the
strength, the power of its ramp, the learning rate of the centroids, the balance, and whether layers
compute with their quantized kernels. Tabulates accuracy before and after tuning, beside k-means after
plain training. The test images take no part. A line of `recipe.jsonl` is written as each cell is done,
and a run that was cut off goes on from there. `--shard I N` does every N-th cell, so that N processes
can share the work.
"""

import argparse
import functools
from itertools import product
from typing import Any

import keras

import keras_qareg as qareg
from benchmarks import results
from examples.study import Row, Study, mean_and_deviation
from examples.training import BASELINE, METHODS, digits, share_and_tune, train
from keras_qareg.report import table

DEFAULTS = {
    "factor": 1.0,
    "power": 6.0,
    "centroid_rate": 1.0,
    "balance": 40_000,
    "straight_through": True,
}
KEYS = ("method", "levels", "seed", *DEFAULTS)
CHANGES = (
    {},
    {"factor": 0.1},
    {"factor": 10.0},
    {"power": 2.0},
    {"centroid_rate": 10.0},
    {"balance": 0},
    {"straight_through": False},
)


def cells(arguments: argparse.Namespace) -> list[Row]:
    """Every cell of the study, the seeds outermost, so that a cut leaves whole seeds."""
    found = []
    for seed, levels, method in product(range(arguments.seeds), arguments.levels, METHODS):
        for change in CHANGES[:1] if method == BASELINE else CHANGES:
            found.append({"method": method, "levels": levels, "seed": seed, **DEFAULTS, **change})
    return found


def run(cell: Row, train_data: Any, validation: Any) -> Row:
    """Trains, shares and tunes one cell; its accuracies are those on the validation split."""
    method, regularizer = cell["method"], None
    if method != BASELINE:
        regularizer = getattr(qareg.regularizers, method)(cell["levels"])
        regularizer.strength *= cell["factor"]
    schedule = qareg.callbacks.PenaltySchedule(power=cell["power"], balance=cell["balance"] or None)
    model = train(
        train_data,
        cell["seed"],
        regularizer,
        schedule=schedule,
        centroid_rate=cell["centroid_rate"],
        straight_through=cell["straight_through"],
    )
    _, figures = share_and_tune(model, cell["levels"], train_data, validation)
    keras.backend.clear_session()
    return {"strength": regularizer.strength if regularizer else 0.0, **figures}


def tabulate(rows: list[Row]) -> str:
    """Means over the seeds, and the spread of the accuracy after tuning."""
    header = ("levels, method", "strength", "power", "centroid rate", "balance", "straight through")
    header += ("seeds", "trained", "shared", "tuned", "std")
    keys = ("levels", "method", *DEFAULTS)
    order = {method: place for place, method in enumerate(METHODS)}
    rows = sorted(rows, key=lambda row: (row["levels"], order[row["method"]]))
    lines = []
    for setting in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        same = [row for row in rows if tuple(row[key] for key in keys) == setting]
        levels, method, _, *others = setting
        changed = [f"{same[0]['strength']:.2g}", *(f"{value:g}" for value in others)]
        means = [f"{mean_and_deviation(same, key)[0]:.2f}" for key in ("float", "shared", "tuned")]
        spread = f"{mean_and_deviation(same, 'tuned')[1]:.2f}"
        lines.append((f"{levels} {method}", *changed, str(len(same)), *means, spread))
    return table(header, lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1], metavar=("I", "N"))
    arguments = parser.parse_args()

    train_data, validation = digits(validation=0.25)
    study = Study(arguments.out / "recipe.jsonl", KEYS)
    shard, shards = arguments.shard
    mine = cells(arguments)[shard::shards]
    compute = functools.partial(run, train_data=train_data, validation=validation)
    study.run(mine, compute, "tuned")
    # What other shards did is told of too, and what they have not done is left to them.
    study.tabulated(cells(arguments), compute, "tuned", tabulate, draw=True)


if __name__ == "__main__":
    main()
