# # For an NPU
#
# Arm's Ethos-U NPUs run full-integer files after Vela, their compiler, has packed the weights. Vela
# packs kernels of few values much tighter. [A file for an NPU](../npu.md) has numbers for whole
# networks.

# +
import keras
from sklearn.datasets import load_digits

import keras_qareg as qareg

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
x, y = images[:1400], labels[:1400]
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.fit(x, y, epochs=4, verbose=0)
print(f"accuracy {model.evaluate(x, y, verbose=0)[1]:.3f}")
# -

# ## The same file with and without few values
#
# The `.tflite` has the same size either way, a byte a weight. What counts is what Vela makes of it:
# `npu=` has it compile the file, and the report tells the bytes. Where Vela is not installed
# (`keras-qareg[vela]`) they are `None`.

ends = {"input_type": "int8", "output_type": "int8", "npu": "ethos-u55-128"}
for name, made in (("plain", model), ("16 values", qareg.share_weights(model, 16, verbose=0))):
    report = qareg.export.litert(made, "digits.tflite", "int8", x[:100], **ends)
    print(f"{name}: {report.bytes:,} bytes, weights in Vela's file: {report.npu_weight_bytes}")

# Then compile `digits.tflite` with your own configuration of Vela, as ever.
