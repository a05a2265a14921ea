"""``dmemfs-shm rm``."""

from __future__ import annotations

import click

from . import complete
from .common import attached, store_argument


@click.command()
@store_argument
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=complete.paths)
@click.option("-r", "--recursive", is_flag=True, help="Directories too, with everything in them.")
def command(name: str, paths: tuple[str, ...], *, recursive: bool) -> None:
    """Remove the files PATH... of the store NAME. What is open anywhere is not removed."""
    with attached(name) as fs:
        for path in paths:
            if recursive and fs.is_dir(path):
                fs.rmtree(path)
            else:
                fs.remove(path)
