"""ResNet18 on ImageNet with weight normalization based quantization (WNQ, arXiv 1907.00593).

    python -m examples.imagenet_wnq --data-dir DATA --bits 0 --out float     # the float network
    python -m examples.imagenet_wnq --data-dir DATA --bits 2 --start float/resnet18.keras
    python -m examples.imagenet_wnq --data-dir DATA --bits 2 --distribute mirrored

ImageNet comes through TensorFlow Datasets, for which its two archives must be downloaded by hand into
`DATA/downloads/manual`. Layers compute in 16 bits (`--policy`), weights are float32. The learning rate
of SGD rises for five epochs and then falls as a cosine. After each epoch the state is kept, and a run
that was killed goes on with the same command. In the end the network is `resnet18.keras` in the output
folder, its accuracies are a row of `imagenet_wnq.jsonl`; on TensorFlow there is `resnet18.tflite` too.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

import keras_qareg as qareg
from examples import distribution
from examples.architectures import resnet18
from examples.data import imagenet
from examples.study import Row, Study, at_least
from examples.training import on_devices, sgd

DECAY, WARM_UP_EPOCHS = 1e-4, 5
KEYS = (
    "bits",
    "activation_bits",
    "normalize",
    "epochs",
    "batch_size",
    "rate",
    "policy",
    "width",
    "seed",
    "start",
)


def network(arguments: argparse.Namespace, classes: int) -> keras.Model:
    """ResNet18, untrained or from `--start`, with quantized layers unless `--bits 0`."""
    model = resnet18(classes, width=arguments.width)
    if arguments.start:
        started = keras.saving.load_model(arguments.start, compile=False)
        model.set_weights(started.get_weights())
    if not arguments.bits:
        return model
    return qareg.wnq(
        model,
        arguments.bits,
        activation_bits=arguments.activation_bits,
        normalize=arguments.normalize,
    )


def optimizer(arguments: argparse.Namespace, steps: int) -> keras.optimizers.Optimizer:
    """SGD whose rate, for 256 images a batch, rises to `--rate` and falls to nothing."""
    peak = arguments.rate * arguments.batch_size / 256
    warm_up = min(WARM_UP_EPOCHS * steps, arguments.epochs * steps // 2)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, arguments.epochs * steps - warm_up, warmup_target=peak, warmup_steps=warm_up
    )
    return sgd(rate, DECAY)


def train(arguments: argparse.Namespace) -> tuple[keras.Model, Row]:
    """The trained network, and its accuracies on the validation images."""
    train_data, test_data, classes = imagenet(
        arguments.batch_size,
        arguments.data_dir,
        seed=arguments.seed,
        drop_remainder=distribution.replicas() > 1,
    )
    steps = int(train_data.cardinality())
    keras.utils.set_random_seed(arguments.seed)
    model = network(arguments, classes)
    model.compile(
        optimizer(arguments, steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy(name="top_1"),
            keras.metrics.SparseTopKCategoricalAccuracy(min(5, classes), name="top_5"),
        ],
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    callbacks = [
        keras.callbacks.BackupAndRestore(str(arguments.out / "backup")),
        keras.callbacks.CSVLogger(arguments.out / "epochs.csv", append=True),
    ]
    settings = {"epochs": arguments.epochs, "validation_data": test_data, "callbacks": callbacks}
    distribution.fit(model, train_data, shuffle=False, verbose=2, **settings)
    found = model.evaluate(test_data, verbose=0, return_dict=True)
    return model, {key: 100 * found[key] for key in ("top_1", "top_5")}


def write(model: keras.Model, arguments: argparse.Namespace, classes: int) -> Row:
    """Saves the network and, on TensorFlow, its file for phones; returns their bytes."""
    path = arguments.out / "resnet18.keras"
    model.save(path)
    sizes = {"keras": path.stat().st_size}
    if keras.backend.backend() == "tensorflow":
        keras.config.set_dtype_policy("float32")  # a file computes in float32
        plain = network(argparse.Namespace(**{**vars(arguments), "start": None}), classes)
        plain.set_weights(model.get_weights())
        form = "codebook" if arguments.bits else "float32"
        file = arguments.out / "resnet18.tflite"
        sizes["tflite"] = qareg.export.litert(qareg.strip(plain), file, weights=form).bytes
    return sizes


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="of TensorFlow Datasets")
    parser.add_argument(
        "--bits", type=at_least(0), default=2, help="of kernels; 0: float (default: 2)"
    )
    parser.add_argument(
        "--activation-bits", type=at_least(1), help="of their inputs (default: float)"
    )
    parser.add_argument(
        "--no-normalization", dest="normalize", action="store_false", help="LQ-Nets"
    )
    parser.add_argument("--start", type=Path, help="a float `resnet18.keras` to start from")
    parser.add_argument("--epochs", type=at_least(1), default=90)
    parser.add_argument(
        "--batch-size", type=at_least(1), default=256, help="of all devices together"
    )
    parser.add_argument("--rate", type=float, default=0.1, help="for 256 images a batch")
    parser.add_argument("--policy", default="mixed_bfloat16", help="or mixed_float16, float32")
    parser.add_argument("--width", type=float, default=1.0, help="of all layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distribute", choices=distribution.KINDS, default="none")
    parser.add_argument("--out", type=Path, default=Path("output"))
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    keras.config.set_dtype_policy(arguments.policy)
    cell = {key: getattr(arguments, key) for key in KEYS} | {"start": str(arguments.start or "")}
    with on_devices(arguments):
        study = Study(arguments.out / "imagenet_wnq.jsonl", KEYS)
        if found := study.find(cell):
            print(f"Trained before, with these settings, to top_1 {found['top_1']:.2f}.")
            return
        model, accuracies = train(arguments)
    row: Row = {**accuracies, **write(model, arguments, model.output_shape[-1])}
    study.run([cell], lambda _: row, "top_1")


if __name__ == "__main__":
    main()
