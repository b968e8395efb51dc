"""Training a network by what another one gives: no labels are needed."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_qareg.choices import check_number, from_zero
from keras_qareg.layers.keras_private import (
    added_losses,
    compile_arguments,
    is_graph,
    outputs_struct,
)
from keras_qareg.models.selection import check_built

_SMALLEST = 1e-7  # below it a probability counts as this, as in Keras's losses
# Of values, what their variance in a batch is at least, as a share of their mean square.
_LEAST = 1e-3
TEMPERATURE = 2.0


def distill(
    student: keras.Model,
    teacher: keras.Model,
    *,
    temperature: float = TEMPERATURE,
    weight: float = 1.0,
) -> Distiller:
    """A model that trains `student` to give what `teacher` gives (Hinton et al., arXiv 1503.02531).

    Compile and fit the result as any model; `fit(x)` alone is enough. The student that was passed is
    trained in place, the teacher stays as it is. What is minimized is `weight` times the divergence of
    the outputs, the student's own penalties (`quantization_aware`), and the loss that was compiled, if
    there is one.

    Args:
        student: A built model, for example of `quantization_aware` or `wnq`.
        teacher: A built model with outputs of the same structure and shapes, mostly the float model.
        temperature: Positive float: what logits are divided by before probabilities are compared. The
            higher, the more small probabilities count. Defaults to 2.
        weight: Float from 0 up, the factor of the divergence. Defaults to 1.

    Returns:
        A `Distiller`: a `keras.Model` with the student's inputs and outputs.

    Raises:
        ValueError: If a model is unbuilt, a number is not positive, or the teacher's outputs have
            another structure.

    Example:

    >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    >>> student = qareg.wnq(teacher, bits=2, skip=())
    >>> trainer = distill(student, teacher)
    >>> trainer.compile("adam")
    >>> history = trainer.fit(np.ones((8, 4), "float32"), verbose=0)
    >>> sorted(history.history)
    ['agreement', 'divergence', 'loss']

    See also: https://keras-qareg.github.io/keras-qareg/method.html#from-a-trained-model-to-a-small-one
    """
    return Distiller(student, teacher, temperature=temperature, weight=weight)


class Distiller(keras.Model):
    """What `distill` returns.

    Attributes:
        student: The model that is trained.
        teacher: The model that it learns from.
        told: Whether targets are a tuple of those of the student, where it has some, and of a tuple of
            what the teacher gives, which is then not called. Defaults to `False`.
        divergence: Metric, the mean divergence of the outputs, which is reported as `divergence`.

    Args: those of `distill`.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        *,
        temperature: float = TEMPERATURE,
        weight: float = 1.0,
    ):
        super().__init__(name=f"{student.name}_distiller")
        for model in (student, teacher):
            check_built(model)
        temperature = check_number("temperature", temperature)
        weight = check_number("weight", weight, "a number, 0 or more", from_zero)
        _check_outputs(student, teacher)
        self.student, self.weight, self.told = student, weight, False
        # Keras must not find the teacher: it would be saved, counted, and set by `trainable`.
        self._hidden = lambda: teacher
        kinds = kinds_of_outputs(teacher)
        self._divergences = [_Divergence(kind, temperature) for kind in kinds]
        self._shares = shares_of_outputs(teacher, len(kinds))
        self._classifies = kinds[0] in ("probabilities", "logits")
        names = getattr(student, "output_names", None)
        if names is not None:
            self.output_names = names
        self.divergence = keras.metrics.Mean(name="divergence")
        if self._classifies:
            self.agreement = keras.metrics.Mean(name="agreement")
        self.built = True

    @property
    def teacher(self) -> keras.Model:
        return self._hidden()

    def get_config(self) -> dict[str, Any]:
        """Raises a `NotImplementedError`: neither of the two models is one that it could be made of."""
        raise NotImplementedError(
            "A Distiller trains a student, and is neither saved nor transformed itself: take its "
            "`student`, which is a model like any other"
        )

    def call(self, inputs: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self.student(inputs, training=training, **kwargs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        y, given = self._targets(y)
        given = self.teacher(x, training=False) if given is None else given
        wanted = [ops.stop_gradient(tensor) for tensor in keras.tree.flatten(given)]
        got = keras.tree.flatten(y_pred)
        weights = self._weights_of_outputs(sample_weight, y_pred, len(got))
        parts = [
            share * loss(*pair, sample_weight=weight)
            for share, loss, weight, *pair in zip(
                self._shares, self._divergences, weights, wanted, got, strict=True
            )
        ]
        divergence = sum(parts) / max(sum(self._shares), 1e-7)
        self.divergence.update_state(divergence)
        if self._classifies:
            same = ops.equal(ops.argmax(wanted[0], axis=-1), ops.argmax(got[0], axis=-1))
            self.agreement.update_state(ops.cast(same, "float32"))
        total = self.weight * divergence
        if self.loss is not None and y is not None:
            return total + super().compute_loss(x, y, y_pred, sample_weight, training)
        return total + added_losses(self)

    def _weights_of_outputs(self, given: Any, outputs: Any, count: int) -> list[Any]:
        """The sample weights of each output, in the order of `keras.tree.flatten`."""
        if given is None or ops.is_tensor(given):
            return [given] * count
        if isinstance(given, dict):
            names = names_of_outputs(self.student) or list(given)
            return [given.get(name) for name in names]
        return list(given)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        y, _ = self._targets(y)
        if y is None:
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        # Without labels, metrics of labels have nothing to compare with, and are not built.
        unbuilt = [metric for metric in self.metrics if not getattr(metric, "built", True)]
        if not unbuilt:
            found: dict[str, Any] = super().get_metrics_result()
            return found
        return {metric.name: metric.result() for metric in self.metrics if metric not in unbuilt}

    def _targets(self, y: Any) -> tuple[Any, Any]:
        """The targets of the student, and what the teacher gives; `None` for what is not known."""
        if not self.told:
            return y, None
        return (None, *y) if len(y) == 1 else tuple(y)


def _check_outputs(student: keras.Model, teacher: keras.Model) -> None:
    # By their places too: lists and tuples are alike, and dicts of other keys are not.
    shapes = [
        [(path, tuple(tensor.shape)) for path, tensor in keras.tree.flatten_with_path(outputs)]
        for model in (student, teacher)
        if (outputs := outputs_struct(model)) is not None
    ]
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        raise ValueError(
            f"Expected a teacher whose outputs have the shapes of the student's, {shapes[0]}. Received: "
            f"{shapes[1]}."
        )


def names_of_outputs(model: keras.Model) -> list[str]:
    """What losses and sample weights call the outputs of a model, in the order of `keras.tree.flatten`.

    Where a model gives a dict, these are its keys, and not the names of layers. Empty: not known.
    """
    structure = outputs_struct(model)
    if isinstance(structure, dict):
        return sorted(structure)
    return list(getattr(model, "output_names", None) or [])


def shares_of_outputs(model: keras.Model, count: int) -> list[float]:
    """How much each of so many outputs counts: as in the loss that the model was compiled with."""
    given = compile_arguments(model).get("loss_weights") if model.compiled else None
    if isinstance(given, dict):
        given = [given.get(name, 1.0) for name in names_of_outputs(model) or list(given)]
    if not isinstance(given, list | tuple) or len(given) != count:
        return [1.0] * count
    return [1.0 if share is None else float(share) for share in given]


class _Divergence(keras.losses.Loss):
    """How far outputs of one kind are from those wanted, an example."""

    def __init__(self, kind: str, temperature: float):
        super().__init__(name="divergence")
        self.kind, self.temperature = kind, temperature

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true, y_pred = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        if self.kind == "values":
            over = tuple(range(len(y_true.shape) - 1))
            spread = ops.var(y_true, axis=over) + _LEAST * ops.mean(ops.square(y_true), axis=over)
            return ops.mean(ops.square(y_pred - y_true) / (spread + _SMALLEST), axis=-1)
        wanted, got = (self._logarithms(values) for values in (y_true, y_pred))
        return self.temperature**2 * ops.sum(ops.exp(wanted) * (wanted - got), axis=-1)

    def _logarithms(self, values: Any) -> Any:
        """Logarithms of softened probabilities, on the last axis."""
        if self.kind in ("probability", "probabilities"):
            values = ops.clip(values, _SMALLEST, 1.0)
        if self.kind == "probabilities":
            values = ops.log(values)
        elif self.kind == "probability":
            values = ops.log(values) - ops.log(ops.clip(1.0 - values, _SMALLEST, 1.0))
        if self.kind in ("probability", "logit"):
            values = ops.stack([values, ops.zeros_like(values)], axis=-1)
        return ops.log_softmax(values / self.temperature, axis=-1)


def kinds_of_outputs(model: keras.Model) -> list[str]:
    """What each output of a model is, in the order of `keras.tree.flatten`.

    The loss that the model was compiled with says it, else the activation of the layer that gives it.

    Returns:
        List of `"probabilities"` (they sum to 1 on the last axis), `"logits"` of such, `"probability"`
        (each by itself), `"logit"` of such, and `"values"`.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="sigmoid")])
    >>> kinds_of_outputs(model)
    ['probability']
    """
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or [])
    losses = losses_of_outputs(model, len(outputs))
    if not outputs:  # a subclassed model has no tensors to look at
        return [_kind_of_loss(loss) or "values" for loss in losses]
    return [
        _kind_of_loss(loss) or _kind_of_tensor(tensor)
        for loss, tensor in zip(losses, outputs, strict=True)
    ]


def losses_of_outputs(model: keras.Model, count: int) -> list[Any]:
    """The compiled loss of each output; `None` where there is none, or it is not known which."""
    given = getattr(model, "loss", None)
    if isinstance(given, dict):
        names = names_of_outputs(model) or list(given)
        return [given.get(name) for name in names] if len(names) == count else [None] * count
    if isinstance(given, list | tuple):
        return list(given) if count in (0, len(given)) else [None] * count
    return [given] * max(1, count)


_CATEGORICAL = ("categoricalcrossentropy", "sparsecategoricalcrossentropy", "kldivergence")
_BINARY = ("binarycrossentropy", "binaryfocalcrossentropy")
_OF_ACTIVATIONS = {"softmax": "probabilities", "sigmoid": "probability"}


def _kind_of_loss(loss: Any) -> str | None:
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    name = name.replace("_", "").lower()
    logits = bool(getattr(loss, "from_logits", False))
    if name in _CATEGORICAL or name == "categoricalfocalcrossentropy":
        return "logits" if logits else "probabilities"
    if name in _BINARY:
        return "logit" if logits else "probability"
    return None


def _kind_of_tensor(tensor: Any) -> str:
    operation = tensor._keras_history.operation
    if is_graph(operation):
        place = tensor._keras_history.tensor_index
        return _kind_of_tensor(keras.tree.flatten(operation.outputs)[place])
    activation = getattr(operation, "activation", None)
    name = getattr(activation, "__name__", type(operation).__name__).lower()
    return _OF_ACTIVATIONS.get(name, "values")
