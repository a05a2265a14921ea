"""A store as one process has it open: its segments, slot, mutexes and locks; creating, attaching, leaving, destroying.

Guarantees.
  * A creator that dies leaves a store that is not READY; the next `create` under that name starts it anew. Its index
    carries the lock byte of creation, which the kernel frees with the creator.
  * A process attaches a store once, however many filesystem objects use it (`Attachment.of` counts them).
  * Attaching starts no thread. A new tenant of a slot first takes back what a dead predecessor held.
  * A forked child inherits nothing but readable mappings: its parent's slot, locks and handles are not its own
    (`after_fork_in_child`); it attaches anew on first use.
  * After `destroy` every call of those who are still attached is MFSStoreGoneError; mappings live on.

Attaching trusts nothing it reads before it has checked: magic, byte order, version, fingerprint, sizes against the
segment, parameters against their checksum.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid as uuids
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ..errors import (
    MFSCorruptStoreError,
    MFSLayoutError,
    MFSNoSpaceError,
    MFSNotOwnerError,
    MFSQuotaExceededError,
    MFSStoreBusyError,
    MFSStoreGoneError,
    MFSTooManyParticipantsError,
    MFSUnfinishedStoreError,
    MFSVersionError,
    raise_if_damage,
)
from . import names, segment
from .arenas import Arenas
from .blocks import Blocks, NeedMemory
from .content import Content
from .fastpath import FastPath
from .graft import Grafts
from .identity import ByteLocks, Participants, keep_locked
from .journal import Words
from .layout import (
    BACKEND_OFD,
    BUCKETS,
    BUCKETS_BACKED,
    BYTE_ORDER,
    DIRS,
    FILES,
    FINGERPRINT,
    KIND_DIR,
    KIND_SHIFT,
    LB_ATTACH,
    LB_INIT,
    LB_LIFE,
    LB_SLOT,
    MAGIC,
    MUTEXES,
    N_CREATED,
    N_GENERATION,
    N_MODIFIED,
    N_NAME,
    N_PARENT,
    NO_CLAIM,
    NODE_BACKED,
    NODE_BREAK,
    NODE_STEP,
    NODE_WORDS,
    PAGE,
    PAGE_WORDS,
    PARAMS_BYTES_MAX,
    PARAMS_OFFSET,
    REC_STATE,
    RECORD_WORDS,
    ROOT,
    ROOT_PARENT,
    S_CLAIM,
    S_INTENT,
    S_PID,
    S_RECORDS,
    S_WATCHES,
    SLOT_HEAD_WORDS,
    SLOTS_AT,
    SLOTS_BACKED,
    SLOTS_MAX,
    STATE_DESTROYED,
    STATE_INIT,
    STATE_READY,
    TRASH,
    USED,
    VERSION,
    W_BACKEND,
    W_BYTE_ORDER,
    W_CREATED,
    W_FILE_CHARGE,
    W_FINGERPRINT,
    W_IDENTITY_END,
    W_INDEX_BYTES,
    W_MAGIC,
    W_NODES_CAP,
    W_NODES_MAX,
    W_OWNER,
    W_PAGES_CAP,
    W_PARAMS_BYTES,
    W_PARAMS_CRC,
    W_QUOTA,
    W_SLOTS,
    W_STATE,
    W_UUID_HIGH,
    W_UUID_LOW,
    W_VERSION,
    WATCHED,
    WORD,
    Layout,
    nodes_cap_for,
    pages_cap_for,
)
from .lazy import load
from .listing import Listing
from .mutex import Fence, Mutex, OfdMutex, Threads
from .namespace import Namespace
from .placement import Placement
from .publications import Publications
from .recovery import Recovery, missing_spares, provide_spares, require_membarrier
from .rwlock import FileLocks
from .section import Section, Sections
from .semaphores import create_semaphore, post_semaphore, unlink_semaphore
from .space import Space
from .sweep import Sweep
from .tree import NeedNodes, Tree

T = TypeVar("T")


WAIT_FOR_CREATOR_S = 5.0
_FIXED_BYTES = SLOTS_AT * WORD  # identity, mutexes, journals, arena table: backed at creation
_FIRST_RECORDS = PAGE_WORDS // RECORD_WORDS

_attached: dict[tuple[int, int], Attachment] = {}
_attaching = threading.RLock()
_inherited: dict[str, list[segment.Anchor]] = {}  # the lives of private stores that our parents had when they forked
_heirs: Counter[str] = Counter()  # how many of our filesystem objects keep them


def unpack(packed: bytes) -> Any:
    """A msgpack value. The package is imported with the first store: it is a fifth of the time that importing us takes."""
    return load("msgpack").unpackb(packed)


class Parameters:
    """What belongs to the store and never changes. Sizes in bytes; nodes_max 0 is unlimited."""

    __slots__ = ("backend", "file_charge", "nodes_max", "options", "quota_bytes", "slots")

    def __init__(
        self,
        quota_bytes: int,
        *,
        nodes_max: int = 0,
        file_charge: int = 128,
        backend: int = 0,
        slots: int = SLOTS_MAX,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.quota_bytes = quota_bytes
        self.nodes_max = nodes_max
        self.file_charge = file_charge
        self.backend = backend
        self.slots = slots
        self.options = options or {}

    def as_map(self) -> dict[str, Any]:
        """What the header's msgpack map holds: a new option is a new key, not a new layout."""
        return {
            "max_quota": self.quota_bytes,
            "max_nodes": self.nodes_max or None,
            "file_charge": self.file_charge,
            "backend": "ofd" if self.backend == BACKEND_OFD else "generation",
            "max_participants": self.slots,
            **self.options,
        }

    def layout(self) -> Layout:
        return Layout(self.slots, nodes_cap_for(self.nodes_max), pages_cap_for(self.quota_bytes))


