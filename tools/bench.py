"""The benchmark: dmemfs_shm beside open() on tmpfs, D-MemFS, LMDB and others, in one run.

    python tools/bench.py                     everything, about ten minutes
    python tools/bench.py --only read         one workload, or several
    python tools/bench.py --quick             a few seconds: shows that it runs, and little else

How things are timed, and what a ratio is, stands in `benchmarks.timing`; what is done, in the module of each workload. The
last table has the marks to be reached, each with what was measured. It is no gate, unless --check is given.

Creating a store looks for what dead processes left in /dev/shm, and takes longer the more stands there.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import figures, kills, large, plots, primitives, scale, small, threads, workers
from benchmarks.backends import backends, missing
from benchmarks.report import load, machine, print_tables, say
from benchmarks.timing import FULL, QUICK, SHM, Check, Plan
from rich.console import Console

LARGE = {
    large.FRESH: large.stream_fresh,
    large.REUSED: large.stream_reused,
    large.FIRST: large.first_read,
    large.VIEW: large.view,
}
FIGURES = dict(
    zip(figures.FIGURES, (figures.stores, figures.imports, figures.claims, figures.wakes, figures.idleness), strict=True)
)
OTHERS = (workers.CYCLE, threads.THREADS, kills.KILLS, scale.SCALE, primitives.PRIMITIVES, primitives.BYTECODES)
NAMES = [*(workload.name for workload in small.WORKLOADS), *LARGE, *FIGURES, *OTHERS]


def measure(names: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Everything that *names* names, as what --json prints. Leaves nothing in /dev/shm."""
    begin, here = time.perf_counter(), machine()
    results: list[dict[str, Any]] = []
    singles: list[dict[str, Any]] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix=f"bench-{here['pid']}-", dir=SHM) as folder:
        operations = [workload for workload in small.WORKLOADS if workload.name in names]
        if operations:
            with backends(folder) as among:
                for workload in operations:
                    say(workload.what)
                    results.append(small.small(workload, among, plan))
            checks += small.checks(results)
        streams = []
        for name, take in LARGE.items():
            if name in names:
                say(name)
                streams.append(take(folder, plan))
        checks += large.checks(streams)
        results += streams
        for name, make in FIGURES.items():
            if name in names:
                say(name)
                singles += make(plan)
        checks += figures.checks(singles, plan)
        if workers.CYCLE in names:
            say(workers.CYCLE)
            results.append(workers.cycle(folder, plan))
            checks += workers.checks(results[-1])
        if threads.THREADS in names:
            say(threads.THREADS)
            results.append(threads.threads(folder, plan))
            checks += threads.checks(results[-1])
        if kills.KILLS in names:
            say(kills.KILLS)
            killed = kills.kills(plan)
            singles += killed
            checks += kills.checks(killed)
        if scale.SCALE in names:
            say(scale.SCALE)
            grown, more = scale.scale(plan)
            results += grown
            checks += more
        pieces = {}
        for name, measured in ((primitives.PRIMITIVES, primitives.primitives), (primitives.BYTECODES, primitives.bytecodes)):
            if name in names:
                say(name)
                pieces[name] = measured()
    say("")
    here |= {"load_average_after": load()}
    return {
        "schema": 2,
        "machine": here,
        "seconds": time.perf_counter() - begin,
        "missing": missing(),
        "workloads": results,
        "figures": singles,
        **pieces,
        "checks": [{**check._asdict(), "met": check.met} for check in checks],
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it runs, and little else")
    parser.add_argument("--check", action="store_true", help="end with 1 if a mark is missed")
    parser.add_argument("--plots", metavar="DIR", help="write plots there")
    parser.add_argument(
        "--only", action="append", choices=NAMES, metavar="NAME", help=f"again and again if need be: {', '.join(NAMES)}"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = arguments(argv)
    report = measure(options.only or NAMES, QUICK if options.quick else FULL)
    if options.plots:
        for path in plots.plots(report, options.plots):
            print(path, file=sys.stderr)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_tables(report, Console(highlight=False))
    return int(options.check and not all(check["met"] for check in report["checks"]))


def leave(*_: object) -> None:
    """SIGTERM: end in order, so that /dev/shm is cleaned up."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
