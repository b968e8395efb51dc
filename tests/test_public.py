"""What is public: the names, what importing costs, signatures as in Keras, and how objects look."""

import inspect
import subprocess
import sys

import keras
import pytest

import keras_qareg as qareg
from keras_qareg.callbacks import (
    CentroidHistory,
    FreezeBatchNormalization,
    PenaltySchedule,
    PruningSchedule,
)
from keras_qareg.regularizers import Cosine, NearestExponential, NearestSquared, Sine
from tests.helpers import BACKEND, slow_but_on_tensorflow, small_cnn

MODULES = [
    "callbacks",
    "config",
    "export",
    "layers",
    "numerics",
    "optimizers",
    "plots",
    "quantizers",
    "regularizers",
    "report",
]
FUNCTIONS = [
    "Codebook",
    "Plan",
    "allocate",
    "codebooks",
    "compress",
    "distill",
    "from_tf_keras",
    "quantization_aware",
    "quantize_activations",
    "recalibrate",
    "share_weights",
    "shrink",
    "strip",
    "wnq",
]
PUBLIC = [
    *(getattr(qareg, name) for name in FUNCTIONS),
    *(
        getattr(qareg.export, name)
        for name in ("c_array", "litert", "load_archive", "save_archive", "verify")
    ),
    *(
        getattr(qareg.plots, name)
        for name in ("accuracy_size", "penalty_curves", "weight_histograms")
    ),
    *(Sine, Cosine, NearestSquared, NearestExponential),
    *(qareg.layers.QuantizationAware, qareg.layers.SharedWeights),
    *(qareg.layers.ActivationRange, qareg.layers.IntegerKernels, FreezeBatchNormalization),
    *(qareg.quantizers.WeightNormalizationQuantizer, qareg.quantizers.ActivationQuantizer),
    *(PenaltySchedule, PruningSchedule, CentroidHistory),
    *(qareg.optimizers.with_centroid_optimizer, qareg.report.summary),
    qareg.report.html,
    *(qareg.config.load, qareg.config.explain),
    qareg.numerics.clustering.kmeans,
]
# `export.litert` takes a fourth by place: samples go with the form that they calibrate; `compress` as
# `fit` does; `PruningSchedule` the four that say when.
MOST_BY_PLACE = {"litert": 4, "compress": 4, "PruningSchedule": 4}


