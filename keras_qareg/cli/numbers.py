"""Numbers in words of the command line, and their ranges."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from keras_qareg.cli.messages import CommandError

_LARGEST = 2**32 - 1
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kM]?)B?")
_FACTORS = {"": 1, "k": 1000, "M": 1_000_000}

# These raise errors of their own: argparse adds words of its own to those that it knows.


def integer(name: str, least: int, most: int = _LARGEST) -> Callable[[str], int]:
    """What reads an integer in a range.

    Args:
        name: The word of the command line before it.
        least: The least.
        most: The most.
    """

    def parse_integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if least <= value <= most:
            return value
        reach = f"from {least} to {most}" if most < _LARGEST else f"of {least} or more"
        raise CommandError(f"Expected {name} to be an integer {reach}. Received: {text}")

    return parse_integer


def number(name: str, reach: str, inside: Callable[[float], bool]) -> Callable[[str], float]:
    """What reads a finite number in a range.

    Args:
        name: The word of the command line before it.
        reach: The range, in words.
        inside: Whether a number is in it.
    """

    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and inside(value):
            return value
        raise CommandError(f"Expected {name} to be a number {reach}. Received: {text}")

    return parse_number


def size(name: str) -> Callable[[str], int]:
    """What reads a number of bytes, also in thousands (`k`) and millions (`M`).

    Args:
        name: The word of the command line before it.
    """

    def parse_size(text: str) -> int:
        found = _SIZE.fullmatch(text)
        value = Fraction(found[1]) * _FACTORS[found[2]] if found else Fraction(0)
        if value.denominator == 1 and value > 0:
            return int(value)
        raise CommandError(
            f"Expected {name} to be a number of bytes such as 60000, 60k (60,000) or 1.5M. "
            f"Received: {text}"
        )

    return parse_size
