"""Archives (`.qareg`): one small file for a whole Keras model, its shared weights entropy-coded.

What belongs here: the content of an archive (`archive`), its layout in bytes (`container`), and the
coding of indices (`coding`). What does not: anything that needs TensorFlow, or knows another format.
"""
