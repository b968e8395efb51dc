"""Quantization-aware regularizers, weight sharing and small files for Keras 3 models.

Importing this package loads nothing: a name is imported when it is first used. `__init__.pyi` lists
all names.
"""

import importlib
import sys
from typing import Any

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# The classes that a Keras file may name, by module. Keras asks a registry for them, in which classes put
# themselves once they are imported; these here stand in until then.
_SERIALIZABLE = {
    "layers": (
        "ActivationRange",
        "FreezableBatchNormalization",
        "HardSigmoid",
        "IntegerKernels",
        "QuantizationAware",
        "SharedWeights",
        "WNQConv2D",
        "WNQDense",
        "WNQDepthwiseConv2D",
    ),
    "regularizers": ("Cosine", "DKM", "NearestExponential", "NearestSquared", "Sine"),
    "quantizers": ("ActivationQuantizer", "WeightNormalizationQuantizer"),
}


def _stand_in(module: str, name: str) -> type:
    def from_config(_: type, config: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name).from_config(config)

    return type(name, (), {"from_config": classmethod(from_config)})


def _register(keras: Any) -> None:
    registry = keras.saving.get_custom_objects()
    for module, names in _SERIALIZABLE.items():
        for name in names:
            registry.setdefault(f"{__name__}>{name}", _stand_in(module, name))


class _OnceKerasIsImported:
    """Finds Keras as the next finder does, and has `_register` called when it is loaded."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "keras":
            return None
        sys.meta_path.remove(cls)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: Any) -> None:
                load(module)
                _register(module)

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


if "keras" in sys.modules:
    _register(sys.modules["keras"])
else:
    import importlib.util

    sys.meta_path.insert(0, _OnceKerasIsImported)  # type: ignore[arg-type]
