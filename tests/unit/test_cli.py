"""The command line: what each command does, what it says, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from dmemfs_shm import MemoryFileSystem
from dmemfs_shm.cli import main
from dmemfs_shm.cli.errors import EXIT_CODES
from dmemfs_shm.cli.group import COMMANDS
from dmemfs_shm.cli.text import age, printable, raw
from dmemfs_shm.store import names
from dmemfs_shm.store.layout import FINGERPRINT, USED, W_FINGERPRINT, W_VERSION, WORD

from ..command_line import REPOSITORY, Run, bare, command, in_pipe, interruptible, on_terminal, run_here
from ..conftest import MIB, Stores
from ..processes import DEADLINE_S, Link, child, held_open


@pytest.fixture
def run() -> Run:
    """Runs the command line in this process."""
    return run_here


@pytest.fixture
def store(stores: Stores, run: Run) -> str:
    """The name of a store of 16 MiB that nobody is attached to."""
    name = stores.name()
    assert run("init", name, "--quota", "16MiB").exit_code == 0
    with_fs = MemoryFileSystem.attach(name)
    stores.watch(with_fs)
    with_fs.close()
    return name


# --- the group -------------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code(run: Run) -> None:
    text = run("--help").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code} +{re.escape(meaning)}", text, re.MULTILINE), code
    from dmemfs_shm.cli import errors

    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^{code} +{re.escape(meaning)}$", errors.__doc__ or "", re.MULTILINE), code


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_of_its_own(run: Run, name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert isinstance(main.get_command(click.Context(main), name), click.Command)


def test_the_library_loads_neither_click_nor_rich() -> None:
    check = "import sys, dmemfs_shm; sys.exit(any(m.split('.')[0] in ('click', 'rich') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, timeout=DEADLINE_S, check=False).returncode == 0


def test_help_loads_no_command_and_no_rich() -> None:
    check = (
        "import sys\n"
        "from dmemfs_shm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('rich' in sys.modules or 'dmemfs_shm.cli.inspect' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, timeout=DEADLINE_S, check=False, capture_output=True)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["--bogus"],
        ["init"],
        ["init", "x"],
        ["init", "x", "--quota", "much"],
        ["init", "x", "--quota", "-1"],
        ["init", "x", "--quota", "1MiB", "--max-nodes", "0"],
        ["init", "x", "--quota", "1MiB", "--backend", "magic"],
        ["init", "UPPER", "--quota", "1MiB"],
        ["init", "../x", "--quota", "1MiB"],
        ["init", "x", "--quota", "999TiB"],
        ["ls"],
        ["ls", "UPPER"],
        ["inspect", "a/b"],
        ["inspect", "x", "--user", "nobody-of-that-name"],
        ["put", "x", "y"],
        ["rm", "x"],
    ],
)
def test_usage(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["inspect"], ["ls"], ["cat", "/f"], ["get", "/f", "x"], ["rm", "/f"], ["check"], ["destroy"]]
)
def test_no_such_store(run: Run, stores: Stores, arguments: list[str]) -> None:
    result = run(arguments[0], stores.name(), *arguments[1:])
    assert result.exit_code == 3
    assert "dmemfs-shm list" in result.stderr


# --- init, list, destroy ---------------------------------------------------------------------------------------------


def test_init_says_what_it_reserved(run: Run, stores: Stores) -> None:
    name = stores.name()
    result = run("init", name, "--quota", "1.5MiB", "--max-nodes", 1000, "--max-participants", 7, "--backend", "ofd")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"Created the store {name}." in result.stdout
    for words in ("1.5 MiB", "memory now", "at most 1,000 files and directories", "at most 7"):
        assert words in result.stdout
    seen = json.loads(run("inspect", name, "--json").stdout)
    assert seen["parameters"] == {
        "max_quota": 3 * MIB // 2,
        "max_nodes": 1000,
        "max_participants": 7,
        "backend": "ofd",
        "file_charge": 128,
        "default_storage": "auto",
    }


def test_init_warns_of_what_the_machine_has_not(run: Run, stores: Stores) -> None:
    result = run("init", stores.name(), "--quota", "60TiB")
    assert result.exit_code == 0
    assert re.search(r"^dmemfs-shm: warning: The quota is 60 TiB and /dev/shm has [\d.]+ [GM]iB left", result.stderr)


def test_init_where_one_stands(run: Run, store: str) -> None:
    assert run("init", store, "--quota", "16MiB").exit_code == 4
    again = run("init", store, "--quota", "16MiB", "--exist-ok")
    assert again.exit_code == 0
    assert "stands already" in again.stdout
    other = run("init", store, "--quota", "17MiB", "--exist-ok")
    assert other.exit_code == 4
    assert "max_quota=16777216 (asked for 17825792)" in other.stderr


def test_list(run: Run, store: str, fs: MemoryFileSystem) -> None:
    text = run("list").stdout
    assert re.search(rf"^{store} +.*ready +16 MiB +0 B ", text, re.MULTILINE)
    assert re.search(rf"^{fs.name} +.*private ", text, re.MULTILINE)
    document = json.loads(run("list", "--json").stdout)
    assert {store, fs.name} <= {line["name"] for line in document["stores"]}
    assert run("list", "--user", "12345").stdout == "No stores.\n"


def test_destroy(run: Run, store: str) -> None:
    assert run("destroy", store).exit_code == 0
    assert run("destroy", store).exit_code == 3


def test_destroy_asks_when_it_is_used(run: Run, store: str) -> None:
    fs = MemoryFileSystem.attach(store)
    refused = run("destroy", store)
    assert refused.exit_code == 5
    assert "--yes" in refused.stderr
    text, code = on_terminal("destroy", store, answer="n\n")
    assert (code, "Nothing was destroyed." in text, str(os.getpid()) in text) == (5, True, True)
    assert fs.listdir("/") == []
    text, code = on_terminal("destroy", store, answer="y\n")
    assert (code, "Destroyed" in text) == (0, True)
    fs.close()


def test_destroy_whatever_its_condition(run: Run, store: str) -> None:
    with open(names.SHM_DIR + names.index_name(store), "r+b") as index:
        index.seek(W_VERSION * WORD)
        index.write((99).to_bytes(WORD, "little") + (FINGERPRINT ^ 1).to_bytes(WORD, "little"))
    result = run("ls", store)
    assert result.exit_code == 8
    assert "layout version 99" in result.stderr
    assert run("inspect", store).exit_code == 1
    assert run("destroy", store).exit_code == 0


# --- files in and out ------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files of all sizes, some with difficult names."""
    top = tmp_path / "tree"
    (top / "sub" / "empty").mkdir(parents=True)
    for name, content in {
        "empty.txt": b"",
        "small.txt": b"hello\n",
        "sub/large.bin": os.urandom(3 * MIB),
        "sub/with space and ä.txt": "ä".encode(),
        "sub/" + "n" * 200: b"long",
    }.items():
        (top / name).write_bytes(content)
    (top / "sub" / "link").symlink_to("large.bin")
    with open(os.fsencode(top) + b"/not \xff utf-8", "wb") as odd:
        odd.write(b"odd")
    return top


