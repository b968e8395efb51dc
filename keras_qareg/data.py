"""Inputs, targets and sample weights, in every form that Keras takes them.

What a transform asks for are batches of inputs, a few examples, or arguments of `fit`; what a user has
is arrays, a `tf.data.Dataset`, a generator, a `DataLoader`. This module alone knows the forms. It checks
what it reads against the inputs of the model, and says in words what is wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from keras_qareg.choices import check_count
from keras_qareg.inputs import (
    Misfit,
    as_array,
    check_numbers,
    expected_inputs,
    fits,
    is_array,
    standard,
)

# Inputs, targets, sample weights; the last two may be None.
Batch = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Data:
    """What a user passed as data, as `read` understood it.

    Attributes:
        model: The model that it is for.
        name: What errors call it.
        whole: Inputs, targets and sample weights, as arrays that hold all examples; or `None`.
        source: Else what returns an iterable of batches.
        steps: How many batches count, or `None`: all.
        given: What was passed, where `keras.Model.fit` takes it as it is; else `None`.
        anew: Whether `source` is a function of the user's, which may give other batches each time.
    """

    model: keras.Model
    name: str
    whole: Batch | None = None
    source: Callable[[], Iterable[Any]] | None = None
    steps: int | None = None
    given: Any = None
    anew: bool = False

    @property
    def has_targets(self) -> bool:
        """Whether there are targets, as the first batch says."""
        return next(self.batches(1))[1] is not None

    def has(self, count: int) -> bool:
        """Whether there are so many examples."""
        seen = 0
        for inputs, _, _ in self.batches(count):
            seen += _rows(inputs)
            if seen >= count:
                return True
        return False

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Batches of inputs, targets and sample weights, checked; the last two may be `None`.

        Args:
            batch_size: Positive integer: how arrays are cut. Other forms have batches of their own.

        Raises:
            ValueError: If a batch does not fit the model, or there is none.
        """
        empty = True
        for batch in itertools.islice(self._batches(batch_size), self.steps):
            empty = False
            yield batch
        if empty:
            one = not self.anew and self.source is not None and isinstance(self.source(), Iterator)
            raise _no_inputs(self.name, ended=one)

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        if self.whole is not None:
            for start in range(0, _rows(self.whole[0]), batch_size):
                yield _taken(self.whole, slice(start, start + batch_size))
        elif self.source is not None:
            for batch in self.source():
                yield _unpacked(self.model, batch, self.name)

    def some(self, count: int, batch_size: int) -> Data:
        """About so many examples: evenly taken from arrays, else the first batches, which are kept."""
        if self.whole is not None:
            every = slice(None, None, max(1, _rows(self.whole[0]) // count))
            return replace(self, whole=_taken(self.whole, every), steps=None)
        kept: list[Batch] = []
        for batch in self.batches(batch_size):
            kept.append(batch)
            if sum(_rows(inputs) for inputs, _, _ in kept) >= count:
                break
        return replace(self, source=lambda: kept, steps=None, given=_Batches(kept))

    def repeatable(self) -> Data:
        """The same data where they can be read again; an iterator without `steps` is read and kept."""
        if self.source is None or self.given is not None or self.steps is not None:
            return self
        if self.anew:  # it may augment
            return replace(self, steps=sum(1 for _ in self.batches(1)))
        kept = list(self.batches(1))
        return replace(self, source=lambda: kept, given=_Batches(kept))

    def steps_an_epoch(self, batch_size: int) -> int | None:
        """How many batches there are, where that is known beforehand."""
        if self.whole is not None:
            every = -(-_rows(self.whole[0]) // batch_size)
            return every if self.steps is None else min(every, self.steps)
        if self.steps is not None:
            return self.steps
        if isinstance(self.given, keras.utils.PyDataset):
            return self.given.num_batches
        if hasattr(self.given, "cardinality"):
            count = int(self.given.cardinality())
            return count if count > 0 else None  # negative where it is unknown
        return len(self.given) if hasattr(self.given, "__len__") else None

    def fit_arguments(self, batch_size: int) -> dict[str, Any]:
        """What `keras.Model.fit` takes: the same examples in each epoch."""
        return self._arguments(batch_size, "steps_per_epoch")

    def evaluate_arguments(self, batch_size: int) -> dict[str, Any]:
        """What `keras.Model.evaluate` takes."""
        arguments = self._arguments(batch_size, "steps")
        arguments.pop("shuffle", None)
        return arguments

    def _arguments(self, batch_size: int, steps: str) -> dict[str, Any]:
        if self.whole is not None and self.steps is None:
            names = ("x", "y", "sample_weight")
            return {**dict(zip(names, self.whole, strict=True)), "batch_size": batch_size}
        given = self.repeatable().given
        # Keras takes a pair of inputs for inputs and targets.
        if given is not None and (self.has_targets or isinstance(given, _Batches)):
            return {"x": given, steps: self.steps}
        if given is not None and len(keras.tree.flatten(expected_inputs(self.model))) < 2:
            return {"x": given, steps: self.steps}
        count = self.steps or self.steps_an_epoch(batch_size)
        return {"x": self._repeated(batch_size), steps: count, "shuffle": False}

    def _repeated(self, batch_size: int) -> Iterator[Any]:
        batch = None
        while True:
            for batch in itertools.islice(self._batches(batch_size), self.steps):
                yield _trimmed(batch)
            if batch is None:
                return
            batch = None


class _Batches(keras.utils.PyDataset):
    """A list of batches, as `fit` takes it."""

    def __init__(self, batches: list[Batch]):
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return _trimmed(self.batches[index])


def _trimmed(batch: Batch) -> tuple[Any, ...]:
    """A batch as `fit` takes it: without what there is not, or lists, which TensorFlow refuses."""
    inputs, targets, weights = (
        tuple(part) if isinstance(part, list) and len(part) > 1 else part for part in batch
    )
    inputs = inputs[0] if isinstance(inputs, list) else inputs
    if targets is None:
        return (inputs,)
    return (inputs, targets) if weights is None else (inputs, targets, weights)


def read(data: Any, model: keras.Model, *, steps: int | None = None, name: str = "data") -> Data:
    """Finds out what form data have.

    Arrays are checked at once. What comes in batches is checked when these are read.

    Args:
        data: Arrays in the structure of the model's inputs, or by their names; these with targets, or
            targets and sample weights, as a tuple; a `tf.data.Dataset`, `keras.utils.PyDataset`,
            PyTorch `DataLoader`, generator, function that returns an iterable, or list, of batches,
            each of which is inputs or such a tuple.
        model: The built model that they are for.
        steps: Positive integer: how many batches count, which endless data need. `None`: all.
        name: What errors call the data.

    Returns:
        A `Data`.

    Raises:
        ValueError: If data are in no form that is known, endless without `steps`, or do not fit the
            inputs of the model: no examples, other shapes, other names, NaN.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> [inputs.shape for inputs, _, _ in read(np.zeros((5, 3)), model).batches(4)]
    [(4, 3), (1, 3)]
    """
    if steps is not None:
        steps = check_count("steps", steps, besides=" or None")
    if _is_dataset(data):
        endless = _is_endless(data, steps, name)
        count = getattr(data, "num_batches", None)
        indexed = isinstance(data, keras.utils.PyDataset)
        source = (lambda: _indexed(data, count)) if indexed else (lambda: data)
        # `fit` would go on with finite data where the steps of an epoch ended.
        given = data if endless or steps is None else None
        return Data(model, name, None, source, steps, given)
    if isinstance(data, Iterator):
        return Data(model, name, None, lambda: data, steps)
    if callable(data) and not hasattr(data, "shape"):
        return Data(model, name, None, data, steps, anew=True)
    if isinstance(data, list) and _is_list_of_batches(model, data, name):
        return Data(model, name, None, lambda: data, steps)
    return Data(model, name, _unpacked(model, data, name), None, steps)


def samples(data: Any, model: keras.Model, *, count: int, name: str = "data") -> Any:
    """The first inputs of data in any form.

    Args:
        data: As in `read`.
        model: The built model that they are for.
        count: How many examples are wanted. There are fewer where there are no more, or where the
            shapes of later ones are others.
        name: What errors call the data.

    Returns:
        NumPy arrays in the types of the model's inputs, in the structure that it is called with.

    Raises:
        ValueError: As `read`.
    """
    found: list[Any] = []
    for inputs, _, _ in read(data, model, steps=count, name=name).batches(count):
        if found and _shapes(inputs) != _shapes(found[0]):
            break
        found.append(inputs)
        if sum(map(_rows, found)) >= count:
            break
    joined = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *found)
    return _taken(joined, slice(count))


def _is_dataset(data: Any) -> bool:
    """Whether `fit` takes it as an iterable of batches that can be read again."""
    plain = isinstance(data, Iterator | list | tuple | dict | str | bytes) or hasattr(data, "shape")
    return isinstance(data, keras.utils.PyDataset) or (isinstance(data, Iterable) and not plain)


def _is_endless(data: Any, steps: int | None, name: str) -> bool:
    endless = False
    if isinstance(data, keras.utils.PyDataset):
        endless = data.num_batches is None
    elif hasattr(data, "cardinality"):
        endless = int(data.cardinality()) == -1  # tf.data.INFINITE_CARDINALITY
    if endless and steps is None:
        raise ValueError(
            f"Expected `steps`, the number of batches to take, because `{name}` is endless. Received: "
            f"a {type(data).__name__} and steps=None."
        )
    return endless


def _indexed(data: Any, count: int | None) -> Iterator[Any]:
    for index in itertools.count() if count is None else range(count):
        yield data[index]


def _is_list_of_batches(model: keras.Model, data: list[Any], name: str) -> bool:
    """Whether each of a list is a batch, and the list itself is no inputs."""
    if fits(model, data) or not data:
        return False
    if expected_inputs(model) is None and all(map(is_array, data)):
        return False  # several inputs, as for `fit`
    for place, batch in enumerate(data):
        try:
            _unpacked(model, batch, name)
        except ValueError as error:
            if len(data) <= 3 and fits(model, data[0]):
                return False  # inputs, targets, sample weights
            raise ValueError(f"{error} (batch {place} of {len(data)})") from error
    return True


def _unpacked(model: keras.Model, batch: Any, name: str) -> Batch:
    """Inputs, targets and sample weights of what may be all three, or inputs alone."""
    inputs, targets, weights = batch, None, None
    several = isinstance(batch, tuple | list) and 1 <= len(batch) <= 3
    unknown = expected_inputs(model) is None and isinstance(batch, tuple)
    if several and (unknown or not fits(model, batch)):
        count = len(keras.tree.flatten(expected_inputs(model)))
        # As many arrays as there are inputs are meant as inputs, and are told what is wrong.
        if fits(model, batch[0]) or count != len(batch) or count == 1:
            inputs, targets, weights = (*batch, None, None)[:3]
    try:
        inputs = standard(model, inputs)
    except Misfit as problem:
        raise ValueError(f"Expected `{name}` {problem}") from None
    targets, weights = (
        None if part is None else keras.tree.map_structure(as_array, part)
        for part in (targets, weights)
    )
    if not _rows(inputs):
        raise _no_inputs(name)
    if targets is None and weights is not None:
        raise ValueError(
            f"Expected `{name}` to have targets where it has sample weights, without which `fit` does "
            "not look at these. Received: weights alone"
        )
    parts = {"inputs": inputs, "targets": targets, "weights": weights}
    counts = {
        what: sorted({len(leaf) for leaf in keras.tree.flatten(part) if leaf is not None})
        for what, part in parts.items()
    }
    if len({count for found in counts.values() for count in found}) > 1:
        said = ", ".join(f"{what} {found}" for what, found in counts.items() if found)
        raise ValueError(
            f"Expected the same number of examples in all arrays of `{name}`. Received: {said}"
        )
    check_numbers(model, inputs, name)
    return inputs, targets, weights


def _no_inputs(name: str, ended: bool = False) -> ValueError:
    said = (
        ": the iterator has ended. What is measured before and after training takes batches too: pass a "
        "function that returns such an iterator, which is then begun anew"
    )
    return ValueError(f"Expected `{name}` with inputs. Received: none{said if ended else ''}.")


def _rows(inputs: Any) -> int:
    return next((len(leaf) for leaf in keras.tree.flatten(inputs) if leaf is not None), 0)


def _taken(values: Any, part: slice) -> Any:
    return keras.tree.map_structure(lambda leaf: None if leaf is None else leaf[part], values)


def _shapes(inputs: Any) -> list[Any]:
    return [None if leaf is None else leaf.shape[1:] for leaf in keras.tree.flatten(inputs)]
