"""The stream of a snapshot: frames of msgpack, each with a checksum that hangs on all before it.

    stream   := MAGIC frame*
    frame    := length checksum payload        two little-endian words of 32 bits, and length bytes
    checksum := crc32(payload, crc32(length, the checksum before, at first crc32(MAGIC)))

So a frame that is torn, changed, left out, doubled or moved is found when it is read, and nothing behind it is believed.
It is a check against damage, not against forgers. A frame has at most FRAME_MOST bytes, and is read as it comes: a changed
length asks for no memory. What can be read and written is any binary file object, unseekable or slow: short reads and
short writes are continued.

The payloads are the business of the module `snapshot`; the first names the version, the last is the only one of its kind.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Final

from .errors import MFSSnapshotError

MAGIC: Final = b"\x89DMEMFS-SNAPSHOT\r\n\x1a\n"
FRAME_MOST: Final = 1 << 20
CHUNK: Final = 256 << 10  # bytes of a file in one frame, and what is read and written at once
_HEAD: Final = struct.Struct("<II")


class FrameWriter:
    """Writes frames to a binary file object, some at a time."""

    def __init__(self, target: Any) -> None:
        import msgpack

        self._target = target
        self._pack = msgpack.Packer(autoreset=True).pack
        self._waiting = bytearray(MAGIC)
        self._checksum = zlib.crc32(MAGIC)

    def put(self, *record: Any) -> None:
        payload = self._pack(record)
        assert len(payload) <= FRAME_MOST
        self._checksum = _checksum(payload, self._checksum)
        self._waiting += _HEAD.pack(len(payload), self._checksum)
        self._waiting += payload
        if len(self._waiting) >= CHUNK:
            self._drain()

    def finish(self) -> None:
        """Hand on what is waiting, and flush the file object if it can be."""
        self._drain()
        flush = getattr(self._target, "flush", None)
        if flush is not None:
            flush()

    def _drain(self) -> None:
        data, self._waiting = bytes(self._waiting), bytearray()
        while data:
            count = self._target.write(data)
            if count is None:  # a raw file says so that it took nothing; many others, which take all, say nothing
                if isinstance(self._target, io.RawIOBase):
                    raise BlockingIOError("the snapshot's target is not ready: it must block")
                return
            data = data[count:]


class FrameReader:
    """Reads frames from a binary file object. MFSSnapshotError for what is not, or not any more, what was written."""

    def __init__(self, source: Any) -> None:
        import msgpack

        self._source = source
        self._unpack = msgpack.unpackb
        self._checksum = zlib.crc32(MAGIC)
        self._number = 0
        if self._exactly(len(MAGIC)) != MAGIC:
            raise MFSSnapshotError("This is no snapshot: it does not begin like one.")

    def get(self) -> list[Any]:
        """The next record: a list that begins with text."""
        size, checksum = _HEAD.unpack(self._exactly(_HEAD.size))
        if size > FRAME_MOST:
            raise self.damage(f"says that it has {size} bytes")
        payload = self._exactly(size)
        self._checksum = _checksum(payload, self._checksum)
        if self._checksum != checksum:
            raise self.damage("is not what was written")
        try:
            record = self._unpack(payload)
        except Exception as error:  # noqa: BLE001  (whatever bytes that were never packed make msgpack raise)
            raise self.damage(f"can't be unpacked ({error})") from None
        if not isinstance(record, list) or not record or not isinstance(record[0], str):
            raise self.damage("is no record")
        self._number += 1
        return record

    def damage(self, what: str) -> MFSSnapshotError:
        return MFSSnapshotError(f"The snapshot is damaged: frame {self._number} {what}.")

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            try:
                data = self._source.read(min(size, CHUNK))
            except (EOFError, zlib.error) as error:  # of a compressed stream
                raise self.damage(f"can't be decompressed ({error})") from error
            if data is None:
                raise BlockingIOError("the snapshot's source is not ready: it must block")
            if not isinstance(data, bytes):
                data = bytes(memoryview(data))
            if not data:
                raise MFSSnapshotError(f"The snapshot is incomplete: it ends in frame {self._number}.")
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _checksum(payload: bytes, before: int) -> int:
    return zlib.crc32(payload, zlib.crc32(len(payload).to_bytes(4, "little"), before))