def contents(top: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(top)): path.read_bytes() if path.is_file() else None for path in sorted(top.rglob("*"))}


def test_a_tree_there_and_back(run: Run, store: str, tree: Path, tmp_path: Path) -> None:
    assert "Put 7 files, 6.00 MiB." in run("put", store, tree, "/copy").stdout
    assert "Got 7 files, 6.00 MiB." in run("get", store, "/copy", tmp_path / "back").stdout
    assert contents(tmp_path / "back") == contents(tree)
    assert run("check", store).exit_code == 0
    assert not list(tmp_path.rglob("*.dmemfs-part*"))


def test_where_things_go(run: Run, store: str, tree: Path, tmp_path: Path) -> None:
    small, empty = tree / "small.txt", tree / "empty.txt"
    assert run("put", store, small, "/new/name.txt", "-q").stdout == ""
    assert run("put", store, small, empty, "/into").exit_code == 0
    assert run("put", store, small, "/slash/").exit_code == 0
    assert run("put", store, small, "/into").exit_code == 0
    assert run("put", store, f"{tree}/sub", "/").exit_code == 0
    paths = run("ls", store, "/").stdout.split()
    assert paths == ["into/", "new/", "slash/", "sub/"]
    assert run("ls", store, "/into").stdout == "empty.txt\nsmall.txt\n"
    assert run("ls", store, "/slash").stdout == "small.txt\n"
    assert run("cat", store, "/new/name.txt", "/into/small.txt").stdout == "hello\nhello\n"
    (tmp_path / "there").mkdir()
    assert run("get", store, "/new/name.txt", tmp_path / "there").exit_code == 0
    assert (tmp_path / "there" / "name.txt").read_text() == "hello\n"
    assert run("get", store, "/into", tmp_path / "there").exit_code == 0
    assert contents(tmp_path / "there" / "into") == {"empty.txt": b"", "small.txt": b"hello\n"}


