"""Small networks of the kinds that microcontrollers run, shared and taken through every file format."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_qareg as qareg
from tests.helpers import predict, tensorflow_only

pytestmark = [pytest.mark.slow, tensorflow_only]
FORMS = (
    *("auto", "smallest", "int8-exact", "int4-exact", "int2-exact"),
    *("codebook", "tflm", "float32", "float16"),
)


def _block(x, filters, strides):
    side = x
    for place in range(2):
        x = layers.Conv2D(filters, 3, strides if place == 0 else 1, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x) if place == 0 else x
    if strides > 1:
        side = layers.Conv2D(filters, 1, strides, padding="same")(side)
    return layers.ReLU()(layers.Add()([x, side]))


def residual():
    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    for filters, strides in ((8, 1), (16, 2)):
        x = _block(x, filters, strides)
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(inputs, layers.Dense(10, "softmax")(x))


def separable():
    """Depthwise and pointwise convolutions, as for keywords and for wake words."""
    inputs = keras.Input((25, 10, 1))
    x = layers.Conv2D(16, (10, 4), 2, padding="same")(inputs)
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Conv2D(16, 1)(x)
    x = layers.Dropout(0.4)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(12, "softmax")(x))


def autoencoder():
    inputs = x = keras.Input((64,))
    for units in (32, 32, 8, 32, 32):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(units)(x)))
    return keras.Model(inputs, layers.Dense(64)(x))


def trained(make):
    """With statistics and scales as training leaves them."""
    keras.utils.set_random_seed(0)
    model, random = make(), np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(random.uniform(0.2, 1.5, weight.shape))
    return model, random.normal(size=(32, *model.input_shape[1:])).astype("float32")


@pytest.mark.parametrize("settings", [{"levels": 4}, {"levels": 16, "table": "even"}], ids=str)
@pytest.mark.parametrize("make", [residual, separable, autoencoder])
def test_every_format_holds_a_shared_network(make, settings, tmp_path):
    model, inputs = trained(make)
    shared = qareg.share_weights(model, **settings)
    plain = qareg.strip(shared)
    expected = predict(shared, inputs)
    models = [shared, plain]
    for place, saved in enumerate((plain, shared)):
        saved.save(tmp_path / f"{place}.keras")
        models.append(keras.saving.load_model(tmp_path / f"{place}.keras"))
    archive = qareg.export.save_archive(shared, tmp_path / "model.qareg")
    models.append(qareg.export.load_archive(archive))
    for each in models:
        np.testing.assert_array_equal(predict(each, inputs), expected)
        assert qareg.export.verify(each, archive).startswith("equal")
    file = tmp_path / "model.tflite"
    for form, data in [*((form, None) for form in FORMS), ("int8", inputs), ("tflm", inputs)]:
        qareg.export.litert(shared, file, form, data)
        same = "equal" if data is None else "int8, which rounds"
        for each in models:
            assert qareg.export.verify(each, file, data).startswith(same), form
