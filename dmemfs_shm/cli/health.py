"""What the machine has for stores and what it has in their way: one look a function, each finding with its remedy.

*root* is where /proc, /sys, /etc and /run are looked for: "/" of this machine, or a directory with such files. A look that
cannot be had (no such file, not permitted) is no finding.
"""

from __future__ import annotations

import configparser
import contextlib
import dataclasses
import os
import platform
import pwd
import resource
import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from ..store import names, snapshot
from ..store.identity import visible_namespace
from ..store.inspection import leftovers, survey, why_deserted
from ..store.memory import available_cgroup, available_ram
from ..store.recovery import require_membarrier
from .sizes import format_size
from .text import count

OK, WARN, BAD = "ok", "warning", "problem"

SHM_LITTLE = 128 << 20  # Docker gives 64 MiB unless told otherwise
NEARLY_FULL = 0.9
ENTRIES_LITTLE = 1000
RAM_LITTLE = 256 << 20
FILES_LITTLE = 512
MAPPINGS_LITTLE = 4096
ADDRESSES_LITTLE = 64 << 30
INDEX_BYTES = 5 << 30  # of a store without a limit of nodes; it has memory only where it is used
SYSTEM_UID_MAX = 999


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """level OK, WARN (may become one) or BAD; remedy: what to do, "" for OK."""

    subject: str
    level: str
    text: str
    remedy: str = ""


def findings(root: str = "/") -> Iterator[Finding]:
    """Everything, in the order in which it should be read."""
    looks: tuple[Callable[[str], Iterator[Finding]], ...] = (
        _software,
        _shm,
        _ram,
        _cgroup,
        _remove_ipc,
        _limits,
        _kernel,
        _proc,
        _stores,
        _leftovers,
    )
    for look in looks:
        yield from look(root)


