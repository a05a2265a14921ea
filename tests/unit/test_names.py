"""Names of segments and semaphores: what a store may be called, and whose is what in /dev/shm."""

from __future__ import annotations

import contextlib
import os
import uuid

import posix_ipc
import pytest

from dmemfs_shm.errors import MFSParameterError
from dmemfs_shm.store import names
from dmemfs_shm.store.layout import ARENAS_MAX, MUTEXES, PARKS, SLOTS_MAX

from ..lockstore import fresh_name


@pytest.mark.parametrize("name", ["a", "0", "etl", "a.b_c-d", "x" * 63, "9.tmp"])
def test_good_names(name: str) -> None:
    """Lower-case letters, digits, dot, underscore, hyphen."""
    assert names.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "_a", "A", "aB", "a/b", "/a", "..", "@a", "a b", "ä", "a\n", "a\0", "x" * 64, "a@"]
)
def test_bad_names(name: str) -> None:
    """Anything else; above all nothing that would leave /dev/shm or look like a private store."""
    with pytest.raises(MFSParameterError):
        names.check_name(name)


@pytest.mark.parametrize("name", [None, 3, b"etl"])
def test_names_are_text(name: object) -> None:
    """Not even bytes."""
    with pytest.raises(TypeError):
        names.check_name(name)


def test_all_names_differ() -> None:
    """No two things of one store, nor of two stores, share a name; the longest fits a file name."""
    one, other = uuid.uuid4(), uuid.uuid4()
    made = [
        name
        for it in (one, other)
        for name in (
            names.index_name(names.private_name(it)),
            names.arena(it, 1, 11),
            names.arena(it, 11, 1),
            names.mutex(it, 1, 11),
            names.mutex(it, 11, 1),
            names.spare(it, 1),
            names.park(it, 1, 11),
            names.park(it, 11, 1),
        )
    ]
    assert len(set(made)) == len(made)
    longest = [
        names.index_name("x" * 63, 2**32 - 1),
        names.mutex(one, MUTEXES, 1 << 63),
        names.park(one, SLOTS_MAX, PARKS),
        names.arena(one, ARENAS_MAX, 1 << 63),
    ]
    assert all(name.startswith("/dmemfs-") and name.count("/") == 1 and len("sem." + name) < 255 for name in longest)


def test_two_users() -> None:
    """The same name is another store for another user."""
    assert names.index_name("etl", 1) != names.index_name("etl", 2)
    assert names.index_name("etl") == names.index_name("etl", os.geteuid())


@contextlib.contextmanager
def entries(*entries: str):
    """Empty files of these names in /dev/shm."""
    try:
        for entry in entries:
            with open(f"/dev/shm/{entry}", "xb"):
                pass
        yield
    finally:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"/dev/shm/{entry}")


def test_stores() -> None:
    """Indexes are found by their names, with their owners; nothing else is taken for one."""
    name, it = fresh_name(), uuid.uuid4()
    with entries(
        f"dmemfs-7-{name}", f"dmemfs-8-@{it.hex}", f"dmemfs-{it.hex}.a0.0", f"sem.dmemfs-{it.hex}.m1.0", f"dmemfs-x-{name}"
    ):
        found = [entry for entry in names.stores() if entry[1] in (name, names.private_name(it))]
        assert found == [(7, name), (8, names.private_name(it))]
        assert (7, name) in names.stores(7) and (8, names.private_name(it)) not in names.stores(7)


def test_belongings() -> None:
    """What carries a store's uuid, split into segments and semaphores; another store's is left alone."""
    it, other = uuid.uuid4(), uuid.uuid4()
    with entries(f"dmemfs-{it.hex}.a0.0", f"sem.dmemfs-{it.hex}.m1.0", f"sem.dmemfs-{it.hex}.p0.1", f"dmemfs-{other.hex}.a0.0"):
        segments, semaphores = names.belongings(it)
        assert segments == [names.arena(it, 0, 0)]
        assert sorted(semaphores) == sorted([names.mutex(it, 1, 0), names.park(it, 0, 1)])


def test_file_behind_a_semaphore() -> None:
    """Recovery renames that file: it must be where glibc puts it."""
    name = names.spare(uuid.uuid4(), 0)
    semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=3)
    try:
        assert os.path.exists(names.semaphore_path(name))
        moved = name + "x"
        os.rename(names.semaphore_path(name), names.semaphore_path(moved))
        try:
            other = posix_ipc.Semaphore(moved)
            assert other.value == 3
            other.close()
        finally:
            posix_ipc.unlink_semaphore(moved)
    finally:
        semaphore.close()
