"""Docstrings as mkdocstrings expects them; an extension of Griffe, which reads them.

Ours have examples below the line `Example:`, not indented, so that they read well in an editor; and the
address of a page of the site, which becomes a link between pages.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

try:
    from griffe import Extension
except (
    ImportError
):  # tests take the functions alone, where the packages of the site are not installed
    Extension = object

_EXAMPLE = re.compile(r"^Example:\n\n(.+?)(?=^[A-Z]\w+:$|^See also: |\Z)", flags=re.M | re.S)
_SEE = re.compile(r"^See also: (\S+)$", flags=re.M)
_SETTINGS = (Path(__file__).parents[2] / "mkdocs.yml").read_text()
SITE = re.search(r"^site_url: (\S+)$", _SETTINGS, flags=re.M)[1]


def page_of(text: str) -> tuple[str, str] | None:
    """The page of the site that a docstring names, and the place in it, which may be empty."""
    found = _SEE.search(text)
    if found is None or not found[1].startswith(SITE):
        return None
    page, _, place = found[1].removeprefix(SITE).partition(".html")
    return page, place.removeprefix("#")


def rewritten(text: str) -> str:
    """A docstring with the section `Examples:` for `Example:`, and a link to the page that it names."""
    text = _EXAMPLE.sub(
        lambda found: "Examples:\n" + textwrap.indent(found[1].rstrip(), "    ") + "\n\n", text
    )
    if found := page_of(text):
        page, place = found
        words = ": ".join(part for part in (page, place.replace("-", " ")) if part)
        # The reference is a folder of the site.
        text = _SEE.sub(f"See also: [{words}](../{page}.html{'#' * bool(place)}{place})", text)
    return text


class Rewritten(Extension):
    """Rewrites every docstring."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = rewritten(obj.docstring.value)
