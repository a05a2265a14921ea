"""``dmemfs-shm completion``."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class

from .errors import USAGE, Failure

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS), required=False)
@click.pass_context
def command(ctx: click.Context, shell: str | None) -> None:
    """Print what makes the SHELL complete commands, stores and paths in them; by default the shell of $SHELL.

    \b
    bash   eval "$(dmemfs-shm completion bash)"      in ~/.bashrc (bash 4.4 or later)
    zsh    eval "$(dmemfs-shm completion zsh)"       in ~/.zshrc, after compinit
    fish   dmemfs-shm completion fish | source       in ~/.config/fish/config.fish
    """  # noqa: D301  (click keeps lines after a backspace as they are)
    chosen = shell or os.path.basename(os.environ.get("SHELL", ""))
    if chosen not in _SHELLS:
        raise Failure(f"$SHELL is not one that is known here: name it, {', '.join(_SHELLS)}.", USAGE)
    found = get_completion_class(chosen)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "dmemfs-shm", "_DMEMFS_SHM_COMPLETE").source())
