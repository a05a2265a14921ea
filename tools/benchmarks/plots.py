"""Plots of a report, as SVG."""

import os
from typing import Any

from .backends import MARK
from .small import MARKS
from .timing import OURS
from .workers import CYCLE

COLOURS = {OURS: "#0b6e4f", MARK: "#888888"}


def plots(report: dict[str, Any], folder: str) -> list[str]:
    """Write what the report has to *folder*; the files. ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "dmemfs_shm"
    matplotlib.rcParams["font.size"] = 9
    os.makedirs(folder, exist_ok=True)
    here = report["machine"]
    caption = f"{here['cpu']}, {here['cpus']} CPUs; {here['kernel']}; {here['python']}"
    written = []
    workloads = {one["workload"]: one for one in report["workloads"]}
    if any(name in workloads for name in MARKS):
        written.append(small_operations(workloads, caption, f"{folder}/small-operations.svg"))
    if CYCLE in workloads:
        written.append(cycles(workloads[CYCLE], caption, f"{folder}/workers.svg"))
    return written


def small_operations(workloads: dict[str, Any], caption: str, path: str) -> str:
    """Our time over that of open() on tmpfs, with the mark to be reached."""
    from matplotlib import pyplot

    names = [name for name in MARKS if name in workloads]
    figure, axes = pyplot.subplots(figsize=(7, 0.42 * len(names) + 1.4), layout="constrained")
    for row, name in enumerate(names):
        ratio = workloads[name]["ours_to"][MARK]
        axes.barh(row, ratio["median"], color=COLOURS[OURS], height=0.55)
        axes.plot([ratio["p5"], ratio["p95"]], [row, row], color="black", linewidth=1)
        axes.plot([MARKS[name][MARK]] * 2, [row - 0.4, row + 0.4], color="#d1495b", linewidth=2)
        axes.text(ratio["p95"] + 0.02, row, f"{ratio['median']:.2f}", va="center")
    axes.axvline(1, color=COLOURS[MARK], linestyle=":")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("time, as a multiple of open() on tmpfs (shorter is faster; red: the mark)")
    return _save(figure, caption, path)


def cycles(workload: dict[str, Any], caption: str, path: str) -> str:
    """Cycles a second of four workers, by backend."""
    from matplotlib import pyplot

    results = sorted(workload["results"], key=lambda one: -one["cycles_s"]["median"])
    figure, axes = pyplot.subplots(figsize=(7, 0.42 * len(results) + 1.4), layout="constrained")
    for row, one in enumerate(results):
        axes.barh(row, one["cycles_s"]["median"], color=COLOURS.get(one["backend"], "#b0b0b0"), height=0.55)
        axes.plot([one["cycles_s"]["p5"], one["cycles_s"]["p95"]], [row, row], color="black", linewidth=1)
    axes.set_yticks(range(len(results)), [one["backend"] for one in results])
    axes.invert_yaxis()
    axes.set_xlabel("cycles a second, four workers (longer is faster)")
    return _save(figure, caption, path)


def _save(figure: Any, caption: str, path: str) -> str:
    from matplotlib import pyplot

    figure.supxlabel(caption, fontsize=6, color="#666666")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
