"""Stores as an fsspec filesystem: ``dshm://STORE/path``, for pandas, pyarrow, duckdb, dask and whatever else takes such URLs.

    fsspec.open("dshm://etl/in/a.csv")                  the store "etl" must stand
    fsspec.filesystem("dshm", store="etl")              the same store
    fsspec.filesystem("dshm", store="etl", create=True, max_quota=1 << 30)

Guarantees. A file that is opened in "wb" or "xb" is published when it is closed, at once for everybody, and nobody sees half
of it. ("ab" and "r+b" change a file in place, locked.) What is open for reading stays as it is, and holds up nobody. All that
a transaction writes is published at its end, at once for everybody, or not at all. `mv` of a file or directory is one step.
What is open is an ordinary `io` stream. Nothing is cached but the attachment, one for each thread and set of arguments; a
store that was destroyed and made again is attached again. A URL of another store is refused, not looked up in this one.

What ``with fs.open(path, "wb")`` writes is dropped if an exception leaves the block. Text streams, ``with fsspec.open(url)``
and libraries that are given a URL close the file without saying why, which publishes what was written until then: use a
transaction where that matters.

Errors are those of `MemoryFileSystem`; FileNotFoundError if there is no such store. Needs the extra ``fsspec``.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import functools
import glob
import hashlib
import io
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import MFSAbandonedFileError, MFSFileOpenError, MFSStoreGoneError, MFSViewError
from ..filesystem import MemoryFileSystem
from ..paths import canonical, parse
from ..store import names

try:
    from fsspec.compression import compr
    from fsspec.core import get_compression
    from fsspec.spec import AbstractFileSystem
    from fsspec.transaction import Transaction
    from fsspec.utils import read_block, stringify_path
except ImportError as error:
    raise ImportError("dshm:// needs fsspec: pip install 'dmemfs-shm[fsspec]'") from error

if TYPE_CHECKING:
    from ..handle import MemoryFileHandle

_PREFIX = "dshm://"


def name_here(store: str) -> str:
    """What the store of a URL is called in this process: as there, but STORE-a where DMEMFS_SHM_HOST is "a".

    So groups of processes on one machine act as on hosts of their own, under the same URLs. MFSParameterError if the two
    make no name.
    """
    host = os.environ.get("DMEMFS_SHM_HOST")
    return names.check_name(f"{store}-{host}") if host else store


def _split(url: str) -> tuple[str | None, str]:
    """The store that a URL names, None if it is a path, and the path in it."""
    if url.startswith(_PREFIX):
        store, _, path = url[len(_PREFIX) :].partition("/")
        return store, path
    return None, url.removeprefix("dshm::")


def _path_in(own: str | None, path: Any) -> Any:
    """The path within the store *own* (None: whichever), or a list of them: absolute, with nothing to resolve.

    ValueError for a URL of another store, an escape above the root and a NUL.
    """
    if isinstance(path, list):
        return [_path_in(own, each) for each in path]
    store, text = _split(stringify_path(path))
    if own is not None and store not in (None, own):
        raise ValueError(f"{path!r} is not in the store {own!r}, which this filesystem is of")
    return canonical(parse(text).parts)


class _StripProtocol:
    """`_strip_protocol`, which fsspec calls on the class and on instances. An instance knows whose paths it can take."""

    def __get__(self, fs: SharedMemoryFileSystem | None, cls: type) -> Any:
        return functools.partial(_path_in, None if fs is None else fs.store)


class _Transaction(Transaction):  # type: ignore[misc]
    """Files that are published together."""

    fs: Any
    files: deque[_Pending]

    def complete(self, commit: bool = True) -> None:
        """Publish the files, or drop them; the transaction is over in either case."""
        fs, self.fs = self.fs, None
        files, self.files = self.files, deque()
        fs._intrans, fs._transaction = False, None
        if commit and files:
            fs.publish({file.path: file.content() for file in files})


class SharedMemoryFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """One store. Paths are absolute in it, with or without ``dshm://STORE`` in front.

    store: its name. create, max_quota: make it if there is none, of so many bytes. auto_mkdir: writing makes the directories
    that are missing above. lock_timeout: seconds that whoever opens a file waits for it; None for ever.
    """

    protocol: ClassVar[str] = "dshm"
    root_marker: ClassVar[str] = "/"
    transaction_type: ClassVar[type] = _Transaction
    _strip_protocol: Any = _StripProtocol()

    def __init__(
        self,
        store: str,
        *,
        create: bool = False,
        max_quota: int | None = None,
        auto_mkdir: bool = True,
        lock_timeout: float | None = 30.0,
        **options: Any,
    ) -> None:
        if create and max_quota is None:
            raise ValueError("create needs max_quota, in bytes")
        super().__init__(**options)
        self.store = names.check_name(store)
        self.auto_mkdir = auto_mkdir
        self._create = create
        self._max_quota = max_quota
        self._lock_timeout = lock_timeout
        self._attached: MemoryFileSystem | None = None

    # ---- the store and its URLs

    @property
    def mfs(self) -> MemoryFileSystem:
        """The store. FileNotFoundError if there is none; attached anew if the one that was attached is gone."""
        mfs = self._attached
        if mfs is not None:
            try:
                mfs.is_dir("/")
            except (MFSStoreGoneError, ValueError):  # destroyed, or closed by somebody
                mfs = None
        if mfs is None:  # two threads may both come here: the attachment that one of them loses ends with its last use
            mfs = self._attached = self._attach()
        return mfs

    def _attach(self) -> MemoryFileSystem:
        name = name_here(self.store)
        if self._create and self._max_quota is not None:
            return MemoryFileSystem.create(name, self._max_quota, exist_ok=True, default_lock_timeout=self._lock_timeout)
        return MemoryFileSystem.attach(name, default_lock_timeout=self._lock_timeout)

    @property
    def fsid(self) -> str:
        return f"dshm-{self.mfs.uuid}"

    @staticmethod
    def _get_kwargs_from_urls(path: Any) -> dict[str, Any]:
        store, _ = _split(stringify_path(path))
        return {} if store is None else {"store": store}

    def unstrip_protocol(self, name: str) -> str:
        return f"{_PREFIX}{self.store}{self._strip_protocol(name)}"

    # ---- looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """name, type, size in bytes, created and modified (seconds since the epoch), generation. FileNotFoundError."""
        path = self._strip_protocol(path)
        found = self.mfs.stat(path)
        return {
            "name": path,
            "type": "directory" if found["is_dir"] else "file",
            "size": found["size"],
            "created": found["created_at"],
            "modified": found["modified_at"],
            "mtime": found["modified_at"],  # pyarrow's name for it
            "generation": found["generation"],
            "islink": False,
        }

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        mfs, found = self.mfs, []
        if not mfs.is_dir(path):
            found.append(self.info(path))
        else:
            for name in sorted(mfs.listdir(path)):
                try:
                    found.append(self.info(f"{path.rstrip('/')}/{name}"))
                except FileNotFoundError:  # removed since
                    continue
        return found if detail else [each["name"] for each in found]

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is a file or directory; False for a path that can't be one, and if there is no store."""
        return self._is(MemoryFileSystem.exists, path)

    def isfile(self, path: str) -> bool:
        return self._is(MemoryFileSystem.is_file, path)

    def isdir(self, path: str) -> bool:
        return self._is(MemoryFileSystem.is_dir, path)

    def _is(self, looks: Callable[[MemoryFileSystem, str], bool], path: str) -> bool:
        try:
            return looks(self.mfs, self._strip_protocol(path))
        except (ValueError, FileNotFoundError):
            return False

    def created(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["created"], tz=dt.UTC)

    def modified(self, path: str) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.info(path)["modified"], tz=dt.UTC)

    def ukey(self, path: str) -> str:
        """Another text whenever the content is another one."""
        info = self.info(path)
        facts = (self.mfs.uuid.hex, *(info[key] for key in ("name", "size", "created", "modified", "generation")))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    # ---- directories

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path, mfs = self._strip_protocol(path), self.mfs
        if not create_parents and not mfs.is_dir(self._parent(path)):
            raise FileNotFoundError(errno.ENOENT, "No such directory", self._parent(path))
        mfs.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.mfs.mkdir(self._strip_protocol(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """FileNotFoundError, NotADirectoryError, OSError(ENOTEMPTY)."""
        self.mfs._rmdir(self._strip_protocol(path))

    def _make_way(self, path: str) -> None:
        """See that there is a directory for a file to be written in."""
        parent, mfs = self._parent(path), self.mfs
        if mfs.is_dir(parent):
            return
        if not self.auto_mkdir:
            raise FileNotFoundError(errno.ENOENT, "No such directory", parent)
        mfs.mkdir(parent, exist_ok=True)

    # ---- files

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        *,
        lock_timeout: float | None = None,
        allow_abandoned: bool = False,
        space_timeout: float | None = 0.0,
        **_: Any,
    ) -> io.IOBase:
        """A stream in mode "rb", "wb", "xb", "ab" or "r+b"; "wb" and "xb" are atomic, "rb" is a look at the file's view.

        lock_timeout, allow_abandoned, space_timeout: as for `MemoryFileSystem.open`. With a lock_timeout of its own "rb" is
        locked for as long as it is open, too.
        Without *autocommit* (in a transaction), what is written stays in this process's own memory, beside the quota, until it
        is published: io.UnsupportedOperation for all modes but "rb" and "wb".
        """
        mode = "r+b" if mode == "rb+" else mode
        if not autocommit and mode != "rb":
            if mode != "wb":
                raise io.UnsupportedOperation(f"a transaction writes whole files, mode 'wb', not '{mode}'")
            return self._pending(path)
        if mode == "rb" and lock_timeout is None:
            with contextlib.suppress(MFSViewError):  # in pieces, and too large to be put into one: read it under its lock
                return _Reader(self.mfs.view(path, allow_abandoned=allow_abandoned), path)
        if mode not in ("rb", "r+b"):
            self._make_way(path)
        return self.mfs.open(
            path,
            mode,
            lock_timeout=lock_timeout,
            allow_abandoned=allow_abandoned,
            atomic=mode in ("wb", "xb"),
            space_timeout=space_timeout,
        )

    def open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **options: Any,
    ) -> Any:
        """As fsspec has it, but closing a stream with *compression* closes the file, too, which publishes it."""
        if compression is None or "b" not in mode:
            return super().open(path, mode, block_size, cache_options, compression, **options)
        file = super().open(path, mode, block_size, cache_options, **options)
        packed = compr[get_compression(stringify_path(path), compression)](file, mode=mode[0])
        if packed is not file:
            packed.close = functools.partial(_close_both, packed.close, file)
        return packed

    def _pending(self, path: str) -> _Pending:
        """A file of a transaction, after seeing that it can be made as things stand."""
        if self.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        if not self.auto_mkdir:
            self._make_way(path)
        return _Pending(self, path)

    def publish(self, contents: Mapping[str, bytes]) -> None:
        """Make all these files, path to content, at once for everybody, or none of them.

        One file is published as by `MemoryFileSystem.write_bytes`, several as by `import_tree`, after a wait of up to
        lock_timeout for those who have one of them open: then MFSLockTimeoutError or MFSFileOpenError.
        """
        mfs = self.mfs
        if len(contents) == 1:
            for path, content in contents.items():
                self._make_way(path)
                mfs.write_bytes(path, content)
            return
        deadline = None if self._lock_timeout is None else time.monotonic() + self._lock_timeout
        while True:
            try:
                mfs.import_tree(contents)
                break
            except MFSFileOpenError as busy:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise
                with contextlib.suppress(FileNotFoundError, MFSAbandonedFileError):  # nobody has it open any more
                    mfs.open(busy.path, "r+b", lock_timeout=left).close()

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self.mfs.read_bytes(path)
        with self.mfs.open(path) as file:
            return _part(file, start, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """The bytes from each start to each end, of each path; nothing else is copied. *max_gap* has no effect.

        Each file is opened once: all ranges of one are of the same content. An error takes the place of the bytes, or is
        raised if *on_error* is not "return".
        """
        starts = starts if isinstance(starts, Iterable) else [starts] * len(paths)
        ends = ends if isinstance(ends, Iterable) else [ends] * len(paths)
        wanted: dict[str, list[tuple[int, int | None, int | None]]] = {}
        for number, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
            wanted.setdefault(path, []).append((number, start, end))
        found: list[Any] = [None] * len(paths)
        for path, ranges in wanted.items():
            try:
                with self.mfs.open(self._strip_protocol(path)) as file:
                    for number, start, end in ranges:
                        found[number] = _part(file, start, end)
            except (OSError, ValueError) as error:
                if on_error != "return":
                    raise
                for number, _start, _end in ranges:
                    found[number] = error
        return found

    def read_block(self, fn: str, offset: int, length: int | None, delimiter: bytes | None = None) -> bytes:
        """*length* bytes (None: all) from *offset* on; with a *delimiter*, from behind the first to behind the last one."""
        with self.open(fn) as file:
            return read_block(file, offset, length, delimiter)  # type: ignore[no-any-return]

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **_: Any) -> None:
        """Make *value*, any buffer, the content of a file in one step; FileExistsError in mode "create" if there is one."""
        path = self._strip_protocol(path)
        if mode == "create" or self._intrans:
            with self.open(path, "xb" if mode == "create" else "wb") as file:
                file.write(value)
        else:
            self._make_way(path)
            self.mfs.write_bytes(path, value)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """An empty file. Without *truncate*, NotImplementedError if there is one: its time can't be set."""
        if truncate:
            self.pipe_file(path, b"")
            return
        try:
            self.pipe_file(path, b"", mode="create")
        except FileExistsError:
            raise NotImplementedError("a store sets the time of a file only with its content") from None

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file, published in one step; of a directory, make an empty one."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.mfs.is_dir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        with self.mfs.open(path1) as source:
            self._make_way(path2)
            with self.mfs.open(path2, "wb", atomic=True) as target:
                shutil.copyfileobj(source, target, 1 << 20)

    def mv_file(self, path1: str, path2: str, **_: Any) -> None:
        """A file or directory gets the name *path2*, in one step; a file that stands there is replaced by a file.

        Only where a file is replaced and another directory's quota counts there, it is copied, and removed then.
        """
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        self._make_way(path2)
        mfs = self.mfs
        try:
            mfs.move(path1, path2)
        except FileExistsError:
            if mfs.is_dir(path1):
                raise
            self._replace(path1, path2)

    def _replace(self, path1: str, path2: str) -> None:
        try:
            self.mfs.replace(path1, path2)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.cp_file(path1, path2)
            self.mfs.remove(path1)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any) -> None:
        """A file or directory, *recursive* or not, in one step; into *path2*, if that is a directory.

        Several (a list, a pattern that is no path that stands, *maxdepth*) are copied, and removed then.
        """
        if maxdepth is not None or isinstance(path1, list) or (glob.has_magic(str(path1)) and not self.exists(path1)):
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            return
        if stringify_path(path2).endswith("/") or self.isdir(target):
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        self.mv_file(source, target)

    def rm_file(self, path: str) -> None:
        self.mfs.remove(self._strip_protocol(path))

    _rm = rm_file  # the name that some callers still have for it

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Files, and empty directories; with *recursive* directories with everything in them, each at once for everybody."""
        whole = recursive and maxdepth is None
        for each in reversed(self.expand_path(path, recursive=recursive and not whole, maxdepth=maxdepth)):
            if not self.isdir(each):
                self.rm_file(each)
            elif not whole:
                self.rmdir(each)
            elif each != "/":
                self.mfs.rmtree(each)
            else:
                self._empty_the_root()

    def _empty_the_root(self) -> None:
        for each in self.ls("/"):
            if each["type"] == "file":
                self.rm_file(each["name"])
            else:
                self.mfs.rmtree(each["name"])


def _close_both(close: Callable[[], None], file: io.IOBase) -> None:
    try:
        close()
    finally:
        file.close()


def _part(file: MemoryFileHandle, start: int | None, end: int | None) -> bytes:
    """What a slice of the file's content would be."""
    first, last, _ = slice(start, end).indices(file.seek(0, 2))
    file.seek(first)
    return file.read(max(0, last - first))


