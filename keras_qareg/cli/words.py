"""Which words of `compress` go together: what does not is refused before Keras is imported."""

from __future__ import annotations

import argparse
from typing import Any

from keras_qareg.cli.messages import CommandError

ARCHIVE = ".qareg"
_TRAINING = ("epochs", "learning_rate", "method")
# What only a .tflite has, and what is meant where nothing is said.
_OF_TFLITE = {
    "weights": "auto",
    "decode_each_run": False,
    "input_shape": None,
    "input_type": "float32",
    "output_type": "float32",
    "npu": None,
    "c_array": False,
    "report": False,
}
_WITHOUT_LEVELS = ("float32", "float16")
_OF_WNQ = (2, 4, 8, 16)


def budget_of(options: argparse.Namespace) -> str | None:
    """The word of the budget that was given."""
    words = ("target_bytes", "target_ratio")
    return next((_word(name) for name in words if getattr(options, name) is not None), None)


def check_words(options: argparse.Namespace, its: dict[str, Any]) -> None:
    """Whether the words of `compress` go together.

    Args:
        options: The words.
        its: What `sharing` made of them.

    Raises:
        CommandError: If they do not.
    """
    budget = budget_of(options)
    if options.dry_run and budget is None:
        raise CommandError(
            "Expected --target-bytes or --target-ratio with --dry-run, which shows their plan. "
            "Received: neither"
        )
    if options.data is None:
        _check_without_data(options, budget)
    if options.max_accuracy_drop is not None and options.validation_data is None:
        raise CommandError(
            "Expected --validation-data, with y, with --max-accuracy-drop. Received: none"
        )
    if options.out.suffix == ARCHIVE:
        others = [name for name, usual in _OF_TFLITE.items() if getattr(options, name) != usual]
        if others:
            raise CommandError(
                f"Expected --out with a name that ends in '.tflite', with {_word(others[0])}. "
                f"Received: {options.out}"
            )
    elif budget is not None and options.weights in _WITHOUT_LEVELS:
        raise CommandError(
            f"Expected --weights that few levels make smaller, such as auto or smallest, with {budget}. "
            f"Received: {options.weights}"
        )
    if its["group_size"] is not None and options.data is not None and options.method != "kmeans":
        raise CommandError(
            "Expected --method kmeans with --group-size: others train one table a kernel. Received: "
            f"{options.method or 'auto'}"
        )
    if options.method == "wnq":
        _check_wnq(options, its, budget)


def _check_without_data(options: argparse.Namespace, budget: str | None) -> None:
    alone = () if options.validation_data else ("batch_size", "loss")
    given = [_word(name) for name in (*_TRAINING, *alone) if getattr(options, name) is not None]
    if given:
        raise CommandError(
            f"Expected --data to train on, with {given[0]}. Received: {given[0]} alone"
        )
    if budget is not None:
        raise CommandError(
            f"Expected --data with {budget}: its inputs tell what few levels harm. Received: none"
        )
    if options.validation_data is not None and options.max_accuracy_drop is None:
        raise CommandError(
            "Expected --data or --max-accuracy-drop, with --validation-data. Received: neither"
        )


def _check_wnq(options: argparse.Namespace, its: dict[str, Any], budget: str | None) -> None:
    levels = its["levels"]
    if budget is not None or not isinstance(levels, int) or levels not in _OF_WNQ:
        given = budget or (f"--levels {levels}" if options.levels else f"--config with {levels}")
        raise CommandError(
            f"Expected --levels of 2, 4, 8 or 16 with --method wnq. Received: {given}"
        )
    config = {} if options.config is None else options.config[1]
    for name in ("table", "scale"):
        if getattr(options, name) is not None or name in config:
            raise CommandError(
                f"Expected no {name} with --method wnq, which learns its values. Received: {its[name]}"
            )


def _word(name: str) -> str:
    return f"--{name.replace('_', '-')}"
