"""What the commands do, in this process."""

import re

import keras
import numpy as np
import pytest

import keras_qareg as qareg
from keras_qareg.cli.arrays import Arrays
from tests.helpers import BACKEND, digits, small_cnn, tensorflow_only


def rows(printed):
    """Kernels and cells of a printed table."""
    lines = [line.split() for line in printed.splitlines() if "/kernel " in line and "  " in line]
    return {cells[0]: cells[1:] for cells in lines if ":" not in cells[0]}


@tensorflow_only
def test_compress_shares_tunes_and_exports(saved, run, monkeypatch):
    monkeypatch.setattr("keras_qareg.models.clustered._MANY_WEIGHTS", 1)  # which would show a bar
    out = saved / "small.tflite"
    words = ["compress", saved / "model.keras", "--levels", 4, "--out", out]
    status, printed, errors = run(*words, "--data", saved / "data.npz", "--epochs", 2)
    assert (status, errors) == (0, "")
    assert printed.startswith(
        f"Training on {saved / 'data.npz'} and sharing weights, at most 4 levels a kernel\n"
    )
    assert "\n1/1 - " in printed and not {"\r", "\b", "\x1b"} & set(printed)
    assert "\nfloat " in printed
    found = rows(printed)
    assert list(found) == ["cnn/conv/kernel", "cnn/fc/kernel", "cnn/out/kernel"]
    assert all(cells[1:3] == ["4", "yes"] and float(cells[4]) > 0.01 for cells in found.values())
    assert f"{out.stat().st_size:,} bytes" in printed
    assert printed.count("int8, 4 values") + printed.count("float32, 4 values") == 3
    more = ("--layers", "conv", "--weights", "float16")
    status, printed, _ = run(*words, "--force", *more)
    assert (
        status == 0
        and "float16" in printed
        and printed.startswith(
            "Sharing weights, at most 4 levels a kernel\nWithout --data weights are shared only; "
            "trained for it, the model would lose less\n"
        )
    )
    assert rows(printed)["cnn/fc/kernel"][1:3] == ["-", "-"]


@tensorflow_only
def test_compress_keeps_the_grids(saved, run):
    words = ["compress", saved / "model.keras", "--table", "even", "--out", saved / "m.tflite"]
    status, printed, errors = run(*words, "--data", saved / "data.npz", "--epochs", 1)
    assert (status, errors) == (0, "") and "at most 16 levels a kernel" in printed
    for cells in rows(printed).values():
        # Nine weights a channel in the convolution: fewer values than are allowed, the same in all.
        assert int(cells[1]) <= 16 and cells[2:-5] in (["a", "channel"], [])
        assert cells[-5] == "yes" and 0 < float(cells[-3]) < 0.05
    assert sum(printed.count(f": {form}, ") for form in ("int8", "int4")) >= 2
    assert printed.count("exact") == 3


@tensorflow_only
def test_compress_takes_tables_and_scales(saved, run):
    words = [
        "compress",
        saved / "model.keras",
        "--out",
        saved / "m.tflite",
        "--weights",
        "codebook",
    ]
    for table, scale, grid in (("float32", "kernel", ["4", "no"]), ("int8", "channel", ["4", "a"])):
        more = ("--levels", 4, "--table", table, "--scale", scale, "--force")
        status, printed, _ = run(*words, *more)
        assert status == 0 and rows(printed)["cnn/fc/kernel"][1:3] == grid


@tensorflow_only
def test_compress_takes_a_configuration(saved, run, refused):
    file = saved / "small.yaml"
    file.write_text("levels: {conv: float, 'f*': 4, '*': 8}")
    words = ["compress", saved / "model.keras", "--out", saved / "m.tflite", "--config", file]
    status, printed, errors = run(*words)
    assert (status, errors) == (0, "") and "fc      Dense      864       4  pattern 'f*'" in printed
    found = rows(printed)
    assert [found[f"cnn/{name}/kernel"][1] for name in ("conv", "fc", "out")] == ["-", "4", "8"]
    assert refused(*words, "--force", "--levels", 4) == (
        "Expected --levels or --config with levels. Received: both"
    )


