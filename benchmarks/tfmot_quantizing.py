"""The part of `benchmarks.integer` that needs tf_keras: TFMOT's `quantize_model`.

Started by it in a process of its own. MLPerf Tiny's ResNet8 gets the weights of the float model, and
trains as `benchmarks.tfmot_clustering` trains it: same images, batches and rate, with labels. Writes the
full-integer file of TensorFlow's converter; `done.json` last.
"""

import json
from typing import Any

import numpy as np

from benchmarks.tfmot_clustering import BATCH, converted, epochs_of, known, settings, start
from examples.data import Images


def quantized(model: Any, data: Images, epochs: int, rate: float, seed: int) -> Any:
    """The model after training with fake quantization."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    made = tfmot.quantization.keras.quantize_model(model)
    steps = len(data.labels) // BATCH
    decay = tf_keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    made.compile(
        tf_keras.optimizers.Adam(decay), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    batches = epochs_of(data, epochs, seed)
    made.fit(batches, epochs=epochs, steps_per_epoch=steps, verbose=2)
    return made


def main() -> None:
    given = settings(__doc__).parse_args()
    model, train, test = start(given)
    before = known(model, test)
    done = quantized(model, train, given.epochs, given.rate, given.seed)
    # Ranges are the model's own: the converter gets no samples.
    (given.out / "int8.tflite").write_bytes(converted(done, "learned", np.empty(0)))
    found = {"float": before, "keras": known(done, test)}
    (given.out / "done.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