def test_put_replaces_and_takes_standard_input(run: Run, store: str) -> None:
    for text in ("first", "second"):
        assert run("put", store, "-", "/f", stdin=text).exit_code == 0
        assert run("cat", store, "/f").stdout == text
    assert run("put", store, "-", "/d/", stdin="x").exit_code == 2


def test_put_leaves_out_what_is_no_file(run: Run, store: str, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    os.mkfifo(top / "pipe")
    (top / "f").write_bytes(b"x")
    result = run("put", store, top, "/")
    assert (result.exit_code, "Put 1 file" in result.stdout) == (0, True)
    assert "left out" in result.stderr


def test_put_refuses_a_backslash(run: Run, store: str, tmp_path: Path) -> None:
    (tmp_path / "a\\b").write_bytes(b"x")
    assert run("put", store, tmp_path, "/").exit_code == 2
    assert run("ls", store).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["put", "NAME", "/no/such/file", "/x"], 3),
        (["put", "NAME", "TREE/small.txt", "/file/below"], 4),
        (["put", "NAME", "TREE", "/file"], 4),
        (["put", "NAME", "TREE/small.txt", "/../x"], 2),
        (["get", "NAME", "/missing", "x"], 3),
        (["get", "NAME", "/file", "/no/such/directory/x"], 3),
        (["cat", "NAME", "/missing"], 3),
        (["cat", "NAME", "/directory"], 2),
        (["ls", "NAME", "/missing"], 3),
        (["rm", "NAME", "/missing"], 3),
        (["rm", "NAME", "/directory"], 2),
        (["rm", "-r", "NAME", "/"], 2),
    ],
)
def test_refused(run: Run, store: str, tree: Path, arguments: list[str], code: int) -> None:
    run("put", store, "-", "/file", stdin="x")
    run("put", store, tree, "/directory")
    before = run("inspect", store, "--json").stdout
    result = run(*(a.replace("NAME", store).replace("TREE", str(tree)) for a in arguments))
    assert result.exit_code == code, result.stderr
    assert json.loads(before)["quota"] == json.loads(run("inspect", store, "--json").stdout)["quota"]


def test_ls(run: Run, store: str, tree: Path) -> None:
    run("put", store, tree, "/t")
    lines = run("ls", "-l", store, "/t/sub").stdout.splitlines()
    assert lines[0].split() == ["SIZE", "MODIFIED", "NAME"]
    assert re.fullmatch(
        r" *3 MiB  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d  large\.bin", next(line for line in lines if line.endswith("large.bin"))
    )
    assert run("ls", "-l", "--bytes", store, "/t/small.txt").stdout.split()[3] == "6"
    assert run("ls", store, "/t/small.txt").stdout == "/t/small.txt\n"
    assert in_pipe("ls", store, "/t").stdout == b"empty.txt\nnot \xff utf-8\nsmall.txt\nsub/\n"


def test_rm(run: Run, store: str, tree: Path) -> None:
    run("put", store, tree, "/t")
    assert run("rm", store, "/t/small.txt", "/t/empty.txt").exit_code == 0
    assert "-r" in run("rm", store, "/t").stderr
    assert run("rm", "-r", store, "/t").exit_code == 0
    assert run("ls", store).stdout == ""
    assert json.loads(run("inspect", store, "--json").stdout)["quota"]["used_bytes"] == 0


