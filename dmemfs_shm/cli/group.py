"""The group ``dmemfs-shm``: its table of commands, each loaded when it is asked for; and how every command ends.

Every error is one line on stderr; see `errors` for the exit codes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from .errors import EXIT_CODES, INTERRUPTED, PIPE_CLOSED, USAGE, Failure, explain, one_line

COMMANDS: Final = {
    "init": "Create a store.",
    "list": "List the stores there are.",
    "df": "Show how full stores and /dev/shm are.",
    "inspect": "Show who is attached, what is locked, and where quota and memory went.",
    "top": "Show what goes on in a store, live.",
    "locks": "Show who has which file open, and who waits for it.",
    "ls": "List a directory of a store.",
    "tree": "Draw the directories and files of a store.",
    "cat": "Write files of a store to standard output.",
    "put": "Copy files and directories into a store.",
    "get": "Copy a file or directory out of a store.",
    "cp": "Copy files and directories within a store.",
    "mv": "Move or rename files and directories within a store.",
    "rm": "Remove files, or directories with -r.",
    "snapshot": "Save everything in a store in a file.",
    "restore": "Read what snapshot saved into a store.",
    "check": "Check every invariant of a store.",
    "doctor": "Look at the machine, and say what is in the way of stores and what to do.",
    "kick": "Show what a process holds up, and kill it with --yes.",
    "recover": "Do for the dead now what is to be done.",
    "trim": "Give unused memory of a store back to the system.",
    "prune": "Show what nobody uses any more in /dev/shm, and remove it with --yes.",
    "metrics": "Print figures of stores as Prometheus reads them.",
    "completion": "Print what makes a shell complete commands, stores and paths.",
    "destroy": "Take a store away, with all that is in it.",
}


class Commands(click.Group):
    """A group that imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name}", __package__).command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without loading what is only named."""
        named = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return named + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])

    def main(  # type: ignore[override]  # click declares what it returns in two overloads
        self, args: Sequence[str] | None = None, prog_name: str | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run, and exit with a code of `errors`; every error becomes one line."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
            sys.exit(code if isinstance(code, int) else 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(USAGE)
        except click.UsageError as error:
            who = error.ctx.command_path if error.ctx else "dmemfs-shm"
            _complain(f"{error.format_message()} See: {who} --help")
            sys.exit(USAGE)
        except Failure as error:
            _complain(error.format_message())
            sys.exit(error.code)
        except click.ClickException as error:
            _complain(error.format_message())
            sys.exit(USAGE)
        except (click.Abort, KeyboardInterrupt):
            _complain("interrupted.")
            sys.exit(INTERRUPTED)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError):  # so that nothing is flushed into it at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        except (OSError, ValueError, MemoryError) as error:
            text, code = explain(error, ctx.invoked_subcommand or "", store=_store_of(ctx))
            raise Failure(text, code) from error


def _store_of(ctx: click.Context) -> str:
    """The store that the command was given, for hints."""
    words = [word for word in ctx.obj or () if isinstance(word, str)]
    return words[0] if words else "NAME"


def _complain(text: str) -> None:
    click.echo(f"dmemfs-shm: {one_line(text)}", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dmemfs-shm", prog_name="dmemfs-shm")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Stores in shared memory: make them, fill them, and see what is going on in them.

    Sizes are written as 64MiB, 1.5G, 10k (powers of 1024), or 10MB (of 1000). Each command has a --help of its own.
    """
    ctx.obj = []
