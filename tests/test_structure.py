"""Rules that hold for the whole package: imports point one way, files are short, examples run."""

import ast
import doctest
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import keras_qareg

PACKAGE = Path(keras_qareg.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(PACKAGE)], prefix="keras_qareg.")
)
# Each part may import from those before it, and from its own line.
ORDER = [
    [
        "acceleration",
        "replicas",
        "penalties",
        "centroids",
        "grids",
        "codebook",
        "levels",
        "serialization",
    ],
    ["regularizers", "quantizers"],
    ["layers"],
    ["cloning"],
    ["selection"],
    ["models"],
    ["callbacks", "optimizers", "report", "plots", "export"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def imports_of(path):
    """Dotted names of all that a file imports, and whether at the top of the file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name, at_top in imports_of(path):
        assert not name.startswith("keras.src"), f"{path.name} imports {name}"
        if name.split(".")[0] == "tensorflow":
            allowed = path.name in ("litert.py", "acceleration.py", "replicas.py")
            assert allowed and not at_top, f"{path.name} imports {name}"
        if name.split(".")[0] in (
            "matplotlib",
            "sklearn",
            "ai_edge_litert",
            "tensorboardX",
            "constriction",
            "pandas",
        ):
            guarded = path.name == "plots.py" and name == "matplotlib.figure.Figure"
            assert guarded or not at_top, f"{path.name} imports {name} before it is used"
        if name.startswith("keras_qareg.") and part != "__init__":
            imported = name.split(".")[1]
            assert RANK[imported] <= RANK[part], f"{part} imports {imported}"


@pytest.mark.parametrize(
    "path", sorted([*PACKAGE.rglob("*.py"), *ROOT.glob("tests/*.py")]), ids=lambda p: p.name
)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    is_test = path.parent.name == "tests"
    assert len(text.splitlines()) <= (600 if is_test else 420)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and not is_test:
            documented = ast.get_docstring(node)
            start = node.body[1].lineno if documented and len(node.body) > 1 else node.lineno
            assert node.end_lineno - start < 45, f"{path.name}: {node.name} is long"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    import tempfile

    import keras
    import numpy as np
    from keras import ops

    if keras.backend.backend() != "tensorflow" and name.endswith("litert"):
        pytest.skip("LiteRT export needs the TensorFlow backend")
    module = importlib.import_module(name)
    names = {"keras": keras, "np": np, "ops": ops, "Path": Path, "tempfile": tempfile}
    found = doctest.testmod(module, extraglobs={**names, "qareg": keras_qareg})
    assert found.failed == 0


def test_every_public_name_is_documented():
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__, name
        for label, member in vars(module).items():
            if label.startswith("_") or getattr(member, "__module__", None) != name:
                continue
            if callable(member):
                assert member.__doc__, f"{name}.{label}"


def test_importing_is_light():
    program = (
        "import sys, keras; before = set(sys.modules); import keras_qareg;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new & {'tensorflow', 'sklearn', 'matplotlib', 'pandas', 'ai_edge_litert'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
