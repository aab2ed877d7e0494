"""The trials of one tuning on a cluster: several at a time, each a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fivefold.comparison.copies import Event
from fivefold.comparison.crew import Crew, Job
from fivefold.comparison.plan import PLACES, prepare
from fivefold.comparison.where import Where
from fivefold.data import Data
from fivefold.errors import OptionError, Stopped
from fivefold.files import write_json
from fivefold.report import folder, single
from fivefold.report.columns import Row
from fivefold.training import tuning as training
from fivefold.training.trials import HOPELESS, Trial, Trials
from fivefold.training.tuning import Hopeless, Tuned, report

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

    from fivefold.system import System


def tune(
    system: str | type[System],
    data: Data | Any,
    *,
    cluster: str | None = None,
    jobs: int | None = None,
    cpus_per_job: int | None = None,
    gpus_per_job: float = 0,
    **given: Any,
) -> Tuned:
    """As `fivefold.training.tuning.tune`, and where a cluster is named with several trials at a time on it.

    Args:
        system: as there.
        data: as there.
        cluster: "auto" or HOST:PORT of a Ray cluster, "slurm", or None: one after another, here.
        jobs: trials at a time on the cluster; None makes as many as fit.
        cpus_per_job: cores and threads of each of them; None takes one.
        gpus_per_job: whole ones, of each of them.
        given: as there.

    Raises:
        RunError: there is no such cluster; and what is raised there.
    """
    where = Where(cluster, jobs, cpus_per_job, gpus_per_job)
    if cluster is None and (jobs or cpus_per_job):
        raise OptionError("options 'jobs' and 'cpus_per_job' are of trials on a cluster: give --cluster too")
    return training.tune(system, data, attempts=None if cluster is None else partial(attempt_all, where), **given)


def attempt_all(
    where: Where, found: Trials, count: int, data: Data, about: dict[str, Any], told: Callable[[Trial], None]
) -> None:
    """Make trials until there are `count`, as many at a time as the cluster does.

    Args:
        where: the cluster.
        found: the trials; beside them, in the folder `cluster`, is what their jobs need.
        count: of trials.
        data: to train on.
        about: of each trial: `system`, `preset`, `device` and the `options` that stay.
        told: called with each trial when it is over.

    Stopped where it was interrupted.
    """
    directory, threads = found.directory / "cluster", where.threads(found.directory)
    for part in PLACES:
        (directory / part).mkdir(parents=True, exist_ok=True)
    write_json(directory / folder.SETTINGS, single.describe(data))
    prepare(directory, data, {"features": None, "threads": threads})
    asked: dict[str, tuple[Asked, dict[str, Any]]] = {}
    curves: dict[str, list[list[float]]] = {}

    def jobs() -> Iterator[Job]:
        for _ in range(count - len(found.done)):
            trial, changed = found.ask()
            name = f"trial-{trial.number}"
            asked[name], curves[name] = (trial, changed), []
            row = {"label": name, "system": about["system"], "position": trial.number}
            yield {**about, "kind": "trial", "name": name, "row": row, "number": trial.number, "changed": changed,
                   "threads": threads, "directory": str(directory)}  # fmt: skip

    def heard(name: str, event: Event) -> None:
        if math.isfinite(event.get("validation", math.nan)):
            curves[name].append([event["seconds"], event["validation"]])
            try:
                report(asked[name][0], event)
            except Hopeless:
                crew.stop(name)

    def over(job: Job, row: Row) -> None:
        name = job["name"]
        (trial, changed), curve = asked.pop(name), curves.pop(name)
        if "trial" in row:
            result = Trial(**row["trial"])
        elif row["status"] == "stopped":
            value, seconds = min(value for _, value in curve), curve[-1][0]
            result = Trial(trial.number, HOPELESS, changed, value, seconds, curve)
        else:
            result = Trial(trial.number, row["status"], changed, error=row["error"])
        found.tell(trial, result)
        (directory / "rows" / f"{name}.json").unlink(missing_ok=True)
        told(result)

    console = Console()
    with where.open(Path(directory), 0, threads, console) as place:
        crew = Crew(directory, jobs(), place, console, most=place.jobs, heard=heard, over=over)
        try:
            crew.work()
        except (Stopped, KeyboardInterrupt):
            for trial, _ in asked.values():
                found.give_back(trial)
            raise Stopped(f"stopped after {len(found.done)} of {count} trials; the same command goes on") from None
