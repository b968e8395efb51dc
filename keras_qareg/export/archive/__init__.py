"""Archives (`.qareg`): one small file for a whole Keras model, its shared weights entropy-coded.

What belongs here: the content of an archive (`archive`), its layout in bytes (`container`), the coding
of indices (`coding`), and whether its tensors are a model's (`proof`). What does not: anything that
needs TensorFlow, or knows another format.
"""
