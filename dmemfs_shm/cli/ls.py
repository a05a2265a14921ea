"""``dmemfs-shm ls``."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..filesystem import MemoryFileSystem
from . import complete
from .common import attached, display, emit, json_option, on_terminal, store_argument
from .report import DIM, WARN, Cell, Column, Table, Words
from .sizes import format_size
from .text import moment, printable, raw


@click.command()
@store_argument
@click.argument("path", default="/", shell_complete=complete.paths)
@click.option("-l", "--long", "with_details", is_flag=True, help="With size, time, and whether it is whole.")
@click.option("--bytes", "exact", is_flag=True, help="With -l: sizes as plain numbers of bytes.")
@json_option
def command(name: str, path: str, *, with_details: bool, exact: bool, as_json: bool) -> None:
    """List PATH, by default the root, in the store NAME. Directories end with a slash."""
    with attached(name) as fs:
        is_dir = fs.stat(path)["is_dir"]
        names = sorted(fs.listdir(path)) if is_dir else [path]
        folder = path if is_dir else ""
        if as_json:
            entries = [entry_of(fs, f"{folder.rstrip('/')}/{entry}" if is_dir else entry) for entry in names]
            emit({"store": name, "path": path, "entries": [entry for entry in entries if entry]})
            return
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


def entry_of(fs: MemoryFileSystem, path: str) -> dict[str, Any] | None:
    """What a document says of a file or directory; None if it was removed meanwhile."""
    try:
        stat = fs.stat(path)
    except FileNotFoundError:
        return None
    return {
        "path": path,
        "is_dir": stat["is_dir"],
        "size_bytes": stat["size"],
        "created": stat["created_at"],
        "modified": stat["modified_at"],
        "generation": stat["generation"],
        "abandoned": stat["abandoned"],
    }


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
