"""What needs rich: reports on a terminal, and the progress bar. Loaded only when there is a terminal to print to."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table as Grid
from rich.text import Text

from .report import DIM, PLAIN, WARN, Facts, Section, Table, cell


def show(sections: list[Section]) -> None:
    """Print a report on standard output."""
    console = Console(highlight=False)
    for number, section in enumerate(sections):
        if number:
            console.print()
        for part in _rich(section, console.width):
            console.print(part)


class Screen:
    """A report that takes the whole terminal, and is shown anew in its place; at the end what was there before is back."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, value, trace)

    def show(self, sections: list[Section]) -> None:
        parts: list[RenderableType] = []
        for number, section in enumerate(sections):
            parts += ["", *_rich(section, self._console.width)] if number else [*_rich(section, self._console.width)]
        self._live.update(Group(*parts), refresh=True)


def _rich(section: Section, width: int) -> Iterator[RenderableType]:
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
    if not table.rows:
        yield Text("  " + table.empty, style=DIM)
        return
    shown = [i for i, column in enumerate(table.columns) if column.since <= width]
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style=DIM)
    for column in (table.columns[i] for i in shown):
        grid.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis",
        )
    for row in table.rows:
        grid.add_row(*(Text(cell(row[i]).clean, style=cell(row[i]).style) for i in shown))
    yield Padding(grid, (0, 0, 0, 2)) if table.title else grid
    if table.more:
        yield Text("  " + table.more, style=DIM)


def progress_bar() -> Bar:
    """A bar over bytes on standard error, which goes when it is stopped."""
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
