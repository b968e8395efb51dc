# # Custom layers and subclassed models
#
# A *kernel* is a weight of two axes or more whose name ends in `kernel` or `embeddings`. Your own
# layers may name theirs otherwise, and your models may have code of their own. Both work.

# +
import keras
import numpy as np

import keras_qareg as qareg

keras.utils.set_random_seed(0)
# -

# ## A layer whose weight has another name

# +


@keras.saving.register_keras_serializable("tutorial")
class Mixer(keras.layers.Layer):
    """Mixes channels by a matrix."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.mixer = self.add_weight(shape=(shape[-1], self.units), name="mixer")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.mixer)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


# -

# ## A model with code of its own


# +
@keras.saving.register_keras_serializable("tutorial")
class Network(keras.Model):
    """Two branches, added."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.left = Mixer(32, name="left")
        self.right = keras.layers.Dense(32, activation="tanh", name="right")
        self.head = keras.layers.Dense(4, name="head")

    def call(self, inputs):
        return self.head(self.left(inputs) + self.right(inputs))


model = Network()
x = np.random.default_rng(0).normal(size=(256, 16)).astype("float32")
print(model(x).shape)  # a subclassed model has weights after its first call
# -

# ## Say which weights are meant
#
# `weights=` takes patterns of names, or a function. Without it, `left` would be left as it is, with
# a warning.

shared = qareg.share_weights(model, 8, weights=["*kernel", "mixer"])
print(qareg.report.summary(shared))

# ## What each layer gets
#
# `levels` may differ by layer: by name, pattern, or type. `explain` says which key counts for which
# kernel.

print(qareg.config.explain(model, {"levels": {"head": None, "Dense": 16, "*": 8}}))

# ## Back to your own class
#
# `strip` gives the same class back. [Any model](../models.md) says what comes along, and what is
# refused.

plain = qareg.strip(shared)
print(type(plain).__name__, len(np.unique(plain.left.mixer)))
