"""A pytest fixture, `mfs`: a private filesystem for one test. It is there once a conftest.py asks for it:

pytest_plugins = ["dmemfs_shm._pytest_plugin"]

def test_something(mfs):
    with mfs.open("/a.txt", "wb") as file:
        file.write(b"hello")
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .filesystem import MemoryFileSystem


@pytest.fixture
def mfs() -> Iterator[MemoryFileSystem]:
    """A MemoryFileSystem of its own for each test, with a quota of 1 MiB; closed when the test is over."""
    fs = MemoryFileSystem(max_quota=1 << 20)
    yield fs
    fs.close()
