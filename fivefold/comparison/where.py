"""Where jobs shall run, as the user says it: this machine, a Ray cluster, or Slurm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fivefold.comparison.place import Local, Place
from fivefold.errors import OptionError
from fivefold.files import read_json
from fivefold.report import folder

if TYPE_CHECKING:
    from rich.console import Console

SLURM, HERE = "slurm", "here"


@dataclass(frozen=True)
class Where:
    """The options `cluster`, `jobs`, `cpus_per_job` and `gpus_per_job` of a comparison or tuning.

    OptionError where they do not go together; says what to change.
    """

    cluster: str | None = None
    jobs: int | None = None
    cpus: int | None = None
    gpus: float = 0

    def __post_init__(self) -> None:
        for name, value in (("jobs", self.jobs), ("cpus_per_job", self.cpus)):
            if value is not None and value < 1:
                raise OptionError(f"option {name!r} takes a whole number from 1, got {value}")
        if self.gpus < 0 or self.gpus != int(self.gpus):
            raise OptionError(
                f"option 'gpus_per_job' takes whole GPUs, got {self.gpus:g}: jobs are timed, and two on one GPU would "
                "time each other"
            )
        if self.gpus and self.cluster is None:
            raise OptionError("option 'gpus_per_job' is of jobs on a cluster: give --cluster too")

    @property
    def local_jobs(self) -> int:
        return self.jobs or 1

    def threads(self, directory: Path) -> int:
        """Of a job: those given; else a share of this machine's, and on a cluster what the comparison has, or one."""
        if self.cpus:
            return self.cpus
        if self.cluster is None:
            return max(1, torch.get_num_threads() // self.local_jobs)
        path = directory / folder.SETTINGS
        return read_json(path).get("threads", 1) if path.exists() else 1

    @contextlib.contextmanager
    def open(self, directory: Path, lock: int, threads: int, console: Console) -> Iterator[Place]:
        """The place, as long as it is open.

        Args:
            directory: of the comparison.
            lock: a file descriptor that processes on this machine hold too.
            threads: of a job.
            console: takes sentences.
        """
        place: Place
        if self.cluster is None:
            place = Local(directory, self.local_jobs, lock)
        elif self.cluster.partition(":")[0] == SLURM:
            from fivefold.comparison.on_slurm import Slurm

            place = Slurm(self.cluster, directory, threads, int(self.gpus), self.jobs)
        else:
            from fivefold.comparison.on_ray import Ray

            place = Ray(self.cluster, directory, threads, int(self.gpus), self.jobs, console)
        with contextlib.closing(place):
            yield place
