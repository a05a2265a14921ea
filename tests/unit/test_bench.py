"""The benchmark runs, says what it promises to say, and leaves nothing in /dev/shm. How fast anything is, no test asks."""

import gc
import json
import os
import sys
from pathlib import Path

import pytest

from dmemfs_shm import MemoryFileSystem

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench


@pytest.fixture(autouse=True)
def watched(monkeypatch, stores):
    """The stores that it makes are looked for at the end."""
    monkeypatch.setattr(bench, "MemoryFileSystem", Watched)
    monkeypatch.setattr(Watched, "stores", stores, raising=False)
    yield
    assert [entry for entry in os.listdir("/dev/shm") if entry.startswith(f"bench-{os.getpid()}-")] == []
    assert gc.isenabled()


class Watched(MemoryFileSystem):
    def __init__(self, **options):
        super().__init__(**options)
        self.stores.watch(self)


def is_spread(values):
    return set(values) == {"median", "p5", "p95"} and values["p5"] <= values["median"] <= values["p95"]


def test_quick_json(capsys):
    bench.main(["--quick", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"schema", "machine", "seconds", "backends", "missing", "workloads", "figures", "above_1"}
    assert report["schema"] == 1
    assert {"cpu", "cpus", "kernel", "python", "versions", "load_average", "load_average_after"} == set(report["machine"])
    assert {"open()", "open(buffering=0)", "dmemfs_shm"} <= set(report["backends"])

    names = [workload["workload"] for workload in report["workloads"]]
    assert names == [workload.operation for workload in bench.WORKLOADS] + ["view"]
    for workload in report["workloads"]:
        assert set(workload) == {"workload", "what", "mark", "batch", "rounds", "results"}
        assert workload["rounds"] >= bench.ROUNDS_MIN
        mark, *others = workload["results"]
        assert mark["backend"] == workload["mark"] == ("mmap" if workload["workload"] == "view" else "open()")
        assert set(mark["ratio"].values()) == {1.0}
        assert "dmemfs_shm" in [other["backend"] for other in others]
        for result in workload["results"]:
            assert set(result) == {"backend", "wall_us", "cpu_us", "ratio", "cpu_ratio"}
            assert all(is_spread(result[key]) for key in ("wall_us", "cpu_us", "ratio", "cpu_ratio"))

    assert [figure["figure"] for figure in report["figures"]] == ["create", "close", "import", "claim", "wake", "idle"]
    for figure in report["figures"]:
        assert set(figure) == {"figure", "what", "samples", "wall_ms", "cpu_ms"}
        assert is_spread(figure["wall_ms"]) and is_spread(figure["cpu_ms"])
    assert all(set(one) == {"backend", "workload", "ratio", "cpu_ratio"} and one["ratio"] > 1 for one in report["above_1"])


def test_plain_table_of_a_few(capsys):
    bench.main(["--quick", "--only", "exists", "--only", "store"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["workload", "backend", "us", "p5..p95", "CPU", "us", "ratio", "p5..p95", "CPU", "ratio"]
    assert lines[1].split()[:2] == ["exists", "open()"]
    assert any(line.startswith("create a private store") for line in lines)
    assert lines[-1].startswith("Ratios above 1: ")


def test_interrupted_run_leaves_nothing(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "compared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--quick", "--only", "create"])


def test_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])
    assert "'nothing'" in capsys.readouterr().err
