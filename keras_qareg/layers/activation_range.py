"""The layer that holds the range of an activation."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.numerics.compiled import cond
from keras_qareg.numerics.fake_quantization import code_range, fake_quantized, grid_of

WIDTHS = (8, 16)


@keras.saving.register_keras_serializable(package="keras_qareg")
class ActivationRange(keras.layers.Layer):
    """Passes on its inputs as the integers of a full-integer file hold them: one range for a tensor.

    A value becomes the nearest `step * (code - zero_point)`, with 8-bit codes from -128 to 127, as
    TensorFlow Lite holds activations, or with 16-bit codes and the zero point 0. Gradients pass straight
    through; step and zero point are learned (LSQ, arXiv 1902.08153; LSQ+, arXiv 2004.09576). What
    trains is how far they are from where calibration put them: the logarithm of a factor, and a number
    of codes. So a step is never negative, optimizers that scale gradients move all ranges alike, and
    weight decay pulls them back to the calibration.

    Tensors that must have one range, as the inputs of a concatenation, pass through one instance.
    `keras_qareg.quantize_activations` puts these layers where a file has tensors of its own.

    Args:
        bits: 8 (default) or 16.
        symmetric: Whether the zero point is 0; with 16 bits it always is. Defaults to `False`.
        fixed: Step and zero point that the runtime prescribes, as `(1 / 256, -128)` for the outputs of a
            softmax: these never change, and training passes on its inputs as they are, so that a
            cross-entropy sees small probabilities too. `None` (default): what `place` says, and then
            what is learned.
        **kwargs: `name`, `trainable`, `dtype`, as for every Keras layer.

    Attributes:
        step, zero_point: Non-trainable float32 scalars, where the range was placed.
        stretch: Trainable float32 scalar: the step in use is `step * exp(stretch)`.
        shift: The same for the zero point: that in use is `zero_point + shift`, rounded, no further out
            than the codes; `None` where it is 0.
        calibrated: Non-trainable flag, whether the range was placed. Until then inputs are passed on as
            they are.

    Call arguments:
        inputs: Tensor of any shape.

    Input and output shape: the same.

    Raises:
        ValueError: If `bits` is neither 8 nor 16, or `fixed` is no step and zero point.

    Example:

    >>> layer = ActivationRange()
    >>> layer.build((None, 3))
    >>> layer.place(-1.0, 1.55)
    >>> [round(float(value), 4) for value in layer(np.array([-7.0, 0.004, 0.006]))]
    [-1.0, 0.0, 0.01]

    See also: https://keras-qareg.github.io/keras-qareg/integer.html
    """

    def __init__(
        self,
        bits: int = 8,
        symmetric: bool = False,
        fixed: tuple[float, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.bits = check_width(bits)
        self.symmetric = symmetric or bits == 16
        low, high = code_range(bits)
        self.fixed: tuple[float, int] | None = None
        if fixed is not None:
            step, zero_point = fixed
            if not (np.isfinite(step) and step > 0 and low <= zero_point <= high):
                raise ValueError(
                    f"Expected `fixed` to be a positive step and a zero point from {low} to {high}. "
                    f"Received: fixed={fixed!r}"
                )
            self.fixed = float(step), int(zero_point)
        self.supports_masking = True
        # What sees the inputs, while a range is sought for them.
        self._observer: Callable[[Any], None] | None = None
        self._is_placed = self.fixed is not None

    def build(self, input_shape: Any = None) -> None:
        step, zero_point = self.fixed or (1.0, 0)
        self.step = self._add_scalar("step", step)
        self.zero_point = self._add_scalar("zero_point", zero_point)
        learned = self.fixed is None
        self.stretch = self._add_scalar("stretch", 0.0, trainable=True) if learned else None
        moves = learned and not self.symmetric
        self.shift = self._add_scalar("shift", 0.0, trainable=True) if moves else None
        self.calibrated = self._add_scalar("calibrated", float(not learned))
        self.built = True

    def _add_scalar(self, name: str, value: float, trainable: bool = False) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=trainable,
            autocast=False,
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if self._observer is not None:
            self._observer(inputs)
            return inputs
        if training and self.fixed is not None:
            return inputs  # a probability that is rounded to 0 would teach a loss nothing
        if training and not self._is_placed:
            warnings.warn(
                f"Layer '{self.name}' is trained before it has a range: it passes on its inputs as they "
                "are. Pass `data` to keras_qareg.quantize_activations.",
                stacklevel=2,
            )
        x = ops.cast(inputs, "float32")
        low, high = code_range(self.bits)
        step, zero_point = self._grid()
        found = cond(
            ops.convert_to_tensor(self.calibrated) > 0,
            lambda: fake_quantized(x, step, zero_point, low, high),
            lambda: x,
        )
        return ops.cast(found, inputs.dtype)

    def _grid(self) -> tuple[Any, Any]:
        """Step and zero point as of now, before that is rounded: tensors."""
        low, high = code_range(self.bits)
        step, zero_point = map(ops.convert_to_tensor, (self.step, self.zero_point))
        if self.stretch is not None:
            step = step * ops.exp(ops.convert_to_tensor(self.stretch))
        if self.shift is not None:
            shifted = zero_point + ops.convert_to_tensor(self.shift)
            zero_point = ops.clip(shifted, float(low), float(high))
        return step, zero_point

    def grid(self) -> tuple[np.float32, int]:
        """The step and the zero point as of now: what a file has.

        Raises:
            ValueError: If the range was never placed, or is not finite.
        """
        if not float(ops.convert_to_numpy(self.calibrated)):
            raise ValueError(
                f"Expected layer '{self.name}' to have a range. Received: one that was never placed. "
                "Pass `data` to keras_qareg.quantize_activations, or load trained weights."
            )
        step, zero_point = (np.float32(ops.convert_to_numpy(part)) for part in self._grid())
        if not (np.isfinite([step, zero_point]).all() and step > 0):
            raise ValueError(
                f"Expected a positive step and a finite zero point in layer '{self.name}'. Received: "
                f"step={step}, zero_point={zero_point}. Train with a lower learning rate, or with "
                "trainable=False."
            )
        return step, int(np.rint(zero_point))

    def place(self, low: float, high: float) -> None:
        """Puts the range where activations are; what was learned of it is forgotten.

        Args:
            low: The lowest value that is to be held.
            high: The highest.

        Raises:
            ValueError: If the range is not finite, or nothing but 0. A fixed one stays as it is.
        """
        if self.fixed is None:
            step, zero_point = self.check(low, high)
            self.step.assign(step)
            self.zero_point.assign(float(zero_point))
            for learned in (self.stretch, self.shift):
                if learned is not None:
                    learned.assign(0.0)
            self.calibrated.assign(1.0)
        self._is_placed = True

    def check(self, low: float, high: float) -> tuple[np.float32, int]:
        """The step and the zero point of a range; raises a `ValueError` where `place` would."""
        try:
            return grid_of(low, high, self.bits, self.symmetric)
        except ValueError as error:
            raise ValueError(f"Layer '{self.name}': {error}") from error

    @contextlib.contextmanager
    def observed(self, observer: Callable[[Any], None]) -> Iterator[None]:
        """Shows all inputs to a function and passes them on, in calls that are not compiled."""
        self._observer = observer
        try:
            yield
        finally:
            self._observer = None

    @property
    def quantization_weights(self) -> list[keras.Variable]:
        """The weights that a plain model does not have: all."""
        return list(self.weights)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self._is_placed = bool(ops.convert_to_numpy(self.calibrated) > 0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        fixed = None if self.fixed is None else list(self.fixed)
        own = {"bits": self.bits, "symmetric": self.symmetric, "fixed": fixed}
        return {**super().get_config(), **own}


def check_width(bits: int) -> int:
    """Raises a `ValueError` unless activations may have so many bits; returns them."""
    if isinstance(bits, bool) or bits not in WIDTHS:
        raise ValueError(
            f"Expected `bits` of activations to be 8, or 16 beside kernels of 8. Received: bits={bits!r}"
        )
    return int(bits)
