"""MFSTextHandle beside D-MemFS's: the same calls return the same text, and leave the binary handle at the same byte."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import dmemfs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmemfs_shm
from dmemfs_shm import MemoryFileSystem, MFSTextHandle

ENCODINGS = ["utf-8", "UTF8", "ascii", "latin-1", "utf-8-sig", "utf-16", "utf-16-le", "shift_jis", "iso2022_jp", "cp037"]
ERRORS = ["strict", "replace", "ignore", "backslashreplace", "surrogateescape"]

CHARACTERS = st.one_of(st.sampled_from("\n\r\n\r\nab"), st.sampled_from("aé語😀\x85\u2028\ufeff\0"))
TEXT = st.lists(CHARACTERS, max_size=25).map("".join)
UTF_8 = TEXT.map(str.encode)
BYTES = st.one_of(
    UTF_8,
    st.tuples(TEXT, st.sampled_from(["utf-16", "utf-16-le", "shift_jis", "iso2022_jp", "latin-1"])).map(
        lambda drawn: drawn[0].encode(drawn[1], "ignore")
    ),
    st.lists(st.sampled_from([*b"\r\na", 0xC3, 0xA9, 0xE8, 0xAA, 0x9E, 0xF0, 0xFF, 0x1B]), max_size=20).map(bytes),
)
SIZES = st.sampled_from([-1, -1, -1, -1, 0, 1, 2, 3, 4, 5, 100])
READS = st.lists(st.tuples(st.sampled_from(["read", "readline", "readline", "next", "binary"]), SIZES), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[MemoryFileSystem, Any]]:
    fs = MemoryFileSystem()
    yield fs, dmemfs.MemoryFileSystem()
    assert fs.check() == []
    fs.close()


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error with its facts."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001  (whatever it is, both must raise it)
        return type(error).__mro__[-3:], error.args


def step(text: Any, binary: Any, call: str, size: int) -> Any:
    """One call, and where the binary handle stands after it."""
    calls = {
        "read": lambda: text.read(size),
        "readline": lambda: text.readline(size),
        "next": lambda: next(text),
        "binary": lambda: binary.read(size),
    }
    return outcome(calls[call]), binary.tell()


def store(fs: Any, content: bytes) -> None:
    with fs.open("/f", "wb") as handle:
        handle.write(content)


@given(
    st.one_of(
        st.tuples(UTF_8, st.just("utf-8"), st.just("strict")),  # what nearly every text is
        st.tuples(BYTES, st.sampled_from(ENCODINGS), st.sampled_from(ERRORS)),
    ),
    READS,
)
@settings(max_examples=500)
def test_reading(pair: tuple[Any, Any], file: tuple[bytes, str, str], reads: list[tuple[str, int]]) -> None:
    content, encoding, errors = file
    ours, theirs = pair
    store(ours, content)
    store(theirs, content)
    with ours.open("/f") as a, theirs.open("/f") as b:
        text_a, text_b = MFSTextHandle(a, encoding, errors), dmemfs.MFSTextHandle(b, encoding, errors)
        for call, size in reads:
            assert step(text_a, a, call, size) == step(text_b, b, call, size), (call, size)


@given(BYTES, st.sampled_from(ENCODINGS), READS)
@settings(max_examples=100)
def test_reading_from_other_files(content: bytes, encoding: str, reads: list[tuple[str, int]]) -> None:
    """Over a file object that is none of ours both do the same, too."""
    a, b = io.BytesIO(content), io.BytesIO(content)
    text_a, text_b = MFSTextHandle(a, encoding), dmemfs.MFSTextHandle(b, encoding)  # type: ignore[arg-type]
    for call, size in reads:
        assert step(text_a, a, call, size) == step(text_b, b, call, size), (call, size)


@given(st.lists(TEXT, max_size=4), st.sampled_from(ENCODINGS), st.sampled_from(ERRORS))
@settings(max_examples=150)
def test_writing(pair: tuple[Any, Any], texts: list[str], encoding: str, errors: str) -> None:
    results = []
    for fs, kind in zip(pair, (MFSTextHandle, dmemfs.MFSTextHandle), strict=True):
        with fs.open("/f", "wb") as handle:
            text = kind(handle, encoding, errors)
            returned = [outcome(lambda text=text, some=some: text.write(some)) for some in texts]
        with fs.open("/f") as handle:
            results.append((returned, handle.read()))
    assert results[0] == results[1]


@pytest.mark.parametrize("mode", ["rb", "wb", "ab", "r+b"])
@pytest.mark.parametrize("closed", [False, True])
def test_refusals(pair: tuple[Any, Any], mode: str, closed: bool) -> None:
    """Closed handles, wrong modes, an unknown encoding, no text: the same errors, in words too."""
    calls: list[Callable[[Any], Any]] = [
        lambda text: text.read(),
        lambda text: text.read(2),
        lambda text: text.read(0),
        lambda text: text.readline(),
        lambda text: text.readline(0),
        list,
        lambda text: text.write("x"),
        lambda text: text.write(b"x"),
        lambda text: text.read(None),
    ]
    results = []
    for fs, kind in zip(pair, (MFSTextHandle, dmemfs.MFSTextHandle), strict=True):
        store(fs, b"one\ntwo\n")
        found = []
        for encoding, errors in (("utf-8", "strict"), ("klingon", "strict"), ("ascii", "no such handler")):
            for call in calls:
                with fs.open("/f", mode) as handle:
                    text = kind(handle, encoding, errors)
                    if closed:
                        handle.close()
                    found.append(outcome(lambda call=call, text=text: call(text)))
        results.append(found)
    assert results[0] == results[1]


def test_properties_and_with(fs: MemoryFileSystem) -> None:
    """encoding and errors are as they were given; a `with` gives the text handle and leaves the binary one open."""
    with fs.open("/f", "wb") as handle:
        with MFSTextHandle(handle, encoding="latin-1", errors="replace") as text:
            assert (text.encoding, text.errors) == ("latin-1", "replace")
            assert text.write("é語\n") == 3
        assert not handle.closed
        default = MFSTextHandle(handle)
        assert (default.encoding, default.errors) == ("utf-8", "strict")
        with pytest.raises(AttributeError):
            default.encoding = "ascii"  # type: ignore[misc]
    assert fs.read_bytes("/f") == b"\xe9?\n"


def test_a_file_in_pieces(fs: MemoryFileSystem) -> None:
    """Lines are found across the pieces of a file that lies in several."""
    lines = [f"{number}: {'語' * (number % 40)}\n" for number in range(2000)]
    with fs.open("/f", "wb") as handle, fs.open("/other", "wb") as other:
        text = MFSTextHandle(handle)
        for line in lines:
            assert text.write(line) == len(line)
            other.write(line.encode())
    with fs.open("/f") as handle:
        assert list(MFSTextHandle(handle)) == lines


def test_writes_meet_the_quota(fs: MemoryFileSystem) -> None:
    """A text that does not fit is refused before a byte of it is stored, as with the binary handle."""
    with fs.open("/f", "wb") as handle:
        text = MFSTextHandle(handle)
        text.write("語")
        with pytest.raises(dmemfs_shm.MFSQuotaExceededError):
            text.write("語" * (16 << 20))
    assert fs.read_bytes("/f") == "語".encode()