def fresh(program):
    """What a program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_the_names():
    assert sorted(qareg.__all__) == sorted(MODULES + FUNCTIONS) == dir(qareg)
    for name in MODULES:
        assert inspect.ismodule(getattr(qareg, name))
    for name in FUNCTIONS:
        assert callable(getattr(qareg, name))
    with pytest.raises(AttributeError):
        _ = qareg.snapped
    assert set(qareg.export.__all__) == {
        "ArchiveError",
        "CArray",
        "ExportReport",
        "c_array",
        "litert",
        "load_archive",
        "save_archive",
        "verify",
    }
    assert callable(qareg.export.litert)  # not the folder of that name


@pytest.mark.one_backend
def test_importing_loads_nothing():
    program = (
        "import sys, keras_qareg;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}"
        " & {'keras', 'numpy', 'tensorflow', 'jax', 'torch', 'sklearn', 'matplotlib'}), 'end')"
    )
    assert fresh(program) == ["end"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    qareg.share_weights(small_cnn(), 4).save(folder / "shared.keras")
    qareg.wnq(small_cnn(), skip=()).save(folder / "wnq.keras")
    qareg.quantization_aware(small_cnn(), Sine(4)).save(folder / "aware.keras")
    return folder


@pytest.mark.one_backend
@slow_but_on_tensorflow
@pytest.mark.parametrize(
    "imports",
    ["keras_qareg, keras", pytest.param("keras, keras_qareg", marks=pytest.mark.slow)],
)
def test_files_load_after_a_mere_import(saved, imports):
    """In a fresh process, whichever of the two was imported first."""
    program = (
        f"import {imports}, pathlib;"
        f"files = sorted(pathlib.Path({str(saved)!r}).iterdir());"
        "models = [keras.saving.load_model(file) for file in files];"
        "print(*(type(model.layers[0]).__name__ for model in models));"
        "print(*(len(model.weights) for model in models))"
    )
    assert fresh(program) == ["QuantizationAware", "SharedWeights", "WNQConv2D", "18", "18", "9"]


def test_every_serializable_class_is_known_before_it_is_imported():
    for module in MODULES:
        getattr(qareg, module)
    registered = {
        name.removeprefix("keras_qareg>"): kind
        for name, kind in keras.saving.get_custom_objects().items()
        if name.startswith("keras_qareg>")
    }
    listed = {name: module for module, names in qareg._SERIALIZABLE.items() for name in names}
    assert set(registered) == set(listed)
    for name, kind in registered.items():
        assert kind is getattr(getattr(qareg, listed[name]), name)


@pytest.mark.one_backend
@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_no_more_than_three_arguments_go_by_place(function):
    parameters = list(inspect.signature(function).parameters.values())
    by_place = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(by_place) <= MOST_BY_PLACE.get(function.__name__, 3), by_place
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    assert "verbose" not in names or names[-1] == "verbose"


@pytest.mark.parametrize("kind", [Sine, Cosine, NearestSquared, NearestExponential])
def test_a_second_argument_never_is_a_strength(kind):
    """It meant a range for two of the four and a strength for the others."""
    with pytest.raises((TypeError, ValueError), match="weight_range|positional"):
        kind(4, 0.1)
    assert kind(4, strength=0.1).strength == 0.1


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (NearestSquared(4, strength=0.5), "NearestSquared(levels=4, strength=0.5)"),
        (
            Sine(8, (-1, 1), strength=2),
            "Sine(levels=8, strength=2, weight_range=[-1.0, 1.0], outside='linear', table='float32')",
        ),
        (qareg.quantizers.ActivationQuantizer(2), "ActivationQuantizer(bits=2, momentum=0.9)"),
        (
            PenaltySchedule(3),
            "PenaltySchedule(warmup_epochs=3, ramp_epochs=None, initialize='kmeans', power=6.0, "
            "balance='auto')",
        ),
        (CentroidHistory(), "<CentroidHistory of 0 kernels, 0 epochs>"),
        (
            qareg.Codebook.nearest([[0.0, 1.0]], [0.0, 1.0]),
            "<Codebook of 1x2 weights: 2 levels, 1.00 bits a weight>",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_say_what_they_are(made, text):
    assert repr(made) == text


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it is what the others do without")
def test_nothing_but_litert_needs_tensorflow(tmp_path):
    """As where JAX or PyTorch alone is installed: the others cannot be imported."""
    program = (
        "import sys, pathlib\n"
        "from importlib.util import find_spec\n"
        "absent = {name for name in ('tensorflow', 'ai_edge_litert') if find_spec(name)}\n"
        "class Absent:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name in absent: raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Absent)\n"
        "import keras, numpy as np, keras_qareg as qareg\n"
        "model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(2)])\n"
        "model = qareg.quantization_aware(model, qareg.regularizers.NearestSquared(4))\n"
        "model.compile('sgd', 'mse')\n"
        "x, y = np.ones((8, 8), 'float32'), np.ones((8, 2), 'float32')\n"
        "model.fit(x, y, verbose=0, callbacks=[qareg.callbacks.PenaltySchedule(warmup_epochs=0)])\n"
        "shared = qareg.share_weights(model)\n"
        f"file = qareg.export.save_archive(shared, pathlib.Path({str(tmp_path)!r}) / 'm.qareg')\n"
        "again = qareg.export.load_archive(file)\n"
        "print(qareg.export.verify(shared, file), len(qareg.report.summary(again).rows))\n"
        "try: qareg.export.litert(shared, file.with_suffix('.tflite'))\n"
        "except RuntimeError as error: print(str(error).split('.')[0])\n"
    )
    printed = " ".join(fresh(program))
    assert "equal: all 4 tensors, bit for bit 2" in printed
    assert "Expected the TensorFlow backend, which LiteRT conversion needs" in printed
