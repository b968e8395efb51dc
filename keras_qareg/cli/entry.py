"""The command as a function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from keras_qareg.cli import commands, options
from keras_qareg.cli.messages import plain, quiet_libraries, tell

ERROR = 2


def main(
    arguments: Sequence[str] | None = None, interrupted: Callable[[], bool] = lambda: False
) -> int:
    """Runs the command.

    Args:
        arguments: Words of the command line; `None`: those of the process.
        interrupted: Whether Ctrl-C was pressed: what is raised then is not told.

    Returns:
        The exit status: 0; 1 where `verify` finds another model or `compress` loses too much accuracy;
        or 2 after an error, which is told in one line on standard error.
    """
    with quiet_libraries():
        try:
            return commands.run(options.parse(arguments))
        except Exception as error:
            if not interrupted():
                tell(plain(error))
            return ERROR
