"""Where files go."""

from __future__ import annotations

import os
from pathlib import Path


def check_target(path: str | os.PathLike[str], suffix: str | None = None) -> Path:
    """The path of a file to write.

    Args:
        path: The path.
        suffix: What it must end in; `None`: anything.

    Returns:
        A `Path`.

    Raises:
        ValueError: If its name does not end in `suffix` or its folder does not exist.
    """
    path = Path(path)
    if suffix is not None and path.suffix != suffix:
        raise ValueError(f"Expected a file name that ends in '{suffix}'. Received: {path}")
    if not path.parent.is_dir():
        raise ValueError(f"Expected a folder that exists. Received: {path.parent}, which does not")
    return path
