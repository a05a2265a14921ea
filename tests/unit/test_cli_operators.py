"""What operators ask at night: how full, who holds what, who is stopped; and what they do about it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.cli import health
from dmemfs_shm.cli.group import COMMANDS
from dmemfs_shm.cli.metrics import FAMILIES, PREFIX
from dmemfs_shm.store import names
from dmemfs_shm.store.attachment import destroy_if_deserted
from dmemfs_shm.store.identity import ByteLocks
from dmemfs_shm.store.inspection import inspect, leftovers, why_deserted
from dmemfs_shm.store.layout import LB_ATTACH, LB_INIT, S_START, SLOTS_AT, WORD

from ..command_line import REPOSITORY, Run, bare, command, in_pipe, interruptible, on_terminal, run_here
from ..conftest import MIB, Stores
from ..own_shm import is_possible, own_shm
from ..processes import DEADLINE_S, Child, Link, call_in_child, child, held_open, until
from .test_inspection import compare, documented, stop_inside, wait_for_space

SCHEMA = REPOSITORY / "docs" / "command-json.md"
needs_own_shm = pytest.mark.skipif(os.geteuid() != 0 or not is_possible(), reason="a /dev/shm of one's own needs root")


@pytest.fixture
def run() -> Run:
    """Runs the command line in this process."""
    return run_here


@pytest.fixture
def store(named: MemoryFileSystem, store_name: str) -> str:
    """The name of `named`, with something in it."""
    named.import_tree({"/d/large": bytes(100_000), "/d/deep/small": b"hello\n", "/e": b""})
    return store_name


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    """What a command prints with --json; every field is documented."""
    result = run_here(*arguments, "--json")
    assert result.exit_code == code, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    check_document(str(arguments[0]), found)
    return found


def check_document(name: str, found: dict[str, Any]) -> None:
    section = SCHEMA.read_text(encoding="utf-8").split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    compare(found, documented("| `schema_version` | integer | 1 |\n" + section))


def hold(link: Link, name: str, path: str, mode: str) -> None:
    """Have a file open, with a view of another one, until the end."""
    fs = MemoryFileSystem.attach(name)
    with fs.open(path, mode) as file, fs.view("/d/deep/small"):
        if mode != "rb":
            file.write(b"half")
        link.send("holding")
        threading.Event().wait()


def wait(link: Link, name: str, path: str) -> None:
    fs = MemoryFileSystem.attach(name)
    link.send("waiting")
    with fs.open(path, lock_timeout=1000.0, allow_abandoned=True):
        link.send("has it")
        link.recv()


@contextlib.contextmanager
def held_and_wanted(name: str) -> Iterator[tuple[Child, Child]]:
    """A process writes /d/large, and another one waits for it."""
    with child("fork", hold, name, "/d/large", "r+b") as holder:
        assert holder.receive() == "holding"
        with child("fork", wait, name, "/d/large") as waiter:
            assert waiter.receive() == "waiting"
            until(lambda: is_waited_for(name, "/d/large"), "it waits")
            yield holder, waiter


def die_inside(link: Link, name: str, number: int) -> None:
    """Be inside a mutex until the end."""
    fs = MemoryFileSystem.attach(name)
    store = fs._attached()
    store.mutexes[number].acquire(store.threads.enter(), None)
    link.send("inside")
    threading.Event().wait()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_waited_for(name: str, path: str) -> bool:
    return any(lock.path == path and lock.state == "waiting" for lock in inspect(name).locks or ())


# --- df, tree, cp, mv ------------------------------------------------------------------------------------------------


def test_df(run: Run, named: MemoryFileSystem, store: str) -> None:
    named.mkdir("/e2")
    named.set_quota("/e2", MIB)
    lines = run("df", store).stdout.splitlines()
    assert lines[0].split() == ["STORE", "SIZE", "USED", "FREE", "USE%", "MEMORY"]
    assert re.match(rf"{store} +16 MiB +[\d.]+ KiB +15\.9 MiB +1% +[\d.]+ [KM]iB$", lines[1])
    assert re.match(r"  /e2 +1 MiB +0 B +1 MiB +0% +-$", lines[2])
    assert lines[3].startswith("/dev/shm ")
    found = document("df", store)["filesystems"]
    assert [line["path"] for line in found] == ["/", "/e2", "/dev/shm"]
    assert found[0]["used_bytes"] == named.stats()["used_bytes"]
    assert store in {line["store"] for line in document("df")["filesystems"]}
    assert str(16 * MIB) in run("df", "--bytes", store).stdout


def test_tree(run: Run, store: str) -> None:
    assert run("tree", "-s", store).stdout.splitlines() == [
        "/",
        "├── d/",
        "│   ├── deep/",
        "│   │   └── small  6 B",
        "│   └── large  97.7 KiB",
        "└── e  0 B",
        "2 directories, 3 files, 97.7 KiB",
    ]
    assert run("tree", "-L", 1, store, "/d").stdout.splitlines() == [
        "/d",
        "├── deep/",
        "└── large",
        "1 directory, 1 file, 97.7 KiB",
    ]
    paths = [entry["path"] for entry in document("tree", store)["entries"]]
    assert paths == ["/d", "/d/deep", "/d/deep/small", "/d/large", "/e"]
    assert run("tree", store, "/e").exit_code == 3


def test_ls_and_check_as_documents(store: str) -> None:
    found = document("ls", store, "/d")["entries"]
    assert [(entry["path"], entry["is_dir"], entry["size_bytes"]) for entry in found] == [
        ("/d/deep", True, 0),
        ("/d/large", False, 100_000),
    ]
    assert document("ls", store, "/e")["entries"][0]["path"] == "/e"
    assert document("check", store)["sound"] is True


def test_init_as_a_document(stores: Stores) -> None:
    name = stores.name()
    made = document("init", name, "--quota", "1MiB")
    assert (made["created"], made["shortages"], made["uuid"]) == (True, [], inspect(name).to_dict()["identity"]["uuid"])
    assert document("init", name, "--quota", "1MiB", "--exist-ok")["created"] is False


def test_cp(run: Run, named: MemoryFileSystem, store: str) -> None:
    assert run("cp", store, "/d/large", "/new/copy").exit_code == 0
    assert run("cp", store, "/d/large", "/e", "/new").exit_code == 0
    assert run("cp", "-r", store, "/d", "/new/").exit_code == 0
    assert sorted(named.listdir("/new")) == ["copy", "d", "e", "large"]
    assert named.read_bytes("/new/d/deep/small") == b"hello\n"
    assert "-f" in run("cp", store, "/d/deep/small", "/e").stderr
    before = named.stat("/e")["generation"]
    with held_open(named, "/e", "rb"):  # who reads the old one is not waited for
        assert run("cp", "-f", store, "/d/deep/small", "/e").exit_code == 0
    assert (named.read_bytes("/e"), named.stat("/e")["generation"] > before) == (b"hello\n", True)


def test_mv(run: Run, named: MemoryFileSystem, store: str) -> None:
    assert run("mv", store, "/d/large", "/new/name").exit_code == 0
    assert run("mv", store, "/d", "/e", "/new").exit_code == 0
    assert (named.listdir("/"), sorted(named.listdir("/new"))) == (["new"], ["d", "e", "name"])
    assert "-f" in run("mv", store, "/new/name", "/new/e").stderr
    assert run("mv", "-f", store, "/new/name", "/new/e").exit_code == 0
    assert named.get_size("/new/e") == 100_000


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["cp", "NAME", "/missing", "/x"], 3),
        (["cp", "NAME", "/d", "/x"], 2),
        (["cp", "NAME", "/d/large", "/e"], 4),
        (["cp", "NAME", "/d/large", "/e/below"], 4),
        (["cp", "NAME", "/d/large"], 2),
        (["mv", "NAME", "/missing", "/x"], 3),
        (["mv", "NAME", "/d", "/d/deep/x"], 2),
        (["mv", "NAME", "/", "/x"], 2),
        (["mv", "NAME", "/d/large", "/e"], 4),
        (["tree", "NAME", "/missing"], 3),
        (["restore", "NAME", "/no/such/file"], 3),
        (["restore", "NAME", __file__], 2),
        (["snapshot", "NAME", "/no/such/directory/file"], 3),
        (["kick", "0"], 2),
        (["kick", "x"], 2),
        (["top", "NAME", "--interval", "0"], 2),
        (["completion", "tcsh"], 2),
    ],
)
def test_refused(run: Run, named: MemoryFileSystem, store: str, arguments: list[str], code: int) -> None:
    before = named.export_tree("/"), named.stats()
    assert run(*(each.replace("NAME", store) for each in arguments)).exit_code == code
    assert (named.export_tree("/"), named.stats()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["df"],
        ["tree"],
        ["locks"],
        ["top", "--once"],
        ["recover"],
        ["trim"],
        ["metrics"],
        ["prune"],
        ["cp", "/a", "/b"],
        ["mv", "/a", "/b"],
        ["snapshot", "/dev/null"],
        ["restore", "/dev/null"],
    ],
)
def test_no_such_store(run: Run, stores: Stores, arguments: list[str]) -> None:
    result = run(arguments[0], stores.name(), *arguments[1:])
    assert (result.exit_code, "dmemfs-shm list" in result.stderr) == (3, True)


# --- snapshot, restore, trim -----------------------------------------------------------------------------------------


def test_snapshot_and_restore(run: Run, named: MemoryFileSystem, store: str, stores: Stores, tmp_path: Path) -> None:
    file = tmp_path / "saved"
    assert document("snapshot", store, file)["size_bytes"] == file.stat().st_size
    assert f"Saved the store {store}" in run("snapshot", store, file).stdout
    other = stores.create()
    assert document("restore", other.name, file)["files"] == 3
    assert other.export_tree("/") == named.export_tree("/")
    assert run("restore", other.name, file).exit_code == 4
    third = stores.create()
    piped = in_pipe("snapshot", store, "-")
    assert (piped.returncode, piped.stderr) == (0, b"")
    assert in_pipe("restore", third.name, "-", stdin=piped.stdout).returncode == 0
    assert third.export_tree("/") == named.export_tree("/")
    assert os.listdir(tmp_path) == ["saved"]
    text, code = on_terminal("snapshot", store, "-")
    assert (code, "no text for a terminal" in text) == (2, True)


def test_a_snapshot_that_fails_leaves_the_old_one(run: Run, named: MemoryFileSystem, store: str, tmp_path: Path) -> None:
    file = tmp_path / "saved"
    file.write_bytes(b"old")
    with held_open(named, "/e", "wb"):
        assert run("snapshot", store, file, "--lock-timeout", 0).exit_code == 5
    assert (file.read_bytes(), os.listdir(tmp_path)) == (b"old", ["saved"])


def test_trim(run: Run, named: MemoryFileSystem, store: str) -> None:
    assert "no segment is empty" in run("trim", store).stdout
    named.rmtree("/d")
    assert document("trim", store)["freed_bytes"] >= 100_000


# --- locks and top ---------------------------------------------------------------------------------------------------


def test_locks(run: Run, named: MemoryFileSystem, store: str) -> None:
    assert run("locks", store).stdout == "No file is open.\n"
    with held_and_wanted(store) as (holder, waiter):
        with stopped(holder.pid), named.open("/e"):
            rows = [line.split()[:5] for line in run("locks", store).stdout.splitlines()[1:]]
            assert rows == [
                ["/d/large", "exclusive", "held", str(holder.pid), "stopped"],
                ["/d/large", "shared", "waiting", str(waiter.pid), "alive"],
                ["/e", "shared", "held", str(os.getpid()), "alive"],
            ]
            found = document("locks", store)["locks"]
            assert [(lock["path"], lock["pid"], lock["stopped"]) for lock in found] == [
                ("/d/large", holder.pid, True),
                ("/d/large", waiter.pid, False),
                ("/e", os.getpid(), False),
            ]
            for arguments, paths in (
                (["-w"], ["/d/large"] * 2),
                (["/e"], ["/e"]),
                (["d"], ["/d/large"] * 2),
                (["/d/lar"], []),
                (["/"], ["/d/large"] * 2 + ["/e"]),
            ):
                assert [lock["path"] for lock in document("locks", store, *arguments)["locks"]] == paths
    named.recover()


def test_locks_that_cannot_be_read(run: Run, stores: Stores) -> None:
    name = stores.name()
    Path(names.SHM_DIR + names.index_name(name)).touch()
    result = run("locks", name)
    assert (result.exit_code, "unfinished" in result.stderr) == (8, True)
    assert run("top", name, "--once", "-i", 0.1).exit_code == 0


def test_locks_tells_who_is_inside_and_who_waits_for_space(run: Run, named: MemoryFileSystem, store: str) -> None:
    named.mkdir("/limited")
    named.set_quota("/limited", 1000)
    with child("fork", wait_for_space, store, "/limited") as waiter:
        until(lambda: bool(inspect(store).space_waits), "it waits")
        with child("fork", die_inside, store, 3) as inside:
            assert inside.receive() == "inside"
            text = run("locks", store).stdout
            assert re.search(rf"Inside a mutex\n.*\n +3 +{inside.pid} +alive ", text)
            assert re.search(rf"Waiting for space\n.*\n +{waiter.pid} +640 B +/limited", text)
            found = document("locks", store)
            assert ([each["number"] for each in found["mutexes"]], found["space_waits"][0]["pid"]) == ([3], waiter.pid)
            document("top", store, "--once", "-i", 0.1)
    assert named.check() == []


def test_top_in_a_pipe(named: MemoryFileSystem, store: str) -> None:
    done = in_pipe("top", store, "-n", 2, "-i", 0.2)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert len(re.findall(rf"^{store}  \d\d:\d\d:\d\d$", text, re.MULTILINE)) == 2
    for words in ("quota", "memory", "traffic", "Participants", "Busiest files"):
        assert text.count(words) == 2, words


def test_top_as_documents(named: MemoryFileSystem, store: str) -> None:
    ends = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with interruptible():
        process = subprocess.Popen(command("top", store, "-i", 0.2, "--json"), cwd=REPOSITORY, text=True, **ends)
    with process:
        assert process.stdout is not None and process.stderr is not None
        json.loads(process.stdout.readline())  # from here on it looks
        with held_open(named, "/d/large", "rb"):
            for _ in range(10):
                named.write_bytes("/e", b"new")
            changes = 0
            while changes < 10:
                found = json.loads(process.stdout.readline())
                check_document("top", found)
                busy = {each["path"]: each for each in found["traffic"]["busiest"]}
                changes += busy.get("/e", {"changes": 0})["changes"]
            assert changes == 10
            while json.loads(process.stdout.readline())["traffic"]["files_open"] != 1.0:
                pass
        process.send_signal(signal.SIGINT)
        assert (process.wait(DEADLINE_S), process.stderr.read()) == (0, "")


def test_top_ends_with_the_store(stores: Stores) -> None:
    fs = stores.create()
    with subprocess.Popen(
        command("top", fs.name, "-i", 0.1), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith(fs.name)
        MemoryFileSystem.destroy(fs.name)
        process.stdout.read()
        assert process.wait(DEADLINE_S) == 3
        assert re.fullmatch(r"dmemfs-shm: No such store: [^\n]+\n", process.stderr.read())


def test_top_follows_a_store_that_is_made_anew(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmemfs_shm.cli import top

    first = stores.create()
    pictures = top._pictures(first.name, None, 0.1, None)
    assert next(pictures)[1] is not None
    first.close()
    MemoryFileSystem.destroy(first.name)
    second = stores.create(first.name)
    seen, traffic = next(pictures)
    assert seen.identity is not None and (seen.identity.uuid, traffic) == (str(second.uuid), None)
    second.write_bytes("/f", b"x")
    traffic = next(pictures)[1]
    assert traffic is not None and [busy.path for busy in traffic.busiest] == ["/f"]
    pictures.close()


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_top_on_a_terminal(named: MemoryFileSystem, store: str, columns: int) -> None:
    text, code = on_terminal("top", store, "-n", 2, "-i", 0.2, columns=columns)
    assert code == 0
    assert text.startswith("\x1b[?1049h")
    assert text.endswith("\x1b[?25h\x1b[?1049l")
    lines = [line for frame in text.split("\x1b[H") for line in bare(frame).splitlines()]
    assert max(map(len, lines)) <= columns
    for words in (store, "quota", "Participants", str(os.getpid())):
        assert words in bare(text)


def test_top_on_a_terminal_is_ended_quietly(store: str) -> None:
    text, code = on_terminal("top", store, "-i", 0.2, interrupt_after="Participants")
    assert code == 0
    assert text.endswith("\x1b[?25h\x1b[?1049l")
    assert "interrupted" not in text


@pytest.mark.parametrize("columns", [40, 80, 160])
@pytest.mark.parametrize(
    ("what", "first"), [("locks NAME", "/d/large"), ("df NAME", "NAME"), ("list", "NAME"), ("doctor -a", "software")]
)
def test_tables_fit_the_terminal(named: MemoryFileSystem, store: str, what: str, first: str, columns: int) -> None:
    with named.open("/d/large"):
        text, _ = on_terminal(*what.replace("NAME", store).split(), columns=columns)
    lines = bare(text).splitlines()
    if what.startswith("doctor") and not lines[-1].startswith(" "):
        lines.pop()  # a sentence, which the terminal breaks
    assert max(map(len, lines)) <= columns
    assert any(line.startswith(first.replace("NAME", store)[:6]) for line in lines)
    assert "\x1b[" in text


# --- recover, kick ---------------------------------------------------------------------------------------------------


def test_recover(run: Run, named: MemoryFileSystem, store: str) -> None:
    assert run("recover", store).stdout == f"Nothing was left to do in the store {store}.\n"
    with child("fork", hold, store, "/d/large", "r+b") as holder:
        assert holder.receive() == "holding"
        with child("fork", die_inside, store, 5) as inside:
            assert inside.receive() == "inside"
            holder.kill()
            inside.kill()
        found = document("recover", store)
        assert (found["freed_locks"], found["freed_views"]) == (1, 1)
        assert f"reaped process {holder.pid}" in " ".join(found["events"])
        assert "mutex 5 recovered" in " ".join(found["events"])
        assert "/d/large" in " ".join(found["advice"])
    assert named.locks() == []
    assert "Nothing was left to do" in run("recover", store).stdout


def test_recover_in_words(run: Run, named: MemoryFileSystem, store: str) -> None:
    with child("fork", hold, store, "/d/large", "r+b") as holder:
        assert holder.receive() == "holding"
        holder.kill()
    lines = run("recover", store).stdout.splitlines()
    assert re.match(rf"Reaped process {holder_pid(lines)} \(", lines[0])
    assert lines[1] == f"Freed 1 lock, 1 view in the store {store}."
    assert lines[2].startswith("! 1 file whose writer died")


def holder_pid(lines: list[str]) -> str:
    return lines[0].split()[2]


def test_what_is_done_for_the_dead_is_told(run: Run, named: MemoryFileSystem, store: str) -> None:
    """Any command that attaches does it on its way, and says so on stderr."""
    with child("fork", hold, store, "/d/large", "rb") as holder:
        assert holder.receive() == "holding"
        holder.kill()
    result = run("rm", store, "/d/large")
    assert result.exit_code == 0
    assert re.fullmatch(r"dmemfs-shm: store [0-9a-f]{32}: reaped process \d+ [^\n]+\n", result.stderr)


def test_kick(run: Run, named: MemoryFileSystem, store: str) -> None:
    with held_and_wanted(store) as (holder, waiter):
        with stopped(holder.pid):
            found = document("kick", holder.pid)
            assert found["killed"] is False
            (part,) = found["stores"]
            assert (part["name"], part["stopped"], part["views"], part["recovered"]) == (store, True, 1, None)
            (file,) = part["files"]
            assert (file["path"], [other["pid"] for other in file["waiting"]]) == ("/d/large", [waiter.pid])
            for columns in (40, 160):
                text, code = on_terminal("kick", holder.pid, columns=columns)
                assert (code, "stopped" in text, "Nothing was done" in text) == (0, True, True)
            assert os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            found = document("kick", holder.pid, "--yes")
            assert found["killed"] is True
            assert found["stores"][0]["recovered"]["freed_locks"] == 1
            assert waiter.receive() == "has it"
            holder.join()
        gone = run("kick", holder.pid)
        assert (gone.exit_code, "dmemfs-shm recover" in gone.stderr) == (3, True)
        assert named.stat("/d/large")["abandoned"]
        waiter.send("go")


def test_kick_who_is_stopped_inside_a_mutex(run: Run, named: MemoryFileSystem, store: str) -> None:
    with child("fork", stop_inside, store, 2) as inside:
        assert inside.receive() == "stopping"
        os.waitid(os.P_PID, inside.pid, os.WSTOPPED | os.WNOWAIT)
        assert "inside 0: everybody who needs that waits" in run("kick", inside.pid).stdout
        text = run("kick", inside.pid, "--yes").stdout
        assert f"Killed process {inside.pid}." in text
        assert "Mutex 0 recovered" in text
    assert named.check() == []


def test_kick_hits_participants_only(run: Run, named: MemoryFileSystem, store: str) -> None:
    assert run("kick", os.getpid()).exit_code == 2
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        result = run("kick", stranger.pid, "--yes")
        assert (result.exit_code, "attached to no store" in result.stderr) == (3, True)
        assert stranger.poll() is None
    finally:
        stranger.communicate()


def test_kick_does_not_take_a_pid_for_the_process(run: Run, named: MemoryFileSystem, store: str) -> None:
    """The pid was used again since: another start time than the participant wrote down."""
    with child("fork", hold, store, "/d/large", "rb") as holder:
        assert holder.receive() == "holding"
        (slot,) = [who.slot for who in inspect(store).participants or () if who.pid == holder.pid]
        at = (named._attached().layout.slot_at(slot) + S_START) * WORD
        assert at > SLOTS_AT * WORD
        with open(names.SHM_DIR + names.index_name(store), "r+b", buffering=0) as index:
            was = os.pread(index.fileno(), WORD, at)
            os.pwrite(index.fileno(), (int.from_bytes(was, "little") - 1).to_bytes(WORD, "little"), at)
            try:
                assert run("kick", holder.pid, "--yes").exit_code == 3
                assert holder.process.is_alive()
            finally:
                os.pwrite(index.fileno(), was, at)
        assert run("kick", holder.pid).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's store needs root")
def test_kick_believes_no_store_of_another_user(run: Run, named: MemoryFileSystem, store: str) -> None:
    """What is in it, that user may have written: that our process is a participant, for one."""
    there = names.SHM_DIR + names.index_name(store)
    theirs = names.SHM_DIR + names.index_name(store, 65534)
    with child("fork", hold, store, "/d/large", "rb") as holder:
        assert holder.receive() == "holding"
        os.rename(there, theirs)
        try:
            assert run("locks", store, "--user", 65534).exit_code == 0
            assert run("kick", holder.pid, "--yes", "--user", 65534).exit_code == 3
            assert holder.process.is_alive()
        finally:
            os.rename(theirs, there)


def in_namespace(link: Link, name: str) -> None:
    """Have a child that is process 1 of a pid namespace of its own, and hold a file there."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000000):  # CLONE_NEWPID
        link.send(0)
        return
    pid = os.fork()
    if pid == 0:
        fs = MemoryFileSystem.attach(name)
        with fs.open("/d/large"):
            link.send(os.getpid())
            threading.Event().wait()
    link.send(pid)
    _, status = os.waitpid(pid, 0)
    link.send(os.WTERMSIG(status))


