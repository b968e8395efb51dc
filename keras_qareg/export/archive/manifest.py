"""The manifest of an archive: the configuration, and what tensors there are, as one short text.

Tensors stand in the order of the weights of the model, each as
`[layer]/name[:shape][:dtype][mark]`, with spaces between. `layer` is how many names further the layer is
in the configuration than the one before; none for the same. What paths have before the layer stands
before, as `@path`, where that changes. Without a shape a tensor is a vector, as long as the last axis of
the one before; without a dtype it is float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from keras_qareg.export.archive.configurations import lengthen, shorten
from keras_qareg.export.archive.fields import FieldError

# How a tensor is kept: a kernel of few values, or numbers, in a section of its own; numbers with others.
KERNEL, ALONE, TOGETHER = "*", "+", ""
# How tensors of float32 may be kept.
FLOAT_DTYPES = ("float32", "float16", "bfloat16")
_TOKEN = re.compile(r"([^ :*+@]*)(?::([0-9,]*))?(?::([a-z0-9]+))?([*+]?)")
_PLAIN_NAME = re.compile(r"[^ :*+@/]+")
_DTYPES = re.compile("float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool")


@dataclass(frozen=True)
class Tensor:
    """What the manifest says of a tensor: its path in the model, shape and dtype, and how it is kept."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    kept: str


@dataclass(frozen=True)
class Manifest:
    """What is in an archive.

    Attributes:
        config: What Keras makes the model from.
        tensors: The tensors, in the order of the weights.
        assets: The place of a layer and the name of a file, for what it keeps beside its weights.
        float_dtype: How tensors that are no kernels are kept.
        folded: Whether normalization is one factor and one offset a channel.
    """

    config: Any
    tensors: tuple[Tensor, ...]
    assets: tuple[tuple[int, str], ...] = ()
    float_dtype: str = "float32"
    folded: bool = False

    def to_json(self) -> str:
        """The manifest as short JSON."""
        short = shorten(self.config)
        content: dict[str, Any] = {"config": short}
        content["tensors"] = _tensor_text(self.tensors, layer_names(lengthen(short)))
        if self.assets:
            content["assets"] = [list(asset) for asset in self.assets]
        if self.float_dtype != "float32":
            content["float"] = self.float_dtype
        if self.folded:
            content["folded"] = True
        return json.dumps(content, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """The inverse of `to_json`."""
        content = json.loads(text)
        config = lengthen(content["config"])
        assets = tuple((int(place), str(name)) for place, name in content.get("assets", ()))
        tensors = tuple(_tensors(content["tensors"], layer_names(config)))
        folded, float_dtype = content.get("folded", False) is True, content.get("float", "float32")
        if float_dtype not in FLOAT_DTYPES:
            raise FieldError(f"Expected one of {FLOAT_DTYPES}. Received: {float_dtype!r}")
        return cls(config, tensors, assets, float_dtype, folded)


def layer_names(config: Any) -> list[str]:
    """The names of layers in a configuration, in order; models that have layers are none."""
    if isinstance(config, list):
        return [name for part in config for name in layer_names(part)]
    if not isinstance(config, dict) or config.get("class_name") == "DTypePolicy":
        return []
    its = config.get("config")
    name = its.get("name") if isinstance(its, dict) and "layers" not in its else None
    own = [name] if isinstance(name, str) else []
    return own + [name for part in config.values() for name in layer_names(part)]


def _tensor_text(tensors: Sequence[Tensor], names: Sequence[str]) -> Any:
    words, root, place, last = [], "", -1, -1
    for tensor in tensors:
        before, _, name = tensor.path.rpartition("/")
        outer, _, layer = before.rpartition("/")
        start = max(place, 0)
        if (
            not _PLAIN_NAME.fullmatch(name)
            or layer not in names[start:]
            or set(outer) & set(" :*+@")
        ):
            return [[t.path, list(t.shape), t.dtype, t.kept] for t in tensors]
        if outer != root:
            words.append(f"@{outer}")
            root = outer
        found = names.index(layer, start)
        word = f"{found - place if found != place else ''}/{name}"
        if list(tensor.shape) != [last]:
            word += ":" + ",".join(map(str, tensor.shape))
        if tensor.dtype != "float32":
            word += f"{'' if ':' in word else ':' + str(last)}:{tensor.dtype}"
        words.append(word + tensor.kept)
        place, last = found, tensor.shape[-1] if tensor.shape else -1
    return " ".join(words)


def _tensors(text: Any, names: Sequence[str]) -> Iterable[Tensor]:
    if isinstance(text, list):
        for path, shape, dtype, kept in text:
            yield checked_tensor(str(path), tuple(shape), dtype, kept)
        return
    root, place, last = "", -1, -1
    for word in text.split():
        if word.startswith("@"):
            root = word[1:]
            continue
        found = _TOKEN.fullmatch(word)
        if found is None:
            raise FieldError(f"Expected a tensor. Received: {word!r}")
        path, sizes, dtype, kept = found.groups()
        skip, _, name = path.partition("/")
        place += int(skip or 0)
        if not 0 <= place < len(names):
            raise FieldError(f"Expected one of {len(names)} layers. Received: {place}")
        shape = (last,) if sizes is None else tuple(map(int, filter(None, sizes.split(","))))
        last = shape[-1] if shape else -1
        outer = f"{root}/" if root else ""
        yield checked_tensor(f"{outer}{names[place]}/{name}", shape, dtype or "float32", kept)


def checked_tensor(path: str, shape: tuple[Any, ...], dtype: Any, kept: Any) -> Tensor:
    """A tensor of which sizes and words make sense; raises a `FieldError` otherwise."""
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise FieldError(f"Expected a size of 0 or more. Received: {size!r}")
    if not isinstance(dtype, str) or not _DTYPES.fullmatch(dtype):
        raise FieldError(f"Expected a type of numbers. Received: {dtype!r}")
    if kept not in (KERNEL, ALONE, TOGETHER):
        raise FieldError(f"Expected how a tensor is kept. Received: {kept!r}")
    return Tensor(path, shape, dtype, kept)


def configuration_of(model: keras.Model) -> Any:
    """What Keras makes a model from, without how it was compiled."""
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return json.loads(json.dumps(config))


def head_of(model: keras.Model) -> str:
    """The manifest of a model, were each kernel of few values."""
    tensors = tuple(
        Tensor(w.path, tuple(w.shape), str(w.dtype), KERNEL if len(w.shape) > 1 else TOGETHER)
        for w in model.weights
    )
    return Manifest(configuration_of(model), tensors).to_json()
