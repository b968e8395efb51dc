"""Rules that hold for the whole package: imports point one way, files are short, examples run."""

import ast
import doctest
import graphlib
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import keras_qareg
from docs import draw

PACKAGE = Path(keras_qareg.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], prefix="keras_qareg.")
    if module.name != "keras_qareg.__main__"
)
# Each part may import from those before it, and from its own line; the same holds inside some folders.
FLOORS = {
    "": [
        ["__version__", "numerics"],
        ["choices", "files", "inputs", "settings"],
        ["data"],
        ["regularizers", "quantizers"],
        ["layers"],
        ["models"],
        ["pruning"],
        ["callbacks", "config", "optimizers", "summaries", "plots", "plans"],
        ["export"],
        ["report"],
        ["allocation"],
        ["options"],
        ["compressing"],
        ["cli"],
        ["__main__", "__init__"],
    ],
    "models": [
        ["compiling", "graphs", "saving", "accounting", "walking", "surroundings"],
        ["trial"],
        ["legacy"],
        ["cloning", "flattening"],
        ["operators"],
        ["splitting", "ranges"],
        ["selection"],
        ["reading"],
        ["matching"],
        ["configuring"],
        ["wrapping", "converting", "stripping", "recalibrating", "calibrating"],
        ["activations"],
        ["shrinking"],
        ["clustered"],
        ["clustered_warnings"],
        ["steps"],
        ["sharing"],
        ["distilling"],
        ["teaching"],
        ["training"],
        ["__init__"],
    ],
    "plots": [["style"], ["curves", "histograms"], ["__init__"]],
    "regularizers": [["base"], ["fixed", "learned"], ["__init__"]],
    "shrinking": [["rules"], ["tracing"], ["removing"], ["__init__"]],
    "legacy": [
        ["source", "layers", "operations", "comparing", "training", "weights"],
        ["graphs", "objects"],
        ["importing"],
        ["__init__"],
    ],
    "cli": [
        ["messages", "process"],
        ["backend", "paths"],
        ["numbers", "options", "arrays", "opening", "gate", "words"],
        ["writing", "records"],
        ["compress"],
        ["commands"],
        ["entry"],
        ["__init__"],
    ],
    "allocation": [
        ["costs", "sensitivity", "fitting"],
        ["network"],
        ["solving", "files"],
        ["searching"],
        ["rates"],
        ["allocating"],
        ["__init__"],
    ],
    "report": [
        ["markup"],
        ["figures"],
        ["parts"],
        ["exported", "kernels", "planned"],
        ["files"],
        ["page"],
        ["__init__"],
    ],
    "export": [["packing"], ["litert", "archive"], ["verification"], ["__init__"]],
}
RANKS = {
    folder: {name: rank for rank, names in enumerate(floors) for name in names}
    for folder, floors in FLOORS.items()
}
HEAVY = (
    "matplotlib",
    "sklearn",
    "ai_edge_litert",
    "tensorboardX",
    "constriction",
    "pandas",
    "torch",
    "tf_keras",
    "tensorflow_model_optimization",
)
FILES = sorted(PACKAGE.rglob("*.py"))
# What a folder of programs may import from the other one.
SHARED = {"examples": set(), "benchmarks": {"examples.data", "examples.study", "examples.training"}}
PROGRAMS = [path for folder in SHARED for path in sorted(ROOT.glob(f"{folder}/*.py"))]


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


def parts_of(path):
    """The place of a file in the package: `("models", "cloning")`."""
    return path.relative_to(PACKAGE).with_suffix("").parts


def points_down(importer, imported):
    """Whether one part of the package may import another, by the floors that it has."""
    folder = ""
    for mine, other in zip(importer, imported, strict=False):
        if mine != other:
            ranks = RANKS.get(folder)
            return ranks is None or ranks.get(other, ranks["__init__"]) <= ranks[mine]
        folder = mine
    return True


@pytest.mark.one_backend
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    mine = parts_of(path)
    for name, at_top in imports_of(path):
        top, _, rest = name.partition(".")
        assert not name.startswith("keras.src"), f"{path.name} imports {name}"
        if top in ("tensorflow", "jax", "torch"):
            allowed = mine[0] == "numerics" and mine[-1] in ("compiled", "replicas")
            allowed |= top == "tensorflow" and mine[:2] == ("export", "litert")
            assert allowed and not at_top, f"{path.name} imports {name}"
        if top in HEAVY:
            guarded = path.parent.name == "plots" and name.startswith("matplotlib.")
            assert guarded or not at_top, f"{path.name} imports {name} before it is used"
        assert name != "sklearn", "scikit-learn is for examples and tests"
        if top == "keras_qareg" and rest:
            assert points_down(mine, rest.split(".")), f"{'/'.join(mine)} imports {rest}"


@pytest.mark.one_backend
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_examples_know_no_benchmarks_and_benchmarks_little_of_examples(path):
    folder = path.parent.name
    imported = {".".join(name.split(".")[:2]) for name, _ in imports_of(path)}
    other = {name for name in imported if name.split(".")[0] in SHARED.keys() - {folder}}
    assert other <= SHARED[folder]


@pytest.mark.one_backend
def test_there_is_no_circle():
    modules = {".".join(("keras_qareg", *parts_of(path))): path for path in FILES}
    graph = {
        module: {
            target
            for name, _ in imports_of(path)
            for target in (name, name.rpartition(".")[0])
            if target in modules
        }
        for module, path in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises where there is one


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "path", [*FILES, *PROGRAMS, *sorted(ROOT.glob("tests/**/*.py"))], ids=lambda p: p.name
)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    is_test = ROOT / "tests" in path.parents
    assert len(text.splitlines()) <= (600 if is_test else 400)
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

    if keras.backend.backend() != "tensorflow" and name.endswith("litert.convert"):
        pytest.skip("LiteRT export needs the TensorFlow backend")
    module = importlib.import_module(name)
    names = {"keras": keras, "np": np, "ops": ops, "Path": Path, "tempfile": tempfile}
    found = doctest.testmod(module, extraglobs={**names, "qareg": keras_qareg})
    assert found.failed == 0


@pytest.mark.one_backend
def test_every_public_name_is_documented():
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__, name
        for label, member in vars(module).items():
            if label.startswith("_") or getattr(member, "__module__", None) != name:
                continue
            if callable(member):
                assert member.__doc__, f"{name}.{label}"


@pytest.mark.one_backend
def test_the_picture_shows_every_module(tmp_path):
    """`docs/figures/floors.svg`, of which `docs/architecture.md` tells."""
    draw.floors(tmp_path / "floors.svg")
    drawn = (ROOT / "docs" / "figures" / "floors.svg").read_text()
    assert (tmp_path / "floors.svg").read_text() == drawn, "run `python -m docs.draw floors`"
    outside = {path.stem for path in FILES if len(parts_of(path)) < 3 and path.stem != "__init__"}
    assert outside <= set(re.findall(r">([a-z_]+)</text>", drawn))
