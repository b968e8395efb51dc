"""Makes the templates and the dictionary by which archives hold configurations in few bytes.

    python -m benchmarks.configurations --out keras_qareg/export/archive

Both belong to version 2 of the format: files that exist need them as they are, so new ones get a new
number. Templates are what Keras writes of each of its classes with its defaults; the dictionary is
shortened configurations of networks of many kinds, one behind the other.
"""

import argparse
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from keras import layers

from keras_qareg.export.archive import configurations, manifest

MOST_BYTES = 32_000
# What classes cannot do without.
_NEEDED: dict[str, Any] = {
    "units": 1,
    "filters": 1,
    "kernel_size": 3,
    "pool_size": 2,
    "input_dim": 2,
    "output_dim": 2,
    "rate": 0.5,
    "num_heads": 1,
    "key_dim": 1,
    "n": 2,
    "target_shape": (1,),
    "dims": (1,),
    "activation": "relu",
    "equation": "ab,bc->ac",
    "output_shape": 1,
    "height": 2,
    "width": 2,
    "factor": 0.1,
    "scale": 1.0,
    "num_tokens": 2,
    "head_dim": 1,
    "num_query_heads": 1,
    "num_key_value_heads": 1,
    "stddev": 0.1,
    "cell": None,
    "layer": None,
}


def objects() -> Iterator[tuple[Any, set[str]]]:
    """What Keras writes of one of each class, and what it cannot do without."""
    yield _written(layers.InputLayer((1,))), {"batch_shape"}
    for module in (keras.initializers, keras.regularizers, keras.constraints, layers):
        for name in sorted(set(dir(module)) - {"Lambda", "Layer", "Wrapper", "InputSpec"}):
            kind = getattr(module, name)
            if not inspect.isclass(kind) or kind.__name__ != name:
                continue
            asked = inspect.signature(kind.__init__).parameters.values()
            needed = {
                p.name: _NEEDED[p.name]
                for p in asked
                if p.default is p.empty and p.name in _NEEDED and _NEEDED[p.name] is not None
            }
            try:
                yield _written(kind(**needed)), set(needed)
            except (TypeError, ValueError, ImportError, NotImplementedError, AttributeError):
                continue


def _written(one: Any) -> Any:
    return json.loads(json.dumps(keras.saving.serialize_keras_object(one)))


def templates() -> dict[str, Any]:
    """Module, registered name and short default configuration of each class."""
    policy = _written(keras.DTypePolicy("float32"))
    found: dict[str, Any] = {"DTypePolicy": [policy["module"], None, policy["config"]]}
    known: dict[str, Any] = {"DTypePolicy": (policy["module"], None, policy["config"])}
    for written, needed in objects():
        left_out = {"name", *needed}
        config = {k: v for k, v in written["config"].items() if k not in left_out}
        name, place = written["class_name"], (written["module"], written["registered_name"])
        found[name] = [*place, configurations.without_defaults(config, known)]
        known[name] = (*place, config)
    for kind in ("Functional", "Sequential"):
        empty = _written(_model(kind))
        config = {k: empty["config"][k] for k in ("trainable", "dtype") if k in empty["config"]}
        place = [empty["module"], empty["registered_name"]]
        found[kind] = [*place, configurations.without_defaults(config, known)]
    return found


def _model(kind: str) -> keras.Model:
    inputs = keras.Input((4,))
    if kind == "Sequential":
        return keras.Sequential([inputs, layers.Dense(2)])
    return keras.Model(inputs, layers.Dense(2)(inputs))


def networks() -> Iterator[keras.Model]:
    """Networks of many kinds, the most common last."""
    for kind in (transformer, recurrent, plain, dense, residual):
        yield kind(24)


def residual(width: int) -> keras.Model:
    """Convolutions with normalization, and branches that are added."""
    inputs = x = keras.Input((2 * width, 2 * width, 3))
    regularizer = keras.regularizers.L2(1e-4)
    for block in range(3):
        filters, steps = width << block, 1 + (block > 0)
        options = {"padding": "same", "kernel_regularizer": regularizer}
        y = layers.Conv2D(filters, 3, strides=steps, kernel_initializer="he_normal", **options)(x)
        y = layers.Activation("relu")(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 3, **options)(y))
        x = layers.Conv2D(filters, 1, strides=steps, use_bias=False, **options)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(pool_size=(width // 4, width // 4))(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def plain(width: int) -> keras.Model:
    """Convolutions one after the other, depthwise ones too."""
    stack = [keras.Input((width, width, 1))]
    for block in range(3):
        stack += [layers.Conv2D(width << block, 3, padding="same", activation="relu")]
        stack += [layers.MaxPooling2D(), layers.DepthwiseConv2D(3, padding="same", use_bias=False)]
        stack += [layers.BatchNormalization(momentum=0.9), layers.ReLU(6.0), layers.Dropout(0.2)]
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(100, activation="relu")]
    return keras.Sequential([*stack, layers.Dense(10)])


def dense(width: int) -> keras.Model:
    """Dense layers one after the other."""
    inputs = x = keras.Input((5 * width,))
    for units in (100, 100, 50, 10, 50, 100):
        x = layers.Dense(units)(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(5 * width)(x))


def recurrent(width: int) -> keras.Model:
    """Text by its words."""
    stack = [keras.Input((None,)), layers.Embedding(100, width), layers.SpatialDropout1D(0.1)]
    stack += [layers.Bidirectional(layers.LSTM(width, return_sequences=True)), layers.GRU(width)]
    return keras.Sequential([*stack, layers.Dense(1, activation="sigmoid")])


def transformer(width: int) -> keras.Model:
    """Attention to the same sequence."""
    inputs = x = keras.Input((width, 4 * width))
    for _ in range(2):
        y = layers.MultiHeadAttention(4, width)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, y]))
        y = layers.Dense(4 * width)(layers.Dense(8 * width, activation="gelu")(x))
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = [
        f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in templates().items()
    ]
    (arguments.out / "templates_1.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    configurations.templates.cache_clear()
    heads = []
    for model in networks():
        keras.backend.clear_session()
        heads.append(manifest.head_of(model))
    # What is nearest to the end is found in the fewest bytes.
    text = "".join([*_vocabulary(), *heads]).encode()[-MOST_BYTES:]
    (arguments.out / "dictionary_1.bin").write_bytes(text)


def _vocabulary() -> Iterator[str]:
    """Each class with what else it may be asked for."""
    for name, (_, _, config) in sorted(configurations.templates().items()):
        yield json.dumps({"": name, **config}, separators=(",", ":"))


if __name__ == "__main__":
    main()
