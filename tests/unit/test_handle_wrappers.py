"""What people put on top of a handle: io wrappers, archives, tables, pickles, arrays."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import shutil
import tarfile
import zipfile

import pytest

from dmemfs_shm import MemoryFileSystem


def test_buffered_reader(fs: MemoryFileSystem) -> None:
    """io.BufferedReader peeks, reads lines and closes the handle with itself."""
    fs.write_bytes("/f", b"one\ntwo\n" + bytes(20_000))
    raw = fs.open("/f", "rb")
    with io.BufferedReader(raw, buffer_size=64) as reader:
        assert reader.peek(3)[:3] == b"one"
        assert reader.readline() == b"one\n"
        assert reader.read(4) == b"two\n"
        assert reader.read() == bytes(20_000)
    assert raw.closed
    assert fs.locks() == []


def test_buffered_writer(fs: MemoryFileSystem) -> None:
    """io.BufferedWriter writes on flush and on close."""
    with io.BufferedWriter(fs.open("/f", "wb"), buffer_size=1024) as writer:
        writer.write(b"small")
        assert fs.get_size("/f") == 0
        writer.flush()
        assert fs.get_size("/f") == 5
        writer.write(bytes(5000))
    assert fs.read_bytes("/f") == b"small" + bytes(5000)


def test_buffered_random(fs: MemoryFileSystem) -> None:
    """io.BufferedRandom reads, seeks and writes on r+b."""
    fs.write_bytes("/f", b"0123456789" * 1000)
    with io.BufferedRandom(fs.open("/f", "r+b")) as file:
        file.seek(5000)
        assert file.read(3) == b"012"
        file.write(b"ABC")
        file.seek(-4, io.SEEK_END)
        file.write(b"tail+")
        file.seek(5000)
        assert file.read(8) == b"012ABC67"
    assert fs.get_size("/f") == 10_001
    assert fs.read_bytes("/f")[-6:] == b"5tail+"


@pytest.mark.parametrize("buffered", [False, True])
def test_text_wrapper(fs: MemoryFileSystem, buffered: bool) -> None:
    """io.TextIOWrapper writes and reads text, directly on the handle or on a buffer."""
    text = "".join(f"line {number}: Grüße, 日本\n" for number in range(2000))
    raw = fs.open("/f", "wb")
    with io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, encoding="utf-8", newline="") as writer:
        writer.write(text)
    assert fs.read_bytes("/f").decode() == text
    raw = fs.open("/f", "rb")
    with io.TextIOWrapper(io.BufferedReader(raw) if buffered else raw, encoding="utf-8", newline="") as reader:
        assert reader.readline() == "line 0: Grüße, 日本\n"
        assert reader.readline() + reader.read() == text[text.index("\n") + 1 :]


def test_detached_wrapper_leaves_the_handle_open(fs: MemoryFileSystem) -> None:
    """detach gives the handle back, open and at the place reached."""
    with fs.open("/f", "wb") as raw:
        wrapper = io.TextIOWrapper(raw, encoding="utf-8")
        wrapper.write("text")
        assert wrapper.detach() is raw
        raw.write(b"+bytes")
    assert fs.read_bytes("/f") == b"text+bytes"


def test_forgotten_close_of_a_wrapper_is_one_close(fs: MemoryFileSystem) -> None:
    """Closing wrapper and handle in either order is fine."""
    with fs.open("/f", "wb") as raw, io.BufferedWriter(raw) as writer:
        writer.write(b"x")
    assert raw.closed and writer.closed
    assert fs.read_bytes("/f") == b"x"


def test_csv(fs: MemoryFileSystem) -> None:
    """The csv module writes and reads through a text wrapper."""
    rows = [["name", "quote"], ["a", 'say "x", y'], ["b", "two\nlines"]]
    with io.TextIOWrapper(fs.open("/t.csv", "wb"), encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    with io.TextIOWrapper(fs.open("/t.csv", "rb"), encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == rows


def test_json(fs: MemoryFileSystem) -> None:
    """json writes through a text wrapper and loads from the handle itself."""
    document = {"numbers": list(range(1000)), "text": "ä"}
    with io.TextIOWrapper(fs.open("/d.json", "wb"), encoding="utf-8") as file:
        json.dump(document, file)
    with fs.open("/d.json", "rb") as handle:
        assert json.load(handle) == document


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(fs: MemoryFileSystem, protocol: int) -> None:
    """Pickles of every protocol go straight to a handle and back, several in a row."""
    values = [{"a": [1, 2.5, "ä"], "b": b"x" * 100_000}, list(range(10_000)), None]
    with fs.open("/p", "wb") as handle:
        for value in values:
            pickle.dump(value, handle, protocol=protocol)
    with fs.open("/p", "rb") as handle:
        assert [pickle.load(handle) for _ in values] == values
        with pytest.raises(EOFError):
            pickle.load(handle)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zipfile(fs: MemoryFileSystem, compression: int) -> None:
    """zipfile writes an archive, appends to it in place and reads it back."""
    with fs.open("/a.zip", "wb") as handle, zipfile.ZipFile(handle, "w", compression) as archive:
        archive.writestr("one.txt", b"one" * 5000)
        with archive.open("two.bin", "w") as member:
            member.write(bytes(10_000))
    with fs.open("/a.zip", "r+b") as handle, zipfile.ZipFile(handle, "a", compression) as archive:
        archive.writestr("three.txt", b"three")
    with fs.open("/a.zip", "rb") as handle, zipfile.ZipFile(handle) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["one.txt", "two.bin", "three.txt"]
        assert archive.read("one.txt") == b"one" * 5000
        with archive.open("two.bin") as member:
            member.seek(9_000)
            assert member.read() == bytes(1_000)


@pytest.mark.parametrize("compression", ["", "gz", "xz"])
def test_tarfile(fs: MemoryFileSystem, compression: str) -> None:
    """tarfile writes and reads, plain and compressed."""
    with fs.open("/a.tar", "wb") as handle, tarfile.open(fileobj=handle, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for name, data in (("d/one", b"1" * 1000), ("two", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    with fs.open("/a.tar", "rb") as handle, tarfile.open(fileobj=handle) as archive:
        assert archive.getnames() == ["d/one", "two"]
        member_file = archive.extractfile("d/one")
        assert member_file is not None
        assert member_file.read() == b"1" * 1000


def test_gzip(fs: MemoryFileSystem) -> None:
    """gzip compresses into a handle and out of it."""
    with fs.open("/f.gz", "wb") as handle, gzip.open(handle, "wb") as stream:
        stream.write(b"line\n" * 10_000)
    with fs.open("/f.gz", "rb") as handle, gzip.open(handle, "rb") as stream:
        assert sum(1 for _ in stream) == 10_000


def test_copyfileobj(fs: MemoryFileSystem) -> None:
    """shutil.copyfileobj copies from handle to handle."""
    fs.write_bytes("/from", bytes(range(256)) * 1000)
    with fs.open("/from", "rb") as source, fs.open("/to", "wb") as target:
        shutil.copyfileobj(source, target)
    assert fs.read_bytes("/to") == bytes(range(256)) * 1000


@pytest.mark.parametrize("wrapped", [False, True])
def test_pandas_csv(fs: MemoryFileSystem, wrapped: bool) -> None:
    """pandas writes and reads tables, on the handle itself and on a buffered one."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"n": range(1000), "x": [value / 7 for value in range(1000)], "s": ["ä,b"] * 1000})
    raw = fs.open("/t.csv", "wb")
    with io.BufferedWriter(raw) if wrapped else raw as file:
        table.to_csv(file, index=False)
    raw = fs.open("/t.csv", "rb")
    with io.BufferedReader(raw) if wrapped else raw as file:
        again = pandas.read_csv(file)
    pandas.testing.assert_frame_equal(table, again)
    with fs.open("/t.csv", "rb") as handle:
        pieces = list(pandas.read_csv(handle, chunksize=300))
    assert [len(piece) for piece in pieces] == [300, 300, 300, 100]


def test_pandas_pickle(fs: MemoryFileSystem) -> None:
    """pandas pickles a table into a handle and back."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]})
    with fs.open("/t.pkl", "wb") as handle:
        table.to_pickle(handle)
    with fs.open("/t.pkl", "rb") as handle:
        pandas.testing.assert_frame_equal(pandas.read_pickle(handle), table)


def test_numpy_save_and_load(fs: MemoryFileSystem) -> None:
    """numpy saves arrays to a handle, one or an archive of them, and loads them back."""
    numpy = pytest.importorskip("numpy")
    matrix = numpy.arange(10_000, dtype="f4").reshape(100, 100)
    with fs.open("/m.npy", "wb") as handle:
        numpy.save(handle, matrix)
    with fs.open("/m.npz", "wb") as handle:
        numpy.savez_compressed(handle, matrix=matrix, other=matrix.T)
    with fs.open("/m.npy", "rb") as handle:
        assert (numpy.load(handle) == matrix).all()
    with fs.open("/m.npz", "rb") as handle, numpy.load(handle) as archive:
        assert (archive["other"] == matrix.T).all()
