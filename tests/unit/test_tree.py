"""The tree: directories, renames, copies, removals, and every way of looking at it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dmemfs_shm import MemoryFileSystem

from ..conftest import Stores


def tree(fs: MemoryFileSystem, top: str = "/") -> dict[str, bytes | None]:
    """Every path below `top`, with the content of files and None for directories."""
    found: dict[str, bytes | None] = {}
    for path, dirs, files in fs.walk(top):
        base = path.rstrip("/")
        found.update({f"{base}/{name}": None for name in dirs})
        found.update({f"{base}/{name}": fs.read_bytes(f"{base}/{name}") for name in files})
    return found


@pytest.fixture
def fs(fs: MemoryFileSystem) -> MemoryFileSystem:
    """A store with a small tree."""
    fs.mkdir("/a/b")
    fs.mkdir("/empty")
    fs.write_bytes("/top", b"top")
    fs.write_bytes("/a/one", b"1")
    fs.write_bytes("/a/b/two", b"22")
    return fs


TREE = {"/a": None, "/a/b": None, "/empty": None, "/top": b"top", "/a/one": b"1", "/a/b/two": b"22"}


@pytest.fixture
def unchanged(fs: MemoryFileSystem) -> Iterator[None]:
    """What the test does must leave the tree as it was."""
    yield
    assert tree(fs) == TREE


# --- mkdir -----------------------------------------------------------------------------------------------------------


def test_mkdir_makes_the_parents(fs: MemoryFileSystem) -> None:
    """mkdir creates every missing directory on the way."""
    fs.mkdir("/x/y/z")
    assert fs.is_dir("/x") and fs.is_dir("/x/y") and fs.is_dir("/x/y/z")
    assert fs.listdir("/x/y/z") == []


@pytest.mark.parametrize("path", ["/a", "/a/b", "/"])
def test_mkdir_over_a_directory(fs: MemoryFileSystem, unchanged: None, path: str) -> None:
    """An existing directory is FileExistsError, unless exist_ok."""
    with pytest.raises(FileExistsError):
        fs.mkdir(path)
    fs.mkdir(path, exist_ok=True)


@pytest.mark.parametrize("path", ["/top", "/top/x", "/top/x/y", "/a/one/x"])
@pytest.mark.parametrize("exist_ok", [False, True])
def test_mkdir_over_or_below_a_file(fs: MemoryFileSystem, unchanged: None, path: str, exist_ok: bool) -> None:
    """A file in the way is FileExistsError, exist_ok or not."""
    with pytest.raises(FileExistsError):
        fs.mkdir(path, exist_ok=exist_ok)


# --- rename, move ----------------------------------------------------------------------------------------------------

RENAMERS: dict[str, Callable[[MemoryFileSystem, str, str], None]] = {
    "rename": lambda fs, src, dst: fs.rename(src, dst),
    "move": lambda fs, src, dst: fs.move(src, dst),
}
renamers = pytest.mark.parametrize("renamer", RENAMERS.values(), ids=RENAMERS.keys())


@renamers
def test_rename_file(fs: MemoryFileSystem, renamer: Callable[..., None]) -> None:
    """A file goes to another directory under another name with content, generation and times."""
    before = fs.stat("/a/one")
    renamer(fs, "/a/one", "/empty/uno")
    assert tree(fs) == {**{path: data for path, data in TREE.items() if path != "/a/one"}, "/empty/uno": b"1"}
    assert fs.stat("/empty/uno") == before


@renamers
def test_rename_directory(fs: MemoryFileSystem, renamer: Callable[..., None]) -> None:
    """A directory goes with everything below it."""
    renamer(fs, "/a", "/empty/c")
    assert tree(fs) == {
        "/empty": None,
        "/empty/c": None,
        "/empty/c/b": None,
        "/empty/c/one": b"1",
        "/empty/c/b/two": b"22",
        "/top": b"top",
    }


@renamers
def test_rename_there_and_back(fs: MemoryFileSystem, unchanged: None, renamer: Callable[..., None]) -> None:
    """A name given up can be taken again."""
    renamer(fs, "/a", "/z")
    renamer(fs, "/z", "/a")
    renamer(fs, "/top", "/bottom")
    renamer(fs, "/bottom", "/top")


@renamers
@pytest.mark.parametrize("dst", ["/top", "/a/one", "/a", "/empty", "/"])
def test_rename_onto_something(fs: MemoryFileSystem, unchanged: None, renamer: Callable[..., None], dst: str) -> None:
    """Whatever stands at the destination, the source itself too, is FileExistsError."""
    for src in ("/top", "/a/b"):
        with pytest.raises(FileExistsError):
            renamer(fs, src, dst)


@renamers
def test_rename_nothing(fs: MemoryFileSystem, unchanged: None, renamer: Callable[..., None]) -> None:
    """A missing source is FileNotFoundError, and no directory is made for it."""
    for src in ("/none", "/none/x", "/top/x"):
        with pytest.raises(FileNotFoundError):
            renamer(fs, src, "/new/dir/x")


def test_rename_of_an_open_file_to_nowhere(fs: MemoryFileSystem) -> None:
    """That its directory is missing is said before that the file is open, as D-MemFS does; `move` makes the directory."""
    with fs.open("/top"):
        with pytest.raises(FileNotFoundError):
            fs.rename("/top", "/none/top")
        with pytest.raises(BlockingIOError):
            fs.move("/top", "/none/top")
    assert tree(fs) == TREE


@renamers
def test_rename_the_root(fs: MemoryFileSystem, unchanged: None, renamer: Callable[..., None]) -> None:
    """The root stays."""
    with pytest.raises(ValueError):
        renamer(fs, "/", "/x")


@renamers
@pytest.mark.parametrize("dst", ["/a/x", "/a/b/x"])
def test_rename_into_itself(fs: MemoryFileSystem, unchanged: None, renamer: Callable[..., None], dst: str) -> None:
    """A directory below itself is ValueError."""
    with pytest.raises(ValueError):
        renamer(fs, "/a", dst)


def test_move_into_itself_makes_nothing(fs: MemoryFileSystem, unchanged: None) -> None:
    """The directories that move would have made are not there after the refusal."""
    with pytest.raises(ValueError):
        fs.move("/a", "/a/new/x")


@renamers
def test_rename_beside_a_longer_name(fs: MemoryFileSystem, renamer: Callable[..., None]) -> None:
    """/a is no parent of /ab."""
    renamer(fs, "/a", "/ab")
    assert tree(fs, "/ab") == {"/ab/b": None, "/ab/one": b"1", "/ab/b/two": b"22"}


def test_rename_needs_the_parent(fs: MemoryFileSystem, unchanged: None) -> None:
    """rename makes no directory."""
    for dst in ("/new/x", "/top/x"):
        with pytest.raises(FileNotFoundError):
            fs.rename("/a/one", dst)


def test_move_makes_the_parents(fs: MemoryFileSystem) -> None:
    """move does."""
    fs.move("/a/one", "/new/deep/x")
    assert tree(fs, "/new") == {"/new/deep": None, "/new/deep/x": b"1"}


def test_move_below_a_file(fs: MemoryFileSystem, unchanged: None) -> None:
    """A file in place of a parent directory is an OSError, and nothing moves."""
    with pytest.raises(FileExistsError):
        fs.move("/a/one", "/top/x/y")
    with pytest.raises((FileExistsError, FileNotFoundError, NotADirectoryError)):
        fs.move("/a/one", "/top/x")


# --- replace ---------------------------------------------------------------------------------------------------------


def test_replace_puts_the_source_there(fs: MemoryFileSystem) -> None:
    """The content of src takes dst's place; src is gone."""
    before = fs.stat("/a/b/two")
    fs.replace("/a/one", "/a/b/two")
    now = fs.stat("/a/b/two")
    assert fs.read_bytes("/a/b/two") == b"1"
    assert not fs.exists("/a/one")
    assert now["created_at"] == before["created_at"]
    assert now["generation"] > before["generation"]
    assert fs.stats()["file_count"] == 2