def test_no_space(run: Run, stores: Stores, tree: Path) -> None:
    name = stores.name()
    run("init", name, "--quota", "1MiB", "--max-nodes", 3)
    result = run("put", name, tree / "sub" / "large.bin", "/f")
    assert result.exit_code == 6
    assert "requested 3.00 MiB, only 1 MiB available. Remove files, or create a store with a larger --quota." in result.stderr
    run("put", name, "-", "/1", stdin="x")
    run("put", name, "-", "/2", stdin="x")
    assert "--max-nodes" in run("put", name, "-", "/3", stdin="x").stderr


def test_in_use(run: Run, store: str, tmp_path: Path) -> None:
    run("put", store, "-", "/f", stdin="x")
    fs = MemoryFileSystem.attach(store)
    with held_open(fs, "/f", "r+b"):
        for arguments in (["cat", store, "/f"], ["get", store, "/f", tmp_path / "none"], ["put", store, __file__, "/f"]):
            result = run(*arguments, "--lock-timeout", 0)
            assert result.exit_code == 5
            assert str(os.getpid()) in result.stderr
        assert run("rm", store, "/f").exit_code == 5
    fs.close()
    assert not (tmp_path / "none").exists()


def abandon(link: Link, name: str) -> None:
    fs = MemoryFileSystem.attach(name)
    with fs.open("/f", "wb") as file:
        file.write(b"half of it")
        link.send("written")
        signal.pause()


def test_abandoned(run: Run, store: str, tmp_path: Path) -> None:
    with child("fork", abandon, store) as writer:
        assert writer.receive() == "written"
        writer.kill()
    result = run("cat", store, "/f")
    assert result.exit_code == 8
    assert result.stderr.splitlines()[-1].endswith("Give --allow-abandoned to have what there is.")
    assert run("cat", store, "/f", "--allow-abandoned").stdout == "half of it"
    assert run("get", store, "/f", tmp_path / "f", "--allow-abandoned").exit_code == 0
    assert "abandoned" in run("ls", "-l", store).stdout
    assert "whose writer died" in run("inspect", store).stdout


def test_check_finds_damage(run: Run, store: str) -> None:
    assert run("check", store).stdout == f"The store {store} is sound.\n"
    with open(names.SHM_DIR + names.index_name(store), "r+b") as index:
        index.seek(USED * WORD)
        index.write((4096).to_bytes(WORD, "little"))
        index.flush()
        result = run("check", store)
        assert result.exit_code == 1
        assert result.stdout.splitlines() == ["4096 bytes used recorded, 0 found", f"1 finding: the store {store} is damaged."]
        index.seek(W_FINGERPRINT * WORD)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_store(stores: Stores, run: Run) -> None:
    name = stores.name()
    run("init", name, "--quota", "1MiB")
    path = names.SHM_DIR + names.index_name(name)
    os.chown(path, 65534, -1)
    try:
        assert run("ls", name).exit_code == 7
        assert run("destroy", name).exit_code == 7
    finally:
        os.chown(path, 0, -1)


# --- pipes and terminals ---------------------------------------------------------------------------------------------


def test_bytes_through_a_pipe(store: str) -> None:
    data = os.urandom(300_000)
    assert in_pipe("put", store, "-", "/f", stdin=data).returncode == 0
    done = in_pipe("cat", store, "/f")
    assert (done.stdout == data, done.stderr, done.returncode) == (True, b"", 0)


@pytest.mark.parametrize("what", ["cat", "inspect"])
def test_a_reader_that_leaves(store: str, what: str) -> None:
    in_pipe("put", store, "-", "/f", stdin=bytes(5 * MIB))
    arguments = ("cat", store, "/f") if what == "cat" else ("inspect", store, "--json")
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None and process.stderr is not None
        if what == "cat":
            process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(DEADLINE_S) == 141


def test_inspect_in_a_pipe_is_plain_and_whole(store: str) -> None:
    path = "/" + "/".join(["a long name in a deep tree"] * 8)
    in_pipe("put", store, "-", path, stdin=bytes(5000))
    done = in_pipe("inspect", store)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert "\x1b" not in text and "…" not in text
    assert any(line.endswith(path) for line in text.splitlines())


