"""What a store is like, seen from outside: `inspect` and `survey` read everything and take part in nothing.

`why_deserted` and `leftovers` say what nobody will ever use again.

Guarantees. Both end within seconds, whatever the other processes do: all dead, or stopped inside a critical section, or
storing at full speed. They work on stores that are damaged, unfinished, destroyed or of another version, and say so; for
root also on another user's. Each section is read by itself: what one of them meets in a damaged store costs the others
nothing. How nothing can be harmed by reading is said in `observer`.

What is read changes meanwhile, so a value that cannot be is looked at again, up to `_LOOKS` times with a pause. It is a
problem only if it stays. If a critical section stays open as well (its process is stopped in it, or died and nobody has
come by since), the words it was about to change may be changed in part: such a problem is marked `half_done`, and the
store is not called damaged for it.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import os
import re
import time
import uuid as uuids
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgpack

from ..errors import (
    MFSCorruptStoreError,
    MFSLayoutError,
    MFSNotOwnerError,
    MFSParameterError,
    MFSUnfinishedStoreError,
)
from . import identity, names, segment, snapshot
from .attachment import Parameters, read_identity
from .layout import (
    A_BACKED,
    A_BASE,
    A_BREAK,
    A_LIFE,
    A_PAGES,
    ARENA_TABLE,
    ARENA_WORDS,
    ARENAS,
    ARENAS_MAX,
    BACKEND_OFD,
    BACKENDS,
    BIN_HEADS,
    BIN_PAGES_MOST,
    BUCKETS,
    BUCKETS_BACKED,
    CHARGED,
    DESCRIPTOR_WORDS,
    DIRS,
    DRAFTED,
    FILES,
    FINGERPRINT,
    FREE,
    GENERATION,
    GENERATION_STRIDE,
    GRANTED,
    HELD_LIGHTLY,
    INODE_MUTEXES,
    INTENT,
    JOURNAL_ENTRIES_MAX,
    KIND_FILE,
    KIND_FREE,
    KIND_QUOTA,
    KIND_SHIFT,
    LB_ATTACH,
    LB_INIT,
    LB_LIFE,
    LB_MUTEX,
    LB_RECOVER,
    LB_SLOT,
    LOCK_ABANDONED,
    LOCK_LIGHT,
    LOCK_READERS,
    LOCK_WRITER,
    LOW32,
    MUTEXES,
    N_CAPACITY,
    N_GENERATION,
    N_LOCK,
    N_MODIFIED,
    N_NAME,
    N_RUN,
    N_RUNS,
    N_SIBLINGS,
    N_SIZE,
    NAMESPACE,
    NO_CLAIM,
    NODE_BACKED,
    NODE_BREAK,
    NODE_STEP,
    NODE_WORDS,
    ORPHANED,
    PAGE,
    PAGE_WORDS,
    PARAMS_BYTES_MAX,
    PARAMS_OFFSET,
    PARKS,
    PD_FREE,
    PD_SHIFT,
    PIN_WORDS,
    PINS,
    PINS_AT,
    Q_DIRECTORY,
    Q_LIMIT,
    Q_USED,
    QUEUED,
    QUOTAS,
    R_LOCK,
    R_SINCE,
    R_THREAD,
    REAPS,
    REC_IS_LIGHT,
    REC_NODE_SHIFT,
    REC_STATE,
    REC_WRITER,
    RECORD_WORDS,
    RECORDS,
    RECORDS_AT,
    RECORDS_RESERVED,
    RECOVERIES,
    RUN_CLASSES,
    RUN_HEADS,
    S_CLAIM,
    S_PINS,
    S_RECORDS,
    S_SLEEPERS,
    SLOT_WORDS,
    SLOTS_AT,
    SLOTS_BACKED,
    SPACE_FIRST,
    STATE_READY,
    STORE,
    SW_WORDS,
    TRASH,
    TREE_SEQ,
    USED,
    W_BACKEND,
    W_CREATED,
    W_FILE_CHARGE,
    W_FINGERPRINT,
    W_IDENTITY_END,
    W_NODES_MAX,
    W_OWNER,
    W_PARAMS_BYTES,
    W_PARAMS_CRC,
    W_QUOTA,
    W_STATE,
    W_UUID_HIGH,
    W_UUID_LOW,
    W_VERSION,
    WORD,
    arena_at,
    generation_at,
    journal_at,
)
from .observer import Observer
from .snapshot import Inspection, Problem, Summary
from .tree import REMOVED

T = TypeVar("T")

FILES_SHOWN = 10
_LOOKS = 3
_PAUSE_S = 0.01
_DOUBTS_MOST = 100  # a section
_RUNS_LOOKED_AT = 1 << 14
_PRIVATE = re.compile(r"@[0-9a-f]{32}\Z")
_BELONGING = re.compile(r"(?:sem\.)?dmemfs-([0-9a-f]{32})\.")
_MAPPED = re.compile(rb" /dev/shm/(\S+)")
_STATES = {QUEUED: "waiting", GRANTED: "granted"}


def inspect(name: str, uid: int | None = None) -> Inspection:
    """Look at a store: *name* is a named store's, or "@" and the uuid of a private one; *uid* its user, by default ours.

    FileNotFoundError if there is no such store, MFSNotOwnerError if it is another user's and we are not root,
    MFSParameterError if nothing can be called so. All else is said in the result.
    """
    observer = _observe(name, uid)
    try:
        return _Inspector(observer).inspect()
    finally:
        observer.close()


def survey(uid: int | None = None) -> list[Summary]:
    """A line about each store that stands, of all users or of one. What may not be read is listed all the same."""
    found = []
    for owner, name in names.stores(uid):
        try:
            observer = _observe(name, owner)
        except (FileNotFoundError, MFSParameterError):
            continue  # gone meanwhile, or a name that no store can have
        except PermissionError:
            found.append(Summary(name, owner, name.startswith("@"), snapshot.UNREADABLE))
            continue
        try:
            found.append(_Inspector(observer).summarise())
        finally:
            observer.close()
    return found


def why_deserted(name: str, *, even_if_left: bool = False) -> str | None:
    """Why no process has one of this user's stores and none will come back to it; None if one has it, or may.

    A named store that everybody left in order stands for the next one to come: it counts only if *even_if_left*.
    What cannot be told (another version's, a damaged one's participants) counts as no reason. FileNotFoundError.
    """
    observer = _observe(name, None)
    try:
        line = _Inspector(observer).summarise()
        if line.condition in (snapshot.UNFINISHED, snapshot.DESTROYED):
            what = "its creator died" if line.condition == snapshot.UNFINISHED else "it was destroyed, not all of it is gone"
            return None if observer.locked(LB_INIT) else what
        if line.private:
            return None if observer.locked(LB_LIFE) or line.alive is None else "private, and no process has it"
        if line.alive is None or line.alive or observer.locked(LB_ATTACH):
            return None
        if line.dead:
            return "its participant is dead" if line.dead == 1 else f"all its {line.dead} participants are dead"
        return "nobody is attached" if even_if_left else None
    finally:
        observer.close()


class Leftover(NamedTuple):
    """Segments and semaphores of a store whose index is gone, which nobody can attach or destroy any more."""

    uuid: str
    segments: tuple[str, ...]
    semaphores: tuple[str, ...]
    memory_bytes: int


def leftovers() -> list[Leftover]:
    """What this user's stores left in /dev/shm beside an index, by uuid, unless a process that we can see has it mapped.

    The entries are listed before the indexes are asked whose they are: a store's index comes before its other entries and
    goes after them, so what then belongs to none is nobody's.
    """
    found: dict[str, list[str]] = {}
    for entry in sorted(os.listdir(names.SHM_DIR)):
        match = _BELONGING.match(entry)
        if match:
            found.setdefault(match[1], []).append(entry)
    for uuid in map(_uuid_of, names.stores(os.geteuid())):
        found.pop(uuid, None)
    if not found:
        return []
    mapped = _mapped()
    gathered = (_leftover(uuid, entries) for uuid, entries in found.items() if not mapped & set(entries))
    return [leftover for leftover in gathered if leftover.segments or leftover.semaphores]


def _uuid_of(store: tuple[int, str]) -> str:
    """The uuid in the head of an index, as the names of its belongings have it; "" if there is none."""
    with contextlib.suppress(OSError):
        fd = segment.open_fd(names.index_name(store[1], store[0]), readonly=True)
        try:
            head = segment.read(fd, W_IDENTITY_END * WORD, 0).ljust(W_IDENTITY_END * WORD, b"\0")
        finally:
            segment.close_fd(fd)
        words = memoryview(head).cast("Q")
        return uuids.UUID(int=words[W_UUID_HIGH] << 64 | words[W_UUID_LOW]).hex
    return ""


def _leftover(uuid: str, entries: list[str]) -> Leftover:
    kept, memory = [], 0
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            stat = os.stat(f"{names.SHM_DIR}/{entry}")
            if stat.st_uid == os.geteuid():
                kept.append(entry)
                memory += stat.st_blocks * 512
    semaphores = tuple("/" + entry[4:] for entry in kept if entry.startswith("sem."))
    return Leftover(uuid, tuple("/" + entry for entry in kept if not entry.startswith("sem.")), semaphores, memory)


def _mapped() -> set[str]:
    """The entries of /dev/shm that processes have mapped, as far as /proc shows us."""
    found: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
            found.update(os.fsdecode(path) for path in _MAPPED.findall(maps.read()))
    return found


def _observe(name: str, uid: int | None) -> Observer:
    if not _PRIVATE.match(name):
        names.check_name(name)
    owner = os.geteuid() if uid is None else uid
    try:
        return Observer(name, owner)
    except FileNotFoundError:
        raise FileNotFoundError(f"No such store: {name!r}") from None
    except PermissionError:
        raise MFSNotOwnerError(f"The store {name!r} belongs to uid {owner}; only that user and root may look.") from None


class _Inspector:
    """One look at one store. A method a section; each adds to ``doubts`` what cannot be."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.w = observer.index
        self.doubts: list[str] = []
        self.problems: list[Problem] = []
        self.reason = ""
        self.taken_at = time.time()
        self.uuid = uuids.UUID(int=0)
        self._alive: dict[int, bool] = {}

    # ---- the frame

    def inspect(self) -> Inspection:
        condition = self._condition()
        head = functools.partial(
            Inspection,
            name=self.observer.name,
            uid=self.observer.uid,
            private=self.observer.name.startswith("@"),
            reason=self.reason,
            taken_at=self.taken_at,
        )
        if condition in (snapshot.FOREIGN, snapshot.UNFINISHED, snapshot.INCOMPATIBLE):
            known = self.look("identity", self.identity) if condition == snapshot.INCOMPATIBLE else None
            return head(condition=condition, problems=tuple(self.problems), identity=known)
        who = self.look("identity", self.identity)
        parameters = self.look("parameters", self.parameters)
        self._choose_layout(parameters)
        # Who holds what comes first: it is what changes fastest.
        mutexes = self.look("mutexes", self.mutexes)
        activity = self.look("activity", self.activity)
        participants = self.look("participants", self.participants)
        locks = self.look("locks", self.locks)
        space_waits = self.look("space waits", self.space_waits)
        quota = self.look("quota", self.quota)
        arenas = self.look("arenas", self.arenas)
        memory = self.look("memory", functools.partial(self.memory, arenas or ()))
        run = self.look("free runs", self.largest_free_run)
        scanned = self.look("nodes", self.nodes)
        damaged = any(not problem.half_done for problem in self.problems)
        return head(
            condition=snapshot.DAMAGED if damaged and condition == snapshot.READY else condition,
            problems=tuple(self.problems),
            identity=who,
            parameters=parameters,
            quota=quota,
            memory=memory,
            nodes=scanned[0] if scanned else None,
            arenas=arenas,
            largest_free_run_bytes=run,
            participants=participants,
            locks=locks,
            space_waits=space_waits,
            mutexes=mutexes,
            activity=activity,
            largest_files=scanned[1] if scanned else None,
            abandoned_files=scanned[2] if scanned else None,
        )

    def summarise(self) -> Summary:
        observer = self.observer
        condition = self._condition()
        line = functools.partial(Summary, observer.name, observer.uid, observer.name.startswith("@"))
        if condition not in (snapshot.READY, snapshot.DESTROYED):
            return line(condition)
        self._choose_layout(self.look("parameters", self.parameters))
        who = self.look("identity", self.identity)
        quota = self.look("quota", self.quota)
        memory = self.look("memory", lambda: os.fstat(self.w.fd).st_blocks * 512 + sum(self._arena_bytes()))
        living = self.look("participants", self._living)
        if condition == snapshot.READY and any(not problem.half_done for problem in self.problems):
            condition = snapshot.DAMAGED
        return line(
            condition,
            quota_bytes=quota.quota_bytes if quota else None,
            used_bytes=quota.used_bytes if quota else None,
            memory_bytes=memory,
            files=self.look("nodes", lambda: max(0, self.w[FILES] - (self.w[DRAFTED] >> 32))),
            alive=living[0] if living else None,
            dead=living[1] if living else None,
            created=who.created if who else None,
        )

    def look(self, section: str, read: Callable[[], T]) -> T | None:
        """Read a section; doubts that stay, and what keeps it from being read, become problems."""
        lasting: list[str] = []
        result: T | None = None
        half_done = True
        for attempt in range(_LOOKS):
            if attempt:
                time.sleep(_PAUSE_S)
            self.doubts = []
            before = self._open_journals(section)
            try:
                result = read()
            except MFSCorruptStoreError as error:
                result = None
                self._say(str(error))
            except (IndexError, ValueError, OverflowError, OSError) as error:
                result = None
                self._say(f"what stands there leads nowhere ({error})")
            lasting = [doubt for doubt in self.doubts if not attempt or doubt in lasting]
            half_done = half_done and bool(before & self._open_journals(section))
            if not lasting:
                break
        if result is None and not lasting:  # other each time: it changes faster than it is read
            self.problems.append(Problem(section, "it changes too fast to be read now", half_done=True))
        self.problems += [Problem(section, doubt, half_done) for doubt in lasting]
        return result

    def doubt(self, bad: bool, word: int, expected: str, found: int | str) -> None:
        if bad:
            self._say(str(self.w.damage(word, expected, found)))

    def _say(self, doubt: str) -> None:
        if len(self.doubts) < _DOUBTS_MOST and doubt not in self.doubts:
            self.doubts.append(doubt)

    def _open_journals(self, section: str) -> set[int]:
        """The mutexes that guard the section and in which a change is half done; a damaged journal excuses nothing."""
        found = set()
        for k in range(MUTEXES) if section in ("locks", "participants") else (0,):
            with contextlib.suppress(MFSCorruptStoreError):
                if self.w[journal_at(k)] and self._bad_entry(k) is None:
                    found.add(k)
        return found

    def _bad_entry(self, number: int) -> MFSCorruptStoreError | None:
        """What is wrong with a journal, as whoever rolls it back would find."""
        at = journal_at(number)
        count = self.w[at]
        if count > JOURNAL_ENTRIES_MAX:
            return self.w.damage(at, f"at most {JOURNAL_ENTRIES_MAX} journal entries", count)
        end = len(self.w)
        for entry, word in enumerate(self.w.read(at + 1, 2 * count)[::2].tolist()):
            if not STORE <= word < end:
                return self.w.damage(at + 1 + 2 * entry, "a word of the index", word)
        return None

    # ---- what it is

    def _condition(self) -> str:
        """What attaching would say; a store whose fingerprint is ours is read on, whatever else is wrong with its head."""
        name, fd = self.observer.name, self.w.fd
        head = segment.read(fd, W_IDENTITY_END * WORD, 0)
        ours = len(head) == W_IDENTITY_END * WORD and memoryview(head).cast("Q")[W_FINGERPRINT] == FINGERPRINT
        try:
            read_identity(fd, name, any_owner=True)
        except MFSUnfinishedStoreError as error:
            creating = self.observer.locked(LB_INIT)
            self.reason = f"{error} " + ("It is at work." if creating else "It died: create the store anew, or destroy it.")
            return snapshot.UNFINISHED
        except FileNotFoundError:
            self.reason = f"The store {name!r} was destroyed; its name is about to go."
            return snapshot.DESTROYED
        except MFSLayoutError as error:
            self.reason = str(error)
            if ours:
                self.problems.append(Problem("identity", self.reason, half_done=False))
                return snapshot.READY
            same = len(head) >= WORD and head.startswith(b"DMEMFS")
            return snapshot.INCOMPATIBLE if same else snapshot.FOREIGN
        except MFSCorruptStoreError:
            self.look("identity", lambda: read_identity(fd, name, any_owner=True))
            self.reason = self.problems[-1].text if self.problems else ""
        return snapshot.READY

    def identity(self) -> snapshot.Identity:
        w = self.w
        self.uuid = uuids.UUID(int=w[W_UUID_HIGH] << 64 | w[W_UUID_LOW])
        self.doubt(w[W_OWNER] != self.observer.uid, W_OWNER, f"the owner, uid {self.observer.uid}", w[W_OWNER])
        return snapshot.Identity(
            uuid=str(self.uuid),
            owner_uid=w[W_OWNER],
            created=w[W_CREATED] / 1e9,
            layout_version=w[W_VERSION],
            layout_fingerprint=w[W_FINGERPRINT],
        )

    def parameters(self) -> dict[str, Any] | None:
        size = self.w[W_PARAMS_BYTES]
        if size > PARAMS_BYTES_MAX:
            raise self.w.damage(W_PARAMS_BYTES, "the length of the parameters", size)
        packed = segment.read(self.w.fd, size, PARAMS_OFFSET)
        if zlib.crc32(packed) != self.w[W_PARAMS_CRC]:
            raise self.w.damage(W_PARAMS_CRC, f"the checksum of the parameters, {zlib.crc32(packed)}", self.w[W_PARAMS_CRC])
        try:
            found = msgpack.unpackb(packed)
            return {str(key): value for key, value in found.items()}
        except Exception as error:  # noqa: BLE001  (msgpack's errors have no base of their own)
            raise self.w.damage(PARAMS_OFFSET // WORD, "a map of parameters", type(error).__name__) from None

    def _choose_layout(self, parameters: dict[str, Any] | None) -> None:
        """Where things are, from the words of the head; if these are damaged, from the parameters."""
        layout = None
        with contextlib.suppress(MFSCorruptStoreError):  # truncated since
            layout = self.observer.head_layout()
        if layout is None and parameters is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                layout = Parameters(
                    int(parameters["max_quota"]),
                    nodes_max=int(parameters["max_nodes"] or 0),
                    slots=int(parameters["max_participants"]),
                ).layout()
                if layout.index_bytes != os.fstat(self.w.fd).st_size:
                    layout = None
        if layout is not None:
            self.observer.use(layout)
        elif not self.problems:
            self.problems.append(Problem("identity", "the sizes in the head do not fit the segment", half_done=False))

    # ---- figures

    def quota(self) -> snapshot.Quota:
        w = self.w
        quota, used, orphaned, contents = w[W_QUOTA], w[USED], w[ORPHANED], w[CHARGED]
        self.doubt(used > quota, USED, f"at most the quota of {quota}", used)
        self.doubt(orphaned > used, ORPHANED, f"at most the {used} bytes used", orphaned)
        self.doubt(contents > max(used, 1), CHARGED, f"contents within {used} bytes", contents)
        return snapshot.Quota(
            quota_bytes=quota,
            used_bytes=used,
            free_bytes=max(0, quota - used),
            orphaned_bytes=orphaned,
            contents=contents,
            file_charge_bytes=w[W_FILE_CHARGE],
            directories=tuple(self._directory_quotas()),
        )

    def _directory_quotas(self) -> list[snapshot.DirectoryQuota]:
        found: list[snapshot.DirectoryQuota] = []
        node, backed = self.w[QUOTAS], self.w[NODE_BACKED]
        while 0 < node < backed and len(found) <= backed:
            words = self.observer.node(node)
            bad = words[N_NAME] >> KIND_SHIFT & 0xFF != KIND_QUOTA
            self.doubt(bad, self.observer.layout.node_at(node) + N_NAME, "the account of a directory's quota", words[N_NAME])
            if bad:
                break
            path = self._path(words[Q_DIRECTORY]) if words[Q_DIRECTORY] else "?"
            known = None if path in ("?", REMOVED) else path
            found.append(snapshot.DirectoryQuota(known, words[Q_LIMIT], words[Q_USED]))
            node = words[N_SIBLINGS] & LOW32
        self.doubt(node >= backed, QUOTAS, f"one of {backed} nodes", node)
        return sorted(found, key=lambda quota: quota.path or "")

    def _arena_count(self) -> int:
        count = self.w[ARENAS]
        self.doubt(count > ARENAS_MAX, ARENAS, f"at most {ARENAS_MAX} arenas", count)
        return min(count, ARENAS_MAX)

    def arenas(self) -> tuple[snapshot.Arena, ...]:
        found = []
        base = 0
        table = self.w.read(ARENA_TABLE, self._arena_count() * ARENA_WORDS)
        for number in range(len(table) // ARENA_WORDS):
            first, pages, backed, end, life = table[number * ARENA_WORDS : number * ARENA_WORDS + 5].tolist()
            at = arena_at(number)
            self.doubt(first != base, at + A_BASE, f"the end of the arena before, page {base}", first)
            self.doubt(pages > self.observer.layout.pages_cap, at + A_PAGES, "pages that the index has room for", pages)
            self.doubt(backed > pages, at + A_BACKED, f"at most the arena's {pages} pages", backed)
            self.doubt(end > backed, at + A_BREAK, f"at most the {backed} pages with memory", end)
            base = first + pages
            segment = names.arena(self.uuid, number, life).lstrip("/")
            self._arena_segment(number, segment, pages * PAGE, backed * PAGE)
            found.append(snapshot.Arena(number, segment, pages * PAGE, backed * PAGE, end * PAGE, life))
        return tuple(found)

    def _arena_segment(self, number: int, segment: str, size_bytes: int, backed_bytes: int) -> None:
        """The segment is as the table says. (Memory comes before the word that tells of it.)"""
        try:
            stat = os.stat(f"{names.SHM_DIR}/{segment}")
        except FileNotFoundError:
            if backed_bytes and self.w[W_STATE] == STATE_READY:
                self.doubt(True, arena_at(number), f"the segment {segment}", "none: it was removed by hand")
            return
        if backed_bytes:
            self.doubt(stat.st_size != size_bytes, arena_at(number) + A_PAGES, f"{segment} of {size_bytes} bytes", stat.st_size)
            memory, expected = stat.st_blocks * 512, f"{backed_bytes} bytes of memory in {segment}"
            self.doubt(memory < backed_bytes, arena_at(number) + A_BACKED, expected, memory)

    def _arena_bytes(self) -> list[int]:
        """Memory of each arena's present segment."""
        found = []
        for number in range(self._arena_count()):
            segment = names.arena(self.uuid, number, self.w[arena_at(number) + A_LIFE])
            with contextlib.suppress(FileNotFoundError):
                found.append(os.stat(names.SHM_DIR + segment).st_blocks * 512)
        return found

    def memory(self, arenas: tuple[snapshot.Arena, ...]) -> snapshot.Memory:
        current = {arena.segment for arena in arenas}
        segments, semaphores = names.belongings(self.uuid)
        stat = os.fstat(self.w.fd)
        index = stat.st_blocks * 512
        in_arenas = in_strays = in_semaphores = 0
        for name in segments:
            size = _memory_of(name)
            if name.lstrip("/") in current:
                in_arenas += size
            else:
                in_strays += size
        for name in semaphores:
            in_semaphores += _memory_of("/sem." + name.lstrip("/"))
        self._index_memory(index)
        shm = os.statvfs(names.SHM_DIR)
        return snapshot.Memory(
            total_bytes=index + in_arenas + in_strays + in_semaphores,
            index_bytes=index,
            index_virtual_bytes=stat.st_size,
            arenas_bytes=in_arenas,
            semaphores=len(semaphores),
            semaphores_bytes=in_semaphores,
            strays_bytes=in_strays,
            shm_total_bytes=shm.f_blocks * shm.f_frsize,
            shm_free_bytes=shm.f_bavail * shm.f_frsize,
        )

    def _index_memory(self, backed_bytes: int) -> None:
        """What the words say has memory really has: reading a hole through a mapping would be SIGBUS for those attached."""
        w, layout = self.w, self.observer.layout
        for word, cap, size, what in (
            (NODE_BACKED, layout.nodes_cap + NODE_STEP, NODE_WORDS * WORD, "nodes"),
            (BUCKETS_BACKED, layout.nodes_cap + PAGE_WORDS, WORD, "buckets"),
            (SLOTS_BACKED, layout.slots, 2 * PAGE, "slots"),
        ):
            count = w[word]
            self.doubt(count > cap, word, f"at most {cap} {what}", count)
            if count <= cap:
                backed = os.fstat(w.fd).st_blocks * 512
                self.doubt(count * size > backed, word, f"{what} within {backed_bytes} bytes of memory", count)
        self.doubt(not 0 < w[BUCKETS] <= w[BUCKETS_BACKED], BUCKETS, "buckets that have memory", w[BUCKETS])

    def largest_free_run(self) -> int:
        """Bytes of the largest free run that has memory: at the end of an arena, in a bin, or in the list of the largest
        class."""
        w, layout = self.w, self.observer.layout
        pages = 0
        for number in range(self._arena_count()):
            at = arena_at(number)
            pages = max(pages, min(w[at + A_BACKED], w[at + A_PAGES]) - w[at + A_BREAK])
        pages = max(pages, *(length for length in range(BIN_PAGES_MOST + 1) if w[BIN_HEADS + length]), 0)
        heads = w.read(RUN_HEADS, RUN_CLASSES)
        for size_class in range(RUN_CLASSES - 1, -1, -1):
            page = heads[size_class]
            if page:
                for _ in range(_RUNS_LOOKED_AT):
                    at = layout.descriptors_at + (page - 1) * DESCRIPTOR_WORDS
                    if not 0 < page <= layout.pages_cap:
                        raise w.damage(RUN_HEADS + size_class, "a page", page)
                    word, links = w.read(at, DESCRIPTOR_WORDS)
                    if word & 0xFF != PD_FREE or (word >> PD_SHIFT).bit_length() - 1 != size_class:
                        raise w.damage(at, f"a free run of 2^{size_class} pages or more", f"{word:#x}")
                    pages = max(pages, word >> PD_SHIFT)
                    page = links & LOW32
                    if not page:
                        break
                break
        return pages * PAGE

    # ---- nodes

    def nodes(self) -> tuple[snapshot.Nodes, tuple[snapshot.File, ...], tuple[str, ...]]:
        w, observer = self.w, self.observer
        end, backed, cap = w[NODE_BREAK], w[NODE_BACKED], observer.layout.nodes_cap
        self.doubt(end > backed, NODE_BREAK, f"at most the {backed} nodes with memory", end)
        kinds: Counter[int] = Counter()
        largest: list[tuple[int, int]] = []
        abandoned: list[int] = []
        complete = True
        try:
            for first, words in observer.chunks():
                kinds.update(name >> KIND_SHIFT & 0xFF for name in words[N_NAME::NODE_WORDS].tolist())
                columns = (words[word::NODE_WORDS].tolist() for word in (N_NAME, N_GENERATION, N_LOCK, N_SIZE))
                files = [
                    (size, first + i, lock)
                    for i, (name, generation, lock, size) in enumerate(zip(*columns, strict=True))
                    if name >> KIND_SHIFT & 0xFF == KIND_FILE and generation & 1
                ]
                abandoned += [node for _, node, lock in files if lock & LOCK_ABANDONED]
                largest = heapq.nlargest(FILES_SHOWN, [*largest, *((size, node) for size, node, _ in files)])
        except TimeoutError:
            complete = False
        kinds.pop(KIND_FREE, None)
        drafted = w[DRAFTED]
        figures = snapshot.Nodes(
            files=max(0, w[FILES] - (drafted >> 32)),
            directories=max(0, w[DIRS] - (drafted & LOW32)),
            max_nodes=w[W_NODES_MAX] or None,
            in_use=kinds.total() if complete else None,
            backed=min(backed, cap),
            cap=cap,
            abandoned=len(abandoned) if complete else None,
        )
        self.doubt(figures.files + figures.directories > backed, FILES, f"files within {backed} nodes", figures.files)
        lightly = self._held_lightly()
        shown = (self._file(node, lightly) for _, node in largest)
        paths = (self._path(node) for node in abandoned[:FILES_SHOWN])
        return figures, tuple(file for file in shown if file), tuple(path for path in paths if path != REMOVED)

    def _file(self, node: int, lightly: set[int]) -> snapshot.File | None:
        path = self._path(node)
        words = self.observer.node(node)
        if path == REMOVED or words[N_NAME] >> KIND_SHIFT & 0xFF != KIND_FILE:
            return None
        lock, capacity = words[N_LOCK], words[N_CAPACITY]
        at = self.observer.layout.node_at(node)
        writing = bool(lock & LOCK_WRITER)
        reading = lock & LOCK_READERS or (lock & LOCK_LIGHT and node in lightly)
        self.doubt(words[N_SIZE] > capacity and not writing, at + N_SIZE, f"a size within {capacity} bytes", words[N_SIZE])
        return snapshot.File(
            path=path,
            size_bytes=words[N_SIZE],
            charged_bytes=capacity + self.w[W_FILE_CHARGE] if capacity else 0,
            pieces=(words[N_RUNS] >> 32) + 1 if words[N_RUN] else 0,
            modified=words[N_MODIFIED] / 1e9,
            abandoned=bool(lock & LOCK_ABANDONED),
            lock="exclusive" if writing else "shared" if reading else "free",
        )

    def _held_lightly(self) -> set[int]:
        """The nodes that readers hold lightly: see `rwlock`."""
        words = (word for slot in self.observer.slots() for word in self._records(slot)[R_LOCK::RECORD_WORDS].tolist())
        return {word >> REC_NODE_SHIFT for word in words if word & REC_IS_LIGHT == HELD_LIGHTLY}

    def _path(self, node: int) -> str:
        """A node's path, or "?" and a doubt: one bad name must not cost all the others."""
        try:
            return self.observer.path(node)
        except MFSCorruptStoreError as error:
            self._say(str(error))
            return "?"

    # ---- participants and what they hold

    def _is_alive(self, slot: int) -> bool:
        """Whether the tenant of a slot lives, as it was when it was first asked for."""
        alive = self._alive.get(slot)
        if alive is None:
            some = self.observer.participants
            at = self.observer.layout.slot_at(slot)
            locked = not some.is_dead(slot, some.epoch(slot)) if some.pid(at) else self.observer.locked(LB_SLOT + slot)
            self._alive[slot] = alive = locked
        return alive

    def _living(self) -> tuple[int, int]:
        """(how many live, how many are dead and were not succeeded)."""
        self._alive = {}
        alive = dead = 0
        for slot in self.observer.slots():
            if self._is_alive(slot):
                alive += 1
            elif self.observer.participants.pid(self.observer.layout.slot_at(slot)):
                dead += 1
        return alive, dead

    def participants(self) -> tuple[snapshot.Participant, ...]:
        self._alive = {}
        some, layout = self.observer.participants, self.observer.layout
        backed = self.w[SLOTS_BACKED]
        self.doubt(backed > layout.slots, SLOTS_BACKED, f"at most {layout.slots} slots", backed)
        found = []
        for slot in self.observer.slots():
            at = layout.slot_at(slot)
            pid, alive = some.pid(at), self._is_alive(slot)
            if not pid and not alive:
                continue
            here = some.pid_namespace_of(at) == identity.visible_namespace()
            states = Counter(word & REC_STATE for word in self._records(slot)[R_LOCK::RECORD_WORDS].tolist())
            found.append(
                snapshot.Participant(
                    slot=slot,
                    pid=pid,
                    pid_namespace=some.pid_namespace_of(at),
                    command=some.command(slot),
                    alive=alive,
                    stopped=identity.is_stopped(pid) if alive and here and pid else None if alive else False,
                    since=some.since_ns(at) / 1e9,
                    locks_held=states.total() - states[FREE] - states[QUEUED],
                    locks_waited_for=states[QUEUED],
                    views=self._views(slot),
                    started=some.start_of(at),
                    sleepers=self.w[at + S_SLEEPERS].bit_count() if alive else 0,
                )
            )
        return tuple(found)

    def _records(self, slot: int) -> memoryview:
        """The words of a slot's lock records that have memory."""
        at = self.observer.layout.slot_at(slot)
        count = self.w[at + S_RECORDS]
        self.doubt(count > RECORDS, at + S_RECORDS, f"at most {RECORDS} records", count)
        first = at + RECORDS_AT + RECORDS_RESERVED * RECORD_WORDS
        return self.w.read(first, max(0, min(count, RECORDS) - RECORDS_RESERVED) * RECORD_WORDS)

    def _views(self, slot: int) -> int:
        at = self.observer.layout.slot_at(slot)
        count = self.w[at + S_PINS]
        self.doubt(count > PINS, at + S_PINS, f"at most {PINS} pins", count)
        pins = self.w.read(at + PINS_AT, min(count, PINS) * PIN_WORDS)
        return sum(1 for node in pins[::PIN_WORDS].tolist() if node)

    def locks(self) -> tuple[snapshot.Lock, ...]:
        some, layout = self.observer.participants, self.observer.layout
        found = []
        for slot in self.observer.slots():
            at, words = layout.slot_at(slot), self._records(slot)
            for i in range(0, len(words), RECORD_WORDS):
                word = words[i + R_LOCK]
                if word & REC_STATE != FREE:
                    found.append(
                        snapshot.Lock(
                            path=self._path(word >> REC_NODE_SHIFT),
                            mode="exclusive" if word & REC_WRITER else "shared",
                            state=_STATES.get(word & REC_STATE, "held"),
                            slot=slot,
                            pid=some.pid(at),
                            alive=self._is_alive(slot),
                            thread=words[i + R_THREAD] & LOW32,
                            command=some.command(slot),
                            since=words[i + R_SINCE] / 1e9,
                        )
                    )
        return tuple(sorted(found, key=lambda lock: (lock.path, lock.state == "waiting", lock.since)))

    def space_waits(self) -> tuple[snapshot.SpaceWait, ...]:
        """Who waits for space, the first one first. The queue changes meanwhile: it is read as far as it leads somewhere."""
        some, layout = self.observer.participants, self.observer.layout
        found: list[snapshot.SpaceWait] = []
        record, end = self.w[SPACE_FIRST], layout.slot_at(len(self.observer.slots()))
        while SLOTS_AT <= record < end and len(found) < layout.slots * PARKS:
            links, wanted, account, _ = self.w.read(record, SW_WORDS)
            slot = (record - SLOTS_AT) // SLOT_WORDS
            if wanted:
                at = layout.slot_at(slot)
                directory = self._path(self.observer.node(account)[Q_DIRECTORY]) if account else None
                alive, command = self._is_alive(slot), some.command(slot)
                found.append(snapshot.SpaceWait(slot, some.pid(at), alive, command, wanted, directory))
            record = links & LOW32
        return tuple(found)

    # ---- mutexes

    def mutexes(self) -> tuple[snapshot.Mutex, ...]:
        self._alive = {}
        generations = self.w.read(GENERATION, MUTEXES * GENERATION_STRIDE)[::GENERATION_STRIDE].tolist()
        claims = {slot: self.w.read(self.observer.layout.slot_at(slot) + S_CLAIM, MUTEXES) for slot in self.observer.slots()}
        by_kernel = self.w[W_BACKEND] == BACKEND_OFD
        self.doubt(self.w[W_BACKEND] not in BACKENDS.values(), W_BACKEND, "a backend", self.w[W_BACKEND])
        found = []
        for number, generation in enumerate(generations):
            entries, bad = self.w[journal_at(number)], self._bad_entry(number)
            if bad is not None:
                self._say(str(bad))
            held = by_kernel and self.observer.locked(LB_MUTEX + number)
            if by_kernel:  # the claim is a note only, which the dead leave standing; it tells who, if the kernel says that
                claimers = [slot for slot, words in claims.items() if words[number] != NO_CLAIM]
                claimers = [slot for slot in claimers if self._is_alive(slot) == held and (held or entries)]
            else:
                claimers = [slot for slot, words in claims.items() if words[number] == generation & ~1]
                self._semaphore(number, generation)
                self.doubt(len(claimers) > 1, generation_at(number), "one holder", f"slots {claimers}")
            holder = claimers[0] if claimers else None
            found.append(
                snapshot.Mutex(
                    number=number,
                    guards=_guards(number),
                    generation=generation,
                    state=self._mutex_state(generation, holder, entries, held=held),
                    holder_slot=holder,
                    holder_pid=None if holder is None else self._pid(holder),
                    journal_entries=entries,
                )
            )
        return tuple(found)

    def _pid(self, slot: int) -> int:
        return self.observer.participants.pid(self.observer.layout.slot_at(slot))

    def _mutex_state(self, generation: int, holder: int | None, entries: int, *, held: bool) -> str:
        if generation & 1:
            return "revoked"
        if held:
            return "held"
        if holder is None:
            return "dead" if entries else "free"
        return "held" if self._is_alive(holder) else "dead"

    def _semaphore(self, number: int, generation: int) -> None:
        """The semaphore of a stable generation stands. (Missing, it is replaced at the next use: nothing is lost.)"""
        name = names.mutex(self.uuid, number, generation)
        if not generation & 1 and self.w[W_STATE] == STATE_READY and not os.path.exists(names.semaphore_path(name)):
            found = "none: it was removed by hand; the next use of the store replaces it"
            self.doubt(True, generation_at(number), f"the semaphore {name.lstrip('/')}", found)

    def activity(self) -> snapshot.Activity:
        w, observer = self.w, self.observer
        return snapshot.Activity(
            recoveries=w[RECOVERIES],
            reaps=w[REAPS],
            name_changes=w[TREE_SEQ] // 2,
            creating=observer.locked(LB_INIT),
            attaching=observer.locked(LB_ATTACH),
            recovering=observer.locked(LB_RECOVER),
            moving_directories=bool(w[NAMESPACE] & 1),
            trash_waiting=bool(w[TRASH]),
            importing=bool(w[INTENT]),
            life_held=observer.locked(LB_LIFE) if observer.name.startswith("@") else None,
        )


def _guards(number: int) -> str:
    if not number:
        return "names, quota and blocks"
    return f"locks of the files n with n % {INODE_MUTEXES} == {number - 1}"


def _memory_of(name: str) -> int:
    try:
        return os.stat(names.SHM_DIR + name).st_blocks * 512
    except FileNotFoundError:
        return 0
