"""A page of the site loads nothing from elsewhere; a hook of MkDocs that refuses one that would."""

import re
from typing import Any

_LOADED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\"(?:https?:)?//[^\"]+"
    r"|<link\b[^>]*\brel=\"(?:stylesheet|preconnect)\"[^>]*\bhref=\"(?:https?:)?//[^\"]+"
)


def on_post_page(output: str, page: Any, **_: Any) -> None:
    if found := _LOADED.search(output):
        raise ValueError(f"Expected a page that loads its own files. Received: {found[0]} ({page})")
