"""What is refused before Keras is imported, and in which words."""

import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.one_backend


@pytest.fixture
def files(saved):
    """Files of many kinds beside the model."""
    values = np.zeros((5, 3))
    arrays = {
        "empty": {"x": values[:0], "y": values[:0]},
        "scalar": {"x": np.zeros(()), "y": values},
        "short": {"x": values, "y": values[:4], "sample_weight": np.zeros(5)},
        "inputs": {"x": values, "sample_weight": np.zeros(5)},
        "none": {},
        "objects": {"x": np.array([None, 1], object), "y": np.zeros(2)},
    }
    for name, found in arrays.items():
        np.savez(saved / f"{name}.npz", **found)
    np.save(saved / "one.npy", values)
    (saved / "table.csv").write_text("a,b\n1,2\n")
    (saved / "nothing.npz").touch()
    (saved / "broken.npz").write_bytes((saved / "data.npz").read_bytes()[:900])
    (saved / "broken.keras").write_bytes(b"PK\x03\x04 but no archive")
    (saved / "model.zip").write_bytes((saved / "model.keras").read_bytes())
    (saved / "m.tflite").write_bytes(bytes(4) + b"TFL3" + bytes(8))
    (saved / "m.qareg").write_bytes(b"\x89KQAREG\n" + bytes(8))
    (saved / "level.yaml").write_text("level: 4")
    (saved / "levels.yaml").write_text("levels: {fc: 4}")
    (saved / "table.yaml").write_text("table: even")
    (saved / "bits.yaml").write_text("bits: 2\nlevels: 4")
    (saved / "saved_model").mkdir()
    (saved / "saved_model" / "saved_model.pb").touch()
    return saved


def cases(files):
    """Words of command lines, and what is said of each."""
    model, out = files / "model.keras", files / "out.tflite"
    compress = ["compress", model, "--out", out]
    integers = {
        ("--epochs", "0"): "of 1 or more",
        ("--epochs", "-3"): "of 1 or more",
        ("--epochs", "two"): "of 1 or more",
        ("--levels", "1000"): "from 2 to 256",
        ("--levels", "1"): "from 2 to 256",
        ("--levels", "4.5"): "from 2 to 256",
        ("--seed", "-1"): "of 0 or more",
    }
    for (name, value), reach in integers.items():
        said = f"Expected {name} to be an integer {reach}. Received: {value}"
        yield [*compress, f"{name}={value}"], said
    for name in ("--weights", "--table", "--scale", "--method"):
        yield [*compress, name, "int3"], None
    yield [*compress, "--npu", "coral"], None
    npu = (
        "Expected --weights int8 and --data with --npu, which takes full-integer files. Received: "
    )
    yield [*compress, "--npu", "ethos-u55-128"], f"{npu}--weights auto without --data"
    yield (
        ["export", model, "--out", out, "--npu", "ethos-u55-128", "--weights", "int8"],
        f"{npu}--weights int8 without --data",
    )
    configurations = {
        "absent.yaml": "--config: Expected a YAML file. Received: {}, which does not exist",
        "table.csv": "--config: Expected a YAML file, .yaml or .yml. Received: {}",
        "level.yaml": "--config: {}: Expected a configuration with some of the keys ['levels', "
        "'regularizer', 'table', 'scale', 'group_size', 'bits', 'activation_bits', "
        "'target_sparsity']. Received "
        "unknown keys: 'level' (did you mean 'levels'?)",
        "bits.yaml": "Expected --config with levels, table, scale, group_size alone. "
        "Received: {} with bits",
    }
    for name, said in configurations.items():
        yield [*compress, "--config", files / name], said.format(files / name)
    yield ["compress", model], "the following arguments are required: --out (see `keras-qareg "
    shapes = "Expected --input-shape with sizes such as 224x224x3, or a=8x8. Received: {}"
    for text in ("8x", "a=", "0x3", "a=8x8=4", "3.5"):
        yield [*compress, "--input-shape", text], shapes.format(text)
    yield (
        [*compress, "--input-shape", "a=8", "4"],
        "Expected --input-shape with a name of its own for each shape, or without names. Received: a, "
        "none",
    )
    how = "Write one with numpy.savez(FILE, x=..., y=...)"
    kinds = {
        "one.npy": "a .npy file of one array",
        "table.csv": "a file of another kind",
        "nothing.npz": "an empty file",
        "model.keras": "a .keras file",
        "broken.npz": "a file of another kind",
        "saved_model": "a TensorFlow SavedModel",
    }
    for name, kind in kinds.items():
        said = f"Expected a .npz file for --data. Received: {files / name}, which is {kind}. {how}"
        yield [*compress, "--data", files / name], said
    for name, said in {
        "absent.npz": "Expected a .npz file for --data. Received: {}, which does not exist",
        "empty.npz": "Expected examples in array x of --data. Received: {} with x of shape (0, 3)",
        "scalar.npz": "Expected examples in array x of --data. Received: {} with x of shape ()",
        "short.npz": "Expected as many examples in each array of --data. Received: {} with 5 in x, "
        "4 in y, 5 in sample_weight",
        "inputs.npz": "Expected --data to hold y, the targets. Received: {}, which holds x, "
        "sample_weight",
        "none.npz": "Expected --data to hold x. Received: {}, which holds nothing",
        "objects.npz": "Expected a readable .npz file for --data. Received: {} (Object arrays cannot "
        "be loaded when allow_pickle=False)",
    }.items():
        yield [*compress, "--data", files / name], said.format(files / name)
    yield from combinations(files, model, out)
    yield from models(files, out)
    yield from outputs(files, model)


