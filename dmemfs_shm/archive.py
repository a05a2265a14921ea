"""Archives into the filesystem: `expand_archive`, all or nothing, and `expand_archive_streaming`, entry by entry.

    expand_archive(fs, "daily.zip", "/in")
    expand_archive_streaming(fs, io.BytesIO(data), "/in", on_conflict="skip")

Zip and tar (plain, gzip, bzip2, xz) are known; an `ArchiveAdapter` of one's own adds another format. Nothing in an
archive leads outside the destination, and only files come out of one: directories are made for the files in them, and
links, devices and the like are passed over. What an entry claims to need is compared with the quota before its bytes are
read, so that a small archive of something enormous ends in MFSQuotaExceededError and not in the memory of this process.
"""

from __future__ import annotations

import os
import posixpath
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from .errors import MFSQuotaExceededError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .filesystem import MemoryFileSystem

Source = Any
"""A path on disk (str, os.PathLike) or a seekable binary file object: BytesIO, or an open file of a filesystem."""


class _Entry(NamedTuple):
    """A file of an archive, perhaps not yet read. path: as it is written there; size: bytes that `read` returns at most."""

    path: str
    size: int
    read: Callable[[], bytes]


class ArchiveAdapter(ABC):
    """Reads one format. A format of one's own is a subclass with `members` and `_can_handle_impl`.

    To be found by itself it is made as ``Adapter(source)``; as an instance (``adapter=``) it may be made in any way.
    """

    @abstractmethod
    def members(self) -> Iterator[tuple[str, bytes]]:
        """(path, content) of each file, no directories; the path as it is written in the archive."""

    @classmethod
    def can_handle(cls, source: Source) -> bool:
        """Whether *source* is of this format. Never raises, and leaves a file object where it stood. Not to be overridden."""
        try:
            if not hasattr(source, "seek"):
                return cls._can_handle_impl(source)
            position = source.tell()
            try:
                return cls._can_handle_impl(source)
            finally:
                source.seek(position)
        except Exception:  # noqa: BLE001  (what can't be looked at can't be read)
            return False

    @classmethod
    @abstractmethod
    def _can_handle_impl(cls, source: Source) -> bool:
        """Whether *source* is of this format; an exception means no, and the position may be left anywhere."""

    def close(self) -> None:  # noqa: B027  (most have nothing to release)
        """Release what the adapter holds; called when the archive was read, or could not be."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _StandardAdapter(ArchiveAdapter):
    """A format of the standard library, which knows the size of a file before it reads it."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @abstractmethod
    def _entries(self) -> Iterator[_Entry]:
        """The files; each is to be read, if at all, before the next is asked for."""

    def members(self) -> Iterator[tuple[str, bytes]]:
        for entry in self._entries():
            yield entry.path, entry.read()


class ZipAdapter(_StandardAdapter):
    """Zip archives. Of several entries with one name each has the content of the last, as `zipfile` finds it by name."""

    def _entries(self) -> Iterator[_Entry]:
        import zipfile

        with zipfile.ZipFile(self._source) as archive:
            for name in archive.namelist():
                info = archive.getinfo(name)
                if not info.is_dir():
                    yield _Entry(name, info.file_size, lambda info=info: _read_zipped(archive, info))  # type: ignore[misc]

    @classmethod
    def _can_handle_impl(cls, source: Source) -> bool:
        import zipfile

        return zipfile.is_zipfile(source)


def _read_zipped(archive: Any, info: Any) -> bytes:
    """The content of an entry, unpacking no more than it says it has; its checksum is compared at the end."""
    with archive.open(info.filename) as file:
        content: bytes = file.read(info.file_size)
        return content or file.read(1)  # of nothing, the end is seen only by asking for more


class TarAdapter(_StandardAdapter):
    """Tar archives, plain or compressed by gzip, bzip2 or xz, read from front to back."""

    def _entries(self) -> Iterator[_Entry]:
        import tarfile

        where = {"fileobj": self._source} if hasattr(self._source, "read") else {"name": self._source}
        with tarfile.open(**where) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield _Entry(member.name, member.size, file.read)

    @classmethod
    def _can_handle_impl(cls, source: Source) -> bool:
        import tarfile

        return tarfile.is_tarfile(source)


_ADAPTERS: list[type[ArchiveAdapter]] = [ZipAdapter, TarAdapter]


def expand_archive(
    mfs: MemoryFileSystem,
    source: Source,
    dest: str | os.PathLike[str] = "/",
    *,
    on_conflict: Literal["raise", "overwrite"] = "raise",
    adapter: ArchiveAdapter | None = None,
    adapters: list[type[ArchiveAdapter]] | None = None,
) -> None:
    """Put the files of an archive into the filesystem, below *dest*: all of them or, if it fails, none.

    All are in the memory of this process before the first is stored; see `expand_archive_streaming`.

    source: a path on disk, or a seekable binary file object. on_conflict: "raise" refuses a path that stands or comes
    twice (FileExistsError), "overwrite" takes the later one with a UserWarning; a directory in the way is always
    IsADirectoryError. adapter: reads the archive, *source* is not looked at then. adapters: classes to choose from
    instead of zip and tar, the first that can.

    ValueError (on_conflict, an archive of no known format, a *dest* above the root), MFSQuotaExceededError,
    MFSNodeLimitExceededError, MFSFileOpenError, and what zipfile and tarfile raise for a damaged archive.
    """
    _check_choice("expand_archive", on_conflict, ("overwrite", "raise"))
    reader = adapter if adapter is not None else _detect(source, adapters)
    room = _Room(mfs)
    tree: dict[str, bytes] = {}
    with reader:
        for path, entry in _files(reader, dest):
            room.take(entry.size - len(tree.get(path, b"")))
            content = entry.read()
            if path in tree:
                _twice(path).settle(on_conflict)
            tree[path] = content
    for path in tree:
        if _stands(mfs, path):
            _standing(path).settle(on_conflict)
    mfs.import_tree(tree)


