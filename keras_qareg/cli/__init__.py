"""The `keras-qareg` command.

What belongs here: what a shell needs, which is words, files, messages, exit statuses, signals. What does
not: the work itself. Nothing here imports Keras before all has been checked that can be without it.
"""

from keras_qareg.cli.entry import main

__all__ = ["main"]