def _software(root: str) -> Iterator[Finding]:
    found = []
    for package in ("dmemfs-shm", "posix-ipc", "msgpack", "click", "rich"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    libc = " ".join(part for part in platform.libc_ver() if part) or "an unknown C library"
    text = f"{platform.python_implementation()} {platform.python_version()}, {libc}, {', '.join(found)}"
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        yield Finding("software", BAD, text, "Use Linux with glibc: elsewhere semaphores and locks are not what stores need.")
    else:
        yield Finding("software", OK, text)


def _shm(root: str) -> Iterator[Finding]:
    try:
        shm = os.statvfs(names.SHM_DIR)
    except OSError as error:
        yield Finding("/dev/shm", BAD, f"it is not there: {error.strerror}.", "mount -t tmpfs tmpfs /dev/shm")
        return
    if not os.access(names.SHM_DIR, os.W_OK | os.X_OK):
        yield Finding("/dev/shm", BAD, "this user may not write there.", "chmod 1777 /dev/shm")
    size, free = shm.f_blocks * shm.f_frsize, shm.f_bavail * shm.f_frsize
    text = f"{format_size(free)} free of {format_size(size)}"
    larger = "mount -o remount,size=SIZE /dev/shm; in a container: docker run --shm-size=SIZE, an emptyDir of medium Memory"
    if size and free < (1 - NEARLY_FULL) * size:
        remedy = f"See who has it (dmemfs-shm df, ls -lS /dev/shm), prune, or make it larger: {larger}."
        yield Finding("/dev/shm", BAD if free < size // 50 else WARN, text, remedy)
    elif size < SHM_LITTLE:
        yield Finding("/dev/shm", WARN, f"{text}: it is small", f"Make it larger: {larger}.")
    else:
        yield Finding("/dev/shm", OK, text)
    promised = sum(store.quota_bytes or 0 for store in survey(os.geteuid()))
    had = sum(store.memory_bytes or 0 for store in survey(os.geteuid()))
    if promised - had > free:
        text = f"the quotas of this user's stores may still want {format_size(promised - had)}, more than is free"
        remedy = "Smaller quotas, or a larger /dev/shm: where it ends first, writes raise MFSNoSpaceError."
        yield Finding("quotas", WARN, text, remedy)
    if shm.f_files:
        text = f"{shm.f_favail:,} entries may still be made in /dev/shm; a store takes some 30, a waiting thread one more"
        remedy = "mount -o remount,nr_inodes=NUMBER /dev/shm"
        little = shm.f_favail < ENTRIES_LITTLE
        yield Finding("entries", WARN if little else OK, text, remedy if little else "")


def _ram(root: str) -> Iterator[Finding]:
    left = available_ram(f"{root}/proc")
    if left is not None:
        text = f"{format_size(left)} of RAM are available"
        remedy = "End other programs or use smaller quotas: writes raise MFSNoSpaceError, or the OOM killer comes first."
        yield Finding("RAM", *(((WARN, text, remedy)) if left < RAM_LITTLE else (OK, text)))


def _cgroup(root: str) -> Iterator[Finding]:
    left = available_cgroup(f"{root}/proc", f"{root}/sys/fs/cgroup")
    if left is None:
        yield Finding("cgroup", OK, "no memory limit")
        return
    text = f"{format_size(left)} are left to the memory limit; what is in /dev/shm counts for whoever wrote it first"
    remedy = "Raise the limit of the container or unit (docker run --memory, MemoryMax=), or use smaller quotas."
    yield Finding("cgroup", *((WARN, text, remedy) if left < RAM_LITTLE else (OK, text)))


def _remove_ipc(root: str) -> Iterator[Finding]:
    """systemd-logind removes what a user has in /dev/shm when his last session ends, unless he is a system user."""
    if not os.path.isdir(f"{root}/run/systemd/system"):
        yield Finding("RemoveIPC", OK, "systemd does not run here")
        return
    if os.geteuid() <= SYSTEM_UID_MAX:
        yield Finding("RemoveIPC", OK, "root and system users are exempt")
        return
    value, where = logind_setting(root, "RemoveIPC")
    if value.lower() in ("no", "false", "0", "off", "n", "f"):
        yield Finding("RemoveIPC", OK, f"off ({where})")
        return
    user = _user_name()
    if os.path.exists(f"{root}/var/lib/systemd/linger/{user}"):
        yield Finding("RemoveIPC", OK, f"on, but {user} lingers: his last session does not end")
        return
    remedy = (
        f"loginctl enable-linger {user}; or RemoveIPC=no in /etc/systemd/logind.conf and systemctl restart systemd-logind; "
        "or run as a system user."
    )
    text = f"on ({where}): systemd removes all that {user} has in /dev/shm when his last session ends, under running jobs"
    yield Finding("RemoveIPC", BAD, text, remedy)


def logind_setting(root: str, key: str) -> tuple[str, str]:
    """(value, where it is set) of systemd-logind's configuration; "yes" and "the default" if it is not set.

    The first logind.conf of the directories counts, and after it the drop-ins of all of them by their names.
    """
    directories = [f"{root}/{each}/systemd" for each in ("etc", "run", "usr/local/lib", "usr/lib")]
    files = [path for each in directories if os.path.exists(path := f"{each}/logind.conf")][:1]
    drop_ins: dict[str, str] = {}
    for each in directories:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"{each}/logind.conf.d"):
                if name.endswith(".conf"):
                    drop_ins.setdefault(name, f"{each}/logind.conf.d/{name}")
    found = "yes", "the default"
    for path in (*files, *(drop_ins[name] for name in sorted(drop_ins))):
        parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True, delimiters=("=",))
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have their case
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, encoding="utf-8")
            value = parser.get("Login", key, fallback=None)
            if value:
                found = value.strip(), "/" + os.path.relpath(path, root)
    return found


