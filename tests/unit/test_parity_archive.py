"""expand_archive and expand_archive_streaming beside D-MemFS's: results, errors, warnings, and what is there afterwards.

Both get the same archives, the hostile ones among them, on trees of files and directories that are in the way.
"""

from __future__ import annotations

import io
import tarfile
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dmemfs
import dmemfs._archive
import pytest

import dmemfs_shm
from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.archive import ArchiveAdapter, TarAdapter, ZipAdapter, expand_archive, expand_archive_streaming

from ..conftest import MIB, Stores

Files = list[tuple[str, bytes]]

HOSTILE: dict[str, Files] = {
    "plain": [("a.txt", b"a"), ("d/b.txt", b"bb"), ("d/e/c.txt", b""), ("语/é ü.txt", b"names")],
    "nothing": [],
    "upwards": [("../a", b"1"), ("d/../../../b", b"2"), ("../../etc/passwd", b"3"), ("d/e/../c", b"4")],
    "only upwards": [("..", b"1"), ("../..", b"2"), ("/", b"3"), ("//", b"4")],
    "absolute": [("/etc/passwd", b"1"), ("//server/share/f", b"2")],
    "backslashes": [("d\\e\\f", b"1"), ("..\\..\\g", b"2"), ("\\\\server\\share\\h", b"3")],
    "drives": [("C:\\windows\\f", b"1"), ("C:g", b"2"), ("c:/h", b"3")],
    "dots": [("./a", b"1"), ("d/./b", b"2"), ("d//c", b"3"), ("...", b"4"), ("d/..e", b"5")],
    "the root": [("a", b"1"), (".", b"2")],
    "twice": [("a", b"first"), ("b", b"b"), ("a", b"second")],
    "twice in other words": [("a", b"first"), ("../a", b"second"), ("x/../a", b"third")],
    "over what stands": [("free", b"1"), ("file", b"new"), ("free too", b"2")],
    "over a directory": [("free", b"1"), ("directory", b"new"), ("free too", b"2")],
    "below what stands": [("free", b"1"), ("directory/new", b"new")],
}


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("an empty directory/", b"")
            for path, content in files:
                info = zipfile.ZipInfo("x")
                info.filename = path  # as it is: the constructor mends some
                archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def tarred(files: Files, compression: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        for path, kind in (
            ("an empty directory", tarfile.DIRTYPE),
            ("symbolic", tarfile.SYMTYPE),
            ("hard", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("disk", tarfile.BLKTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(path)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for path, content in files:
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Files], bytes]] = {
    "zip": zipped,
    "tar": tarred,
    "tar.gz": lambda files: tarred(files, "gz"),
    "tar.bz2": lambda files: tarred(files, "bz2"),
    "tar.xz": lambda files: tarred(files, "xz"),
}


class Both:
    """The same filesystem twice: ours and D-MemFS's."""

    def __init__(self, stores: Stores, max_quota: int = MIB, **options: Any) -> None:
        self.ours = stores.private(max_quota, **options)
        self.theirs = dmemfs.MemoryFileSystem(max_quota, **options)
        for fs in (self.ours, self.theirs):
            fs.mkdir("/directory")
            fs.mkdir("/in/directory")
            for path in ("/file", "/directory/file", "/in/file"):
                with fs.open(path, "wb") as handle:
                    handle.write(b"as it was")

    def same(self, call: Callable[[Any, Any], Any], *, words: bool = True) -> Any:
        """Make a call with each filesystem and its package; the outcome, which must be the same."""
        ours, theirs = outcome(call, self.ours, dmemfs_shm, words), outcome(call, self.theirs, dmemfs, words)
        assert ours == theirs
        assert tree(self.ours) == tree(self.theirs)
        return ours

    def changed(self) -> bool:
        return tree(self.ours) != BEFORE


BEFORE = {
    "/directory": None,
    "/in": None,
    "/in/directory": None,
    "/file": b"as it was",
    "/directory/file": b"as it was",
    "/in/file": b"as it was",
}


def outcome(call: Callable[[Any, Any], Any], fs: Any, package: Any, words: bool) -> Any:
    """What a call returns or raises, and the warnings with the place that they point to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(fs, package)
        except Exception as error:  # noqa: BLE001  (whatever it is, both must raise it)
            kind = next(each for each in type(error).__mro__ if not each.__module__.startswith("dmemfs"))
            result = kind, isinstance(error, package.MFSQuotaExceededError), error.args if words else ()
    return result, [(each.category, str(each.message), each.filename) for each in caught]


def tree(fs: Any) -> dict[str, bytes | None]:
    """Every path with its content, None for directories."""
    found: dict[str, bytes | None] = {}
    for above, directories, files in fs.walk("/"):
        found |= dict.fromkeys((f"{above.rstrip('/')}/{name}" for name in directories), None)
        for name in files:
            with fs.open(f"{above.rstrip('/')}/{name}") as handle:
                found[handle.name if hasattr(handle, "name") else handle._path] = handle.read()
    return found


@pytest.fixture
def both(stores: Stores) -> Both:
    return Both(stores)


@pytest.mark.parametrize("on_conflict", ["raise", "overwrite", "skip"])
@pytest.mark.parametrize("function", ["expand_archive", "expand_archive_streaming"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_all_kinds_of_names(stores: Stores, kind: str, function: str, on_conflict: str) -> None:
    for name, files in HOSTILE.items():
        data = FORMATS[kind](files)
        for dest in ("", "/in/", "\\in", "/new/deep", "/file", "/directory/file/below", "/.."):
            if dest in ("/file", "/directory/file/below") and function == "expand_archive" and files:
                continue  # below a file D-MemFS fails an assertion: see test_below_a_file
            if (name, dest, function) == ("the root", "/new/deep", "expand_archive"):
                continue  # a file over a directory of the same archive: there, too
            both = Both(stores)
            both.same(lambda fs, package: getattr(package, function)(fs, io.BytesIO(data), dest, on_conflict=on_conflict))  # noqa: B023


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("function", ["expand_archive", "expand_archive_streaming"])
def test_all_formats(both: Both, tmp_path: Path, kind: str, function: str) -> None:
    """From a file on disk, by str and by Path, and from a BytesIO, which is left where it is for others to look at."""
    path = tmp_path / f"archive.{kind}"
    path.write_bytes(FORMATS[kind](HOSTILE["plain"]))
    both.same(lambda fs, package: getattr(package, function)(fs, str(path), "/by/str"))
    both.same(lambda fs, package: getattr(package, function)(fs, path, "/by/path"))
    both.same(lambda fs, package: getattr(package, function)(fs, io.BytesIO(path.read_bytes()), "/by/bytes"))
    assert both.ours.read_bytes("/by/bytes/d/b.txt") == b"bb"
    assert not both.ours.exists("/by/bytes/symbolic")


@pytest.mark.parametrize("function", ["expand_archive", "expand_archive_streaming"])
def test_refusals(both: Both, tmp_path: Path, function: str) -> None:
    """Choices that there are not, and sources that nobody can read: before anything changes."""
    good = zipped(HOSTILE["plain"])
    for source in (
        io.BytesIO(b""),
        io.BytesIO(b"PK\3\4 and then nothing"),
        io.BytesIO(good[:30]),
        str(tmp_path),
        "/no such file",
        None,
    ):
        both.same(lambda fs, package, source=source: getattr(package, function)(fs, source))
    for on_conflict in ("", "ignore", None, "Raise"):
        both.same(
            lambda fs, package, on_conflict=on_conflict: getattr(package, function)(
                fs, io.BytesIO(good), on_conflict=on_conflict
            )
        )
    both.same(lambda fs, package: getattr(package, function)(fs, io.BytesIO(good), "/", "overwrite"))
    both.same(lambda fs, package: getattr(package, function)(fs, io.BytesIO(good), adapters=[]))
    assert not both.changed()


@pytest.mark.parametrize("function", ["expand_archive", "expand_archive_streaming"])
@pytest.mark.parametrize("on_conflict", ["raise", "overwrite"])
def test_damaged_archives(both: Both, function: str, on_conflict: str) -> None:
    """A byte of the content is wrong, or the end is missing: the standard library's error, and the same left behind."""
    files = [("first", b"1" * 5000), ("second", bytes(range(256)) * 40), ("file", b"new"), ("empty", b"")]
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        for path, content in files:
            archive.writestr(path, content)
    flipped = bytearray(stored.getvalue())
    flipped[flipped.index(bytes(range(256))) + 700] ^= 1
    inflated = bytearray(zipped(files))
    inflated[-400:-300] = bytes(100)
    gz = bytearray(tarred(files, "gz"))
    gz[len(gz) // 2] ^= 0xFF
    lying = bytearray(zipped([("empty", b"")]))
    lying[14:18] = b"\1\2\3\4"  # a checksum that no content of none has
    for at in range(len(lying) - 4):
        if lying[at : at + 4] == b"PK\1\2":
            lying[at + 16 : at + 20] = b"\1\2\3\4"
    for damaged in (flipped, inflated, gz, tarred(files)[:9000], lying):
        both.same(
            lambda fs, package, damaged=damaged: getattr(package, function)(
                fs, io.BytesIO(damaged), "/x", on_conflict=on_conflict
            )
        )


def test_below_a_file(both: Both) -> None:
    """A file where a directory is needed: nothing is changed. (D-MemFS fails an assertion, or loses a directory.)"""
    for files in ([("file/new", b"1")], [("a", b"1"), ("a/b", b"2")], [("a", b"1"), ("a/b/c", b"2")]):
        for kind in ("zip", "tar"):
            with pytest.raises(FileExistsError):
                expand_archive(both.ours, io.BytesIO(FORMATS[kind](files)))
            assert not both.changed()
    for files in ([("a/b", b"1"), ("a", b"2")], HOSTILE["the root"]):
        with pytest.raises(FileExistsError):
            expand_archive(both.ours, io.BytesIO(zipped(files)), "/new")
        assert not both.changed()


def test_streaming_below_a_file(both: Both) -> None:
    for files in ([("ok", b"0"), ("file/new", b"1")], [("a", b"1"), ("a/b", b"2")], [("c/b", b"1"), ("c", b"2")]):
        both.same(lambda fs, package, files=files: package.expand_archive_streaming(fs, io.BytesIO(tarred(files))))


def test_over_the_quota(stores: Stores) -> None:
    """All or nothing takes back what it has; streaming leaves what it wrote, and the file that did not fit, empty."""
    both = Both(stores, 64 << 10)
    large = zipped([("a", b"a" * 1000), ("file", b"new"), ("b", bytes(65 << 10)), ("c", b"c")])
    many = tarred([(str(number), bytes(25_000)) for number in range(3)])
    result = both.same(lambda fs, package: package.expand_archive(fs, io.BytesIO(many), "/new"), words=False)
    assert result == ((OSError, True, ()), [])
    assert not both.changed()
    for on_conflict in ("raise", "overwrite"):  # here ours asks for no more than it needs to know, and warns of nothing
        with pytest.raises(dmemfs_shm.MFSQuotaExceededError):
            expand_archive(both.ours, io.BytesIO(large), on_conflict=on_conflict)
        assert not both.changed()
    both.same(lambda fs, package: package.expand_archive_streaming(fs, io.BytesIO(many), "/new"), words=False)
    both.same(lambda fs, package: package.expand_archive_streaming(fs, io.BytesIO(large), on_conflict="overwrite"), words=False)
    both = Both(stores, 64 << 10)
    both.same(lambda fs, package: package.expand_archive_streaming(fs, io.BytesIO(large), on_conflict="overwrite"), words=False)
    assert tree(both.ours)["/b"] == b""
    assert tree(both.ours)["/a"] == b"a" * 1000


def test_over_the_node_limit(stores: Stores) -> None:
    both = Both(stores, max_nodes=9)
    source = io.BytesIO(zipped([("new/a", b"a"), ("b", b"b")]))
    both.same(lambda fs, package: package.expand_archive(fs, source))
    assert not both.changed()
    both.same(lambda fs, package: package.expand_archive_streaming(fs, source))
    assert tree(both.ours)["/new/a"] == b"a"


def test_over_an_open_file(both: Both) -> None:
    """A file that somebody has open is not replaced, and streaming keeps what it has written until then."""
    source = io.BytesIO(zipped([("a", b"a"), ("file", b"new"), ("b", b"b")]))
    with both.ours.open("/file"):
        with pytest.raises(BlockingIOError), pytest.warns(UserWarning, match="will be overwritten"):
            expand_archive_streaming(both.ours, source, on_conflict="overwrite")
    assert tree(both.ours) == BEFORE | {"/a": b"a"}


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("function", [expand_archive, expand_archive_streaming])
def test_bombs_are_not_unpacked(
    stores: Stores, kind: str, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What claims to be larger than the quota is refused without reading it into this process."""
    fs = stores.private(MIB)
    bomb = io.BytesIO(FORMATS[kind]([("small", b"s"), ("bomb", bytes(64 * MIB))]))
    assert len(bomb.getvalue()) < MIB
    largest = [0]

    def spied(real: Callable[..., bytes]) -> Callable[..., bytes]:
        def read(*arguments: Any) -> bytes:
            data = real(*arguments)
            largest[0] = max(largest[0], len(data))
            return data

        return read

    monkeypatch.setattr(zipfile.ZipExtFile, "read", spied(zipfile.ZipExtFile.read))
    monkeypatch.setattr(tarfile.ExFileObject, "read", spied(io.BufferedReader.read), raising=False)
    with pytest.raises(dmemfs_shm.MFSQuotaExceededError) as caught:
        function(fs, bomb)
    assert caught.value.requested >= 64 * MIB
    assert largest[0] == 1
    assert tree(fs) == ({} if function is expand_archive else {"/small": b"s", "/bomb": b""})


def test_a_zip_that_lies_about_its_size(stores: Stores) -> None:
    """An entry that says it is small is unpacked only as far as it says."""
    data = bytearray(zipped([("bomb", bytes(64 * MIB))]))
    for mark, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        start = data.index(b"bomb", data.index(mark)) if mark == b"PK\3\4" else data.rindex(b"bomb")
        start = data.rindex(mark, 0, start)
        data[start + at : start + at + 4] = (10).to_bytes(4, "little")
    fs = stores.private(MIB)
    tracemalloc.start()
    try:
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            expand_archive(fs, io.BytesIO(data))
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def test_many_small_ones_make_a_bomb(stores: Stores) -> None:
    """Entries that fit each, but not together, are read only until they pass the quota."""
    read = []

    class Endless(ArchiveAdapter):
        def members(self) -> Iterator[tuple[str, bytes]]:
            for number in range(1000):
                read.append(number)
                yield str(number), bytes(100 << 10)

        @classmethod
        def _can_handle_impl(cls, source: Any) -> bool:
            return True

    with pytest.raises(dmemfs_shm.MFSQuotaExceededError):
        expand_archive(stores.private(MIB), None, adapter=Endless())
    assert len(read) == 11


# --- adapters of one's own -------------------------------------------------------------------------------------------


def adapter_of(package: Any, log: list[str]) -> Any:
    """The same adapter for each package: lines of path=content."""

    class Lines(package.ArchiveAdapter):  # type: ignore[misc, name-defined]
        def __init__(self, source: io.BytesIO) -> None:
            self.source = source

        def members(self) -> Iterator[tuple[str, bytes]]:
            for line in self.source.getvalue().splitlines()[1:]:
                path, content = line.split(b"=")  # ValueError if the line is bad
                yield path.decode(), content

        @classmethod
        def _can_handle_impl(cls, source: Any) -> bool:
            log.append(f"at {source.tell()}")
            return bool(source.read(5) == b"LINES")

        def close(self) -> None:
            log.append("closed")

    return Lines


@pytest.mark.parametrize("function", ["expand_archive", "expand_archive_streaming"])
@pytest.mark.parametrize(
    ("content", "at"),
    [(b"LINES\na=1\n../b/c=2\n", 0), (b"LINES\na=1\na=2", 0), (b"LINES\na=1\nbad", 0), (b"LINES", 3), (b"other", 0)],
)
def test_adapters_of_ones_own(both: Both, function: str, content: bytes, at: int) -> None:
    logs: dict[str, list[str]] = {}

    def call(fs: Any, package: Any, by: str) -> Any:
        log = logs[package.__name__] = []
        adapter = adapter_of(package, log)
        standard = {"dmemfs": dmemfs._archive, "dmemfs_shm": dmemfs_shm}[package.__name__]
        source = io.BytesIO(content)
        source.seek(at)
        expand = getattr(package, function)
        try:
            if by == "instance":
                return expand(fs, None, "/x", adapter=adapter(source), adapters=[standard.ZipAdapter])
            return expand(fs, source, "/y", adapters=[standard.ZipAdapter, adapter, standard.TarAdapter])
        finally:
            log.append(f"left at {source.tell()}")

    for by in ("instance", "class"):
        both.same(lambda fs, package, by=by: call(fs, package, by))
        assert logs["dmemfs"] == logs["dmemfs_shm"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_the_standard_adapters(kind: str) -> None:
    """They can be used alone, and extended: what `members` gives is what is stored."""
    data = FORMATS[kind](HOSTILE["plain"] + HOSTILE["upwards"] + HOSTILE["backslashes"] + HOSTILE["twice"])
    name = "ZipAdapter" if kind == "zip" else "TarAdapter"
    ours = list(getattr(dmemfs_shm, name)(io.BytesIO(data)).members())
    assert ours == list(getattr(dmemfs._archive, name)(io.BytesIO(data)).members())


@pytest.mark.parametrize("base", [ZipAdapter, TarAdapter])
def test_a_filter_over_a_standard_adapter(fs: MemoryFileSystem, base: Any) -> None:
    class OnlyText(base):  # type: ignore[misc]
        def members(self) -> Iterator[tuple[str, bytes]]:
            for path, content in super().members():
                if path.endswith(".txt"):
                    yield path.upper(), content

    data = FORMATS["zip" if base is ZipAdapter else "tar"]([("a.txt", b"a"), ("b.bin", b"b")])
    expand_archive(fs, io.BytesIO(data), adapters=[OnlyText])
    assert tree(fs) == {"/A.TXT": b"a"}


def test_can_handle_never_raises() -> None:
    class Nervous(ArchiveAdapter):
        def members(self) -> Iterator[tuple[str, bytes]]:
            return iter(())

        @classmethod
        def _can_handle_impl(cls, source: Any) -> bool:
            raise RuntimeError("no idea")

    source = io.BytesIO(b"12345")
    source.seek(2)
    assert Nervous.can_handle(source) is False
    assert Nervous.can_handle("/nowhere") is False
    assert source.tell() == 2
    with pytest.raises(TypeError, match="abstract"):
        ArchiveAdapter()  # type: ignore[abstract]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_in_the_store(fs: MemoryFileSystem, kind: str) -> None:
    """An archive that is a file of the store itself is unpacked from there. (D-MemFS can do that with zip only.)"""
    fs.write_bytes("/archive", FORMATS[kind](HOSTILE["plain"]))
    with fs.open("/archive") as source:
        expand_archive(fs, source, "/out")
        source.seek(0)
        assert expand_archive_streaming(fs, source, "/out again") == 4
    assert fs.read_bytes("/out/a.txt") == fs.read_bytes("/out again/a.txt") == b"a"
