"""Starts the command, as `keras-qareg` or `python -m keras_qareg`."""

import os
import signal
import sys


def main() -> int:
    """Runs `keras_qareg.cli.main` and returns its exit status."""
    signal.signal(signal.SIGINT, _end)  # until there is something to clean up
    from keras_qareg.cli.process import INTERRUPTED, Interrupts, plain_streams

    interrupts = Interrupts()
    try:
        interrupts.listen()
        with plain_streams():
            from keras_qareg.cli.entry import main

            status = main(interrupted=lambda: interrupts.asked)
    except KeyboardInterrupt:
        status = INTERRUPTED
    if interrupts.asked:
        interrupts.end()
    return status


def _end(*_: object) -> None:
    os.write(2, b"keras-qareg: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
