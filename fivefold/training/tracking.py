"""Where the lines of `log.jsonl` go besides: TensorBoard, trackio or MLflow, all behind one small interface."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from fivefold.errors import OptionError
from fivefold.run import Run

if TYPE_CHECKING:
    from fivefold.training.options import Settings

PROJECT = "fivefold"  # what trackio's project and MLflow's experiment are called
SEVERAL = 100  # parameters that MLflow takes at once

Values = dict[str, float]


class Tracker(Protocol):
    """Takes numbers by name."""

    def log(self, values: Values, step: int) -> None:
        """Numbers of one step."""

    def flush(self) -> None:
        """Nothing that was logged waits any more."""

    def end(self, status: str) -> None:
        """The training is over: finished, stopped or diverged."""


class TensorBoard:
    """Curves in the run's folder."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run.directory / "tensorboard"))

    def log(self, values: Values, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self.writer.flush()

    def end(self, status: str) -> None:
        self.writer.close()


class Trackio:
    """A run of trackio's; resuming goes on with it."""

    def __init__(self, run: Run) -> None:
        import trackio

        self.library: Any = trackio
        name = f"{run.directory.name}-{_digest(run)[:8]}"
        trackio.init(project=PROJECT, name=name, config=_facts(run), resume="allow")

    def log(self, values: Values, step: int) -> None:
        self.library.log(values, step=step)

    def flush(self) -> None:
        pass  # it sends as it goes

    def end(self, status: str) -> None:
        self.library.finish()


class MLflow:
    """A run of MLflow's, on the server or in the folder that its own settings name; resuming goes on with it."""

    ENDS = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED"}

    def __init__(self, run: Run) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.client: Any = MlflowClient()
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        tag = f"{PROJECT}.folder"
        before = self.client.search_runs([experiment], f"tags.`{tag}` = '{_digest(run)}'")
        if before:
            self.id = before[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        made = self.client.create_run(experiment, run_name=run.directory.name, tags={tag: _digest(run)})
        self.id = made.info.run_id
        params = [Param(name, str(value)[:500]) for name, value in _facts(run).items()]
        for first in range(0, len(params), SEVERAL):
            self.client.log_batch(self.id, params=params[first : first + SEVERAL])

    def log(self, values: Values, step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def flush(self) -> None:
        pass  # every call is written

    def end(self, status: str) -> None:
        self.client.set_terminated(self.id, self.ENDS[status])


TRACKERS: dict[str, Callable[[Run], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "mlflow": MLflow}


class Trackers:
    """All that a training is tracked by. One that fails is left out from then on, and training goes on."""

    def __init__(self, settings: Settings, run: Run | None) -> None:
        """Those that `settings` name; none without a run's folder. Raises OptionError where a library is missing."""
        asked = {"tensorboard": settings.tensorboard, settings.track: settings.track != "none"}
        names = [name for name, wanted in asked.items() if wanted]
        for name in names:
            _check_installed(name)
        self.open: dict[str, Tracker] = {}
        if run is not None:
            self._each(names, lambda name: self.open.update({name: TRACKERS[name](run)}))

    def log(self, values: Values, step: int) -> None:
        self._each(list(self.open), lambda name: self.open[name].log(values, step))

    def flush(self) -> None:
        self._each(list(self.open), lambda name: self.open[name].flush())

    def end(self, status: str) -> None:
        self._each(list(self.open), lambda name: self.open[name].end(status))

    def _each(self, names: Iterable[str], do: Callable[[str], None]) -> None:
        for name in names:
            try:
                do(name)
            except Exception as error:  # of the library or of its server: they have no common base
                self.open.pop(name, None)
                warnings.warn(f"{name} tracks no further: {error}", stacklevel=2)


def _check_installed(name: str) -> None:
    import importlib

    try:
        importlib.import_module(name)
    except ImportError as error:
        raise OptionError(f"tracking needs the library {name}: pip install 'fivefold[{name}]'") from error


def _digest(run: Run) -> str:
    """What tells the run's folder from others of the same name."""
    return hashlib.sha256(str(run.directory.resolve()).encode()).hexdigest()[:32]


def _facts(run: Run) -> dict[str, Any]:
    """What was trained, in a flat dictionary."""
    record = run.record
    given = {name: value for part in record["arguments"].values() for name, value in part.items()}
    return {"system": record["system"], "data": record["data"]["name"], "budget": record["budget"], **given}