@pytest.mark.parametrize("columns", [40, 60, 80, 160])
def test_inspect_on_a_terminal_fits_it(store: str, columns: int) -> None:
    path = "/" + "/".join(["a long name in a deep tree"] * 8)
    in_pipe("put", store, "-", path, stdin=bytes(5000))
    fs = MemoryFileSystem.attach(store)
    with fs.open(path):
        text, code = on_terminal("inspect", store, columns=columns)
    fs.close()
    assert code == 0
    assert "\x1b[" in text
    lines = bare(text).splitlines()
    assert max(map(len, lines)) <= columns
    for words in ("Space", "Participants", "File locks", "Mutexes", "Largest files", "Parameters", "shared", "held"):
        assert any(words in line for line in lines), words


def test_no_terminal_is_obeyed_by_a_name(run: Run, store: str) -> None:
    run("put", store, "-", "/evil\x1b]0;title\x07\n[bold red]name", stdin="x")
    text, _ = on_terminal("ls", store)
    assert "\\x1b]0;title\\x07\\n[bold red]name" in text
    for arguments in (["inspect", store], ["ls", "-l", store]):
        text, _ = on_terminal(*arguments, columns=200)
        assert "[bold red]name" in bare(text)
        assert "\x07" not in text


def test_a_bar_for_many_files(store: str, tmp_path: Path) -> None:
    top = tmp_path / "many"
    top.mkdir()
    for number in range(250):
        (top / str(number)).write_bytes(bytes(100))
    text, code = on_terminal("put", store, top, "/many")
    assert code == 0
    assert "/s" in text and "\x1b[?25l" in text
    assert bare(text).rstrip().endswith("Put 250 files, 24.4 KiB.")
    text, code = on_terminal("get", store, "/many", tmp_path / "back")
    assert (code, "\x1b[?25l" in text) == (0, True)
    assert "\x1b" not in in_pipe("put", store, top, "/again").stderr.decode()


def test_interrupted(store: str) -> None:
    with interruptible():
        process = subprocess.Popen(
            command("put", store, "-", "/f"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY
        )
    with process:
        assert process.stderr is not None
        deadline = time.monotonic() + DEADLINE_S
        fs = MemoryFileSystem.attach(store)
        while len(fs.participants()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        fs.close()
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(DEADLINE_S) == 130
        assert err.strip().splitlines() == [b"dmemfs-shm: interrupted."]


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "now"),
        (-5, "now"),
        (1, "1 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (1000, "16 min"),
        (3600, "1 h"),
        (18120, "5 h 2 min"),
        (80000, "22 h"),
        (5 * 86400, "5 days"),
    ],
)
def test_age(seconds: float, text: str) -> None:
    assert age(1e9, 1e9 + seconds) == text


def test_age_of_nonsense() -> None:
    assert age(0.0, 1e9) == "?"
    assert age(1.8e19 / 1e9, 1.7e9) == "now"


@pytest.mark.parametrize("text", ["plain", "ä", "\x1b[1m", "\udcff", "\x00\n\t", "\u202e"])
def test_printable(text: str) -> None:
    io.TextIOWrapper(io.BytesIO(), encoding="utf-8").write(printable(text))
    assert printable(text).isprintable()
    assert raw(text)


def test_every_error_has_a_meaning() -> None:
    from dmemfs_shm import errors
    from dmemfs_shm.cli.errors import explain

    samples: dict[str, Any] = {
        "MFSVersionError": ("s", 2, 1),
        "MFSQuotaExceededError": (5000, 1000),
        "MFSDirectoryQuotaError": ("/d", 5000, 1000),
        "MFSNodeLimitExceededError": (5, 5),
        "MFSViewError": (1, 2),
        "MFSLockTimeoutError": ("/f", True, ("a", "b")),
        "MFSFileOpenError": ("/f", ("a",)),
        "MFSAbandonedFileError": ("/f",),
        "MFSCorruptStoreError": ("index", 8, "x", 5),
    }
    for name in errors.__all__:
        if name != "MFSError":
            error = getattr(errors, name)(*samples.get(name, ("It is so\nand so",)))
            text, code = explain(error, "cat", "etl")
            assert text
            assert "STORE" not in text
            assert code in EXIT_CODES and code != 0, name
