"""The charge, exactly: a state machine in a small store against a model that knows the rule and nothing else.

The rule: a non-empty file is charged its size rounded up to 256 bytes, from 4 KiB up to whole pages, plus 128.  A file
open for writing is charged what it holds: wb keeps the old blocks for the coming bytes, close gives back what the size
does not need, truncate at once.  Removed or replaced content is charged until its last view or reader goes.  A write is
refused exactly when it would pass the quota, and then nothing has changed.

The directory /d has a quota of its own, at times: what is made in it is charged to that as well, and stays so until it is
gone, though the file moves, the quota is taken away, or the directory is another one by then.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSDirectoryQuotaError, MFSQuotaExceededError

from ..conftest import entries_of, mark_of

UNIT = 256
PAGE = 4096
PER_FILE = 128

PATHS = [f"/{directory}{name}" for directory in ("", "d/") for name in ("a", "b", "c", "e")]
SIZES = st.sampled_from([0, 1, 100, 255, 256, 257, 1000, 3840, 3841, 4095, 4096, 4097, 8192, 8193, 12_000, 20_000, 40_000])
QUOTAS = st.sampled_from([10, 384, 5000, 20_000, 48_000, 48_001, 70_000])


def charge(size: int) -> int:
    """What a closed file of `size` bytes is charged."""
    if size == 0:
        return 0
    unit = UNIT if size < PAGE else PAGE
    return -(-size // unit) * unit + PER_FILE


class Account:
    """The quota of a directory, while it has it and as long as anything is charged to it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit


class Content:
    """The bytes of one file, or of one that was: charged while a file, a reader or a view has them."""

    def __init__(self, data: bytes, held: int, account: Account | None) -> None:
        self.account = account
        self.data = bytearray(data)
        self.held = held
        self.views = self.readers = 0
        self.linked = True

    def __repr__(self) -> str:
        return f"<{len(self.data)} bytes, {self.held} charged, {self.views} views, {self.readers} readers, {self.linked=}>"

    @property
    def alive(self) -> bool:
        """Whether anybody has them."""
        return self.linked or self.views > 0 or self.readers > 0


@dataclass(eq=False)
class Opened:
    """An open handle and the content that it is on."""

    handle: Any = field(repr=False)
    path: str
    mode: str
    content: Content


