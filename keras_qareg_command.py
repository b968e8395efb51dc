"""Starts the `keras-qareg` command without the lines that TensorFlow's native code greets with.

They go to standard error at import, whatever the log level says, and importing any module of the
package imports Keras first: hence a module beside it.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_native_code() -> Iterator[None]:
    """Hides what native code writes to standard error; Python's own messages still get there."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere, open(saved, "w", buffering=1) as original:
        os.dup2(nowhere.fileno(), 2)
        sys.stderr = original
        try:
            yield
        finally:
            sys.stderr = sys.__stderr__
            os.dup2(saved, 2)


def main() -> int:
    """Runs `keras_qareg.cli.main` and returns its exit status."""
    with quiet_native_code():
        from keras_qareg.cli import main as command

        return command()
