"""What WNQ adds to a training step: time against the plain layer's, in one run.

    python -m benchmarks.wnq_step --out results

Trains one layer at a time, a 3x3 convolution from 256 to 256 channels on a batch of 32 images of 16x16
by default, with the plain layer and the WNQ layers in turn, round after round. Prints the median and the
quartiles of the ratios to the plain step of the same round. Absolute times say nothing here.
"""

import json
from typing import Any

import keras
import numpy as np
from keras import layers

import keras_qareg as qareg
from benchmarks import results
from benchmarks.timing import interleaved, ratios
from keras_qareg.report import table

BATCH, SIDE = 32, 16
BASELINE = "Conv2D"


def variants(channels: int) -> dict[str, keras.layers.Layer]:
    """The layers to compare, by name."""
    shape = {"filters": channels, "kernel_size": 3, "padding": "same"}
    found = {BASELINE: layers.Conv2D(**shape)}
    for bits in (1, 2, 3, 4):
        found[f"WNQConv2D, {bits} bits"] = qareg.layers.WNQConv2D(**shape, bits=bits)
    found["WNQConv2D, 2 bits, not normalized"] = qareg.layers.WNQConv2D(**shape, normalize=False)
    found["WNQConv2D, 2 bits, one table"] = qareg.layers.WNQConv2D(**shape, per_channel=False)
    found["WNQConv2D, 2 bits, 2-bit inputs"] = qareg.layers.WNQConv2D(**shape, activation_bits=2)
    return found


def steps(channels: int) -> dict[str, Any]:
    """A function for each layer that runs one compiled training step and waits for it."""
    rng = np.random.default_rng(0)
    inputs = np.maximum(rng.normal(size=(BATCH, SIDE, SIDE, channels)), 0).astype("float32")
    targets = rng.normal(size=inputs.shape).astype("float32")
    found = {}
    for name, layer in variants(channels).items():
        model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
        model.compile(keras.optimizers.SGD(1e-3), "mse")
        found[name] = lambda model=model: model.train_on_batch(inputs, targets)
    return found


def tabulate(seconds: dict[str, list[float]]) -> str:
    """Quartiles of the ratio to the plain step of the same round."""
    lines = [
        (name, *(f"{found[key]:.3f}" for key in ("ratio", "low", "high")))
        for name, found in ratios(seconds, BASELINE).items()
    ]
    return table(("layer", "ratio", "lower quartile", "upper quartile"), lines)


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--channels", type=int, default=256)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seconds = interleaved(steps(arguments.channels), arguments.rounds)
    text = tabulate(seconds)
    backend = keras.backend.backend()
    print(f"A training step on {backend}, ratio to {BASELINE}\n\n{text}")
    record = {"backend": backend, "channels": arguments.channels, "seconds": seconds}
    (arguments.out / f"wnq_step_{backend}.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
