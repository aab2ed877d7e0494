"""A job that stands in for a training: `python -m tests.standin` does what its line says, and writes a row."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path


def jobs_of(names, **what):
    """Jobs of these names; `what` they do: `seconds` to take, a `file` of so many bytes to make, trouble `once`,
    whether one may be `killed`.
    """
    about = {"family": "flow", "system": "toy", "seed": 0, "position": 0}
    row = {"density": {"kind": "none"}, "quality": {}, "cost": {}}
    return [{"name": n, "threads": 1, "row": {**about, **row, "label": n}, "what": what} for n in names]


def _end_with_parent() -> None:
    """As a worker does."""
    sys.stdin.read()
    os._exit(1)


def _is_done(row: Path) -> bool:
    from fivefold.comparison.node import is_done  # takes longer than a stand-in does

    return is_done(row)


def main() -> None:
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name, place, what = job["name"], Path(job["directory"]), job["what"]
    print(f"said on {name}", file=sys.stderr, flush=True)
    if what.get("killed") and _is_done(place / "rows" / f"{name}.json"):
        return
    print(json.dumps({"phase": "standing in", "progress": 0.5}), flush=True)
    flag = place / f"{name}.flag"
    if "once" in what and not flag.exists():
        flag.touch()
        exec(what["once"])
    begun = time.monotonic()
    while time.monotonic() - begun < what.get("seconds", 0.0):
        time.sleep(0.02)
    run = place / "runs" / name
    saw = [path.name for path in (*run.glob("begun"), *sorted(place.glob("[cd]*.*")))]
    run.mkdir(exist_ok=True)
    content = os.urandom(what.get("file", 0))
    (run / "weights").write_bytes(content)
    (run / "empty").touch()
    row = {**job["row"], "status": "ok", "error": None, "directory": str(place), "machine": job["machine"], "saw": saw}
    writing = place / "rows" / f".{name}.writing"
    writing.write_text(json.dumps({**row, "digest": hashlib.sha256(content).hexdigest()}))
    writing.replace(place / "rows" / f"{name}.json")
    print("finished", file=sys.stderr)


if __name__ == "__main__":
    main()