def expand_archive_streaming(
    mfs: MemoryFileSystem,
    source: Source,
    dest: str | os.PathLike[str] = "/",
    *,
    on_conflict: Literal["raise", "overwrite", "skip"] = "raise",
    adapter: ArchiveAdapter | None = None,
    adapters: list[type[ArchiveAdapter]] | None = None,
) -> int:
    """Put the files of an archive into the filesystem one after the other; returns how many were written.

    One file at a time is in the memory of this process. What was written before an error stays, and the file that did not
    fit stays empty. Arguments and exceptions are those of `expand_archive`; on_conflict "skip" keeps what stands and the
    first of several entries with one path. An entry that replaces an earlier one of the archive counts again.
    """
    _check_choice("expand_archive_streaming", on_conflict, ("overwrite", "raise", "skip"))
    reader = adapter if adapter is not None else _detect(source, adapters)
    room = _Room(mfs)
    written = 0
    seen: set[str] = set()
    with reader:
        for path, entry in _files(reader, dest):
            content = entry.read() if entry.size <= room.quota else None
            conflict = _twice(path) if path in seen else _standing(path) if _stands(mfs, path) else None
            seen.add(path)
            if conflict is not None:
                if on_conflict == "skip":
                    continue
                conflict.settle(on_conflict)
            mfs.mkdir(posixpath.dirname(path) or "/", exist_ok=True)
            if content is None:
                room.refuse(path, entry.size)
            else:
                with mfs.open(path, "wb") as file:
                    file.write(content)
            written += 1
    return written


# ---- helpers of both


def _check_choice(function: str, on_conflict: str, choices: tuple[str, ...]) -> None:
    if on_conflict not in choices:
        raise ValueError(f"Invalid on_conflict={on_conflict!r}. {function}() accepts: {list(choices)}")


def _detect(source: Source, adapters: list[type[ArchiveAdapter]] | None) -> ArchiveAdapter:
    choices = _ADAPTERS if adapters is None else adapters
    for each in choices:
        if each.can_handle(source):
            make: Any = each  # what a class of the user's takes is up to him, as long as it takes a source
            reader: ArchiveAdapter = make(source)
            return reader
    tried = [each.__name__ for each in choices]
    raise ValueError(f"No registered adapter can handle the given source. Tried adapters: {tried}")


def _files(reader: ArchiveAdapter, dest: str | os.PathLike[str]) -> Iterator[tuple[str, _Entry]]:
    """The files of an archive, each with its path below the destination; those are left out that have no name of their own."""
    prefix = os.fspath(dest).rstrip("/")
    standard = isinstance(reader, _StandardAdapter) and type(reader).members is _StandardAdapter.members
    for entry in reader._entries() if standard else _read(reader):  # type: ignore[attr-defined]
        inside = _inside(entry.path)
        if inside:
            yield f"{prefix}/{inside}", entry


def _read(reader: ArchiveAdapter) -> Iterator[_Entry]:
    """The files of an adapter that has them only whole."""
    for path, content in reader.members():
        yield _Entry(path, len(content), lambda content=content: content)  # type: ignore[misc]


def _inside(path: str) -> str:
    """The path as one that leads down only: no root, no ".."; "" if nothing is left of it."""
    path = path.replace("\\", "/").lstrip("/")
    parts = posixpath.normpath(path).split("/") if path else []
    return "/".join(part for part in parts if part and part != "..")


class _Conflict(NamedTuple):
    """A path that is taken: what to say when that is refused, and when it is not."""

    refusal: str
    warning: str

    def settle(self, on_conflict: str) -> None:
        """FileExistsError, or a warning where the user called."""
        if on_conflict == "raise":
            raise FileExistsError(self.refusal)
        warnings.warn(self.warning, UserWarning, stacklevel=3)


def _twice(path: str) -> _Conflict:
    return _Conflict(
        f"Duplicate path in archive (after sanitization): {path!r}",
        f"Duplicate archive entry {path!r}; later entry will overwrite earlier one.",
    )


def _standing(path: str) -> _Conflict:
    return _Conflict(f"File already exists in MFS: {path!r}", f"Existing MFS file {path!r} will be overwritten.")


def _stands(mfs: MemoryFileSystem, path: str) -> bool:
    """Whether there is a file. IsADirectoryError."""
    if mfs.is_dir(path):
        raise IsADirectoryError(f"Cannot extract file over existing directory: {path!r}")
    return mfs.is_file(path)


class _Room:
    """What can never fit is not read at all: it would have to be in the memory of this process first."""

    def __init__(self, mfs: MemoryFileSystem) -> None:
        self._mfs = mfs
        self.quota = mfs.stats()["quota_bytes"]
        self._taken = 0

    def take(self, size: int) -> None:
        """So many bytes more (fewer, if an entry replaces a larger one). MFSQuotaExceededError."""
        self._taken += size
        if self._taken > self.quota:
            raise MFSQuotaExceededError(self._taken, self._mfs.stats()["free_bytes"])

    def refuse(self, path: str, size: int) -> None:
        """Raise what writing a file of that size would raise, and leave what it would leave: an empty file."""
        with self._mfs.open(path, "wb"):
            raise MFSQuotaExceededError(size, self._mfs.stats()["free_bytes"])
