"""What a model is called with and what it returns, by the names in the signature of a file.

Keras has inputs and outputs in lists, tuples, dicts, and these in each other; a file has a flat list
of names. The names are chosen here, so that which is which is known and never guessed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.export.litert import flatbuffer
from keras_qareg.export.litert.precision import STEPS, in_float32, widest_step
from keras_qareg.layers.keras_private import layers_inside
from keras_qareg.models.accounting import keeping_states, remembered

# The sizes that are tried, one after the other, for axes that are open in the model.
OPEN_SIZES = (32, 64, 128, 256, 512, 16, 8, 4, 2, 1)
# How many steps of its type the outputs of a model may be from those in float32.
_FAR = 32
_ONE = "one shape for one input, a list or dict of them for several, without the batch axis"


@dataclass(frozen=True)
class Signature:
    """The inputs of a model.

    Attributes:
        specs: A `keras.InputSpec` for each input, with a name that no other has, in the structure
            that the model is called with.
    """

    specs: Any

    @classmethod
    def of(cls, model: keras.Model, data: Any = None, input_shape: Any = None) -> Signature:
        """Reads the inputs of a model.

        Args:
            model: A built model.
            data: Inputs in the structure that it is called with, or `None`. They tell the types of
                the inputs of a subclassed model, which does not know them.
            input_shape: Sizes for open axes, as in `export.litert`.

        Raises:
            ValueError: If the shapes of the inputs are not known, or `input_shape` does not fit.
        """
        specs = _specs(model, data, sized=input_shape is None)
        leaves = keras.tree.flatten(specs)
        if input_shape is not None:
            shapes = _shapes(specs, leaves, input_shape)
            leaves = [_fixed(*pair) for pair in zip(leaves, shapes, strict=True)]
        return cls(keras.tree.pack_sequence_as(specs, leaves))

    @property
    def leaves(self) -> list[keras.InputSpec]:
        """The inputs in the order in which Keras takes them out of their structure."""
        found: list[keras.InputSpec] = keras.tree.flatten(self.specs)
        return found

    @property
    def open_inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Names and shapes, without the batch axis, of the inputs with axes of any size."""
        return {x.name: tuple(x.shape[1:]) for x in self.leaves if None in x.shape[1:]}

    def of_one(self) -> Signature:
        """The same for one example at a time, where the model takes any number."""
        return self._with([(x.shape[0] or 1, *x.shape[1:]) for x in self.leaves])

    def of_size(self, size: int) -> Signature:
        """The same with one size for all open axes but the first."""
        return self._with([(x.shape[0], *(n or size for n in x.shape[1:])) for x in self.leaves])

    def as_in(self, details: dict[str, Any]) -> Signature:
        """The same with the names and sizes of a file, by what the runtime says of its inputs."""
        names = [x.name for x in self.leaves]
        if set(names) != set(
            details
        ):  # the inputs of a model that was made again may have new names
            names = sorted(details, key=natural)
        ranks = [len(details[name]["shape_signature"]) for name in names]
        if ranks != [len(x.shape) for x in self.leaves]:
            raise ValueError(
                f"Expected a file with the inputs of the model, {_shown(self.leaves)}. Received: inputs "
                f"{ {name: details[name]['shape_signature'].tolist() for name in names} }"
            )
        shapes = [
            tuple(None if size < 0 else int(size) for size in details[name]["shape_signature"])
            for name in names
        ]
        return self._with(shapes, names)

    def _with(self, shapes: list[Any], names: list[str] | None = None) -> Signature:
        names = names or [x.name for x in self.leaves]
        specs = [
            keras.InputSpec(x.dtype, shape, name=name)
            for x, shape, name in zip(self.leaves, shapes, names, strict=True)
        ]
        return Signature(keras.tree.pack_sequence_as(self.specs, specs))

    def structured(self, arrays: dict[str, Any]) -> Any:
        """Arrays by name in the structure that the model is called with."""
        return keras.tree.map_structure(lambda x: arrays[x.name], self.specs)

    def named(self, inputs: Any) -> dict[str, np.ndarray]:
        """Inputs in the structure that the model is called with by name, in its types."""
        return {
            x.name: np.asarray(part).astype(x.dtype)
            for x, part in zip(self.leaves, keras.tree.flatten(inputs), strict=True)
        }

    def call(self, model: keras.Model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of a model by name, in float32 where it computes in another precision.

        Raises:
            ValueError: If outputs are NaN, or far from those of the model in its own precision.
        """
        outputs = self._call(model, arrays)
        _check_numbers(model, arrays, outputs)
        step = widest_step(model)
        if not step:
            return outputs
        with in_float32(model):
            wide = self._call(model, arrays)
        for name, output in wide.items():
            if np.issubdtype(output.dtype, np.floating):  # whole numbers may fall on another side
                _check_near(f"'{name}' of model '{model.name}'", outputs[name], output, _FAR * step)
        return wide

    def _call(self, model: keras.Model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with keeping_states(model):
            outputs = model(self.structured(arrays), training=False)
        return {
            name: _wide(ops.convert_to_numpy(output))
            for name, output in named_outputs(outputs).items()
        }


def named_outputs(outputs: Any) -> dict[str, Any]:
    """Outputs by their names in a file, in the order in which Keras takes them out of their structure.

    Keys of dicts and fields of named tuples are names, `output_0` and so on those of lists; of what is
    in each other, both.

    Example:

    >>> named_outputs({"a": 1, "b": [2, 3]}), named_outputs([4, 5])
    ({'a': 1, 'b_0': 2, 'b_1': 3}, {'output_0': 4, 'output_1': 5})
    """
    prefix = () if _keyed(outputs) else ("output",)
    paths = [(*prefix, *path) for path in _paths(outputs)]
    names = ["_".join(path) if len(path) > 1 or not prefix else "output_0" for path in paths]
    return dict(zip(_unique(names), keras.tree.flatten(outputs), strict=True))


def is_flat(outputs: Any) -> bool:
    """Whether outputs are one tensor, or a list, tuple or dict of tensors, which a file can name."""
    keys = list(outputs) if isinstance(outputs, dict) else []
    shallow = all(len(path) <= 1 for path in _paths(outputs))
    return shallow and all(isinstance(key, str) for key in keys)


def _keyed(structure: Any) -> bool:
    return isinstance(structure, dict) or hasattr(structure, "_fields")


def in_models_order(outputs: Iterable[str]) -> list[str]:
    """The names of the outputs of a file, in the order of the outputs of the model."""
    # Those in a list are named by their places; Keras takes those in a dict by sorted key.
    names = list(outputs)
    listed = all(re.fullmatch(r"output(_\d+)+", name) for name in names)
    return sorted(names, key=natural if listed else None)


def misplaced(content: bytes | bytearray, inputs: list[str]) -> list[tuple[np.ndarray, list[int]]]:
    """The inputs, and the outputs, of a file if they are in another order than those of the model.

    TFLite Micro has no names: there they go by their places.

    Args:
        content: A `.tflite` file.
        inputs: The names of the inputs, in the order of the model.

    Returns:
        For each of the two that is, its tensors as the file has them (`flatbuffer.ends`), and as the
        model has them.
    """
    found = []
    for kind, (held, places) in flatbuffer.ends(content).items():
        order = inputs if kind == "inputs" else in_models_order(places)
        wanted = [places[name] for name in order if name in places]
        # One tensor may be several outputs.
        if wanted != held.tolist() and sorted(wanted) == sorted(held.tolist()):
            found.append((held, wanted))
    return found


def natural(name: str) -> list[Any]:
    """So that `output_10` comes after `output_9`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _specs(model: keras.Model, data: Any, sized: bool) -> Any:
    """The inputs of a model; where it is subclassed, with sizes or with those left open."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        # A Sequential model that was built by a shape has no structure of inputs.
        structure = getattr(model, "input", inputs[0])
        names = iter(_unique(_input_names(model, keras.tree.flatten(structure))))
        # Only layers that keep states for each example hold on to a batch size.
        stateful = [x for x in layers_inside(model) if getattr(x, "stateful", False)]
        fixed = any(map(remembered, stateful))

        def known(x: Any) -> keras.InputSpec:
            shape = (x.shape[0] if fixed else None, *x.shape[1:])
            return keras.InputSpec(_full(x.dtype), shape, name=next(names))

        return keras.tree.map_structure(known, structure)
    leaves = _called_with(model, data)
    names = iter(_unique(_argument_names(leaves)))
    return keras.tree.map_structure(
        lambda leaf: keras.InputSpec(
            _full(leaf.dtype), (None, *leaf.sizes(sized)), name=next(names)
        ),
        leaves,
    )


def _input_names(model: keras.Model, tensors: list[Any]) -> list[str]:
    """The names of tensors; those of their layers, which stay, for tensors that Keras numbered."""
    layers = {
        id(layer.output): layer.name
        for layer in layers_inside(model)
        if isinstance(layer, keras.layers.InputLayer)
    }
    numbered = re.compile(r"keras_tensor(_\d+)?")
    return [
        _valid(layers.get(id(x), x.name) if numbered.fullmatch(x.name) else x.name) for x in tensors
    ]


def _called_with(model: keras.Model, data: Any) -> Any:
    """What the inputs of a subclassed model are: those of the user, else those of its first call."""
    if data is not None:
        return keras.tree.map_structure(lambda x: _Leaf(x.shape, str(x.dtype)), data)
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            "Expected a model that knows the shapes of its inputs. Received: model "
            f"'{model.name}', which was never called. Call it once on a batch of inputs."
        )
    return keras.tree.map_shape_structure(lambda shape: _Leaf(shape, model.input_dtype), shapes)


@dataclass(frozen=True)
class _Leaf:
    """The shape and type of an input: one thing, where a tuple would be a structure."""

    shape: tuple[int | None, ...]
    dtype: str

    def sizes(self, known: bool) -> list[int | None]:
        return [size if known else None for size in self.shape[1:]]


def _argument_names(structure: Any) -> list[str]:
    """The names of the inputs of a subclassed model: keys of dicts, else as TensorFlow has them."""
    paths = list(_paths(structure))
    if isinstance(structure, dict):
        return [_valid("_".join(path)) for path in paths]
    return [f"args_0_{place}" if place else "args_0" for place in range(len(paths))]


def _paths(structure: Any) -> Iterator[tuple[str, ...]]:
    """The keys and places that lead to each leaf, in Keras's order."""
    if isinstance(structure, dict):
        parts = [(key, structure[key]) for key in sorted(structure)]
    elif isinstance(structure, list | tuple):
        parts = list(zip(getattr(structure, "_fields", itertools.count()), structure, strict=False))
    else:
        yield ()
        return
    for key, part in parts:
        yield from ((str(key), *path) for path in _paths(part))


def _valid(name: str) -> str:
    """A name that TensorFlow takes for an argument, as near as can be."""
    name = re.sub(r"[^A-Za-z0-9_./-]", "_", name)
    return name if re.match("[A-Za-z_]", name) else f"input_{name}"


def _unique(names: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        count, free = 1, name
        while free in found:
            free, count = f"{name}_{count}", count + 1
        found.append(free)
    return found


def _full(dtype: Any) -> str:
    kind = keras.backend.standardize_dtype(dtype)
    if kind == "string":
        raise ValueError(
            "Expected a model whose inputs are numbers. Received: an input of strings, which LiteRT has "
            "no operators for. Leave the layers that read text out of the model."
        )
    return "float32" if kind in STEPS else kind


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype("float32") if str(array.dtype) in STEPS else array


def _shapes(specs: Any, leaves: list[keras.InputSpec], given: Any) -> list[Any]:
    """A shape for each input out of the argument `input_shape`."""
    if isinstance(given, dict):
        names = [x.name for x in leaves]
        keys = sorted(specs) if isinstance(specs, dict) and set(given) == set(specs) else names
        if set(given) != set(keys):
            raise ValueError(
                f"Expected `input_shape` with the names of the inputs, {names}. Received: "
                f"{given} ({_ONE})"
            )
        return [given[key] for key in keys]
    if _is_shape(given):
        given = [given]
    if not isinstance(given, list | tuple) or len(given) != len(leaves):
        raise ValueError(
            f"Expected `input_shape` for {len(leaves)} inputs: {_ONE}. Received: {given}"
        )
    return list(given)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        n is None or (isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0)
        for n in value
    )


def _fixed(spec: keras.InputSpec, shape: Any) -> keras.InputSpec:
    own = tuple(spec.shape[1:])
    fits = _is_shape(shape) and len(shape) == len(own)
    if not fits or any(m not in (None, n) for m, n in zip(own, shape, strict=True)):
        raise ValueError(
            f"Expected `input_shape` to agree with the shape {own} of input '{spec.name}', where None "
            f"is any size. Received: {shape}"
        )
    return keras.InputSpec(spec.dtype, (spec.shape[0], *shape), name=spec.name)


def _check_numbers(
    model: keras.Model, arrays: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> None:
    wrong = [name for name, output in outputs.items() if np.isnan(output).any()]
    if wrong:
        raise ValueError(
            f"Expected outputs of model '{model.name}' that can be compared. Received: NaN in {wrong} "
            f"with inputs {_described(arrays)}. Pass inputs that the model is made for as "
            "`representative_data`."
        )


def _check_near(name: str, own: np.ndarray, wide: np.ndarray, share: float) -> None:
    apart, finite = own != wide, np.abs(wide[np.isfinite(wide)])
    difference = np.abs(own[apart].astype("float64") - wide[apart]).max(initial=0.0)
    reach = finite.max(initial=0.0)
    if not difference <= share * reach:
        raise ValueError(
            f"Expected output {name} in float32, as files compute, to be as in its own precision. "
            f"Received: a difference of {difference:.3g} with outputs up to {reach:.3g}. Have layers "
            "that overflow compute in float32 (dtype='float32')."
        )


def _shown(specs: list[keras.InputSpec]) -> dict[str, tuple[int | None, ...]]:
    return {x.name: tuple(x.shape) for x in specs}


def _described(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(
        f"'{name}' of shape {array.shape} from {array.min():.3g} to {array.max():.3g}"
        for name, array in arrays.items()
    )