def test_replace_where_nothing_was(fs: MemoryFileSystem) -> None:
    """Without a dst it is a rename."""
    fs.replace("/a/one", "/empty/x")
    assert tree(fs, "/empty") == {"/empty/x": b"1"}
    assert not fs.exists("/a/one")


def test_replace_again_and_again_raises_the_generation(fs: MemoryFileSystem) -> None:
    """Each replacement is seen by the generation alone."""
    seen = [fs.stat("/top")["generation"]]
    for number in range(5):
        fs.write_bytes("/next", bytes([number]))
        fs.replace("/next", "/top")
        seen.append(fs.stat("/top")["generation"])
    assert seen == sorted(set(seen))


def test_replace_refusals(fs: MemoryFileSystem, unchanged: None) -> None:
    """A missing src or parent is FileNotFoundError, a directory as dst IsADirectoryError."""
    with pytest.raises(FileNotFoundError):
        fs.replace("/none", "/top")
    with pytest.raises(FileNotFoundError):
        fs.replace("/top", "/none/x")
    with pytest.raises(IsADirectoryError):
        fs.replace("/top", "/a")
    with pytest.raises((IsADirectoryError, ValueError)):
        fs.replace("/top", "/")


def test_replace_takes_no_directory(fs: MemoryFileSystem, unchanged: None) -> None:
    """A directory as src is refused."""
    with pytest.raises((OSError, ValueError)):
        fs.replace("/empty", "/top")


