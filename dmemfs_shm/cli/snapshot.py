"""``dmemfs-shm snapshot``."""

from __future__ import annotations

import os
import sys

import click

from . import complete
from .common import allow_abandoned_option, attached, emit, json_option, lock_timeout_option, quiet_option, store_argument
from .sizes import format_size

_PART = ".dmemfs-part"


@click.command()
@store_argument
@click.argument("local", shell_complete=complete.local)
@lock_timeout_option
@allow_abandoned_option
@quiet_option
@json_option
def command(name: str, local: str, lock_timeout: float, *, allow_abandoned: bool, quiet: bool, as_json: bool) -> None:
    """Save everything in the store NAME, as it is at one instant, in the file LOCAL; - is standard output.

    Others go on meanwhile. A file that somebody writes is waited for. A LOCAL that stands is replaced when the new one is
    complete. `restore` reads it. To compress it: dmemfs-shm snapshot NAME - | zstd > FILE
    """
    with attached(name, lock_timeout) as fs:
        if local == "-":
            if sys.stdout.isatty():
                raise click.UsageError("a snapshot is no text for a terminal: name a file, or pipe it on.")
            fs.snapshot(sys.stdout.buffer, allow_abandoned=allow_abandoned)
            sys.stdout.flush()
            return
        part = f"{local}{_PART}{os.getpid()}"
        try:
            with open(part, "wb") as out:
                fs.snapshot(out, allow_abandoned=allow_abandoned)
                size = out.tell()
            os.replace(part, local)
        except BaseException:
            if os.path.exists(part):
                os.unlink(part)
            raise
    if as_json:
        emit({"store": name, "file": local, "size_bytes": size})
    elif not quiet:
        click.echo(f"Saved the store {name}, {format_size(size)}.")
