"""All of torch's threads or one: small networks lose more by waiting for a second one than they gain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from statistics import median

import torch

WARM, TRIED = 3, 10  # steps that do not count, and steps with either number of threads
LONG = 0.1  # seconds of a step from which all threads are taken without trying


class Threads:
    """Finds out on the first steps of training which takes less time for a step, and keeps to it.

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
