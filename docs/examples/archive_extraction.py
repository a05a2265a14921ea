"""Archives unpacked into shared memory, and read by worker processes: no disk, and nothing to clear up.

1. A zip is unpacked all or nothing; four processes count the lines of its files.
2. A later delivery is unpacked entry by entry; what is there already stays.
3. A hostile archive: nothing gets out of the destination, and what can't fit is not unpacked.
4. A format of one's own: an adapter of a few lines.
"""

import gzip
import io
import zipfile
from contextlib import closing
from multiprocessing import get_context

from dmemfs_shm import ArchiveAdapter, MemoryFileSystem, MFSQuotaExceededError, expand_archive, expand_archive_streaming


def delivery(days):
    """A zip archive, as somebody might send it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.txt", "One file a day.\n")
        for day in days:
            archive.writestr(f"data/{day:02}.csv", "id,value\n" + "".join(f"{row},{row * day}\n" for row in range(day)))
    return io.BytesIO(buffer.getvalue())


def count_lines(fs, path):
    """What a worker does: it has the store, not a copy of the file."""
    with fs.view(path) as content:
        return path, bytes(content).count(b"\n")


class GzippedFile(ArchiveAdapter):
    """A single file, compressed by gzip: an archive with one member."""

    def __init__(self, source):
        self.source = source

    def members(self):
        with gzip.open(self.source) as file:
            yield "content.txt", file.read()

    @classmethod
    def _can_handle_impl(cls, source):
        with gzip.open(source) as file:
            return file.read(1) != b""


def main():
    with closing(MemoryFileSystem(max_quota=16 << 20)) as fs:
        expand_archive(fs, delivery(range(1, 9)), "/in")
        with get_context("forkserver").Pool(4) as pool:
            for path, lines in pool.starmap(count_lines, [(fs, path) for path in fs.glob("/in/**/*.csv")]):
                print(f"{path} has {lines} lines")

        written = expand_archive_streaming(fs, delivery(range(1, 13)), "/in", on_conflict="skip")
        print(f"{written} new files, {len(fs.listdir('/in/data'))} in all")

        hostile = io.BytesIO()
        with zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../etc/passwd", "root::0:0::/:/bin/sh\n")
            archive.writestr("bomb", bytes(64 << 20))
        try:
            expand_archive(fs, hostile, "/quarantine")
        except MFSQuotaExceededError as error:
            print("refused:", error)
        print("left of it:", fs.exists("/quarantine"))
        try:
            expand_archive_streaming(fs, hostile, "/quarantine")
        except MFSQuotaExceededError:
            print("entry by entry, until it was refused:", fs.glob("/quarantine/**"))

        expand_archive(fs, io.BytesIO(gzip.compress(b"one file\n")), "/gzipped", adapters=[GzippedFile])
        print(fs.read_bytes("/gzipped/content.txt").decode(), end="")


if __name__ == "__main__":
    main()
