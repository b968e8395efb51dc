"""A whole configuration: read from a YAML file, and its keys checked, without Keras.

`models.configuring` says which layer gets what of it; `config` is what users see.
"""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

# The arguments that a configuration may hold, named as in the transforms.
KEYS = (
    *("levels", "regularizer", "table", "scale", "group_size", "bits", "activation_bits"),
    "target_sparsity",
)
# What `Plan.save` writes beside these: where its levels come from, which no transform takes.
NOTES = "plan"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RatedLevels:
    """The levels in the file of a plan by rates, which are those of the plan with its rates alone.

    Attributes:
        path: The file.
        levels: The levels of each kernel by path.
        rates: What a bit of each may cost.
        sizes: How many weights each has in the model of the plan.
    """

    path: Path
    levels: Mapping[str, Any]
    rates: Mapping[str, Any]
    sizes: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.path)


class PlannedLevels(dict[str, Any]):
    """The levels in the file of another plan, by path or as they were changed by hand.

    Attributes:
        sizes: How many weights each kernel has in the model of the plan.
    """

    def __init__(self, levels: Mapping[str, Any], sizes: Mapping[str, Any]):
        super().__init__(levels)
        self.sizes = sizes


def is_file(value: Any) -> bool:
    """Whether a value means a YAML file: a path, or a text that ends as the name of one does."""
    return isinstance(value, PurePath) or (isinstance(value, str) and value.endswith(SUFFIXES))


def read(path: str | PurePath) -> dict[str, Any]:
    """The configuration in a YAML file.

    Args:
        path: The file.

    Returns:
        Dict from names of arguments to what each layer gets, as the file says it; levels of the file of
        a plan are `PlannedLevels`, or `RatedLevels` where it is by rates.

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
        notes = config.pop(NOTES, None) if isinstance(config, dict) else None
        planned = _planned(path, notes, config)
        for name, setting in check_keys(config).items():
            if isinstance(setting, Mapping):
                _check_texts(f"`{name}`", setting)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config if planned is None else {**config, "levels": planned}


def write(path: Path, text: str) -> None:
    """Writes a text file in one step: whole, or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def _planned(path: Path, notes: Any, config: Any) -> RatedLevels | PlannedLevels | None:
    """The levels of a plan with what `Plan.save` noted of it; of another file, nothing."""
    kernels = notes.get("kernels") if isinstance(notes, dict) else None
    if not isinstance(kernels, dict):
        return None
    known = {kernel: its for kernel, its in kernels.items() if isinstance(its, dict)}
    sizes = {k: its["weights"] for k, its in known.items() if isinstance(its.get("weights"), int)}
    rates = {kernel: its["rate"] for kernel, its in known.items() if "rate" in its}
    if isinstance(config.get("levels"), dict):
        return PlannedLevels(config["levels"], sizes)
    if not rates:
        return None
    levels = notes.get("levels")
    if not isinstance(levels, dict):
        raise ValueError(
            f"Expected `{NOTES}` with `levels` by paths of kernels. Received: {levels!r}"
        )
    return RatedLevels(path, levels, rates, sizes)


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
