"""Freed memory is kept: sooner or later equal large blocks touch no new pages."""

import subprocess
import sys

import pytest

from fivefold.allocator import keep_freed_memory

PROGRAM = """
import resource
import torch
from fivefold.allocator import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(32 << 20)  # 128 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(5)))
assert keep_freed_memory()
print(min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="another allocator than glibc's")
def test_freed_memory_is_kept():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usually, kept = map(int, run.stdout.split())
    assert usually > 1000  # else there would be nothing to mend
    assert kept < 100


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
