"""Arrays in a `.npz` file, for the inputs and targets of a model."""

from __future__ import annotations

import contextlib
import difflib
import warnings
from pathlib import Path
from typing import Any

from keras_qareg.cli.messages import CommandError, plain
from keras_qareg.cli.paths import Kind, kind_of

_WEIGHTS = "sample_weight"
# How alike a name is that was meant: as Y and y, or sample_weights and sample_weight.
_ALIKE = 0.9
_HOW = "Write one with numpy.savez(FILE, x=..., y=...)"


class Arrays:
    """The arrays of a file, read when they are asked for.

    Args:
        path: The file.
        targets: Whether there must be targets beside the inputs; `None`: there may be.
        name: The word of the command line that names the file.

    Raises:
        CommandError: If it is no `.npz`, lacks arrays, or has empty ones or ones of several lengths, as
            far as can be told without the model.
    """

    def __init__(self, path: Path, *, targets: bool | None, name: str = "--data"):
        import numpy as np

        self.path, self.targets, self.name = path, targets, name
        if not path.exists():
            raise CommandError(
                f"Expected a .npz file for {name}. Received: {path}, which does not exist"
            )
        with self._reading():
            kind = kind_of(path)
        if kind is not Kind.NPZ:
            raise CommandError(
                f"Expected a .npz file for {name}. Received: {path}, which is {kind.value}. {_HOW}"
            )
        with self._reading():
            self._file = np.load(path, allow_pickle=False)
        self._read: dict[str, Any] = {}
        names = set(self._file.files)
        if "x" not in names and len(names - {_WEIGHTS}) < 1 + bool(targets):
            raise self._lacking("x" + " and y" * bool(targets))
        weighted = _WEIGHTS in names and targets is None
        if names <= {"x", _WEIGHTS} and (targets or weighted):
            raise self._lacking("y, the targets")
        if "x" in names:
            self._check(["x", *(["y", _WEIGHTS] if targets is not False else [])])

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            with self._reading():
                self._read[name] = self._file[name]
        return self._read[name]

    def for_model(self, model: Any) -> Any:
        """What the model takes: checked inputs, or a tuple of these, targets and sample weights.

        The last two are `None` where there need not be any, and are none.

        Raises:
            CommandError: If an array is missing, or does not fit.
        """
        from keras_qareg.data import read, samples

        names, inputs = self._inputs(model)
        if self.targets is not False:
            self._check_spelling(names, model)
        if self.targets is False:
            self._check(names)
            # Checked, and in the structure of the model's inputs.
            return samples(inputs, model, count=len(self[names[0]]), name=self.name)
        if self.targets is None and not self._has_targets(model, names):
            self._check(names)
            self._warn_of_others(names)
            return samples(inputs, model, count=len(self[names[0]]), name=self.name), None, None
        more, outputs = self._outputs(model, names)
        weights = [self[_WEIGHTS]] if _WEIGHTS in self._file.files else []
        self._check([*names, *more, _WEIGHTS])
        return read((inputs, outputs, *weights), model, name=self.name).whole

    def _inputs(self, model: Any) -> tuple[list[str], Any]:
        import keras

        from keras_qareg.inputs import expected_inputs

        expected = expected_inputs(model)
        specs = [] if expected is None else keras.tree.flatten(expected)
        single = len(specs) < 2
        if single and "x" in self._file.files:
            return ["x"], self["x"]
        names = list(expected) if isinstance(expected, dict) else [spec.name for spec in specs]
        if not names or set(names) - set(self._file.files):
            wanted = ["x"] if single else names
            raise self._lacking(f"{_listed(wanted)}, the input{'s' * (not single)} of the model")
        return names, {name: self[name] for name in names}

    def _check_spelling(self, taken: list[str], model: Any) -> None:
        """That no array is named nearly as targets or weights are: it would not count."""
        outputs, held = _names_of_outputs(model), set(self._file.files)
        known = ["y", _WEIGHTS, *outputs]
        complete = "y" in held or held.issuperset(outputs or ["y"])
        wanted = [_WEIGHTS] if complete else known
        lacking = {its.lower(): its for its in wanted if its not in held}
        for name in sorted(held - {*taken, *known}):
            for meant in difflib.get_close_matches(name.lower(), lacking, 1, _ALIKE):
                raise CommandError(
                    f"Expected the arrays of {self.name} to be named x, y and {_WEIGHTS}. Received: "
                    f"{self.path}, which holds {name} (did you mean {lacking[meant]}?)"
                )

    def _warn_of_others(self, taken: list[str]) -> None:
        if others := sorted(set(self._file.files) - set(taken)):
            warnings.warn(
                f"{_listed(others)} in {self.path} is not used: targets are named y, or by the outputs",
                stacklevel=2,
            )

    def _has_targets(self, model: Any, taken: list[str]) -> bool:
        """Whether an array is named as targets are, or there are weights, which need them."""
        named = {"y", _WEIGHTS, *_names_of_outputs(model)}
        return bool(named & (set(self._file.files) - set(taken)))

    def _outputs(self, model: Any, taken: list[str]) -> tuple[list[str], Any]:
        """Names and arrays of the targets, in the structure of the model's outputs."""
        structure, names = getattr(model, "output", None), _names_of_outputs(model)
        if len(names) < 2 and "y" in self._file.files and "y" not in taken:
            return ["y"], self["y"]
        if not names or set(names) - set(self._file.files):
            wanted = names if len(names) > 1 else ["y"]
            raise self._lacking(
                f"{_listed(wanted)}, the targets{' of its outputs' * (len(names) > 1)}"
            )
        arrays = [self[name] for name in names]
        if isinstance(structure, dict):
            return names, dict(zip(names, arrays, strict=True))
        return names, arrays if len(arrays) > 1 else arrays[0]

    def _check(self, names: list[str]) -> None:
        """That there are examples, as many in each array."""
        sizes = {}
        for name in names:
            if name not in self._file.files:
                continue
            shape = self[name].shape
            if not shape or not shape[0]:
                raise CommandError(
                    f"Expected examples in array {name} of {self.name}. Received: {self.path} with "
                    f"{name} of shape {shape}"
                )
            sizes[name] = shape[0]
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size:,} in {name}" for name, size in sizes.items())
            raise CommandError(
                f"Expected as many examples in each array of {self.name}. Received: {self.path} with "
                f"{found}"
            )

    def _lacking(self, wanted: str) -> CommandError:
        found = _listed(self._file.files) or "nothing"
        return CommandError(
            f"Expected {self.name} to hold {wanted}. Received: {self.path}, which holds {found}"
        )

    @contextlib.contextmanager
    def _reading(self) -> Any:
        try:
            yield
        # A damaged file makes zipfile, zlib and NumPy raise many things.
        except Exception as error:
            raise CommandError(
                f"Expected a readable .npz file for {self.name}. Received: {self.path} "
                f"({plain(error)})"
            ) from error


def _names_of_outputs(model: Any) -> list[str]:
    from keras_qareg.models.distilling import names_of_outputs

    return names_of_outputs(model)


def _listed(names: list[str]) -> str:
    return ", ".join(names)
