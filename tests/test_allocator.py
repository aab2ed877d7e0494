"""Freed memory is kept: the second of two equal large blocks touches no new pages."""

import subprocess
import sys

import pytest

from fivefold.machine import keep_freed_memory

# By the C library itself: torch asks for aligned blocks, which do not always fit into the freed one of before.
PROGRAM = """
import ctypes
import resource
from fivefold.machine import keep_freed_memory

c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
SIZE = 128 << 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = c.malloc(SIZE)
    ctypes.memset(block, 1, SIZE)
    c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
assert keep_freed_memory()
faults()
print(faults())
assert keep_freed_memory(False)
faults()
print(faults())
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="another allocator than glibc's")
def test_freed_memory_is_kept_until_told_otherwise():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usually, kept, again = map(int, run.stdout.split())
    assert kept < 100
    assert min(usually, again) > 10 * max(kept, 1)  # with large pages there are few of any


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
