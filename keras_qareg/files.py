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
        ValueError: If its name does not end in `suffix`, its folder does not exist, or it is a folder.
    """
    path = Path(path)
    if suffix is not None and path.suffix != suffix:
        raise ValueError(f"Expected a file name that ends in '{suffix}'. Received: {path}")
    if not path.parent.is_dir():
        raise ValueError(f"Expected a folder that exists. Received: {path.parent}, which does not")
    if path.is_dir():
        raise ValueError(f"Expected the name of a file. Received: {path}, which is a folder")
    return path


def check_new(path: Path, force: bool) -> Path:
    """The path of a file to write, which is not there yet.

    Args:
        path: The path.
        force: Whether a file of that name may be replaced.

    Returns:
        The path.

    Raises:
        FileExistsError: If there is such a file and no `force`, or a folder.
    """
    if path.is_dir():
        raise FileExistsError(f"Expected a file. Received: {path}, which is a folder")
    if path.exists() and not force:
        raise FileExistsError(
            f"Expected a new file. Received: {path}, which exists. Pass force=True to replace it"
        )
    return path
