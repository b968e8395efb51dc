"""Whole-model transforms: wrap, convert, share, strip, compress, and read the codebooks of a model.

Each takes a built model and returns a new one with the same weights and names; the model that was
passed stays as it is (`recalibrate` alone changes it). All results can be saved as `.keras` and
loaded again, except where a subclassed model (or, by `wnq`, a layer made of layers) was changed: its
own code says what it is made of, so save its weights (`save_weights`), or `strip` it and save that.

What belongs here: everything that walks through a model. `cloning` rebuilds one with some layers
changed, and `selection` finds the layers that are meant; each transform is a file of its own. What
does not: the mathematics (`numerics`), files (`export`), and what is done to one layer (`layers`).
"""

from keras_qareg.models.activations import quantize_activations
from keras_qareg.models.converting import wnq
from keras_qareg.models.distilling import distill
from keras_qareg.models.legacy import from_tf_keras
from keras_qareg.models.reading import codebooks, kernel_codebooks
from keras_qareg.models.recalibrating import recalibrate
from keras_qareg.models.sharing import share_weights
from keras_qareg.models.shrinking import shrink
from keras_qareg.models.stripping import quantizes_inputs, strip, unquantized
from keras_qareg.models.wrapping import quantization_aware

__all__ = [
    "codebooks",
    "distill",
    "from_tf_keras",
    "kernel_codebooks",
    "quantization_aware",
    "quantize_activations",
    "quantizes_inputs",
    "recalibrate",
    "share_weights",
    "shrink",
    "strip",
    "unquantized",
    "wnq",
]
