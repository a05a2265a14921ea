"""Reports: titled sections of facts and tables, printed for a terminal (`terminal.show`) or for a pipe (`plain`).

On a terminal a report has colour and rules and fits the width: columns that say `since` what width they are worth their
place are left out on narrower ones, long texts are folded. In a pipe nothing is coloured, folded or left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from .text import printable

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


def bar(share: float, width: int = 20) -> str:
    """A share of 0 to 1 as a bar."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[part - 1] if part else "")).ljust(width, "·")


def level(share: float) -> str:
    """How a share of something that can run out looks."""
    return GOOD if share < 0.8 else WARN if share < 0.95 else BAD
