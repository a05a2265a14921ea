"""D-MemFS 0.4.1 and this package side by side: the same calls must give the same results, errors, trees and contents.

What is compared after every step: each directory's names, each file's size, generation and content, and the position
of every open handle.  Results that are lists of names are compared as sets.  Errors are compared by their nearest
built-in.  Where the two differ on purpose, or D-MemFS is defective, EXCLUDED says so by name; each entry shows the
defect on D-MemFS itself, and the machine says what this package does instead.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import dmemfs
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dmemfs_shm import MemoryFileSystem

from ..conftest import entries_of, mark_of

QUOTA = 64 << 20
HANDLES_MAX = 5

# --- where they differ -----------------------------------------------------------------------------------------------


def _d_memfs() -> dmemfs.MemoryFileSystem:
    fs = dmemfs.MemoryFileSystem(default_lock_timeout=0.0)
    fs.mkdir("/d")
    with fs.open("/d/f", "wb") as handle:
        handle.write(b"x")
    return fs


def _repeats_a_path() -> bool:
    found = _d_memfs().glob("**")
    return len(found) > len(set(found))


def _loses_a_directory() -> bool:
    fs = _d_memfs()
    fs.rename("/d", "/d/e")
    return fs.listdir("/") == [] and fs.stats()["file_count"] == 1


def _grows_under_a_reader() -> bool:
    fs = _d_memfs()
    with fs.open("/d/f", "rb", preallocate=10):
        return fs.get_size("/d/f") == 10


def _read_none_fails() -> bool:
    with _d_memfs().open("/d/f", "rb") as handle:
        try:
            handle.read(None)  # type: ignore[arg-type]
        except TypeError:
            return True
    return False


def _readline_of_nothing_looks_at_nothing() -> bool:
    with _d_memfs().open("/d/f", "ab") as handle:
        return handle.readline(0) == b""


def _keeps_two_slashes() -> bool:
    fs = _d_memfs()
    try:
        fs.rmtree("//")
    except KeyError:
        return next(iter(fs.walk("//")))[0] == "//"
    return False


def _asserts_below_a_file() -> bool:
    fs = _d_memfs()
    with fs.open("/g", "wb"):
        pass
    try:
        fs.move("/g", "/d/f/x")
    except AssertionError:
        return True
    return False


def _copy_asks_without_timeout() -> bool:
    fs = _d_memfs()
    asked = []
    node: Any = fs._resolve_path("/d/f")
    node._rw_lock.acquire_read = lambda timeout=None: asked.append(timeout)
    node._rw_lock.release_read = lambda: None
    fs.copy("/d/f", "/copy")
    return asked == [None]


def _imports_over_a_directory() -> bool:
    fs = _d_memfs()
    fs.import_tree({"/d": b""})
    return not fs.is_dir("/d") and fs.stats()["file_count"] == 2


def _asserts_importing_below_a_file() -> bool:
    try:
        _d_memfs().import_tree({"/d/f/x": b""})
    except AssertionError:
        return True
    return False


#: What is not compared: the reason, and a look at D-MemFS that shows it.
EXCLUDED: dict[str, tuple[str, Callable[[], bool]]] = {
    "glob repeats": ("D-MemFS gives a path once for each way in which ** matches it; here each path once", _repeats_a_path),
    "into itself": ("D-MemFS loses a directory renamed or moved below itself; here that is ValueError", _loses_a_directory),
    "reader preallocates": ("D-MemFS grows a file opened with rb; here that is io.UnsupportedOperation", _grows_under_a_reader),
    "read none": ("read(None) is TypeError in D-MemFS; here it reads everything, as in io", _read_none_fails),
    "empty readline": (
        "readline(0) is b'' in D-MemFS even where nothing can be read; here it may be refused as any read is",
        _readline_of_nothing_looks_at_nothing,
    ),
    "two slashes": (
        "D-MemFS keeps two leading slashes, and does not know the root by them; here they are one",
        _keeps_two_slashes,
    ),
    "below a file": ("move to below a file fails an assertion in D-MemFS; here it is an OSError", _asserts_below_a_file),
    "import over": (
        "import_tree puts a file in a directory's place; here that is IsADirectoryError",
        _imports_over_a_directory,
    ),
    "import below": (
        "import_tree to just below a file fails an assertion in D-MemFS; here it is FileExistsError",
        _asserts_importing_below_a_file,
    ),
    "copy waits": (
        "D-MemFS copies wait for ever for a file open for writing; here as long as the default says",
        _copy_asks_without_timeout,
    ),
}


@pytest.mark.parametrize("name", EXCLUDED)
def test_excluded_for_a_reason(name: str) -> None:
    """D-MemFS does what the table says of it: an entry that is no longer true has to go."""
    assert EXCLUDED[name][1]()


def excluded(name: str) -> None:
    """Note that a comparison is left out, under a name from the table."""
    assert name in EXCLUDED
    event(f"excluded: {name}")


# --- the alphabet ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b"])
CLEAN = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
ODD = st.sampled_from(
    [
        "",
        "/",
        "//",
        ".",
        "..",
        "/..",
        "../a",
        "a/../..",
        "a/../b",
        "a/./b",
        "./a",
        "a/",
        "//a",
        "a//b",
        "a\\b",
        "\\a",
        "\\\\a\\b",
        "..\\a",
        "b/..",
        "///",
    ]
)
PATHS = st.integers(0, 9).flatmap(lambda number: ODD if number == 0 else CLEAN)
PATTERNS = st.sampled_from(
    [
        "*",
        "/*",
        "/*/*",
        "**",
        "/**",
        "/a/**",
        "/**/b",
        "/**/*",
        "/?",
        "/[ab]",
        "/[!a]*",
        "/a/*",
        "\\a\\*",
        "",
        "/",
        "..",
        "/../*",
        "./a",
        "/**/a/**",
        "a/b",
        "*/",
    ]
)
LENGTHS = st.sampled_from([0, 1, 2, 5, 100, 255, 256, 257, 1000, 4095, 4096, 4097, 9000, 20_000])
OFFSETS = st.sampled_from([0, 0, 1, 3, 100, 255, 256, 300, 4095, 4096, 5000, 9000, -1, -3, -256, -5000])
MODES = ["rb", "wb", "ab", "r+b", "xb"]


def payload(length: int, seed: int) -> bytes:
    """Bytes in which a shifted or stale stretch shows, with line ends among them."""
    block = bytes((seed * 31 + number * 7) % 251 for number in range(251)).replace(b"\x03", b"\n")
    return (block * (length // 251 + 1))[:length]


# --- outcomes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raised:
    """An error, by its nearest built-in."""

    kind: type


def nearest_built_in(error: BaseException) -> type:
    """The first class of the standard library among an error's bases."""
    return next(kind for kind in type(error).__mro__ if kind.__module__ in ("builtins", "io"))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the built-in that it raises."""
    try:
        return call()
    except (OSError, ValueError, TypeError, BufferError) as error:
        return Raised(nearest_built_in(error))


def names(result: Any) -> Any:
    """A list of names as a set, after looking that none is there twice."""
    if isinstance(result, Raised):
        return result
    assert len(result) == len(set(result)), f"named twice: {result}"
    return set(result)


def walked(steps: Any) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """What walk gave, comparable."""
    result: dict[str, tuple[frozenset[str], frozenset[str]]] = {}
    for path, dirs, files in steps:
        assert path not in result, f"walked twice: {path}"
        assert len(dirs) + len(files) == len({*dirs, *files})
        result[path] = frozenset(dirs), frozenset(files)
    return result


def resolved(path: str) -> str | None:
    """The path in its plain form, None if it escapes."""
    parts: list[str] = []
    for part in path.replace("\\", "/").split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def parents_of(path: str) -> list[str]:
    """The directories above a plain path, but the root."""
    parts = path[1:].split("/")
    return ["/" + "/".join(parts[:end]) for end in range(1, len(parts))]


@dataclass
class Pair:
    """The same file opened in both."""

    ours: Any
    theirs: Any
    path: str
    mode: str

    @property
    def open(self) -> bool:
        """Whether it is; both must agree."""
        assert self.ours.closed == self.theirs.closed
        return not self.ours.closed


class SideBySide(RuleBasedStateMachine):
    """Every operation that both have."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = MemoryFileSystem(QUOTA, default_lock_timeout=0.0)
        self.mark = mark_of(self.ours)
        self.theirs = dmemfs.MemoryFileSystem(QUOTA, default_lock_timeout=0.0)
        self.pairs: list[Pair] = []

    @initialize(deep=st.booleans())
    def begin(self, deep: bool) -> None:
        """Some examples begin with a tree."""
        if deep:
            for fs in (self.ours, self.theirs):
                fs.mkdir("/a/b")
                fs.mkdir("/b")
                with fs.open("/a/b/a", "wb") as handle:
                    handle.write(payload(5000, 1))
                with fs.open("/a/a", "wb") as handle:
                    handle.write(payload(100, 2))

    def both(self, call: Callable[[Any], Any], shape: Callable[[Any], Any] = lambda result: result) -> Any:
        """Make the same call on both, and expect the same."""
        ours, theirs = shape(outcome(lambda: call(self.ours))), shape(outcome(lambda: call(self.theirs)))
        assert ours == theirs, f"ours {ours!r}, D-MemFS {theirs!r}"
        return ours

    def held(self, path: str, exclusively: bool = False) -> bool:
        """Whether one of the pairs has this file open."""
        return any(pair.open and pair.path == path and not (exclusively and pair.mode == "rb") for pair in self.pairs)

    # --- the tree

    @rule(path=PATHS, exist_ok=st.booleans())
    def mkdir(self, path: str, exist_ok: bool) -> None:
        """mkdir, with parents."""
        self.both(lambda fs: fs.mkdir(path, exist_ok=exist_ok))

    @rule(path=PATHS)
    def remove(self, path: str) -> None:
        """remove, of anything."""
        self.both(lambda fs: fs.remove(path))

    @rule(path=PATHS)
    def rmtree(self, path: str) -> None:
        """rmtree, of anything."""
        if resolved(path) == "/" and path.replace("\\", "/").startswith("//"):
            excluded("two slashes")
            assert outcome(lambda: self.ours.rmtree(path)) == Raised(ValueError)
            return
        self.both(lambda fs: fs.rmtree(path))

    @rule(src=PATHS, dst=PATHS, name=st.sampled_from(["rename", "move"]))
    def rename(self, src: str, dst: str, name: str) -> None:
        """rename and move, of anything to anywhere."""
        plain_src, plain_dst = resolved(src), resolved(dst)
        if plain_src == "/" and src.replace("\\", "/").startswith("//") and plain_dst is not None:
            excluded("two slashes")
            assert outcome(lambda: getattr(self.ours, name)(src, dst)) == Raised(ValueError)
            return
        if plain_src is not None and plain_dst is not None and self.theirs.exists(src) and not self.theirs.exists(dst):
            if self.theirs.is_dir(src) and plain_dst.startswith(plain_src + "/"):
                excluded("into itself")
                result = outcome(lambda: getattr(self.ours, name)(src, dst))
                busy = any(pair.open and pair.path.startswith(plain_src + "/") for pair in self.pairs)
                orphan = not self.theirs.is_dir(posixpath.dirname(plain_dst))
                assert result == Raised(ValueError) or (isinstance(result, Raised) and (busy or orphan))
                return
            if name == "move" and self.theirs.is_file(posixpath.dirname(plain_dst)):
                excluded("below a file")
                result = outcome(lambda: self.ours.move(src, dst))
                assert isinstance(result, Raised) and issubclass(result.kind, OSError)
                return
        self.both(lambda fs: getattr(fs, name)(src, dst))

    @rule(src=PATHS, dst=PATHS)
    def copy(self, src: str, dst: str) -> None:
        """copy, of anything to anywhere."""
        plain = resolved(src)
        if (
            plain is not None
            and resolved(dst) is not None
            and self.held(plain, exclusively=True)
            and not self.theirs.exists(dst)
        ):
            excluded("copy waits")
            result = outcome(lambda: self.ours.copy(src, dst))
            assert result in (Raised(BlockingIOError), Raised(FileNotFoundError))
            return
        self.both(lambda fs: fs.copy(src, dst))

    @rule(src=PATHS, dst=PATHS)
    def copy_tree(self, src: str, dst: str) -> None:
        """copy_tree, of anything to anywhere, below itself too."""
        plain, target = resolved(src), resolved(dst)
        if plain is not None and target is not None and self.theirs.is_dir(src) and not self.theirs.exists(dst):
            below = plain.rstrip("/") + "/"
            writing = any(pair.open and pair.mode != "rb" and pair.path.startswith(below) for pair in self.pairs)
            if writing and self.theirs.is_dir(posixpath.dirname(target)):
                excluded("copy waits")
                assert outcome(lambda: self.ours.copy_tree(src, dst)) == Raised(BlockingIOError)
                return
        if sum(1 for _ in self.theirs.walk("/")) > 200:
            return  # copied into itself again and again a tree doubles each time
        self.both(lambda fs: fs.copy_tree(src, dst))

    @rule(tree=st.dictionaries(PATHS, st.tuples(LENGTHS, st.integers(0, 9)), max_size=4))
    def import_tree(self, tree: dict[str, tuple[int, int]]) -> None:
        """import_tree, of some files to anywhere."""
        files = {path: payload(*what) for path, what in tree.items()}
        plain = [resolved(path) for path in files]
        if None not in plain and not any(path is not None and self.held(path) for path in plain):
            above = {folder for path in plain if path for folder in parents_of(path)}
            over = any(path == "/" or path in above or self.theirs.is_dir(path) for path in plain if path)
            below = any(self.theirs.is_file(folder) for folder in above)
            if over or below:
                excluded("import over" if over else "import below")
                assert outcome(lambda: self.ours.import_tree(files)) in (Raised(IsADirectoryError), Raised(FileExistsError))
                return
            if len(set(plain)) < len(plain):
                return  # with two slashes D-MemFS takes them for two
        self.both(lambda fs: fs.import_tree(files))

    # --- looking

    @rule(path=PATHS)
    def look(self, path: str) -> None:
        """exists, is_dir, is_file, get_size, stat and listdir, of anything."""
        self.both(lambda fs: (fs.exists(path), fs.is_dir(path), fs.is_file(path)))
        self.both(lambda fs: fs.get_size(path))
        self.both(lambda fs: [fs.stat(path)[key] for key in ("size", "generation", "is_dir")])
        self.both(lambda fs: fs.listdir(path), names)

    @rule(path=PATHS)
    def walk(self, path: str) -> None:
        """walk, from anywhere."""
        plain = resolved(path)
        if plain is not None and path.replace("\\", "/").startswith("//") and not path.replace("\\", "/").startswith("///"):
            excluded("two slashes")
            assert outcome(lambda: walked(self.ours.walk(path))) == outcome(lambda: walked(self.theirs.walk(plain)))
            return
        self.both(lambda fs: walked(fs.walk(path)))

    @rule(path=PATHS, only_dirty=st.booleans())
    def export(self, path: str, only_dirty: bool) -> None:
        """export_tree of anything, and export_as_bytesio."""
        plain = resolved(path)
        two = path.replace("\\", "/").startswith("//") and not path.replace("\\", "/").startswith("///")
        theirs = plain if two and plain is not None else path
        if two:
            excluded("two slashes")
        below = (plain or "").rstrip("/") + "/"
        if any(pair.open and pair.mode != "rb" and (pair.path == plain or pair.path.startswith(below)) for pair in self.pairs):
            excluded("copy waits")
            if not only_dirty:
                assert outcome(lambda: self.ours.export_tree(path)) == Raised(BlockingIOError)
            return
        expected = outcome(lambda: self.theirs.export_tree(theirs, only_dirty))
        assert outcome(lambda: self.ours.export_tree(path, only_dirty)) == expected
        self.both(lambda fs: fs.export_as_bytesio(path).getvalue())

    @rule(pattern=PATTERNS)
    def glob(self, pattern: str) -> None:
        """glob; ours sorted, and each path once."""
        ours, theirs = self.ours.glob(pattern), self.theirs.glob(pattern)
        if len(theirs) > len(set(theirs)):
            excluded("glob repeats")
        assert ours == sorted(set(theirs))

    @rule()
    def stats(self) -> None:
        """The counts; what is charged differs, and has a machine of its own."""
        self.both(
            lambda fs: [fs.stats()[key] for key in ("file_count", "dir_count", "quota_bytes", "overhead_per_chunk_estimate")]
        )
        stats = self.ours.stats()
        assert sorted(stats) == sorted(self.theirs.stats())
        assert stats["used_bytes"] + stats["free_bytes"] == stats["quota_bytes"]

    # --- opening and closing

    @rule(path=PATHS, mode=st.sampled_from(MODES), preallocate=st.sampled_from([0, 0, 0, 0, 1, 300, 5000]))
    def open(self, path: str, mode: str, preallocate: int) -> None:
        """open in every mode, now and then with room made beforehand."""
        if sum(pair.open for pair in self.pairs) >= HANDLES_MAX:
            return
        if mode == "rb" and preallocate:
            plain = resolved(path)
            if plain is not None and self.theirs.is_file(path) and not self.held(plain, exclusively=True):
                excluded("reader preallocates")
                assert outcome(lambda: self.ours.open(path, mode, preallocate)) == Raised(io.UnsupportedOperation)
                return
            preallocate = 0
        ours = outcome(lambda: self.ours.open(path, mode, preallocate, lock_timeout=0.0))
        theirs = outcome(lambda: self.theirs.open(path, mode, preallocate, lock_timeout=0.0))
        if isinstance(ours, Raised) or isinstance(theirs, Raised):
            try:
                assert ours == theirs
            finally:
                for opened in (ours, theirs):
                    if not isinstance(opened, Raised):
                        opened.close()
            return
        plain = resolved(path)
        assert plain is not None
        self.pairs.append(Pair(ours, theirs, plain, mode))

    @rule(mode=st.sampled_from(["r", "w", "rt", "rb+", "w+b", ""]), path=CLEAN)
    def open_in_a_bad_mode(self, path: str, mode: str) -> None:
        """Other modes are refused alike."""
        assert self.both(lambda fs: fs.open(path, mode)) == Raised(ValueError)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """Close one; it stays among the pairs, so that closed handles are used too."""
        pair = data.draw(st.sampled_from(self.pairs))
        pair.ours.close()
        pair.theirs.close()
        closed = [other for other in self.pairs if not other.open]
        if len(closed) > 2:
            self.pairs.remove(closed[0])

    @rule(path=CLEAN, length=LENGTHS, seed=st.integers(0, 9))
    def write_whole(self, path: str, length: int, seed: int) -> None:
        """A whole file at once, so that there is something to work on."""
        self.both(lambda fs: _write_whole(fs, path, payload(length, seed)))

    # --- handles

    def on(self, data: st.DataObject, call: Callable[[Any], Any]) -> Any:
        """Make the same call on both handles of one pair."""
        pair = data.draw(st.sampled_from(self.pairs))
        ours, theirs = outcome(lambda: call(pair.ours)), outcome(lambda: call(pair.theirs))
        assert ours == theirs, f"{pair.mode} {pair.path}: ours {ours!r}, D-MemFS {theirs!r}"
        return ours

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), length=LENGTHS, seed=st.integers(0, 9), kind=st.sampled_from([bytes, bytearray, memoryview]))
    def write(self, data: st.DataObject, length: int, seed: int, kind: Callable[[bytes], Any]) -> None:
        """write, of what both take."""
        self.on(data, lambda handle: handle.write(kind(payload(length, seed))))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), value=st.sampled_from(["text", "", None, 5]))
    def write_no_buffer(self, data: st.DataObject, value: Any) -> None:
        """write, of what neither takes."""
        self.on(data, lambda handle: handle.write(value))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), lengths=st.lists(LENGTHS, max_size=3))
    def writelines(self, data: st.DataObject, lengths: list[int]) -> None:
        """writelines, each piece a write."""
        self.on(data, lambda handle: handle.writelines([payload(length, 3) for length in lengths]))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), size=st.sampled_from([-1, -7, 0, 1, 5, 300, 4096, 50_000]))
    def read(self, data: st.DataObject, size: int) -> None:
        """read, some or all."""
        self.on(data, lambda handle: handle.read(size))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 5, 300, 5000]))
    def readinto(self, data: st.DataObject, size: int) -> None:
        """readinto, and what it left in the buffer."""

        def call(handle: Any) -> tuple[int, bytes]:
            buffer = bytearray(b"." * size)
            return handle.readinto(buffer), bytes(buffer)

        self.on(data, call)

    @precondition(lambda self: self.pairs)
    @rule(
        data=st.data(),
        size=st.sampled_from([-1, 0, 1, 50, 1000]),
        count=st.integers(0, 3),
        hint=st.sampled_from([None, -1, 0, 1, 250, 251, 252, 502, 5000]),
    )
    def lines(self, data: st.DataObject, size: int, count: int, hint: int | None) -> None:
        """readline, iteration and readlines."""
        if size == 0 and not all(pair.open and pair.mode in ("rb", "r+b") for pair in self.pairs):
            excluded("empty readline")
        else:
            self.on(data, lambda handle: handle.readline(size))
        self.on(data, lambda handle: list(islice(handle, count)))
        self.on(data, lambda handle: handle.readlines(hint))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def readall(self, data: st.DataObject) -> None:
        """readall."""
        self.on(data, lambda handle: handle.readall())

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), offset=OFFSETS, whence=st.sampled_from([0, 0, 1, 2, 3]))
    def seek(self, data: st.DataObject, offset: int, whence: int) -> None:
        """seek, to where it is allowed and where it is not."""
        self.on(data, lambda handle: handle.seek(offset, whence))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), size=st.one_of(st.none(), OFFSETS))
    def truncate(self, data: st.DataObject, size: int | None) -> None:
        """truncate, to any size or to the position."""
        self.on(data, lambda handle: handle.truncate(size))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        """What a handle says of itself."""
        for call in ("readable", "writable", "seekable", "tell", "flush", "isatty", "fileno"):
            self.on(data, lambda handle, call=call: getattr(handle, call)())  # type: ignore[misc]

    # --- after every step

    @invariant()
    def same_tree(self) -> None:
        """Names, sizes, generations and contents."""
        theirs = walked(self.theirs.walk("/"))
        assert walked(self.ours.walk("/")) == theirs
        for directory, (_, files) in theirs.items():
            for name in files:
                path = posixpath.join(directory, name)
                ours, expected = self.ours.stat(path), self.theirs.stat(path)
                for key in ("size", "generation", "is_dir"):
                    assert ours[key] == expected[key], (path, key)  # type: ignore[literal-required]
                assert ours["abandoned"] is False
                assert ours["created_at"] <= ours["modified_at"]
                self.same_content(path)

    def same_content(self, path: str) -> None:
        """What is in a file, read through its own handle if it is open for writing, and not while it cannot be read."""
        node: Any = self.theirs._resolve_path(path)
        expected = node.storage.read_at(0, node.storage.get_size())
        if not self.held(path, exclusively=True):
            assert self.ours.read_bytes(path) == expected, path
            return
        for pair in self.pairs:
            if pair.open and pair.path == path and pair.mode == "r+b":
                position = pair.ours.tell()
                pair.ours.seek(0)
                assert pair.ours.read() == expected, path
                pair.ours.seek(position)

    @invariant()
    def same_positions(self) -> None:
        """Where each open handle stands."""
        for pair in self.pairs:
            if pair.open:
                assert pair.ours.tell() == pair.theirs.tell(), (pair.path, pair.mode)

    def teardown(self) -> None:
        """Close everything, compare once more, and check the store."""
        try:
            for pair in self.pairs:
                pair.ours.close()
                pair.theirs.close()
            self.same_tree()
            assert self.ours.locks() == []
            assert self.ours.check() == []
        finally:
            for pair in self.pairs:
                pair.ours.close()
                pair.theirs.close()
            self.ours.close()
        assert entries_of(self.mark) == []


def _write_whole(fs: Any, path: str, content: bytes) -> None:
    with fs.open(path, "wb", lock_timeout=0.0) as handle:
        handle.write(content)


TestSideBySide = SideBySide.TestCase
TestSideBySide.settings = settings()
