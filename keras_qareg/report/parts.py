"""Parts of the page: sections, tables that can be sorted, lists of facts, bars of bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from keras_qareg.report.figures import bar, stacked
from keras_qareg.report.markup import DASH, Markup, joined, name, number, tag

# Bars that a page shows; what is smaller is one more.
_BARS = 20


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        label: Its heading.
        number: Whether it has numbers, which stand to the right.
        wide: Whether a phone, which has no room for it, leaves it out.
    """

    label: str
    number: bool = True
    wide: bool = False


class Cell(NamedTuple):
    """A cell: what is shown, and what it is sorted by; what has no key comes last."""

    shown: Any
    key: Any = None


class Line(NamedTuple):
    """A line of a table.

    Attributes:
        cells: Its cells, the first of which is its heading.
        more: What it shows once it is opened, or `None`.
        place: What links to it are to, or `None`.
    """

    cells: Sequence[Cell]
    more: Markup | None = None
    place: str | None = None


def whole(value: int | None) -> Cell:
    """A whole number, or a dash."""
    return Cell(DASH if value is None else f"{value:,}", value)


def decimal(value: float | None, digits: int = 3) -> Cell:
    """A number in few digits, or a dash."""
    return Cell(DASH if value is None else number(value, digits), value)


def word(text: Any) -> Cell:
    """A name or another text."""
    return Cell(name(text), str(text).lower())


def said(text: Any) -> Cell:
    """A text of this package."""
    return Cell(text, str(text))


def section(place: str, title: str, *content: Any) -> Markup:
    """A part of the page with a heading."""
    heading = tag("h2", title, id=f"{place}-title")
    return tag("section", heading, *content, id=place, aria_labelledby=f"{place}-title")


def sortable(place: str, caption: str, columns: Sequence[Column], lines: Sequence[Line]) -> Markup:
    """A table whose columns can be sorted, and whose lines can be opened."""
    heads = [
        tag("th", tag("button", column.label, type="button"), scope="col", class_=_class(column))
        for column in columns
    ]
    table = tag(
        "table",
        tag("caption", caption, id=f"{place}-caption"),
        tag("thead", tag("tr", *heads)),
        *(_body(line, f"{place}-{count}", columns) for count, line in enumerate(lines, 1)),
        class_="sortable",
        id=f"{place}-table",
    )
    # What is too wide for a screen can be moved by keys.
    around = tag(
        "div", table, class_="scroll", role="region", aria_labelledby=f"{place}-caption", tabindex=0
    )
    return joined(_openers() if any(line.more is not None for line in lines) else None, around)


def _openers() -> Markup:
    """Buttons that open and close all lines of a table."""
    buttons = [
        tag("button", f"{title} all", type="button", data_every=opened)
        for title, opened in (("Open", "true"), ("Close", "false"))
    ]
    told = tag("p", "Open a line to see its values.", class_="quiet scripted")
    return joined(told, tag("p", *buttons, class_="buttons scripted"))


def _class(column: Column) -> str | None:
    words = [*(["number"] if column.number else []), *(["wide"] if column.wide else [])]
    return " ".join(words) or None


def _body(line: Line, place: str, columns: Sequence[Column]) -> Markup:
    first, *rest = line.cells
    head: Any = first.shown
    if line.more is not None:
        more = f"{place}-more"
        head = tag(
            "button",
            head,
            type="button",
            class_="opener",
            aria_expanded="true",
            aria_controls=more,
        )
    cells = [
        tag("td", cell.shown, class_=_class(column), data_key=cell.key)
        for cell, column in zip(rest, columns[1:], strict=True)
    ]
    rows = [tag("tr", tag("th", head, scope="row", data_key=first.key), *cells)]
    if line.more is not None:
        inside = tag("td", line.more, colspan=len(columns))
        rows.append(tag("tr", inside, class_="more", id=more))
    return tag("tbody", *rows, id=line.place)


def plain_table(caption: str, heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> Markup:
    """A small table: the first column has texts or values, the others numbers."""
    rows = [
        tag(
            "tr",
            tag("th", line[0], scope="row"),
            *(tag("td", cell, class_="number") for cell in line[1:]),
        )
        for line in lines
    ]
    first, *others = heads
    top = [
        tag("th", first, scope="col"),
        *(tag("th", head, scope="col", class_="number") for head in others),
    ]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *top)),
        tag("tbody", *rows),
        class_="small",
    )


def facts(pairs: Iterable[tuple[str, Any]], kind: str = "facts") -> Markup:
    """What is known, as names and values; what is `None` is left out."""
    shown = [
        tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs if value is not None
    ]
    return tag("dl", *shown, class_=kind)


def folded(title: str, *content: Any) -> Markup:
    """What is shown once it is asked for."""
    return tag("details", tag("summary", title), *content)


def shares(parts: Sequence[tuple[str, str, int]]) -> Markup:
    """Parts of a whole: name, explanation and bytes of each."""
    sum_ = sum(size for *_, size in parts)
    rows = [
        (
            joined(
                tag("span", class_=f"swatch part-{place}", aria_hidden="true"),
                title,
                tag("span", f" {what}", class_="quiet"),
            ),
            f"{size:,}",
            f"{percent(size, sum_)}",
        )
        for place, (title, what, size) in enumerate(parts)
        if size
    ]
    lines = [*rows, ("the whole file", f"{sum_:,}", "100 %")]
    return joined(
        stacked([size for *_, size in parts]),
        plain_table("What the bytes of the file are for", ("part", "bytes", "share"), lines),
    )


def percent(part: float, whole: float) -> str:
    """A share, as `12.3 %`."""
    return f"{100 * part / whole:.1f} %" if whole else DASH


def bars(sizes: Sequence[tuple[str, int, str | None]], rest: tuple[str, int] | None) -> Markup:
    """Bytes as bars, the largest first.

    Args:
        sizes: Name, bytes, and the place that a link is to or `None`, of each.
        rest: The same of all else, without a link; or `None`.
    """
    shown = sorted(sizes, key=lambda part: -part[1])
    left = shown[_BARS:]
    lines: list[tuple[Any, int]] = [
        (name(title) if place is None else tag("a", name(title), href=f"#{place}"), size)
        for title, size, place in shown[:_BARS]
    ]
    if left:
        lines.append((f"{len(left):,} smaller ones", sum(size for _, size, _ in left)))
    if rest is not None:
        lines.append(rest)
    sum_, most = sum(size for _, size in lines), max((size for _, size in lines), default=0)
    items = [
        tag(
            "li",
            tag("span", title, class_="what"),
            bar(size, most),
            tag("span", f"{size:,}", tag("small", f" {percent(size, sum_)}"), class_="size"),
        )
        for title, size in lines
    ]
    return tag("ol", *items, class_="bytes")
