"""The benchmark runs, says what it promises to say, and leaves nothing in /dev/shm. How fast anything is, no test asks."""

import gc
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import bench
from benchmarks import backends, kills, large, scale, small, threads, workers
from benchmarks.timing import OURS

COMPARED = {"workload", "what", "mark", "batch", "rounds", "results", "ours_to"}


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = set(os.listdir("/dev/shm"))
    yield
    assert [entry for entry in set(os.listdir("/dev/shm")) - before if entry.startswith(f"bench-{os.getpid()}-")] == []
    assert gc.isenabled()


def report_of(capsys, *names):
    bench.main(["--quick", "--json", *(part for name in names for part in ("--only", name))])
    return json.loads(capsys.readouterr().out)


def is_spread(values):
    return set(values) == {"median", "p5", "p95"} and values["p5"] <= values["median"] <= values["p95"]


def test_small_operations(capsys):
    names = [workload.name for workload in small.WORKLOADS]
    report = report_of(capsys, *names)
    assert set(report) == {"schema", "machine", "seconds", "missing", "workloads", "figures", "checks"}
    assert report["schema"] == 2
    assert {"cpu", "cpus", "kernel", "python", "versions", "load_average", "load_average_after"} <= set(report["machine"])
    assert [workload["workload"] for workload in report["workloads"]] == names
    for workload in report["workloads"]:
        assert set(workload) == COMPARED
        mark, *others = workload["results"]
        assert mark["backend"] == workload["mark"] == backends.MARK
        assert set(mark["ratio"].values()) == {1.0}
        assert OURS in [other["backend"] for other in others]
        for result in workload["results"]:
            assert all(is_spread(result[key]) for key in ("wall_us", "cpu_us", "ratio", "cpu_ratio"))
        assert all(is_spread(ratio) for ratio in workload["ours_to"].values())
    compared = {result["backend"] for workload in report["workloads"] for result in workload["results"]}
    everyone = {
        backends.MARK,
        backends.DMEMFS,
        backends.MANAGER,
        backends.LMDB,
        backends.SHARED_MEMORY,
        backends.DISKCACHE,
        backends.REDIS,
    }
    assert everyone - compared == set(report["missing"])
    assert {check["what"] for check in report["checks"]} >= {f"{name}, to {backends.MARK}" for name in small.MARKS}
    assert all(check["met"] == (check["value"] <= check["most"]) for check in report["checks"])


def test_large_files(capsys):
    report = report_of(capsys, *large.LARGE)
    assert [workload["workload"] for workload in report["workloads"]] == list(large.LARGE)
    assert all(set(workload) == COMPARED for workload in report["workloads"])
    assert len(report["checks"]) == sum(len(marks) for marks in large.MARKS.values())


def test_workers_and_threads(capsys):
    report = report_of(capsys, workers.CYCLE, threads.THREADS)
    cycle, beside = report["workloads"]
    for result in cycle["results"]:
        assert result["cycles_s"]["median"] > 0 and 0 < result["worst_to_best"]["median"] <= 1
    assert {result["backend"] for result in beside["results"]} >= {backends.MARK, OURS}
    assert len(report["checks"]) == 4


def test_a_get_that_misses_fails_the_run(monkeypatch):
    """Whoever loses what was put is not measured."""

    def forgetful(fs):
        put, _, remove, close = real(fs)
        return put, lambda name: None, remove, close

    real = workers.ours
    monkeypatch.setattr(workers, "ours", forgetful)
    with pytest.raises(RuntimeError, match="a worker ended with 1"):
        bench.measure([workers.CYCLE], bench.QUICK)


def test_figures(capsys):
    report = report_of(capsys, *bench.FIGURES, kills.KILLS)
    names = ["create", "close", "import", "claim", "wake", "idle", "kill"]
    assert [figure["figure"] for figure in report["figures"]] == names
    assert all(is_spread(figure["wall_ms"]) and is_spread(figure["cpu_ms"]) for figure in report["figures"])


def test_primitives_and_bytecodes(capsys):
    report = report_of(capsys, "primitives", "bytecodes")
    assert all(0 < nanoseconds < 1e5 for nanoseconds in report["primitives"].values())
    for counts in report["bytecodes"].values():
        assert counts["all"] == sum(counts.values()) - counts["all"] > 20
        assert not any("trace" in function for function in counts)


def test_scale(capsys):
    report = report_of(capsys, scale.SCALE)
    assert [workload["workload"] for workload in report["workloads"]] == ["scale, one directory", "scale, many directories"]
    assert all(set(workload["operations"]) == set(scale.MARKS) for workload in report["workloads"])
    assert {check["unit"] for check in report["checks"]} == {"", "ms", "bytes"}


def test_tables_plots_and_the_check(capsys, tmp_path):
    status = bench.main(["--quick", "--only", "exists", "--only", "store", "--check", "--plots", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["workload", "backend", "us", "p5..p95", "CPU", "us", "ratio", "p5..p95", "CPU", "ratio"]
    assert lines[1].split()[:2] == ["exists", "open()"]
    assert any(line.startswith("create a private store") for line in lines)
    assert any(line.startswith("exists, to open()") for line in lines)
    assert status == ("missed" in lines[-1] and "0 missed" not in lines[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["small-operations.svg"]


def test_interrupted_run_leaves_nothing(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(small, "compared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--quick", "--only", "create"])


def test_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])
    assert "'nothing'" in capsys.readouterr().err
