"""Levels by budget: from a trained model and a number of bytes to the levels of each kernel."""

from __future__ import annotations

from typing import Any

import keras

from keras_qareg.allocation.files import Archive, File, TFLite
from keras_qareg.allocation.network import PROBES, Network
from keras_qareg.allocation.rates import RateSearch
from keras_qareg.allocation.searching import EXCHANGES, POINTS, ROUNDS, STEPS, Search, Unmet
from keras_qareg.choices import check_choice, check_count, check_number, shown
from keras_qareg.export.litert.forms import CALIBRATED
from keras_qareg.models.configuring import Setting
from keras_qareg.models.selection import Layers, check_built
from keras_qareg.models.sharing import Tables
from keras_qareg.plans import FORMS, Plan

METHODS = ("auto", "kmeans", "rate-distortion")


def allocate(
    model: keras.Model,
    *,
    target_bytes: int | None = None,
    target_ratio: float | None = None,
    max_loss: float | None = None,
    data: Any = None,
    weights: str = "auto",
    method: str = "auto",
    representative_data: Any = None,
    layers: Layers = "all",
    table: Setting[str] = "int8",
    scale: Setting[str] = "auto",
    group_size: Setting[int] | None = None,
    verbose: str | int = "auto",
) -> Plan:
    """Chooses how many values each kernel may have, for a file of some bytes and the least harm.

    Each kernel is clustered alone to a few numbers of levels, batch normalization measured anew, and the
    outputs compared with the float model's: no labels are needed. The levels of all kernels come from a
    multiple-choice knapsack over the real bytes of the file (indices, tables, alignment, operators). The
    whole plan is then measured, each kernel among the others, and mended by exchanges.

    Args:
        model: A built, trained model, plain or from `quantization_aware`. It stays as it is.
        target_bytes: Positive integer: the most bytes of the whole file.
        target_ratio: The same as a share of the float32 file's bytes (of the float32 weights', for
            archives), from 0 to 1.
        max_loss: Positive number: the most divergence of the outputs, for the fewest bytes: the mean
            Kullback-Leibler divergence in nats where outputs are probabilities, else the mean squared
            difference relative to the variance. One of these three is given.
        data: Inputs like those that the model was trained on, in any form that `fit` takes; targets do
            not count. Up to 512 of them are looked at.
        weights: What file the plan is for, as in `export.litert`, or `"archive"`. `"auto"` (default):
            the form `"auto"`, at float speed, where that meets the budget, else `"smallest"`; the
            plan's `weights` says which.
        method: How kernels are clustered, as in `share_weights`. `"rate-distortion"`, which archives
            alone can make use of: a rate for each kernel; `"kmeans"`: levels, which is better where the
            network trains on. `"auto"` (default): a rate for archives, else levels.
        representative_data: As in `export.litert`: with it, the plan for `"tflm"` is one for the
            full-integer file that is then written; `None` (default): for the float32 one. `"int8"` takes
            `data` where it is `None`.
        layers: Which layers, as in `share_weights`; the others stay float, which counts.
        table: What values a kernel may have, as in `share_weights`.
        scale: Whether kernels have one step or one a channel, as in `share_weights`.
        group_size: How many output channels have one table, as in `share_weights`.
        verbose: 0 shows nothing, 1 and `"auto"` (default) a bar with the time left.

    Returns:
        A `Plan`: pass it as `levels`. It gives kernels 2 to 256 levels, or leaves them float; a kernel
        of one value, all zeros say, stays so whatever its levels.

    Raises:
        ValueError: If an argument is out of its range, none or several budgets are given, data do not
            fit, the budget cannot be met (it says the least that can), or as `share_weights`.
        RuntimeError: For `.tflite` files, if the Keras backend is not TensorFlow.

    Example:

    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64, name="fc")])
    >>> x = np.random.default_rng(0).normal(size=(64, 16))
    >>> plan = allocate(model, target_ratio=0.6, data=x, weights="archive", verbose=0)
    >>> plan.bytes <= 0.6 * 4 * model.count_params()
    True

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#levels-by-budget
    """
    _check(model, target_bytes, target_ratio, max_loss, data)
    _check_forms(weights, method, representative_data)
    given = Tables(table, scale, group_size)
    network = Network(model, data, layers, given)
    bar = _Bar(network, verbose)
    losses = network.losses(bar.done)
    forms = ("auto", "smallest") if weights == "auto" else (weights,)
    for form in forms:
        search: Search | RateSearch
        by_rate = form == "archive" and method != "kmeans"
        if by_rate:
            search = RateSearch(network, losses, bar.done)
        else:
            calibration = representative_data if form == "tflm" else None
            if form == "int8":
                calibration = data if representative_data is None else representative_data
            file: File = (
                Archive(network) if form == "archive" else TFLite(network, form, calibration)
            )
            search = Search(network, file, losses, bar.done)
        budget = target_bytes
        if target_ratio is not None:
            budget = int(target_ratio * search.float_bytes)
        try:
            found: Any
            if budget is None:
                assert max_loss is not None
                found = search.under_loss(max_loss)
            else:
                found = search.under_bytes(budget)
        except Unmet as unmet:
            if form == forms[-1]:
                raise ValueError(_unmet(model, form, budget, unmet.least, by_rate)) from None
            continue
        break
    plan = _plan(form, search, found, given)
    bar.end()
    return plan


