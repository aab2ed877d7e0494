"""The speeds of all rows of a comparison, measured again on one machine, so that they can be ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from fivefold import catalog
from fivefold.comparison.crew import Crew
from fivefold.comparison.place import Place
from fivefold.comparison.where import HERE
from fivefold.files import read_json, write_json

TIMED = "timed"


def again(directory: Path, node: str, trust: list[str], place: Place, shared: dict[str, Any], console: Console) -> None:
    """Measure the speeds of all finished rows on one machine, one row after another.

    Args:
        directory: of the comparison.
        node: the machine's name in its cluster, or "here".
        trust: the names of systems that the user typed; rows of others outside the package are left as they are.
        place: where that machine is.
        shared: what all jobs share (`compare`).
        console: takes a line for each row.
    """
    jobs = []
    for path in sorted((directory / "rows").glob("*.json")):
        row = read_json(path)
        known = row["system"] in catalog.entries() or row["system"] in trust
        if row["status"] == "ok" and known and row.get("timed", {}).get("node") != node:
            about = {key: row[key] for key in ("label", "system", "position")}
            job = {"kind": "speeds", "name": path.stem, "row": about, "into": TIMED, "directory": str(directory)}
            jobs.append({**shared, **job, "node": "" if node == HERE else node, "trust": ",".join(trust)})
    console.print(f"measuring the speeds of {len(jobs)} rows again on {node}", highlight=False)
    Crew(directory, jobs, place, console, most=1).work()
    for job in jobs:
        path = directory / TIMED / f"{job['name']}.json"
        if path.exists() and read_json(path)["status"] == "ok":
            row = read_json(path)
            write_json(directory / "rows" / path.name, {**row, "timed": {**row["timed"], "node": node, "jobs": 1}})
            path.unlink()