class Attachment:
    """This process's part in one store. Made by `create` and `attach` of this module only."""

    def __init__(self, name: str, index: segment.Segment, *, observer: bool = False) -> None:
        self.name = name
        self.index = index
        stat = os.fstat(index.fd)
        self._key = stat.st_dev, stat.st_ino
        self.words = memoryview(index.mm).cast("Q")
        self.w: Words = self.words
        w = self.w
        self.layout = Layout(w[W_SLOTS], w[W_NODES_CAP], w[W_PAGES_CAP])
        self.uuid = uuids.UUID(int=w[W_UUID_HIGH] << 64 | w[W_UUID_LOW])
        self.pid = os.getpid()
        self.users = 0
        self.forked = False
        self.is_left = False
        self.kept = False  # pickled: not to be left when its objects are collected
        packed = index.mm[PARAMS_OFFSET : PARAMS_OFFSET + min(w[W_PARAMS_BYTES], PARAMS_BYTES_MAX)]
        self.options: dict[str, Any] = unpack(packed)
        self.observer = observer
        self.patience: float | None = 30.0  # seconds that a release waits for a mutex whose holder is stopped
        # Orders this process's growth of its own tables; nothing shared. A signal handler may come in again.
        self.growing = threading.RLock()
        self.slot = -1
        self.locks = ByteLocks(names.index_name(name, w[W_OWNER]), anchored=True)
        self._presence: segment.Anchor | None = None  # keeps the byte of our slot locked
        self.participants = Participants(w, self.layout, self.locks)
        self.recovery = Recovery(w, self.uuid, self.participants)
        kind = OfdMutex if w[W_BACKEND] == BACKEND_OFD else Mutex
        self.mutexes: list[Mutex] = [kind(k, w, self.uuid, self.participants, self.recovery) for k in range(MUTEXES)]
        for mutex in self.mutexes:
            if isinstance(mutex, OfdMutex):
                mutex.outer = self.mutexes[0] if mutex.number else None
        self.threads = Threads()
        self.rw = FileLocks(self)
        self.dropped = self.rw.leases.lost  # whatever is in it is left to the next operation
        self.sections = Sections(self)
        self.blocks = Blocks(w, self.layout)
        self.arenas = Arenas(self, self.blocks)
        self.tree = Tree(self)
        self.content = Content(self, self.tree, self.blocks)
        self.unpinned = self.content.leases.lost  # views that are gone, as `dropped`
        self.names = Namespace(self)
        self.placement = Placement(self)
        self.sweep = Sweep(self)
        self.listing = Listing(self)
        self.grafts = Grafts(self)
        self.publications = Publications(self)
        self.space = Space(self)
        self.fast = FastPath(self)
        self.wants_buckets = False
        self._life: segment.Anchor | None = None  # counts us among the users of a private store

    # ---- identity

    @property
    def state(self) -> int:
        return self.w[W_STATE]

    def check_state(self) -> None:
        if self.w[W_STATE] != STATE_READY:
            raise MFSStoreGoneError(f"The store {self.name!r} was destroyed.")

    @property
    def private(self) -> bool:
        return self.name.startswith("@")

    @property
    def quota_bytes(self) -> int:
        return self.w[W_QUOTA]

    def path_of(self, node: int) -> str:
        return self.tree.path(node)

    def holders(self, node: int) -> tuple[str, ...]:
        """Who holds or waits for a node, a text each, for errors."""
        words = {1: "waits", 2: "is next", 3: "holds it"}
        return tuple(
            f"{self.participants.describe(hold.slot)}, thread {hold.thread & 0xFFFFFFFF}, "
            f"{words[hold.state]} {'exclusively' if hold.writer else 'shared'}"
            for hold in self.rw.holds(node)[:16]
        )

    # ---- doing things in m[0]

    def transact(self, step: Callable[[Section], T], timeout: float | None) -> T:
        """Do a step of the engine (see `section`), with more memory and with what the dead held if it needs that."""
        if self.dropped or self.unpinned or self.recovery.events:
            self.work_off()
        relieved = False
        while True:
            try:
                result = self.sections.run(step, timeout)
                break
            except NeedMemory as need:
                try:
                    self.arenas.grow(need.pages, timeout)
                except MFSNoSpaceError:
                    if relieved or not self.relieve(timeout):
                        raise
                    relieved = True
            except NeedNodes:
                self.tree.grow()
            except MFSQuotaExceededError:
                if relieved or not self.relieve(timeout):
                    raise
                relieved = True
        if self.wants_buckets:
            self.grow_buckets()
        return result

    def grow_buckets(self) -> None:
        """What a full hash table asked for. Outside any section."""
        self.wants_buckets = False
        with contextlib.suppress(MFSNoSpaceError):
            self.tree.grow_buckets()

    def relieve_locks(self) -> None:
        """Before a lock is refused, and at each slice of a wait: our own finalisers' notes, then the dead.

        MFSStoreBusyError if a process is stopped where the dead are to be reaped.
        """
        self.work_off()
        self.reap_dead(0.0)

    def relieve(self, timeout: float | None) -> bool:
        """Before a shortage is reported: give back what is only waiting for that. Whether anything was."""
        before = self.w[USED], self.w[FILES], self.w[DIRS]
        self.work_off()
        self.reap_dead(timeout)
        self.sweep.drain()
        return (self.w[USED], self.w[FILES], self.w[DIRS]) != before

    def back(self, offset: int, size: int) -> None:
        """See that these bytes of the index have memory. MFSNoSpaceError."""
        self.provide_spares()
        self.index.back(offset, size)

    def provide_spares(self) -> None:
        """Before memory is taken for anything else. MFSNoSpaceError, MFSStoreGoneError."""
        if self.w[W_BACKEND] != BACKEND_OFD and missing_spares(self.uuid):
            self.check_state()
            provide_spares(self.uuid)
            if self.state != STATE_READY:
                _unlink_belongings(self.uuid)  # it was destroyed, perhaps before these could be seen
                self.check_state()

    # ---- joining and leaving

    def join(self) -> None:
        """Become a participant: a slot, a locked byte, a new epoch, and nothing left of the dead predecessor.

        From the new epoch on others may reap the predecessor, too. One that came upon the slot while it was not clean may
        still be in a mutex when it is; he has left it when we have passed once more.
        """
        deadline = time.monotonic() + WAIT_FOR_CREATOR_S
        try:
            if not self.locks.lock(LB_ATTACH, deadline):
                raise MFSStoreBusyError("Another process is attaching the store and does not go on.")
            self.check_state()
            slot = self._choose_slot()
            if self.w[W_BACKEND] != BACKEND_OFD:
                self.recovery.retire_claims(slot, deadline)
            else:
                self._void_claims(slot)
            self.participants.retire(slot)
            self._presence = keep_locked(self.locks.name, LB_SLOT + slot)
            if self._presence is None:
                raise MFSStoreBusyError("A participant slot was taken while it was being cleaned.")
            self.participants.introduce(slot)
            self.slot = slot
            fence = Fence.of(names.fence(self.uuid, slot))
            for mutex in self.mutexes:
                mutex.settle(slot, fence)
            self.rw.settle_in(slot, fence)
            self.publications.settle(slot)
        finally:
            self.locks.unlock(LB_ATTACH)
        epoch = self.participants.epoch(slot)
        was_clean = False
        while not was_clean:
            was_clean = self.participants.is_clean(slot, epoch)
            self._reap(slot, epoch, WAIT_FOR_CREATOR_S)
        if self.w[TRASH]:
            self.sweep.drain_trash()

    def _choose_slot(self) -> int:
        """A slot without a living tenant: one that its tenant left in order, else a dead one's, else a fresh one."""
        dead = -1
        for slot in range(self.layout.slots):
            if not self.participants.has_memory(slot):
                if dead >= 0:
                    return dead
                self._back_slot(slot)
                return slot
            if self.locks.is_free(LB_SLOT + slot):
                if not self.w[self.layout.slot_at(slot) + S_PID]:
                    return slot
                if dead < 0:
                    dead = slot
        if dead < 0:
            raise MFSTooManyParticipantsError(
                f"The store {self.name!r} has {self.layout.slots} living participants, all that it was made for."
            )
        return dead

    def _back_slot(self, slot: int) -> None:
        at = self.layout.slot_at(slot)
        self.back(at * WORD, (SLOT_HEAD_WORDS + PAGE_WORDS) * WORD)
        self._void_claims(slot)
        self.participants.prepare(slot)
        self.w[at + S_RECORDS] = _FIRST_RECORDS
        self.w[SLOTS_BACKED] = slot + 1

    def _void_claims(self, slot: int) -> None:
        at = self.layout.slot_at(slot) + S_CLAIM
        for k in range(MUTEXES):
            self.w[at + k] = NO_CLAIM

    def leave(self) -> None:
        """Give the slot back and close everything. Takes no mutex: a finaliser may call it.

        What we still hold (views that live on, notes of finalisers, half a copy, what was forgotten when memory had
        ended) is given back by the slot's next tenant or by whoever reaps it, so the slot then stays marked as ours.
        """
        _attached.pop(self._key, None)
        self.is_left = True
        if self.slot >= 0 and not self.forked and self.state == STATE_READY and not self._holds_anything():
            self.participants.depart()
        self._close()

    def _holds_anything(self) -> bool:
        """Whether anything in the store is still ours: a lock, a pin, a half copy, a wish to know, a place in a queue."""
        w, at = self.w, self.layout.slot_at(self.slot)
        if (
            w[at + S_INTENT]
            or w[at + S_WATCHES]
            or self.space.queued(self.slot)
            or any(w[pin] for pin in self.content.leases.words())
        ):
            return True
        return any(w[record] & REC_STATE for record in self.rw.leases.words())

    def _close(self) -> None:
        life, self._life = self._life, None
        try:
            if life is not None:
                life.release()
                if not self.forked:
                    self.destroy_if_alone()
        finally:
            self.locks.close()
            if self._presence is not None:
                self._presence.release()
            for mutex in self.mutexes:
                mutex.close()
            self.arenas.close()
            with contextlib.suppress(BufferError):
                self.words.release()
            self.index.close()

    # ---- what the living do for the dead, and for their own finalisers

    def reap_dead(self, timeout: float | None) -> int:
        """Give back what dead participants hold. Returns how many there were that nobody had reaped before.

        MFSStoreBusyError if a mutex was not to be had in *timeout* seconds; MFSStoreGoneError if somebody closed our lock
        descriptor and it can't be replaced.
        """
        self.recovery.mend()
        count = 0
        for slot, below in self.participants.unreaped():
            count += self._reap(slot, below, timeout)
        return count

    def _reap(self, slot: int, below: int, timeout: float | None) -> bool:
        """Give back what dead tenants of a slot held, those of epochs below this one. Whether nobody else had, before."""
        self.placement.fit_for_dead(slot, below, timeout)
        if not self.rw.reap(slot, below, timeout) or not self.sweep.reap(slot, below, timeout):
            return False
        who = self.participants.describe(slot)
        if self.participants.epoch(slot) >= below:
            who = f"the predecessor of {who}"
        self.recovery.events.append(f"store {self.uuid.hex}: reaped {who}")
        return True

    def mend(self) -> None:
        """Roll back what a section left that could not even be abandoned: memory had ended, and is there again.

        Comes before the words of our own records are believed outside a section. MFSStoreBusyError.
        """
        for mutex in self.mutexes:
            if mutex.is_entered:
                mutex.mend(self.threads.thread)

    def work_off(self) -> None:
        """Do what finalisers and failed closes left behind, and log what recovery did.

        None in ``dropped`` says that an exception ended something that gives back in steps: see that all of it is given back.
        """
        interrupted = None in self.dropped
        try:
            if self.dropped or self.unpinned:
                self.mend()
            if self.dropped:
                self.rw.work_off()
            if self.unpinned:
                self.content.leases.work_off(self.placement.give_back_pin)
            if self.grafts.has_left:
                self.grafts.drain_left()
            if interrupted:
                self.sweep.drain()
                if self.w[WATCHED]:  # what the exception ended may have published something
                    self.publications.announce_all()
        except BaseException as error:
            if interrupted and None not in self.dropped:
                self.dropped.append(None)
            if not isinstance(error, MFSStoreBusyError):
                raise
        if self.recovery.events:
            with contextlib.suppress(ImportError):  # no descriptor to load it with: it is said another time
                logger = load("logging").getLogger("dmemfs_shm")
                while self.recovery.events:
                    logger.info("%s", self.recovery.events.popleft())
            with contextlib.suppress(OSError):  # which makes an event for the next time
                self.recovery.let_go()

    # ---- the life of a private store

    def destroy_if_alone(self) -> bool:
        """Destroy the private store, whose life lock we have given up, unless somebody else has one.

        A pruner that came in between has the byte for himself and destroys it; then it is gone when we return, too.
        """
        deadline = time.monotonic() + WAIT_FOR_CREATOR_S
        try:
            locks = ByteLocks(self.locks.name)
        except FileNotFoundError:
            return True
        try:
            while not locks.try_lock(LB_LIFE):
                if not locks.is_locked_exclusively(LB_LIFE) or time.monotonic() >= deadline:
                    return False
                time.sleep(0.0005)
            destroy_segments(self.name, self.uuid, self.w)
            return True
        finally:
            locks.close()

    def hold_life(self) -> None:
        """Count ourselves among those who use a private store: a shared lock that forked children inherit."""
        self._life = keep_locked(self.locks.name, LB_LIFE, shared=True, inherited=True)
        if self._life is None:
            raise MFSStoreGoneError(f"The store {self.name!r} is being destroyed.")


