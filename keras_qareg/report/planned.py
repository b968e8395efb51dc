"""A plan on the page: its curve, and what it expects of each kernel."""

from __future__ import annotations

from keras_qareg.plans import Plan
from keras_qareg.report.figures import bar, curve
from keras_qareg.report.markup import Markup, number, tag
from keras_qareg.report.parts import (
    Cell,
    Column,
    Line,
    decimal,
    folded,
    plain_table,
    section,
    sortable,
    whole,
    word,
)

_COLUMNS = (
    Column("Kernel", number=False),
    Column("Weights", wide=True),
    Column("Levels"),
    Column("Bits a weight", wide=True),
    Column("Bytes"),
    Column("Loss"),
    Column("Share of the loss", number=False, wide=True),
)


def plan_section(plan: Plan) -> Markup:
    """The trade-off that was found, and the sensitivity of each kernel."""
    most = max((row.loss for row in plan.rows), default=0.0)
    lines = [
        Line(
            [
                word(row.path),
                whole(row.weights),
                Cell("float") if row.levels is None else whole(row.levels),
                Cell(f"{row.bits:.2f}", row.bits),
                whole(row.bytes),
                decimal(row.loss, 2),
                Cell(bar(row.loss, most), row.loss),
            ]
        )
        for row in plan.rows
    ]
    told = (
        f"Levels of each kernel for {plan.bytes:,} bytes ({plan.weights}). The loss is how far the "
        "outputs are from those of the float model (a divergence; 0 is equal)."
    )
    return section(
        "plan",
        "Plan",
        tag("p", told),
        _picture(plan),
        _points(plan),
        sortable("planned", "What the plan expects of each kernel", _COLUMNS, lines),
    )


def _picture(plan: Plan) -> Markup | None:
    label = (
        f"Loss against bytes. This plan: {plan.bytes:,} bytes, loss {number(plan.loss, 2)}; "
        f"{len(plan.curve)} other budgets, {len(plan.uniform)} numbers of levels for all kernels"
    )
    picture = curve(plan.curve, plan.uniform, (plan.bytes, plan.loss), label)
    legend = [
        tag("li", tag("span", class_=f"swatch {kind}", aria_hidden="true"), text)
        for kind, text, there in (
            ("chosen", "this plan", True),
            ("line", "levels by budget", bool(plan.curve)),
            ("dot", "the same levels for all kernels", bool(plan.uniform)),
        )
        if there
    ]
    if picture is None:
        return None
    return tag("figure", picture, tag("ul", *legend, class_="legend"), class_="wide-figure")


def _points(plan: Plan) -> Markup:
    """What the figure shows, as a table."""
    points = [("by budget", *point) for point in sorted(plan.curve)]
    points += [(f"{levels} for all", *point) for levels, point in plan.uniform.items()]
    points.append(("this plan", plan.bytes, plan.loss))
    lines = [(title, f"{size:,}", number(loss, 2)) for title, size, loss in points]
    return folded("The points", plain_table("Bytes and losses", ("levels", "bytes", "loss"), lines))