class _Reader(io.RawIOBase):
    """A file as it is when it is opened, without a lock.

    Libraries keep what they read open for long, and some (duckdb) never close it. So it must not be in the way of those who
    replace, move or remove the file: a view is not.
    """

    mode = "rb"

    def __init__(self, view: Any, path: str) -> None:
        super().__init__()
        self._view = view
        self._bytes: memoryview = view.__enter__()
        self._pos = 0
        self.name = path
        self.size = len(self._bytes)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def readable(self) -> bool:
        self._check()
        return True

    def seekable(self) -> bool:
        self._check()
        return True

    def tell(self) -> int:
        self._check()
        return self._pos

    def seek(self, offset: int, whence: int = 0) -> int:
        self._check()
        base = {0: 0, 1: self._pos, 2: self.size}.get(whence)
        if base is None:
            raise ValueError(f"invalid whence: {whence}")
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._pos = base + offset
        return self._pos

    def read(self, size: int | None = -1) -> bytes:
        self._check()
        start = self._pos
        self._pos = max(start, self.size if size is None or size < 0 else min(self.size, start + size))
        return bytes(self._bytes[start : self._pos])

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        with memoryview(buffer) as target:
            data = self.read(target.nbytes)
            target.cast("B")[: len(data)] = data
            return len(data)

    def close(self) -> None:
        if not self.closed:
            self._view.release()
        super().close()


class _Pending(io.BytesIO):
    """A file that is to be published with others, or by its own `commit`; closing it only ends writing."""

    mode = "wb"

    def __init__(self, fs: SharedMemoryFileSystem, path: str) -> None:
        super().__init__()
        self._fs = fs
        self._content = b""
        self.path = path

    def content(self) -> bytes:
        """What was written until now."""
        return self._content if self.closed else self.getvalue()

    def close(self) -> None:
        if not self.closed:
            self._content = self.getvalue()
        super().close()

    def commit(self) -> None:
        """Publish this file alone."""
        self._fs.publish({self.path: self.content()})
        self.discard()

    def discard(self) -> None:
        self.close()
        self._content = b""
