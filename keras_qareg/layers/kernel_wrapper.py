"""What the wrappers share: finding the kernels of any layer, and behaving like that layer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_qareg.layers import keras_private

_NAMES = ("kernel", "embeddings")


# Which weights are kernels: patterns of names, or a function of the layer and the weight.
Weights = str | Iterable[str] | Callable[[keras.layers.Layer, keras.Variable], bool] | None


def kernels(layer: keras.layers.Layer, weights: Weights = None) -> list[keras.Variable]:
    """The kernels of a built layer, in the order of its weights; of a wrapper, those that it has.

    By default a kernel is a floating-point weight of at least two dimensions whose name ends in
    `kernel` or `embeddings`, in the layer or in a layer inside it: this holds for every weight of a
    layer of Keras that inputs are multiplied with (recurrent, depthwise and pointwise kernels and
    attention projections among them), and for no bias, scale or statistic.

    Args:
        layer: A built Keras layer.
        weights: Other weights to take for kernels, of one dimension or more: a name, a name pattern
            (`"mixer_*"`), several of these, or a function of the layer and the weight. Patterns are
            compared with the name of the weight and with its path inside the layer.

    Returns:
        A list of `keras.Variable`, empty where the layer has none.

    Example:

    >>> layer = keras.layers.GRU(4)
    >>> layer.build((None, 5, 3))
    >>> [kernel.name for kernel in kernels(layer)]
    ['kernel', 'recurrent_kernel']

    See also: https://keras-qareg.github.io/keras-qareg/models.html#kernels-of-other-names
    """
    if isinstance(layer, KernelWrapper):
        return layer.kernels
    floats = [weight for weight in layer.weights if keras.backend.is_float_dtype(weight.dtype)]
    if weights is None:
        return [w for w in floats if w.name.endswith(_NAMES) and len(w.shape) >= 2]
    if callable(weights):
        return [w for w in floats if w.shape and weights(layer, w)]
    patterns = [weights] if isinstance(weights, str) else list(weights)
    return [
        w
        for w in floats
        if w.shape
        and any(fnmatchcase(n, p) for n in (w.name, path_inside(layer, w)) for p in patterns)
    ]


def path_inside(layer: keras.layers.Layer, weight: keras.Variable) -> str:
    """The path of a weight in the layer that has it.

    Args:
        layer: The layer that has it, perhaps in a layer inside.
        weight: The weight.

    Returns:
        The path without that of the layer.

    Example:

    >>> layer = keras.layers.GRU(4)
    >>> layer.build((None, 5, 3))
    >>> path_inside(layer, layer.weights[0])
    'gru_cell/kernel'

    See also: https://keras-qareg.github.io/keras-qareg/models.html#kernels-of-other-names
    """
    return str(weight.path).removeprefix(f"{layer.path}/")


def channel_axes(layer: keras.layers.Layer, kernel: keras.Variable) -> int:
    """How many of the last axes of a kernel count the output channels of its layer.

    Two of depthwise convolutions, none of transposed ones, whose output channels are not last.

    Args:
        layer: The layer of the kernel, or one that it is inside of.
        kernel: The kernel.

    Returns:
        0, 1 or 2.

    Example:

    >>> layer = keras.layers.DepthwiseConv2D(3)
    >>> layer.build((None, 8, 8, 2))
    >>> channel_axes(layer, layer.kernel)
    2

    See also: https://keras-qareg.github.io/keras-qareg/models.html#kernels-of-other-names
    """
    transposed = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
    if isinstance(layer, tuple(getattr(keras.layers, name) for name in transposed)):
        return 0
    depthwise = isinstance(layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
    axes = 2 if depthwise or kernel.name == "depthwise_kernel" else 1
    return min(axes, len(kernel.shape) - 1)


def output_axes(layer: keras.layers.Layer, kernel: keras.Variable) -> int:
    """How many of the last axes of a kernel count outputs; 0 where none of inputs is before them.

    Of the kernels of `EinsumDense`, which attention layers are made of, the equation says so.
    """
    for part in keras_private.layers_inside(layer):
        if isinstance(part, keras.layers.EinsumDense) and part.kernel is kernel:
            given, _, made = part.equation.replace("...", "").partition("->")
            inputs, _, labels = given.partition(",")
            outer = [label in made and label not in inputs for label in labels]
            count = len(outer) if all(outer) else outer[::-1].index(False)
            summed = count < len(labels) and labels[-count - 1] not in made
            return count if summed else 0
    return channel_axes(layer, kernel)


class KernelWrapper(keras.layers.Wrapper):
    """Base of the wrappers: has the call signature, shapes and masks of the layer inside.

    Args:
        layer: A Keras layer with at least one kernel.
        kernel_names: What weights of the layer are kernels: names, or patterns of names, as in
            `kernels`. `None` (default): those whose name ends in `kernel` or `embeddings`.
        dtype: Dtype of the wrapper's own variables; the layer inside keeps its own policy.
        **kwargs: `name` and `trainable`, as for every Keras layer.

    Example:

    >>> wrapper = KernelWrapper(keras.layers.Dense(4))
    >>> wrapper.build((None, 8))
    >>> [tuple(kernel.shape) for kernel in wrapper.kernels]
    [(8, 4)]

    See also: https://keras-qareg.github.io/keras-qareg/models.html#kernels-of-other-names
    """

    # Whether weights that are exactly 0 stay so, as their gradient is 0 too.
    keeps_zeros = False

    def __init__(
        self,
        layer: keras.layers.Layer,
        *,
        kernel_names: Iterable[str] | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        # Kernels and centroids are read in full precision: only the layer inside casts.
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(layer, dtype=policy.variable_dtype, autocast=False, **kwargs)
        self.kernel_names = None if kernel_names is None else list(kernel_names)
        self.supports_masking = layer.supports_masking
        keras_private.take_call_signature(self, layer)

    @property
    def kernels(self) -> list[keras.Variable]:
        """The kernels of the layer inside, in the order of its weights."""
        return kernels(self.layer, self.kernel_names)

    @property
    def quantization_weights(self) -> list[keras.Variable]:
        """The weights that the layer inside does not have."""
        inside = {id(weight) for weight in self.layer.weights}
        return [weight for weight in self.weights if id(weight) not in inside]

    @property
    def kernel_paths(self) -> list[str]:
        """The path that each kernel has in a model without the wrapper.

        Some layers make theirs outside of their own scope: such a path does not begin with the layer's.
        """
        return self.paths_of(self.kernels)

    def paths_of(self, weights: list[keras.Variable]) -> list[str]:
        """The paths that weights of the layer inside have in a model without the wrapper."""
        scope, _, _ = self.path.rpartition("/")
        owner = f"{scope}/{self.layer.name}" if scope else self.layer.name
        inside = f"{self.layer.path}/"
        return [
            f"{owner}/{weight.path.removeprefix(inside)}"
            if weight.path.startswith(inside)
            else weight.path
            for weight in weights
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.layer.built:
            # A trial run tells the layer the shapes of all its inputs; `build` has but the first.
            args_like, kwargs_like = keras.tree.map_structure(_symbol_of, (args, kwargs))
            with keras.name_scope(self.name):
                self.layer(*args_like, **kwargs_like)
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Any) -> None:
        if not self.layer.built:
            parameters = inspect.signature(self.layer.build).parameters.values()
            required = [p.name for p in parameters if p.default is p.empty]
            if type(self.layer).build is keras.layers.Layer.build:  # built by its first call
                self.layer(keras.tree.map_shape_structure(keras.KerasTensor, input_shape))
            else:
                # All inputs of an attention layer have this shape unless a call says otherwise.
                self.layer.build(**dict.fromkeys(required, input_shape))
            self.layer.built = True
        if not self.kernels:
            weights = [weight.name for weight in self.layer.weights]
            raise ValueError(
                f"Expected a layer with kernels in {type(self).__name__}. Received: layer "
                f"'{self.layer.name}' of type {type(self.layer).__name__} with weights {weights}. "
                "A kernel is a weight whose name ends in 'kernel' or 'embeddings', unless "
                "`kernel_names` says other names."
            )
        if not self.layer.trainable:
            keras_private.freeze(self.layer)  # with the layers that it made in `build`
        for part in keras_private.layers_inside(self.layer):
            vars(part)["quantize"] = partial(_refuse_to_quantize, self)
        self.built = True

    def _add_per_kernel(self, name: str, **kwargs: Any) -> list[keras.Variable]:
        """One weight of the wrapper for each kernel, named after it where there are several.

        `shape` may be a function of the kernel; by default it is the kernel's.
        """
        variables = []
        for kernel in self.kernels:
            place = path_inside(self.layer, kernel).replace("/", "_")
            label = f"{place}_{name}" if len(self.kernels) > 1 else name
            shape = kwargs.get("shape", kernel.shape)
            shape = shape(kernel) if callable(shape) else shape
            variables.append(self.add_weight(**{**kwargs, "name": label, "shape": shape}))
        return variables

    def _latent(self, kernel: Any) -> Any:
        """A kernel as a tensor, through which no gradient goes to weights that stay 0."""
        latent = ops.convert_to_tensor(kernel)
        return without_gradient_at_zero(latent) if self.keeps_zeros else latent

    def _keep_zeros_under_regularizers(self) -> None:
        """Lets regularizers of kernels see what gradients go through: some have one at 0."""
        for kernel in self.kernels:
            own = kernel.regularizer
            if own is not None:
                kernel.regularizer = lambda kernel, own=own: own(self._latent(kernel))

    def _check_count(self, levels: Any) -> None:
        """Raises a `ValueError` where several levels are not one for each kernel."""
        if isinstance(levels, list) and len(levels) != len(self.kernels):
            raise ValueError(
                f"Expected one of `levels` for each of {len(self.kernels)} kernels of layer "
                f"'{self.layer.name}'. Received: levels={levels}"
            )

    def place_of(self, kernel: keras.Variable) -> int:
        """The place of a kernel in `kernels`."""
        return next(place for place, held in enumerate(self.kernels) if held is kernel)

    def used_kernels(self) -> list[Any]:
        """What the layer inside computes with in the place of its kernels: a list of tensors."""
        return [ops.convert_to_tensor(kernel) for kernel in self.kernels]

    def __getattr__(self, name: str) -> Any:
        """What the layer inside has, so that code which asks it for something may ask the wrapper.

        A kernel is the one that is computed with: tied layers read it, as `wrapper.embeddings`.
        """
        try:
            return super().__getattr__(name)  # PyTorch keeps layers and parameters there
        except AttributeError:
            if name.startswith("_") or name == "layer" or not hasattr(self, "layer"):
                raise AttributeError(
                    f"'{type(self).__name__}' object has no attribute '{name}'"
                ) from None
        found = getattr(self.layer, name)
        if self.built and isinstance(found, keras.Variable):
            for kernel, used in zip(self.kernels, self.used_kernels(), strict=True):
                if kernel is found:
                    return used
        return found

    def _call_with(self, values: list[Any], *args: Any, **kwargs: Any) -> Any:
        """Calls the layer inside with other values for its kernels, through which gradients go."""
        given = {id(kernel): value for kernel, value in zip(self.kernels, values, strict=True)}
        # Every variable of the layer is mapped, so that the scope may stand inside another.
        mapping = [(v, given.get(id(v), v.value)) for v in self.layer.variables]
        with _RecordingScope(mapping, collect_losses=True) as scope:
            outputs = self.layer(*args, **kwargs)
        own = [variable.name for variable, _ in scope.updates.values() if id(variable) in given]
        if own:
            raise ValueError(
                "Expected layers that leave their kernels as they are when they are called. Received: "
                f"layer '{self.layer.name}' of type {type(self.layer).__name__}, which assigns {own} in "
                "its call: what is computed with would be others. Leave it out (`layers`, or `skip`)."
            )
        for variable, value in scope.updates.values():
            variable.assign(value)
        for loss in scope.losses:
            # A new tensor: Keras tells by identity which layer a loss belongs to.
            self.add_loss(ops.cast(loss, "float32") * 1.0)
        return outputs

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return (
            config if self.kernel_names is None else {**config, "kernel_names": self.kernel_names}
        )

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_mask(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_mask(*args, **kwargs)


def without_gradient_at_zero(kernel: Any) -> Any:
    """A kernel through which no gradient goes to exact zeros: what was pruned stays so in training.

    An optimizer without momentum for them does not move weights without a gradient: one that starts
    anew, or after `PruningSchedule`. A kernel of zeros alone is one that was never trained, and trains.
    """
    free = ops.cast(kernel != 0, kernel.dtype)
    free = ops.maximum(free, 1.0 - ops.max(free))
    return kernel * ops.stop_gradient(free)


def leave_out_of_files(
    part: keras.layers.Layer, left: list[keras.Variable], loaded: Callable[[bool], None]
) -> None:
    """Keeps weights of a layer out of files.

    Args:
        part: The layer.
        left: The weights, and others; those that are not the layer's own do not count.
        loaded: Called where a file is loaded, with whether it has all weights none the less.
    """
    save, load = part.save_own_variables, part.load_own_variables

    def entries() -> dict[str, Any]:
        found: dict[str, Any] = {}
        save(found)
        return found

    def save_own_variables(store: Any) -> None:
        for key, value in entries().items():
            if not any(value is weight for weight in left):
                store[key] = value

    def load_own_variables(store: Any) -> None:
        held = {key: store[key] for key in store.keys()}  # noqa: SIM118 (no mapping)
        lacking = {k: np.asarray(ops.convert_to_numpy(v)) for k, v in entries().items()}
        loaded(set(lacking) <= set(held))
        load({**lacking, **held})

    part.save_own_variables, part.load_own_variables = save_own_variables, load_own_variables


def _refuse_to_quantize(
    wrapper: KernelWrapper, mode: Any = None, *args: Any, **kwargs: Any
) -> None:
    """What `keras.Model.quantize` calls on a layer inside a wrapper, whose kernel it would take away."""
    raise ValueError(
        f"Expected a plain layer to quantize with Keras. Received: layer '{wrapper.name}' of type "
        f"{type(wrapper).__name__}. Take keras_qareg.strip(model) first, and quantize what it returns."
    )


class _RecordingScope(keras.StatelessScope):
    """Keeps what was assigned inside: statistics, random seeds, and states that no layer lists."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.updates: dict[int, tuple[keras.Variable, Any]] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        super().add_update(update)
        self.updates[id(update[0])] = update


def _symbol_of(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return keras.KerasTensor(value.shape, keras.backend.standardize_dtype(value.dtype))
    return value
