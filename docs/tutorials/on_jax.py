# # On JAX
#
# All but `.tflite` files works on JAX and PyTorch too, and needs no TensorFlow there. Set the
# backend before Keras is imported; `"torch"` works in the same way.

# +
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from sklearn.datasets import load_digits

import keras_qareg as qareg

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]
# -

# ## Layers of two bits
#
# `wnq` makes convolutions and dense layers compute with 4 values for each channel. The values are
# learned with the weights.

network = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model = qareg.wnq(network, bits=2)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, epochs=6, verbose=0)
print(f"accuracy {model.evaluate(x_test, y_test, verbose=0)[1]:.3f}")
print(qareg.report.summary(model))

# ## A file for TensorFlow Lite
#
# Save the plain model here, and write the `.tflite` in a process on TensorFlow:
# `KERAS_BACKEND=tensorflow keras-qareg export digits.keras --out digits.tflite --weights codebook`.

qareg.strip(model).save("digits.keras")
archive = qareg.export.save_archive(model, "digits.qareg")
print(f"{archive.stat().st_size:,} bytes as an archive")