# --- remove, rmtree --------------------------------------------------------------------------------------------------


def test_remove(fs: MemoryFileSystem) -> None:
    """remove takes away one file; the name is free."""
    fs.remove("/top")
    assert not fs.exists("/top")
    with pytest.raises(FileNotFoundError):
        fs.remove("/top")
    fs.mkdir("/top")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/none", FileNotFoundError),
        ("/top/x", FileNotFoundError),
        ("/a", IsADirectoryError),
        ("/empty", IsADirectoryError),
        ("/", IsADirectoryError),
    ],
)
def test_remove_refusals(fs: MemoryFileSystem, unchanged: None, path: str, error: type[Exception]) -> None:
    """Nothing is FileNotFoundError, a directory IsADirectoryError."""
    with pytest.raises(error):
        fs.remove(path)


def test_rmtree(fs: MemoryFileSystem) -> None:
    """rmtree takes a directory away with everything in it."""
    fs.rmtree("/a")
    assert tree(fs) == {"/empty": None, "/top": b"top"}
    fs.rmtree("/empty")
    assert tree(fs) == {"/top": b"top"}
    assert fs.stats()["dir_count"] == 1


@pytest.mark.parametrize(
    ("path", "error"),
    [("/none", FileNotFoundError), ("/top", NotADirectoryError), ("/top/x", FileNotFoundError), ("/", ValueError)],
)
def test_rmtree_refusals(fs: MemoryFileSystem, unchanged: None, path: str, error: type[Exception]) -> None:
    """Nothing, a file and the root are refused."""
    with pytest.raises(error):
        fs.rmtree(path)


def test_rmtree_of_many(stores: Stores) -> None:
    """A tree of thousands goes whole, and its quota is back when rmtree returns."""
    fs = stores.private()
    for directory in range(20):
        fs.mkdir(f"/big/{directory}/deep")
        for number in range(100):
            fs.write_bytes(f"/big/{directory}/deep/{number}", b"x" * number)
    fs.write_bytes("/other", b"stays")
    used = fs.stats()["used_bytes"]
    fs.rmtree("/big")
    stats = fs.stats()
    assert (stats["file_count"], stats["dir_count"], stats["used_bytes"]) == (1, 1, 256 + 128)
    assert used > stats["used_bytes"]


# --- copy, copy_tree -------------------------------------------------------------------------------------------------


