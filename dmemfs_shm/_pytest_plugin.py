"""Fixtures for pytest. They are there once a conftest.py asks for them:

    pytest_plugins = ["dmemfs_shm._pytest_plugin"]

`mfs`: a private filesystem for one test.

    def test_something(mfs):
        with mfs.open("/a.txt", "wb") as file:
            file.write(b"hello")

`mfs_shared`: one filesystem for the whole run, the same in all workers of pytest-xdist. What has to be in it is put there
exactly once, by the function that the fixture `mfs_prepare` returns; a project that has something to prepare overrides that:

    @pytest.fixture(scope="session")
    def mfs_prepare():
        def prepare(fs):
            fs.write_bytes("/table.arrow", expensive())
        return prepare

Guarantees. No test sees the shared filesystem before it is prepared; the others wait meanwhile. If the worker that prepares is
killed, another one does it again, from the beginning, in an empty filesystem; if the function raises, every test that wants
the filesystem says so. It goes when the run ends, however its workers ended; after a run that was killed itself,
``dmemfs-shm prune`` takes it away. Its quota is the ini option ``mfs_shared_quota``, in bytes (1 GiB).
"""

from __future__ import annotations

import contextlib
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .filesystem import MemoryFileSystem

_NAME = pytest.StashKey[str]()
_WORKER_INPUT = "mfs_shared"
_STATE = "/state"
_DONE, _FAILED = b"done", b"failed: "
_SMALL_QUOTA = 1 << 20

Prepare = Callable[[MemoryFileSystem], object]


@pytest.fixture
def mfs() -> Iterator[MemoryFileSystem]:
    """A MemoryFileSystem of its own for each test, with a quota of 1 MiB; closed when the test is over."""
    fs = MemoryFileSystem(max_quota=_SMALL_QUOTA)
    yield fs
    fs.close()


# ---- one for the whole run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("mfs_shared_quota", "bytes that the filesystem of the fixture mfs_shared has", default=str(1 << 30))


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, str] | None = getattr(config, "workerinput", None)  # of pytest-xdist's workers
    config.stash[_NAME] = f"pytest-{uuid.uuid4().hex}" if given is None else given[_WORKER_INPUT]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist is about to start a worker: it is told the name."""
    node.workerinput[_WORKER_INPUT] = node.config.stash[_NAME]


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        for name in (config.stash[_NAME], _gate_of(config.stash[_NAME])):
            with contextlib.suppress(FileNotFoundError):
                MemoryFileSystem.destroy(name)


@pytest.fixture(scope="session")
def mfs_prepare() -> Prepare | None:
    """What prepares the filesystem of `mfs_shared`: to be overridden by a function of one argument, the filesystem."""
    return None


@pytest.fixture(scope="session")
def mfs_shared(pytestconfig: pytest.Config, mfs_prepare: Prepare | None) -> Iterator[MemoryFileSystem]:
    """The filesystem of the whole run, prepared."""
    name, quota = pytestconfig.stash[_NAME], int(pytestconfig.getini("mfs_shared_quota"))
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(contextlib.closing(MemoryFileSystem.create(_gate_of(name), _SMALL_QUOTA, exist_ok=True)))
        fs = stack.enter_context(contextlib.closing(MemoryFileSystem.create(name, quota, exist_ok=True)))
        if mfs_prepare is not None:
            _prepare_once(gate, fs, mfs_prepare)
        yield fs


def _gate_of(name: str) -> str:
    """The store beside the shared one in which stands how far its preparation is, so that nothing of it stands in the other."""
    return f"{name}.gate"


def _prepare_once(gate: MemoryFileSystem, fs: MemoryFileSystem, prepare: Prepare) -> None:
    """Who has the file exclusively prepares; the others wait for it, and read what came of it."""
    with contextlib.suppress(FileExistsError):
        gate.open(_STATE, "xb").close()
    with gate.open(_STATE, "r+b", lock_timeout=None, allow_abandoned=True) as state:
        said = state.read()
        if not said:
            _empty(fs)
            try:
                prepare(fs)
                said = _DONE
            except Exception:  # noqa: BLE001  (it is every worker's)
                said = _FAILED + traceback.format_exc().encode("utf-8", "replace")[-_SMALL_QUOTA // 2 :]
            state.write(said)
    if said != _DONE:
        pytest.fail(f"mfs_prepare failed:\n{said.removeprefix(_FAILED).decode()}", pytrace=False)


def _empty(fs: MemoryFileSystem) -> None:
    """Take away what somebody left who was killed while he prepared."""
    for name in fs.listdir("/"):
        if fs.is_dir(f"/{name}"):
            fs.rmtree(f"/{name}")
        else:
            fs.remove(f"/{name}")
