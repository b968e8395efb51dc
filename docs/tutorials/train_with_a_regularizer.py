# # Train under a regularizer
#
# A regularizer pulls the weights of each kernel to a few values, called basins, while the network
# learns its task. This is for a model that is to be trained anyway, and it shows each step that
# `compress` takes for you.

# +
import keras
from sklearn.datasets import load_digits

import keras_qareg as qareg

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]
network = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu", name="conv"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu", name="hidden"),
        keras.layers.Dense(10, activation="softmax", name="out"),
    ]
)
# -

# ## Four values a kernel
#
# `quantization_aware` wraps each layer with a kernel. `Sine(levels=4)` has four evenly spaced
# basins. `PenaltySchedule` trains without penalty at first, then places the basins where the
# weights are, and raises the penalty up to the last epoch.

model = qareg.quantization_aware(network, qareg.regularizers.Sine(levels=4))
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
done = model.fit(x, y, epochs=12, verbose=0, callbacks=[qareg.callbacks.PenaltySchedule()])
for epoch in done.epoch[::3]:
    loss, accuracy = (done.history[name][epoch] for name in ("loss", "accuracy"))
    print(f"epoch {epoch + 1:2}: loss {loss:.3f}, accuracy {accuracy:.3f}")

# The loss holds the penalty too, so it may rise while the accuracy does. See [why the loss
# rises](../loss_rises.md).
#
# ## What the weights look like
#
# Most weights are at one of four values now.

qareg.plots.weight_histograms(model)

# ## Share, and tune
#
# `share_weights` gives each weight its value for good: a kernel is a table of four values and an
# index for each weight. `fit` then trains the values alone.

shared = qareg.share_weights(model)
shared.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
print(f"shared {shared.evaluate(x_test, y_test, verbose=0)[1]:.3f}")
shared.fit(x, y, epochs=2, verbose=0)
print(f"tuned  {shared.evaluate(x_test, y_test, verbose=0)[1]:.3f}")

# ## A file
#
# `strip` takes the wrappers off: what is left is an ordinary Keras model that loads without
# keras_qareg.

plain = qareg.strip(shared)
print([type(layer).__name__ for layer in plain.layers])
print(f"{qareg.export.save_archive(plain, 'small.qareg').stat().st_size:,} bytes")
