"""Networks of the papers, for images of 32x32 pixels, and ResNet18 in its ImageNet form.

    python -m examples.architectures        # prints what they weigh

All give logits. `width` scales the channels of every layer.
"""

import keras
from keras import layers

from examples.distribution import strategy_in_use

# Channels of VGG16's convolutions; None is a pooling (Simonyan and Zisserman, arXiv 1409.1556).
_VGG16 = (
    64,
    64,
    None,
    128,
    128,
    None,
    256,
    256,
    256,
    None,
    512,
    512,
    512,
    None,
    512,
    512,
    512,
    None,
)
_INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
)


def lenet(
    classes: int = 10, shape: tuple[int, int, int] = (32, 32, 3), width: float = 1.0
) -> keras.Model:
    """Two convolutions and two dense layers, a million weights, almost all in the first dense one."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(_scaled(32, width), 5, padding="same", activation="relu", name="conv_1"),
            layers.MaxPooling2D(name="pool_1"),
            layers.Conv2D(_scaled(64, width), 5, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(name="pool_2"),
            layers.Flatten(name="flatten"),
            layers.Dense(_scaled(240, width), activation="relu", name="dense"),
            layers.Dense(classes, name="logits"),
        ],
        name="lenet",
    )


def alexnet(classes: int = 10, normalize: bool = True, width: float = 1.0) -> keras.Model:
    """AlexNet for 32x32 pixels: its five convolutions with 3x3 kernels, and three dense layers.

    Source: Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural
    Networks" (NIPS 2012), with the strides and the dense layers made smaller as the images are.
    """
    inputs = x = keras.Input((32, 32, 3))
    for i, (filters, pool) in enumerate(
        [(64, True), (192, True), (384, False), (256, False), (256, True)], start=1
    ):
        x = _convolved(x, _scaled(filters, width), normalize, name=f"conv_{i}")
        x = layers.MaxPooling2D(name=f"pool_{i}")(x) if pool else x
    return _classified(inputs, x, "alexnet", classes, _scaled(1024, width), 2)


def vgg16(classes: int = 10, normalize: bool = True, width: float = 1.0) -> keras.Model:
    """VGG16 for 32x32 pixels: thirteen convolutions, and dense layers of 512 units."""
    inputs = x = keras.Input((32, 32, 3))
    place = pools = 0
    for filters in _VGG16:
        if filters is None:
            pools += 1
            x = layers.MaxPooling2D(name=f"pool_{pools}")(x)
        else:
            place += 1
            x = _convolved(x, _scaled(filters, width), normalize, name=f"conv_{place}")
    return _classified(inputs, x, "vgg16", classes, _scaled(512, width), 1)


def resnet20(classes: int = 10, width: float = 1.0) -> keras.Model:
    """ResNet20 for 32x32 pixels (He et al., arXiv 1512.03385, section 4.2), projections as shortcuts."""
    inputs = keras.Input((32, 32, 3))
    x = _convolved(inputs, _scaled(16, width), name="conv")
    x = _residual_stages(x, [_scaled(n, width) for n in (16, 32, 64)], 3)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="resnet20")


def resnet18(
    classes: int = 1000, shape: tuple[int, int, int] = (224, 224, 3), width: float = 1.0
) -> keras.Model:
    """ResNet18 in its ImageNet form (He et al., arXiv 1512.03385, table 1)."""
    inputs = keras.Input(shape)
    x = _convolved(inputs, _scaled(64, width), kernel=7, strides=2, name="conv")
    x = layers.MaxPooling2D(3, 2, "same", name="max_pool")(x)
    x = _residual_stages(x, [_scaled(n, width) for n in (64, 128, 256, 512)], 2)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    logits = layers.Dense(classes, dtype="float32", name="logits")(x)  # whatever others compute in
    return keras.Model(inputs, logits, name="resnet18")


def mobilenet_v2(classes: int = 10, width: float = 1.0) -> keras.Model:
    """A MobileNetV2-like network for 32x32 pixels: inverted residuals (arXiv 1801.04381)."""
    inputs = keras.Input((32, 32, 3))
    x = _convolved(inputs, _scaled(32, width), name="conv")
    for stage, (expansion, filters, count, strides) in enumerate(_INVERTED, start=1):
        for block in range(count):
            name = f"block_{stage}_{block + 1}"
            x = _inverted(x, expansion, _scaled(filters, width), strides if not block else 1, name)
    x = _convolved(x, _scaled(640, width), kernel=1, name="last")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="mobilenet_v2")


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _convolved(
    x: keras.KerasTensor,
    filters: int,
    normalize: bool = True,
    kernel: int = 3,
    strides: int = 1,
    activate: bool = True,
    name: str = "conv",
) -> keras.KerasTensor:
    """Convolution, normalization, ReLU."""
    x = layers.Conv2D(
        filters,
        kernel,
        strides,
        "same",
        use_bias=not normalize,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    if normalize:
        x = _normalized(x, f"{name}_norm")
    return layers.ReLU(name=f"{name}_relu")(x) if activate else x


def _normalized(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Batch normalization; over the whole batch where that is shared out among devices."""
    together = strategy_in_use() is not None
    return layers.BatchNormalization(synchronized=together, name=name)(x)


def _classified(
    inputs: keras.KerasTensor,
    x: keras.KerasTensor,
    name: str,
    classes: int,
    units: int,
    hidden: int,
) -> keras.Model:
    """Dense layers with dropout before each, and the logits."""
    x = layers.Flatten(name="flatten")(x)
    for i in range(1, hidden + 1):
        x = layers.Dropout(0.5, name=f"dropout_{i}")(x)
        x = layers.Dense(units, activation="relu", name=f"dense_{i}")(x)
    x = layers.Dropout(0.5, name=f"dropout_{hidden + 1}")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name=name)


def _residual_stages(x: keras.KerasTensor, channels: list[int], blocks: int) -> keras.KerasTensor:
    for stage, filters in enumerate(channels, start=1):
        for block in range(1, blocks + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _residual(x, filters, strides, f"stage_{stage}_{block}")
    return x


def _residual(x: keras.KerasTensor, filters: int, strides: int, name: str) -> keras.KerasTensor:
    y = _convolved(x, filters, strides=strides, name=f"{name}_conv_1")
    y = _convolved(y, filters, activate=False, name=f"{name}_conv_2")
    if x.shape != y.shape:
        x = _convolved(
            x, filters, kernel=1, strides=strides, activate=False, name=f"{name}_shortcut"
        )
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _inverted(
    x: keras.KerasTensor, expansion: int, filters: int, strides: int, name: str
) -> keras.KerasTensor:
    y = x
    if expansion > 1:
        y = _convolved(y, expansion * x.shape[-1], kernel=1, name=f"{name}_expand")
    y = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.ReLU(6.0, name=f"{name}_relu")(_normalized(y, f"{name}_depthwise_norm"))
    y = _convolved(y, filters, kernel=1, activate=False, name=f"{name}_project")
    return layers.Add(name=f"{name}_add")([x, y]) if x.shape == y.shape else y


NETWORKS = {
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}


if __name__ == "__main__":
    for name, network in NETWORKS.items():
        print(f"{name:14} {network().count_params():>12,} parameters")
