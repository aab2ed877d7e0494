"""What the benchmarks share: naming the machine and keeping results."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The machine in words: processor, cores, threads, torch."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}{accelerator}"


def write_result(name: str, line: str, values: dict[str, Any]) -> None:
    """Print the headline and keep it with its figures in `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"headline": line, **values}, indent=1) + "\n")
    print(line)
