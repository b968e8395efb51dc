"""A whole configuration: read from a YAML file, and its keys checked, without Keras.

`models.configuring` says which layer gets what of it; `config` is what users see.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

# The arguments that a configuration may hold, named as in the transforms.
KEYS = ("levels", "regularizer", "table", "scale", "bits", "activation_bits")
# What `Plan.save` writes beside these: where its levels come from, which no transform takes.
NOTES = "plan"
SUFFIXES = (".yaml", ".yml")


def is_file(value: Any) -> bool:
    """Whether a value means a YAML file: a path, or a text that ends as the name of one does."""
    return isinstance(value, PurePath) or (isinstance(value, str) and value.endswith(SUFFIXES))


def read(path: str | PurePath) -> dict[str, Any]:
    """The configuration in a YAML file.

    Args:
        path: The file.

    Returns:
        Dict from names of arguments to what each layer gets, as the file says it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its name does not end in `.yaml` or `.yml`, it is not YAML, or a key is unknown,
            there twice, or no text.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected a YAML file, .yaml or .yml. Received: {path}")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a YAML file. Received: {path}, which does not exist")
    try:
        config = parsed(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            config.pop(NOTES, None)
        for name, setting in check_keys(config).items():
            if isinstance(setting, Mapping):
                _check_texts(f"`{name}`", setting)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def check_keys(config: Any) -> dict[str, Any]:
    """The same configuration; raises a `ValueError` unless it is a dict with known keys."""
    if not isinstance(config, dict):
        raise ValueError(
            f"Expected a dict with some of the keys {list(KEYS)}. Received: {config!r}"
        )
    _check_texts("the configuration", config)
    unknown = [key for key in config if key not in KEYS]
    if unknown:
        raise ValueError(
            f"Expected a configuration with some of the keys {list(KEYS)}. "
            f"Received unknown keys: {guessed(unknown, KEYS)}"
        )
    return config


def guessed(keys: Iterable[str], known: Iterable[str]) -> str:
    """Keys that are unknown, each with those that may be meant."""
    texts = []
    for key in keys:
        close = difflib.get_close_matches(key, list(known), 3)
        meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        texts.append(f"{key!r}{meant}")
    return ", ".join(texts)


def _check_texts(where: str, mapping: Mapping[Any, Any]) -> None:
    others = [key for key in mapping if not isinstance(key, str)]
    if others:
        raise ValueError(
            f"Expected texts as the keys of {where}. Received: {others}. Put them in quotes."
        )


def parsed(text: str) -> Any:
    """What YAML says; raises a `ValueError` where it is none, or has a key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice, of which YAML would take the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = sorted({key for key in keys if keys.count(key) > 1})
            if twice:
                raise ValueError(f"Expected each key once. Received twice or more: {twice}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expected YAML, with keys such as '*' or 'block_*' in quotes. Received: {reason}"
        ) from error
