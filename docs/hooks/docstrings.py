"""Examples of docstrings as mkdocstrings expects them; an extension of Griffe, which reads them.

Ours stand below the line `Example:`, not indented, so that they read well in an editor.
"""

import re
import textwrap
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:\n\n(.+?)(?=^[A-Z]\w+:$|\Z)", flags=re.M | re.S)


class Examples(griffe.Extension):
    """Turns `Example:` into the section `Examples:`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(
                lambda found: "Examples:\n" + textwrap.indent(found[1], "    "), obj.docstring.value
            )
