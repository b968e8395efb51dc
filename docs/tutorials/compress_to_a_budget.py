# # Compress a trained model to a budget
#
# We train a small network on scikit-learn's digits, and then ask for a file of a seventh of its
# size. It takes some seconds.

# +
import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_qareg as qareg

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]
# -

# ## A trained model
#
# This stands for yours.

# +
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, epochs=6, verbose=0)
print(f"accuracy {model.evaluate(x_test, y_test, verbose=0)[1]:.3f}")
# -

# ## Small, in one call
#
# `target_ratio=0.14` asks for a `.tflite` of at most 0.14 of the float file. `compress` plans how
# many values each kernel may have, trains with them, and says what each step was worth. The float
# model teaches: no labels are needed. `verbose=0` would print nothing.

small = qareg.compress(model, x, target_ratio=0.14, epochs=4, seed=0, verbose=0)
small.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
print(f"accuracy {small.evaluate(x_test, y_test, verbose=0)[1]:.3f}")

# ## How many values does each kernel have?

print(qareg.report.summary(small))

# ## The files
#
# Each is run and compared with Keras before it gets its name.

float_file = qareg.export.litert(model, "float.tflite", "float32")
small_file = qareg.export.litert(small, "small.tflite", "smallest")
archive = qareg.export.save_archive(small, "small.qareg")
print(f"float    {float_file.bytes:,} bytes")
print(f"small    {small_file.bytes:,} bytes, {small_file.bytes / float_file.bytes:.2f} of it")
print(f"archive  {archive.stat().st_size:,} bytes")

# ## Is it the model that we tested?

print(qareg.export.verify(small, "small.tflite"))
again = qareg.export.load_archive("small.qareg")
print(np.array_equal(again.predict(x_test, verbose=0), small.predict(x_test, verbose=0)))
