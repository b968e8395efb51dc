"""Tutorials: Python files in jupytext's light format, shown with outputs, and as notebooks.

A hook of MkDocs: each `docs/tutorials/NAME.py` becomes the page `tutorials/NAME.md` and the notebook
`tutorials/NAME.ipynb` of the site. It runs in a process of its own; what it gave is kept in
`build/tutorials` until the program or the package changes.
"""

import ast
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
KEPT = ROOT / "build" / "tutorials"


def executed(path: Path) -> Any:
    """The notebook of a tutorial, run in this process, in a folder that is gone afterwards."""
    import jupytext

    notebook = jupytext.read(path, fmt="py:light")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
            cell.outputs, cell.execution_count = _run(cell.source, names), number
    return notebook


def _run(source: str, names: dict[str, Any]) -> list[Any]:
    """Runs a cell; gives what it prints, and its last line's value, as Jupyter does."""
    from nbformat.v4 import new_output

    tree, last = ast.parse(source), None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "<cell>", "exec"), names)
        value = None if last is None else eval(compile(last, "<cell>", "eval"), names)
    outputs = []
    if printed.getvalue():
        outputs.append(new_output("stream", name="stdout", text=printed.getvalue()))
    if value is not None:
        outputs.append(new_output("execute_result", data=_shown(value), execution_count=None))
    return outputs


def _shown(value: Any) -> dict[str, str]:
    if not hasattr(value, "savefig"):
        return {"text/plain": repr(value)}
    import base64

    picture = io.BytesIO()
    value.savefig(picture, format="png")
    return {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "figure"}


def notebook_of(path: Path) -> Any:
    """The notebook with outputs: as it was kept, or run anew."""
    import nbformat

    digest = hashlib.sha256(path.read_bytes())
    for source in sorted((ROOT / "keras_qareg").rglob("*.py")):
        digest.update(source.read_bytes())
    kept = KEPT / f"{path.stem}-{digest.hexdigest()[:16]}.ipynb"
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, __file__, str(path), str(kept)]
        # Which backend is for the tutorial to say.
        known = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
        known |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, capture_output=True, text=True, env=known)
        if done.returncode:
            raise RuntimeError(f"Expected {path.name} to run. Received: {done.stderr[-2000:]}")
    return nbformat.read(kept, as_version=4)


def page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and the pictures of it by their file names."""
    import base64

    links = " · ".join(
        f'[{what}]({name}.{ending}){{ download="{name}.{ending}" }}'
        for what, ending in (("Notebook", "ipynb"), ("Python file", "py"))
    )
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            if len(parts) == 1:
                parts.append(links)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                file = f"{name}_{len(pictures)}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                # The line before the code says what the figure shows.
                parts.append(f"![What the lines above draw]({file})")
            else:
                text = output.get("text") or data["text/plain"]
                parts.append(f"```{{.text .output}}\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def on_files(files: Any, config: Any, **_: Any) -> Any:
    import nbformat
    from mkdocs.structure.files import File

    for path in sorted(FOLDER.glob("*.py")):
        notebook = notebook_of(path)
        markdown, pictures = page(notebook, path.stem)
        made = {f"{path.stem}.ipynb": nbformat.writes(notebook), **pictures}
        for name, content in ((f"{path.stem}.md", markdown), *made.items()):
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


if __name__ == "__main__":
    import nbformat

    nbformat.write(executed(Path(sys.argv[1])), sys.argv[2])
