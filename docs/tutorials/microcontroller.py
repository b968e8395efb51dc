# # For a microcontroller, to the C array
#
# TFLite Micro computes with whole numbers of 8 bits and has no file system. We give each kernel 16
# values, let the ranges of activations train, and write the file as C++ source.

# +
from pathlib import Path

import keras
from sklearn.datasets import load_digits

import keras_qareg as qareg

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(x, y, epochs=6, verbose=0)
print(f"float {model.evaluate(x_test, y_test, verbose=0)[1]:.3f}")
# -

# ## Few values, whole numbers
#
# `share_weights` gives kernels 16 values. `quantize_activations` puts a range of 8 bits wherever
# the file will have one, and places it by these inputs. Then both train together.

integer = qareg.quantize_activations(qareg.share_weights(model, 16, verbose=0), x[:300])
integer.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
integer.fit(x, y, epochs=2, verbose=0)
print(f"integer {integer.evaluate(x_test, y_test, verbose=0)[1]:.3f}")

# ## The file
#
# `"tflm"` holds kernels as packed indices and tables, which TFLite Micro reads by itself. With int8
# at both ends the device never computes in float.

report = qareg.export.litert(
    integer, "digits.tflite", "tflm", x[:100], input_type="int8", output_type="int8"
)
print(f"{report.bytes:,} bytes")
print(f"plain int8: {qareg.export.litert(model, 'plain.tflite', 'int8', x[:100]).bytes:,} bytes")

# ## C++ source
#
# The header says what the program needs: the array, the operators, and the arena if TFLite Micro is
# installed here (`keras-qareg[micro]`).

qareg.export.c_array("digits.tflite")
print(Path("digits.h").read_text())
