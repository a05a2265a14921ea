"""``dmemfs-shm restore``."""

from __future__ import annotations

import contextlib
import sys

import click

from . import complete
from .common import attached, emit, json_option, lock_timeout_option, quiet_option, store_argument
from .sizes import format_size
from .text import count


@click.command()
@store_argument
@click.argument("local", shell_complete=complete.local)
@lock_timeout_option
@quiet_option
@json_option
def command(name: str, local: str, lock_timeout: float, *, quiet: bool, as_json: bool) -> None:
    """Read what `snapshot` saved in the file LOCAL into the store NAME: all of it at once, or nothing; - is standard input.

    The store must stand (init makes one). What is in it is kept; if it has something under a name that the snapshot's root
    has, too, nothing is restored.
    """
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if local == "-" else stack.enter_context(open(local, "rb"))
        fs = stack.enter_context(attached(name, lock_timeout))
        before = fs.stats()
        fs.restore(source)
        after = fs.stats()
    files, size = after["file_count"] - before["file_count"], after["used_bytes"] - before["used_bytes"]
    if as_json:
        emit({"store": name, "file": local, "files": files, "charged_bytes": size})
    elif not quiet:
        click.echo(f"Restored {count(files, 'file')} into the store {name}; {format_size(size)} more of its quota is used.")
