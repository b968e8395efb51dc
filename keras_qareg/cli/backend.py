"""The backend that Keras is going to ask for, told before it does."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from keras_qareg.cli.messages import CommandError

BACKENDS = ("tensorflow", "jax", "torch")


def check_backend(*, converts: bool = False) -> None:
    """Raises a `CommandError` where Keras is going to ask for a backend that will not do.

    Args:
        converts: Whether it must be TensorFlow, which LiteRT conversion needs.
    """
    wanted = wanted_backend()
    if converts and wanted != "tensorflow":
        raise CommandError(
            "Expected the TensorFlow backend, which LiteRT conversion needs. Received: "
            f"KERAS_BACKEND={wanted}. Set KERAS_BACKEND=tensorflow"
        )
    if "keras" in sys.modules or wanted not in BACKENDS or importlib.util.find_spec(wanted):
        return
    found = [name for name in BACKENDS if importlib.util.find_spec(name)]
    remedy = f"Set KERAS_BACKEND={found[0]}, or p" if found else "P"
    raise CommandError(
        f"Expected a backend for Keras. Received: KERAS_BACKEND={wanted}, which is not installed. "
        f"Found: {', '.join(found) or 'none'}. {remedy}ip install {wanted}"
    )


def wanted_backend() -> str:
    """What Keras takes: the variable, else its configuration file, else TensorFlow."""
    file = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "keras.json"
    try:
        configured = json.loads(file.read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        configured = None
    return str(os.environ.get("KERAS_BACKEND") or configured or "tensorflow")
