"""Comparisons on a Ray cluster of local nodes: the same rows as without, kills, overhead, the driver's cost per row.

Parts, each by its name: `rows` (time and memory of the driver by the number of stand-in jobs of 0.1 s on two nodes),
`kills` (a worker or a node killed at random instants, in 20 trials), `overhead` (wall time beside the local crew's on
the six systems of `make compare`, on one node, and whether the rows are the same bit for bit). Results of parts that
are not run anew are kept.

    python -m benchmarks.cluster rows kills overhead
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common import RESULTS, write_markdown, write_result
from fivefold.machine import processor

SYSTEMS = ("igebm", "ddpm", "vae", "dcgan", "gated-pixelcnn", "glow")  # of `make compare`
STEPS = "200steps"
ORDER = ("local", "ray", "ray", "local")  # so that what else the machine does falls on both
COUNTS = (10, 100, 1_000, 10_000)
SECONDS = 0.1  # a stand-in takes
TRIALS = 20
STORE = 80 * 2**20  # bytes of a node's object store


NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[Any, float]]:
    """So many local nodes, and the seconds that starting them took."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # a machine that does other things is slow
    from ray.cluster_utils import Cluster

    began = time.monotonic()
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "node_name": "node0"})
    for i in range(1, nodes):
        made.add_node(**NODE, node_name=f"node{i}")
    try:
        yield made, time.monotonic() - began
    finally:
        made.shutdown()


# --- the driver's cost ------------------------------------------------------------------------------


def stand_ins(count: int, address: str) -> dict[str, Any]:
    """So many stand-in jobs in a driver of its own; seconds of the clock and of its processor, and bytes."""
    program = f"from benchmarks.cluster import drive; drive({count}, {address!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def drive(count: int, address: str) -> None:
    """What `stand_ins` runs."""
    from fivefold.comparison.crew import Crew
    from fivefold.comparison.on_ray import Ray
    from tests.standin import jobs_of

    with tempfile.TemporaryDirectory() as name:
        directory, console = Path(name), Console(file=io.StringIO(), width=140)
        for part in ("rows", "runs", "logs"):
            (directory / part).mkdir()
        place = Ray(address, directory, 1, 0, None, console)
        jobs = jobs_of([f"row{i}" for i in range(count)], seconds=SECONDS)
        Crew(directory, jobs_of(["warm", "up"]), place, console, module="tests.standin").work()
        before, began, worked = _memory(), time.monotonic(), time.process_time()
        Crew(directory, jobs, place, console, module="tests.standin").work()
        found = {"rows": count, "seconds": time.monotonic() - began, "cpu": time.process_time() - worked}
        found |= {"peak": _memory(), "before": before, "there": len(list((directory / "rows").glob("row*.json")))}
        place.close()
    print(json.dumps(found))


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rows() -> dict[str, Any]:
    """The driver's cost at each number of rows."""
    with cluster(2) as (made, _):
        return {"rows": [stand_ins(count, made.address) for count in COUNTS]}


# --- kills ------------------------------------------------------------------------------------------


def kills() -> dict[str, Any]:
    """Twenty jobs a trial, on two nodes; a worker's processes or a whole node killed at a random instant."""
    drawn, found = random.Random(0), []
    with cluster(1) as (made, _):
        for trial in range(TRIALS):
            what = ("worker", "raylet", "node")[trial % 3]
            other = made.add_node(**NODE, node_name=f"other{trial}")
            found.append({"kill": what, **one_kill(made.address, other, what, drawn.uniform(0.0, 6.0))})
            made.remove_node(other)
            print(found[-1], flush=True)
    return {"kills": found}


def one_kill(address: str, node: Any, what: str, after: float, count: int = 20) -> dict[str, Any]:
    """A crew whose worker or node is killed so many seconds after the first row: what arrived, and how often made."""
    from fivefold.comparison.crew import Crew
    from fivefold.comparison.on_ray import Ray
    from tests.standin import jobs_of

    with tempfile.TemporaryDirectory() as name:
        directory, console = Path(name), Console(file=io.StringIO(), width=140)
        for part in ("rows", "runs", "logs"):
            (directory / part).mkdir()
        place = Ray(address, directory, 1, 0, None, console)
        killer = threading.Thread(target=strike, args=(node, what, directory, after))
        killer.start()
        names = [f"row{i}" for i in range(count)]
        Crew(directory, jobs_of(names, seconds=0.5, killed=True), place, console, module="tests.standin").work()
        killer.join()
        place.close()
        rows = {path.stem: json.loads(path.read_text()) for path in (directory / "rows").glob("*.json")}
        made = {name: (directory / "logs" / f"{name}.txt").read_text().count("finished") for name in names}
        return {
            "after": after,
            "arrived": sum(rows.get(name, {}).get("status") == "ok" for name in names),
            "of": count,
            "finished_twice": sum(times > 1 for times in made.values()),
            "tried_again": console.file.getvalue().count("tried again"),  # type: ignore[attr-defined]
        }


