"""``dmemfs-shm trim``."""

from __future__ import annotations

import click

from .common import attached, emit, json_option, say, store_argument
from .sizes import format_size


@click.command()
@store_argument
@json_option
def command(name: str, *, as_json: bool) -> None:
    """Give memory of the store NAME in which nothing is stored back to the system.

    Whole segments only, of 64 MiB and more: what is in part in use stays. `df` shows memory beside what is used.
    """
    with attached(name) as fs:
        freed = fs.trim()
    if as_json:
        emit({"store": name, "freed_bytes": freed})
    else:
        say(f"Gave back {format_size(freed)}." if freed else "Nothing to give back: no segment is empty.")
