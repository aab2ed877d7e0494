"""The trials of one system's options: drawn by Optuna, kept in a journal, gone on with after a kill.

A trial changes a few options of the best one so far: where a dozen may change and there are few trials, draws of all
at once hardly ever beat values that somebody chose. Which values the changed options take is Optuna's to say (by the
tree-structured Parzen estimator: Bergstra et al., 2011), from all trials before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold import catalog
from fivefold.errors import OptionError, RunError
from fivefold.files import write_json
from fivefold.space import Space
from fivefold.training.batches import mix
from fivefold.training.failures import KILLED, reason
from fivefold.training.options import arguments
from fivefold.training.ranges import Range, ranges

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from optuna.trial import Trial as Asked

    from fivefold.system import System

JOURNAL, TRIALS = "journal.log", "trials.json"
CHANGED = 3  # options of the best trial so far that the next one draws anew
REDRAWN = 20  # times, where a system refuses what was drawn
FINISHED, HOPELESS, REFUSED, LOST = "ok", "stopped early", "refused", "lost"
_TWICE = "its process ended, and so it did at the second try"
_KEPT_AS = "trial"  # in the journal
_NOT_COUNTED = (REFUSED, LOST)  # they cost no budget: drawn again


@dataclass(frozen=True)
class Trial:
    """One trial: the options that differ from the usual ones, and what became of it.

    `state` is "ok", "stopped early" (hopeless beside the others), or the word for what went wrong ("diverged", "out of
    memory", "killed", ...), which `error` explains. `value` is the best validation value (less is better) and `curve`
    all of them as [seconds of training, value]; `seconds` are those of the clock, validation included.
    """

    number: int
    state: str
    options: dict[str, Any]
    value: float | None = None
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    error: str | None = None


class Trials:
    """The trials of a system on a space, in a folder.

    Args:
        directory: the folder; trials that are in it count.
        system: an id, or a class.
        space: of the data: what does not build on it is drawn again.
        preset: the system's preset that trials start from.
        given: options that stay as they are.
        sized: what the rule of sizes makes of the others (`usual_sizes`).
        seed: of the draws.

    OptionError where no option is left to be tuned; Unfit where the system does not fit the space.
    """

    def __init__(
        self, directory: Path, system: type[System], space: Space, preset: str | None, given: dict[str, Any],
        sized: dict[str, Any], seed: int,
    ) -> None:  # fmt: skip
        self.directory, self.system, self.space, self.preset = directory, system, space, preset
        self.given, self.seed = given, seed
        self.ranges: dict[str, Range] = ranges(system, preset, given, sized)
        if not self.ranges:
            raise OptionError(f"{catalog.name_of(system)} has no option left to tune")
        directory.mkdir(parents=True, exist_ok=True)
        self.study = _study(directory / JOURNAL)
        for trial in self.study.trials:
            if not trial.state.is_finished() and trial.datetime_start is not None:
                self._give_up(trial)

    # --- one after another ----------------------------------------------------------------------

    def ask(self) -> tuple[Asked, dict[str, Any]]:
        """The next trial, and the options in which it differs from the usual ones; the first has none."""
        import optuna

        distributions = {name: found.distribution() for name, found in self.ranges.items()}
        refusal = ""
        for _ in range(REDRAWN):
            count = len(self.study.trials)
            if not any(trial.state.name == "WAITING" for trial in self.study.trials):
                self.study.enqueue_trial(self._kept(count))
            self.study.sampler = optuna.samplers.TPESampler(seed=mix(self.seed, count) % 2**32)
            asked = self.study.ask(distributions)
            options = self._changed(asked.params)
            try:
                self._build(options)
            except Exception as error:  # mostly OptionError or Unfit
                if not options:
                    raise
                refusal = reason(error)
                self.tell(asked, Trial(asked.number, REFUSED, options, error=refusal))
            else:
                return asked, options
        raise RunError(f"{catalog.name_of(self.system)} refused {REDRAWN} draws of its options, the last: {refusal}")

    def tell(self, asked: Asked, trial: Trial) -> None:
        """What became of a trial."""
        from optuna.trial import TrialState

        asked.set_user_attr(_KEPT_AS, asdict(trial))
        states = {FINISHED: TrialState.COMPLETE, HOPELESS: TrialState.PRUNED}
        complete = trial.state == FINISHED and trial.value is not None
        state = (
            TrialState.FAIL if trial.state == FINISHED and not complete else states.get(trial.state, TrialState.FAIL)
        )
        self.study.tell(asked, trial.value if complete else None, state)
        self.write({})

    def give_back(self, asked: Asked) -> None:
        """A trial that was interrupted: the next one has its options."""
        self._give_up(self.study.trials[asked.number], again=False)

    # --- what there is --------------------------------------------------------------------------

    @property
    def done(self) -> list[Trial]:
        """All that count, in order."""
        return [trial for trial in map(_trial, self.study.trials) if trial is not None]

    @property
    def best(self) -> Trial | None:
        """The one with the least value among those that were finished."""
        finished = [trial for trial in self.done if trial.state == FINISHED and trial.value is not None]
        return min(finished, key=lambda trial: (trial.value, trial.number), default=None)

    def importances(self) -> dict[str, float]:
        """Which options mattered: the share of the value's variance that each explains by itself (functional ANOVA:
        Hutter, Hoos and Leyton-Brown, 2014), the largest first; none where there are too few trials to say.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        with contextlib.suppress(ValueError, RuntimeError):
            found = get_param_importances(self.study, evaluator=FanovaImportanceEvaluator(seed=0))
            return {name: float(value) for name, value in found.items() if value == value}
        return {}

    def write(self, importances: dict[str, float]) -> None:
        """The trials, and where it is known what mattered, as a file for people and reports."""
        found = {"trials": [asdict(trial) for trial in self.done], "importances": importances}
        write_json(self.directory / TRIALS, found)

    def _kept(self, count: int) -> dict[str, Any]:
        """The values of a trial that is not to draw them: all the usual ones first, then most of the best's."""
        usual = {name: found.usual for name, found in self.ranges.items()}
        if count == 0:
            return usual
        best = self.best
        drawn = random.Random(mix(self.seed, count, 1)).sample(list(usual), min(CHANGED, len(usual)))
        kept = usual | (best.options if best else {})
        return {name: value for name, value in kept.items() if name not in drawn}

    def _changed(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """What of the values drawn is not as usual, in the few digits that people read."""
        short = {name: self.ranges[name].short(value) for name, value in drawn.items() if name in self.ranges}
        return {name: value for name, value in short.items() if value != self.ranges[name].usual}

    def _build(self, options: dict[str, Any]) -> None:
        split = arguments(self.system, self.preset, {**self.given, **options})
        catalog.build(self.system, self.space, **split["system"])

    def _give_up(self, trial: FrozenTrial, again: bool = True) -> None:
        """Mark a trial whose process is gone, and try it again; one that was lost twice is what killed the process."""
        from optuna.trial import TrialState

        state = KILLED if trial.user_attrs.get("again") else LOST
        lost = Trial(trial.number, state, self._changed(trial.params), error=_TWICE)
        self.study._storage.set_trial_user_attr(trial._trial_id, _KEPT_AS, asdict(lost))
        self.study.tell(trial.number, state=TrialState.FAIL)
        if state == LOST:
            self.study.enqueue_trial(trial.params, user_attrs={"again": True} if again else None)


def _study(journal: Path) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Worse at a mark of the budget than three of four trials before it, from its third tenth on.
    pruner = optuna.pruners.PercentilePruner(75.0, n_startup_trials=3, n_warmup_steps=3)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(study_name="trials", storage=storage, load_if_exists=True, pruner=pruner)


def _trial(trial: FrozenTrial) -> Trial | None:
    """Of the journal's; None for one that does not count."""
    found = trial.user_attrs.get(_KEPT_AS)
    return None if found is None or found["state"] in _NOT_COUNTED else Trial(**found)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """The folder for this process; another waits."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
