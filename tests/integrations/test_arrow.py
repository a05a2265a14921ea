"""Tables and arrays on the store's own memory: by address, by the memory that a process has, and whatever happens meanwhile."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.errors import MFSQuotaExceededError
from dmemfs_shm.integrations.arrow import read_array, read_table, write_array, write_table

from ..conftest import Stores
from ..processes import call_in_child

pa = pytest.importorskip("pyarrow")

MIB = 1 << 20


@pytest.fixture
def large(stores: Stores) -> MemoryFileSystem:
    return stores.create(max_quota=256 * MIB)


def mappings(fs: MemoryFileSystem) -> list[range]:
    """The addresses of this process at which the store's arenas are mapped."""
    assert fs._store is not None
    found = []
    with open("/proc/self/maps") as file:
        for line in file:
            if f"dmemfs-{fs._store.uuid.hex}.a" in line:
                start, _, end = line.split()[0].partition("-")
                found.append(range(int(start, 16), int(end, 16)))
    return found


def is_inside(fs: MemoryFileSystem, address: int) -> bool:
    return any(address in each for each in mappings(fs))


def private_bytes() -> int:
    """Memory that is this process's alone."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith(("Private_Dirty", "Private_Clean")))


def table_of(rows: int) -> Any:
    return pa.table(
        {
            "number": pa.array(range(rows), pa.int64()),
            "ratio": pa.array(np.linspace(0, 1, rows)),
            "name": pa.array([f"row {number}" for number in range(rows)]),
            "kind": pa.array(["a", "b", None, "c"] * (rows // 4) + ["a"] * (rows % 4)).dictionary_encode(),
        }
    )


def addresses(table: Any) -> list[int]:
    return [
        buffer.address
        for column in table.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None and buffer.size
    ]


# ---- tables


@pytest.mark.parametrize("rows", [0, 1, 4, 5000])
def test_table(fs: MemoryFileSystem, rows: int) -> None:
    table = table_of(rows)
    size = write_table(fs, "/t.arrow", table)
    assert size == fs.get_size("/t.arrow")
    found = read_table(fs, "/t.arrow")
    assert found.equals(table)
    assert all(is_inside(fs, address) for address in addresses(found))
    with fs.open("/t.arrow") as file:
        assert pa.ipc.open_file(pa.BufferReader(file.read())).read_all().equals(table), "others read it, too"


def sums_in_place(fs: MemoryFileSystem, path: str) -> tuple[int, bool, int]:
    """In another process: the sum of a column, whether all of it is in the store, and what memory that took."""
    pa.array([1]).to_numpy()
    fs.stats()
    before = private_bytes()
    table = read_table(fs, path)
    total = int(table["number"].to_numpy().sum())
    grown = private_bytes() - before
    inside = all(is_inside(fs, address) for address in addresses(table))
    del table
    fs.close()
    return total, inside, grown


def test_table_in_another_process(large: MemoryFileSystem) -> None:
    """64 MiB of numbers, and it needs next to no memory of its own."""
    rows = 8 * MIB
    write_table(large, "/t.arrow", pa.table({"number": pa.array(np.arange(rows))}))
    total, inside, grown = call_in_child("spawn", sums_in_place, large, "/t.arrow")
    assert total == rows * (rows - 1) // 2
    assert inside
    assert grown < 8 * MIB, f"{grown / MIB:.1f} MiB more for a table of 64"


def test_a_table_outlives_its_file(fs: MemoryFileSystem) -> None:
    """Removed, replaced: what was read stays, charged, until the last column is gone."""
    write_table(fs, "/t.arrow", table_of(2000))
    table = read_table(fs, "/t.arrow")
    write_table(fs, "/t.arrow", table_of(10))
    column = table["name"]
    fs.remove("/t.arrow")
    del table
    assert column[1999].as_py() == "row 1999" and fs.info()["orphaned"] > 0
    del column
    fs.stats()
    assert fs.info()["orphaned"] == 0 and fs.stats()["used_bytes"] == 0 and not fs.check()


def test_a_record_batch_and_slices(fs: MemoryFileSystem) -> None:
    batch = table_of(100).to_batches()[0]
    write_table(fs, "/b.arrow", batch)
    assert read_table(fs, "/b.arrow").to_batches()[0].equals(batch)
    write_table(fs, "/s.arrow", table_of(5000).slice(1000, 7))
    assert read_table(fs, "/s.arrow")["number"].to_pylist() == list(range(1000, 1007))
    assert fs.get_size("/s.arrow") < 10_000, "only what is in the slice"


def test_what_is_no_arrow_file(fs: MemoryFileSystem) -> None:
    for content in b"", b"ARROW1", b"nothing of the kind" * 100:
        fs.write_bytes("/x", content)
        with pytest.raises(ValueError, match="Not an Arrow file: '/x'"):
            read_table(fs, "/x")
    fs.stats()
    assert fs.info()["orphaned"] == 0
    with pytest.raises(FileNotFoundError):
        read_table(fs, "/none")


def test_a_table_that_does_not_fit(stores: Stores) -> None:
    fs = stores.private(max_quota=64 << 10)
    write_table(fs, "/t.arrow", table_of(10))
    before = fs.read_bytes("/t.arrow"), fs.stats()["used_bytes"]
    with pytest.raises(MFSQuotaExceededError):
        write_table(fs, "/t.arrow", table_of(10_000))
    assert (fs.read_bytes("/t.arrow"), fs.stats()["used_bytes"]) == before and not fs.check()


# ---- arrays


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(24).reshape(2, 3, 4)[:, ::2, 1:],
        np.array(7),
        np.empty((0, 5)),
        np.array([("a", 1), ("b", 2)], dtype=[("name", "U3"), ("n", "<i4")]),
        np.arange(5, dtype=">u2"),
        np.array(["2024-01-01"], "M8[D]"),
    ],
    ids=["C", "Fortran", "strided", "of no dimension", "empty", "records", "big-endian", "dates"],
)
def test_array(fs: MemoryFileSystem, array: Any, tmp_path: Any) -> None:
    size = write_array(fs, "/a.npy", array)
    assert size == fs.get_size("/a.npy")
    found = read_array(fs, "/a.npy")
    assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    assert not found.flags.writeable or not found.size
    assert not found.size or is_inside(fs, found.__array_interface__["data"][0])
    assert not found.size or found.__array_interface__["data"][0] % 64 == 0
    (tmp_path / "a.npy").write_bytes(fs.read_bytes("/a.npy"))
    assert np.array_equal(np.load(tmp_path / "a.npy"), array), "others read it, too"


def test_what_numpy_wrote(fs: MemoryFileSystem) -> None:
    with fs.open("/a.npy", "wb") as file:
        np.save(file, np.arange(1000))
    assert np.array_equal(read_array(fs, "/a.npy"), np.arange(1000))


def mean_in_place(fs: MemoryFileSystem, path: str) -> tuple[float, int]:
    fs.stats()
    np.arange(3).mean()
    before = private_bytes()
    array = read_array(fs, path)
    mean = float(array.mean())
    grown = private_bytes() - before
    del array
    fs.close()
    return mean, grown


def test_array_in_another_process(large: MemoryFileSystem) -> None:
    write_array(large, "/a.npy", np.arange(8 * MIB, dtype=np.float64))
    mean, grown = call_in_child("spawn", mean_in_place, large, "/a.npy")
    assert mean == (8 * MIB - 1) / 2 and grown < 8 * MIB


def test_arrays_that_cannot_be_shared(fs: MemoryFileSystem) -> None:
    with pytest.raises(ValueError, match="Python objects"):
        write_array(fs, "/a.npy", np.array([{}, []], object))
    assert not fs.exists("/a.npy")
    with fs.open("/o.npy", "wb") as file:
        np.save(file, np.array([1, "x"], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_array(fs, "/o.npy")


def test_what_is_no_npy_file(fs: MemoryFileSystem) -> None:
    write_array(fs, "/whole", np.arange(1000))
    data = fs.read_bytes("/whole")
    for content in b"", b"PK", data[:50], data[:-1], os.urandom(200):
        fs.write_bytes("/x", content)
        with pytest.raises(ValueError, match="Not an npy file: '/x'"):
            read_array(fs, "/x")
