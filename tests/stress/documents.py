"""What stands in the files of a torture: documents that say themselves who wrote them and whether they are all there."""

from __future__ import annotations

import random
import struct
import zlib

from .herd import ViolationError

HEAD = struct.Struct("<4sIQQ")  # magic, place, number, bytes of the body; then the checksum of all that, and the body
MAGIC = b"TORT"
HEAD_BYTES = HEAD.size + 4
POOL = random.Random(1).randbytes(1 << 20)


def document(place: int, number: int, size: int) -> bytes:
    """A document of *size* bytes of body, unlike any other."""
    body = POOL[(start := (place * 7919 + number * 104729) % (len(POOL) - size)) : start + size]
    head = HEAD.pack(MAGIC, place, number, size)
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + body


def documents(data: bytes | memoryview, where: str) -> list[tuple[int, int]]:
    """(place, number) of each document of a complete file."""
    found, at = [], 0
    while at < len(data):
        head = bytes(data[at : at + HEAD.size])
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise ViolationError(f"{where}: no document at byte {at} of {len(data)}: {head[:16]!r}")
        _, place, number, size = HEAD.unpack(head)
        body = data[at + HEAD_BYTES : at + HEAD_BYTES + size]
        checksum = int.from_bytes(data[at + HEAD.size : at + HEAD_BYTES], "little")
        if len(body) != size or zlib.crc32(body, zlib.crc32(head)) != checksum:
            raise ViolationError(f"{where}: document {number} of place {place}, byte {at} of {len(data)}, is not as written")
        found.append((place, number))
        at += HEAD_BYTES + size
    return found
