"""What is said of the measurements: the machine, the tables, and which marks are met."""

import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

import dmemfs_shm

SHOWN = 10  # functions of an operation


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    versions = {}
    for name in "dmemfs-shm", "D-MemFS", "lmdb", "diskcache", "redis":
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "pid": os.getpid(),
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {"dmemfs-shm": dmemfs_shm.__version__, **versions},
        "load_average": load(),
    }


def say(what: str) -> None:
    """One line for who waits at a terminal; not a live display, whose thread would be measured too."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def between(values: dict[str, float]) -> str:
    return f"{number(values['p5'])}..{number(values['p95'])}"


def rows_of(report: dict[str, Any]) -> Iterator[list[list[str]]]:
    """The cells of the tables, each with its heading."""
    timed = [one for one in report["workloads"] if "batch" in one]
    yield [["workload", "backend", "us", "p5..p95", "CPU us", "ratio", "p5..p95", "CPU ratio"], *compared_rows(timed)]
    cycles = [(one, result) for one in report["workloads"] if one["workload"] == "workers" for result in one["results"]]
    yield [
        ["backend", "cycles/s", "p5..p95", "times", "p99 us", "p99 ratio", "worst/best"],
        *(
            [
                one["backend"],
                number(one["cycles_s"]["median"]),
                between(one["cycles_s"]),
                number(one["times_mark"]["median"]),
                number(one["p99_us"]["median"]),
                number(one["p99_to_mark"]["median"]),
                number(one["worst_to_best"]["median"]),
            ]
            for _, one in cycles
        ),
    ]
    yield [
        ["backend", "p50 us", "p99 us", "p99 ratio"],
        *(
            [one["backend"], *(number(one[key]["median"]) for key in ("p50_us", "p99_us", "p99_to_mark"))]
            for workload in report["workloads"]
            if workload["workload"] == "threads"
            for one in workload["results"]
        ),
    ]
    yield [
        ["workload", "operation", "us, small", "us, large", "ratio", "p5..p95"],
        *(
            [
                workload["workload"],
                name,
                number(one["small_us"]["median"]),
                number(one["large_us"]["median"]),
                number(one["ratio"]["median"]),
                between(one["ratio"]),
            ]
            for workload in report["workloads"]
            if "operations" in workload
            for name, one in workload["operations"].items()
        ),
    ]
    yield [
        ["figure", "ms", "p5..p95", "CPU ms", "samples"],
        *(
            [
                one["what"],
                number(one["wall_ms"]["median"]),
                between(one["wall_ms"]),
                number(one["cpu_ms"]["median"]),
                str(one["samples"]),
            ]
            for one in report["figures"]
        ),
    ]
    yield [
        ["primitive", "ns"],
        *([what, number(nanoseconds)] for what, nanoseconds in report.get("primitives", {}).items()),
    ]
    yield [
        ["operation", "bytecodes", "of which, by function"],
        *(
            [
                name,
                str(counts["all"]),
                ", ".join(f"{function} {count}" for function, count in list(counts.items())[1:SHOWN]),
            ]
            for name, counts in report.get("bytecodes", {}).items()
        ),
    ]
    yield [
        ["to be reached", "measured", "at most", ""],
        *(
            [
                one["what"],
                f"{number(one['value'])} {one['unit']}".strip(),
                f"{number(one['most'])} {one['unit']}".strip(),
                "met" if one["met"] else "missed",
            ]
            for one in report["checks"]
        ),
    ]


def compared_rows(timed: list[dict[str, Any]]) -> Iterator[list[str]]:
    for workload in timed:
        for index, result in enumerate(workload["results"]):
            wall, cpu, ratio = result["wall_us"], result["cpu_us"], result["ratio"]
            of_mark = index == 0
            yield [
                workload["workload"] if of_mark else "",
                result["backend"],
                number(wall["median"]),
                between(wall),
                number(cpu["median"]),
                "1" if of_mark else number(ratio["median"]),
                "" if of_mark else between(ratio),
                "1" if of_mark else number(result["cpu_ratio"]["median"]),
            ]


def show(rows: list[list[str]], console: Console) -> None:
    """A table: ruled on a terminal, else columns of plain text, as wide as they need to be."""
    texts = {"workload", "backend", "figure", "operation", "to be reached", "primitive", "of which, by function"}
    left = [heading in texts for heading in rows[0]]
    if console.is_terminal:
        table = Table()
        for heading, is_left in zip(rows[0], left, strict=True):
            table.add_column(heading, justify="left" if is_left else "right", overflow="fold")
        for index, row in enumerate(rows[1:], 2):
            table.add_row(*row, end_section=index < len(rows) and bool(rows[index][0]) and rows[0][0] == "workload")
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if is_left else cell.rjust(width) for cell, width, is_left in zip(row, widths, left, strict=True)
        )
        print("  ".join(cells).rstrip())
    print()


def print_tables(report: dict[str, Any], console: Console) -> None:
    for rows in rows_of(report):
        if len(rows) > 1:
            show(rows, console)
    for workload in report["workloads"]:
        if "what" in workload:
            print(f"{workload['workload']}: {workload['what']}")
    here = report["machine"]
    print(f"{here['cpu']}, {here['cpus']} CPUs; {here['kernel']}; {here['python']}")
    print("; ".join(f"{name} {version}" for name, version in here["versions"].items()))
    print(f"Load average {here['load_average']} before, {here['load_average_after']} after.")
    if report["missing"]:
        print(f"Not installed, so not compared: {', '.join(report['missing'])}.")
    missed = [one["what"] for one in report["checks"] if not one["met"]]
    if report["checks"]:
        print(f"Marks: {len(report['checks']) - len(missed)} met, {len(missed)} missed.")


def load() -> str:
    """The load averages."""
    return " ".join(map("{:.2f}".format, os.getloadavg()))
