"""Errors: what they are, what they carry, what they say, and that they survive pickling."""

from __future__ import annotations

import copy
import errno
import inspect
import multiprocessing
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import dmemfs_shm
from dmemfs_shm import MemoryFileSystem, errors

from ..conftest import MIB, Stores
from ..processes import Link, child, held_open

ALL = sorted(
    name for name, value in vars(errors).items() if inspect.isclass(value) and name.startswith("MFS") and name != "MFSError"
)

#: The built-in that each subclasses, and the errno it carries.
BUILT_INS: dict[str, tuple[type[Exception], int | None]] = {
    "MFSQuotaExceededError": (OSError, errno.ENOSPC),
    "MFSDirectoryQuotaError": (OSError, errno.EDQUOT),
    "MFSNoSpaceError": (OSError, errno.ENOSPC),
    "MFSLockTimeoutError": (BlockingIOError, None),
    "MFSDeadlockError": (BlockingIOError, None),
    "MFSFileOpenError": (BlockingIOError, None),
    "MFSAbandonedFileError": (OSError, errno.EOWNERDEAD),
    "MFSStoreGoneError": (OSError, errno.ESTALE),
    "MFSCorruptStoreError": (OSError, errno.EUCLEAN),
    "MFSClosedError": (ValueError, None),
    "MFSForkedError": (ValueError, None),
    "MFSParameterError": (ValueError, None),
    "MFSTimeoutError": (TimeoutError, None),
}

#: Values for the parameters that occur in the constructors.
VALUES: dict[str, Any] = {
    "message": "what happened",
    "path": "/a/b",
    "holders": ("pid 1, thread 2", "pid 3, thread 4"),
    "doing": "import",
    "writer": True,
    "requested": 4096,
    "available": 512,
    "largest_run": 1024,
    "current": 7,
    "limit": 7,
    "segment": "dmemfs-0-x",
    "offset": 64,
    "expected": "a count",
    "found": 99,
    "supported": 1,
    "store": "etl",
    "errno": errno.ENOSPC,
}


def example(name: str) -> Exception:
    """An instance with a value for each parameter."""
    kind = getattr(errors, name)
    arguments = [VALUES[parameter] for parameter in inspect.signature(kind).parameters]
    error = kind(*arguments)
    assert isinstance(error, Exception)
    return error


def facts(error: BaseException) -> dict[str, Any]:
    """Everything an error says; what the engine notes on it for itself is not for others."""
    return {
        "type": type(error),
        "text": str(error),
        "args": error.args,
        "errno": getattr(error, "errno", None),
        "strerror": getattr(error, "strerror", None),
        **{name: value for name, value in vars(error).items() if not name.startswith("_")},
    }


def test_all_are_public() -> None:
    """Every error is importable from the package itself."""
    for name in ALL:
        assert getattr(dmemfs_shm, name) is getattr(errors, name)


@pytest.mark.parametrize("name", BUILT_INS)
def test_built_in_base(name: str) -> None:
    """Each is the built-in that a caller would expect, with its errno."""
    base, number = BUILT_INS[name]
    error = example(name)
    assert isinstance(error, base)
    if number is not None:
        assert getattr(error, "errno", None) == number


