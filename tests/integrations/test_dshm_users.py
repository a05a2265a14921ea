"""Libraries that take dshm:// URLs, each at work in two other processes: one writes, the other reads.

The processes are started once and shared by the tests, since loading the libraries is what takes the time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import fsspec
import pytest

from dmemfs_shm import MemoryFileSystem

from ..processes import DEADLINE_S, call_in_child

ROWS = 1000


class Hand:
    """A process that does what it is told."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self.pid = self(os.getpid)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.start(function, *arguments)()

    def start(self, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        future = self._pool.submit(function, *arguments)
        return lambda: future.result(DEADLINE_S)


@pytest.fixture(scope="module")
def hands() -> Iterator[tuple[Hand, Hand]]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as writer, ProcessPoolExecutor(1, spawn) as reader:
        both = Hand(writer), Hand(reader)
        assert len({os.getpid(), both[0].pid, both[1].pid}) == 3
        yield both


@pytest.fixture
def url(named: MemoryFileSystem) -> str:
    return f"dshm://{named.name}"


@pytest.fixture
def writer(hands: tuple[Hand, Hand]) -> Hand:
    return hands[0]


@pytest.fixture
def reader(hands: tuple[Hand, Hand]) -> Hand:
    return hands[1]


def frame(version: int = 0) -> Any:
    import pandas as pd

    return pd.DataFrame({"a": range(ROWS), "k": [number % 3 for number in range(ROWS)], "version": version})


def sums(found: Any) -> tuple[int, int]:
    """Rows, and the sum of the numbers in them."""
    return len(found), int(found["a"].sum())


ALL = ROWS, sum(range(ROWS))


# ---- pandas


def pandas_writes(url: str) -> None:
    frame().to_csv(f"{url}/out/a.csv", index=False)
    frame().to_csv(f"{url}/out/a.csv.gz", index=False)
    frame().to_parquet(f"{url}/out/a.parquet")
    frame().to_parquet(f"{url}/parts", partition_cols=["k"])
    frame().to_json(f"{url}/out/a.json")
    frame().to_pickle(f"{url}/out/a.pickle")


def pandas_reads(url: str) -> list[Any]:
    import pandas as pd

    some = pd.read_parquet(f"{url}/parts", filters=[("k", "==", 1)])
    return [
        sums(pd.read_csv(f"{url}/out/a.csv")),
        sums(pd.read_csv(f"{url}/out/a.csv.gz")),
        sums(pd.read_parquet(f"{url}/out/a.parquet")),
        sums(pd.read_parquet(f"{url}/parts")),
        sums(pd.read_json(f"{url}/out/a.json")),
        sums(pd.read_pickle(f"{url}/out/a.pickle")),
        sums(some),
    ]


def test_pandas(url: str, named: MemoryFileSystem, writer: Hand, reader: Hand) -> None:
    writer(pandas_writes, url)
    assert len(named.glob("/parts/k=*/*.parquet")) == 3
    assert reader(pandas_reads, url) == [ALL] * 6 + [(333, sum(range(1, ROWS, 3)))]


def pandas_replaces(url: str, versions: int) -> None:
    for version in range(versions):
        frame(version).to_parquet(f"{url}/a.parquet")
        frame(version).to_csv(f"{url}/a.csv", index=False)


def pandas_follows(url: str, last: int) -> bool:
    """Whether every file seen until the last version is one version, whole."""
    import pandas as pd

    while True:
        for found in (pd.read_parquet(f"{url}/a.parquet"), pd.read_csv(f"{url}/a.csv")):
            if sums(found) != ALL or not found["version"].eq(found["version"].iloc[0]).all():
                return False
        if found["version"].iloc[0] == last:
            return True


def test_readers_see_whole_files(url: str, writer: Hand, reader: Hand) -> None:
    writer(pandas_replaces, url, 1)
    follows = reader.start(pandas_follows, url, 49)
    writer(pandas_replaces, url, 50)
    assert follows()


def pandas_in_a_transaction(url: str, fails: bool) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    with fs.transaction:
        for name in ("a", "b"):
            with fs.open(f"{root}t/{name}.csv", "wb") as file:
                frame().to_csv(file, index=False)
        if fails:
            raise KeyError


def test_pandas_in_a_transaction(url: str, named: MemoryFileSystem, writer: Hand, reader: Hand) -> None:
    with pytest.raises(KeyError):
        writer(pandas_in_a_transaction, url, True)
    assert named.listdir("/") == []
    writer(pandas_in_a_transaction, url, False)
    assert reader(csv_sums, f"{url}/t/a.csv") == reader(csv_sums, f"{url}/t/b.csv") == ALL


def csv_sums(url: str) -> tuple[int, int]:
    import pandas as pd

    return sums(pd.read_csv(url))


# ---- pyarrow


def arrow_writes(url: str) -> None:
    import pyarrow as pa
    import pyarrow.dataset as ds

    fs, path = fsspec.core.url_to_fs(f"{url}/set")
    table = pa.Table.from_pandas(frame())
    for kind in ("parquet", "feather", "csv"):
        ds.write_dataset(table, f"{path}/{kind}", format=kind, filesystem=fs, partitioning=["k"], partitioning_flavor="hive")


def arrow_reads(url: str) -> list[Any]:
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    fs, path = fsspec.core.url_to_fs(f"{url}/set")
    found = []
    for kind in ("parquet", "feather", "csv"):
        dataset = ds.dataset(f"{path}/{kind}", format=kind, filesystem=fs, partitioning="hive")
        table = dataset.to_table()
        found.append((table.num_rows, pc.sum(table["a"]).as_py(), dataset.count_rows(filter=ds.field("k") == 2)))
    return [*found, pq.read_table(f"{path}/parquet", filesystem=fs).num_rows]


def test_pyarrow_datasets(url: str, writer: Hand, reader: Hand) -> None:
    writer(arrow_writes, url)
    assert reader(arrow_reads, url) == [(*ALL, 333)] * 3 + [ROWS]


# ---- duckdb


def connection(url: str) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.register_filesystem(fsspec.core.url_to_fs(url)[0])
    return connection


def duckdb_writes(url: str) -> None:
    with connection(url) as sql:
        sql.execute(f"create table t as select range as a, range % 3 as k from range({ROWS})")
        sql.execute(f"copy t to '{url}/d/one.parquet'")
        sql.execute(f"copy t to '{url}/d/one.csv'")
        sql.execute(f"copy t to '{url}/d/parts' (format parquet, partition_by (k))")


def duckdb_reads(url: str) -> list[Any]:
    with connection(url) as sql:
        sources = ["'{}/d/one.parquet'", "'{}/d/*.csv'", "read_parquet('{}/d/parts/*/*.parquet', hive_partitioning = true)"]
        return [sql.execute(f"select count(*), sum(a) from {each.format(url)} where k >= 0").fetchone() for each in sources]


def duckdb_fails(url: str) -> str:
    import duckdb

    with connection(url) as sql:
        try:
            sql.execute(
                f"copy (select case when range = 99999 then error('no') else 'x' end from range(100000)) to '{url}/bad.csv'"
            )
        except duckdb.Error as error:
            return str(error)
    return ""


def one_value(sql: Any, url: str) -> int:
    return int(sql.execute(f"select max(a) from '{url}'").fetchone()[0])


def duckdb_is_up_to_date(url: str) -> list[int]:
    """What one connection reads of a file that is replaced between two queries, by one of the same size."""
    import pandas as pd

    found = []
    with connection(url) as sql:
        for value in range(5):
            pd.DataFrame({"a": [value]}).to_parquet(f"{url}/same.parquet")
            found.append(one_value(sql, f"{url}/same.parquet"))
    return found


def test_duckdb(url: str, named: MemoryFileSystem, writer: Hand, reader: Hand) -> None:
    writer(duckdb_writes, url)
    assert len(named.glob("/d/parts/k=*/*.parquet")) == 3
    assert reader(duckdb_reads, url) == [ALL] * 3
    assert "no" in writer(duckdb_fails, url)
    assert not named.exists("/bad.csv")
    assert reader(duckdb_is_up_to_date, url) == list(range(5))
    named.rmtree("/d")  # what duckdb has read is in nobody's way


# ---- polars


def polars_writes(url: str) -> None:
    import polars as pl

    fs, path = fsspec.core.url_to_fs(f"{url}/p")
    data = pl.DataFrame({"a": range(ROWS)})
    for write, name in ((data.write_parquet, "a.parquet"), (data.write_csv, "a.csv"), (data.lazy().sink_parquet, "s.parquet")):
        with fs.open(f"{path}/{name}", "wb") as file:
            write(file)


def polars_reads(url: str) -> list[Any]:
    import polars as pl
    import pyarrow.dataset as ds

    fs, path = fsspec.core.url_to_fs(f"{url}/p")
    found = []
    for name, read in (("a.parquet", pl.read_parquet), ("a.csv", pl.read_csv)):
        with fs.open(f"{path}/{name}") as file:
            found.append(sums(read(file)))
    for name, scan in (("a.parquet", pl.scan_parquet), ("s.parquet", pl.scan_parquet), ("a.csv", pl.scan_csv)):
        with fs.open(f"{path}/{name}") as file:
            found.append(sums(scan(file).filter(pl.col("a") >= 0).collect()))
    lazy = pl.scan_pyarrow_dataset(ds.dataset(f"{path}/a.parquet", filesystem=fs))
    return [*found, sums(lazy.filter(pl.col("a") >= 0).collect())]


def test_polars(url: str, writer: Hand, reader: Hand) -> None:
    writer(polars_writes, url)
    assert reader(polars_reads, url) == [ALL] * 6


# ---- dask


def dask_writes(url: str) -> None:
    import dask.dataframe as dd

    data = dd.from_pandas(frame(), npartitions=4)
    data.to_csv(f"{url}/dask/*.csv", index=False)
    data.to_parquet(f"{url}/dask/parquet")


def dask_reads(url: str) -> list[Any]:
    import dask
    import dask.dataframe as dd

    with dask.config.set(scheduler="threads"):
        found = dd.read_csv(f"{url}/dask/*.csv"), dd.read_parquet(f"{url}/dask/parquet")
        return [(*sums(each.compute()), each.npartitions) for each in found]


def test_dask_dataframe(url: str, writer: Hand, reader: Hand) -> None:
    writer(dask_writes, url)
    assert reader(dask_reads, url) == [(*ALL, 4)] * 2


# ---- universal_pathlib


def upath_writes(url: str) -> str:
    from upath import UPath

    path = UPath(url) / "u" / "a b#1.txt"
    path.parent.mkdir()
    path.write_text("one\n")
    (path.parent / "more").mkdir()
    with (path.parent / "more" / "b").open("wb") as file:
        file.write(b"two")
    path.rename(path.with_name("c"))
    return str(path.with_name("c"))


def upath_reads(url: str) -> list[Any]:
    from upath import UPath

    path = UPath(url)
    top = path.parent
    assert str(UPath(str(path))) == url
    assert path.stat().st_size == 4
    top.joinpath("more").rename(top / "less")
    return [path.read_text(), sorted(map(str, top.rglob("*"))), [each.name for each in sorted(top.iterdir(), key=str)]]


def test_universal_pathlib(url: str, writer: Hand, reader: Hand) -> None:
    from upath import UPath

    path = writer(upath_writes, url)
    assert path == f"{url}/u/c"
    assert reader(upath_reads, path) == ["one\n", [f"{url}/u/c", f"{url}/u/less", f"{url}/u/less/b"], ["c", "less"]]
    assert reader(UPath.read_bytes, UPath(f"{url}/u/less/b")) == b"two"
    for target in ("dshm://another/x", UPath("dshm://another/x")):
        with pytest.raises(OSError, match="another store"):
            UPath(path).rename(target)
    assert UPath(path).exists()


# ---- alone


def upath_alone(url: str) -> str:
    """In a process that has not used dshm before, with warnings as errors."""
    import warnings

    warnings.simplefilter("error")
    from upath import UPath

    path = UPath(f"{url}/a")
    path.write_text("x")
    return f"{path} {path.read_text()}"


def without(package: str) -> str:
    for name in [name for name in sys.modules if name.startswith(("dmemfs_shm.integrations", f"{package}."))]:
        del sys.modules[name]  # a plugin of pytest may have loaded it
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        import dmemfs_shm.integrations.upath  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def test_first_use(url: str) -> None:
    assert call_in_child("spawn", upath_alone, url) == f"{url}/a x"


@pytest.mark.parametrize(("package", "remedy"), [("fsspec", "dmemfs-shm[fsspec]"), ("upath", "pip install universal_pathlib")])
def test_what_is_missing_is_named(package: str, remedy: str) -> None:
    assert remedy in call_in_child("spawn", without, package)
