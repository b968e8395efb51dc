"""Models of Keras 2 and TFMOT as models of Keras 3.

`source` reads configurations and weights; `graphs` makes the model again, with `layers` and `operations`
of Keras 3; `weights` and `training` fill it; `objects` is all that needs tf_keras, which is imported
there, and `comparing` computes both models.
"""

from keras_qareg.models.legacy.importing import from_tf_keras, written_by_keras_2

__all__ = ["from_tf_keras", "written_by_keras_2"]