@tensorflow_only
def test_a_seed_gives_the_same_file_again(saved, run):
    contents, losses = [], []
    for seed in (7, 7, 8):
        words = ["compress", saved / "model.keras", "--out", saved / "m.tflite", "--force"]
        more = ("--data", saved / "data.npz", "--epochs", 1, "--levels", 4, "--seed", seed)
        more += ("--batch-size", 16, "--learning-rate", 0.01, "--method", "kmeans")
        status, printed, _ = run(*words, *more)
        assert status == 0
        losses += re.findall(" loss: ([0-9.]+)", printed)
        contents.append((saved / "m.tflite").read_bytes())
    assert contents[0] == contents[1] and losses[0] == losses[1] != losses[2]


@tensorflow_only
@pytest.mark.parametrize("name", ["lists", "dicts"])
def test_several_inputs_and_outputs_by_their_names(two_of_each, run, refused, name):
    model = two_of_each / f"{name}.keras"
    words = ["compress", model, "--out", two_of_each / "m.tflite", "--epochs", 1, "--levels", 4]
    status, printed, errors = run(*words, "--data", two_of_each / "all.npz")
    assert (status, errors) == (0, "") and "p_loss" in printed
    words = ["export", model, "--out", two_of_each / "int8.tflite", "--weights", "int8"]
    assert run(*words, "--data", two_of_each / "all.npz")[0] == 0
    assert refused(*words, "--force", "--data", two_of_each / "some.npz") == (
        f"Expected --data to hold a, b, the inputs of the model. Received: {two_of_each}/some.npz, "
        "which holds a, p"
    )


@tensorflow_only
def test_compress_of_an_uncompiled_model_needs_a_loss(saved, run, refused):
    small_cnn().save(saved / "bare.keras")
    words = ["compress", saved / "bare.keras", "--out", saved / "a.tflite"]
    words += ["--data", saved / "data.npz", "--epochs", 1]
    assert refused(*words) == (
        f"Expected a compiled model to tune. Received: {saved}/bare.keras without a loss. Name one, "
        "for example --loss sparse_categorical_crossentropy"
    )
    assert "nothing_such" in refused(*words, "--loss", "nothing_such")
    assert run(*words, "--loss", "sparse_categorical_crossentropy")[0] == 0
    words[1] = saved / "model.keras"
    status, _, errors = run(*words, "--force", "--loss", "mse")
    assert (status, errors) == (
        0,
        f"keras-qareg: warning: {saved}/model.keras is compiled with a loss, so --loss is not used\n",
    )


OWN_STEP = """
import keras
class Own(keras.Model):
    def train_step(self, data):
        print("its own step")
        return {"loss": 0.0}
"""


@tensorflow_only
def test_a_step_of_the_user_needs_no_loss(saved, run, monkeypatch):
    (saved / "own.py").write_text(OWN_STEP)
    monkeypatch.syspath_prepend(saved)
    import own

    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
    model = own.Own(inputs, outputs)
    model.compile("sgd")
    model.save(saved / "own.keras")
    words = ["compress", saved / "own.keras", "--out", saved / "m.tflite", "--epochs", 1]
    more = ("--data", saved / "data.npz", "--custom-objects", saved / "own.py")
    status, printed, errors = run(*words, *more)
    assert (status, errors) == (0, "") and "its own step" in printed


@tensorflow_only
def test_arrays_that_do_not_fit_the_model(saved, refused):
    images, labels = digits(64)
    np.savez(saved / "inputs.npz", x=images[:, :7], y=labels)
    np.savez(saved / "targets.npz", x=images, y=np.zeros((64, 3)))
    words = ["compress", saved / "model.keras", "--out", saved / "m.tflite", "--data"]
    name = keras.saving.load_model(saved / "model.keras").inputs[0].name
    assert refused(*words, saved / "inputs.npz") == (
        f"Expected `--data` to have inputs of shape (None, 8, 8, 1) for '{name}'. Received: "
        "shape=(64, 7, 8, 1)"
    )
    assert refused(*words, saved / "targets.npz").startswith(
        "Expected targets in --data that fit the model's loss and its outputs of shape (None, 10). "
        "Received: shape (None, 3) ("
    )
    assert not (saved / "m.tflite").exists()


@tensorflow_only
def test_export_and_inspect(saved, run):
    shared = qareg.share_weights(small_cnn(), levels=4)
    shared.save(saved / "shared.keras")
    status, printed, _ = run("export", saved / "shared.keras", "--out", saved / "m.tflite")
    assert status == 0 and "largest difference from Keras" in printed
    status, printed, errors = run("inspect", saved / "m.tflite")
    assert (status, errors) == (0, "") and "whole file" in printed


