"""What `allocate` decided: the levels of each kernel, their bytes, and what they do to the outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from keras_qareg.report import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A point of the trade-off: bytes of the whole file, divergence of the outputs.
Point = tuple[int, float]


@dataclass(frozen=True)
class PlannedKernel:
    """One kernel of a plan.

    Attributes:
        path: Its path in the plain model.
        weights: How many weights it has.
        levels: How many values it is to have, or `None`: it stays float.
        bytes: Its bytes in the file, with tables.
        loss: The divergence that it alone would cause; the first kernel of a layer has that of all.
        rate: What a bit costs in squared error, for rate-distortion clustering; `None` for levels.
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
        curve: `(bytes, loss)` of the best plans for other budgets.
        uniform: `(bytes, loss)` of one number of levels for all kernels, by that number.

    Example:

    >>> row = PlannedKernel("fc/kernel", weights=128, levels=4, bytes=48, loss=0.01)
    >>> plan = Plan("smallest", 1500, 0.01, (row,))
    >>> dict(plan.levels)
    {'fc/kernel': 4}
    >>> print(plan)
    kernel                weights  levels  bits/weight  bytes     loss
    --------------------  -------  ------  -----------  -----  -------
    fc/kernel                 128       4         3.00     48  1.0e-02
    whole file: smallest                                1,500  1.0e-02
    """

    weights: str
    bytes: int
    loss: float
    rows: tuple[PlannedKernel, ...]
    curve: tuple[Point, ...] = ()
    uniform: Mapping[int, Point] = field(default_factory=dict)

    @property
    def levels(self) -> Mapping[str, int | None]:
        """The levels of each kernel by path; `None` is float."""
        return MappingProxyType({row.path: row.levels for row in self.rows})

    @property
    def rates(self) -> Mapping[str, float]:
        """The rate of each kernel that has one, by path."""
        rates = {row.path: row.rate for row in self.rows if row.rate is not None}
        return MappingProxyType(rates)

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
        return table(header, [*lines, total])

    def plot(self) -> Figure:
        """The loss against bytes; as `plots.plan`."""
        from keras_qareg import plots

        return plots.plan(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the plan as YAML, to be read and changed by hand; returns the path of the file."""
        path, yaml = Path(path), _yaml()
        found = {
            "weights": self.weights,
            "bytes": self.bytes,
            "loss": self.loss,
            "kernels": {row.path: _entry(row) for row in self.rows},
            "curve": [list(point) for point in self.curve],
            "uniform": {levels: list(point) for levels, point in self.uniform.items()},
        }
        path.write_text(yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=100))
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
        yaml = _yaml()
        try:
            found = yaml.safe_load(Path(path).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"Expected a plan as YAML. Received: {error} (file '{path}')") from None
        try:
            return _plan(found)
        except ValueError as error:
            raise ValueError(f"{error} (file '{path}')") from None


_NUMBERS = ("weights", "levels", "bytes", "loss", "rate")


def _entry(row: PlannedKernel) -> dict[str, Any]:
    found = {name: value for name, value in asdict(row).items() if name != "path"}
    return found if row.rate is not None else {k: v for k, v in found.items() if k != "rate"}


def _plan(found: Any) -> Plan:
    _check_names(found, [one.name for one in fields(Plan) if one.name != "rows"], "kernels")
    kernels = found["kernels"]
    if not isinstance(kernels, dict) or not kernels:
        raise ValueError(f"Expected `kernels` by path. Received: {kernels!r}")
    rows = []
    for path, entry in kernels.items():
        _check_names(entry, [name for name in _NUMBERS if name != "rate"], None, ("rate",), path)
        levels = entry["levels"]
        if levels is not None and not (_is_whole(levels) and 2 <= levels <= 256):
            raise ValueError(
                f"Expected `levels` of '{path}' from 2 to 256, or null for float. Received: {levels!r}"
            )
        for name in ("weights", "bytes", "loss"):
            _check_number(entry[name], f"`{name}` of '{path}'")
        if entry.get("rate") is not None:
            _check_number(entry["rate"], f"`rate` of '{path}'")
        rows.append(PlannedKernel(path, **entry))
    for name in ("bytes", "loss"):
        _check_number(found[name], f"`{name}`")
    curve = tuple(_point(point) for point in found["curve"])
    uniform = {levels: _point(point) for levels, point in dict(found["uniform"]).items()}
    sizes = found["weights"], found["bytes"], found["loss"]
    return Plan(*sizes, tuple(rows), curve, MappingProxyType(uniform))


def _check_names(
    found: Any, names: list[str], also: str | None, free: tuple[str, ...] = (), where: str = ""
) -> None:
    wanted = [*names, *([also] if also else [])]
    said = f" of '{where}'" if where else ""
    if not isinstance(found, dict):
        raise ValueError(f"Expected a plan with {wanted}{said}. Received: {found!r}"[:200])
    unknown = [name for name in found if name not in (*wanted, *free)]
    lacking = [name for name in wanted if name not in found]
    if unknown or lacking:
        raise ValueError(
            f"Expected a plan with {wanted}{said}. Received: "
            + "; ".join(
                f"{what} {names}"
                for what, names in (("unknown names", unknown), ("none of", lacking))
                if names
            )
        )


def _point(point: Any) -> Point:
    if not isinstance(point, list) or len(point) != 2:
        raise ValueError(f"Expected points of bytes and loss. Received: {point!r}")
    for number in point:
        _check_number(number, "a point")
    return point[0], point[1]


def _check_number(value: Any, what: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f"Expected {what} to be a number, 0 or more. Received: {value!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError("Plans as files need PyYAML: pip install pyyaml") from error
    return yaml
