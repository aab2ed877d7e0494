"""The machine: device, precision, threads, allocator."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

import fivefold
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


def describe(device: torch.device) -> dict[str, Any]:
    """What a row says of where it was made: host, processor and its cores, memory in bytes, device, versions."""
    return {
        "host": socket.gethostname(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": memory_of(torch.device("cpu")),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what numbers depend on."""
    return {"fivefold": fivefold.__version__, "torch": torch.__version__, "python": platform.python_version()}


def processor() -> str:
    """Its name."""
    with contextlib.suppress(OSError, StopIteration):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    return platform.processor() or platform.machine()


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has; of the processor, of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def bytes_in(text: str) -> int:
    """A size in words, as 80GB, 16GiB or 500MB; OptionError says what was expected."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT])(i?)B\s*", text)
    if match is None or float(match[1]) <= 0:
        raise OptionError(f"option 'memory' takes a size as 80GB, 16GiB or 500MB, got {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** (1 + "KMGT".index(match[2])))


# --- threads ----------------------------------------------------------------------------------------

WARM, TRIED = 3, 10  # steps that do not count, and steps with either number of threads
LONG = 0.1  # seconds of a step from which training takes all threads without trying
SLOWER = 1.5  # so many times slower than when they were chosen, steps have their threads chosen again
PIECE = 0.05  # seconds of repeating a work that are enough to time it


@contextlib.contextmanager
def using(threads: int) -> Iterator[None]:
    """While this is open torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_threads(work: Callable[[], Any], spend: float = PIECE) -> tuple[int, float]:
    """With how many threads (all of torch's, halves of them, or one) `work` takes the fewest seconds, and how many.

    Small networks lose more by waiting for a second thread than they gain, and all the more where a neighbour keeps
    the other cores busy. `work` is done once before it is timed. The number of threads stays as it was.

    Args:
        work: to be repeated.
        spend: seconds of repetitions with each number of threads, about; one is made in any case.
    """
    most = torch.get_num_threads()
    work()
    best, least = most, math.inf
    for threads in thread_numbers(most):
        with using(threads):
            seconds = seconds_of(work, spend)
        if seconds < least:
            best, least = threads, seconds
    return best, least


def thread_numbers(most: int) -> list[int]:
    """`most`, and halves of it down to one."""
    return [most, *thread_numbers(most // 2)] if most > 1 else [1]


def seconds_of(work: Callable[[], Any], spend: float) -> float:
    """The fewest seconds of repetitions within about `spend`: what `work` takes where nothing comes between.

    On one thread the processor's own time counts where that is less than the clock's: a neighbour's does not.
    """
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    spent, least = 0.0, math.inf
    while spent < spend:
        started, own = time.perf_counter(), time.thread_time()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        spent += seconds
        least = min(least, time.thread_time() - own if alone else seconds)
    return least


def load() -> float:
    """How many processes, on average over the last minute, wanted a core of this machine (this one included)."""
    return os.getloadavg()[0]


class Threads:
    """The number of threads of training: tried on its first steps, and again where steps get slow.

    Args:
        choose: whether to; otherwise all threads are taken. Where training ends by the clock no two runs are equal
            to the last bit anyway; elsewhere they shall be.
    """

    def __init__(self, choose: bool) -> None:
        self.most = torch.get_num_threads()
        self.choose = choose and self.most > 1
        self.used, self.usual = self.most, math.inf  # the number chosen, and the seconds of a step with it
        self.recent: list[float] = []
        self.begin(WARM if self.choose else 0)

    def begin(self, warm: int) -> None:
        """Try every number anew, after so many steps that do not count."""
        self.seconds: dict[int, list[float]] = {threads: [] for threads in thread_numbers(self.most)}
        self.plan = [self.most] * warm + [threads for threads in self.seconds for _ in range(TRIED)]
        self.plan = self.plan if self.choose else []
        self.skip = warm

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        """While this is open threads are chosen; then all are back."""
        with using(self.most):
            yield

    def took(self, seconds: float) -> None:
        """Note what a step took, and set the threads of the next."""
        if not self.choose:
            return
        if not self.plan:
            self._watch(seconds)
            return
        self.seconds[self.plan.pop(0)].append(seconds)
        first = self.seconds[self.most]
        if len(first) == self.skip and self.skip and min(first) > LONG:
            self.choose = False
        elif self.plan:
            torch.set_num_threads(self.plan[0])
        else:
            first[:] = first[self.skip :]
            self.used = min(self.seconds, key=lambda threads: median(self.seconds[threads]))
            self.usual, self.recent = median(self.seconds[self.used]), []
            torch.set_num_threads(self.used)

    def _watch(self, seconds: float) -> None:
        self.recent.append(seconds)
        if len(self.recent) == 2 * TRIED:
            slow, self.recent = median(self.recent) > SLOWER * self.usual, []
            if slow:
                self.begin(0)
                torch.set_num_threads(self.plan[0])


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
