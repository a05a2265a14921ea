"""Reports: titled sections of facts and tables, printed for people (`show`) or for programs and files (`plain`).

On a terminal a report has colour and rules and fits the width: columns that say `since` what width they are worth their
place are left out on narrower ones, long texts are folded. In a pipe nothing is coloured, folded or left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .text import printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

GOOD, WARN, BAD, DIM, PLAIN = "green", "yellow", "bold red", "dim", ""


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """A text and how it looks on a terminal."""

    text: str
    style: str = PLAIN

    @property
    def clean(self) -> str:
        """The text, fit to be printed."""
        return printable(self.text)


Words = str | Cell


def cell(words: Words) -> Cell:
    return words if isinstance(words, Cell) else Cell(words)


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """since: the narrowest terminal, in characters, that has room for it. folds: it may take several lines there."""

    title: str
    right: bool = False
    folds: bool = False
    since: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    title: str
    rows: list[tuple[str, Words]]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; `more` says what was left out, `empty` what is said instead of no rows."""

    title: str
    columns: list[Column]
    rows: list[list[Words]]
    more: str = ""
    empty: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Lines:
    """Sentences, each with a mark in front."""

    title: str
    lines: list[Words]
    mark: str = "!"


Section = Facts | Table | Lines


# ---- in a pipe


def plain(sections: list[Section]) -> str:
    """The report as text: aligned, with nothing left out."""
    return "\n\n".join("\n".join(_plain(section)) for section in sections)


def _plain(section: Section) -> Iterator[str]:
    if section.title:
        yield section.title
    if isinstance(section, Lines):
        yield from (f"  {section.mark} {cell(line).clean}" for line in section.lines)
    elif isinstance(section, Facts):
        width = max((len(name) for name, _ in section.rows), default=0)
        yield from (f"  {name:<{width}}  {cell(value).clean}".rstrip() for name, value in section.rows)
    else:
        yield from _plain_table(section)


def _plain_table(table: Table) -> Iterator[str]:
    indent = "  " if table.title else ""
    if not table.rows:
        yield indent + table.empty
        return
    rows = [[column.title for column in table.columns], *([cell(words).clean for words in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        columns = zip(row, widths, table.columns, strict=True)
        yield (indent + "  ".join(f"{text:{'>' if c.right else '<'}{width}}" for text, width, c in columns)).rstrip()
    if table.more:
        yield indent + table.more


# ---- on a terminal


def show(console: Console, sections: list[Section]) -> None:
    """Print the report on a terminal."""
    for number, section in enumerate(sections):
        if number:
            console.print()
        for part in _rich(section, console.width):
            console.print(part)


def _rich(section: Section, width: int) -> Iterator[RenderableType]:
    from rich.table import Table as Grid
    from rich.text import Text

    if section.title:
        yield Text(section.title, style="bold")
    if isinstance(section, Table):
        yield from _rich_table(section, width)
        return
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style=DIM if isinstance(section, Facts) else PLAIN)
    grid.add_column(overflow="fold")
    if isinstance(section, Facts):
        for name, value in section.rows:
            grid.add_row("  " + name, Text(cell(value).clean, style=cell(value).style))
    else:
        grid.padding = (0, 1, 0, 0)
        for line in section.lines:
            style = cell(line).style or WARN
            grid.add_row(Text(f"  {section.mark}", style=style), Text(cell(line).clean, style=style))
    yield grid


def _rich_table(table: Table, width: int) -> Iterator[RenderableType]:
    from rich import box
    from rich.padding import Padding
    from rich.table import Table as Grid
    from rich.text import Text

    if not table.rows:
        yield Text("  " + table.empty, style=DIM)
        return
    shown = [i for i, column in enumerate(table.columns) if column.since <= width]
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style=DIM)
    for column in (table.columns[i] for i in shown):
        justify = "right" if column.right else "left"
        grid.add_column(
            column.title, justify=justify, no_wrap=not column.folds, overflow="fold" if column.folds else "ellipsis"
        )
    for row in table.rows:
        grid.add_row(*(Text(cell(row[i]).clean, style=cell(row[i]).style) for i in shown))
    yield Padding(grid, (0, 0, 0, 2))
    if table.more:
        yield Text("  " + table.more, style=DIM)


def bar(share: float, width: int = 20) -> str:
    """A share of 0 to 1 as a bar."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[part - 1] if part else "")).ljust(width, "·")


def level(share: float) -> str:
    """How a share of something that can run out looks."""
    return GOOD if share < 0.8 else WARN if share < 0.95 else BAD
