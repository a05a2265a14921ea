"""A named store that lives as long as somebody holds it, whatever way its holders end.

    held = hold("staging", max_quota=1 << 30)   # the first one makes the store
    held.fs.write_bytes("/a", b"...")
    held.release()                              # the last one takes it away

Guarantees.
  * Each holder has a shared lock on the life byte of the store's index, which the kernel gives back with the process: at an
    orderly end, at an exception that nobody caught, at SIGKILL. Forked children do not have it.
  * The last `release` destroys the store before it returns. Where holders end without one, the store's *keeper* does it: a
    process of its own, one for each store, that sleeps in the kernel until it has the byte for itself alone. It belongs to no
    holder's session or process group, and whoever comes to hold a store sees that there is one.
  * If the keeper was killed as well (with its container, or by name), the next holder finds that all who were attached are
    dead, and begins with an empty store; `prune` removes it, too.
  * Nobody holds a store that is being destroyed: who comes too late makes the next one.

Others may attach the store as any other. They do not keep it: when the last holder has gone, they get MFSStoreGoneError.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid as uuids
from pathlib import Path
from typing import Any

from ..errors import MFSStoreBusyError, MFSStoreGoneError, MFSUnfinishedStoreError
from ..filesystem import MemoryFileSystem
from ..store import attachment, names, segment
from ..store.attachment import destroy_if_deserted, read_identity
from ..store.identity import ByteLocks, keep_locked
from ..store.inspection import why_deserted
from ..store.layout import LB_KEEPER, LB_LIFE

#: Seconds for which somebody may be busy with making or destroying a store of that name.
PATIENCE_S = 10.0
_PAUSE_S = 0.002


class HeldStore:
    """A store that stands at least until `release`. Made by `hold`. fs: the store, attached."""

    def __init__(self, fs: MemoryFileSystem, life: segment.Anchor) -> None:
        self.fs = fs
        self._life = life

    def release(self) -> None:
        """Hold it no more; the last one destroys it. Idempotent."""
        self.fs.close()
        self._life.release()
        _destroy_if_not_held(self.fs.name, self.fs.uuid)


def hold(name: str, max_quota: int, **options: Any) -> HeldStore:
    """Hold the store *name*; make it if there is none. max_quota: bytes; options: those of `MemoryFileSystem.create`.

    MFSParameterError if it stands with other parameters; MFSStoreBusyError if whoever makes or destroys it does not go on;
    the errors of `create` and `attach`.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        held = _try_to_hold(name, max_quota, options)
        if held is not None:
            return held
        if time.monotonic() >= deadline:
            raise MFSStoreBusyError(f"The store {name!r} is being made or destroyed by a process that does not go on.")
        time.sleep(_PAUSE_S)


def _try_to_hold(name: str, max_quota: int, options: dict[str, Any]) -> HeldStore | None:
    """None if the store is on its way in or out just now."""
    with contextlib.suppress(FileNotFoundError):
        if why_deserted(names.check_name(name)):
            destroy_if_deserted(name)
    try:
        fs = MemoryFileSystem.create(name, max_quota, exist_ok=True, **options)
    except (FileNotFoundError, MFSUnfinishedStoreError, MFSStoreGoneError):
        return None
    life = None
    try:
        with contextlib.suppress(FileNotFoundError, MFSStoreGoneError):
            life = keep_locked(names.index_name(name), LB_LIFE, shared=True)
            # Now that nobody destroys it for want of holders: it still stands, so it is its own life that we have.
            fs.is_dir("/")
            if life is not None:
                _provide_keeper(fs)
                return HeldStore(fs, life)
    except BaseException:
        fs.close()
        if life is not None:
            life.release()
            _destroy_if_not_held(name, fs.uuid)
        raise
    fs.close()
    if life is not None:
        life.release()
    return None


def _destroy_if_not_held(name: str, uuid: uuids.UUID) -> None:
    """Destroy this very store unless somebody holds it; if its keeper is about to do it, wait until it is done."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            locks = ByteLocks(names.index_name(name))
        except FileNotFoundError:
            return
        try:
            if not _is_store(locks.fd, name, uuid):
                return
            if locks.try_lock(LB_LIFE):
                _destroy(name, uuid, locks)
                return
            if not locks.is_locked_exclusively(LB_LIFE):
                return
        finally:
            locks.close()
        time.sleep(_PAUSE_S)


def _destroy(name: str, uuid: uuids.UUID, locks: ByteLocks) -> None:
    """REQUIRES the life byte, for ourselves alone: while it stands nobody begins to hold it."""
    if _is_store(locks.fd, name, uuid):
        with contextlib.suppress(FileNotFoundError):
            attachment.destroy(name)


def _is_store(fd: int, name: str, uuid: uuids.UUID) -> bool:
    """Whether this is the index of that store, and it stands, so that its name is still its own."""
    try:
        return read_identity(fd, name) == uuid
    except OSError:
        return False


# ---- the keeper


def _provide_keeper(fs: MemoryFileSystem) -> None:
    """Return when the store has a keeper."""
    locks = ByteLocks(names.index_name(fs.name))
    try:
        if not locks.is_free(LB_KEEPER):
            return
    finally:
        locks.close()
    package = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(package))))
    command = [sys.executable, "-m", __name__, fs.name, fs.uuid.hex]
    run = subprocess.run(  # noqa: S603  (our own module)
        command,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        check=False,
        text=True,
    )
    if run.returncode:
        raise OSError(f"No keeper for the store {fs.name!r}: exit status {run.returncode}\n{run.stderr}")


def keep(name: str, uuid: uuids.UUID) -> None:
    """The keeper's process: stay behind in the background, and destroy the store when nobody holds it any more.

    It does nothing if the store has a keeper or is gone.
    """
    try:
        locks = ByteLocks(names.index_name(name))
    except FileNotFoundError:
        return
    if not _is_store(locks.fd, name, uuid) or not locks.try_lock(LB_KEEPER):
        return
    if os.fork():
        os._exit(0)  # whoever started us goes on: the byte is locked
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(nowhere, fd)
    locks.wait(LB_LIFE)
    _destroy(name, uuid, locks)


if __name__ == "__main__":
    keep(sys.argv[1], uuids.UUID(sys.argv[2]))
