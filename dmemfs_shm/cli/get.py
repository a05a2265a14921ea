"""``dmemfs-shm get``."""

from __future__ import annotations

import os

import click

from ..filesystem import MemoryFileSystem
from . import complete
from .cat import copy_out
from .common import allow_abandoned_option, attached, base_of, lock_timeout_option, quiet_option, store_argument
from .progress import Progress
from .sizes import format_size
from .text import count

_PART = ".dmemfs-part"


@click.command()
@store_argument
@click.argument("path", shell_complete=complete.paths)
@click.argument("local", shell_complete=complete.local)
@lock_timeout_option
@allow_abandoned_option
@quiet_option
def command(name: str, path: str, local: str, lock_timeout: float, *, allow_abandoned: bool, quiet: bool) -> None:
    """Copy the file or directory PATH of the store NAME to LOCAL.

    If LOCAL is a directory, it goes into it under its own name; otherwise LOCAL is the new name. A local file that stands
    is replaced when the new one is complete.
    """
    with attached(name, lock_timeout) as fs:
        base = base_of(path)
        target = os.path.join(local, base) if os.path.isdir(local) and base else local
        items = _tree(fs, path, target) if fs.stat(path)["is_dir"] else [(path, target, fs.get_size(path))]
        done = files = 0
        with Progress("get", sum(size for _, _, size in items), len(items)) as progress:
            for source, destination, size in items:
                progress.tell(source)
                done += _get(fs, source, destination, allow_abandoned=allow_abandoned)
                files += 1
                progress.advance(size)
    if not quiet:
        click.echo(f"Got {count(files, 'file')}, {format_size(done)}.")


def _tree(fs: MemoryFileSystem, path: str, target: str) -> list[tuple[str, str, int]]:
    """(path, local path, size) of every file; the local directories are made."""
    items = []
    root = path.replace("\\", "/").rstrip("/")
    top: str | None = None
    for folder, _, files in fs.walk(path):
        top = folder if top is None else top
        below = folder[len(top) :].strip("/")
        local = os.path.join(target, below) if below else target
        os.makedirs(local, exist_ok=True)
        for name in files:
            source = f"{root}/{below}/{name}" if below else f"{root}/{name}"
            try:
                items.append((source, os.path.join(local, name), fs.get_size(source)))
            except FileNotFoundError:
                continue  # removed meanwhile
    return items


def _get(fs: MemoryFileSystem, source: str, destination: str, *, allow_abandoned: bool) -> int:
    """One file; under its name only when it is complete. Devices and pipes are written to as they are."""
    if os.path.exists(destination) and not os.path.isfile(destination):
        with open(destination, "wb") as out:
            return copy_out(fs, source, out, allow_abandoned=allow_abandoned)
    part = f"{destination}{_PART}{os.getpid()}"
    try:
        with open(part, "wb") as out:
            size = copy_out(fs, source, out, allow_abandoned=allow_abandoned)
        os.replace(part, destination)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise
    return size
