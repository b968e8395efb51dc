"""Levels by budget: how many values each kernel may have, for a file of so many bytes."""

from keras_qareg.allocation.allocating import allocate

__all__ = ["allocate"]
