"""``dmemfs-shm ls``."""

from __future__ import annotations

import sys

import click

from ..filesystem import MemoryFileSystem
from .common import attached, display, on_terminal, store_argument
from .report import DIM, WARN, Cell, Column, Table, Words
from .sizes import format_size
from .text import moment, printable, raw


@click.command()
@store_argument
@click.argument("path", default="/")
@click.option("-l", "--long", "with_details", is_flag=True, help="With size, time, and whether it is whole.")
@click.option("--bytes", "exact", is_flag=True, help="With -l: sizes as plain numbers of bytes.")
def command(name: str, path: str, *, with_details: bool, exact: bool) -> None:
    """List PATH, by default the root, in the store NAME. Directories end with a slash."""
    with attached(name) as fs:
        is_dir = fs.stat(path)["is_dir"]
        names = sorted(fs.listdir(path)) if is_dir else [path]
        folder = path if is_dir else ""
        if with_details:
            display([_table(fs, folder, names, exact=exact)])
            return
        for entry in names:
            text = entry + ("/" if is_dir and fs.is_dir(f"{folder}/{entry}") else "")
            if on_terminal():
                click.echo(printable(text))
            else:
                sys.stdout.flush()
                sys.stdout.buffer.write(raw(text) + b"\n")


def _table(fs: MemoryFileSystem, folder: str, names: list[str], *, exact: bool) -> Table:
    rows: list[list[Words]] = []
    for entry in names:
        try:
            stat = fs.stat(f"{folder}/{entry}")
        except FileNotFoundError:
            continue  # removed meanwhile
        size = str(stat["size"]) if exact else format_size(stat["size"])
        rows.append(
            [
                Cell("-", DIM) if stat["is_dir"] else size,
                Cell(moment(stat["modified_at"]), DIM),
                Cell("abandoned", WARN) if stat["abandoned"] else "",
                Cell(entry + "/", "bold blue") if stat["is_dir"] else entry,
            ]
        )
    columns = [Column("SIZE", right=True), Column("MODIFIED"), Column("STATE"), Column("NAME", folds=True)]
    if not any(row[2] for row in rows):
        del columns[2]
        for row in rows:
            del row[2]
    return Table("", columns, rows)