# ---- creating


def create(name: str, parameters: Parameters) -> Attachment:
    """Create a store and attach it. FileExistsError if it stands, MFSNoSpaceError if there is no room for its index."""
    if parameters.backend != BACKEND_OFD:
        require_membarrier()
    full = names.index_name(name)
    deadline = time.monotonic() + WAIT_FOR_CREATOR_S
    while True:
        fd = segment.open_fd(full, create=True)
        try:
            with _creating(full, deadline) as ours:
                if not ours or not _same_file(fd, full):
                    continue
                state = _state(fd)
                if state == STATE_READY:
                    raise FileExistsError(f"Store exists: {name!r}")
                if state == STATE_DESTROYED:  # somebody may still look at it: the new store gets an index of its own
                    _finish_destroying(full, fd)
                    continue
                _initialise(full, fd, parameters)
                store = _open_new(name, full, fd)
                if store is None:
                    continue
                return store
        except BaseException:
            _clear_unfinished(full)
            raise
        finally:
            segment.close_fd(fd)


def _open_new(name: str, full: str, fd: int) -> Attachment | None:
    """Attach the store that we have just made; if that fails it goes again, unless somebody else has attached it since.

    None if we were stopped for so long that a destroyer did not wait for us.
    """
    try:
        if _same_file(fd, full):
            return _open(name, os.dup(fd))
    except BaseException:
        with _nobody_attaching(full) as has_participants:
            if not has_participants:
                _unmake(fd)
                if _same_file(fd, full):
                    segment.unlink(full)
        raise
    _unmake(fd)
    return None


