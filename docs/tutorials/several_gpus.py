# # On several GPUs
#
# Models of this package are ordinary Keras models: Keras spreads their training over devices. Here
# TensorFlow has two devices of one CPU, which stand for two GPUs. [Training on several devices and
# machines](../scaling.md) has JAX and several machines.

# +
import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import keras_qareg as qareg

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
# -

# ## Make and compile the model within the strategy
#
# With GPUs, leave the devices out: `tf.distribute.MirroredStrategy()` takes all.

strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
with strategy.scope():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model = qareg.quantization_aware(network, qareg.regularizers.NearestSquared(16))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])

# `batch_size` is that of all devices together.

history = model.fit(
    images,
    labels,
    batch_size=64,
    epochs=4,
    verbose=0,
    callbacks=[qareg.callbacks.PenaltySchedule()],
)
print(f"{strategy.num_replicas_in_sync} devices, accuracy {history.history['accuracy'][-1]:.3f}")

# The rest is as ever.

print(qareg.report.summary(qareg.share_weights(model)))
