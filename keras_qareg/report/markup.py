"""HTML and SVG, in which all text that is not markup is escaped: names are the user's."""

from __future__ import annotations

import html
import math
import re
from typing import Any

DASH, TIMES = "\u2013", "\u00d7"
# Elements that have no end.
_EMPTY = {"br", "link", "meta", "wbr"}
# What HTML cannot hold: control characters, and halves of characters.
_IMPOSSIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def escaped(content: Any) -> Markup:
    """Anything as HTML: markup as it is, all else as text."""
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(_IMPOSSIBLE.sub("\ufffd", str(content))))


def tag(element: str, *content: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        element: Its name.
        *content: What is in it; what is `None` is left out.
        **attributes: Its attributes, `_` for `-` in names, and one at the end for names that Python
            has. What is `None` or `False` is left out; `True` has no value.

    Example:

    >>> tag("td", "a < b", class_="name", data_key=3, hidden=False)
    '<td class="name" data-key="3">a &lt; b</td>'
    """
    words = [element]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        if value in (math.inf, -math.inf):  # as JavaScript writes it
            value = f"{'-' if value < 0 else ''}Infinity"
        name = name.removesuffix("_").replace("_", "-")
        words.append(name if value is True else f'{name}="{escaped(value)}"')
    start = f"<{' '.join(words)}>"
    if element in _EMPTY:
        return Markup(start)
    return Markup(f"{start}{joined(*content)}</{element}>")


def joined(*parts: Any) -> Markup:
    """Parts one after the other; what is `None` is left out."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def name(text: Any) -> Markup:
    """A name of the user's, whose direction of writing does not change what stands beside it.

    Lines break behind its `/` and `_`.
    """
    parts = [part for part in re.split("(?<=[/_])", str(text)) if part]
    broken = [piece for part in parts for piece in (tag("wbr"), part)][1:]
    return tag("bdi", *broken, class_="name")


def number(value: float, digits: int = 3) -> str:
    """A number in few digits: `0.0123`, `1.2e-05`, `1,234`."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.{digits}g}"
