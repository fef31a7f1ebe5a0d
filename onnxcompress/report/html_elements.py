"""HTML by small pieces: text is escaped unless it was made here, so that no name of a graph can be markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxcompress.report.text import printable

_OPTION = re.compile(r"(?<![^\s(])(--[a-z][a-z-]{0,30}(?![a-z-]))")


class Markup(str):
    """HTML that was put together by this module's functions; a plain `str` is text."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Return text as HTML shows it: escaped, invisible characters spelled out."""
    return Markup(html.escape(printable(value), quote=True))


def element(tag: str, *content: str, **attributes: str | float | bool | None) -> Markup:
    """Return an element; `class_` is `class`, other underscores are hyphens, None and False leave an attribute out."""
    inner = join(content)
    return Markup(f"<{tag}{_attributes(attributes)}>{inner}</{tag}>")


def void(tag: str, **attributes: str | float | bool | None) -> Markup:
    """Return an element that has no content, such as `input`."""
    return Markup(f"<{tag}{_attributes(attributes)}>")


def join(parts: Iterable[str], separator: str = "") -> Markup:
    """Return parts one after another; those that are not `Markup` are escaped."""
    return Markup(separator.join(part if isinstance(part, Markup) else text(part) for part in parts))


def text_with_options(value: str) -> Markup:
    """Return text in which the names of options stay whole: a browser breaks lines behind hyphens."""
    parts = _OPTION.split(value)
    return join(element("span", part, class_="keep") if number % 2 else part for number, part in enumerate(parts))


@dataclass(frozen=True)
class Column:
    """A column's head; `kind` is the class of its cells (`number`, `name`, `wide` is hidden on a phone)."""

    title: str
    kind: str = ""

    @property
    def is_figure(self) -> bool:
        """Whether its cells say nothing without the head."""
        return bool({"number", "keep"} & set(self.kind.split()))


@dataclass(frozen=True)
class Cell:
    """A cell whose order is that of `value`, not of its text."""

    content: str
    value: float | None


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str | Cell]],
    *,
    sortable: bool = False,
    stack: bool = False,
    **attributes: str,
) -> Markup:
    """Return a table; with `sortable` its heads are buttons for the page's script.

    With `stack` each row is a small card on a phone, in which a figure stands below its column's head.
    """
    if stack:
        attributes["class_"] = " ".join(["stack", *attributes.get("class_", "").split()])
    heads = [
        element("th", element("button", c.title, type="button") if sortable and c.title else c.title, **_head(c))
        for c in columns
    ]
    body = [
        element("tr", *(_cell(content, column, stack) for content, column in zip(row, columns, strict=True)))
        for row in rows
    ]
    return element("table", element("thead", element("tr", *heads)), element("tbody", *body), **attributes)


def _head(column: Column) -> dict[str, str]:
    return {"class_": column.kind, "scope": "col"}


def _cell(content: str | Cell, column: Column, stack: bool) -> Markup:
    head = column.title if stack and column.is_figure else None
    if isinstance(content, Cell):
        # What is not known sorts below everything that is.
        value = -1.0 if content.value is None else content.value
        return element("td", content.content, class_=column.kind, data_value=f"{value:.10g}", data_head=head)
    return element("td", content, class_=column.kind, data_head=head)


def _attributes(attributes: dict[str, str | float | bool | None]) -> str:
    written = []
    for name, value in attributes.items():
        if value is None or value is False or value == "":
            continue
        key = name.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{text(str(value))}"')
    return "".join(written)
