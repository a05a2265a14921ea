"""``dmemfs-shm cat``."""

from __future__ import annotations

import sys
from typing import BinaryIO

import click

from ..errors import MFSViewError
from ..filesystem import MemoryFileSystem
from ..handle import MemoryFileHandle
from . import complete
from .common import allow_abandoned_option, attached, lock_timeout_option, store_argument

_CHUNK_BYTES = 1 << 20


@click.command()
@store_argument
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=complete.paths)
@lock_timeout_option
@allow_abandoned_option
def command(name: str, paths: tuple[str, ...], lock_timeout: float, *, allow_abandoned: bool) -> None:
    """Write the files PATH... of the store NAME to standard output, as they are."""
    out = sys.stdout.buffer
    with attached(name, lock_timeout) as fs:
        for path in paths:
            copy_out(fs, path, out, allow_abandoned=allow_abandoned)
    sys.stdout.flush()


def copy_out(fs: MemoryFileSystem, path: str, out: BinaryIO | MemoryFileHandle, *, allow_abandoned: bool) -> int:
    """Write a file's bytes to a stream; its lock is not kept meanwhile, unless it is in pieces. Returns how many."""
    size = 0
    try:
        with fs.view(path, allow_abandoned=allow_abandoned) as view:
            for start in range(0, len(view), _CHUNK_BYTES):
                size += out.write(view[start : start + _CHUNK_BYTES])
    except MFSViewError:
        with fs.open(path, allow_abandoned=allow_abandoned) as file:
            while chunk := file.read(_CHUNK_BYTES):
                size += out.write(chunk)
    out.flush()
    return size