@contextlib.contextmanager
def _nobody_attaching(full: str) -> Iterator[bool]:
    """Whether a store has participants; nobody becomes one in this block. No, if the kernel does not even say that."""
    locks = None
    try:
        with contextlib.suppress(OSError):
            locks = ByteLocks(full)
            locks.lock(LB_ATTACH, time.monotonic() + WAIT_FOR_CREATOR_S)
        yield locks is not None and any(locks.is_locked_exclusively(LB_SLOT + slot) for slot in range(SLOTS_MAX))
    finally:
        if locks is not None:
            locks.close()


def _clear_unfinished(full: str) -> None:
    """Creating failed: take an index away that never became a store, unless another process is at work on it."""
    with contextlib.suppress(OSError):
        locks = ByteLocks(full)
        try:
            if locks.try_lock(LB_INIT) and _same_file(locks.fd, full) and _state(locks.fd) == STATE_INIT:
                _finish_destroying(full, locks.fd)
        finally:
            locks.close()


@contextlib.contextmanager
def _creating(full: str, deadline: float) -> Iterator[bool]:
    """Hold the lock of creating and destroying a store; False if its index went meanwhile."""
    try:
        locks = ByteLocks(full)
    except FileNotFoundError:  # a pruner took the empty segment for an abandoned one
        yield False
        return
    try:
        if not locks.lock(LB_INIT, deadline):
            raise MFSUnfinishedStoreError(f"Another process is creating or destroying {full} and does not go on.")
        yield True
    finally:
        locks.close()