@pytest.mark.parametrize("name", ALL)
def test_pickle_keeps_everything(name: str) -> None:
    """Type, text, fields and errno survive every pickle protocol and copying."""
    error = example(name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert facts(pickle.loads(pickle.dumps(error, protocol))) == facts(error)
    assert facts(copy.copy(error)) == facts(error)


@pytest.mark.parametrize("name", ALL)
def test_text_and_fields(name: str) -> None:
    """Each says something, and gives back as fields what it was made of."""
    error = example(name)
    assert str(error).strip()
    for parameter in inspect.signature(type(error)).parameters:
        assert getattr(error, parameter) == VALUES[parameter]


def test_quota_error_keeps_the_text_of_d_memfs() -> None:
    """Fields, keyword arguments and text are D-MemFS's."""
    error = errors.MFSQuotaExceededError(requested=4096, available=512)
    assert (error.requested, error.available) == (4096, 512)
    assert str(error) == "MFS quota exceeded: requested 4096 bytes, only 512 bytes available."


def test_node_limit_error_keeps_the_text_of_d_memfs() -> None:
    """It is a quota error with the number of nodes, D-MemFS's way."""
    error = errors.MFSNodeLimitExceededError(current=7, limit=7)
    assert isinstance(error, errors.MFSQuotaExceededError)
    assert (error.current, error.limit, error.requested, error.available) == (7, 7, 8, 0)
    assert str(error) == "MFS node limit exceeded: current 7 nodes, limit is 7."


# --- as they are raised ----------------------------------------------------------------------------------------------


def _quota(stores: Stores) -> None:
    stores.private(max_quota=10).write_bytes("/f", b"x")


def _nodes(stores: Stores) -> None:
    stores.private(max_nodes=1).mkdir("/d")


def _lock_timeout(stores: Stores) -> None:
    fs = stores.private()
    with held_open(fs, "/f", "wb"):
        fs.open("/f", "rb", lock_timeout=0.0)


def _deadlock(stores: Stores) -> None:
    fs = stores.private()
    with fs.open("/f", "wb"):
        fs.open("/f", "rb")


def _file_open(stores: Stores) -> None:
    fs = stores.private()
    with fs.open("/f", "wb"):
        fs.remove("/f")


def _closed(stores: Stores) -> None:
    fs = stores.private()
    fs.close()
    fs.listdir("/")


def _gone(stores: Stores) -> None:
    name = stores.name()
    fs = stores.create(name)
    MemoryFileSystem.destroy(name)
    fs.listdir("/")


def _parameter(stores: Stores) -> None:
    name = stores.name()
    stores.create(name)
    MemoryFileSystem.create(name, max_quota=MIB, exist_ok=True)


def _die_writing(link: Link, fs: MemoryFileSystem) -> None:
    with fs.open("/f", "wb"):
        link.send("open")
        link.recv()


def _abandoned(stores: Stores) -> None:
    fs = stores.private()
    with child("fork", _die_writing, fs) as writer:
        writer.receive()
        writer.kill()
    fs.read_bytes("/f")


RAISED: dict[str, Callable[[Stores], None]] = {
    "MFSQuotaExceededError": _quota,
    "MFSNodeLimitExceededError": _nodes,
    "MFSLockTimeoutError": _lock_timeout,
    "MFSDeadlockError": _deadlock,
    "MFSFileOpenError": _file_open,
    "MFSClosedError": _closed,
    "MFSStoreGoneError": _gone,
    "MFSParameterError": _parameter,
    "MFSAbandonedFileError": _abandoned,
}


@pytest.mark.parametrize("name", RAISED)
def test_raised_errors_pickle(stores: Stores, name: str) -> None:
    """What the filesystem raises is exactly that type, says something and pickles whole."""
    with pytest.raises(getattr(errors, name)) as caught:
        RAISED[name](stores)
    error = caught.value
    assert type(error).__name__ == name
    assert facts(pickle.loads(pickle.dumps(error))) == facts(error)
    assert str(error).strip()


def test_texts_of_d_memfs_are_kept(stores: Stores) -> None:
    """Where D-MemFS has the error, its words are in the text."""
    texts = {}
    for name in ("MFSLockTimeoutError", "MFSFileOpenError", "MFSNodeLimitExceededError"):
        with pytest.raises(getattr(errors, name)) as caught:
            RAISED[name](stores)
        texts[name] = str(caught.value)
    assert "Could not acquire read lock within timeout" in texts["MFSLockTimeoutError"]
    assert "File is open: '/f'" in texts["MFSFileOpenError"]
    assert texts["MFSNodeLimitExceededError"] == "MFS node limit exceeded: current 1 nodes, limit is 1."


@pytest.fixture
def pool() -> Iterator[Any]:
    """One worker process of a multiprocessing pool."""
    context = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        workers = context.Pool(1)
    try:
        yield workers
    finally:
        workers.terminate()
        workers.join()


def _overfill(fs: MemoryFileSystem) -> None:
    fs.write_bytes("/f", bytes(5000))


def test_errors_cross_a_pool(stores: Stores, pool: Any) -> None:
    """A quota error in a worker of a pool is the same error in the caller."""
    fs = stores.create(max_quota=1000)
    with pytest.raises(errors.MFSQuotaExceededError) as caught:
        pool.apply_async(_overfill, (fs,)).get(30)
    assert (caught.value.requested, caught.value.available) == (8192 + 128, 1000)
