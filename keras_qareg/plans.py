"""What `allocate` decided: the levels of each kernel, their bytes, and what they do to the outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from keras_qareg import settings
from keras_qareg.choices import check_choice, check_count, check_number, from_zero
from keras_qareg.files import check_target
from keras_qareg.models.configuring import ARGUMENTS, check_value
from keras_qareg.summaries import table as text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The forms of file that a plan may be for.
FORMS = (
    *("auto", "smallest", "codebook", "tflm", "int8-exact", "int4-exact", "int2-exact", "int8"),
    "archive",
)
# A point of the trade-off: bytes of the whole file, divergence of the outputs.
Point = tuple[int, float]


@dataclass(frozen=True)
class PlannedKernel:
    """One kernel of a plan.

    Attributes:
        path: Its path in the plain model.
        weights: How many weights it has.
        levels: How many values it is to have, or `None`: it stays float.
        bytes: Its bytes in the file, with its table.
        loss: The divergence that it causes, as predicted.
        rate: What a bit may cost in squared weights, for rate-distortion clustering; `None`: its levels
            are those of k-means.
    """

    path: str
    weights: int
    levels: int | None
    bytes: int
    loss: float
    rate: float | None = None

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return 8 * self.bytes / self.weights


@dataclass(frozen=True)
class Plan:
    """How many values each kernel is to have; `str()` is a table. It goes wherever `levels` goes.

    Attributes:
        weights: The form of file that it is for, as in `export.litert`; or `"archive"`.
        bytes: Bytes of the whole file.
        loss: Divergence of the outputs from the float model's, measured after recalibration.
        rows: A `PlannedKernel` each, in the order of the model.
        curve: `(bytes, loss)` of the plans for other budgets.
        uniform: `(bytes, loss)` of one number of levels for all kernels, by that number.
        table: What values kernels are to have: pass it to `share_weights` too, if it is not `"int8"`.
        scale: The same of `scale`, if it is not `"auto"`.
        group_size: The same of `group_size`, if it is not `None`.

    Example:

    >>> row = PlannedKernel("fc/kernel", weights=128, levels=4, bytes=48, loss=0.01)
    >>> plan = Plan("smallest", 1500, 0.01, rows=(row,))
    >>> dict(plan.levels)
    {'fc/kernel': 4}
    >>> print(plan)
    kernel                weights  levels  bits/weight  bytes     loss
    --------------------  -------  ------  -----------  -----  -------
    fc/kernel                 128       4         3.00     48  1.0e-02
    whole file: smallest                                1,500  1.0e-02

    See also: https://keras-qareg.github.io/keras-qareg/concepts.html#levels-by-budget
    """

    weights: str
    bytes: int
    loss: float
    _: KW_ONLY
    rows: tuple[PlannedKernel, ...]
    curve: tuple[Point, ...] = ()
    uniform: Mapping[int, Point] = field(default_factory=dict)
    table: Any = "int8"
    scale: Any = "auto"
    group_size: Any = None

    @property
    def levels(self) -> Mapping[str, int | None]:
        """The levels of each kernel by path; `None` is float."""
        return MappingProxyType({row.path: row.levels for row in self.rows})

    @property
    def rates(self) -> Mapping[str, float]:
        """The rate of each kernel that has one, by path."""
        rates = {row.path: row.rate for row in self.rows if row.rate is not None}
        return MappingProxyType(rates)

    @property
    def writer(self) -> str:
        """The call that writes a file of the planned form."""
        if self.weights == "archive":
            return "export.save_archive(model, path)"
        return f"export.litert(model, path, {self.weights!r})"

    def __str__(self) -> str:
        rated = bool(self.rates)
        lines = []
        for row in self.rows:
            rate = () if not rated else ("-" if row.rate is None else f"{row.rate:.1e}",)
            levels = "float" if row.levels is None else str(row.levels)
            numbers = (f"{row.bits:.2f}", f"{row.bytes:,}", f"{row.loss:.1e}")
            lines.append((row.path, f"{row.weights:,}", levels, *rate, *numbers))
        header = ("kernel", "weights", "levels", *(("rate",) if rated else ()))
        header = (*header, "bits/weight", "bytes", "loss")
        blank = [""] * (len(header) - 3)
        total = (f"whole file: {self.weights}", *blank, f"{self.bytes:,}", f"{self.loss:.1e}")
        return text_table(header, [*lines, total])

    def plot(self) -> Figure:
        """The loss against bytes; as `plots.plan`."""
        from keras_qareg import plots

        return plots.plan(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the plan as YAML, to be read and changed by hand.

        `levels` of the transforms takes such a file too.

        Args:
            path: The file to write, ending in `.yaml` or `.yml`.

        Returns:
            The path of the file.

        Raises:
            ValueError: If it ends otherwise or its folder does not exist, or `table`, `scale` or
                `group_size` is a function.
        """
        import yaml

        path = Path(path)
        if path.suffix not in settings.SUFFIXES:
            raise ValueError(f"Expected the name of a YAML file, .yaml or .yml. Received: {path}")
        check_target(path)
        for name in _SETTINGS:
            if callable(getattr(self, name)):
                raise ValueError(
                    f"Expected `{name}` as a text or a dict, which a file can hold. Received: a function"
                )
        kernels = {row.path: _numbers_of(row) for row in self.rows}
        levels = {"levels": {row.path: row.levels or "float" for row in self.rows}}
        content = {
            # Levels without their rates would be those of another plan.
            **({} if self.rates else levels),
            **{name: getattr(self, name) for name in _SETTINGS},
            settings.NOTES: {
                **(levels if self.rates else {}),
                "weights": self.weights,
                "bytes": self.bytes,
                "loss": self.loss,
                "kernels": kernels,
                "curve": [list(point) for point in self.curve],
                "uniform": {levels: list(point) for levels, point in self.uniform.items()},
            },
        }
        text = yaml.safe_dump(content, sort_keys=False, width=100, default_flow_style=None)
        settings.write(path, text)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a plan that `save` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: If it is no such file, or has names or values that no plan has.
            FileNotFoundError: If there is no such file.
        """
        try:
            return _plan(settings.parsed(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


_SETTINGS = ("table", "scale", "group_size")
_OF_PLAN = ("weights", "bytes", "loss", "kernels", "curve", "uniform")
_OF_KERNEL = ("weights", "bytes", "loss")


def _numbers_of(row: PlannedKernel) -> dict[str, Any]:
    rate = {} if row.rate is None else {"rate": row.rate}
    return {"weights": row.weights, "bytes": row.bytes, "loss": row.loss, **rate}


def _plan(content: Any) -> Plan:
    _check_names("a plan", content, (*_SETTINGS, settings.NOTES), ("levels",))
    notes = content[settings.NOTES]
    _check_names(f"`{settings.NOTES}`", notes, _OF_PLAN, ("levels",))
    levels, kernels = content.get("levels", notes.get("levels")), notes["kernels"]
    for name, part in (("levels", levels), ("kernels", kernels)):
        if not isinstance(part, dict) or not part:
            raise ValueError(f"Expected `{name}` by paths of kernels. Received: {part!r}")
    _check_names("`levels`", levels, kernels)
    rows = []
    for path, numbers in kernels.items():
        _check_names(f"'{path}'", numbers, _OF_KERNEL, ("rate",))
        count = None if levels[path] in (None, "float") else levels[path]
        whole = isinstance(count, int) and not isinstance(count, bool)
        if count is not None and not (whole and 2 <= count <= 256):
            raise ValueError(
                f"Expected levels of '{path}' from 2 to 256, or float. Received: {count!r}"
            )
        for name, value in numbers.items():
            _check_number(name, value, f" of '{path}'")
        rows.append(PlannedKernel(path, levels=count, **numbers))
    check_choice("weights", notes["weights"], FORMS)
    for name in _SETTINGS:
        check_value(ARGUMENTS[name], content[name])
    for name in ("bytes", "loss"):
        _check_number(name, notes[name])
    curve = tuple(_point(point) for point in notes["curve"])
    uniform = {count: _point(point) for count, point in notes["uniform"].items()}
    numbers = notes["weights"], notes["bytes"], notes["loss"]
    settled = {name: content[name] for name in _SETTINGS}
    return Plan(*numbers, rows=tuple(rows), curve=curve, uniform=uniform, **settled)


def _check_names(where: str, found: Any, names: Iterable[str], free: tuple[str, ...] = ()) -> None:
    known = [*names]
    if not isinstance(found, dict):
        raise ValueError(f"Expected {where} with {known}. Received: {found!r}")
    unknown = [str(name) for name in found if name not in (*known, *free)]
    if unknown:
        raise ValueError(
            f"Expected {where} with {known}. Received unknown names: "
            f"{settings.guessed(unknown, known)}"
        )
    lacking = [name for name in known if name not in found]
    if lacking:
        raise ValueError(f"Expected {where} with {known}. Received: one without {lacking}")


def _point(point: Any) -> Point:
    if not isinstance(point, list) or len(point) != 2:
        raise ValueError(f"Expected points of bytes and loss. Received: {point!r}")
    for name, number in zip(("bytes", "loss"), point, strict=True):
        _check_number(name, number, " of a point")
    return point[0], point[1]


def _check_number(name: str, value: Any, of: str = "") -> None:
    """Raises a `ValueError` unless a number of a plan is one, and whole where it counts something."""
    if name in ("bytes", "weights"):
        check_count(f"{name}{of}", value, least=int(name == "weights"))
    else:
        check_number(f"{name}{of}", value, "a number, 0 or more", from_zero)
