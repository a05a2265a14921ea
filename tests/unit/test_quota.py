"""The quota: what is charged, when it is given back, and that a refusal comes before a byte changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSNodeLimitExceededError, MFSQuotaExceededError

from ..conftest import Stores
from ..processes import call_in_child

UNIT = 256
PAGE = 4096
PER_FILE = 128


def charge(size: int, per_file: int = PER_FILE) -> int:
    """What a closed file of `size` bytes is charged."""
    if size == 0:
        return 0
    unit = UNIT if size < PAGE else PAGE
    return -(-size // unit) * unit + per_file


def used(fs: MemoryFileSystem) -> int:
    """The bytes charged now; used and free must make up the quota whenever somebody looks."""
    stats = fs.stats()
    assert stats["used_bytes"] + stats["free_bytes"] == stats["quota_bytes"]
    return stats["used_bytes"]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (1, 256 + 128),
        (256, 256 + 128),
        (257, 512 + 128),
        (3840, 3840 + 128),
        (3841, 4096 + 128),
        (4095, 4096 + 128),
        (4096, 4096 + 128),
        (4097, 8192 + 128),
        (1 << 20, (1 << 20) + 128),
        ((1 << 20) + 1, (1 << 20) + 4096 + 128),
    ],
)
def test_charge_of_a_file(fs: MemoryFileSystem, size: int, expected: int) -> None:
    """Rounded up to 256 bytes, from 4 KiB up to whole pages, and 128 for the file; nothing for an empty one."""
    assert charge(size) == expected
    with fs.open("/written", "wb") as handle:
        handle.write(bytes(size))
    assert used(fs) == expected
    fs.write_bytes("/at-once", bytes(size))
    assert used(fs) == 2 * expected


def test_charge_does_not_depend_on_how_it_was_written(fs: MemoryFileSystem) -> None:
    """A file of many small writes, one appended to, and one cut to size are charged alike."""
    with fs.open("/pieces", "wb") as handle:
        for _ in range(1000):
            handle.write(b"12345")
    with fs.open("/appended", "wb") as handle:
        handle.write(bytes(100))
    with fs.open("/appended", "ab") as handle:
        handle.write(bytes(4900))
    with fs.open("/cut", "wb") as handle:
        handle.write(bytes(100_000))
        handle.truncate(5000)
    assert used(fs) == 3 * charge(5000)


@pytest.mark.parametrize("per_file", [0, 1000])
def test_charge_per_file_is_a_parameter(stores: Stores, per_file: int) -> None:
    """chunk_overhead_override replaces the 128."""
    fs = stores.private(chunk_overhead_override=per_file)
    fs.write_bytes("/f", bytes(300))
    assert used(fs) == 512 + per_file
    assert fs.stats()["overhead_per_chunk_estimate"] == per_file


def test_directories_and_empty_files_are_free(stores: Stores) -> None:
    """A full store, even one of no useful size, takes directories and empty files without end."""
    fs = stores.private(max_quota=10)
    for number in range(300):
        fs.mkdir(f"/d/{number}")
        with fs.open(f"/d/{number}/f", "wb"):
            pass
    fs.copy_tree("/d", "/e")
    assert used(fs) == 0


def test_store_of_ten_bytes(stores: Stores) -> None:
    """It can be created, and refuses the first byte."""
    fs = stores.private(max_quota=10)
    assert fs.stats()["free_bytes"] == 10
    with fs.open("/f", "wb") as handle:
        with pytest.raises(MFSQuotaExceededError) as caught:
            handle.write(b"x")
    assert (caught.value.requested, caught.value.available) == (charge(1), 10)
    with pytest.raises(MFSQuotaExceededError):
        fs.write_bytes("/g", b"x")
    assert used(fs) == 0
    assert fs.get_size("/f") == 0


@pytest.mark.parametrize("size", [1, 256, 1000, 4096, 10_000, 1 << 20])
def test_the_last_byte_fits(stores: Stores, size: int) -> None:
    """A quota of exactly the charge takes the file; one byte less refuses it."""
    exact = stores.private(max_quota=charge(size))
    with exact.open("/f", "wb") as handle:
        handle.write(bytes(size))
    assert exact.stats()["free_bytes"] == 0
    short = stores.private(max_quota=charge(size) - 1)
    with short.open("/f", "wb") as handle:
        with pytest.raises(MFSQuotaExceededError):
            handle.write(bytes(size))
    assert used(short) == 0


def test_refused_write_changes_nothing(stores: Stores) -> None:
    """Content, size, generation, times, position and charge are as before; a write that fits goes on."""
    fs = stores.private(max_quota=charge(5000))
    with fs.open("/f", "wb") as handle:
        handle.write(b"a" * 4000)
        before, held = fs.stat("/f"), used(fs)
        with pytest.raises(MFSQuotaExceededError) as caught:
            handle.write(b"b" * 5000)
        assert caught.value.available == fs.stats()["free_bytes"]
        assert caught.value.requested > caught.value.available
        assert (fs.stat("/f"), used(fs), handle.tell()) == (before, held, 4000)
        handle.write(b"c" * 1000)
    assert fs.read_bytes("/f") == b"a" * 4000 + b"c" * 1000


def test_refused_overwrite_changes_nothing(stores: Stores) -> None:
    """A write that begins inside the file and passes the quota behind it writes nothing at all."""
    fs = stores.private(max_quota=charge(5000))
    fs.write_bytes("/f", b"a" * 5000)
    with fs.open("/f", "r+b") as handle:
        handle.seek(4000)
        with pytest.raises(MFSQuotaExceededError):
            handle.write(b"b" * 10_000)
        assert handle.tell() == 4000
    assert fs.read_bytes("/f") == b"a" * 5000


def test_overwriting_in_place_needs_no_free_quota(stores: Stores) -> None:
    """A full store lets every byte it holds be rewritten."""
    fs = stores.private(max_quota=charge(10_000))
    fs.write_bytes("/f", b"a" * 10_000)
    with fs.open("/f", "r+b") as handle:
        handle.write(b"b" * 10_000)
    assert fs.read_bytes("/f") == b"b" * 10_000


def test_growing_within_the_rounding_is_free(stores: Stores) -> None:
    """Bytes up to the next unit were charged with the first of them."""
    fs = stores.private(max_quota=charge(4097))
    fs.write_bytes("/f", bytes(4097))
    with fs.open("/f", "ab") as handle:
        handle.write(bytes(4095))
        with pytest.raises(MFSQuotaExceededError):
            handle.write(b"x")
    assert fs.get_size("/f") == 8192


def test_a_gap_is_charged_at_the_write(stores: Stores) -> None:
    """Seeking costs nothing, the write the whole size; a refused one leaves no zeros behind."""
    fs = stores.private(max_quota=charge(100_000))
    with fs.open("/f", "wb") as handle:
        handle.seek(99_990)
        assert used(fs) == 0
        with pytest.raises(MFSQuotaExceededError):
            handle.write(bytes(5000))
        assert (fs.get_size("/f"), used(fs)) == (0, 0)
        handle.write(bytes(10))
        assert used(fs) == charge(100_000)


def test_reopening_with_wb_keeps_the_blocks_until_close(fs: MemoryFileSystem) -> None:
    """wb holds the old blocks for the coming bytes; close gives back what the size does not need."""
    fs.write_bytes("/f", bytes(50_000))
    with fs.open("/f", "wb") as handle:
        assert (fs.get_size("/f"), used(fs)) == (0, charge(50_000))
        handle.write(bytes(1000))
        assert used(fs) == charge(50_000)
    assert used(fs) == charge(1000)


def test_reopening_with_wb_in_a_full_store(stores: Stores) -> None:
    """The same content can be written again though nothing is free, and nobody else takes the room meanwhile."""
    fs = stores.private(max_quota=charge(50_000))
    fs.write_bytes("/f", b"a" * 50_000)
    with fs.open("/f", "wb") as handle:
        with pytest.raises(MFSQuotaExceededError):
            fs.write_bytes("/g", b"x")
        handle.write(b"b" * 50_000)
    assert fs.read_bytes("/f") == b"b" * 50_000


def test_reopening_with_wb_and_growing(fs: MemoryFileSystem) -> None:
    """What passes the old blocks is charged as it comes."""
    fs.write_bytes("/f", bytes(5000))
    with fs.open("/f", "wb") as handle:
        handle.write(bytes(8192))
        assert used(fs) == charge(5000)
        handle.write(b"x")
        assert used(fs) == charge(8193)
    assert used(fs) == charge(8193)


def test_truncate_gives_back_at_once(fs: MemoryFileSystem) -> None:
    """A cut is free quota before the file is closed, and growing again is charged again."""
    with fs.open("/f", "wb") as handle:
        handle.write(bytes(50_000))
        for size in (20_000, 300, 0):
            handle.truncate(size)
            assert used(fs) == charge(size)
        handle.truncate(7000)
        assert used(fs) == charge(7000)
    assert used(fs) == charge(7000)


def test_truncate_after_reopening_gives_back_at_once(fs: MemoryFileSystem) -> None:
    """The blocks that wb kept go with an explicit truncate, before close."""
    fs.write_bytes("/f", bytes(50_000))
    with fs.open("/f", "wb") as handle:
        handle.write(bytes(1000))
        handle.truncate(500)
        assert used(fs) == charge(500)


def test_growing_by_truncate_is_refused(stores: Stores) -> None:
    """truncate passes no quota either, and a refused one changes nothing."""
    fs = stores.private(max_quota=charge(5000))
    fs.write_bytes("/f", b"a" * 5000)
    with fs.open("/f", "r+b") as handle:
        with pytest.raises(MFSQuotaExceededError):
            handle.truncate(50_000)
    assert fs.read_bytes("/f") == b"a" * 5000
    assert used(fs) == charge(5000)


def test_preallocate_is_charged_at_open(stores: Stores) -> None:
    """Preallocated bytes are charged at once and then written for nothing."""
    fs = stores.private(max_quota=charge(50_000))
    with fs.open("/f", "wb", preallocate=50_000) as handle:
        assert used(fs) == charge(50_000)
        handle.write(bytes(50_000))
    assert used(fs) == charge(50_000)


def test_refused_preallocation(stores: Stores) -> None:
    """A preallocation that passes the quota raises, charges nothing and leaves no lock."""
    fs = stores.private(max_quota=charge(5000))
    fs.write_bytes("/f", b"abc")
    for path, mode in (("/f", "r+b"), ("/f", "ab"), ("/new", "xb")):
        with pytest.raises(MFSQuotaExceededError):
            fs.open(path, mode, preallocate=50_000)
    assert fs.locks() == []
    assert fs.read_bytes("/f") == b"abc"
    assert used(fs) == charge(3)
    with fs.open("/new", "wb", lock_timeout=0.0) as handle:
        handle.write(b"x")


def test_remove_and_rmtree_give_back(fs: MemoryFileSystem) -> None:
    """What was charged is free when they return."""
    fs.mkdir("/d/e")
    for path in ("/d/1", "/d/e/2", "/3"):
        fs.write_bytes(path, bytes(5000))
    fs.remove("/3")
    assert used(fs) == 2 * charge(5000)
    fs.rmtree("/d")
    assert used(fs) == 0


def test_renames_cost_nothing(stores: Stores) -> None:
    """rename, move and replace work in a full store; replace gives back what it replaced."""
    fs = stores.private(max_quota=2 * charge(5000))
    fs.write_bytes("/a", bytes(5000))
    fs.write_bytes("/b", bytes(5000))
    fs.rename("/a", "/c")
    fs.move("/c", "/d/e")
    assert fs.stats()["free_bytes"] == 0
    fs.replace("/d/e", "/b")
    assert used(fs) == charge(5000)


def test_copies_are_charged(fs: MemoryFileSystem) -> None:
    """A copy is charged by its size, as if written."""
    fs.mkdir("/d")
    with fs.open("/d/f", "wb") as handle:
        handle.write(bytes(9000))
        handle.truncate(300)
    fs.write_bytes("/d/g", bytes(5000))
    fs.copy("/d/f", "/f")
    assert used(fs) == 2 * charge(300) + charge(5000)
    fs.copy_tree("/d", "/e")
    assert used(fs) == 3 * charge(300) + 2 * charge(5000)


def test_refused_copies_leave_nothing(stores: Stores) -> None:
    """A copy or tree that does not fit whole is not there in part."""
    fs = stores.private(max_quota=charge(5000) + charge(300) + charge(4096))
    fs.mkdir("/d/sub")
    fs.write_bytes("/d/small", bytes(300))
    fs.write_bytes("/d/sub/large", bytes(5000))
    with pytest.raises(MFSQuotaExceededError) as caught:
        fs.copy("/d/sub/large", "/copy")
    assert caught.value.available == charge(4096)
    with pytest.raises(MFSQuotaExceededError):
        fs.copy_tree("/d", "/tree")
    assert fs.listdir("/") == ["d"]
    assert used(fs) == charge(5000) + charge(300)
    assert fs.stats()["file_count"] == 2
    assert fs.stats()["dir_count"] == 3


def test_fragments_never_refuse_what_the_quota_allows(stores: Stores) -> None:
    """With every second small file gone, one large file takes all that became free, and again page by page."""
    count = 2000
    fs = stores.private(max_quota=count * charge(200))
    for number in range(count):
        fs.write_bytes(f"/{number}", bytes([number % 251]) * 200)
    with pytest.raises(MFSQuotaExceededError):
        fs.write_bytes("/more", b"x")
    for number in range(0, count, 2):
        fs.remove(f"/{number}")
    room = fs.stats()["free_bytes"]
    large = (room - PER_FILE) // PAGE * PAGE
    with fs.open("/large", "wb") as handle:
        for _ in range(large // PAGE):
            handle.write(b"L" * PAGE)
    assert fs.read_bytes("/large") == b"L" * large
    assert all(fs.read_bytes(f"/{number}") == bytes([number % 251]) * 200 for number in range(1, count, 2))


def test_filling_emptying_and_filling_again(stores: Stores) -> None:
    """The same quota holds the same files, round after round, in ever other sizes."""
    fs = stores.private(max_quota=1 << 20)
    for size in (100, 5000, 256, 70_000, 4096, 1):
        count = (1 << 20) // charge(size)
        for number in range(count):
            fs.write_bytes(f"/{number}", bytes(size))
        assert used(fs) == count * charge(size)
        with pytest.raises(MFSQuotaExceededError):
            fs.write_bytes("/more", bytes(size))
        for number in range(count):
            fs.remove(f"/{number}")
        assert used(fs) == 0


def _fill(fs: MemoryFileSystem, path: str, size: int) -> int:
    fs.write_bytes(path, bytes(size))
    free: int = fs.stats()["free_bytes"]
    return free


def test_one_quota_for_all_processes(named: MemoryFileSystem) -> None:
    """What a child writes is charged to the store that all see."""
    free = call_in_child("spawn", _fill, named, "/f", 5000)
    assert free == named.stats()["free_bytes"] == (16 << 20) - charge(5000)
    assert used(named) == charge(5000)


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_node_limit(stores: Stores) -> None:
    """max_nodes counts files and directories, the root among them; removing makes room."""
    fs = stores.private(max_nodes=4)
    fs.mkdir("/d")
    fs.write_bytes("/a", b"x")
    fs.write_bytes("/b", b"x")
    makers: list[Callable[[], object]] = [
        lambda: fs.open("/c", "wb"),
        lambda: fs.open("/c", "ab"),
        lambda: fs.open("/c", "xb"),
        lambda: fs.mkdir("/c"),
        lambda: fs.write_bytes("/c", b"x"),
        lambda: fs.copy("/a", "/c"),
        lambda: fs.copy_tree("/d", "/c"),
    ]
    for make in makers:
        with pytest.raises(MFSNodeLimitExceededError) as caught:
            make()
        assert (caught.value.current, caught.value.limit) == (4, 4)
        assert isinstance(caught.value, MFSQuotaExceededError)
    assert sorted(fs.listdir("/")) == ["a", "b", "d"]
    assert fs.stats()["used_bytes"] == 2 * charge(1)
    fs.write_bytes("/a", b"over what stands")
    fs.rename("/a", "/d/a")
    fs.remove("/b")
    fs.mkdir("/c")


def test_copy_tree_at_the_node_limit_leaves_nothing(stores: Stores) -> None:
    """A tree of more nodes than are left is not copied in part."""
    fs = stores.private(max_nodes=8)
    for number in range(4):
        fs.mkdir("/d", exist_ok=True)
        fs.write_bytes(f"/d/{number}", b"x")
    with pytest.raises(MFSNodeLimitExceededError):
        fs.copy_tree("/d", "/e")
    assert fs.listdir("/") == ["d"]
    assert used(fs) == 4 * charge(1)
    assert fs.stats()["file_count"] + fs.stats()["dir_count"] == 6