def test_copy_is_independent(fs: MemoryFileSystem) -> None:
    """A copy has the content, its own times and generation 1, and goes its own way."""
    before = fs.stat("/top")
    fs.copy("/top", "/a/copy")
    assert fs.stat("/a/copy")["generation"] == 1
    assert fs.stat("/a/copy")["created_at"] >= before["created_at"]
    with fs.open("/a/copy", "ab") as handle:
        handle.write(b"+")
    assert (fs.read_bytes("/top"), fs.read_bytes("/a/copy")) == (b"top", b"top+")
    assert fs.stat("/top") == before


@pytest.mark.parametrize("size", [0, 255, 4096, 5000, 1 << 20])
def test_copy_of_any_size(fs: MemoryFileSystem, size: int) -> None:
    """Sizes on both sides of the ways files are stored copy alike; an empty copy has generation 0."""
    data = bytes(range(256)) * (size // 256) + b"t" * (size % 256)
    fs.write_bytes("/from", data)
    fs.copy("/from", "/to")
    assert fs.read_bytes("/to") == data
    assert fs.stat("/to")["generation"] == (1 if size else 0)


@pytest.mark.parametrize(
    ("src", "dst", "error"),
    [
        ("/none", "/x", FileNotFoundError),
        ("/top", "/none/x", FileNotFoundError),
        ("/top", "/a/one/x", FileNotFoundError),
        ("/a", "/x", IsADirectoryError),
        ("/", "/x", IsADirectoryError),
        ("/top", "/a/one", FileExistsError),
        ("/top", "/top", FileExistsError),
        ("/top", "/a", FileExistsError),
        ("/top", "/", FileExistsError),
    ],
)
def test_copy_refusals(fs: MemoryFileSystem, unchanged: None, src: str, dst: str, error: type[Exception]) -> None:
    """Copying what is missing or a directory, or to where something stands or no parent is, is refused."""
    with pytest.raises(error):
        fs.copy(src, dst)


def test_copy_tree(fs: MemoryFileSystem) -> None:
    """copy_tree copies directories, empty ones too, and files, as a clean baseline of generation 0."""
    fs.mkdir("/a/hollow")
    fs.copy_tree("/a", "/c")
    assert tree(fs, "/c") == {"/c/b": None, "/c/hollow": None, "/c/one": b"1", "/c/b/two": b"22"}
    assert fs.stat("/c/one")["generation"] == fs.stat("/c/b/two")["generation"] == 0
    fs.write_bytes("/c/one", b"changed")
    assert fs.read_bytes("/a/one") == b"1"


@pytest.mark.parametrize("src", ["/a", "/"])
def test_copy_tree_below_itself(fs: MemoryFileSystem, src: str) -> None:
    """A tree copied into itself is what it was before the copy."""
    before = {path[len(src.rstrip("/")) :]: data for path, data in tree(fs, src).items()}
    fs.copy_tree(src, "/a/b/c")
    assert {path[len("/a/b/c") :]: data for path, data in tree(fs, "/a/b/c").items()} == before


@pytest.mark.parametrize(
    ("src", "dst", "error"),
    [
        ("/none", "/x", FileNotFoundError),
        ("/a", "/none/x", FileNotFoundError),
        ("/top", "/x", NotADirectoryError),
        ("/a", "/empty", FileExistsError),
        ("/a", "/top", FileExistsError),
        ("/a", "/a", FileExistsError),
        ("/a", "/", FileExistsError),
    ],
)
def test_copy_tree_refusals(fs: MemoryFileSystem, unchanged: None, src: str, dst: str, error: type[Exception]) -> None:
    """Copying what is missing or a file, or to where something stands or no parent is, is refused."""
    with pytest.raises(error):
        fs.copy_tree(src, dst)


# --- looking ---------------------------------------------------------------------------------------------------------


def test_listdir(fs: MemoryFileSystem) -> None:
    """listdir gives bare names."""
    assert sorted(fs.listdir("/")) == ["a", "empty", "top"]
    assert sorted(fs.listdir("/a")) == ["b", "one"]
    assert fs.listdir("/empty") == []


@pytest.mark.parametrize(
    ("path", "error"), [("/none", FileNotFoundError), ("/top", NotADirectoryError), ("/top/x", FileNotFoundError)]
)
def test_no_listing(fs: MemoryFileSystem, path: str, error: type[Exception]) -> None:
    """listdir and walk of nothing or a file raise, walk already at the call."""
    with pytest.raises(error):
        fs.listdir(path)
    with pytest.raises(error):
        fs.walk(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", (True, True, False)),
        ("/a", (True, True, False)),
        ("/top", (True, False, True)),
        ("/a/one", (True, False, True)),
        ("/none", (False, False, False)),
        ("/none/x", (False, False, False)),
        ("/top/x", (False, False, False)),
    ],
)
def test_exists_is_dir_is_file(fs: MemoryFileSystem, path: str, expected: tuple[bool, bool, bool]) -> None:
    """The three questions answer with real bools and never raise."""
    assert (fs.exists(path), fs.is_dir(path), fs.is_file(path)) == expected
    assert type(fs.exists(path)) is type(fs.is_dir(path)) is type(fs.is_file(path)) is bool


