"""Fixtures that let a test speak about D-MemFS and this package at once: what it demands must hold for both.

`package` is either module, `make` makes a filesystem of it, `mfs` is one with the defaults.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from ..conftest import Stores

THEIRS, OURS = "dmemfs", "dmemfs_shm"
Make = Callable[..., Any]


@pytest.fixture(params=[THEIRS, OURS])
def package(request: pytest.FixtureRequest) -> Any:
    """D-MemFS, then this package."""
    return importlib.import_module(request.param)


@pytest.fixture
def make(package: Any, stores: Stores) -> Make:
    """The constructor, as its users call it; ours are checked and closed at the end."""

    def made(*arguments: Any, **options: Any) -> Any:
        fs = package.MemoryFileSystem(*arguments, **options)
        return stores.keep(fs) if package.__name__ == OURS else fs

    return made


@pytest.fixture
def mfs(make: Make) -> Any:
    """A filesystem with the defaults."""
    return make()
