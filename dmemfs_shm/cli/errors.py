"""What each error means on the command line: one line that says what to do, and an exit code:

0    done
1    check, inspect or doctor found something wrong
2    the command was not understood, or a value in it is not possible
3    no such store, file or directory
4    it exists already, or stands with other parameters
5    in use: locked, open, or held up by a process that is stopped
6    no space: quota, /dev/shm, RAM, or a table is full
7    not permitted: another user's
8    damaged, unfinished, or of another version
130  interrupted
141  standard output was closed
"""

from __future__ import annotations

import errno
import re
from typing import Final

import click

from ..errors import (
    MFSAbandonedFileError,
    MFSCorruptStoreError,
    MFSDirectoryQuotaError,
    MFSFileOpenError,
    MFSLayoutError,
    MFSLockTimeoutError,
    MFSNodeLimitExceededError,
    MFSNoSpaceError,
    MFSNotOwnerError,
    MFSParameterError,
    MFSQuotaExceededError,
    MFSStoreBusyError,
    MFSStoreGoneError,
    MFSTooManyParticipantsError,
    MFSUnfinishedStoreError,
    MFSVersionError,
)
from .sizes import format_size
from .text import printable

OK: Final = 0
FOUND: Final = 1
USAGE: Final = 2
MISSING: Final = 3
EXISTS: Final = 4
IN_USE: Final = 5
NO_SPACE: Final = 6
NOT_PERMITTED: Final = 7
DAMAGED: Final = 8
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

EXIT_CODES: Final = {
    OK: "done",
    FOUND: "check, inspect or doctor found something wrong",
    USAGE: "the command was not understood, or a value in it is not possible",
    MISSING: "no such store, file or directory",
    EXISTS: "it exists already, or stands with other parameters",
    IN_USE: "in use: locked, open, or held up by a process that is stopped",
    NO_SPACE: "no space: quota, /dev/shm, RAM, or a table is full",
    NOT_PERMITTED: "not permitted: another user's",
    DAMAGED: "damaged, unfinished, or of another version",
    INTERRUPTED: "interrupted",
    PIPE_CLOSED: "standard output was closed",
}

#: The first class that fits says the code and what to do; STORE stands for the store's name.
_MEANINGS: Final[tuple[tuple[type[BaseException], int, str], ...]] = (
    (MFSNodeLimitExceededError, NO_SPACE, "Remove files, or create a store with a larger --max-nodes."),
    (MFSDirectoryQuotaError, NO_SPACE, "Remove files there, or let its owner raise the quota of the directory."),
    (MFSQuotaExceededError, NO_SPACE, "Remove files, or create a store with a larger --quota."),
    (MFSNoSpaceError, NO_SPACE, ""),
    (MFSTooManyParticipantsError, NO_SPACE, "Who they are: dmemfs-shm inspect STORE"),
    (MFSAbandonedFileError, DAMAGED, ""),
    (MFSLockTimeoutError, IN_USE, "Try again, with a longer --lock-timeout, or end the holder."),
    (MFSFileOpenError, IN_USE, "Who has it: dmemfs-shm inspect STORE"),
    (MFSStoreBusyError, IN_USE, "What is going on: dmemfs-shm inspect STORE"),
    (MFSNotOwnerError, NOT_PERMITTED, ""),
    (MFSVersionError, DAMAGED, "Use the release that made it, or destroy it."),
    (MFSLayoutError, DAMAGED, "Use the build that made it, or destroy it."),
    (MFSUnfinishedStoreError, DAMAGED, "Create it anew, or destroy it."),
    (MFSCorruptStoreError, DAMAGED, "What else: dmemfs-shm inspect STORE; then save what can be read, and destroy it."),
    (MFSStoreGoneError, MISSING, ""),
    (MFSParameterError, USAGE, ""),
    (FileNotFoundError, MISSING, ""),
    (NotADirectoryError, MISSING, ""),
    (FileExistsError, EXISTS, ""),
    (IsADirectoryError, USAGE, ""),
    (PermissionError, NOT_PERMITTED, ""),
    (MemoryError, NO_SPACE, ""),
    (ValueError, USAGE, ""),
)
_BY_COMMAND: Final = {
    ("init", FileExistsError): "Use it, give --exist-ok, or destroy it first.",
    ("cat", IsADirectoryError): "List it with ls, or copy it with get.",
    ("cp", IsADirectoryError): "Give -r to copy a directory with everything in it.",
    ("cp", FileExistsError): "Give -f to replace a file.",
    ("mv", FileExistsError): "Give -f to replace a file with a file.",
    ("rm", IsADirectoryError): "Give -r to remove a directory with everything in it.",
    ("rm", MFSLockTimeoutError): "Try again, or end the holder.",
}
_NO_STORE = re.compile(r"No such store: '(.*)'\Z")
_BYTES = re.compile(r"\b(\d{4,}) bytes\b|\b(\d{4,})(?= left\b)")


class Failure(click.ClickException):
    """An error of a command, with its exit code."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def explain(error: BaseException, command: str, store: str) -> tuple[str, int]:
    """(one line that says what happened and what to do, exit code)."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:  # one of the local files
        text = f"{error.filename}: {error.strerror}."
    text = humanise(text) or type(error).__name__
    if isinstance(error, MFSAbandonedFileError):
        text = f"The writer of '{error.path}' died before closing it. Give --allow-abandoned to have what there is."
    for kind, code, hint in _MEANINGS:
        if isinstance(error, kind):
            if _NO_STORE.match(text):
                hint = "Which there are: dmemfs-shm list"  # noqa: PLW2901
            return _sentence(text, _BY_COMMAND.get((command, kind), hint).replace("STORE", store)), code
    code = NO_SPACE if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else FOUND
    return _sentence(text, ""), code


def humanise(text: str) -> str:
    """The text with its long numbers of bytes as people write them."""
    return _BYTES.sub(lambda match: format_size(int(match[1] or match[2])), text)


def one_line(text: str) -> str:
    return printable(" ".join(text.split("\n")))


def _sentence(text: str, hint: str) -> str:
    if not hint:
        return text
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {hint}"