def test_walk_from_the_top(fs: MemoryFileSystem) -> None:
    """walk gives each directory before its children, with the names in it."""
    steps = list(fs.walk())
    assert {path: (sorted(dirs), sorted(files)) for path, dirs, files in steps} == {
        "/": (["a", "empty"], ["top"]),
        "/a": (["b"], ["one"]),
        "/a/b": ([], ["two"]),
        "/empty": ([], []),
    }
    order = [path for path, _, _ in steps]
    assert order.index("/") < order.index("/a") < order.index("/a/b")


def test_walk_part(fs: MemoryFileSystem) -> None:
    """walk of a directory begins there."""
    assert list(fs.walk("a/b")) == [("/a/b", [], ["two"])]


def test_walk_survives_changes(fs: MemoryFileSystem) -> None:
    """A directory removed while walking is left out; what stood throughout appears once."""
    seen = []
    for path, _, _ in fs.walk("/"):
        seen.append(path)
        if path == "/":
            fs.rmtree("/a")
    assert sorted(seen) == ["/", "/empty"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*", ["/a", "/empty", "/top"]),
        ("*", ["/a", "/empty", "/top"]),
        ("\\a\\*", ["/a/b", "/a/one"]),
        ("/a/*", ["/a/b", "/a/one"]),
        ("/*/*", ["/a/b", "/a/one"]),
        ("/t?p", ["/top"]),
        ("/[a-e]*", ["/a", "/empty"]),
        ("/[!a]*", ["/empty", "/top"]),
        ("/a/b/two", ["/a/b/two"]),
        ("/none/*", []),
        ("/top/*", []),
        ("", []),
        ("/", []),
        ("/../*", []),
        ("**", ["/a", "/a/b", "/a/b/two", "/a/one", "/empty", "/top"]),
        ("/a/**", ["/a/b", "/a/b/two", "/a/one"]),
        ("/**/two", ["/a/b/two"]),
        ("/a/**/*o*", ["/a/b/two", "/a/one"]),
        ("/**/b/*", ["/a/b/two"]),
        ("/**/**", ["/a", "/a/b", "/a/b/two", "/a/one", "/empty", "/top"]),
    ],
)
def test_glob(fs: MemoryFileSystem, pattern: str, expected: list[str]) -> None:
    """glob gives the sorted paths that match, each once; ** stands for any number of directories, none included."""
    assert fs.glob(pattern) == expected


def test_glob_sees_hidden_names_and_brackets(fs: MemoryFileSystem) -> None:
    """A leading dot is an ordinary character, and [*] a literal star."""
    for name in (".hidden", "a*b", "axb"):
        fs.write_bytes("/empty/" + name, b"")
    assert fs.glob("/empty/*") == ["/empty/.hidden", "/empty/a*b", "/empty/axb"]
    assert fs.glob("/empty/a[*]b") == ["/empty/a*b"]


