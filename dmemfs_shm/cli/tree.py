"""``dmemfs-shm tree``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ..filesystem import MemoryFileSystem
from . import complete
from .common import attached, emit, json_option, say, store_argument
from .ls import entry_of
from .sizes import format_size
from .text import count


@click.command()
@store_argument
@click.argument("path", default="/", shell_complete=complete.paths)
@click.option("-L", "--level", "depth", type=click.IntRange(1), metavar="N", help="Go down N directories at most.")
@click.option("-s", "--sizes", "with_sizes", is_flag=True, help="With the sizes of files.")
@json_option
def command(name: str, path: str, depth: int | None, *, with_sizes: bool, as_json: bool) -> None:
    """Draw what is in the directory PATH, by default the root, of the store NAME."""
    with attached(name) as fs:
        if not fs.stat(path)["is_dir"]:
            raise NotADirectoryError(f"Not a directory: '{path}'")
        found = _walk(fs, path.rstrip("/"), "", depth)
        if as_json:
            emit({"store": name, "path": path, "entries": [entry for _, entry in found]})
            return
        say(path)
        files = directories = size = 0
        for branch, entry in found:
            files += not entry["is_dir"]
            directories += entry["is_dir"]
            size += entry["size_bytes"]
            say(branch + _label(entry, with_sizes=with_sizes))
        say(f"{count(directories, 'directory', 'directories')}, {count(files, 'file')}, {format_size(size)}")


def _walk(fs: MemoryFileSystem, folder: str, indent: str, depth: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is drawn in front of it, entry), each directory before what is in it."""
    try:
        names = sorted(fs.listdir(folder or "/"))
    except (FileNotFoundError, NotADirectoryError):
        return  # removed meanwhile
    entries = [entry for name in names if (entry := entry_of(fs, f"{folder}/{name}"))]
    for number, entry in enumerate(entries, 1):
        is_last = number == len(entries)
        yield indent + ("└── " if is_last else "├── "), entry
        if entry["is_dir"] and depth != 1:
            yield from _walk(fs, entry["path"], indent + ("    " if is_last else "│   "), depth and depth - 1)


def _label(entry: dict[str, Any], *, with_sizes: bool) -> str:
    name = entry["path"].rpartition("/")[2] + ("/" if entry["is_dir"] else "")
    size = f"  {format_size(entry['size_bytes'])}" if with_sizes and not entry["is_dir"] else ""
    return f"{name}{size}{'  (abandoned)' if entry['abandoned'] else ''}"
