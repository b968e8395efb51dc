"""Starts the command, as `keras-qareg` or `python -m keras_qareg`.

TensorFlow's native code greets on standard error at import, whatever the log level says; here it
does not.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from keras_qareg import cli


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
        return cli.main()


if __name__ == "__main__":
    sys.exit(main())