def test_listdir_of_many(fs: MemoryFileSystem) -> None:
    """A directory of thousands lists every name once, and keeps the rest when every second goes."""
    names = [f"file-{number:05}" for number in range(3000)]
    for name in names:
        with fs.open("/empty/" + name, "xb"):
            pass
    assert sorted(fs.listdir("/empty")) == names
    for name in names[::2]:
        fs.remove("/empty/" + name)
    assert sorted(fs.listdir("/empty")) == names[1::2]
    assert not fs.exists("/empty/file-00000") and fs.exists("/empty/file-00001")


def test_deep_tree(fs: MemoryFileSystem) -> None:
    """Directories nest as deep as a path is long, and every operation on the tree reaches the bottom."""
    path = "/d" * 1500
    fs.mkdir(path)
    fs.write_bytes(path + "/f", b"deep")
    assert fs.glob("/d/**/f") == [path + "/f"]
    fs.copy_tree("/d", "/e")
    assert fs.read_bytes("/e" + path[2:] + "/f") == b"deep"
    fs.rmtree("/d")
    assert fs.stats()["dir_count"] == 4 + 1500
    fs.rmtree("/e")
    assert tree(fs) == TREE


# --- stat, stats, get_size -------------------------------------------------------------------------------------------


def test_stat_of_a_file(fs: MemoryFileSystem) -> None:
    """stat has D-MemFS's five keys and abandoned."""
    stat = fs.stat("/a/b/two")
    assert sorted(stat) == ["abandoned", "created_at", "generation", "is_dir", "modified_at", "size"]
    assert (stat["size"], stat["is_dir"], stat["abandoned"]) == (2, False, False)
    assert type(stat["created_at"]) is type(stat["modified_at"]) is float
    assert type(stat["size"]) is type(stat["generation"]) is int


@pytest.mark.parametrize("path", ["/", "/a", "/empty"])
def test_stat_of_a_directory(fs: MemoryFileSystem, path: str) -> None:
    """A directory has size and generation 0."""
    stat = fs.stat(path)
    assert (stat["size"], stat["generation"], stat["is_dir"], stat["abandoned"]) == (0, 0, True, False)


def test_times(fs: MemoryFileSystem) -> None:
    """created_at stays, modified_at follows writes and truncations but neither reads nor renames."""
    before = fs.stat("/top")
    assert before["created_at"] <= before["modified_at"]
    fs.read_bytes("/top")
    fs.rename("/top", "/renamed")
    assert fs.stat("/renamed") == before
    with fs.open("/renamed", "r+b") as handle:
        handle.write(b"T")
        written = fs.stat("/renamed")["modified_at"]
        handle.truncate(1)
    now = fs.stat("/renamed")
    assert before["modified_at"] <= written <= now["modified_at"]
    assert now["created_at"] == before["created_at"]


@pytest.mark.parametrize("path", ["/none", "/top/x", "/none/x"])
def test_stat_of_nothing(fs: MemoryFileSystem, path: str) -> None:
    """stat and get_size of nothing are FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        fs.stat(path)
    with pytest.raises(FileNotFoundError):
        fs.get_size(path)


def test_get_size(fs: MemoryFileSystem) -> None:
    """get_size is the size of a file; of a directory it is IsADirectoryError."""
    assert fs.get_size("/a/b/two") == 2
    for path in ("/", "/a"):
        with pytest.raises(IsADirectoryError):
            fs.get_size(path)


def test_stats(fs: MemoryFileSystem) -> None:
    """stats has exactly D-MemFS's seven keys, all of them integers; the root counts as a directory."""
    stats: dict[str, Any] = dict(fs.stats())
    assert sorted(stats) == [
        "chunk_count",
        "dir_count",
        "file_count",
        "free_bytes",
        "overhead_per_chunk_estimate",
        "quota_bytes",
        "used_bytes",
    ]
    assert all(type(value) is int for value in stats.values())
    assert (stats["file_count"], stats["dir_count"]) == (3, 4)
    assert stats["quota_bytes"] == 16 << 20
    assert stats["overhead_per_chunk_estimate"] == 128
