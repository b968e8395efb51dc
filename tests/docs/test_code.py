"""The code blocks of README and docs run, in the order of each page; so do the tutorials.

A comment before a block that cannot run here says why: `<!-- not run: needs two machines -->`.
"""

import contextlib
import io
import os
import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

import keras_qareg as qareg
from keras_qareg.cli import main
from tests.docs.test_pages import PAGES, SETUP, TUTORIALS
from tests.helpers import ROOT, digits

pytestmark = pytest.mark.one_backend

FENCE = re.compile(r"(?:<!-- not run: (.+) -->\n)?^```(\w*)\n(.*?)^```$", flags=re.M | re.S)
# Programs that commands of ours hand files to, and words of the shell.
ELSEWHERE = ("vela", "export", "for", "do", "done")
BLOCKS = {
    str(path.relative_to(ROOT)): [match.groups() for match in FENCE.finditer(path.read_text())]
    for path in (ROOT / "README.md", *PAGES)
}
# These train, plan or convert several times; all run with `make test-slow`.
LONG = {
    f"docs/{name}.md"
    for name in ("ci", "command", "concepts", "coremltools", "index", "integer", "npu", "tfmot")
}
QUICK = ("custom_layers",)
# A page runs some of the blocks of another: once is enough.
seen: set[str] = set()


@pytest.fixture(scope="module")
def trained():
    """A network for digits with layers of the names that the pages use."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
            keras.layers.DepthwiseConv2D(3, padding="same", activation="relu", name="block_1"),
            keras.layers.Conv2D(16, 1, name="block_2"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="fc1"),
            keras.layers.Dense(10, activation="softmax", name="out"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(*digits(512), epochs=4, verbose=0)
    return network


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A folder with the files that pages read, and trainings that are short."""
    x, y = digits(128)
    trained.save(tmp_path / "model.keras")
    np.save(tmp_path / "inputs.npy", x)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "test.npz", x=x, y=y)
    monkeypatch.chdir(tmp_path)
    fit = keras.Model.fit

    def short(model, *arguments, **options):
        options["epochs"] = min(options.get("epochs", 1), 2)
        return fit(model, *arguments, **{**options, "verbose": 0})

    monkeypatch.setattr(keras.Model, "fit", short)
    return tmp_path


def names(model):
    """What the blocks of pages use without saying where it comes from."""
    x, y = digits(128)
    return {
        **{"keras": keras, "np": np, "qareg": qareg, "Path": Path, "model": model},
        **{"x": x, "y": y, "x_train": x, "y_train": y},
        "mine": keras.models.clone_model(model),
        "shared": qareg.share_weights(model, 16, verbose=0),
        "NearestSquared": qareg.regularizers.NearestSquared,
    }


def commands(block):
    """The commands of a shell block, without comments and with their lines joined."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run_command(words):
    """Runs a command of ours, and looks for what others start."""
    if words[0] == "keras-qareg":
        for option in ("--out", "--json"):
            if option in words:
                Path(words[words.index(option) + 1]).unlink(missing_ok=True)
        # Trained this little, a model may lose too much accuracy for a gate, which is 1.
        assert main(words[1:]) <= ("--max-accuracy-drop" in words), words
    elif words[0] == "make":
        assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text(), words
    elif words[:2] == ["pip", "install"]:
        package, _, extra = words[2].rstrip("]").partition("[")
        assert package == "keras-qareg" and (not extra or extra in SETUP["options.extras_require"])
    elif words[0] == "python" and words[1] == "-m":
        assert find_spec(words[2]), words
    elif words[0] == "python":
        assert (ROOT / words[1]).exists(), words
    else:
        assert words[0] in ELSEWHERE, words


def marked(value, is_long):
    return pytest.param(value, marks=pytest.mark.slow if is_long else [])


@pytest.mark.parametrize("page", [marked(p, p in LONG) for p, blocks in BLOCKS.items() if blocks])
def test_blocks_run(page, trained, place):
    known = names(keras.models.clone_model(trained))
    known["model"].set_weights(trained.get_weights())
    known["model"].compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    for number, (reason, language, block) in enumerate(BLOCKS[page], 1):
        if reason is not None or block in seen:
            continue
        seen.add(block)
        with contextlib.redirect_stdout(io.StringIO()):
            if language == "python":
                exec(compile(block, f"{page}, block {number}", "exec"), known)
            elif language == "sh":
                for words in commands(block):
                    run_command(words)
            elif language == "yaml":
                Path("small.yaml").write_text(block)
                assert yaml.safe_load(block)
            else:
                assert language in ("", "text", "cpp"), f"{page}: a block of {language!r}"


@pytest.mark.parametrize(
    "path", [marked(p, p.stem not in QUICK) for p in TUTORIALS], ids=lambda path: path.stem
)
def test_tutorials_run(path, place, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", keras.backend.backend())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(path))
    assert printed.getvalue()
