"""A quota-bounded filesystem in POSIX shared memory, for many processes and threads, that survives the death of any.

Reading order: `filesystem` (what a user calls), `handle`, `view` and `claims` (what `open`, `view` and `claim` return),
`text`, `archive`, `aio` (the same for asyncio), `errors`; then the engine, `store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import *  # noqa: F403  (the names are listed in errors.__all__)
from .errors import __all__ as _errors
from .filesystem import DirectoryQuotaInfo, LockInfo, MemoryFileSystem, MFSInfo, MFSStatResult, MFSStats, ParticipantInfo
from .handle import MemoryFileHandle

if TYPE_CHECKING:
    from .aio import AsyncClaim, AsyncMemoryFileHandle, AsyncMemoryFileSystem
    from .archive import ArchiveAdapter, TarAdapter, ZipAdapter, expand_archive, expand_archive_streaming
    from .claims import Claim
    from .text import MFSTextHandle

__version__ = "0.1.0"
__all__ = [  # noqa: PLE0604  (strings all)
    "ArchiveAdapter",
    "AsyncClaim",
    "AsyncMemoryFileHandle",
    "AsyncMemoryFileSystem",
    "Claim",
    "DirectoryQuotaInfo",
    "LockInfo",
    "MFSInfo",
    "MFSStatResult",
    "MFSStats",
    "MFSTextHandle",
    "MemoryFileHandle",
    "MemoryFileSystem",
    "ParticipantInfo",
    "TarAdapter",
    "ZipAdapter",
    *_errors,
    "expand_archive",
    "expand_archive_streaming",
]

#: Where the names are that few programs need: loaded at the first use, to keep the import short.
_LAZY = {
    "ArchiveAdapter": "archive",
    "AsyncClaim": "aio",
    "AsyncMemoryFileHandle": "aio",
    "AsyncMemoryFileSystem": "aio",
    "Claim": "claims",
    "MFSTextHandle": "text",
    "TarAdapter": "archive",
    "ZipAdapter": "archive",
    "expand_archive": "archive",
    "expand_archive_streaming": "archive",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .store.lazy import load

    found = globals()[name] = getattr(load(f"{__name__}.{module}"), name)
    return found