def combinations(files, model, out):
    """The same of words of `compress` that do not go together."""
    data = ("--data", files / "data.npz")
    for words, said in {
        (
            "--target-bytes",
            "60KiB",
        ): "Expected --target-bytes to be a number of bytes such as 60000, "
        "60k (60,000) or 1.5M. Received: 60KiB",
        ("--target-bytes", "1.5"): None,
        ("--target-bytes", "0k"): None,
        (
            "--target-ratio",
            "1.5",
        ): "Expected --target-ratio to be a number above 0, up to 1. Received: 1.5",
        ("--target-ratio", "0"): None,
        (
            "--learning-rate",
            "nan",
        ): "Expected --learning-rate to be a number above 0. Received: nan",
        ("--max-accuracy-drop", "-1"): "Expected --max-accuracy-drop to be a number from 0 to 100. "
        "Received: -1",
        ("--target-bytes", "6k", "--levels", "4"): "Expected one of --levels, --target-bytes and "
        "--target-ratio. Received: --levels and --target-bytes",
        ("--target-bytes", "6k", "--config", files / "levels.yaml"): "Expected --target-bytes or "
        "--config with levels. Received: both",
        (
            "--target-bytes",
            "6k",
        ): "Expected --data with --target-bytes: its inputs tell what few levels "
        "harm. Received: none",
        (
            "--dry-run",
        ): "Expected --target-bytes or --target-ratio with --dry-run, which shows their "
        "plan. Received: neither",
        (
            "--method",
            "kmeans",
        ): "Expected --data to train on, with --method. Received: --method alone",
        ("--validation-data", files / "data.npz"): "Expected --data or --max-accuracy-drop, with "
        "--validation-data. Received: neither",
        (
            "--max-accuracy-drop",
            "1",
        ): "Expected --validation-data, with y, with --max-accuracy-drop. Received: none",
        (*data, "--validation-data", files / "empty.npz"): "Expected examples in array x of "
        f"--validation-data. Received: {files}/empty.npz with x of shape (0, 3)",
        (
            *data,
            "--target-ratio",
            ".3",
            "--weights",
            "float16",
        ): "Expected --weights that few levels "
        "make smaller, such as auto or smallest, with --target-ratio. Received: float16",
        (
            *data,
            "--method",
            "wnq",
            "--levels",
            "5",
        ): "Expected --levels of 2, 4, 8 or 16 with --method wnq. Received: --levels 5",
        (
            *data,
            "--method",
            "wnq",
            "--target-ratio",
            ".3",
        ): "Expected --levels of 2, 4, 8 or 16 with --method wnq. Received: --target-ratio",
        (
            *data,
            "--method",
            "wnq",
            "--config",
            files / "levels.yaml",
        ): "Expected --levels of 2, 4, 8 or "
        "16 with --method wnq. Received: --config with {'fc': 4}",
        (
            *data,
            "--method",
            "wnq",
            "--config",
            files / "table.yaml",
        ): "Expected no table with --method wnq, which learns its values. Received: even",
        (
            *data,
            "--group-size",
            "8",
        ): "Expected --method kmeans with --group-size: others train one table "
        "a kernel. Received: auto",
        ("--json", out): f"Expected --json to be another file than --out. Received: {out}",
        (
            "--json",
            files / "data.npz",
        ): f"Expected a new file for --json. Received: {files}/data.npz, "
        "which exists. Add --force to replace it",
    }.items():
        yield ["compress", model, "--out", out, *words], said
    archive = files / "out.qareg"
    yield (
        ["compress", model, "--out", archive, "--weights", "int8"],
        f"Expected --out with a name that ends in '.tflite', with --weights. Received: {archive}",
    )


