"""The whole job in one call: from a trained model and a budget to a small one that does the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_qareg import settings
from keras_qareg.allocation.allocating import allocate
from keras_qareg.allocation.fitting import fit_archive, keep_within
from keras_qareg.callbacks import PenaltySchedule
from keras_qareg.data import Data, read
from keras_qareg.export.litert.forms import CALIBRATED
from keras_qareg.layers import QuantizationAware, Weights
from keras_qareg.models import quantization_aware, share_weights, strip, wnq
from keras_qareg.models.accounting import states_kept
from keras_qareg.models.configuring import Setting, keeps_float
from keras_qareg.models.distilling import TEMPERATURE
from keras_qareg.models.selection import Layers, check_built, wrappers
from keras_qareg.models.training import Job, Stage, usual_rate, values_of
from keras_qareg.options import Options, check, new_optimizer, together
from keras_qareg.plans import Plan
from keras_qareg.summaries import table as text_table

_METHOD, _LEVELS = "sine", 16
# Examples to choose by where there are no validation data, and inputs that a plan looks at.
_JUDGED, _PLANNED = 2048, 512
# The share of the epochs that tune centroids at the end, and of the learning rate.
_TUNING_EPOCHS, _TUNING_RATE = 0.1, 0.1
# How late the penalty rises: large layers settle last. Soft kernels harden evenly.
_POWER, _SOFT_POWER = 12.0, 6.0


@dataclass(frozen=True)
class Compressed:
    """A compressed model, and how it came about.

    Attributes:
        model: The shared model, which has tables yet; `strip` makes a plain one.
        stages: What the network was worth after each step. Empty without data.
        plan: The `Plan` that was followed, where there was a budget.
    """

    model: keras.Model
    stages: tuple[Stage, ...] = ()
    plan: Plan | None = None

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for stage in self.stages for name in stage.results))
        rows = [
            (
                stage.name if stage.kept else f"{stage.name} (undone)",
                *(f"{stage.results[n]:.4f}" if n in stage.results else "" for n in names),
            )
            for stage in self.stages
        ]
        return text_table(("step", *names), rows)


def compress(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    validation_data: Any = None,
    *,
    data: Any = None,
    levels: Setting[int] | None = None,
    target_bytes: int | None = None,
    target_ratio: float | None = None,
    form: str = "auto",
    layers: Layers = "all",
    weights: Weights = None,
    sample_weight: Any = None,
    steps: int | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: Any = None,
    learning_rate: float | None = None,
    method: str = "auto",
    distillation: float = 1.0,
    temperature: float = TEMPERATURE,
    table: Setting[str] = "int8",
    scale: Setting[str] = "auto",
    group_size: Setting[int] | None = None,
    seed: int | None = None,
    verbose: str | int = "auto",
) -> keras.Model:
    """Makes a trained model small: the whole job in one call.

    With a budget of bytes, `allocate` chooses the levels of each kernel first. The network then trains
    on from the given weights, computing with its quantized kernels, with gradients straight through to
    the weights. The float model teaches it, so that no labels are needed; with labels, the loss that
    the model was compiled with counts too. At the end weights are shared, batch normalization is
    measured anew, and the centroids are tuned. Each step starts from the best epoch of the one before:
    by its divergence from the float model, and by its loss too where `validation_data` has labels.
    Layers that only outputs of loss weight 0 need are not trained. docs/method.md explains defaults.

    Args:
        model: A built, trained model. It stays as it is.
        x: What to train on, in any form that `fit` takes. `None`: weights are shared, without training.
        y: Targets of the inputs, as `fit` takes them. `None` (default): there are none.
        validation_data: What to choose epochs by, and to report on, in the forms of `x`, with targets
            or without. By default up to 2,048 of the training examples.
        data: Instead of `x`, `y` and `sample_weight`: all in one, as in `allocate` and `recalibrate`.
        levels: Integer from 2 to 256, a setting as in `share_weights`, or a `Plan`. Defaults to 16.
        target_bytes: Positive integer: the most bytes of the file; instead of `levels`.
        target_ratio: The same as a share of the float32 file's bytes, from 0 to 1.
        form: The form of file that the budget is for: `weights` of `allocate`. Defaults to `"auto"`.
            `"tflm"` is float32 here: for a full-integer file, pass a plan of `allocate` as `levels`.
        layers: Which layers, as in `quantization_aware`.
        weights: Which weights are kernels, as in `quantization_aware`.
        sample_weight: Weights of the examples, as in `fit`, where `x` and `y` are arrays.
        steps: Batches an epoch, which endless data need. `None`: all.
        epochs: Positive integer. A tenth, one at least, tunes centroids at the end. Defaults to 10.
        batch_size: Examples a step, where `x` is arrays. Defaults to 64.
        optimizer: A Keras optimizer for training, or its name; a copy trains. By default Adam, whose
            rate falls by a cosine.
        learning_rate: Positive float, of that Adam at the start. Tuning starts with a tenth. `None`
            (default): 1e-3 for 4 levels, 3e-4 for 16, and between them between.
        method: `"sine"` and `"cosine"` train under a penalty with evenly spaced levels,
            `"nearest_squared"` and `"nearest_exponential"` with learned ones; `"dkm"` with mixtures of
            learned ones (`regularizers.DKM`); `"wnq"` learns 2, 4, 8 or 16 levels a channel;
            `"kmeans"` shares weights and tunes the centroids alone; `"auto"` (default) is `"sine"`.
        distillation: Float from 0 up, the factor of the divergence from the float model beside the loss
            of labels; 0: labels alone. Defaults to 1.
        temperature: What logits are divided by before probabilities are compared. Defaults to 2.
        table: What values a kernel may have, as in `share_weights`. Defaults to `"int8"`.
        scale: One step a kernel or one a channel, as in `share_weights`. Defaults to `"auto"`.
        group_size: As in `share_weights`; with data, for `method="kmeans"`. Defaults to `None`: all.
        seed: Integer: sets all random seeds, for the same result again. `None` (default): none is set.
        verbose: 0: silent; else progress, and what each step was worth. Defaults to `"auto"`.

    Returns:
        An ordinary model (see `strip`) whose chosen kernels have few values. A model with a `train_step`
        of its own trains by that, without a teacher.

    Raises:
        ValueError: If an argument is out of its range or would not count, `levels` and a budget are
            both given, a budget cannot be met, data do not fit the model, or as `share_weights`.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(8, name="fc")])
    >>> x = np.random.default_rng(0).normal(size=(64, 16))
    >>> small = compress(model, x, levels=4, epochs=2, verbose=0)
    >>> len(np.unique(small.get_layer("fc").kernel))
    4

    See also: https://keras-qareg.github.io/keras-qareg/method.html#from-a-trained-model-to-a-small-one
    """
    options = Options(
        levels=levels,
        target_bytes=target_bytes,
        target_ratio=target_ratio,
        form=form,
        layers=layers,
        weights=weights,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        method=method,
        distillation=distillation,
        temperature=temperature,
        table=table,
        scale=scale,
        group_size=group_size,
        seed=seed,
        verbose=verbose,
    )
    data = together(x, y, sample_weight, data, validation_data)
    found = compressed(model, data, validation_data, options)
    if found.stages and verbose != 0:
        print(found)
    if found.plan and verbose != 0:
        print(f"Planned for {found.plan.bytes:,} bytes of {found.plan.writer}.")
    return strip(found.model)


@states_kept
def compressed(
    model: keras.Model, data: Any, validation_data: Any = None, options: Options | None = None
) -> Compressed:
    """What `compress` strips: the shared model, and what each step was worth."""
    options = options or Options()
    check_built(model)
    check(options, data)
    if options.seed is not None:
        keras.utils.set_random_seed(options.seed)
    if data is None:
        return Compressed(_shared(model, options, options.levels or _LEVELS))
    job = _job(model, data, validation_data, options)
    plan = _plan(model, job.data, options)
    levels = plan or options.levels or _LEVELS
    stages = [Stage("float", job.judge(model)())]
    if keeps_float(levels):
        return Compressed(_shared(model, options, levels), tuple(stages), plan)
    tuning = min(options.epochs - 1, max(1, round(_TUNING_EPOCHS * options.epochs)))
    given = new_optimizer(options.optimizer)
    if options.method == "kmeans":
        network, tuning = _shared(model, options, levels), options.epochs
        base = options.learning_rate or usual_rate(network)
        stages += [Stage("shared", job.judge(network)())]
    else:
        student = _student(model, options, levels, job)
        tuning = 0 if options.method == "wnq" else tuning
        stages += [job.recalibrated(student, "quantized")]
        base = options.learning_rate or usual_rate(student)
        epochs, callbacks = options.epochs - tuning, _callbacks(student)
        rule = given or job.adam(base, epochs)
        stages += [job.trained(student, "trained", epochs, rule, callbacks)]
        still = job.levels_of_untrained(student, levels, options.layers, options.weights)
        network = _after_training(student, options, plan, still)
    before = [values_of(network)]
    stages += [job.recalibrated(network, "recalibrated")]
    if tuning:
        before.insert(0, values_of(network))
        if options.method == "kmeans":
            rule = given or job.adam(base, tuning)
        else:
            rule = job.adam(_TUNING_RATE * base, tuning)
        stages += [job.trained(network, "tuned", tuning, rule)]
    keep_within(network, plan, before)  # tuned tables are other numbers
    return Compressed(network, tuple(stages), plan)


def planned(model: keras.Model, data: Any, options: Options) -> Plan | None:
    """The plan that `compressed` makes of a budget, alone; `None` where there is none."""
    check_built(model)
    check(options, data)
    return _plan(model, read(data, model, steps=options.steps, name="x").repeatable(), options)


def _plan(model: keras.Model, data: Data, options: Options) -> Plan | None:
    if options.target_bytes is None and options.target_ratio is None:
        given: Any = options.levels
        if settings.is_file(given):
            given = settings.read(given).get("levels")
        if isinstance(given, settings.RatedLevels):
            return Plan.load(given.path)
        return given if isinstance(given, Plan) else None
    some = data.some(_PLANNED, options.batch_size)
    return allocate(
        model,
        target_bytes=options.target_bytes,
        target_ratio=options.target_ratio,
        data=[inputs for inputs, _, _ in some.batches(options.batch_size)],
        weights=options.form,
        # What trains is planned by levels: rates are for weights that stay where they are.
        method="auto" if options.method == "kmeans" else "kmeans",
        # Files of other forms are not calibrated, but compared on these data.
        representative_data=options.representative_data if options.form in CALIBRATED else None,
        layers=options.layers,
        table=options.table,
        scale=_scale(options),
        group_size=options.group_size,
        verbose=options.verbose,
    )


def _scale(options: Options) -> Setting[str]:
    """`"auto"` takes steps that cost nothing in a `.tflite`; in an archive each takes four bytes."""
    trained = options.form == "archive" and options.method != "kmeans"
    return "kernel" if trained and options.scale == "auto" else options.scale


def _job(model: keras.Model, data: Any, validation_data: Any, options: Options) -> Job:
    given = read(data, model, steps=options.steps, name="x").repeatable()
    judged = given.some(_JUDGED, options.batch_size)
    if validation_data is not None:
        judged = read(validation_data, model, name="validation_data").repeatable()
    teaching = (options.temperature, options.distillation)
    return Job(model, given, judged, options.batch_size, *teaching, options.verbose)


def _shared(
    model: keras.Model,
    options: Options,
    levels: Setting[int] | None,
    rates: Mapping[str, float] | None = None,
) -> keras.Model:
    """The model with shared weights; without levels, those of the layers that were trained for it."""
    trained = {id(layer.layer) for layer in wrappers(model)}
    return share_weights(
        model,
        levels,
        (lambda x: bool(levels) or id(x) in trained) if trained else options.layers,
        weights=options.weights,
        method="auto" if rates is None else "rate-distortion",
        rate=rates,
        table=options.table,
        scale=_scale(options),
        group_size=options.group_size,
        verbose=0 if options.verbose in (0, 2) else "auto",  # a bar is a mess in a file
    )


def _student(model: keras.Model, options: Options, levels: Any, job: Job) -> keras.Model:
    """A copy that computes with its quantized kernels, and trains straight through."""
    if options.method == "wnq":
        return wnq(model, _bits(levels), layers=options.layers, skip=())
    kind = _METHOD if options.method == "auto" else options.method
    # What is not trained gets the levels that are best for it at the end.
    still = {id(layer): None for layer in job.untrained(model)}
    student = quantization_aware(
        model,
        (lambda layer: still.get(id(layer), kind)) if still else kind,
        options.layers,
        levels=levels,
        weights=options.weights,
        table=options.table,
    )
    for layer in wrappers(student):
        if isinstance(layer, QuantizationAware) and layer.regularizer.learned:
            layer.placed.assign(1.0)  # they are where `quantization_aware` placed them
            layer.scheduled = True
        elif isinstance(layer, QuantizationAware):
            layer.place_centroids()
    return student


def _callbacks(student: keras.Model) -> list[keras.callbacks.Callback]:
    """The penalty rises from the start: the weights were trained without one already."""
    kinds = [x.regularizer for x in wrappers(student) if isinstance(x, QuantizationAware)]
    power = _SOFT_POWER if any(kind.soft for kind in kinds) else _POWER
    return [PenaltySchedule(warmup_epochs=0, power=power)] if kinds else []


def _after_training(
    student: keras.Model, options: Options, plan: Plan | None, still: dict[str, int]
) -> keras.Model:
    """What is tuned: kernels with shared weights; `still` are the levels where some were not trained."""
    if options.method == "wnq":
        return student
    if plan is None or plan.weights != "archive":
        return _shared(student, options, still or None)

    def share(rates: Mapping[str, float] | None) -> keras.Model:
        if rates is None:
            return _shared(student, options, still or None)
        return _shared(student, options, plan.levels, {**dict.fromkeys(still, 0.0), **rates})

    return fit_archive(student, share, plan.bytes)


def _bits(levels: Any) -> Any:
    if levels not in (2, 4, 8, 16):
        expected = "Expected `levels` of 2, 4, 8 or 16 with method='wnq'."
        raise ValueError(f"{expected} Received: levels={levels!r}")
    return int(levels).bit_length() - 1
