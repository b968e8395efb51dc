"""The command `compress`: plan, train, share, judge, and write what passed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import Any

from keras_qareg.cli.arrays import Arrays
from keras_qareg.cli.backend import check_backend
from keras_qareg.cli.gate import Gate, Verdict
from keras_qareg.cli.messages import CommandError, plain, tell
from keras_qareg.cli.opening import custom_objects, load_model
from keras_qareg.cli.options import sharing
from keras_qareg.cli.paths import check_model, check_output
from keras_qareg.cli.records import file_record, plan_record, record
from keras_qareg.cli.words import ARCHIVE, budget_of, check_words
from keras_qareg.cli.writing import (
    check_files,
    conversion_of,
    say,
    write_archive,
    write_json,
    write_litert,
)

TOO_MUCH = 1
_WORDS = ("epochs", "batch_size", "learning_rate", "method")
_SHARED_ONLY = "Without --data weights are shared only; trained for it, the model would lose less"


def compress(options: argparse.Namespace) -> int:
    """Runs the command; what can be known beforehand is checked before Keras is imported.

    Returns:
        The exit status: 0, or 1 where accuracy drops too much.
    """
    its = sharing(options)
    check_words(options, its)
    conversion = {} if options.out.suffix == ARCHIVE else conversion_of(options)
    _check_outputs(options)
    gated = options.max_accuracy_drop is not None
    data = _arrays(options.data, "--data")
    judged = _arrays(options.validation_data, "--validation-data", targets=True if gated else None)
    check_model(options.source)
    check_backend(converts=options.out.suffix != ARCHIVE)
    with custom_objects(options.custom_objects):
        from keras_qareg.models.selection import check_built

        if options.seed is not None:
            _seed(options.seed)  # before layers are made, which draw seeds of their own
        model = load_model(options.source, compiled=data is not None or judged is not None)
        check_built(model)
        examples = _examples(data, model)
        if options.shrink:
            model = _shrunk(model, examples, options.quiet)
        work = _Work(options, model, examples, _examples(judged, model))
        return work.done(its, conversion)


def _shrunk(model: Any, examples: Any, quiet: bool) -> Any:
    from keras_qareg.models import shrink

    smaller = shrink(model, None if examples is None else examples[0])
    if not quiet:
        before, after = model.count_params(), smaller.count_params()
        say(f"Removing channels that do nothing: {before:,} weights become {after:,}")
    return smaller


def _check_outputs(options: argparse.Namespace) -> None:
    if options.json is not None:
        check_output(options.json, options.source, force=options.force, name="--json")
        if options.json.resolve() == options.out.resolve():
            raise CommandError(
                f"Expected --json to be another file than --out. Received: {options.json}"
            )
    if options.dry_run:
        return
    if options.out.suffix == ARCHIVE:
        check_output(options.out, options.source, force=options.force)
    else:
        check_files(options)


def _arrays(path: Any, name: str, targets: bool | None = None) -> Arrays | None:
    return None if path is None else Arrays(path, targets=targets, name=name)


def _examples(arrays: Arrays | None, model: Any) -> tuple[Any, Any, Any] | None:
    return None if arrays is None else arrays.for_model(model)


def _seed(seed: int) -> None:
    import keras

    keras.utils.set_random_seed(seed)


def _trimmed(examples: tuple[Any, Any, Any] | None) -> Any:
    """Examples as `compressed` takes them."""
    return examples if examples is None or examples[1] is not None else examples[0]


class _Work:
    """What is done with a model that was opened.

    Args:
        options: The words of the command line.
        model: The float model.
        examples: Inputs, targets and sample weights to train on, or `None`.
        judged: The same to judge on, or `None`.
    """

    def __init__(self, options: argparse.Namespace, model: Any, examples: Any, judged: Any):
        self.options, self.model = options, model
        self.examples, self.judged = examples, judged
        self.plan: Any = None

    def done(self, its: dict[str, Any], conversion: dict[str, Any]) -> int:
        """Does all of it; the exit status."""
        from keras_qareg.compressing import compressed
        from keras_qareg.summaries import summary

        options, model = self.options, self.model
        named = {"--data": self.examples, "--validation-data": self.judged}
        given = {name: examples for name, examples in named.items() if examples is not None}
        _compile(model, options, any(examples[1] is not None for examples in given.values()))
        for name, examples in given.items():
            _check_examples(model, examples, name, options)
        gate = self._gate()
        if options.config is not None:
            self._explain()
        way = self._planned(its)
        if options.dry_run:
            return self._shown()
        self._say(self._sentence(its))
        done = compressed(model, _trimmed(self.examples), _trimmed(self.judged), way)
        if done.stages:
            self._say(done)
        self._say(summary(done.model, model))
        verdict = None if gate is None else gate.verdict(done.model)
        found = record(options, its, self.plan, done.stages, verdict)
        if verdict is not None:
            self._say(verdict)
        if verdict is not None and not verdict.passed:
            tell(
                f"Expected to lose at most {verdict.most:g} points of accuracy. Received: {verdict}, "
                f"{verdict.drop:.2f} points less. No model is written"
            )
            self._record(found)
            return TOO_MUCH
        file = self._write(done.model, conversion)
        self._record({**found, "file": file})
        say(_last_line(file, done.stages, verdict, self.judged is not None))
        return 0

    def _say(self, text: Any) -> None:
        if not self.options.quiet:
            say(text)

    def _record(self, content: dict[str, Any]) -> None:
        if self.options.json is not None:
            write_json(content, self.options.json)

    def _gate(self) -> Gate | None:
        options = self.options
        if options.max_accuracy_drop is None:
            return None
        return Gate(self.model, self.judged, options.max_accuracy_drop, options.batch_size or 64)

    def _explain(self) -> None:
        from keras_qareg.config import explain

        self._say(explain(self.model, self.options.config[1]))

    def _planned(self, its: dict[str, Any]) -> Any:
        """The arguments of `compressed`, with the plan in the place of a budget."""
        from keras_qareg.compressing import planned
        from keras_qareg.options import Options

        options = self.options
        shown: str | int = "auto" if sys.stdout.isatty() else 2  # elsewhere a bar is a mess
        if options.quiet or (options.dry_run and shown == 2):
            shown = 0
        given = {name: getattr(options, name) for name in _WORDS}
        form = "archive" if options.out.suffix == ARCHIVE else options.weights
        budget = budget_of(options)
        way = Options(
            **its,
            **{name: value for name, value in given.items() if value is not None},
            target_bytes=options.target_bytes,
            target_ratio=options.target_ratio,
            # Without a budget it is the writer's alone, which knows forms that no plan is made for.
            form="auto" if budget is None else form,
            # Files are written with these too, and full-integer then.
            representative_data=None if self.examples is None else self.examples[0],
            layers=options.layers,
            seed=options.seed,
            verbose=shown,
        )
        if budget is None:
            return way
        if not options.dry_run:
            self._say(f"Planning levels on {options.data}")
        self.plan = planned(self.model, _trimmed(self.examples), way)
        if not options.dry_run:
            self._say(self.plan)
        return dataclasses.replace(way, levels=self.plan, target_bytes=None, target_ratio=None)

    def _shown(self) -> int:
        say(self.plan)
        self._record({"model": self.options.source, "plan": plan_record(self.plan)})
        return 0

    def _sentence(self, its: dict[str, Any]) -> str:
        levels, options = its["levels"], self.options
        most = f"at most {levels} levels a kernel"
        if not isinstance(levels, int):
            most = "levels as said above"
        if self.examples is None:
            return f"Sharing weights, {most}\n{_SHARED_ONLY}"
        taught = "" if self.examples[1] is not None else "; without targets the float model teaches"
        return f"Training on {options.data} and sharing weights, {most}{taught}"

    def _write(self, network: Any, conversion: dict[str, Any]) -> dict[str, Any]:
        """Writes the file, says what it is, and returns what the record has of it."""
        options = self.options
        if options.out.suffix == ARCHIVE:
            from keras_qareg.export.archive.reading import describe

            self._say("Writing the archive and comparing it with Keras")
            size, float_bytes, proof = write_archive(network, options.out, self._check_size)
            self._say(f"{describe(options.out)}\n{proof}")
            return {
                **{"path": options.out, "form": "archive", "bytes": size},
                **{"float_bytes": float_bytes, "proof": proof},
            }
        self._say("Exporting and comparing with Keras")
        # The shared model, whose tables say how each kernel is held; not what strip makes of it.
        inputs = None if self.examples is None else self.examples[0]
        form = options.weights if self.plan is None else self.plan.weights
        made = write_litert(
            network,
            inputs,
            options,
            conversion,
            weights=form,
            plan=self.plan,
            check=self._check_size,
        )
        for report in made:
            self._say(report)
        return file_record(made[0])

    def _check_size(self, size: int, float_bytes: int) -> None:
        most = self.options.target_bytes
        if self.options.target_ratio is not None:
            most = int(self.options.target_ratio * float_bytes)
        if most is not None and size > most:
            raise CommandError(
                f"Expected a file of at most {most:,} bytes. Received: {size:,} once the planned "
                f"{self.plan.bytes:,} were trained, so it is not kept. Ask for about "
                f"{int(most * most / size):,}"
            )


def _last_line(
    file: dict[str, Any], stages: Any, verdict: Verdict | None, judged_apart: bool
) -> str:
    """What was written and what it is worth, on other examples than it trained on or not."""
    worth = "" if verdict is None else str(verdict)
    if not worth and stages:
        before, after = stages[0].results, stages[-1].results
        names = [name for name in after if name.endswith(("accuracy", "divergence"))]
        worth = ", ".join(
            f"{n} {after[n]:.4f}"
            if n.endswith("divergence")
            else f"{n} {100 * after[n]:.2f} % (float: {100 * before[n]:.2f} %)"
            for n in names
        )
        worth += "" if judged_apart else ", on training examples"
    return f"{file['path']}: {file['bytes']:,} bytes, {file['form']}{worth and f'; {worth}'}"


def _check_examples(
    model: Any, examples: tuple[Any, Any, Any], name: str, options: argparse.Namespace
) -> None:
    """Computes a model once, and its loss where there are targets, before anything long begins."""
    import keras

    from keras_qareg.models.training import check_targets, shapes_of

    if type(model).train_step is not keras.Model.train_step:
        return  # it knows what its loss is
    inputs = keras.tree.map_structure(lambda array: array[:1], examples[0])
    # Keras and each backend have errors of their own for what does not fit.
    try:
        model(inputs, training=False)
    except Exception as error:
        shapes = shapes_of(inputs)
        raise CommandError(
            f"Expected {name} that the model takes. Received: {shapes} ({plain(error)})"
        ) from error
    try:
        check_targets(model, examples, name)
    except ValueError as error:
        raise (_without_loss(options) if model.loss is None else error) from None


def _compile(model: Any, options: argparse.Namespace, targets: bool) -> None:
    """Compiles a model that has no loss, where there are targets to compare with."""
    import keras

    if options.loss is not None and not targets:
        raise CommandError("Expected examples with y, the targets, with --loss. Received: none")
    has_loss = model.compiled and model.loss is not None
    if options.loss is not None and has_loss:
        tell(f"warning: {options.source} is compiled with a loss, so --loss is not used")
    elif options.loss is not None:
        keras.losses.get(options.loss)  # raises where there is no such loss
        model.compile(loss=options.loss)
    elif targets and not model.compiled:
        raise _without_loss(options)


def _without_loss(options: argparse.Namespace) -> CommandError:
    return CommandError(
        f"Expected a compiled model to tune. Received: {options.source} without a loss. "
        "Name one, for example --loss sparse_categorical_crossentropy"
    )