def models(files, out):
    """The same of models."""
    said = "Expected a Keras model file (.keras or .h5). Received: {}, which is "
    for name, kind in {
        "m.tflite": "a .tflite file, from which no Keras model can be made. Pass the model that it "
        "was made from; `keras-qareg inspect` shows what is in it",
        "m.qareg": "an archive of keras-qareg. Make a model of it first: `keras-qareg unarchive {} "
        "--out MODEL.keras`",
        "broken.keras": "a file of another kind",
        "data.npz": "a .npz file",
        ".": "a folder",
    }.items():
        path = files / name
        yield ["export", path, "--out", out], (said + kind).format(path, path)
    yield ["inspect", files / "no.keras"], f"Expected a file. Received: {files}/no.keras, which "
    yield ["archive", files / "no.keras", "--out", out], "Expected a Keras model file. Received: "
    yield (
        ["inspect", files / "model.zip"],
        "Expected a file name that ends in '.keras', as Keras does of a .keras file. Received: "
        f"{files}/model.zip. Rename it",
    )


def outputs(files, model):
    """The same of files to write."""
    absent = files / "absent"
    yield (
        ["compress", model, "--out", absent / "m.tflite"],
        f"Expected a folder that exists. Received: {absent}, which does not",
    )
    yield (
        ["export", model, "--out", files / "m.bin"],
        f"Expected a file name that ends in '.tflite'. Received: {files}/m.bin",
    )
    yield (
        ["export", model, "--out", files / "m.tflite"],
        "Expected a new file for --out. Received: ",
    )


def test_in_one_line_and_nothing_is_written(files, refused):
    before = sorted(files.iterdir())
    for words, said in cases(files):
        found = refused(*words)
        assert said is None or found == said or (said.endswith(" ") and found.startswith(said)), (
            words
        )
    assert sorted(files.iterdir()) == before


def test_before_keras_is_imported(files):
    words = [[str(word) for word in line] for line, _ in cases(files)]
    program = (
        "import sys\nfrom keras_qareg.cli import main\n"
        f"print({{main(line) for line in {words}}}, 'keras' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "{2} False\n", done.stderr


def test_a_broken_array_is_told(files, refused):
    content = bytearray((files / "data.npz").read_bytes())
    content[2000:2010] = bytes(range(100, 110))
    (files / "flipped.npz").write_bytes(content)
    words = ["compress", files / "model.keras", "--out", files / "out.tflite"]
    found = refused(*words, "--data", files / "flipped.npz")
    assert found.startswith(
        f"Expected a readable .npz file for --data. Received: {files}/flipped.npz ("
    )


@pytest.mark.parametrize(("name", "meant"), [("Y", "y"), ("sample_weights", "sample_weight")])
def test_a_name_that_is_nearly_right_is_told(files, refused, name, meant):
    path = files / "misspelled.npz"
    given = {"x": np.ones((4, 3)), "y": np.ones((4, 2)), name: np.ones((4, 2))}
    np.savez(path, **{key: value for key, value in given.items() if key != meant})
    words = ["compress", files / "model.keras", "--out", files / "out.tflite", "--data", path]
    assert refused(*words) == (
        "Expected the arrays of --data to be named x, y and sample_weight. Received: "
        f"{path}, which holds {name} (did you mean {meant}?)"
    )