def _plan(form: str, search: Any, found: Any, given: Tables) -> Plan:
    size = search.bytes(found)
    return Plan(
        form,
        size,
        search.loss(found),
        rows=search.rows(found),
        curve=tuple(search.curve(size)),
        uniform=search.uniform(),
        **given._asdict(),
    )


class _Bar:
    """Progress over measurements; there are fewer than are counted where a plan is found early."""

    def __init__(self, network: Network, verbose: str | int):
        count = len(network.kernels)
        parts = sum(len(network.probes(place)) for place in range(count))
        self._all = parts + len(PROBES) + POINTS + ROUNDS * (count + 2) + EXCHANGES + STEPS
        unit = {"unit_name": "measurement"}
        self._bar = keras.utils.Progbar(self._all, verbose=shown(verbose, auto=True), **unit)
        self._seen = 0

    def done(self) -> None:
        """One more."""
        self._seen = min(self._seen + 1, self._all - 1)
        self._bar.update(self._seen)

    def end(self) -> None:
        """All of them."""
        self._bar.update(self._all, finalize=True)


def _check(
    model: keras.Model,
    target_bytes: int | None,
    target_ratio: float | None,
    max_loss: float | None,
    data: Any,
) -> None:
    check_built(model)
    given = {"target_bytes": target_bytes, "target_ratio": target_ratio, "max_loss": max_loss}
    said = {name: value for name, value in given.items() if value is not None}
    if len(said) != 1:
        raise ValueError(
            "Expected one of `target_bytes`, `target_ratio` and `max_loss`. "
            f"Received: {said or 'none of them'}"
        )
    if target_bytes is not None:
        check_count("target_bytes", target_bytes)
    elif target_ratio is not None:
        what = "a number above 0, up to 1"
        check_number("target_ratio", target_ratio, what, lambda ratio: 0 < ratio <= 1)
    else:
        check_number("max_loss", max_loss)
    if data is None:
        raise ValueError(
            "Expected `data`, inputs on which harm is measured (no labels are needed). Received: "
            "data=None"
        )


def _check_forms(weights: str, method: str, representative_data: Any) -> None:
    check_choice("weights", weights, FORMS)
    check_choice("method", method, METHODS)
    if method == "rate-distortion" and weights != "archive":
        raise ValueError(
            "Expected weights='archive' with method='rate-distortion': rates are of no use to others. "
            f"Received: weights={weights!r}"
        )
    if representative_data is not None and weights not in CALIBRATED:
        raise ValueError(
            "Expected weights='int8' or 'tflm' with `representative_data`: other forms of file are not "
            f"calibrated. Received: weights={weights!r}"
        )


def _unmet(model: keras.Model, form: str, budget: int | None, least: int, one: bool) -> str:
    said = "one value" if one else "two levels"
    smaller = "" if form in ("smallest", "tflm", "archive") else " weights='smallest' takes fewer."
    return (
        f"Expected target_bytes of at least {least:,}, which model '{model.name}' takes with {said} "
        f"a kernel and weights='{form}'. Received: {budget:,} bytes.{smaller}"
    )
