"""The names of the package beside D-MemFS's, and what importing it loads."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import dmemfs
import pytest

import dmemfs_shm

#: Not in this version.
MISSING = {"AsyncMemoryFileSystem", "AsyncMemoryFileHandle"}


def test_every_name() -> None:
    assert set(dmemfs.__all__) - set(dmemfs_shm.__all__) <= MISSING
    assert len(dmemfs_shm.__all__) == len(set(dmemfs_shm.__all__))
    for name in dmemfs_shm.__all__:
        assert getattr(dmemfs_shm, name).__doc__, name
    with pytest.raises(AttributeError, match="module 'dmemfs_shm' has no attribute 'nothing'"):
        dmemfs_shm.nothing  # noqa: B018


def parameters(call: Any) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(call).parameters.values()]


@pytest.mark.parametrize("name", ["expand_archive", "expand_archive_streaming", "MFSTextHandle", "MemoryFileSystem"])
def test_arguments(name: str) -> None:
    """Names, order, kinds and defaults."""
    assert parameters(getattr(dmemfs_shm, name)) == parameters(getattr(dmemfs, name))


@pytest.mark.parametrize("kind", ["MFSTextHandle", "ArchiveAdapter"])
def test_methods(kind: str) -> None:
    ours, theirs = getattr(dmemfs_shm, kind), getattr(dmemfs, kind)
    for name in vars(theirs):
        if not name.startswith("_") and callable(getattr(theirs, name)):
            assert parameters(getattr(ours, name)) == parameters(getattr(theirs, name)), name


def test_what_an_import_loads() -> None:
    """What few programs need is loaded when it is asked for, also by a star."""
    script = (
        "import sys, dmemfs_shm\n"
        "heavy = {'zipfile', 'tarfile', 'asyncio', 'pytest', 'click', 'rich', 'dmemfs_shm.text', 'dmemfs_shm.archive'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from dmemfs_shm import *\n"
        "assert expand_archive is dmemfs_shm.expand_archive is vars(dmemfs_shm)['expand_archive']\n"
        "assert not {'zipfile', 'tarfile', 'pytest', 'click', 'rich'} & set(sys.modules)\n"
    )
    done = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
