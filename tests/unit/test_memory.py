"""What the machine says of its memory: /proc and /sys/fs/cgroup, as directories with the same files stand for them."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dmemfs_shm.store import memory

GIB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712

#: A cgroup in which a test may make one of its own and put a child there, if somebody has given it to us.
DELEGATED = os.environ.get("DMEMFS_SHM_TEST_CGROUP")


class Machine:
    """A /proc and a /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()

    def is_in(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def v2(self, path: str, most: int | str, used: int, stat: str = "") -> None:
        self._write(self.cgroups / path, {"memory.max": most, "memory.current": used, "memory.stat": stat})

    def v1(self, path: str, most: int, used: int, stat: str = "") -> None:
        files = {"memory.limit_in_bytes": most, "memory.usage_in_bytes": used, "memory.stat": stat}
        self._write(self.cgroups / "memory" / path, files)

    def _write(self, folder: Path, files: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name).write_text(f"{value}\n")

    def available(self) -> int | None:
        return memory.available_cgroup(str(self.proc), str(self.cgroups))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_cgroups(machine: Machine) -> None:
    """Without files there is no limit: neither one that is known, nor an error."""
    assert machine.available() is None
    machine.is_in("0::/gone")
    assert machine.available() is None


def test_version_2(machine: Machine) -> None:
    machine.is_in("0::/user/job")
    machine.v2("user/job", "max", GIB)
    assert machine.available() is None
    machine.v2("user/job", 3 * GIB, GIB)
    assert machine.available() == 2 * GIB
    machine.v2("user/job", 3 * GIB, GIB, "anon 5\ninactive_file 1000\nactive_file 24\nshmem 99")
    assert machine.available() == 2 * GIB + 1024
    machine.v2("user/job", GIB, GIB + 5)
    assert machine.available() == 0


def test_version_2_limits_of_those_above(machine: Machine) -> None:
    """The least of what any group leaves counts, wherever the limit is."""
    machine.is_in("0::/user/job/step")
    machine.v2("user/job/step", "max", 0)
    machine.v2("user/job", 8 * GIB, GIB)
    machine.v2("user", 9 * GIB, 4 * GIB)
    assert machine.available() == 5 * GIB
    machine.v2("user/job/step", GIB, 0)
    assert machine.available() == GIB


def test_version_2_in_a_container(machine: Machine) -> None:
    """With a namespace of its own the group is the root; without, its path outside is not to be found, but the root is."""
    machine.v2("", 2 * GIB, GIB)
    for path in ("/", "/docker/0123456789abcdef", "/../../job"):
        machine.is_in(f"0::{path}")
        assert machine.available() == GIB


def test_version_1(machine: Machine) -> None:
    machine.is_in("5:cpu,cpuacct:/elsewhere", "4:memory:/job", "1:name=systemd:/", "0::/")
    machine.v1("", NO_LIMIT_V1, 7 * GIB)
    assert machine.available() is None
    machine.v1("job", NO_LIMIT_V1, GIB)
    machine.v1("elsewhere", 1, 1)
    assert machine.available() is None
    machine.v1("job", 3 * GIB, GIB, "inactive_file 7\ntotal_inactive_file 1000\ntotal_active_file 24")
    assert machine.available() == 2 * GIB + 1024
    machine.v1("", GIB, 0)
    assert machine.available() == GIB


def test_version_1_in_a_container(machine: Machine) -> None:
    machine.is_in("4:cpu,memory:/docker/0123456789abcdef")
    machine.v1("", 2 * GIB, GIB)
    assert machine.available() == GIB


def test_both_versions(machine: Machine) -> None:
    machine.is_in("4:memory:/job", "0::/job")
    machine.v1("job", 3 * GIB, GIB)
    machine.v2("job", 3 * GIB, 2 * GIB)
    assert machine.available() == GIB


@pytest.mark.parametrize("text", ["", "many", "-", "1 2"])
def test_files_that_say_nothing(machine: Machine, text: str) -> None:
    """What can't be read is passed over; other limits still count."""
    machine.is_in("no colons", "0::/job")
    machine.v2("", 2 * GIB, GIB)
    machine.v2("job", 3 * GIB, GIB)
    (machine.cgroups / "job" / "memory.max").write_text(text)
    assert machine.available() == GIB
    machine.is_in("0::/job")
    assert machine.available() == GIB
    machine.v2("", 2 * GIB, GIB, text)
    assert machine.available() == GIB
    (machine.cgroups / "memory.current").unlink()
    assert machine.available() is None


@pytest.mark.parametrize(
    ("text", "available"),
    [
        ("MemTotal: 100 kB\nMemFree: 50 kB\nMemAvailable:   70 kB\n", 70 << 10),
        ("MemTotal: 100 kB\n", None),
        ("MemAvailable:\n", None),
        ("MemAvailable: lots kB\n", None),
        ("", None),
    ],
)
def test_ram(machine: Machine, text: str, available: int | None) -> None:
    assert memory.available_ram(str(machine.proc)) is None
    (machine.proc / "meminfo").write_text(text)
    assert memory.available_ram(str(machine.proc)) == available


def test_this_machine() -> None:
    """Here something is to be found out, and it is no more than there is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    ram, available = memory.available_ram(), memory.available_bytes()
    assert ram is not None and available is not None
    assert 0 < available <= total
    assert 0 < ram <= total
    memory.check_headroom(1)
    with pytest.raises(memory.MFSNoSpaceError):
        memory.check_headroom(total + 1)


_IN_A_GROUP = """
import os, sys
open(sys.argv[1], "w").write(str(os.getpid()))
from dmemfs_shm import MFSNoSpaceError, MemoryFileSystem
from dmemfs_shm.store import memory
print(memory.available_cgroup())
fs = MemoryFileSystem(1 << 30)
try:
    fs.write_bytes("/f", bytes(16 << 20) * 20)
except MFSNoSpaceError as error:
    print(error.errno)
fs.write_bytes("/small", bytes(1 << 20))
fs.close()
guarded = MemoryFileSystem(16 << 20, memory_guard="init", memory_guard_action="raise")
guarded.close()
try:
    MemoryFileSystem(1 << 30, memory_guard="init", memory_guard_action="raise")
except MemoryError:
    print("refused")
"""


@pytest.mark.skipif(DELEGATED is None, reason="DMEMFS_SHM_TEST_CGROUP names no cgroup that a test may use")
def test_in_a_real_cgroup() -> None:
    """A child in a group of 600 MiB is told of its limit, and meets an error and not the OOM killer."""
    assert DELEGATED is not None
    group = Path(DELEGATED) / f"dmemfs-shm-test-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    try:
        limit = next(group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists())
        limit.write_text(str(600 << 20))
        script = (sys.executable, "-c", _IN_A_GROUP, str(group / "cgroup.procs"))
        done = subprocess.run(script, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        available, *said = done.stdout.split()
        assert 500 << 20 < int(available) <= 600 << 20
        assert said == ["12", "refused"]
    finally:
        group.rmdir()
