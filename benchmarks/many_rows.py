"""A comparison of up to 10,000 rows: reading its folder, its one file and its page, in time, memory and bytes.

Rows are copies of a real one of the digits, with arrays, values moved at random. Each size is measured in processes of
its own, by the processor's time, since the machine may have other work; needs Chromium and playwright.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, write_markdown, write_result
from fivefold import compare
from fivefold.report import folder, page
from fivefold.report.rows import FILE, Shelf, content

SIZES = (10, 100, 1_000, 10_000)
WORKS = ("files", "one file", "page")
_ARGUMENTS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"


def make(first: Path, place: Path, size: int) -> Path:
    """A folder of `size` copies of the one row in `first`, each a little other."""
    rng = np.random.default_rng(0)
    [path] = (first / "rows").glob("*.json")
    row, arrays = json.loads(path.read_text()), folder.read_arrays(path.with_suffix(".npz"))
    arrays = {name: array for name, array in arrays.items() if name not in ("features", "reference")}
    moved = [name for name, array in arrays.items() if name != "samples" and array.dtype.kind == "f"]
    (place / "rows").mkdir(parents=True)
    for name in (folder.SETTINGS, "real.npz"):
        shutil.copy(first / name, place / name)
    for i in range(size):
        scale = rng.uniform(0.8, 2.0)
        one = row | {"label": f"system {i}", "position": i}
        one["quality"] = {
            k: _scaled(v, ("value",), scale) if isinstance(v, dict) else v for k, v in row["quality"].items()
        }
        one["density"] = _scaled(row["density"], ("nats", "bits_per_dim"), scale)
        one["cost"] = _scaled(row["cost"], ("sample_per_second_64",), rng.uniform(0.1, 10))
        target = place / "rows" / f"{folder.file_name(one['label'], one['seed'])}.json"
        target.write_text(json.dumps(one, indent=1))
        np.savez_compressed(target.with_suffix(".npz"), **_scaled(arrays, tuple(moved), np.float32(scale)))
    return place


def _scaled(values: dict[str, Any], names: tuple[str, ...], scale: float) -> dict[str, Any]:
    return values | {name: values[name] * scale for name in names}


def measure(place: Path, work: str) -> dict[str, float]:
    """In a process of its own: the processor's seconds for a work, and the memory that it took beyond the start."""
    before, shelf, began = _memory(), Shelf(place), time.process_time()
    shelf.read()
    if work == "page":
        began = time.process_time()
        page.write(content(shelf), place / folder.REPORT)
    seconds = time.process_time() - began
    if work == "files":
        shelf.keep()
    return {"seconds": seconds, "megabytes": _memory() - before}


def _memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def browse(path: Path) -> dict[str, float]:
    """Milliseconds until the table is drawn, and that a click on a column takes."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=_ARGUMENTS.split())
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        tab.goto(path.as_uri())
        drawn = tab.evaluate("performance.timing.domContentLoadedEventEnd - performance.timing.navigationStart")
        click = "() => { const t = performance.now(); document.querySelector('th[data-key=frechet] button').click(); "
        sorting = tab.evaluate(click + "document.body.offsetHeight; return performance.now() - t; }")
        browser.close()
    return {"drawn_ms": drawn, "sort_ms": sorting}


def main() -> None:
    found: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        first = Path(temporary) / "first"
        compare(["made"], "digits", budget="50steps", out=first, diagnostics=False)
        for size in SIZES:
            place = make(first, Path(temporary) / str(size), size)
            for work in WORKS:
                words = [sys.executable, "-m", "benchmarks.many_rows", str(place), work]
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                found.setdefault(size, {})[work] = json.loads(done.stdout)
            report = place / folder.REPORT
            parts = {"rows": list((place / "rows").iterdir()), "one file": [place / FILE], "page": [report]}
            found[size]["sizes"] = {name: sum(p.stat().st_size for p in paths) / 1e6 for name, paths in parts.items()}
            found[size]["browser"] = browse(report)
            shutil.rmtree(place)
    most = found[SIZES[-1]]
    line = (
        f"{SIZES[-1]:,} rows: read from their files in {most['files']['seconds']:.1f} s, from one file in "
        f"{most['one file']['seconds']:.1f} s, the page written in {most['page']['seconds']:.1f} s more, with "
        f"{most['page']['megabytes']:.0f} MB of memory beyond the start ({machine()})"
    )
    write_result("many_rows", line, {"machine": machine(), "sizes": found})
    head = "rows; read, s; from one file, s; page, s; memory, MB; rows/, MB; rows.parquet, MB; report.html, MB; "
    table = [(head + "drawn, ms; sorted, ms").split("; ")]
    for size, of in found.items():
        numbers = [of[work]["seconds"] for work in WORKS] + [of["page"]["megabytes"], *of["sizes"].values()]
        table.append([f"{size:,}", *(f"{x:.3g}" for x in numbers), *(f"{x:.0f}" for x in of["browser"].values())])
    write_markdown("many_rows", line, {"By the number of rows": table})


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
    else:
        main()
