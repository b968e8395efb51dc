"""The accuracy of the float model and of the compressed one, and whether the loss of it is too much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keras_qareg.cli.messages import CommandError, plain

_NAMES = ("accuracy", "acc")
# What accuracy is where the loss alone says what the model is for.
_BY_LOSS = {
    "sparsecategoricalcrossentropy": "SparseCategoricalAccuracy",
    "categoricalcrossentropy": "CategoricalAccuracy",
    "categoricalfocalcrossentropy": "CategoricalAccuracy",
    "binarycrossentropy": "BinaryAccuracy",
    "binaryfocalcrossentropy": "BinaryAccuracy",
}
# Points that are nothing but rounding.
_SLACK = 1e-6


@dataclass(frozen=True)
class Verdict:
    """What became of the accuracy; `str()` is one line.

    Attributes:
        before: Accuracies of the float model by name, from 0 to 1.
        after: Those of the compressed model.
        most: Percentage points that may be lost of each.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    most: float

    @property
    def drop(self) -> float:
        """The percentage points that are lost, of the accuracy that loses most."""
        return max(100 * (self.before[name] - self.after[name]) for name in self.before)

    @property
    def passed(self) -> bool:
        """Whether these are no more than may be."""
        return self.drop <= self.most + _SLACK

    def __str__(self) -> str:
        each = [
            f"{name} {100 * self.after[name]:.2f} % (float: {100 * value:.2f} %)"
            for name, value in self.before.items()
        ]
        return ", ".join(each)


class Gate:
    """Measures accuracies on examples with targets.

    Args:
        model: The float model, compiled with an accuracy metric or a loss of classification.
        examples: Inputs, targets and sample weights.
        most: Percentage points that may be lost.
        batch_size: Examples a step.

    Raises:
        CommandError: If the model does not say what its accuracy is.
    """

    def __init__(self, model: Any, examples: tuple[Any, Any, Any], most: float, batch_size: int):
        self.model, self.most, self._batch_size = model, most, batch_size
        self._examples = dict(zip(("x", "y", "sample_weight"), examples, strict=True))
        self._by_loss = False
        self.before = self._evaluated(model) if model.compiled else {}
        if not self.before:
            self._by_loss = True
            self.before = {"accuracy": self._predicted(model)}

    def verdict(self, network: Any) -> Verdict:
        """What became of the accuracy in a network of the same outputs."""
        from keras_qareg.models import strip
        from keras_qareg.models.compiling import compile_like

        small = strip(network)
        if self._by_loss:
            return Verdict(self.before, {"accuracy": self._predicted(small)}, self.most)
        compile_like(small, self.model, optimizer="sgd")
        return Verdict(self.before, self._evaluated(small), self.most)

    def _evaluated(self, network: Any) -> dict[str, float]:
        """The accuracies among the metrics that the model was compiled with."""
        try:
            found = network.evaluate(
                **self._examples, batch_size=self._batch_size, verbose=0, return_dict=True
            )
        except Exception as error:  # each backend has its own
            raise CommandError(
                "Expected --validation-data that the model can be evaluated on. Received: "
                f"{plain(error)}"
            ) from error
        return {name: float(value) for name, value in found.items() if name.endswith(_NAMES)}

    def _predicted(self, network: Any) -> float:
        """The accuracy of predictions, of the kind that the loss says."""
        metric = self._metric()
        outputs = network.predict(self._examples["x"], batch_size=self._batch_size, verbose=0)
        metric.update_state(self._examples["y"], outputs, self._examples["sample_weight"])
        return float(metric.result())

    def _metric(self) -> Any:
        import keras

        loss = getattr(self.model, "loss", None)
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        name = getattr(loss, "__name__", type(loss).__name__)
        kind = _BY_LOSS.get(name.replace("_", "").lower())
        if kind is None:
            raise CommandError(
                "Expected a model compiled with an accuracy metric or a loss of classification, with "
                f"--max-accuracy-drop. Received: '{self.model.name}' with "
                f"{'no loss' if loss is None else f'the loss {name}'}"
            )
        if kind == "BinaryAccuracy" and getattr(loss, "from_logits", False):
            return keras.metrics.BinaryAccuracy(threshold=0.0)
        return getattr(keras.metrics, kind)()
