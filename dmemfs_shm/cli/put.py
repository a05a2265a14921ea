"""``dmemfs-shm put``."""

from __future__ import annotations

import mmap
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import click

from ..filesystem import MemoryFileSystem
from . import complete
from .common import attached, into, lock_timeout_option, note, quiet_option, store_argument
from .progress import Progress
from .sizes import format_size
from .text import count

_MAPPED_FROM_BYTES = 1 << 20


class Item(NamedTuple):
    """One thing to put: a local path (None for a directory to be made), where it goes, and its size."""

    local: str | None
    path: str
    size_bytes: int


@click.command()
@store_argument
@click.argument("sources", nargs=-1, required=True, metavar="LOCAL...", shell_complete=complete.local)
@click.argument("path", shell_complete=complete.paths)
@lock_timeout_option
@quiet_option
def command(name: str, sources: tuple[str, ...], path: str, lock_timeout: float, *, quiet: bool) -> None:
    """Copy LOCAL files and directories (with all that is in them) to PATH in the store NAME.

    If PATH is a directory, or ends with a slash, or there are several LOCAL, they go into it under their own names;
    otherwise PATH is the new name. Directories that are missing are made; a file that stands is replaced, in one step.
    A LOCAL of - is standard input.
    """
    with attached(name, lock_timeout) as fs:
        inside = into(fs, sources, path)
        items = [item for source in sources for item in _plan(source, path, inside=inside)]
        total = sum(item.size_bytes for item in items)
        done = files = 0
        with Progress("put", total, len(items)) as progress:
            for item in items:
                if item.local is None:
                    fs.mkdir(item.path, exist_ok=True)
                    continue
                progress.tell(item.path)
                fs.mkdir(os.path.dirname(item.path) or "/", exist_ok=True)
                done += _put(fs, item)
                files += 1
                progress.advance(item.size_bytes)
    if not quiet:
        click.echo(f"Put {count(files, 'file')}, {format_size(done)}.")


def _plan(source: str, path: str, *, inside: bool) -> list[Item]:
    """What becomes of one LOCAL; nothing is copied before all of it is known."""
    if source == "-":
        if inside:
            raise click.UsageError("standard input has no name of its own: PATH must be the file's.")
        return [Item("-", path, 0)]
    base = os.path.basename(os.path.abspath(source))
    target = f"{path.rstrip('/')}/{_good_name(base, source)}" if inside else path
    mode = os.stat(source)
    if not stat.S_ISDIR(mode.st_mode):
        return [Item(source, target, mode.st_size)]
    return [Item(None, target, 0), *_tree(source, target)]


def _tree(source: str, target: str) -> Iterator[Item]:
    with os.scandir(source) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{target.rstrip('/')}/{_good_name(entry.name, entry.path)}"
            if entry.is_dir(follow_symlinks=False):
                yield Item(None, path, 0)
                yield from _tree(entry.path, path)
            elif entry.is_file():
                yield Item(entry.path, path, entry.stat().st_size)
            else:
                note(f"left out {entry.path}: neither a file nor a directory.")


def _good_name(name: str, source: str) -> str:
    if "\\" in name:
        raise click.UsageError(f"{source!r} has a backslash in its name, which a store reads as a slash: rename it.")
    return name


def _put(fs: MemoryFileSystem, item: Item) -> int:
    """One file, whole or not at all."""
    if item.local == "-":
        return fs.write_bytes(item.path, sys.stdin.buffer.read())
    assert item.local is not None
    with open(item.local, "rb") as file:
        return fs.write_bytes(item.path, _content(file))


def _content(file: BinaryIO) -> Any:
    """The file's bytes; those of a large one are not copied into this process first."""
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size >= _MAPPED_FROM_BYTES:
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return file.read()