def _user_name() -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def _limits(root: str) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft:,} open files a process (hard limit {hard:,}); a store takes a few and one for each segment, handles none"
    remedy = f"ulimit -n {max(1024, min(hard, 65536))}, LimitNOFILE= in a unit, or docker run --ulimit nofile=1024."
    little = soft != resource.RLIM_INFINITY and soft < FILES_LITTLE
    yield Finding("open files", *((WARN, text, remedy) if little else (OK, text)))
    for name, what, how in (
        ("RLIMIT_FSIZE", "file size", "ulimit -f unlimited, or LimitFSIZE=infinity in a unit"),
        ("RLIMIT_AS", "address space", "ulimit -v unlimited, or LimitAS=infinity in a unit"),
    ):
        value = resource.getrlimit(getattr(resource, name))[0]
        if value == resource.RLIM_INFINITY or value >= ADDRESSES_LITTLE:
            yield Finding(what, OK, "unlimited" if value == resource.RLIM_INFINITY else format_size(value))
        else:
            text = f"limited to {format_size(value)}; a store's index is a sparse segment of some {format_size(INDEX_BYTES)}"
            yield Finding(what, BAD if value < INDEX_BYTES else WARN, text, f"{how}.")


def _kernel(root: str) -> Iterator[Finding]:
    with contextlib.suppress(OSError, ValueError):
        most = int(_read(f"{root}/proc/sys/vm/max_map_count"))
        text = f"{most:,} mappings a process; a store has some 30, and one for each segment"
        remedy = "sysctl -w vm.max_map_count=65530"
        yield Finding("mappings", *((WARN, text, remedy) if most < MAPPINGS_LITTLE else (OK, text)))
    with contextlib.suppress(OSError, ValueError):
        if int(_read(f"{root}/proc/sys/vm/overcommit_memory")) == 2:
            text = "vm.overcommit_memory is 2: memory is refused before RAM is used up"
            yield Finding("overcommit", WARN, text, "Leave it at 0, or raise vm.overcommit_ratio by what stores take.")
    yield Finding("semaphores", OK, "POSIX ones, files in /dev/shm: kernel.sem and ipcs have nothing to do with them")
    try:
        require_membarrier()
    except OSError as error:
        yield Finding("membarrier", BAD, str(error.strerror), "init --backend ofd, or allow the call in the seccomp profile.")
    else:
        yield Finding("membarrier", OK, f"not needed on {os.uname().machine}" if os.uname().machine == "x86_64" else "there")


def _proc(root: str) -> Iterator[Finding]:
    if visible_namespace() == -1:
        text = "it shows another pid namespace's processes: who is stopped cannot be told, and kick does not work"
        yield Finding("/proc", WARN, text, "Mount /proc of this pid namespace: unshare --mount-proc, or the container's own.")
    else:
        yield Finding("/proc", OK, "shows the processes of this pid namespace")


def _stores(root: str) -> Iterator[Finding]:
    found = survey(os.geteuid())
    for store in found:
        if store.condition in (snapshot.DAMAGED, snapshot.INCOMPATIBLE, snapshot.FOREIGN):
            remedy = f"dmemfs-shm inspect {store.name}; save what can be read, and then: dmemfs-shm destroy {store.name}"
            yield Finding("store", BAD, f"{store.name} is {store.condition}", remedy)
            continue
        with contextlib.suppress(FileNotFoundError):
            why = why_deserted(store.name)
            if why:
                size = "" if store.memory_bytes is None else f" It has {format_size(store.memory_bytes)}."
                remedy = f"Save what is wanted; then: dmemfs-shm prune --yes {store.name}"
                yield Finding("store", WARN, f"{store.name}: {why}.{size}", remedy)
    yield Finding("stores", OK, f"{count(len(found), 'store')} of this user")


def _leftovers(root: str) -> Iterator[Finding]:
    rests = leftovers()
    if rests:
        size = format_size(sum(rest.memory_bytes for rest in rests))
        text = f"{count(len(rests), 'store is', 'stores are')} gone and left {size} in /dev/shm, removed by hand perhaps"
        yield Finding("leftovers", WARN, text, "dmemfs-shm prune, and with --yes if it shows nothing that is wanted")
    else:
        yield Finding("leftovers", OK, "none")


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
