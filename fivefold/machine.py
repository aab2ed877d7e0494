"""The machine: device, precision, threads, allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from statistics import median

import torch

from fivefold.errors import OptionError


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes the accelerator that this rank owns, or the CPU.

    OptionError where there is no such device: says which there are.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if found else torch.device("cpu")
    there = ["auto", "cpu", *(["cuda"] if found else []), *(f"cuda:{i}" for i in range(found))]
    if name not in there:
        raise OptionError(f"option 'device' takes {'|'.join(there)} on this machine, got {name!r}")
    return torch.device(name)


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has units for bf16; what emulates it is many times slower than in 32 bits."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # torch has no public name for it
    return bool(native and native())


# --- threads ----------------------------------------------------------------------------------------

WARM, TRIED = 3, 10  # steps that do not count, and steps with either number of threads
LONG = 0.1  # seconds of a step from which all threads are taken without trying


class Threads:
    """All of torch's threads or one: small networks lose more by waiting for a second one than they gain.

    Finds out on the first steps of training which takes less time for a step, and keeps to it.

    Args:
        choose: whether to; otherwise all threads are taken. Where training ends by the clock no two runs are equal
            to the last bit anyway; elsewhere they shall be.
    """

    def __init__(self, choose: bool) -> None:
        self.most = torch.get_num_threads()
        self.seconds: dict[int, list[float]] = {self.most: [], 1: []}
        self.plan = [self.most] * (WARM + TRIED) + [1] * TRIED if choose and self.most > 1 else []

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        """While this is open threads are chosen; then all are back."""
        try:
            yield
        finally:
            torch.set_num_threads(self.most)

    def took(self, seconds: float) -> None:
        """Note what a step took, and set the threads of the next."""
        if not self.plan:
            return
        self.seconds[self.plan.pop(0)].append(seconds)
        if len(self.seconds[self.most]) == WARM and min(self.seconds[self.most]) > LONG:
            self.plan = []
        elif self.plan:
            torch.set_num_threads(self.plan[0])
        else:
            several, one = median(self.seconds[self.most][WARM:]), median(self.seconds[1])
            torch.set_num_threads(self.most if several < one else 1)


# --- the allocator ----------------------------------------------------------------------------------

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, see mallopt(3)
# glibc hands large blocks back to the kernel, to be fetched anew each step.
KEPT = {MMAP_THRESHOLD: 1 << 30, TRIM_THRESHOLD: 1 << 30}  # bytes of a block, and at the heap's end
USUAL = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}  # what a process with large blocks arrives at


def keep_freed_memory(keep: bool = True) -> bool:
    """Let this process reuse what it frees up to a gibibyte, or no longer; whether glibc, which allocates, was told.

    On two cores dcgan trained in 5 % less time so, gated-pixelcnn in 8 to 15 %, vdvae in the same; more memory may stay
    resident. glibc's variables MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ do the same from outside.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    told = [mallopt(option, value) for option, value in (KEPT if keep else USUAL).items()]
    return all(told)
