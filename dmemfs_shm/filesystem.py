"""MemoryFileSystem: a quota-bounded filesystem in shared memory, with D-MemFS's names and semantics.

    fs = MemoryFileSystem.create("etl", max_quota=1 << 30)   # a named store; others attach("etl")
    fs = MemoryFileSystem(max_quota=64 << 20)                # a private one: as D-MemFS's, and shared with child processes

Guarantees. Every method is safe to call from any thread of any process that has the store; each changes the store whole or
not at all, whoever is killed at whatever instruction. A file is locked from `open` to `close`, shared for reading and
exclusively for writing, first come, first served. What would pass the quota fails before a byte changes.

Paths are str or os.PathLike[str]; sizes and offsets are bytes; times are seconds (timeouts) or seconds since the epoch.
Where D-MemFS has the method, its text, order of checks and exceptions are kept; differences are in the README.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import math
import operator
import os
import sys
import threading
import time
import uuid as uuids
import warnings
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from .errors import (
    MFSAbandonedFileError,
    MFSClosedError,
    MFSCorruptStoreError,
    MFSNodeLimitExceededError,
    MFSParameterError,
    MFSStoreGoneError,
)
from .guard import MemoryGuard
from .handle import MemoryFileHandle, bytes_of
from .paths import AnyPath, canonical, decode, parse
from .store import attachment, names
from .store.attachment import Attachment, Parameters
from .store.layout import (
    BACKENDS,
    CHARGED,
    KIND_DIR,
    KIND_FILE,
    KIND_SHIFT,
    LOCK_ABANDONED,
    LOCK_WRITER,
    LOW32,
    N_CONTENT,
    N_CREATED,
    N_GENERATION,
    N_MODIFIED,
    N_NAME,
    N_PIN,
    N_RUN,
    N_RUNS,
    N_SEQ,
    N_SIZE,
    NAMESPACE,
    NODE_WORDS,
    ORPHANED,
    REC_DIRTY,
    REC_WRITER,
    RUN_UNITS_SHIFT,
    SLOTS_MAX,
    STATE_READY,
    UNIT,
    USED,
    W_FILE_CHARGE,
    W_QUOTA,
    W_STATE,
    WORD_MAX,
)
from .store.lazy import load
from .store.listing import Entry
from .store.memory import available_bytes
from .store.namespace import Fill, Found, Path
from .store.segment import Segment
from .store.space import until

if TYPE_CHECKING:
    from .claims import Claim

DEFAULT_QUOTA = 256 * 1024 * 1024
_MODES = {"rb": 0, "wb": REC_WRITER | REC_DIRTY, "ab": REC_WRITER, "r+b": REC_WRITER, "xb": REC_WRITER | REC_DIRTY}
_STATES = {1: "waiting", 2: "granted", 3: "held"}


class MFSStats(TypedDict):
    """`MemoryFileSystem.stats`: bytes, and counts. chunk_count is the number of charged contents (D-MemFS: chunks)."""

    used_bytes: int
    quota_bytes: int
    free_bytes: int
    file_count: int
    dir_count: int
    chunk_count: int
    overhead_per_chunk_estimate: int


class MFSStatResult(TypedDict):
    """`MemoryFileSystem.stat`: D-MemFS's five keys, and whether the file's writer died before closing it."""

    size: int
    created_at: float
    modified_at: float
    generation: int
    is_dir: bool
    abandoned: bool


class DirectoryQuotaInfo(NamedTuple):
    """The quota of a directory, bytes. path None: the directory or its quota is gone, and what used says is charged for
    content that readers and views still have."""

    path: str | None
    limit: int
    used: int

    @property
    def free(self) -> int:
        """What may still be charged; 0 if the limit was lowered below what is used."""
        return max(0, self.limit - self.used)


class MFSInfo(TypedDict):
    """`MemoryFileSystem.info`: what `stats` has no room for. Sizes in bytes; max_nodes None is unlimited."""

    name: str
    uuid: str
    private: bool
    backend: str
    quota: int
    used: int
    free: int
    orphaned: int
    backed: int
    files: int
    directories: int
    max_nodes: int | None
    max_participants: int
    file_charge: int
    directory_quotas: list[DirectoryQuotaInfo]


class LockInfo(NamedTuple):
    """One lock held or waited for. mode "shared" or "exclusive"; state "held", "granted" or "waiting"; since: epoch."""

    path: str
    mode: str
    state: str
    pid: int
    pid_namespace: int
    thread: int
    command: str
    since: float


class ParticipantInfo(NamedTuple):
    """One process that is attached, or died attached and whose slot nobody has taken yet. since: epoch."""

    slot: int
    pid: int
    pid_namespace: int
    command: str
    alive: bool
    since: float


class MemoryFileSystem:
    """A filesystem in shared memory; the constructor makes a private store, `create` and `attach` take named ones.

    max_quota: bytes that the files may be charged. chunk_overhead_override: bytes charged for each non-empty file beside
    its size (default 128). promotion_hard_limit: checked, without effect. max_nodes: files and directories, None for
    unlimited. default_storage: "auto", "random_access" (the same), or "sequential", which refuses all but appending.
    default_lock_timeout: seconds, None to wait for ever. memory_guard, memory_guard_action, memory_guard_interval: see
    `guard`. The last three kinds belong to this object, the others to the store.

    A private store lives as long as somebody has it: this object, forked children, processes that it was pickled to. It
    goes with the last close, collection or exit.

    Raises ValueError for parameters out of range, MFSNoSpaceError if /dev/shm has no room for the index.
    """

    def __init__(
        self,
        max_quota: int = DEFAULT_QUOTA,
        chunk_overhead_override: int | None = None,
        promotion_hard_limit: int | None = None,
        max_nodes: int | None = None,
        default_storage: str = "auto",
        default_lock_timeout: float | None = 30.0,
        memory_guard: str = "none",
        memory_guard_action: str = "warn",
        memory_guard_interval: float = 1.0,
    ) -> None:
        parameters = _parameters(max_quota, chunk_overhead_override, promotion_hard_limit, max_nodes, default_storage)
        guard = MemoryGuard(memory_guard, memory_guard_action, memory_guard_interval)
        timeout = _check_timeout(default_lock_timeout)
        guard.check_init(max_quota)
        attachment.prune_private()
        store = attachment.create(names.private_name(uuids.uuid4()), parameters)
        self._bind(store, timeout, guard)

    # ---- named stores

    @classmethod
    def create(
        cls,
        name: str,
        max_quota: int = DEFAULT_QUOTA,
        *,
        exist_ok: bool = False,
        backend: str = "generation",
        max_participants: int = SLOTS_MAX,
        max_nodes: int | None = None,
        chunk_overhead_override: int | None = None,
        promotion_hard_limit: int | None = None,
        default_storage: str = "auto",
        default_lock_timeout: float | None = 30.0,
        memory_guard: str = "none",
        memory_guard_action: str = "warn",
        memory_guard_interval: float = 1.0,
    ) -> MemoryFileSystem:
        """Create the store *name* and attach it. FileExistsError if it stands; with *exist_ok* that one is attached,
        MFSParameterError if its parameters are others.

        backend: "generation" or "ofd" (slower; for processors other than x86-64 that may not call membarrier, which is an
        OSError here). max_participants: processes attached at once, at most 256.
        ResourceWarning if the quota exceeds what /dev/shm, the cgroup or RAM have now.
        """
        names.check_name(name)
        parameters = _parameters(max_quota, chunk_overhead_override, promotion_hard_limit, max_nodes, default_storage)
        guard = MemoryGuard(memory_guard, memory_guard_action, memory_guard_interval)
        parameters.backend = _backend(backend)
        parameters.slots = _count("max_participants", max_participants, 1, SLOTS_MAX)
        timeout = _check_timeout(default_lock_timeout)
        guard.check_init(max_quota)
        attachment.prune_private()
        try:
            store = attachment.create(name, parameters)
        except FileExistsError:
            if not exist_ok:
                raise
            store = attachment.attach(name)
            _compare(store, parameters)
        else:
            try:
                _warn_if_too_large(max_quota)
            except BaseException:  # the warning itself, where warnings are errors
                attachment.release(store)
                attachment.destroy(name)
                raise
        fs = cls.__new__(cls)
        fs._bind(store, timeout, guard)
        return fs

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        default_lock_timeout: float | None = 30.0,
        memory_guard: str = "none",
        memory_guard_action: str = "warn",
        memory_guard_interval: float = 1.0,
    ) -> MemoryFileSystem:
        """Attach the store *name*. FileNotFoundError if there is none; MFSNotOwnerError, MFSVersionError, MFSLayoutError,
        MFSUnfinishedStoreError, MFSCorruptStoreError, MFSTooManyParticipantsError say why it can't be attached; OSError
        that this process has no membarrier, as in `create`; MemoryError is the guard's."""
        names.check_name(name)
        guard = MemoryGuard(memory_guard, memory_guard_action, memory_guard_interval)
        timeout = _check_timeout(default_lock_timeout)
        store = attachment.attach(name)
        try:
            guard.check_attached(store.quota_bytes - store.arenas.backed_bytes())
        except BaseException:
            attachment.release(store)
            raise
        fs = cls.__new__(cls)
        fs._bind(store, timeout, guard)
        return fs

    @staticmethod
    def destroy(name: str) -> None:
        """Take the store *name* away. Those who are attached get MFSStoreGoneError from then on; views stay readable.

        FileNotFoundError if there is none, MFSNotOwnerError if it is another user's.
        """
        attachment.destroy(names.check_name(name))

    def _bind(self, store: Attachment, timeout: float | None, guard: MemoryGuard) -> None:
        self.name = store.name
        self.uuid = store.uuid
        self._timeout = timeout
        self._guard = guard
        self._write_guard = guard if guard.watches_writes else None
        self._handles: dict[int, weakref.ref[MemoryFileHandle]] = {}
        self._claims: dict[int, weakref.ref[Claim]] = {}
        self._is_closed = False
        self._sequential = store.options.get("default_storage") == "sequential"
        self._store: Attachment | None = store
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _let_go, store)
        self._finalizer.atexit = False
        self._heritage: weakref.finalize[..., Any] | None = None  # our part in a parent's private store
        _filesystems.add(self)
        _close_at_exit()

    def _inherit(self, store: Attachment) -> None:
        """In a forked child: keep the parent's private store alive until we are closed, or collected if it was not pickled."""
        attachment.inherit(self.name)
        self._heritage = weakref.finalize(_exit_marker if store.kept else self, attachment.disown, self.name)
        self._heritage.atexit = False

    def _attached(self) -> Attachment:
        """The store, which must stand; in a forked child it is attached anew at the first use."""
        store = self._store
        if store is not None:
            store.check_state()
            return store
        with self._lock:
            if self._is_closed:
                raise MFSClosedError("The filesystem object was closed.")
            if self._store is None:
                self._store = store = attachment.attach(self.name, self.uuid)
                self._finalizer = weakref.finalize(self, _let_go, store)
                self._finalizer.atexit = False
                _close_at_exit()
            return self._store

    def _impatient(self) -> MemoryFileSystem:
        """This object, for one call that is to be refused with MFSLockTimeoutError where it would have to wait for a file."""
        self._attached()
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _timeout=0.0)
        return twin

    def close(self) -> None:
        """Detach this object: its open handles are closed with a ResourceWarning, its views live on. Idempotent.

        Later calls raise MFSClosedError. Other objects of the process, and other processes, go on. BufferError, and nothing
        is closed, while something that a handle's `getbuffer` gave lives.
        """
        with self._lock:
            if self._is_closed:
                return
            if self._store is not None and self._store.state == STATE_READY:
                for handle in self._open_handles():
                    handle.check_lent()
            self._is_closed = True
            store, self._store = self._store, None
        try:
            if store is not None:
                self._leave(store)
        finally:
            if self._heritage is not None:
                self._heritage()

    def _leave(self, store: Attachment) -> None:
        try:
            if store.state == STATE_READY:
                for handle in self._open_handles():
                    warnings.warn(f"{handle!r} was open when its filesystem was closed.", ResourceWarning, stacklevel=3)
                    handle._leave()
                for claim in [reference() for reference in list(self._claims.values())]:
                    if claim is not None:
                        claim.release()
                store.work_off()
                store.publications.leave(for_good=store.users == 1)
        except MFSStoreGoneError:
            if store.state == STATE_READY:  # else it was destroyed just now, and nothing is left to give back
                raise
        finally:
            self._finalizer.detach()
            attachment.release(store)

    def _open_handles(self) -> list[MemoryFileHandle]:
        return [handle for reference in list(self._handles.values()) if (handle := reference()) is not None]

    def __reduce__(self) -> Any:
        """Pickled as name, uuid and this object's own defaults: unpickling attaches the same store, never its successor."""
        store = self._attached()
        store.kept = True
        return _unpickle, (type(self), self.name, self.uuid, self._timeout, self._guard.arguments())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}{' (closed)' if self._is_closed else ''}>"

    # ---- opening

    def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        preallocate: int = 0,
        lock_timeout: float | None = None,
        *,
        allow_abandoned: bool = False,
        atomic: bool = False,
        space_timeout: float | None = 0.0,
    ) -> MemoryFileHandle:
        """Open a file in mode "rb", "wb", "ab", "r+b" or "xb", and lock it until it is closed.

        preallocate: bytes that the file has at least from now on, zero-filled and charged. lock_timeout: seconds for the
        lock; None is the object's default, 0.0 tries once. allow_abandoned: also a file whose writer died.
        space_timeout: seconds that each write of the handle that the quota refuses (and *preallocate*, and truncate) waits
        for others to free space, the file's lock held: 0.0 not at all, None for ever. Those who wait are served in order,
        and passed by writes that fit without waiting. One that was stopped for a second, or is dead, holds up nobody; what
        is more than the quota is refused at once. Memory (MFSNoSpaceError) is not waited for. (Whoever writes a file in pieces
        keeps what he has while he waits; several may then wait for each other. *preallocate* and `write_bytes` do not.)

        atomic ("wb" and "xb"): nobody sees the file until it is closed in order, which puts it in the place of the one that
        is there, at once for everybody; else it is dropped. See `atomic`: in a `with` it is the end of the block that
        decides. Readers and views keep the old file, a writer of it is waited for then. Old and new are both charged.

        ValueError (mode), FileNotFoundError, FileExistsError, IsADirectoryError, MFSLockTimeoutError, MFSDeadlockError,
        MFSAbandonedFileError, MFSQuotaExceededError, MFSNoSpaceError.
        """
        kind = _MODES.get(mode)
        if kind is None:
            raise ValueError(f"Invalid mode '{mode}'. MFS supports binary modes only: {set(_MODES)}")
        if preallocate is not _NOTHING or space_timeout != 0.0 or atomic:
            preallocate = operator.index(preallocate)
            if preallocate > 0 and mode == "rb":
                raise io.UnsupportedOperation("preallocate needs a mode that writes")
            if space_timeout is not None:
                _check_timeout(space_timeout)
            if atomic:
                return self._open_atomic(path, mode, preallocate, lock_timeout, space_timeout)
        store = self._store or self._attached()
        if store.dropped:
            store.work_off()
        timeout = self._timeout if lock_timeout is None else _check_timeout(lock_timeout)
        found = store.names.files.get(path)  # type: ignore[arg-type]
        rw = store.rw
        try:
            held = [rw.free.pop()]
        except IndexError:
            held = [rw.lease()]
        record = held[0].word
        try:
            created = False
            if found is not None and mode != "xb":
                node, generation, namespace = found
            else:
                node = generation = namespace = 0
            if not node or not rw.lock(node, generation, namespace, record, kind, timeout):
                (node, _, _), created = self._open_slowly(store, path, mode, record, kind, timeout)
            if not created and (mode == "wb" or store.w[rw.nodes_at + node * NODE_WORDS] & LOCK_ABANDONED):
                self._begin(store, node, path, mode, allow_abandoned)
            name = path if path.__class__ is str else os.fspath(path)
            handle = MemoryFileHandle(self, store, node, held, name, mode, space_timeout)
            self._handles[record] = _reference(handle)
        except BaseException:
            if held and store.state == STATE_READY:
                rw.give_back(held.pop())
            raise
        if preallocate > 0:
            try:
                handle._preallocate(preallocate)
            except BaseException:
                handle.close()
                raise
        return handle

    def _open_atomic(
        self, path: AnyPath, mode: str, preallocate: int, lock_timeout: float | None, space_timeout: float | None
    ) -> MemoryFileHandle:
        if mode not in ("wb", "xb"):
            raise ValueError(f"atomic=True needs mode 'wb' or 'xb', not '{mode}'")
        store = self._attached()
        timeout = self._timeout if lock_timeout is None else _check_timeout(lock_timeout)
        target = parse(path)
        if not target.parts:
            raise IsADirectoryError(f"Is a directory: '{target.text}'")
        held = [store.rw.lease()]
        try:
            record = held[0].word
            node = store.names.draft(target, record, timeout, exclusive=mode == "xb")
            handle: MemoryFileHandle = load("dmemfs_shm.atomic").AtomicFileHandle(
                self, store, node, held, target, mode, timeout, space_timeout
            )
            self._handles[record] = weakref.ref(handle)
        except BaseException:
            if held and store.state == STATE_READY:
                store.rw.give_back(held.pop())
            raise
        if preallocate > 0:
            try:
                handle._preallocate(preallocate)
            except BaseException:
                handle.discard()
                raise
        return handle

    def _open_slowly(
        self, store: Attachment, path: AnyPath, mode: str, record: int, kind: int, timeout: float | None
    ) -> tuple[Found, bool]:
        """Look the path up, create the file if the mode does, and lock it; whether it was created."""
        creates = mode not in ("rb", "r+b")
        deadline = None if timeout is None else time.monotonic() + timeout
        if creates:
            new = store.fast.create(path, record, timeout)
            if new is not None:
                return new, True
        elif store.w[W_STATE] == STATE_READY:
            known = store.fast.find(path)
            if known is not None and store.rw.lock(*known, record, kind, timeout):
                return known, False
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        parsed = parse(path)
        while True:
            if creates and parsed.parts:
                found, created = store.names.create(parsed, record, timeout)
                if created:
                    store.names.remember(parsed.text, found)
                    return found, True
                store.names.remember(parsed.text, found)
            else:
                found = store.names.find(parsed, timeout)
            if not found[0]:
                raise FileNotFoundError(f"No such file: '{parsed.text}'")
            kind_found = store.names.kind_of(found)
            if kind_found == KIND_DIR:
                raise IsADirectoryError(f"Is a directory: '{parsed.text}'")
            if kind_found and mode == "xb":
                raise FileExistsError(f"File exists: '{parsed.text}'")
            if store.rw.lock(*found, record, kind, timeout):
                return found, False
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())

    def _begin(self, store: Attachment, node: int, path: AnyPath, mode: str, allow_abandoned: bool) -> None:
        """What the mode does to a file that stands, once it is locked: "wb" empties it, others refuse an abandoned one."""
        w, at = store.w, store.names.nodes_at + node * NODE_WORDS
        if mode == "wb":
            run = w[at + N_RUN]
            if w[at + N_PIN] & LOW32:
                store.placement.unshare(node, 0, 0, self._timeout)
            elif w[at + N_RUNS]:
                store.arenas.pieces(store.content.runs(w, at))  # what can fail does so while the old bytes are there
            elif run:
                known = store.arenas.located.get(run)
                if known is None or w[known[2]] != known[3]:
                    store.arenas.locate(run)
            w[at + N_SIZE] = 0
            w[at + N_CONTENT] = w[at + N_CONTENT] + 1 & WORD_MAX
            w[at + N_MODIFIED] = time.time_ns()
        elif not allow_abandoned:
            raise MFSAbandonedFileError(os.fspath(path))

    # ---- whole files

    def read_bytes(self, path: AnyPath, *, allow_abandoned: bool = False) -> bytes:
        """The content of a file. allow_abandoned, exceptions: as for `open` in "rb"."""
        store = self._store or self._attached()
        found = store.names.files.get(path)  # type: ignore[arg-type]
        if found is not None:
            data = _read_unlocked(store, found)
            if data is not None:
                return data
        found = store.fast.find(path)
        if found is not None:
            data = _read_unlocked(store, found)
            if data is not None:
                return data
        with self.open(path, allow_abandoned=allow_abandoned) as handle:
            return handle.read()

    def write_bytes(self, path: AnyPath, data: Any, *, space_timeout: float | None = 0.0) -> int:
        """Make *data* the content of the file, at once for everybody: others see the old content or the new one.

        Readers and views of the old content keep it. Both are charged for a moment. A writer is waited for
        (MFSLockTimeoutError). Returns the size. space_timeout: as for `open`.
        """
        store = self._store or self._attached()
        source = data if type(data) is bytes else bytes_of(data)
        size = len(source)
        if self._write_guard is not None:
            self._write_guard.check_before_write(size)
        wait_until = 0.0 if space_timeout == 0.0 else until(_check_timeout(space_timeout))
        if store.fast.put(path, source, size, self._timeout):
            return size
        store.names.put(parse(path), size, _filler(source, size), self._timeout, replace=True, until=wait_until)
        return size

    def import_tree(self, tree: Mapping[str, Any] | Mapping[os.PathLike[str], Any]) -> None:
        """Make the files of *tree*, path to content (any C-contiguous buffer): all of them at once for everybody, or none.

        Files that stand are replaced, and as new ones are (created_at is now, generation 0); views keep the old content.
        Missing directories are made. Old and new are both charged until then. Waits for no file.

        MFSFileOpenError (one of them is open anywhere), IsADirectoryError, FileExistsError (a file where a directory must
        be), MFSQuotaExceededError, MFSNodeLimitExceededError, MFSNoSpaceError, and for a path or content that can't be one
        ValueError, OSError(ENAMETOOLONG), TypeError.
        """
        store = self._attached()
        if not tree:
            return
        files, total = {}, 0
        for path, data in tree.items():
            parts = tuple(parse(path).parts)
            source = data if type(data) is bytes else memoryview(bytes_of(data))
            files[parts] = len(source), _filler(source, len(source))
            total += len(source)
        self._guard.check_before_write(total)
        store.grafts.import_tree(files, self._timeout)

    def view(self, path: AnyPath, *, allow_abandoned: bool = False) -> Any:
        """A read-only view of the file's own memory; use it as ``with fs.view(path) as v``, where v is a memoryview.

        The bytes never change: writers and removers leave them to the view, and to what is derived from it (slices,
        numpy and Arrow arrays), until the last of these is gone. The lock is only taken while pinning.
        MFSViewError if the file is in pieces and there is no run that it fits into.
        """
        store = self._store or self._attached()
        if store.unpinned and store.w[W_STATE] == STATE_READY:
            known = store.names.files.get(path)  # type: ignore[arg-type]
            again = None if known is None else store.placement.pin_again(known, load("dmemfs_shm.view").view_pinned)
            if again is not None:
                return again
        parsed = parse(path)
        while True:
            found = store.names.files.get(parsed.text) or store.names.find(parsed, self._timeout)
            _expect_file(store, found, parsed)
            pinned = store.placement.pin(found, parsed.text, self._timeout, allow_abandoned=allow_abandoned)
            if pinned is not None:
                break
            store.names.files.pop(parsed.text, None)
        return load("dmemfs_shm.view").make_view(store, *pinned)

    # ---- exporting

    def export_as_bytesio(self, path: AnyPath, max_size: int | None = None, *, allow_abandoned: bool = False) -> io.BytesIO:
        """A copy of a file's content, at position 0. It is the process's own memory, which no quota counts.

        max_size: bytes; ValueError if the file has more, before any is copied. Other exceptions as for `open` in "rb".
        """
        with self.open(path, allow_abandoned=allow_abandoned) as handle:
            size = handle._size
            if max_size is not None and size > max_size:
                raise ValueError(f"File size {size} exceeds max_size={max_size}.")
            return io.BytesIO(handle.read())

    def export_tree(
        self, prefix: AnyPath = "/", only_dirty: bool = False, *, allow_abandoned: bool = False
    ) -> dict[str, bytes]:
        """The content of all files below *prefix* at once, by absolute path; see `iter_export_tree`."""
        return dict(self.iter_export_tree(prefix, only_dirty, allow_abandoned=allow_abandoned))

    def iter_export_tree(
        self, prefix: AnyPath = "/", only_dirty: bool = False, *, allow_abandoned: bool = False
    ) -> Iterator[tuple[str, bytes]]:
        """(absolute path, content) of all files below a directory, or of the file *prefix*; of none if it does not stand.

        The paths are those of the moment of the first step. Each file is read when its turn comes, whole and under its
        shared lock; those removed until then are left out. only_dirty: only files that were changed since they were made
        or imported (`stat`: generation above 0).

        ValueError for an escape above the root, at the call. While iterating: MFSLockTimeoutError,
        MFSDeadlockError, and MFSAbandonedFileError unless *allow_abandoned*.
        """
        parsed = parse(prefix)
        self._attached()
        return load("dmemfs_shm.export").exported(self, parsed, only_dirty=only_dirty, allow_abandoned=allow_abandoned)  # type: ignore[no-any-return]

    # ---- names

    def mkdir(self, path: AnyPath, exist_ok: bool = False) -> None:
        """Create a directory and those above it that are missing. FileExistsError."""
        self._attached().names.mkdir(parse(path), self._timeout, exist_ok=exist_ok)

    def rename(self, src: AnyPath, dst: AnyPath) -> None:
        """Give a file or directory another name; the directory of *dst* must stand.

        FileNotFoundError, FileExistsError, MFSFileOpenError if a file in it is open anywhere, ValueError for the root and
        for a directory into itself. OSError(EXDEV) to where another directory's quota counts (see `set_quota`).
        """
        source, target = parse(src), parse(dst)
        if not source.parts:
            raise ValueError("Cannot rename the root directory.")
        self._attached().names.rename(source, target, self._timeout)

    def move(self, src: AnyPath, dst: AnyPath) -> None:
        """As `rename`, creating the directories above *dst* that are missing; also to where another directory's quota counts.

        There, MFSDirectoryQuotaError if that has no room, and nothing has moved. A file is charged anew, and not copied. A
        directory is copied, with the times of all that is in it and beside the old one (both are charged for the moment),
        and takes its place at once for everybody: a death leaves all of it here or all of it there. If somebody changes
        something in it meanwhile it is copied again, and at last MFSFileOpenError; MFSAbandonedFileError as for a copy. A
        directory in it that has a quota of its own: OSError(EXDEV).
        """
        source, target = parse(src), parse(dst)
        if not source.parts:
            raise ValueError("Cannot move the root directory.")
        self._attached().names.rename(source, target, self._timeout, make_parents=True)

    def replace(self, src: AnyPath, dst: AnyPath) -> None:
        """The closed file *src* takes the name *dst*, at once, whatever file had it; its readers and views keep that one.

        FileNotFoundError, IsADirectoryError, MFSFileOpenError (src is open), MFSLockTimeoutError (dst is being written),
        OSError(EXDEV) if another directory's quota counts there (see `set_quota`).
        """
        source, target = parse(src), parse(dst)
        if not target.parts:
            raise IsADirectoryError(f"Is a directory: '{target.text}'")
        self._attached().names.replace(source, target, self._timeout)

    def remove(self, path: AnyPath) -> None:
        """Remove a file. FileNotFoundError, IsADirectoryError, MFSFileOpenError."""
        store = self._store or self._attached()
        if not store.fast.remove(path, self._timeout):
            store.check_state()
            store.names.remove(parse(path), self._timeout)

    def rmtree(self, path: AnyPath) -> None:
        """Remove a directory with everything in it, at once for everybody.

        FileNotFoundError, NotADirectoryError, MFSFileOpenError, ValueError for the root.
        """
        parsed = parse(path)
        if not parsed.parts:
            raise ValueError("Cannot remove the root directory.")
        self._attached().names.rmtree(parsed, self._timeout)

    def _rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory: as `rmtree`, and OSError(ENOTEMPTY)."""
        parsed = parse(path)
        if not parsed.parts:
            raise ValueError("Cannot remove the root directory.")
        self._attached().names.rmtree(parsed, self._timeout, only_empty=True)

    def set_quota(self, path: AnyPath, limit: int | None) -> None:
        """Let what is in a directory be charged at most *limit* bytes, beside the store's quota; None takes that away.

        The rule of XFS's projects. An empty directory is given a quota, or loses it (OSError(ENOTEMPTY)); in between the
        limit may change at any time, also to less than is used, which refuses new charges. A file is charged to the nearest
        directory above it that has a quota, and to that one alone: what is in a quota within a quota is not charged to the
        outer one. Its charge is the one that the store's quota has for it, content that only readers and views still have
        included, also when the directory is gone. Directories and empty files are not charged. 0 is a limit as any other.

        What would pass the limit fails before a byte changes: MFSDirectoryQuotaError. rename and replace do not cross into
        another directory's quota, OSError(EXDEV); move does. A directory that has a quota keeps it wherever it goes; a copy
        of it has none. `info` has the figures.

        FileNotFoundError, NotADirectoryError, ValueError for the root, whose quota is the store's.
        """
        parsed = parse(path)
        if not parsed.parts:
            raise ValueError("The root directory's quota is the store's, max_quota.")
        value = None if limit is None else _count("limit", limit, 0, 1 << 46)
        self._attached().names.set_quota(parsed, value, self._timeout)

    def copy(self, src: AnyPath, dst: AnyPath, *, allow_abandoned: bool = False) -> None:
        """Copy a file; *dst* must not stand. allow_abandoned: also one whose writer died; the copy is complete.

        FileNotFoundError, FileExistsError, IsADirectoryError, MFSLockTimeoutError, MFSAbandonedFileError,
        MFSQuotaExceededError.
        """
        source, target = parse(src), parse(dst)
        approve = self._guard.check_before_write
        self._attached().names.copy(source, target, approve, self._timeout, allow_abandoned=allow_abandoned)

    def copy_tree(self, src: AnyPath, dst: AnyPath, *, allow_abandoned: bool = False) -> None:
        """Copy a directory with everything in it; *dst* must not stand, and appears when it is complete.

        allow_abandoned: as for `copy`. FileNotFoundError, FileExistsError, NotADirectoryError, MFSLockTimeoutError,
        MFSAbandonedFileError, MFSQuotaExceededError.
        """
        source, target = parse(src), parse(dst)
        approve = self._guard.check_before_write
        self._attached().grafts.copy_tree(source, target, approve, self._timeout, allow_abandoned=allow_abandoned)

    def snapshot(self, target: Any, *, allow_abandoned: bool = False) -> None:
        """Write everything to *target*, a binary file object (a pipe, a socket's file or a GzipFile will do), as one stream.

        It is the tree as it was at one instant of the call: no change is in it in part, and none without those before it.
        Others go on meanwhile, and nothing is locked while the target is written to. Files that are open for writing are
        waited for, each for the default lock timeout; so is, once all has been read, an instant at which nobody writes:
        where somebody always does, that is MFSLockTimeoutError. Kept are names, contents, empty directories, the times of
        creation and modification, and generations; with *allow_abandoned*, files whose writers died, as if they had been
        closed.

        MFSLockTimeoutError, MFSAbandonedFileError, MFSDeadlockError (the calling thread writes a file); what *target* raises
        ends it, too. Some of the stream may have been written then; `restore` refuses it.
        """
        load("dmemfs_shm.snapshot").save(self._attached(), target, self._timeout, allow_abandoned=allow_abandoned)

    def restore(self, source: Any) -> None:
        """Read what `snapshot` wrote from *source*, a binary file object, into this store: all of it at once, or nothing.

        What stands is kept; a name of the snapshot's root that stands here is FileExistsError. Reads to the end of the
        snapshot and not beyond. Until then the new files are charged, and seen by nobody.

        MFSSnapshotError (a ValueError) for a stream that is no snapshot, or incomplete, or altered; MFSQuotaExceededError,
        MFSNodeLimitExceededError, MFSNoSpaceError; what *source* raises ends it, too.
        """
        load("dmemfs_shm.snapshot").load(self._attached(), source, self._timeout, self._guard)

    # ---- looking

    def _find(self, parsed: Path) -> tuple[Attachment, Found]:
        store = self._store or self._attached()
        return store, store.names.find(parsed, self._timeout)

    def exists(self, path: AnyPath) -> bool:
        """Whether there is a file or directory; False for a path that can't be one."""
        return self._kind(path) != 0

    def is_dir(self, path: AnyPath) -> bool:
        return self._kind(path) == KIND_DIR

    def is_file(self, path: AnyPath) -> bool:
        return self._kind(path) == KIND_FILE

    def _kind(self, path: AnyPath) -> int:
        """KIND_FILE, KIND_DIR or 0."""
        store = self._store or self._attached()
        space = store.names
        if store.w[W_STATE] != STATE_READY:
            store.check_state()
        found = space.files.get(path)  # type: ignore[arg-type]
        if found is not None and space.is_current(found):
            return KIND_FILE
        found = space.directories.get(path)  # type: ignore[arg-type]
        if found is not None and space.is_current(found):
            return KIND_DIR
        try:
            parsed = parse(path)
        except (ValueError, OSError):
            return 0
        while True:
            found = space.find(parsed, self._timeout)
            if not found[0]:
                return 0
            kind = space.kind_of(found)
            if kind:
                return kind

    def stat(self, path: AnyPath) -> MFSStatResult:
        """size (0 for directories), created_at, modified_at, generation, is_dir, abandoned. FileNotFoundError."""
        store = self._store or self._attached()
        space, w = store.names, store.w
        if w[W_STATE] != STATE_READY:
            store.check_state()
        found = space.files.get(path) or space.directories.get(path)  # type: ignore[arg-type]
        while True:
            if found is None:
                found = store.fast.find(path)
            if found is None:
                parsed = parse(path)
                found = space.find(parsed, self._timeout)
                if not found[0]:
                    raise FileNotFoundError(f"No such file or directory: '{parsed.text}'")
            node, generation, namespace = found
            at = space.nodes_at + node * NODE_WORDS
            sequence = w[at + N_SEQ]
            directory = w[at + N_NAME] >> KIND_SHIFT & 0xFF == KIND_DIR
            result: MFSStatResult = {
                "size": 0 if directory else w[at + N_SIZE],
                "created_at": w[at + N_CREATED] / 1e9,
                "modified_at": w[at + N_MODIFIED] / 1e9,
                "generation": 0 if directory else w[at + N_CONTENT],
                "is_dir": directory,
                "abandoned": w[at] & LOCK_ABANDONED != 0,
            }
            same = w[at + N_GENERATION] == generation and w[NAMESPACE] == namespace and w[at + N_SEQ] == sequence
            if same and not sequence & 1:
                return result
            found = None

    def get_size(self, path: AnyPath) -> int:
        """Size of a file in bytes. FileNotFoundError, IsADirectoryError."""
        parsed = parse(path)
        while True:
            store, found = self._find(parsed)
            _expect_file(store, found, parsed)
            size = store.w[store.names.at(found[0]) + N_SIZE]
            if store.names.is_current(found):
                return size

    def listdir(self, path: AnyPath) -> list[str]:
        """The names in a directory, in no order. FileNotFoundError, NotADirectoryError."""
        return [decode(entry.name) for entry in self._attached().listing.entries(parse(path), self._timeout)]

    def walk(self, path: AnyPath = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """(directory, names of directories, names of files) for the directory and all below it, top down.

        FileNotFoundError, NotADirectoryError, at the call. What changes meanwhile may be seen or not.
        """
        parsed = parse(path)
        store = self._attached()
        return self._walk(store, canonical(parsed.parts), store.listing.entries(parsed, self._timeout))

    def _walk(self, store: Attachment, path: str, entries: list[Entry] | None) -> Iterator[tuple[str, list[str], list[str]]]:
        todo: list[tuple[str, int, int]] = [(path, 0, 0)]
        while todo:
            path, node, generation = todo.pop()
            if entries is None:
                if not store.listing.is_directory(node, generation):
                    continue
                entries = store.listing.entries_of(node, generation, self._timeout)
            directories = [entry for entry in entries if entry.kind == KIND_DIR]
            todo += [(_below(path, entry), entry.node, entry.generation) for entry in reversed(directories)]
            files = [decode(entry.name) for entry in entries if entry.kind != KIND_DIR]
            entries = None
            yield path, [decode(entry.name) for entry in directories], files

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, sorted, each once: ``*`` and ``?`` within a name, ``**`` any number of directories."""
        return sorted({path for path, _ in load("dmemfs_shm.patterns").pattern(pattern).walk(self._attached(), self._timeout)})

    # ---- coordination

    def wait_for(self, pattern: AnyPath, timeout: float | None = None) -> str:
        """The path of a complete file that matches: closed, not abandoned, not open for writing.

        pattern: as for `glob`, or a path. At once if there is such a file, the first by path; else as soon as one is
        published, by whatever process: by a close, write_bytes, replace, rename, copy. timeout: seconds, None to wait for
        ever: MFSTimeoutError (a TimeoutError). What happens to the file next is anybody's business: see `claim`.
        """
        return load("dmemfs_shm.claims").wait_for(self, pattern, timeout)  # type: ignore[no-any-return]

    def claim(
        self,
        pattern: AnyPath,
        timeout: float | None = None,
        max_attempts: int | None = None,
        dead_letter: AnyPath | None = None,
    ) -> Claim:
        """Claim a complete file that matches, the one that was published first; nobody else has it until the claim ends.

            with fs.claim("/in/*.csv", timeout=10) as c:
                load(c.open("rb"))                  # or c.read_bytes(), c.view()
                c.done()                            # removes the file

        Leaving the block without done(), by exception or not, gives the file back, and so does death. Either counts as an
        attempt (``c.attempts``: how many there were before). After *max_attempts* of them the file is moved to the directory
        *dead_letter*, made if it is missing, under its own name or, if that is taken there, name.1, name.2, ...; without a
        *dead_letter* it stays where it is and is not claimed again with that limit. What is in *dead_letter* is not claimed.
        Whatever publishes a file (a close after a change, write_bytes, rename, replace, copy) starts the count anew.

        timeout: seconds, None to wait for ever: MFSTimeoutError (a TimeoutError). The claim is an exclusive lock: others find
        the file open. It ends with `close`, and does not pass to forked children.
        """
        return load("dmemfs_shm.claims").claim(self, pattern, timeout, max_attempts, dead_letter)  # type: ignore[no-any-return]

    # ---- figures

    def stats(self) -> MFSStats:
        """Quota and counts, as D-MemFS has them; used + free == quota."""
        store = self._attached()
        if store.dropped or store.unpinned:
            store.work_off()
        w = store.w
        files, directories = store.listing.counts()  # first: it may end an import, which gives back what was replaced
        used, quota = w[USED], w[W_QUOTA]
        return MFSStats(
            used_bytes=used,
            quota_bytes=quota,
            free_bytes=quota - used,
            file_count=files,
            dir_count=directories,
            chunk_count=w[CHARGED],
            overhead_per_chunk_estimate=w[W_FILE_CHARGE],
        )

    def info(self) -> MFSInfo:
        """Identity, parameters and memory of the store. orphaned: charged for content that no name
        leads to: readers or views have it, or it is being written."""
        store = self._attached()
        if store.dropped or store.unpinned:
            store.work_off()
        w = store.w
        files, directories = store.listing.counts()
        used = w[USED]
        return MFSInfo(
            name=store.name,
            uuid=str(store.uuid),
            private=store.private,
            backend=store.options["backend"],
            quota=w[W_QUOTA],
            used=used,
            free=w[W_QUOTA] - used,
            orphaned=w[ORPHANED],
            backed=store.arenas.backed_bytes(),
            files=files,
            directories=directories,
            max_nodes=store.options["max_nodes"],
            max_participants=store.layout.slots,
            file_charge=w[W_FILE_CHARGE],
            directory_quotas=[DirectoryQuotaInfo(*quota) for quota in store.names.directory_quotas(self._timeout)],
        )

    def locks(self) -> list[LockInfo]:
        """Every file lock that is held or waited for; read without locks."""
        store = self._attached()
        return locks_of(store)

    def participants(self) -> list[ParticipantInfo]:
        """The processes that are attached, and dead ones that nobody has succeeded."""
        store = self._attached()
        return participants_of(store)

    def check(self) -> list[str]:
        """Every invariant of the store, the others stopped meanwhile: what is wrong, a text each; empty when sound."""
        store = self._attached()
        store.work_off()
        return load("dmemfs_shm.store.check").check(store, self._timeout)  # type: ignore[no-any-return]

    def recover(self) -> None:
        """Do for the dead now what is otherwise done when somebody needs it: free their locks, views, space and what they had
        half prepared, and undo or end what they died in. Each thing done is a record (INFO) of the logger "dmemfs_shm".

        MFSStoreBusyError if a process is stopped where that is to be done.
        """
        store = self._attached()
        store.relieve(self._timeout)
        store.work_off()

    def trim(self) -> int:
        """Give memory in which nothing is stored back to the system, by whole arenas; returns bytes."""
        store = self._attached()
        store.relieve(self._timeout)
        return store.arenas.trim(self._timeout)


# ---- helpers of the class


def _filler(source: Any, size: int) -> Fill:
    """What stores *source* into blocks of the store."""

    def fill(segment: Segment, offset: int) -> None:
        segment.put(offset, source)

    return fill


def _below(path: str, entry: Entry) -> str:
    return f"{path.rstrip('/')}/{decode(entry.name)}"


_NOTHING = 0
_reference = weakref.ref


def _read_unlocked(store: Attachment, found: Found) -> bytes | None:
    """A file's content without taking its lock; None if somebody may be changing it (then it must be taken).

    In this order: before, lock word, generation and sequence; the bytes; after, lock word, generation, namespace, and the
    sequence last. (The model shows that a reader that compares the sequence earlier can accept torn bytes.)
    """
    w = store.w
    at = store.names.nodes_at + found[0] * NODE_WORDS
    sequence = w[at + N_SEQ]
    if sequence & 1 or w[at] & (LOCK_WRITER | LOCK_ABANDONED) or w[at + N_GENERATION] != found[1] or w[at + N_RUNS]:
        return None
    size, run = w[at + N_SIZE], w[at + N_RUN]
    data = b""
    if size:
        if size > (run >> RUN_UNITS_SHIFT) * UNIT:
            return None
        try:
            segment, offset = store.arenas.locate(run)
        except MFSCorruptStoreError:
            return None
        # The mapping is of the arena's present life if the file still is: only then may its bytes be touched.
        if w[at + N_GENERATION] != found[1] or w[at + N_SEQ] != sequence:
            return None
        data = segment.mm[offset : offset + size]
    if (
        w[at] & (LOCK_WRITER | LOCK_ABANDONED)
        or w[at + N_GENERATION] != found[1]
        or w[NAMESPACE] != found[2]
        or w[at + N_SEQ] != sequence
        or w[W_STATE] != STATE_READY
    ):
        return None
    return data


def _expect_file(store: Attachment, found: Found, parsed: Path) -> None:
    if not found[0]:
        raise FileNotFoundError(f"No such file: '{parsed.text}'")
    if store.names.kind_of(found) == KIND_DIR:
        raise IsADirectoryError(f"Is a directory: '{parsed.text}'")


def locks_of(store: Attachment) -> list[LockInfo]:
    """The lock records of a store, with the paths that they are about."""
    found = []
    for hold in store.rw.holds():
        at = store.layout.slot_at(hold.slot)
        found.append(
            LockInfo(
                path=store.path_of(hold.node),
                mode="exclusive" if hold.writer else "shared",
                state=_STATES[hold.state],
                pid=store.participants.pid(at),
                pid_namespace=store.participants.pid_namespace_of(at),
                thread=hold.thread & 0xFFFFFFFF,
                command=store.participants.command(hold.slot),
                since=hold.since_ns / 1e9,
            )
        )
    return found


def participants_of(store: Attachment) -> list[ParticipantInfo]:
    """The slots that have, or had, a tenant that did not leave in order."""
    found, some = [], store.participants
    for slot in range(store.layout.slots):
        if not some.has_memory(slot):
            break
        at = store.layout.slot_at(slot)
        if some.pid(at):
            found.append(
                ParticipantInfo(
                    slot=slot,
                    pid=some.pid(at),
                    pid_namespace=some.pid_namespace_of(at),
                    command=some.command(slot),
                    alive=not some.is_dead(slot, some.epoch(slot)),
                    since=some.since_ns(at) / 1e9,
                )
            )
    return found


def _count(what: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be int, not {type(value).__name__}")
    if not least <= value <= most:
        raise MFSParameterError(f"{what} must be from {least} to {most}, not {value}")
    return value


def _backend(backend: str) -> int:
    if backend not in BACKENDS:
        raise MFSParameterError(f"Invalid backend {backend!r}. Expected one of {sorted(BACKENDS)}.")
    return BACKENDS[backend]


def _check_timeout(timeout: float | None) -> float | None:
    if timeout is None:
        return None
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"a lock timeout must be a number of seconds or None, not {type(timeout).__name__}")
    if math.isnan(timeout):
        raise MFSParameterError("a lock timeout must not be NaN")
    return timeout


def _parameters(
    max_quota: int,
    chunk_overhead: int | None,
    promotion_hard_limit: int | None,
    max_nodes: int | None,
    default_storage: str,
) -> Parameters:
    if default_storage not in ("auto", "sequential", "random_access"):
        raise ValueError(
            f"Invalid default_storage value: {default_storage!r}. Expected 'auto', 'sequential', or 'random_access'."
        )
    if isinstance(max_nodes, int) and max_nodes < 1:
        raise MFSNodeLimitExceededError(0, max_nodes)  # the root is a directory, too
    if promotion_hard_limit is not None:
        _count("promotion_hard_limit", promotion_hard_limit, 0, 1 << 62)
    return Parameters(
        _count("max_quota", max_quota, 0, 1 << 46),
        nodes_max=0 if max_nodes is None else _count("max_nodes", max_nodes, 1, 1 << 30),
        file_charge=128 if chunk_overhead is None else _count("chunk_overhead_override", chunk_overhead, 0, 1 << 32),
        options={"default_storage": default_storage},
    )


def _compare(store: Attachment, parameters: Parameters) -> None:
    """MFSParameterError if a store that stands was made with other parameters; it is left then."""
    wanted = parameters.as_map()
    different = [key for key, value in wanted.items() if store.options.get(key) != value]
    if different:
        found = ", ".join(f"{key}={store.options.get(key)!r} (asked for {wanted[key]!r})" for key in different)
        attachment.release(store)
        raise MFSParameterError(f"The store {store.name!r} stands with other parameters: {found}.")


def _warn_if_too_large(quota: int) -> None:
    for message in shortages(quota):
        warnings.warn(message, ResourceWarning, stacklevel=3)


def shortages(quota: int) -> list[str]:
    """Why the machine can't keep the promise of a quota now; empty if it can."""
    found = []
    shm = os.statvfs(names.SHM_DIR)
    for what, available in (
        ("/dev/shm has", shm.f_bavail * shm.f_frsize),
        ("RAM and cgroup have", available_bytes()),
    ):
        if available is not None and quota > available:
            found.append(f"The quota is {quota} bytes and {what} {available} left: writes may end in MFSNoSpaceError earlier.")
    return found


# ---- the end of objects and processes

_filesystems: weakref.WeakSet[MemoryFileSystem] = weakref.WeakSet()
_exit_hooked_for = 0


def _let_go(store: Attachment) -> None:
    """A filesystem object was collected. One that was pickled keeps its store until the process ends."""
    if not store.forked:
        attachment.release(store, leave=not store.kept)


def _unpickle(
    cls: type[MemoryFileSystem],
    name: str,
    uuid: uuids.UUID,
    timeout: float | None,
    guard: tuple[str, str, float],
) -> MemoryFileSystem:
    fs = cls.__new__(cls)
    fs._bind(attachment.attach(name, uuid), timeout, MemoryGuard(*guard))
    return fs


def _close_at_exit() -> None:
    """See that this process closes what it has open when it ends in order; multiprocessing's children end their own way."""
    global _exit_hooked_for
    if _exit_hooked_for == os.getpid():
        return
    _exit_hooked_for = os.getpid()
    atexit.register(close_all)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # A child of multiprocessing ends with os._exit after these, and forgets those made before its own start, which
        # may be later than now: a forkserver's child unpickles its arguments first.
        util.Finalize(None, close_all, exitpriority=-100)
        util.register_after_fork(_exit_marker, lambda _: util.Finalize(None, close_all, exitpriority=-100))


def close_all() -> None:
    """The process ends: close every handle and leave every store, in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fs in list(_filesystems):
            for handle in fs._open_handles():
                handle.abandon_lent()
            with contextlib.suppress(Exception):
                fs.close()
    attachment.leave_all()


def _after_fork_in_child() -> None:
    global _exit_hooked_for
    for fs in list(_filesystems):
        store, fs._store = fs._store, None
        fs._lock = threading.Lock()
        fs._finalizer.detach()
        fs._handles = {}
        fs._claims = {}
        if store is not None and store.private and not (fs._heritage and fs._heritage.alive):
            fs._inherit(store)
    atexit.unregister(close_all)
    _exit_hooked_for = 0
    _close_at_exit()


class _Marker:
    """Something that multiprocessing can keep a weak reference to."""


_exit_marker = _Marker()
os.register_at_fork(after_in_child=_after_fork_in_child)
