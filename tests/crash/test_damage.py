"""Damage: whatever stands in a word of the index, the store answers; it never hangs, crashes, or reads what is not its own.

A store at rest is made once: small files, a large one, long names, directories, a file in pieces, and what participants
leave behind who died holding locks, views and an open transaction. Its files in /dev/shm are kept as an `Image`. A case
damages one word of it, or a stretch of bytes, and a child that is forked for the case uses the store with all of the
public interface. What may come of it:

    an error that the package documents (MFSError, or the FileNotFoundError, IsADirectoryError... of a missing file);
    a plausible value; damage that is in the way of nothing may go unnoticed by all but `check`.

An IndexError, a MemoryError, an error of some codec, a signal, an end that does not come: each fails the case, which the
message names by seed, word and value. The words are those of every 32 that hold anything in the image.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from dmemfs_shm import MemoryFileSystem, MFSError
from dmemfs_shm.store import attachment, inspection, layout, mutex, names, rwlock
from dmemfs_shm.store.journal import Plan
from dmemfs_shm.store.layout import NODE_WORDS, PAGE_WORDS, WORD, WORD_MAX, Layout

from ..figures import DAMAGES
from ..lockstore import BOTH, clear_away, fresh_name
from ..processes import DEADLINE_S
from .harness import SEED

pytestmark = pytest.mark.crash

QUOTA = 4 << 20
LONG = "n" * 200
WAIT_S = 0.02  # nobody else is there to wait for


# ---- a store at rest


class File(NamedTuple):
    """A file of /dev/shm: its size, how much memory it has from the front on, and the pages that hold anything."""

    size: int
    backed: int
    pages: dict[int, bytes]

    @staticmethod
    def read(path: str) -> File:
        with open(path, "rb", buffering=0) as file:
            fd = file.fileno()
            pages = {page: os.pread(fd, layout.PAGE, page * layout.PAGE) for page in _written_pages(fd)}
            stat = os.fstat(fd)
            return File(stat.st_size, min(stat.st_size, stat.st_blocks * 512), pages)

    def is_backed_from_the_front(self) -> bool:
        """So are arenas and semaphores; in the index some pages behind the last one that is backed are not."""
        return all(page * layout.PAGE < self.backed for page in self.pages)

    def write(self, path: str) -> None:
        """Make the file so again; a sparse one keeps the memory that it has got since, but nothing is in it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(fd).st_size != self.size or self.is_backed_from_the_front():
                os.ftruncate(fd, 0)
                os.ftruncate(fd, self.size)
                os.posix_fallocate(fd, 0, self.backed)
            for page in set(_written_pages(fd)) - self.pages.keys():
                os.pwrite(fd, bytes(layout.PAGE), page * layout.PAGE)
            for page, data in self.pages.items():
                os.pwrite(fd, data, page * layout.PAGE)
        finally:
            os.close(fd)


