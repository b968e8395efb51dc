"""What the command says of errors and warnings: one plain line each."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent.parent
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# What Keras and TensorFlow put after a reason (arguments of a layer, configurations, traces), before it,
# and into it.
_AFTER = re.compile(
    r"\s*(Arguments received by |Call arguments received by |Full object config: |\[\[\{\{node ).*",
    re.S,
)
_BEFORE = (
    re.compile(
        r"<class '[^']*'> could not be deserialized properly\..*Exception encountered: ", re.S
    ),
    re.compile(r"Exception encountered when calling [^\n]*\n\s*"),
    re.compile(r"Graph execution error:.*\n(?=[^\n]+\s*$)", re.S),
)
_NODES = re.compile(r"\{\{[^}]*\}\} ?|\[Op:\w+\]( name: ?\S*)?")
# The folders of drafts: those in the temporary folder, and those beside the file to write.
_TEMPORARY = re.compile(rf"({re.escape(tempfile.gettempdir())}/tmp|\S*/?\.[^\s/]+-)[a-z0-9_]{{8}}/")
_EXPECTED = (ValueError, RuntimeError, OSError, ImportError)


class CommandError(Exception):
    """What is wrong with words or files of a command line."""


def plain(error: BaseException, *, typed: bool = False) -> str:
    """What an error says, in one line, without colours and without the insides of libraries.

    Args:
        error: The error.
        typed: Whether to name its type even where it is one whose words are enough.
    """
    text = _AFTER.sub("", _ANSI.sub("", str(error)))
    for pattern in (*_BEFORE, _NODES):
        text = pattern.sub("", text)
    text = " ".join(_TEMPORARY.sub("", text).split())
    if not typed and text and isinstance(error, (CommandError, *_EXPECTED)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def tell(text: str) -> None:
    """Says something on standard error."""
    print(f"keras-qareg: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Warnings of this package in one line each; those of others, and what they log, not at all."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _shower()
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _shower() -> Callable[..., None]:
    said = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        text = " ".join(str(message).split())
        if Path(filename).is_relative_to(_PACKAGE) and text not in said:
            said.add(text)
            tell(f"warning: {text}")

    return show