def _same_file(fd: int, full: str) -> bool:
    try:
        other = segment.open_fd(full)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(fd).st_ino == os.fstat(other).st_ino
    finally:
        segment.close_fd(other)


def _state(fd: int) -> int:
    """State of the store in a segment, of whatever version; what is not ours counts as a store that stands."""
    head = segment.read(fd, W_IDENTITY_END * WORD, 0)
    if len(head) < W_IDENTITY_END * WORD:
        return STATE_INIT
    words = memoryview(head).cast("Q")
    if words[W_MAGIC] == 0:
        return STATE_INIT
    return STATE_READY if words[W_MAGIC] != MAGIC else words[W_STATE]


def _initialise(full: str, fd: int, parameters: Parameters) -> None:
    """Write a new store into the segment, READY last. Whatever an unfinished creator left is cleared away first."""
    _wipe(fd)
    uuid = uuids.uuid4()
    layout = parameters.layout()
    try:
        os.ftruncate(fd, 0)
        segment.set_size(fd, layout.index_bytes)
        segment.back(fd, full, 0, _FIXED_BYTES)
        segment.back(fd, full, layout.buckets_at * WORD, PAGE)
        segment.back(fd, full, layout.nodes_at * WORD, NODE_STEP * NODE_WORDS * WORD)
        index = segment.Segment(full, os.dup(fd), layout.index_bytes)
        w = memoryview(index.mm).cast("Q")
        try:
            _write_identity(w, uuid, layout, parameters)
            _write_params(index, w, parameters)
            _write_root(w, layout)
            if parameters.backend != BACKEND_OFD:
                for k in range(MUTEXES):
                    create_semaphore(names.mutex(uuid, k, 0), 1)
                provide_spares(uuid)
            w[W_STATE] = STATE_READY
        finally:
            w.release()
            index.close()
    except BaseException:
        _unlink_belongings(uuid)
        segment.unlink(full)
        raise


def _wipe(fd: int) -> None:
    """Unlink what a store consists of but its index; the uuid is in the head if its creator came that far."""
    head = segment.read(fd, W_IDENTITY_END * WORD, 0)
    if len(head) == W_IDENTITY_END * WORD:
        words = memoryview(head).cast("Q")
        if words[W_MAGIC] in (MAGIC, 0) and words[W_UUID_HIGH]:
            _unlink_belongings(uuids.UUID(int=words[W_UUID_HIGH] << 64 | words[W_UUID_LOW]))


def _write_identity(w: Words, uuid: uuids.UUID, layout: Layout, parameters: Parameters) -> None:
    w[W_UUID_HIGH] = uuid.int >> 64
    w[W_UUID_LOW] = uuid.int & (1 << 64) - 1
    w[W_MAGIC] = MAGIC
    w[W_VERSION] = VERSION
    w[W_FINGERPRINT] = FINGERPRINT
    w[W_BYTE_ORDER] = BYTE_ORDER
    w[W_OWNER] = os.geteuid()
    w[W_CREATED] = time.time_ns()
    w[W_INDEX_BYTES] = layout.index_bytes
    w[W_QUOTA] = parameters.quota_bytes
    w[W_NODES_MAX] = parameters.nodes_max
    w[W_NODES_CAP] = layout.nodes_cap
    w[W_PAGES_CAP] = layout.pages_cap
    w[W_SLOTS] = layout.slots
    w[W_FILE_CHARGE] = parameters.file_charge
    w[W_BACKEND] = parameters.backend


