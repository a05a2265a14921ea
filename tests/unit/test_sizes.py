"""Sizes as people write them: what is printed can be read, and means the same where it can."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dmemfs_shm.cli.sizes import SIZE_MAX, format_size, parse_size

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("512 bytes", 512),
        ("1 byte", 1),
        ("10k", 10 * KIB),
        ("10K", 10 * KIB),
        ("10Ki", 10 * KIB),
        ("64MiB", 64 * MIB),
        ("64 MiB", 64 * MIB),
        ("64mib", 64 * MIB),
        ("1GiB", GIB),
        ("1G", GIB),
        ("1.5G", 3 * GIB // 2),
        (".5G", GIB // 2),
        ("2TiB", 2 * TIB),
        ("10MB", 10_000_000),
        ("1.5GB", 1_500_000_000),
        ("10kB", 10_000),
        ("1_000_000", 1_000_000),
        ("1,234,567", 1_234_567),
        ("  3 M ", 3 * MIB),
        ("0.3k", 307),
    ],
)
def test_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "k",
        "MiB",
        "-1",
        "+1",
        "1.5.5",
        "1e3",
        "1 G iB",
        "12,34",
        "1QiB",
        "1bb",
        "0x10",
        "infinite",
        ".",
        "9999E",
        "\u0661",
    ],
)
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|more than"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1025, "1.00 KiB"),
        (1536, "1.5 KiB"),
        (1280 * MIB, "1.25 GiB"),
        (100 * MIB + 1, "100 MiB"),
        (64 * MIB, "64 MiB"),
        (1234567, "1.18 MiB"),
        (12345678, "11.8 MiB"),
        (MIB - 1, "1.00 MiB"),
        (GIB - 1, "1.00 GiB"),
        (1 << 60, "1 EiB"),
        (5 << 60, "5 EiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_print(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, SIZE_MAX))
@example(MIB - 1)
@example(SIZE_MAX)
def test_what_is_printed_is_read(size: int) -> None:
    text = format_size(size)
    again = parse_size(text)
    assert abs(again - size) <= 0.006 * size
    assert len(text) <= 8
    if size < KIB:
        assert again == size


@given(st.integers(0, 1023 * 4), st.sampled_from([KIB, MIB, GIB, TIB]))
def test_quarters_of_a_unit_are_exact(quarters: int, unit: int) -> None:
    size = quarters * unit // 4
    assert parse_size(format_size(size)) == size
