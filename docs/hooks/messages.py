"""The messages that the package raises, from its source, for the page `troubleshooting.md`.

A hook of MkDocs: a line `<!-- messages: cli models/sharing -->` becomes the list of what these modules
or folders say, each once, with `…` for what differs from case to case. A module that is named elsewhere
is left out of its folder.
"""

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "keras_qareg"
MARK = re.compile(r"<!-- messages: (.+?) -->")
GAP = "…"
# Calls that make a message: classes of errors by the end of their name, these, and warnings.
_OTHERS = ("Misfit", "NoIntegerForm", "Unmet", "warn")
# Errors that Python itself asks for: no user sees them.
_NOT_FOR_USERS = ("AttributeError", "NotImplementedError")


def template(node: ast.expr) -> str:
    """A text as the source has it, with a gap for each value that is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return GAP


def _texts(tree: ast.AST) -> Iterator[str]:
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings and isinstance(node, ast.Constant):
            continue
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name.endswith("Error") or name in _OTHERS:
                yield from map(template, [] if name in _NOT_FOR_USERS else node.args[:1])
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            # Those that a function makes for others to raise.
            text = template(node)
            if text.startswith("Expected "):
                yield text


def messages(source: str) -> list[str]:
    """The messages of one file, each once, in the order of the alphabet."""
    found = {re.sub(rf"{GAP}+", GAP, text).strip() for text in _texts(ast.parse(source))}
    # Without words there is no message of ours in it; a beginning is a part of a longer one.
    worded = {t for t in found if t.startswith("Expected ") or len(re.findall("[a-z]{2,}", t)) > 2}
    whole = [t for t in worded if not any(o != t and o.startswith(t) for o in worded)]
    return sorted(whole)


def files(name: str) -> list[Path]:
    """The file of a module, or those of a folder: `models/sharing`, `models`."""
    module = (PACKAGE / name).with_suffix(".py")
    found = [module] if module.exists() else sorted((PACKAGE / name).rglob("*.py"))
    if not found:
        raise ValueError(f"Expected a module or folder of keras_qareg. Received: {name}")
    return found


def owners(markdown: str) -> dict[Path, str]:
    """The name on the page under which each file stands: of several, the longest."""
    names = sorted(" ".join(MARK.findall(markdown)).split(), key=len)
    return {path: name for name in names for path in files(name)}


def filled(markdown: str) -> str:
    """A page with lists of messages where its marks were."""
    owner = owners(markdown)

    def listed(mark: re.Match[str]) -> str:
        here = [path for path, name in owner.items() if name in mark[1].split()]
        texts = sorted({text for path in here for text in messages(path.read_text())})
        items = (re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text)) for text in texts)
        return "\n".join(
            ['<ul class="messages">', *(f"<li>{item}</li>" for item in items), "</ul>"]
        )

    return MARK.sub(listed, markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return filled(markdown)