def _write_params(index: segment.Segment, w: Words, parameters: Parameters) -> None:
    packed = load("msgpack").packb(parameters.as_map())
    assert len(packed) <= PARAMS_BYTES_MAX
    index.mm[PARAMS_OFFSET : PARAMS_OFFSET + len(packed)] = packed
    w[W_PARAMS_BYTES] = len(packed)
    w[W_PARAMS_CRC] = zlib.crc32(packed)


def _write_root(w: Words, layout: Layout) -> None:
    at, now = layout.node_at(ROOT), time.time_ns()
    w[at + N_GENERATION] = 1
    w[at + N_CREATED] = now
    w[at + N_MODIFIED] = now
    w[at + N_PARENT] = ROOT_PARENT
    w[at + N_NAME] = KIND_DIR << KIND_SHIFT
    w[NODE_BREAK] = ROOT + 1
    w[NODE_BACKED] = NODE_STEP
    w[BUCKETS] = 1
    w[BUCKETS_BACKED] = PAGE_WORDS
    w[DIRS] = 1


# ---- attaching


def attach(name: str, uuid: uuids.UUID | None = None) -> Attachment:
    """Attach a store; the same object for every call in a process. FileNotFoundError if there is none.

    *uuid*: it must be this very store: MFSStoreGoneError otherwise.
    """
    try:
        return _attach(name, uuid)
    except (FileNotFoundError, MFSUnfinishedStoreError):
        if uuid is None:
            raise
        # It was finished once: it is unlinked or about to be, or its successor is being made.
        raise MFSStoreGoneError(f"The store {name!r} was destroyed.") from None


def _attach(name: str, uuid: uuids.UUID | None) -> Attachment:
    full = names.index_name(name)
    deadline = time.monotonic() + WAIT_FOR_CREATOR_S
    seen_free = False
    while True:
        try:
            fd = segment.open_fd(full)
        except FileNotFoundError:
            raise FileNotFoundError(f"No such store: {name!r}") from None
        try:
            found = read_identity(fd, name)
        except MFSUnfinishedStoreError:
            segment.close_fd(fd)
            if time.monotonic() >= deadline or (seen_free and _byte_is_free(full, LB_INIT)):
                raise
            seen_free = _byte_is_free(full, LB_INIT)  # its creator may have finished since: look once more
            time.sleep(0.002)
            continue
        except BaseException:
            segment.close_fd(fd)
            raise
        if uuid is not None and found != uuid:
            segment.close_fd(fd)
            raise MFSStoreGoneError(f"The store {name!r} was destroyed; the one that has its name now is another one.")
        return _open(name, fd)


def _byte_is_free(full: str, byte: int) -> bool:
    try:
        locks = ByteLocks(full)
    except FileNotFoundError:
        return True
    try:
        return locks.is_free(byte)
    finally:
        locks.close()


def _open(name: str, fd: int) -> Attachment:
    """Attach the store in an open segment that was found in order; takes over the descriptor."""
    with segment.closed_on_failure(fd):
        stat = os.fstat(fd)
    key = (stat.st_dev, stat.st_ino)
    with _attaching:
        store = _attached.get(key)
        if store is not None and not store.forked and store.state == STATE_READY:
            segment.close_fd(fd)
            store.users += 1
            return store
        index = segment.Segment(names.index_name(name), fd, stat.st_size)
        try:
            store = Attachment(name, index)
        except BaseException:
            index.close()
            raise
        try:
            if store.w[W_BACKEND] != BACKEND_OFD:
                require_membarrier()
            store.join()
            if store.private:
                store.hold_life()
        except BaseException:
            store._close()
            raise_if_damage()
            raise
        store.users = 1
        _attached[key] = store
        return store


def release(store: Attachment, *, leave: bool = True) -> None:
    """One user less; the last one leaves the store (if *leave*).

    But while views of it live, it is left at the end of the process, for what they look at is pinned by our slot. A
    private store that nobody else has may go under its views.
    """
    with _attaching:
        store.users -= 1
        if store.users <= 0 and leave and not store.is_left:
            if store.state == STATE_READY and store.content.has_views() and not _is_ours_alone(store):
                return
            store.leave()


def _is_ours_alone(store: Attachment) -> bool:
    """Whether this is a private store that no other process has; it is not ours any more then."""
    if not store.private or store._life is None:
        return False
    store._life.release()
    store._life = None
    if store.destroy_if_alone():
        return True
    store.hold_life()
    return False


def leave_all() -> None:
    """The process ends: leave what it still has, and private stores that it only inherited by fork."""
    with _attaching:
        for store in list(_attached.values()):
            with contextlib.suppress(Exception):
                store.leave()
        for name in list(_inherited):
            _give_up_inherited(name)


def inherit(name: str) -> None:
    """In a forked child: a filesystem object has its parent's part in the life of a private store, until `disown`."""
    _heirs[name] += 1