class Image:
    """The files of a store that nobody has open, and how to put them back."""

    def __init__(self, name: str, uuid: Any) -> None:
        self.path = f"/dev/shm{names.index_name(name)}"
        self.mark = uuid.hex
        self.index = File.read(self.path)
        self.others = {entry: File.read(f"/dev/shm/{entry}") for entry in self._entries()}
        self.nodes_at = Layout(self.word(layout.W_SLOTS), self.word(layout.W_NODES_CAP), self.word(layout.W_PAGES_CAP)).nodes_at
        self.used_words = self._used_words()
        self.used_pages = sorted(page for page, data in self.index.pages.items() if any(data))

    def restore(self) -> None:
        """Make everything as it was; what came into being since is gone."""
        self.index.write(self.path)
        for entry in set(self._entries()) - set(self.others):
            os.unlink(f"/dev/shm/{entry}")
        for entry, file in self.others.items():
            file.write(f"/dev/shm/{entry}")

    def word(self, at: int) -> int:
        data = self.index.pages.get(at // PAGE_WORDS, bytes(layout.PAGE))
        start = at % PAGE_WORDS * WORD
        return int.from_bytes(data[start : start + WORD], "little")

    def store(self, at: int, data: bytes) -> None:
        """Put bytes into the index, at a byte."""
        with open(self.path, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, at)

    def _used_words(self) -> list[int]:
        """Those of every NODE_WORDS that hold anything: whole nodes, and what stands near other fields."""
        size = NODE_WORDS * WORD
        return [
            at
            for page, data in sorted(self.index.pages.items())
            for start in range(0, layout.PAGE, size)
            if any(data[start : start + size])
            for at in range((page * layout.PAGE + start) // WORD, (page * layout.PAGE + start + size) // WORD)
        ]

    def _entries(self) -> list[str]:
        return [entry for entry in os.listdir("/dev/shm") if self.mark in entry]


def _written_pages(fd: int) -> Iterator[int]:
    """Pages of a sparse file that have ever been written to."""
    at = 0
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing behind
            return
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield from range(start // layout.PAGE, -(-at // layout.PAGE))


@contextlib.contextmanager
def in_use(image: Image) -> Iterator[None]:
    """Other tests look for stores that nobody has open: this one is not forgotten."""
    with contextlib.ExitStack() as stack:
        for path in [image.path, *(f"/dev/shm/{entry}" for entry in image.others)]:
            stack.enter_context(open(path, "rb"))
        yield


def fill(fs: MemoryFileSystem) -> None:
    """Something of every kind that a node, a run and a name can be."""
    fs.mkdir("/d/sub")
    fs.mkdir("/empty")
    for number in range(6):
        fs.write_bytes(f"/d/{number}", bytes([number]) * 300 * number)
    fs.write_bytes(f"/d/{LONG}", b"long")
    fs.write_bytes("/large", b"L" * 200_000)
    with fs.open("/pieces", "wb") as pieces, fs.open("/between", "wb") as between:
        for _ in range(12):
            pieces.write(b"p" * 20_000)
            between.write(b"b" * 20_000)
    for number in range(0, 6, 2):
        fs.remove(f"/d/{number}")


def die_with_much(name: str) -> None:
    """Hold locks of both kinds, a view of what is replaced, an orphan; then die in the middle of a transaction."""
    fs = MemoryFileSystem.attach(name)
    kept: list[Any] = [fs.open("/d/1"), fs.open("/large"), fs.open("/between", "r+b"), fs.view("/d/3"), fs.view("/pieces")]
    fs.write_bytes("/d/3", b"replaced")
    fs.write_bytes("/large", b"another")
    store = fs._store
    assert store is not None

    def step(section: Any) -> None:
        plan = Plan(store.w)
        for word in (layout.USED, layout.FILES, layout.DIRS):
            plan[word] = store.w[word] + 1
        at = store.mutexes[0].journal
        for number, word in enumerate(plan):
            store.w[at + 1 + 2 * number] = word
            store.w[at + 2 + 2 * number] = store.w[word]
        store.w[at] = len(plan)
        store.w[layout.USED] += 1
        os.kill(os.getpid(), signal.SIGKILL)

    store.sections.run(step)
    raise AssertionError(kept)


@contextlib.contextmanager
def at_rest(backend: str) -> Iterator[tuple[str, Image]]:
    """A store that the dead have left, and its image."""
    name = fresh_name()
    marks = []
    try:
        fs = MemoryFileSystem.create(name, QUOTA, backend=backend, max_participants=4)
        marks.append(fs.uuid.hex)
        fill(fs)
        fs.close()
        pid = os.fork()
        if pid == 0:
            try:
                die_with_much(name)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        image = Image(name, fs.uuid)
        with in_use(image):
            yield name, image
    finally:
        with contextlib.suppress(MFSError):  # of a damaged index
            clear_away(name, *marks)
        for entry in os.listdir("/dev/shm"):
            if any(mark in entry for mark in [name, *marks]):
                os.unlink(f"/dev/shm/{entry}")


# ---- the cases


class Damage(NamedTuple):
    """Bytes that are stored into the index, at a byte."""

    what: str
    at: int
    data: bytes


def damages_of(image: Image, at: int, chance: random.Random) -> list[Damage]:
    """Ways to damage a word."""
    old = image.word(at)
    other = image.word(chance.choice(image.used_words))
    values = {
        "zero": 0,
        "ones": WORD_MAX,
        "one-bit": old ^ 1 << chance.randrange(64),
        "low-bit": old ^ 1 << chance.randrange(12),
        "plus-one": old + 1 & WORD_MAX,
        "random": chance.getrandbits(64),
        "small": chance.randrange(1, 4096),
        "another": other,
    }
    kinds = [(what, value) for what, value in values.items() if value != old]
    return [Damage(f"word {at} {what}", at * WORD, value.to_bytes(WORD, "little")) for what, value in kinds]


def scribbles(image: Image, count: int, chance: random.Random) -> Iterator[Damage]:
    """Stretches of zeros or of chance over pages that hold something."""
    for _ in range(count):
        page = chance.choice(image.used_pages)
        at = page * layout.PAGE + chance.randrange(layout.PAGE)
        size = min(int(2 ** chance.uniform(0, 12)) + 1, image.index.size - at)
        data = chance.choice([bytes(size), chance.randbytes(size)])
        yield Damage(f"{size} bytes {'random' if any(data) else 'zero'}", at, data)


# ---- what is done with a damaged store

#: What a call may say of a damaged store: the package's errors, and those of files that are missing or of another kind.
DOCUMENTED = (MFSError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


class Use:
    """Everything the public interface offers; counts the errors that are documented, raises the others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.noticed: set[str] = set()

    def everything(self) -> None:
        self._try(inspection.inspect, self.name)
        self._try(inspection.survey)
        fs = self._try(MemoryFileSystem.attach, self.name, default_lock_timeout=WAIT_S)
        if fs is None:
            return
        try:
            self._look(fs)
            self._change(fs)
            self._look(fs)
        finally:
            self._try(fs.close)

    def _look(self, fs: MemoryFileSystem) -> None:
        findings = self._try(fs.check)
        if findings:
            self.noticed.add("check")
        for ask in (fs.stats, fs.info, fs.locks, fs.participants):
            self._try(ask)
        self._try(fs.glob, "**")
        for path in ("/d", "/d/sub", "/empty", "/"):
            self._try(fs.listdir, path)
        for path in self._paths(fs):
            self._try(fs.stat, path)
            self._try(fs.read_bytes, path)
            self._try(self._read, fs, path)
            self._try(self._see, fs, path)

    def _paths(self, fs: MemoryFileSystem) -> list[str]:
        found = [f"/d/{LONG}", "/large", "/pieces", "/between", "/d/1", "/d/3", "/d/5"]
        for path, _, files in self._try(lambda: list(fs.walk("/"))) or ():
            found += [f"{path.rstrip('/')}/{file}" for file in files]
        return list(dict.fromkeys(found))

    @staticmethod
    def _read(fs: MemoryFileSystem, path: str) -> None:
        with fs.open(path, "rb", lock_timeout=WAIT_S, allow_abandoned=True) as file:
            file.seek(3)
            file.read()

    @staticmethod
    def _see(fs: MemoryFileSystem, path: str) -> None:
        with fs.view(path, allow_abandoned=True) as view:
            bytes(view[-3:])

    @staticmethod
    def _append(fs: MemoryFileSystem, path: str, data: bytes) -> None:
        with fs.open(path, "r+b", lock_timeout=WAIT_S, allow_abandoned=True) as file:
            file.write(data)
            file.seek(0, 2)
            file.write(data)
            file.truncate(5000)

    def _change(self, fs: MemoryFileSystem) -> None:
        for path in ("/d/1", "/large", "/pieces"):
            self._try(self._append, fs, path, b"x" * 3000)
        self._try(fs.write_bytes, "/d/new", b"n" * 700)
        self._try(fs.write_bytes, "/d/new-large", b"n" * 150_000)
        self._try(fs.write_bytes, "/between", b"over")
        self._try(fs.mkdir, "/made/of/many")
        self._try(fs.rename, "/d/5", "/made/five")
        self._try(fs.replace, "/d/new", "/d/3")
        self._try(fs.copy_tree, "/d", "/copied")
        self._try(fs.remove, "/pieces")
        self._try(fs.rmtree, "/d")
        self._try(fs.trim)

    def _try(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return call(*args, **options)
        except DOCUMENTED as error:
            self.noticed.add(type(error).__name__)
            return None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EXDEV:  # the account of a directory is another one
                return None
            raise AssertionError(f"{getattr(call, '__name__', call)}{args[1:]} raised {type(error).__name__}") from error


def outcome(name: str) -> str:
    """Use the store in a forked child: what it noticed, or what went wrong, beginning with an exclamation mark."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        said = ""
        try:
            attachment.WAIT_FOR_CREATOR_S = mutex.GRACE_S = 0.1
            mutex.SLICE_S = rwlock.SLICE_S = 0.002
            warnings.simplefilter("ignore")
            use = Use(name)
            use.everything()
            said = " ".join(sorted(use.noticed)) or "nothing"
        except BaseException:  # noqa: BLE001  # whatever it was, the test is told
            said = f"! {traceback.format_exc()}"
        finally:
            os.write(writes, said.encode())
            os._exit(0)
    os.close(writes)
    try:
        return _told(pid, reads)
    finally:
        os.close(reads)


def _told(pid: int, reads: int) -> str:
    said, end = b"", time.monotonic() + DEADLINE_S
    while select.select([reads], [], [], max(0.0, end - time.monotonic()))[0]:
        data = os.read(reads, 1 << 16)
        if not data:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            return said.decode() if status == 0 else f"! ended with {status}"
        said += data
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"! did not end in {DEADLINE_S} s"


def wrong_with(name: str, image: Image, damages: list[Damage]) -> list[str]:
    """What a use of the store must not do, for each of the damages."""
    wrong = []
    for damage in damages:
        image.restore()
        image.store(damage.at, damage.data)
        said = outcome(name)
        if said.startswith("!"):
            wrong.append(f"{damage.what}: {damage.at:#x} = {damage.data[:16].hex()}: {said}")
    image.restore()
    return wrong


SHARDS = 16


def node_at(image: Image, path: str) -> int:
    """The first word of a node, found by its name."""
    name = path.rpartition("/")[2].encode()
    for at in range(image.nodes_at, image.used_words[-1], NODE_WORDS):
        kind, size = image.word(at + layout.N_NAME) >> layout.KIND_SHIFT, image.word(at + layout.N_NAME) >> 32 & 0xFFFF
        text = b"".join(image.word(at + layout.N_TEXT + i).to_bytes(WORD, "little") for i in range(16))[:size]
        if kind in (layout.KIND_FILE, layout.KIND_DIR) and text == name[: layout.TEXT_BYTES]:
            return at
    raise AssertionError(path)


#: Damage that once made the store hang, delete what it should not, or raise what no caller expects.
KNOWN: dict[str, Callable[[Image], tuple[int, int]]] = {
    "trash leads to the root": lambda image: (layout.TRASH, layout.ROOT),
    "trash leads into a directory": lambda image: (layout.TRASH, layout.ROOT + 1),
    "more nodes in use than have memory": lambda image: (layout.NODE_BREAK, WORD_MAX),
    "pinned content leads to the root": lambda image: (
        image.nodes_at + image.word(layout.PINNED) * NODE_WORDS + layout.N_SIBLINGS,
        layout.ROOT,
    ),
    "intent leads to the root": lambda image: (layout.SLOTS_AT + layout.S_INTENT, layout.ROOT),
    "a directory contains its parent": lambda image: (node_at(image, "/d/sub") + layout.D_CHILD, layout.ROOT),
    "an entry's next is the root": lambda image: (node_at(image, "/d/5") + layout.N_SIBLINGS, layout.ROOT),
    "an entry of the root has the root behind it": lambda image: (node_at(image, "/d") + layout.N_SIBLINGS, layout.ROOT),
    "an entry's next is itself": lambda image: (
        (at := node_at(image, "/d/5")) + layout.N_SIBLINGS,
        (at - image.nodes_at) // NODE_WORDS,
    ),
    "a name is not UTF-8": lambda image: (node_at(image, "/d/5") + layout.N_TEXT, 0xFF),
    "a name is NUL": lambda image: (node_at(image, "/d/5") + layout.N_TEXT, 0),
    "more bytes than blocks": lambda image: (node_at(image, "/d/5") + layout.N_SIZE, WORD_MAX),
    "more capacity than blocks": lambda image: (node_at(image, "/d/5") + layout.N_CAPACITY, 1 << 40),
    "more runs than there are": lambda image: (node_at(image, "/between") + layout.N_RUNS, 1 << 42),
    "no blocks": lambda image: (node_at(image, "/between") + layout.N_RUN, 0),
    "changed too often": lambda image: (node_at(image, "/d/1") + layout.N_CONTENT, WORD_MAX),
    "the last epoch of all": lambda image: (layout.SLOTS_AT + layout.S_EPOCH, WORD_MAX),
    "the last recovery of all": lambda image: (layout.RECOVERIES, WORD_MAX),
    "the last generation of all": lambda image: (layout.generation_at(0), WORD_MAX - 1),
    "the last sequence of all": lambda image: (node_at(image, "/d/1") + layout.N_SEQ, WORD_MAX - 1),
    "an arena that begins later": lambda image: (layout.ARENA_TABLE + layout.A_BASE, 1000),
    "an arena with more memory than it has": lambda image: (layout.ARENA_TABLE + layout.A_BACKED, 1 << 40),
    "a page beyond all": lambda image: (layout.RUN_HEADS + 3, WORD_MAX),
}
EVERY = [pytest.param(12, id="a-part"), pytest.param(1, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", BOTH)
def test_the_image_is_sound(backend: str) -> None:
    """A restored image is the store that was left: everything but the dead one's is there, and nothing is noticed."""
    with at_rest(backend) as (name, image):
        for _ in range(2):
            assert outcome(name) == "FileNotFoundError"  # of what it removed itself
            image.restore()


@pytest.mark.parametrize("what", KNOWN)
def test_known(what: str) -> None:
    with at_rest("generation") as (name, image):
        at, value = KNOWN[what](image)
        assert wrong_with(name, image, [Damage(what, at * WORD, value.to_bytes(WORD, "little"))]) == []


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("shard", range(SHARDS))
def test_words(shard: int, every: int, record_property: Callable[[str, object], None]) -> None:
    """Each word of the index that means anything, in eight ways."""
    chance = random.Random(f"{SEED} {shard}")
    with at_rest("generation") as (name, image):
        words = image.used_words[shard::SHARDS]
        damages = [damage for word in words for damage in damages_of(image, word, chance)]
        damages = chance.sample(damages, len(damages) // every)
        assert wrong_with(name, image, damages) == []
    record_property(DAMAGES, len(damages))


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("backend", BOTH)
def test_scribbles(backend: str, every: int, record_property: Callable[[str, object], None]) -> None:
    """Stretches of bytes, up to a page."""
    with at_rest(backend) as (name, image):
        damages = list(scribbles(image, 600 // every, random.Random(SEED)))
        assert wrong_with(name, image, damages) == []
    record_property(DAMAGES, len(damages))
