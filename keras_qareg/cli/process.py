"""What the command does to its process: Ctrl-C, closed pipes, and the greetings of native code."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

INTERRUPTED = 130
_GRACE_SECONDS = 2.0


class Interrupts:
    """Ctrl-C ends the process with one line, whatever it is doing.

    Python raises `KeyboardInterrupt` in its main thread, which may be in native code for long, wait for
    other threads, or be where the exception is caught or lost. So a thread of its own is woken by the
    signal, says the line, and ends the process if that is still there a moment later.

    Attributes:
        asked: Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._said, self._lock = False, threading.Lock()
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)

    def listen(self) -> None:
        """Begins to wait for Ctrl-C; the main thread alone may call it."""
        signal.signal(signal.SIGINT, self._raise)
        signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._wait, daemon=True).start()

    def end(self) -> NoReturn:
        """Ends the process at once: threads that still work would be waited for."""
        self._say()
        os._exit(INTERRUPTED)

    def _raise(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.unraisablehook = lambda _: None
        raise KeyboardInterrupt

    def _say(self) -> None:
        with self._lock:
            if not self._said:
                print("keras-qareg: interrupted", file=sys.stderr, flush=True)
            self._said = True

    def _wait(self) -> None:
        while signal.SIGINT not in self._ear.recv(1):
            pass
        self._say()
        time.sleep(_GRACE_SECONDS)
        # The main thread did not come to it, so what it was writing goes here.
        for found in gc.get_objects():
            if isinstance(found, tempfile.TemporaryDirectory):
                with contextlib.suppress(OSError):
                    found.cleanup()
        self.end()


class Output(io.TextIOWrapper):
    """A stream whose reader may close it early, as `head` does: what is said then is dropped."""

    def write(self, text: str) -> int:
        """Writes a text, as every text stream does."""
        with self._unread():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Passes on what was written, as every stream does."""
        with self._unread():
            super().flush()

    @contextlib.contextmanager
    def _unread(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Hides what native code writes to standard error; Python's own messages still get there.

    TensorFlow greets there at import, whatever the log level says. Both streams are an `Output`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    saved, before = os.dup(2), (sys.stdout, sys.stderr)
    options: dict[str, Any] = {"encoding": sys.stdout.encoding, "errors": "backslashreplace"}
    with open(os.devnull, "w") as nowhere, open(saved, "wb") as original:
        output = Output(sys.stdout.buffer, line_buffering=sys.stdout.isatty(), **options)
        errors = Output(original, line_buffering=True, **options)
        # In this order, and back in the other one: at any moment Python's errors get there.
        sys.stdout, sys.stderr = output, errors
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            sys.stdout, sys.stderr = before
            for stream in (output, errors):
                stream.flush()
                stream.detach()
