"""Removing the channels that do nothing.

`rules` says what each kind of layer does with channels, `tracing` follows them through a graph, and
`removing` makes the smaller model and compares it with the old one.
"""

from keras_qareg.models.shrinking.removing import shrink

__all__ = ["shrink"]