@pytest.mark.skipif(os.geteuid() != 0, reason="a pid namespace needs root")
def test_kick_finds_who_is_in_another_pid_namespace(run: Run, named: MemoryFileSystem, store: str) -> None:
    with child("fork", in_namespace, store) as outside:
        said = {outside.receive(), outside.receive()}
        if 0 in said:
            pytest.skip("no pid namespace to be had")
        (pid,) = said - {1}  # what 1 is called here
        try:
            until(lambda: any(who.pid == 1 for who in inspect(store).participants or ()), "it is attached")
            assert "own pid   1 in pid namespace" in run("kick", pid).stdout
            assert run("kick", pid, "--yes").exit_code == 0
            assert outside.receive() == signal.SIGKILL
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert named.locks() == []


# --- prune -----------------------------------------------------------------------------------------------------------


def attach_and_wait(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    fs.listdir("/")
    link.send("attached")
    threading.Event().wait()


def test_prune_a_store_whose_participants_are_dead(run: Run, stores: Stores) -> None:
    name = stores.name()
    assert run("init", name, "--quota", "1MiB").exit_code == 0
    assert run("prune", name).stdout == "Nothing to remove.\n"
    with child("fork", attach_and_wait, name) as worker:
        assert worker.receive() == "attached"
        assert run("prune", "--left", name).stdout == "Nothing to remove.\n"
        worker.kill()
    assert re.search(rf"^{name} .*its participant is dead$", run("prune", name).stdout, re.MULTILINE)
    assert inspect(name).condition == "ready"
    (line,) = document("prune", name, "--yes")["stores"]
    assert (line["name"], line["removed"]) == (name, True)
    assert run("inspect", name).exit_code == 3


def test_prune_what_everybody_left(run: Run, stores: Stores) -> None:
    name = stores.name()
    run("init", name, "--quota", "1MiB")
    assert "nobody is attached" in run("prune", "--left", name).stdout
    assert run("prune", "--left", "--yes", name).exit_code == 0
    assert run("inspect", name).exit_code == 3


def test_nothing_is_destroyed_that_somebody_has(named: MemoryFileSystem, store_name: str, stores: Stores) -> None:
    assert destroy_if_deserted(store_name) is False
    private = stores.private()
    assert (why_deserted(private.name), why_deserted(store_name, even_if_left=True)) == (None, None)
    assert destroy_if_deserted(private.name) is False
    named.close()
    for byte in (LB_ATTACH, LB_INIT):  # somebody attaches, or is creating or destroying it
        locks = ByteLocks(names.index_name(store_name))
        assert locks.try_lock(byte)
        assert destroy_if_deserted(store_name) is False
        locks.close()
        assert inspect(store_name).condition == "ready"
    assert destroy_if_deserted(store_name) is True
    with pytest.raises(FileNotFoundError):
        destroy_if_deserted(store_name)


def in_own_shm(size_mib: int, function: Any, *arguments: Any) -> Any:
    return call_in_child("fork", _in_own_shm, size_mib, function, *arguments)


def _in_own_shm(size_mib: int, function: Any, *arguments: Any) -> Any:
    own_shm(size_mib)
    warnings.simplefilter("ignore", ResourceWarning)
    return function(*arguments)


PRIVATE = """
import os, signal
from dmemfs_shm import MemoryFileSystem
fs = MemoryFileSystem(max_quota=1 << 20)
fs.write_bytes("/f", bytes(5000))
print(fs.name, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def prune_everything() -> None:
    kept = MemoryFileSystem.create("kept", max_quota=MIB)
    MemoryFileSystem.create("left", max_quota=MIB).close()
    torn = MemoryFileSystem.create("torn", max_quota=MIB)
    mark = torn.uuid.hex
    torn.write_bytes("/f", b"x")
    os.unlink("/dev/shm/dmemfs-0-torn")
    assert leftovers() == []  # this process has it mapped
    torn.close()
    Path("/dev/shm/dmemfs-0-unfinished").touch()
    owner = subprocess.run([sys.executable, "-c", PRIVATE], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, check=False)
    private = owner.stdout.strip()
    found = document("prune")
    reasons = {store["name"]: store["reason"] for store in found["stores"]}
    assert reasons == {private: "private, and no process has it", "unfinished": "its creator died"}
    assert [rest["uuid"] for rest in found["leftovers"]] == [mark]
    assert sorted(names.stores()) == sorted((0, name) for name in (private, "kept", "left", "unfinished"))
    assert "Nothing was removed. Give --yes to remove 2 stores and 1 leftover" in run_here("prune").stdout
    wrong = document("doctor", code=1)
    assert {"store", "leftovers"} <= {finding["subject"] for finding in wrong["findings"] if finding["level"] != "ok"}
    assert "Removed 2 stores and 1 leftover" in run_here("prune", "--yes").stdout
    assert names.stores() == [(0, "kept"), (0, "left")]
    assert not [entry for entry in os.listdir("/dev/shm") if mark in entry]
    assert run_here("prune").stdout == "Nothing to remove.\n"
    assert kept.check() == []
    kept.close()


@needs_own_shm
def test_prune_everything() -> None:
    in_own_shm(0, prune_everything)


# --- doctor ----------------------------------------------------------------------------------------------------------


def subjects(found: list[health.Finding]) -> set[str]:
    return {finding.subject for finding in found if finding.level != health.OK}


def test_doctor_looks_at_this_machine() -> None:
    result = run_here("doctor", "--json")
    found = json.loads(result.stdout)
    check_document("doctor", found)
    assert result.exit_code == (1 if found["wrong"] else 0)
    assert {"software", "/dev/shm", "RAM", "cgroup", "RemoveIPC", "open files", "leftovers"} <= {
        finding["subject"] for finding in found["findings"]
    }
    assert all(bool(finding["remedy"]) == (finding["level"] != "ok") for finding in found["findings"])
    assert run_here("doctor", "-a").exit_code in (0, 1)  # other tests' stores come and go meanwhile


def small_limits() -> set[str]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    return subjects([*health.findings()])


def test_doctor_finds_small_limits() -> None:
    assert {"open files", "file size", "address space"} <= call_in_child("fork", small_limits)


def small_shm() -> tuple[set[str], int, str]:
    MemoryFileSystem.create("large", max_quota=512 * MIB).close()
    before = subjects([*health.findings()])
    Path("/dev/shm/filler").write_bytes(bytes(60 * MIB))
    result = run_here("doctor")
    return before, result.exit_code, result.stdout


@needs_own_shm
def test_doctor_finds_a_small_shm() -> None:
    found, code, text = in_own_shm(64, small_shm)
    assert {"/dev/shm", "quotas"} <= found
    assert code == 1
    assert re.search(r"^/dev/shm +warning +[\d.]+ [KM]iB free of 64 MiB", text, re.MULTILINE)
    assert "remount,size=SIZE" in text


@pytest.mark.parametrize(
    ("files", "lingers", "level"),
    [
        ({}, False, health.BAD),
        ({}, True, health.OK),
        ({"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, False, health.BAD),
        ({"etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, False, health.OK),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, False, health.OK),
        ({"usr/lib/systemd/logind.conf": "[Login]\nRemoveIPC=no\n", "etc/systemd/logind.conf": "[Login]\n"}, False, health.BAD),
        (
            {
                "etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
                "usr/lib/systemd/logind.conf.d/50-site.conf": "[Login]\nRemoveIPC=yes\n",
            },
            False,
            health.BAD,
        ),
        (
            {
                "usr/lib/systemd/logind.conf.d/50-site.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/50-site.conf": "[Login]\nRemoveIPC=off\n",
            },
            False,
            health.OK,
        ),
        ({"etc/systemd/logind.conf": "no section\n"}, False, health.BAD),
    ],
)
def test_doctor_and_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], lingers: bool, level: str
) -> None:
    (finding,) = health._remove_ipc(str(tmp_path))
    assert finding.level == health.OK  # systemd does not run
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    if lingers:
        (tmp_path / "var/lib/systemd/linger").mkdir(parents=True)
        (tmp_path / "var/lib/systemd/linger" / health._user_name()).touch()
    monkeypatch.setattr(health, "SYSTEM_UID_MAX", -1)
    (finding,) = health._remove_ipc(str(tmp_path))
    assert finding.level == level
    assert ("enable-linger" in finding.remedy) == (level != health.OK)
    monkeypatch.setattr(health, "SYSTEM_UID_MAX", os.geteuid())
    (finding,) = health._remove_ipc(str(tmp_path))
    assert finding.level == health.OK


def test_doctor_and_memory(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1000000 kB\nMemAvailable: 100000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    (tmp_path / "sys/fs/cgroup/job").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("268435456\n")
    (tmp_path / "sys/fs/cgroup/job/memory.current").write_text("200000000\n")
    (tmp_path / "proc/sys/vm").mkdir(parents=True)
    (tmp_path / "proc/sys/vm/max_map_count").write_text("1000\n")
    (tmp_path / "proc/sys/vm/overcommit_memory").write_text("2\n")
    assert {"RAM", "cgroup", "mappings", "overcommit"} <= subjects([*health.findings(str(tmp_path))])


# --- metrics ---------------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values but uid...) of what a Prometheus server would read."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "uid"}
            found[sample.name.removeprefix(PREFIX), *labels.values()] = sample.value
    return found


def test_metrics(run: Run, named: MemoryFileSystem, store: str) -> None:
    odd = '/odd "quoted"\\\nä'
    named.mkdir(odd)
    named.set_quota(odd, 5000)
    with held_and_wanted(store) as (holder, _):
        with stopped(holder.pid):
            text = run("metrics", store).stdout
    found = samples(text)
    stats = named.stats()
    assert found["quota_bytes", store] == 16 * MIB
    assert found["used_bytes", store] == stats["used_bytes"]
    assert found["directory_quota_bytes", store, odd.replace("\\", "/")] == 5000
    assert found["participants", store, "stopped"] == 1
    assert found["participants", store, "running"] == 2
    assert found["locks", store, "exclusive", "held"] == 1
    assert found["locks", store, "shared", "waiting"] == 1
    assert found["lock_wait_max_seconds", store] > 0
    assert found["condition", store, "ready"] == 1
    assert found["condition", store, "damaged"] == 0
    assert found["name_changes_total", store] > 0
    assert {name for name, *_ in found} <= set(FAMILIES)
    assert set(FAMILIES) - {name for name, *_ in found} == {"nodes_limit"}


def test_metrics_of_every_store(run: Run, named: MemoryFileSystem, fs: MemoryFileSystem) -> None:
    found = samples(run("metrics").stdout)
    assert ("files", named.name) in found
    assert ("files", fs.name) in found
    assert found["shm_size_bytes",] > 0


def test_metrics_of_a_damaged_store(run: Run, named: MemoryFileSystem, store: str) -> None:
    with open(names.SHM_DIR + names.index_name(store), "r+b", buffering=0) as index:
        at = (named._attached().layout.slot_at(0) - SLOTS_AT) * WORD + 2 * 4096 + 16 * WORD  # USED
        was = os.pread(index.fileno(), WORD, at)
        os.pwrite(index.fileno(), (1 << 60).to_bytes(WORD, "little"), at)
        try:
            found = samples(run("metrics", store).stdout)
        finally:
            os.pwrite(index.fileno(), was, at)
    assert (found["condition", store, "damaged"], found["condition", store, "ready"]) == (1, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_names_of_metrics_say_their_units(name: str) -> None:
    kind, text = FAMILIES[name]
    assert (kind == "counter") == name.endswith("_total")
    assert text.endswith(".")
    counted = {"condition", "files", "directories", "nodes_limit", "abandoned_files", "participants", "locks"}
    assert name in counted | {"space_waiters", "mutexes"} or name.endswith(("_bytes", "_seconds", "_total"))


# --- completion ------------------------------------------------------------------------------------------------------


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    script = (
        'eval "$COMPLETION"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        'compopt() { :; }; _dmemfs_shm_completion dmemfs-shm; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "bash", "dmemfs-shm", *words],
        env=os.environ | {"PATH": path, "COMPLETION": run_here("completion", "bash").stdout},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(named: MemoryFileSystem, store: str) -> None:
    for path in ("/d/two words", "/d/evil\x1bname", "/only/deep/file"):
        named.mkdir(os.path.dirname(path), exist_ok=True)
        named.write_bytes(path, b"")
    before = named.participants()
    assert complete("sn") == ["snapshot"]
    assert complete("ls", store[:-1]) == [store]
    assert complete("cat", store, "/") == ["/d/", "/e", "/only/"]
    assert complete("cat", store, "/d/") == ["/d/deep/", "/d/large"]
    assert complete("cp", store, "/e", "/on") == ["/only/", "/only/deep/"]
    assert complete("ls", "no-such-store", "/") == []
    assert "--json" in complete("top", "--")
    assert named.participants() == before


def test_completion_hangs_behind_nobody(named: MemoryFileSystem, store: str) -> None:
    with child("fork", stop_inside, store, 2) as inside:
        assert inside.receive() == "stopping"
        os.waitid(os.P_PID, inside.pid, os.WSTOPPED | os.WNOWAIT)
        assert "/d/" in complete("cat", store, "/")
        inside.kill()
    named.recover()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    text = run("completion", shell).stdout
    assert "_DMEMFS_SHM_COMPLETE" in text and "dmemfs-shm" in text


# --- documents -------------------------------------------------------------------------------------------------------


def test_every_document_is_documented() -> None:
    """A command with --json has a section, or is in the other file."""
    from dmemfs_shm.cli import main

    sections = set(re.findall(r"^## `([a-z]+)`$", SCHEMA.read_text(encoding="utf-8"), re.MULTILINE))
    with_json = set()
    for name in COMMANDS:
        found = main.get_command(None, name)  # type: ignore[arg-type]
        assert found is not None
        if any("--json" in parameter.opts for parameter in found.params):
            with_json.add(name)
    assert sections | {"inspect", "list"} == with_json


def test_times_are_those_of_now(store: str) -> None:
    assert abs(document("locks", store)["taken_at"] - time.time()) < DEADLINE_S