class QuotaMachine(RuleBasedStateMachine):
    """Everything that changes the charge."""

    @initialize(quota=QUOTAS)
    def begin(self, quota: int) -> None:
        """A store of some small quota."""
        self.quota = quota
        self.fs = MemoryFileSystem(quota, default_lock_timeout=0.0)
        self.mark = mark_of(self.fs)
        self.fs.mkdir("/d")
        self.account: Account | None = None
        self.files: dict[str, Content] = {}
        self.contents: list[Content] = []
        self.opened: list[Opened] = []
        self.views: list[tuple[memoryview, Content, bytes]] = []
        self.seed = 0

    # --- the model

    @property
    def used(self) -> int:
        """What is charged now."""
        self.contents = [content for content in self.contents if content.alive]
        return sum(content.held for content in self.contents)

    @property
    def free(self) -> int:
        """What may still be charged."""
        return self.quota - self.used

    def charged_to(self, account: Account) -> int:
        """What is charged to a directory's quota."""
        return sum(content.held for content in self.contents if content.alive and content.account is account)

    def account_of(self, path: str) -> Account | None:
        """What a new file of that path is charged to."""
        return self.account if path.startswith("/d/") else None

    def new_content(self, data: bytes, account: Account | None) -> Content:
        """Content that a file has from now on."""
        content = Content(data, charge(len(data)), account)
        self.contents.append(content)
        return content

    def unlink(self, path: str) -> None:
        """The file at `path` has its content no more."""
        self.files.pop(path).linked = False

    def fill(self, size: int) -> bytes:
        """Fresh bytes, different each time."""
        self.seed += 1
        return bytes([self.seed % 255 + 1]) * size

    def is_open(self, path: str, writing: bool = False) -> bool:
        """Whether a handle is on the content that the file now has."""
        return any(
            entry.path == path and entry.content is self.files.get(path) and not (writing and entry.mode == "rb")
            for entry in self.opened
        )

    def attempt(self, call: Callable[[], Any], needed: int, account: Account | None) -> tuple[bool, Any]:
        """Make a call that needs so many bytes more: it must be refused exactly if they are not free, first by the directory's
        quota."""
        free, within = self.free, "the store"
        if account is not None and needed:
            theirs = max(0, account.limit - self.charged_to(account))
            if needed > theirs:
                free, within = theirs, "/d"
        refused: MFSQuotaExceededError | None = None
        result = None
        try:
            result = call()
        except MFSQuotaExceededError as error:
            event("refused")
            refused = error.with_traceback(None)
        assert (refused is not None) == (needed > free), f"needs {needed} of {free} free bytes: {refused or 'allowed'}"
        if refused is not None:
            assert getattr(refused, "path", "the store") == within
            assert refused.available == free
            assert refused.requested > free
        return refused is None, result

    # --- handles

    @rule(path=st.sampled_from(PATHS), preallocate=st.sampled_from([0, 0, 0, 300, 5000, 30_000]))
    def create(self, path: str, preallocate: int) -> None:
        """xb of a new file, with or without room made beforehand."""
        if path in self.files or len(self.opened) >= 4:
            return
        done, handle = self.attempt(lambda: self.fs.open(path, "xb", preallocate), charge(preallocate), self.account_of(path))
        if done:
            self.files[path] = content = self.new_content(bytes(preallocate), self.account_of(path))
            self.opened.append(Opened(handle, path, "xb", content))
        elif self.fs.exists(path):
            self.files[path] = self.new_content(b"", self.account_of(path))

    @rule(path=st.sampled_from(PATHS))
    def reopen(self, path: str) -> None:
        """wb of an old file: its blocks are kept for the coming bytes, or left to those who look at them."""
        if path not in self.files or self.is_open(path) or len(self.opened) >= 4:
            return
        content = self.files[path]
        self.opened.append(entry := Opened(self.fs.open(path, "wb"), path, "wb", content))
        self.unshare(entry)
        entry.content.data.clear()

    def unshare(self, entry: Opened) -> None:
        """A writer leaves content that views look at to them, and goes on with a copy of its own."""
        if entry.content.views:
            old = entry.content
            old.linked = False
            self.files[entry.path] = entry.content = self.new_content(b"", old.account)
            entry.content.data[:] = old.data

    @rule(
        path=st.sampled_from(PATHS),
        mode=st.sampled_from(["r+b", "ab"]),
        preallocate=st.sampled_from([0, 0, 0, 300, 5000, 30_000]),
    )
    def change(self, path: str, mode: str, preallocate: int) -> None:
        """r+b and ab of an old file."""
        if path not in self.files or self.is_open(path) or len(self.opened) >= 4:
            return
        content = self.files[path]
        size = max(preallocate, len(content.data))
        needed = self.needed(content, size) if size > len(content.data) else 0
        done, handle = self.attempt(lambda: self.fs.open(path, mode, preallocate), needed, content.account)
        if done:
            entry = Opened(handle, path, mode, content)
            if size > len(content.data):
                self.unshare(entry)
                entry.content.data.extend(bytes(size - len(entry.content.data)))
                entry.content.held = charge(size)
            self.opened.append(entry)

    def needed(self, content: Content, size: int) -> int:
        """What a change to `size` bytes needs: under a view all of it anew, else what passes the blocks it has."""
        return charge(size) if content.views else max(0, charge(size) - content.held)

    @rule(path=st.sampled_from(PATHS))
    def read(self, path: str) -> None:
        """rb, held open: the content is then kept when the file is replaced."""
        if path not in self.files or self.is_open(path, writing=True) or len(self.opened) >= 4:
            return
        content = self.files[path]
        content.readers += 1
        self.opened.append(Opened(self.fs.open(path, "rb"), path, "rb", content))

    @precondition(lambda self: any(entry.mode != "rb" for entry in self.opened))
    @rule(data=st.data(), size=SIZES, gap=st.sampled_from([0, 0, 0, 1, 5000]), back=st.sampled_from([None, None, 0, 100]))
    def write(self, data: st.DataObject, size: int, gap: int, back: int | None) -> None:
        """write at the end, behind it or over what is there."""
        entry = data.draw(st.sampled_from([entry for entry in self.opened if entry.mode != "rb"]))
        content, old = entry.content, len(entry.content.data)
        start = old if entry.mode == "ab" else old + gap if back is None else min(back, old)
        end = max(old, start + size) if size else old
        entry.handle.seek(start)
        payload = self.fill(size)
        needed = self.needed(content, end) if size else 0
        done, _ = self.attempt(lambda: entry.handle.write(payload), needed, content.account)
        if done and size:
            self.unshare(entry)
            content = entry.content
            content.data.extend(bytes(end - old))
            content.data[start : start + size] = payload
            content.held = max(content.held, charge(end))

    @precondition(lambda self: any(entry.mode != "rb" for entry in self.opened))
    @rule(data=st.data(), size=SIZES)
    def truncate(self, data: st.DataObject, size: int) -> None:
        """truncate, which gives back at once."""
        entry = data.draw(st.sampled_from([entry for entry in self.opened if entry.mode != "rb"]))
        if size == len(entry.content.data) and entry.content.views:
            return  # nothing to change, so views and writer may go on sharing
        done, _ = self.attempt(lambda: entry.handle.truncate(size), self.needed(entry.content, size), entry.content.account)
        if done:
            self.unshare(entry)
            content = entry.content
            del content.data[size:]
            content.data.extend(bytes(size - len(content.data)))
            content.held = charge(size)

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """close, which gives back what the size does not need."""
        entry = data.draw(st.sampled_from(self.opened))
        self.opened.remove(entry)
        if entry.mode == "rb":
            assert entry.handle.read() == entry.content.data
            entry.content.readers -= 1
        else:
            entry.content.held = charge(len(entry.content.data))
        entry.handle.close()

    # --- whole files

    @rule(path=st.sampled_from(PATHS), size=SIZES)
    def write_bytes(self, path: str, size: int) -> None:
        """write_bytes, which has old and new charged until it has replaced one by the other."""
        if self.is_open(path, writing=True):
            return
        payload = self.fill(size)
        done, _ = self.attempt(lambda: self.fs.write_bytes(path, payload), charge(size), self.account_of(path))
        if done:
            if path in self.files:
                self.unlink(path)
            self.files[path] = self.new_content(payload, self.account_of(path))

    @rule(src=st.sampled_from(PATHS), dst=st.sampled_from(PATHS))
    def copy(self, src: str, dst: str) -> None:
        """copy to where nothing is."""
        if src not in self.files or dst in self.files or self.is_open(src, writing=True):
            return
        data = bytes(self.files[src].data)
        done, _ = self.attempt(lambda: self.fs.copy(src, dst), charge(len(data)), self.account_of(dst))
        if done:
            self.files[dst] = self.new_content(data, self.account_of(dst))
        else:
            assert not self.fs.exists(dst)

    @rule(where=st.sampled_from(["/copy", "/d/copy"]))
    def copy_tree(self, where: str) -> None:
        """copy_tree of the directory, also into itself, and rmtree of the copy."""
        inside = [path for path in self.files if path.startswith("/d/")]
        if any(self.is_open(path, writing=True) for path in inside):
            return
        needed = sum(charge(len(self.files[path].data)) for path in inside)
        used = self.used
        done, _ = self.attempt(lambda: self.fs.copy_tree("/d", where), needed, self.account_of(where))
        assert self.fs.exists(where) == done
        if done:
            assert self.fs.stats()["used_bytes"] == used + needed
            self.fs.rmtree(where)

    @rule(src=st.sampled_from(PATHS), dst=st.sampled_from(PATHS))
    def rename(self, src: str, dst: str) -> None:
        """rename to where nothing is, which costs nothing, and does not cross into another quota."""
        if src not in self.files or dst in self.files or self.is_open(src):
            return
        if self.files[src].account is not self.account_of(dst):
            with pytest.raises(OSError, match="quota counts there"):
                self.fs.rename(src, dst)
            return
        self.fs.rename(src, dst)
        self.files[dst] = self.files.pop(src)

    @rule(src=st.sampled_from(PATHS), dst=st.sampled_from(PATHS))
    def move(self, src: str, dst: str) -> None:
        """move to where nothing is, which costs nothing but in another quota."""
        if src not in self.files or dst in self.files or self.is_open(src):
            return
        content, account = self.files[src], self.account_of(dst)
        crosses = content.account is not account
        if crosses and account is not None and content.held and content.held > account.limit - self.charged_to(account):
            with pytest.raises(MFSDirectoryQuotaError):
                self.fs.move(src, dst)
            return
        self.fs.move(src, dst)
        content.account = account
        self.files[dst] = self.files.pop(src)

    @rule(back=st.booleans())
    def move_directory(self, back: bool) -> None:
        """A directory with the files of the root moves into /d, and back: by copies, if there is a quota."""
        outside = [path for path in self.files if not path.startswith("/d/")]
        contents = [self.files[path] for path in outside]
        if any(self.is_open(path) or self.files[path].views for path in outside):
            return
        self.fs.mkdir("/m")
        for path in outside:
            self.fs.rename(path, "/m" + path)
        needed = sum(charge(len(content.data)) for content in contents)
        if self.account is None:
            self.fs.move("/m", "/d/m")
            done = True
        else:
            done, _ = self.attempt(lambda: self.fs.move("/m", "/d/m"), needed, self.account)
        if done:
            self.fs.move("/d/m", "/m")
        for path in outside:
            self.fs.rename("/m" + path, path)
        self.fs.rmtree("/m")

    @rule(src=st.sampled_from(PATHS), dst=st.sampled_from(PATHS))
    def replace(self, src: str, dst: str) -> None:
        """replace, which takes the old content of dst away from it."""
        if src not in self.files or src == dst or self.is_open(src) or self.is_open(dst, writing=True):
            return
        if self.files[src].account is not self.account_of(dst):
            with pytest.raises(OSError, match="quota counts there"):
                self.fs.replace(src, dst)
            return
        self.fs.replace(src, dst)
        if dst in self.files:
            self.unlink(dst)
        self.files[dst] = self.files.pop(src)

    @rule(path=st.sampled_from(PATHS))
    def remove(self, path: str) -> None:
        """remove."""
        if path in self.files and not self.is_open(path):
            self.fs.remove(path)
            self.unlink(path)

    @rule()
    def rmtree(self) -> None:
        """rmtree of the directory, which is then made again."""
        inside = [path for path in self.files if path.startswith("/d/")]
        if not any(self.is_open(path) for path in inside):
            self.fs.rmtree("/d")
            for path in inside:
                self.unlink(path)
            self.fs.mkdir("/d")
            self.account = None

    @rule(limit=st.sampled_from([None, 0, 384, 5000, 20_000, 48_000]))
    def set_quota(self, limit: int | None) -> None:
        """set_quota of /d: given and taken while it is empty, changed at any time."""
        if any(path.startswith("/d/") for path in self.files) and (self.account is None) != (limit is None):
            with pytest.raises(OSError, match="Only an empty directory"):
                self.fs.set_quota("/d", limit)
            return
        self.fs.set_quota("/d", limit)
        if limit is None:
            self.account = None
        elif self.account is None:
            self.account = Account(limit)
        else:
            self.account.limit = limit

    # --- views

    @rule(path=st.sampled_from(PATHS))
    def view(self, path: str) -> None:
        """view, which costs nothing."""
        if path not in self.files or self.is_open(path, writing=True) or len(self.views) >= 4:
            return
        content = self.files[path]
        self.views.append((self.fs.view(path), content, bytes(content.data)))
        content.views += 1

    @precondition(lambda self: self.views)
    @rule(data=st.data(), release=st.booleans())
    def drop(self, data: st.DataObject, release: bool) -> None:
        """Let a view go, released or collected."""
        view, content, expected = self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))
        assert view == expected
        content.views -= 1
        if release:
            view.release()
        del view
        gc.collect(0)

    # --- after every step

    @invariant()
    def exact(self) -> None:
        """used_bytes is what the model says, orphaned what no file has, and every file and view is what it was."""
        if not hasattr(self, "fs"):
            return
        stats = self.fs.stats()
        assert stats["used_bytes"] == self.used
        assert stats["used_bytes"] + stats["free_bytes"] == stats["quota_bytes"] == self.quota
        info: Any = self.fs.info()
        orphaned = info["orphaned"] if hasattr(info, "__getitem__") else info.orphaned
        assert orphaned == sum(content.held for content in self.contents if not content.linked)
        accounts = {content.account for content in self.contents if content.alive and content.held} | {self.account}
        expected = [
            ("/d" if account is self.account else "", account.limit, self.charged_to(account))
            for account in accounts
            if account
        ]
        assert sorted((path or "", limit, used) for path, limit, used in info["directory_quotas"]) == sorted(expected)
        for path, content in self.files.items():
            assert self.fs.get_size(path) == len(content.data)
            if not self.is_open(path, writing=True):
                assert self.fs.read_bytes(path) == content.data
        for view, _, expected in self.views:
            assert view == expected

    def teardown(self) -> None:
        """Close and drop everything: what is charged then is the files, and the store is sound."""
        if not hasattr(self, "fs"):
            return
        try:
            for entry in self.opened:
                entry.handle.close()
            self.opened.clear()
            self.views.clear()
            gc.collect()
            assert self.fs.check() == []
            assert self.fs.stats()["used_bytes"] == sum(charge(len(content.data)) for content in self.files.values())
            for path in self.files:
                self.fs.remove(path)
            assert self.fs.stats()["used_bytes"] == 0
            assert self.fs.check() == []
        finally:
            for entry in self.opened:
                entry.handle.close()
            self.fs.close()
        assert entries_of(self.mark) == []


TestQuotaMachine = QuotaMachine.TestCase
TestQuotaMachine.settings = settings()
