"""fsspec's own tests of a filesystem, on a store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.integrations.fsspec import SharedMemoryFileSystem

from ..conftest import Stores


class Fixtures(AbstractFixtures):
    @pytest.fixture
    def mfs(self, stores: Stores) -> MemoryFileSystem:
        return stores.create()

    @pytest.fixture
    def fs(self, mfs: MemoryFileSystem) -> Iterator[SharedMemoryFileSystem]:
        yield SharedMemoryFileSystem(store=mfs.name)
        SharedMemoryFileSystem.clear_instance_cache()

    @pytest.fixture
    def fs_path(self) -> str:
        return "/"


class TestCopy(AbstractCopyTests, Fixtures):
    pass


class TestGet(AbstractGetTests, Fixtures):
    pass


class TestPut(AbstractPutTests, Fixtures):
    pass


class TestPipe(AbstractPipeTests, Fixtures):
    pass


class TestOpen(AbstractOpenTests, Fixtures):
    pass
