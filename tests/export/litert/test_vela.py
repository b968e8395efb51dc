"""What Vela makes of files: by a program in its place, and by Vela itself where it is installed."""

import importlib.util
import sys

import pytest

import keras_qareg as qareg
from keras_qareg.cli import options
from keras_qareg.export.litert import vela
from tests.export.litert.test_micro import IMAGES, network
from tests.helpers import error_of, tensorflow_only

# Writes what Vela does, and says it.
PROGRAM = """
import pathlib, sys
file, _, accelerator, _, folder = sys.argv[1:]
content = pathlib.Path(file).read_bytes()
assert content[4:8] == b"TFL3"
folder = pathlib.Path(folder)
(folder / "model_vela.tflite").write_bytes(content[:900])
(folder / "model_summary_System.csv").write_text(
    "experiment,total_npu_encoded_weights,cycles_total\\ndefault,512.0,7\\n"
)
print("CPU operators = 2 (4.4%)\\nNPU operators = 43 (95.6%)")
if accelerator == "ethos-u55-32":
    sys.exit("Error: no such memory")
if accelerator == "ethos-u55-64":
    (folder / "model_vela.tflite").unlink()
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    file = tmp_path / "vela.py"
    file.write_text(PROGRAM)
    monkeypatch.setattr(vela, "_command", lambda: [sys.executable, str(file)])


@pytest.mark.one_backend
@pytest.mark.usefixtures("program")
def test_what_vela_writes_is_read():
    content = bytes(4) + b"TFL3" + bytes(2000)
    found = vela.compiled(content, "ethos-u55-128")
    assert found == vela.Compiled(
        "Vela for ethos-u55-128: 900 bytes, 512 of them weights; 2 of 45 operators left to the CPU",
        900,
        512,
        2,
    )
    found = vela.compiled(content, "ethos-u55-32")
    assert found == vela.Compiled("not compiled by Vela for ethos-u55-32 (Error: no such memory)")
    assert vela.compiled(content, "ethos-u55-64").said.startswith("not measured for ethos-u55-64 (")


@pytest.mark.one_backend
def test_without_vela_a_report_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assert vela.compiled(b"", "ethos-u55-128") == vela.Compiled(
        "not compiled by Vela (`pip install keras-qareg[vela]` to have it done)"
    )
    monkeypatch.setattr(vela, "_command", lambda: ["/no/such/program"])
    found = vela.compiled(b"", "ethos-u55-128")
    assert found.said == "not compiled by Vela for ethos-u55-128 (FileNotFoundError)"


@tensorflow_only
@pytest.mark.usefixtures("program")
def test_reports_have_it_where_it_is_asked_for(tmp_path):
    path = tmp_path / "m.tflite"
    report = qareg.export.litert(network(), path, "int8", IMAGES, npu="ethos-u55-128")
    assert (report.npu_bytes, report.npu_weight_bytes) == (900, 512)
    assert "\n  Vela for ethos-u55-128: 900 bytes, " in str(report)
    report = qareg.export.litert(network(), path, "int8", IMAGES, npu="ethos-u55-64")
    assert report.npu_bytes is None and "not measured for ethos-u55-64" in str(report)
    report = qareg.export.litert(network(), path, "int8", IMAGES)
    assert (report.npu, report.npu_bytes, report.npu_weight_bytes) == ("", None, None)
    said = error_of(qareg.export.litert, network(), path, "tflm", IMAGES, npu="ethos-u55-128")
    assert said == (
        "Expected a full-integer file for an NPU: weights='int8' with `representative_data`. "
        "Received: npu='ethos-u55-128' with weights='tflm'."
    )
    said = error_of(qareg.export.litert, network(), path, "int8", npu="ethos-u55-128")
    assert said.endswith("with weights='int8' without data.")
    said = error_of(qareg.export.litert, network(), path, "int8", IMAGES, npu="coral")
    assert said.startswith("Expected `npu` to be ") and said.endswith("Received: npu='coral'")


@tensorflow_only
@pytest.mark.skipif(vela._command() is None, reason="needs ethos-u-vela")
def test_vela_itself_compiles_our_files(tmp_path):
    """Fewer levels are fewer bytes there, in files that are equally large here."""
    path, ends, found = tmp_path / "m.tflite", {"input_type": "int8", "output_type": "int8"}, []
    for levels in (256, 4):
        shared = qareg.share_weights(network(), levels, table="even")
        report = qareg.export.litert(shared, path, "int8", IMAGES, npu="ethos-u55-128", **ends)
        assert report.npu_weight_bytes < report.npu_bytes and "of them weights" in report.npu
        found.append(report)
    assert found[1].npu_weight_bytes < 0.6 * found[0].npu_weight_bytes
    assert abs(found[1].bytes - found[0].bytes) < 0.1 * found[0].bytes


@pytest.mark.one_backend
def test_the_command_knows_the_same_accelerators():
    assert options.ACCELERATORS == vela.ACCELERATORS