def strike(node: Any, what: str, directory: Path, after: float) -> None:
    """SIGKILL a stand-in's process, the node's raylet, or the raylet and all that it started."""
    while not any((directory / "rows").iterdir()):
        time.sleep(0.05)
    time.sleep(after)
    if what == "worker":
        while not (found := processes(directory)):
            time.sleep(0.01)
        os.kill(found[0], signal.SIGKILL)
        return
    raylet = node.all_processes["raylet"][0].process.pid
    under = descendants(raylet) if what == "node" else []
    node.kill_raylet(check_alive=False)
    for pid in under:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes(directory: Path) -> list[int]:
    """Those of jobs: their standard error is a log in the comparison's directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/2"):
        with contextlib.suppress(OSError):
            if Path(os.readlink(path)).is_relative_to(directory.resolve() / "logs"):
                found.append(int(path.parent.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    """All processes that a process and those it started have started."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


# --- overhead ---------------------------------------------------------------------------------------


def overhead() -> dict[str, Any]:
    """The six systems with a budget in steps, by the local crew and on one node, and whether the rows are the same."""
    from fivefold import compare

    quiet = Console(file=io.StringIO(), width=140)
    seconds: dict[str, list[float]] = {kind: [] for kind in ORDER}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, cluster(1) as (made, start):
        where: dict[str, dict[str, Any]] = {"local": {"cpus_per_job": 1}, "ray": {"cluster": made.address}}
        for i, kind in enumerate(ORDER):
            out, began = Path(name) / str(i), time.monotonic()
            compare(SYSTEMS, "digits", budget=STEPS, out=out, diagnostics=False, console=quiet, **where[kind])
            seconds[kind].append(time.monotonic() - began)
            found.append({path.stem: facts(path) for path in sorted((out / "rows").glob("*.json"))})
            print(kind, seconds[kind][-1], flush=True)
    same = all(json.dumps(rows) == json.dumps(found[0]) for rows in found)
    local, ray = (sum(seconds[kind]) / len(seconds[kind]) for kind in ("local", "ray"))
    about = {"start": start, "each": seconds, "local": local, "ray": ray, "ratio": ray / local}
    return {"overhead": {**about, "same": same, "rows": len(found[0]), "steps": STEPS}}


def facts(path: Path) -> dict[str, Any]:
    """Of a row what no clock and no machine has a part in."""
    row = json.loads(path.read_text())
    curves = {name: [value[1:] for value in points] for name, points in row["curves"].items()}
    return {key: row[key] for key in ("label", "status", "density", "quality", "facts", "monitor")} | {
        "curves": curves, "parameters": row["cost"]["parameters"],
    }  # fmt: skip


PARTS = {"rows": rows, "kills": kills, "overhead": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    path = RESULTS / "cluster.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for part in parser.parse_args().parts:
        found |= PARTS[part]()
        found |= {"machine": f"{processor()}, {os.cpu_count()} cores, all nodes on one of them"}
        report(found)


def report(found: dict[str, Any]) -> None:
    """What is known so far, as JSON and as tables."""
    parts: dict[str, list[list[str]]] = {}
    lines = []
    if "rows" in found:
        most = found["rows"][-1]
        lines.append(f"{most['rows']:,} rows by a driver of {most['peak'] / 1e6:.0f} MB")
        head = ["rows", "seconds", "rows/s", "driver's CPU ms a row", "peak MB", "kB a row beyond the start"]
        parts["Stand-in jobs of 0.1 s on two nodes of one CPU each"] = [head] + [
            [f"{r['rows']:,}", f"{r['seconds']:.1f}", f"{r['rows'] / r['seconds']:.1f}",
             f"{1e3 * r['cpu'] / r['rows']:.1f}", f"{r['peak'] / 1e6:.0f}",
             f"{(r['peak'] - r['before']) / 1e3 / r['rows']:.1f}"]
            for r in found["rows"]
        ]  # fmt: skip
    if "kills" in found:
        lost = sum(k["of"] - k["arrived"] for k in found["kills"])
        lines.append(f"{lost} rows lost in {len(found['kills'])} trials with a kill")
        head = ["killed", "trials", "rows that arrived", "finished twice", "tried again"]
        kinds = dict.fromkeys(k["kill"] for k in found["kills"])
        of = {kind: [k for k in found["kills"] if k["kill"] == kind] for kind in kinds}
        parts["A worker, a raylet, or a node with all its processes killed at a random instant"] = [head] + [
            [kind, str(len(all_)), f"{sum(k['arrived'] for k in all_)} of {sum(k['of'] for k in all_)}",
             str(sum(k["finished_twice"] for k in all_)), str(sum(k["tried_again"] for k in all_))]
            for kind, all_ in of.items()
        ]  # fmt: skip
    if "overhead" in found:
        o = found["overhead"]
        lines.append(f"{o['ratio']:.2f} of the local crew's time on one node")
        parts[f"The six systems of `make compare`, {o['steps']} each, one at a time"] = [
            ["local s", "Ray s", "ratio", "Ray's own start, s", "rows the same bit for bit"],
            [
                f"{o['local']:.0f}",
                f"{o['ray']:.0f}",
                f"{o['ratio']:.2f}",
                f"{o['start']:.0f}",
                "yes" if o["same"] else "no",
            ],
        ]
    values = {key: value for key, value in found.items() if key != "headline"}
    write_result("cluster", "; ".join(lines), values)
    write_markdown("cluster", "; ".join(lines), parts)


if __name__ == "__main__":
    main()