def disown(name: str) -> None:
    """The object does without it; the last one of the process gives it up, and the store if no process has it any more."""
    with _attaching:
        _heirs[name] -= 1
        if _heirs[name] <= 0:
            _give_up_inherited(name)


def _give_up_inherited(name: str) -> None:
    for life in _inherited.pop(name, ()):
        life.release()
    _destroy_if_unused(name)


def _destroy_if_unused(name: str) -> None:
    """Destroy a private store that no process has any more."""
    with contextlib.suppress(OSError, ValueError):
        full = names.index_name(name)
        locks = ByteLocks(full)
        try:
            if locks.try_lock(LB_INIT) and locks.try_lock(LB_LIFE) and _same_file(locks.fd, full):
                _mark_destroyed(locks.fd)
                _finish_destroying(full, locks.fd)
        finally:
            locks.close()


def read_identity(fd: int, name: str, *, any_owner: bool = False) -> uuids.UUID:
    """Check that a segment is a store of ours that can be attached, and return its uuid.

    MFSNotOwnerError, MFSLayoutError, MFSVersionError, MFSUnfinishedStoreError, MFSCorruptStoreError, MFSStoreGoneError.
    """
    owner = os.fstat(fd).st_uid
    if owner != os.geteuid() and not any_owner:
        raise MFSNotOwnerError(f"The store {name!r} belongs to uid {owner}; only that user may attach it.")
    head = segment.read(fd, W_IDENTITY_END * WORD, 0)
    words = memoryview(head.ljust(W_IDENTITY_END * WORD, b"\0")).cast("Q")
    if words[W_MAGIC] == 0:
        raise MFSUnfinishedStoreError(f"The store {name!r} is unfinished: its creator is still at work or died.")
    if words[W_MAGIC] != MAGIC:
        raise MFSLayoutError(f"The segment of store {name!r} is not a store of this package.")
    if words[W_BYTE_ORDER] != BYTE_ORDER and words[W_BYTE_ORDER]:
        raise MFSLayoutError(f"The store {name!r} was written with another byte order.")
    if words[W_VERSION] != VERSION and words[W_VERSION]:
        raise MFSVersionError(name, words[W_VERSION], VERSION)
    if words[W_STATE] == STATE_DESTROYED:
        raise FileNotFoundError(f"No such store: {name!r}")
    if words[W_STATE] == 0:
        raise MFSUnfinishedStoreError(f"The store {name!r} is unfinished: its creator is still at work or died.")
    if words[W_FINGERPRINT] != FINGERPRINT:
        raise MFSLayoutError(
            f"The store {name!r} has layout fingerprint {words[W_FINGERPRINT]:#x}, this build has {FINGERPRINT:#x}."
        )
    _check_sizes(fd, name, words, os.fstat(fd).st_size)  # which its creator had set before the head says it is ready
    return uuids.UUID(int=words[W_UUID_HIGH] << 64 | words[W_UUID_LOW])


def _check_sizes(fd: int, name: str, words: Words, size_bytes: int) -> None:
    """The sizes in the head agree with each other, with the segment, and with the parameters."""
    where = names.index_name(name).lstrip("/")

    def expect(word: int, what: str, good: bool) -> None:
        if not good:
            raise MFSCorruptStoreError(where, word * WORD, what, words[word])

    expect(W_STATE, "READY", words[W_STATE] == STATE_READY)
    expect(W_SLOTS, f"1 to {SLOTS_MAX} participants", 1 <= words[W_SLOTS] <= SLOTS_MAX)
    expect(W_NODES_CAP, "a plausible number of nodes", NODE_STEP <= words[W_NODES_CAP] < 1 << 32)
    expect(W_PAGES_CAP, "a plausible number of pages", 0 < words[W_PAGES_CAP] <= 1 << 30)
    expect(W_BACKEND, "a backend", words[W_BACKEND] in (0, 1))
    expect(W_PARAMS_BYTES, "the length of the parameters", words[W_PARAMS_BYTES] <= PARAMS_BYTES_MAX)
    layout = Layout(words[W_SLOTS], words[W_NODES_CAP], words[W_PAGES_CAP])
    expect(W_INDEX_BYTES, f"{layout.index_bytes} bytes of index", words[W_INDEX_BYTES] == layout.index_bytes)
    if size_bytes != layout.index_bytes:
        raise MFSCorruptStoreError(where, size_bytes, f"a segment of {layout.index_bytes} bytes", f"{size_bytes} bytes")
    packed = segment.read(fd, words[W_PARAMS_BYTES], PARAMS_OFFSET)
    expect(W_PARAMS_CRC, "the checksum of the parameters", zlib.crc32(packed) == words[W_PARAMS_CRC])
    try:
        parameters = unpack(packed)
        agreed = parameters["max_quota"] == words[W_QUOTA] and (parameters["max_nodes"] or 0) == words[W_NODES_MAX]
    except Exception:  # noqa: BLE001  (whatever damaged bytes make msgpack raise)
        agreed = False
    expect(W_QUOTA, "sizes that agree with the parameters", agreed)
    _check_memory(fd, where, layout)


