"""A quota-bounded filesystem in POSIX shared memory, for many processes and threads, that survives the death of any.

Reading order: `filesystem` (what a user calls), `handle` and `view` (what `open` and `view` return), `errors`; then the
engine, `store`.
"""

from .errors import *  # noqa: F403  (the names are listed in errors.__all__)
from .errors import __all__ as _errors
from .filesystem import LockInfo, MemoryFileSystem, MFSInfo, MFSStatResult, MFSStats, ParticipantInfo
from .handle import MemoryFileHandle

__version__ = "0.1.0"
__all__ = [  # noqa: PLE0604  (strings all)
    "LockInfo",
    "MFSInfo",
    "MFSStatResult",
    "MFSStats",
    "MemoryFileHandle",
    "MemoryFileSystem",
    "ParticipantInfo",
    *_errors,
]
