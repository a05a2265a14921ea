"""Stores as an fsspec filesystem: ``dshm://STORE/path``, for pandas, pyarrow, duckdb, dask and whatever else takes such URLs.

    fsspec.open("dshm://etl/in/a.csv")                  the store "etl" must stand
    fsspec.filesystem("dshm", store="etl")              the same store
    fsspec.filesystem("dshm", store="etl", create=True, max_quota=1 << 30)

Guarantees. A file that is opened for writing is published when it is closed, at once for everybody, or never: readers keep
what they have open, and nobody sees half of it. (In "ab" and "r+b", which change a file in place, it is locked instead.) So
it is with what a transaction writes, when the transaction ends. Renaming within a store is one step. What is open is an
ordinary `io` stream. Nothing is cached but the attachment, one for each process and set of arguments; a store that was
destroyed and made again is attached again.

Errors are those of `MemoryFileSystem`. Needs the extra ``fsspec``.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import MFSStoreGoneError
from ..filesystem import MemoryFileSystem

try:
    from fsspec.spec import AbstractFileSystem
except ImportError as error:
    raise ImportError("dshm:// needs fsspec: pip install 'dmemfs-shm[fsspec]'") from error

if TYPE_CHECKING:
    from ..handle import MemoryFileHandle

_PREFIX = "dshm://"


class SharedMemoryFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """One store. Paths are absolute in it, with or without ``dshm://STORE`` in front.

    store: its name. create, max_quota: make it if there is none, of so many bytes. auto_mkdir: writing makes the directories
    that are missing above. lock_timeout: seconds that whoever opens a file waits for it; None for ever.
    """

    protocol: ClassVar[str] = "dshm"
    root_marker: ClassVar[str] = "/"

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
        super().__init__(
            store=store, create=create, max_quota=max_quota, auto_mkdir=auto_mkdir, lock_timeout=lock_timeout, **options
        )
        self.store = store
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
            except (MFSStoreGoneError, ValueError):
                mfs = None
        if mfs is None:
            mfs = self._attached = self._attach()
        return mfs

    def _attach(self) -> MemoryFileSystem:
        if self._create and self._max_quota is not None:
            return MemoryFileSystem.create(self.store, self._max_quota, exist_ok=True, default_lock_timeout=self._lock_timeout)
        return MemoryFileSystem.attach(self.store, default_lock_timeout=self._lock_timeout)

    @property
    def fsid(self) -> str:
        return f"dshm-{self.mfs.uuid}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path within the store, beginning with a slash and not ending with one."""
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text: str = os.fspath(path)
        if text.startswith(_PREFIX):
            text = text[len(_PREFIX) :].partition("/")[2]
        elif text.startswith("dshm::"):
            text = text[len("dshm::") :]
        return "/" + text.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        if path.startswith(_PREFIX):
            return {"store": path[len(_PREFIX) :].partition("/")[0]}
        return {}

    def unstrip_protocol(self, name: str) -> str:
        return f"{_PREFIX}{self.store}{self._strip_protocol(name)}"

    # ---- looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """name, type, size in bytes, created and modified (seconds since the epoch), generation."""
        path = self._strip_protocol(path)
        found = self.mfs.stat(path)
        return {
            "name": path,
            "type": "directory" if found["is_dir"] else "file",
            "size": found["size"],
            "created": found["created_at"],
            "modified": found["modified_at"],
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
        return self.mfs.exists(self._strip_protocol(path))

    def isfile(self, path: str) -> bool:
        return self.mfs.is_file(self._strip_protocol(path))

    def isdir(self, path: str) -> bool:
        return self.mfs.is_dir(self._strip_protocol(path))

    def created(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.info(path)["created"], tz=datetime.UTC)

    def modified(self, path: str) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.info(path)["modified"], tz=datetime.UTC)

    def ukey(self, path: str) -> str:
        """Another text whenever the content is another one."""
        info = self.info(path)
        facts = (self.mfs.uuid.hex, *(info[key] for key in ("name", "size", "created", "modified", "generation")))
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def sign(self, path: str, expiration: int = 100, **_: Any) -> str:
        raise NotImplementedError("a store is in memory and has no address for others")

    # ---- directories

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        path, mfs = self._strip_protocol(path), self.mfs
        if not create_parents and not mfs.is_dir(self._parent(path)):
            raise FileNotFoundError(errno.ENOENT, "No such directory", self._parent(path))
        mfs.mkdir(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.mfs.mkdir(self._strip_protocol(path), exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        path, mfs = self._strip_protocol(path), self.mfs
        if mfs.listdir(path):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", path)
        mfs.rmtree(path)

    def _make_way(self, path: str) -> None:
        if self.auto_mkdir:
            self.mfs.mkdir(self._parent(path), exist_ok=True)

    # ---- files

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, autocommit: bool = True, **_: Any
    ) -> MemoryFileHandle | _Pending:
        """A stream. "wb" and "xb" are atomic; with *autocommit* false published by ``commit`` only."""
        if mode in ("wb", "xb"):
            self._make_way(path)
            handle = self.mfs.open(path, mode, atomic=True)
            return handle if autocommit else _Pending(handle)
        if mode == "ab":
            self._make_way(path)
        return self.mfs.open(path, mode)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self.mfs.read_bytes(path)
        with self.mfs.view(path) as view:
            return bytes(view[start:end])

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """The bytes from each start to each end, of each path; nothing else is copied."""
        if not isinstance(starts, list):
            starts = [starts] * len(paths)
        if not isinstance(ends, list):
            ends = [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("paths, starts and ends must be as many")
        found: list[Any] = []
        for path, start, end in zip(paths, starts, ends, strict=True):
            try:
                found.append(self.cat_file(path, start, end))
            except OSError as error:
                if on_error != "return":
                    raise
                found.append(error)
        return found

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        self._make_way(path)
        if mode == "create":
            with self.mfs.open(path, "xb", atomic=True) as file:
                file.write(value)
        else:
            self.mfs.write_bytes(path, value)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        path = self._strip_protocol(path)
        if truncate or not self.mfs.exists(path):
            self.pipe_file(path, b"")

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if self.mfs.is_dir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        self._make_way(path2)
        with self.mfs.view(path1) as view:
            self.mfs.write_bytes(path2, view)

    def mv_file(self, path1: str, path2: str) -> None:
        """In one step; what stands at *path2* is replaced."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        self._make_way(path2)
        if self.mfs.is_dir(path1):
            self.mfs.rename(path1, path2)
        else:
            self.mfs.replace(path1, path2)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **options: Any) -> None:
        """A file, or a directory with *recursive*, in one step; into *path2*, if that is a directory."""
        if maxdepth is not None or not isinstance(path1, str) or not isinstance(path2, str) or "*" in path1:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **options)
            return
        source, target = self._strip_protocol(path1), self._strip_protocol(path2)
        if source == target:
            return
        if self.mfs.is_dir(source) and not recursive:
            raise IsADirectoryError(errno.EISDIR, "Is a directory: say recursive=True", source)
        if path2.endswith("/") or self.mfs.is_dir(target):
            target = f"{target.rstrip('/')}/{source.rpartition('/')[2]}"
        self.mv_file(source, target)

    def _rm(self, path: str) -> None:
        self.mfs.remove(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        self._rm(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Files; with *recursive* directories with everything in them."""
        if maxdepth is not None:
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
            return
        for each in self.expand_path(path, recursive=False):
            if not self.mfs.is_dir(each):
                self.mfs.remove(each)
            elif recursive:
                self.mfs.rmtree(each)
            else:
                self.rmdir(each)


class _Pending(io.RawIOBase):
    """A file of a transaction: closing it ends writing, ``commit`` publishes it, ``discard`` drops it."""

    def __init__(self, handle: MemoryFileHandle) -> None:
        self._handle = handle.__enter__()  # so that its close does not publish

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._handle.write(data)

    def tell(self) -> int:
        return self._handle.tell()

    def commit(self) -> None:
        self._handle.__exit__(None, None, None)

    def discard(self) -> None:
        self._handle.discard()