def _check_memory(fd: int, where: str, layout: Layout) -> None:
    """What the words say has memory behind it really has, so that reading it can't end in SIGBUS."""

    def word(at: int) -> int:
        return int.from_bytes(segment.read(fd, WORD, at * WORD), "little")

    slots, nodes, buckets = word(SLOTS_BACKED), word(NODE_BACKED), word(BUCKETS_BACKED)
    for at, count, cap in (
        (SLOTS_BACKED, slots, layout.slots),
        (NODE_BACKED, nodes, layout.nodes_cap + NODE_STEP),
        (BUCKETS_BACKED, buckets, layout.nodes_cap + PAGE_WORDS),
    ):
        if count > cap:
            raise MFSCorruptStoreError(where, at * WORD, f"at most {cap}", count)
    least = _FIXED_BYTES + slots * 2 * PAGE + nodes * NODE_WORDS * WORD + buckets * WORD
    if segment.backed_bytes(fd) < least:
        raise MFSCorruptStoreError(where, 0, f"{least} bytes of memory", f"{segment.backed_bytes(fd)} bytes")


# ---- destroying


def destroy(name: str) -> None:
    """Unlink everything of a store, whatever its condition. FileNotFoundError if there is none."""
    full = names.index_name(name)
    try:
        fd = segment.open_fd(full)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such store: {name!r}") from None
    try:
        stat = os.fstat(fd)
        if stat.st_uid != os.geteuid():
            raise MFSNotOwnerError(f"The store {name!r} belongs to uid {stat.st_uid}; only that user may destroy it.")
        _mark_destroyed(fd)
        try:
            with _creating(full, time.monotonic() + WAIT_FOR_CREATOR_S) as ours:
                if ours and _same_file(fd, full):
                    _finish_destroying(full, fd)
        except MFSUnfinishedStoreError:  # its creator is stopped: it goes all the same
            _finish_destroying(full, fd)
            _unmake(fd)  # the creator may have gone on meanwhile; from here on it sees that its index has no name
    finally:
        segment.close_fd(fd)


def _mark_destroyed(fd: int) -> None:
    """From here on every call of those who are attached fails."""
    if segment.read(fd, WORD, W_MAGIC * WORD) == MAGIC.to_bytes(WORD, sys.byteorder):
        os.pwrite(fd, STATE_DESTROYED.to_bytes(WORD, sys.byteorder), W_STATE * WORD)


def _finish_destroying(full: str, fd: int) -> None:
    """Unlink all of a store, the index last: whoever dies on the way leaves something that says what is left."""
    _unmake(fd)
    segment.unlink(full)


def _unmake(fd: int) -> None:
    """Mark a store as destroyed, which it may have been before its creator made it READY, and unlink all but its index."""
    _mark_destroyed(fd)
    _wipe(fd)


def destroy_segments(name: str, uuid: uuids.UUID, w: Words) -> None:
    """Unlink all of a store that we have attached."""
    w[W_STATE] = STATE_DESTROYED
    _unlink_belongings(uuid)
    segment.unlink(names.index_name(name))


def _unlink_belongings(uuid: uuids.UUID) -> None:
    """Unlink all but the index, and wake who sleeps until something is published: the state says by now that it is over."""
    segments, semaphores = names.belongings(uuid)
    for name in segments:
        segment.unlink(name)
    for name in semaphores:
        if names.is_park(name):
            post_semaphore(name)
        unlink_semaphore(name)


def prune_private() -> None:
    """Destroy this user's private stores that no process uses any more."""
    ours = {store.name for store in _attached.values()}
    with contextlib.suppress(OSError):
        for _, name in names.stores(os.geteuid()):
            if name.startswith("@") and name not in ours:
                _destroy_if_unused(name)


def destroy_if_deserted(name: str) -> bool:
    """Destroy one of this user's stores, whatever its condition, unless a process has it, makes it or attaches it just now.

    Whether it is gone. Who attaches has the attach byte until it has locked its slot's; we have that one meanwhile, and whoever
    comes after us finds it destroyed. FileNotFoundError if there is none, MFSNotOwnerError if it is another user's.
    """
    full = names.index_name(name)
    locks = ByteLocks(full)
    try:
        if name.startswith("@"):
            _destroy_if_unused(name)
        elif (
            locks.try_lock(LB_INIT)
            and locks.try_lock(LB_ATTACH)
            and all(locks.is_free(LB_SLOT + slot) for slot in range(SLOTS_MAX))
            and _same_file(locks.fd, full)
        ):
            _finish_destroying(full, locks.fd)
        return not _same_file(locks.fd, full)
    finally:
        locks.close()


# ---- fork


def after_fork_in_child() -> None:
    """Nothing of the parent's part is the child's: not its slot, not its locks, not its open sections.

    The descriptors are closed here and not when the objects are collected: a daemoniser may close all of them next, and
    their numbers are somebody else's then.
    """
    global _attaching
    _attaching = threading.RLock()
    for store in list(_attached.values()):
        store.forked = True
        store.locks.close()
        if store._life is not None:  # the description is our parent's and ours: it counts us as users of the private store
            _inherited.setdefault(store.name, []).append(store._life)
        store.arenas.close()
        with contextlib.suppress(BufferError):
            store.words.release()
        store.index.close()
    _attached.clear()


os.register_at_fork(after_in_child=after_fork_in_child)
