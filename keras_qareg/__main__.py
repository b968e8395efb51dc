"""Starts the command, as `keras-qareg` or `python -m keras_qareg`."""

import sys

from keras_qareg.cli.process import INTERRUPTED, Interrupts, plain_streams


def main() -> int:
    """Runs `keras_qareg.cli.main` and returns its exit status."""
    interrupts = Interrupts()
    try:
        interrupts.listen()
        with plain_streams():
            from keras_qareg.cli.command import main

            status = main(interrupted=lambda: interrupts.asked)
    except KeyboardInterrupt:
        status = INTERRUPTED
    if interrupts.asked:
        interrupts.end()
    return status


if __name__ == "__main__":
    sys.exit(main())