@tensorflow_only
def test_shapes_and_types_of_inputs_and_outputs(saved, run):
    keras.utils.set_random_seed(0)
    stack = [keras.Input((None, None, 1)), keras.layers.Conv2D(4, 3)]
    pooled = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    keras.Sequential([*stack, *pooled]).save(saved / "open.keras")
    words = ["export", saved / "open.keras", "--out", saved / "m.tflite", "--force"]
    assert run(*words, "--input-shape", "8x8x1")[0] == 0
    assert _ends(saved / "m.tflite") == [([8, 8, 1], "float32"), ([3], "float32")]
    words += ["--data", saved / "data.npz", "--weights", "int8", "--input-shape", "8,8,1"]
    assert run(*words, "--input-type", "int8", "--output-type", "uint8")[0] == 0
    assert _ends(saved / "m.tflite") == [([8, 8, 1], "int8"), ([3], "uint8")]


def _ends(path):
    """Shapes without the batch and types of the input and the output of a file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    details = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    return [(detail["shape"].tolist()[1:], detail["dtype"].__name__) for detail in details]


@tensorflow_only
def test_export_writes_source_and_page_too_all_files_or_none(saved, run, refused, monkeypatch):
    from keras_qareg.export.litert import c_array

    words = ["export", saved / "model.keras", "--out", saved / "m.tflite", "--c-array", "--report"]
    (saved / "m.h").touch()
    assert refused(*words) == (
        f"Expected a new file for --out. Received: {saved}/m.h, which exists. Add --force to replace it"
    )
    (saved / "m.h").unlink()
    before = sorted(saved.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(c_array, "_ADDED", {})
        status, _, errors = run(*words)
    assert status == 2 and sorted(saved.iterdir()) == before
    assert "TFLite Micro has. Received: m.tflite with CONV_2D, " in errors
    assert run(*words)[0] == 0
    status, printed, errors = run(*words, "--force")
    made = sorted(set(saved.iterdir()) - set(before))
    assert [file.name for file in made] == ["m.cc", "m.h", "m.html", "m.tflite"]
    size = made[3].stat().st_size
    assert f"\n{saved}/m.html: {made[2].stat().st_size:,} bytes\n" in printed
    assert "What runs where" in made[2].read_text()
    assert f"{saved}/m.tflite: {size:,} bytes" in printed
    assert f"\n{saved}/m.cc, m.h: {size:,} bytes, 6 operators, an arena of " in printed
    assert f"constexpr std::size_t m_data_size = {size};" in made[1].read_text()


@tensorflow_only
def test_shapes_of_several_inputs(two_of_each, run):
    words = ["export", two_of_each / "dicts.keras", "--out", two_of_each / "m.tflite", "--force"]
    assert run(*words, "--input-shape", "a=6", "b=6")[0] == 0
    assert run(*words, "--input-shape", "6", "6")[0] == 0


def test_archive_and_back(saved, run, refused):
    model = qareg.strip(qareg.share_weights(small_cnn(), levels=4))
    model.save(saved / "four.keras")
    status, printed, errors = run("archive", saved / "four.keras", "--out", saved / "four.qareg")
    assert (status, errors) == (0, "")
    assert run("inspect", saved / "four.qareg") == (0, printed, "")
    assert "fc/kernel" in printed and "whole file" in printed
    assert run("unarchive", saved / "four.qareg", "--out", saved / "again.keras")[0] == 0
    again = keras.models.load_model(saved / "again.keras")
    for old, new in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert refused("unarchive", saved / "four.keras", "--out", saved / "b.keras") == (
        f"Expected an archive of keras-qareg. Received: {saved}/four.keras, which is a .keras file"
    )
    assert not (saved / "b.keras").exists()
    small = ["archive", saved / "four.keras", "--out", saved / "small.qareg", "--target-bytes"]
    assert run(*small, 1400)[0] == 0 and (saved / "small.qareg").stat().st_size <= 1400
    assert "Expected target_bytes of at least" in refused(*small, 100, "--force")


def test_mixed_precision_goes_through_an_archive(tmp_path, run):
    keras.utils.set_random_seed(0)
    stack = [keras.Input((8,)), *(keras.layers.Dense(32, dtype="mixed_float16") for _ in "ab")]
    model = qareg.strip(qareg.share_weights(keras.Sequential(stack), levels=4, table="even"))
    model.save(tmp_path / "mixed.keras")
    status, printed, errors = run("inspect", tmp_path / "mixed.keras")
    assert (status, errors) == (0, "") and printed.count("4 a channel   yes") == 2
    assert run("archive", tmp_path / "mixed.keras", "--out", tmp_path / "m.qareg")[0] == 0
    status, printed, _ = run("verify", tmp_path / "mixed.keras", tmp_path / "m.qareg")
    assert status == 0 and printed.endswith("equal: all 4 tensors, bit for bit\n")


def test_verify_tells_a_mismatch_from_an_error(saved, run, refused):
    model = keras.models.load_model(saved / "model.keras")
    qareg.strip(qareg.share_weights(model, levels=4, table="even")).save(saved / "four.keras")
    files = [saved / "four.qareg"]
    assert run("archive", saved / "four.keras", "--out", files[0])[0] == 0
    if BACKEND == "tensorflow":
        files.append(saved / "four.tflite")
        assert run("export", saved / "four.keras", "--out", files[1])[0] == 0
    said = ("all 6 tensors, bit for bit", "2 rewritten kernels")
    for file, found in zip(files, said, strict=False):
        status, printed, _ = run("verify", saved / "four.keras", file)
        assert status == 0 and "equal: " in printed and found in printed
        with_data = run("verify", saved / "four.keras", file, "--data", saved / "data.npz")
        assert with_data[0] == 0 and found in with_data[1]
        assert "Expected the " in refused("verify", saved / "model.keras", file, status=1)
        content = bytearray(file.read_bytes())
        content[20:40] = bytes(20)
        file.write_bytes(content)
        assert "Expected " in refused("verify", saved / "four.keras", file)
    assert refused("verify", saved / "model.keras", saved / "data.npz") == (
        f"Expected a .tflite file or an archive. Received: {saved}/data.npz, which is a .npz file"
    )


def test_inspect_prints_the_table(saved, run):
    qareg.share_weights(small_cnn(), levels=4).save(saved / "shared.keras")
    status, printed, errors = run("inspect", saved / "shared.keras")
    assert (status, errors) == (0, "")
    model = keras.saving.load_model(saved / "shared.keras")
    assert printed == f"{qareg.report.summary(model)}\n"
    assert all(cells[4] == "-" for cells in rows(printed).values())  # no file has the float kernels


def test_an_existing_output_needs_force(saved, run, refused):
    words = ["archive", saved / "model.keras", "--out"]
    out = saved / "model.qareg"
    out.write_bytes(b"mine")
    assert refused(*words, out) == (
        f"Expected a new file for --out. Received: {out}, which exists. Add --force to replace it"
    )
    assert out.read_bytes() == b"mine"
    assert run(*words, out, "--force")[0] == 0 and out.read_bytes() != b"mine"
    words = ["unarchive", out, "--out"]
    assert run(*words, saved / "again.keras")[0] == 0
    assert "Add --force" in refused(*words, saved / "again.keras")
    (saved / "folder.keras").mkdir()
    assert refused(*words, saved / "folder.keras", "--force") == (
        f"Expected --out to be a file. Received: {saved}/folder.keras, which is a folder"
    )
    same = refused("archive", saved / "model.keras", "--out", saved / "model.keras", "--force")
    assert same == (
        f"Expected --out to be another file than the one to read. Received: {saved}/model.keras"
    )
    left = sorted(path.name for path in saved.iterdir())
    assert left == ["again.keras", "data.npz", "folder.keras", "model.keras", "model.qareg"]


def test_targets_are_named_by_the_keys_of_a_dict_and_others_are_told_of(tmp_path):
    inputs = keras.Input((6,), name="x")
    heads = {
        key: keras.layers.Dense(3, name=name)(inputs) for key, name in (("p", "a"), ("q", "b"))
    }
    model, values = keras.Model(inputs, heads), np.ones((4, 6), "float32")
    np.savez(tmp_path / "all.npz", x=values, p=values[:, :3], q=2 * values[:, :3])
    _, targets, _ = Arrays(tmp_path / "all.npz", targets=None).for_model(model)
    assert {key: float(target.mean()) for key, target in targets.items()} == {"p": 1.0, "q": 2.0}
    np.savez(tmp_path / "others.npz", x=values, labels=values)
    with pytest.warns(UserWarning, match="labels in .*others.npz is not used: targets are named y"):
        assert Arrays(tmp_path / "others.npz", targets=None).for_model(model)[1] is None
