"""``dmemfs-shm init``."""

from __future__ import annotations

import warnings

import click

from ..errors import MFSParameterError
from ..filesystem import MemoryFileSystem, shortages
from ..store import names
from ..store.inspection import inspect
from .common import emit, json_option, note, say, store_argument
from .errors import EXISTS, Failure, humanise
from .sizes import Size, format_size


@click.command()
@store_argument
@click.option("--quota", type=Size(), required=True, help="What its files may take: 1GiB, 64MiB.")
@click.option("--max-nodes", type=click.IntRange(1, 1 << 30), metavar="N", help="Files and directories; default: unlimited.")
@click.option(
    "--max-participants",
    type=click.IntRange(1, 256),
    default=256,
    show_default=True,
    metavar="N",
    help="Processes attached at once.",
)
@click.option(
    "--backend",
    type=click.Choice(["generation", "ofd"]),
    default="generation",
    show_default=True,
    help="How mutexes are made; ofd is slower.",
)
@click.option("--exist-ok", is_flag=True, help="It may stand already, with the same parameters.")
@json_option
def command(
    name: str, quota: int, max_nodes: int | None, max_participants: int, backend: str, *, exist_ok: bool, as_json: bool
) -> None:
    """Create the store NAME.

    A name has lower-case letters, digits, '.', '_' and '-'. Says what was reserved, and warns where the machine cannot
    keep the promise now. The store stands until it is destroyed, or the machine restarts.
    """
    _check_name(name)
    try:
        before = inspect(name).identity
    except OSError:
        before = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            fs = MemoryFileSystem.create(
                name,
                max_quota=quota,
                max_nodes=max_nodes,
                max_participants=max_participants,
                backend=backend,
                exist_ok=exist_ok,
            )
        except MFSParameterError as error:
            if before is None:
                raise
            raise Failure(f"{error} Give the same, or take another name.", EXISTS) from None
    uuid = str(fs.uuid)
    fs.close()
    stood = before is not None and before.uuid == uuid
    if as_json:
        emit({"store": name, "uuid": uuid, "created": not stood, "shortages": [] if stood else shortages(quota)})
        return
    if stood:
        say(f"The store {name} stands already, with the same parameters.")
        return
    seen = inspect(name)
    memory, nodes = seen.memory, seen.nodes
    say(f"Created the store {name}.")
    if memory and nodes:
        size = format_size(memory.index_bytes + memory.semaphores_bytes)
        limit = f"at most {nodes.max_nodes:,} files and directories" if nodes.max_nodes else f"room for {nodes.cap:,} nodes"
        say(f"  memory now     {size}, for the index and {memory.semaphores} semaphores")
        say(f"  quota          {format_size(quota)}, which takes memory as files come")
        say(f"  address space  {format_size(memory.index_virtual_bytes)} for the index: {limit}")
        say(f"  participants   at most {max_participants}")
    for shortage in shortages(quota):
        note(f"warning: {humanise(shortage)}")


def _check_name(name: str) -> None:
    """A name that no store can have is a usage error."""
    try:
        names.check_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
