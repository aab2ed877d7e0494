"""The best within a time: successive halving over systems and their configurations (Jamieson and Talwalkar, 2016).

Every system starts as it is and with some draws of its options. All are trained for the same seconds of the clock; the
best third by one measure on the validation split goes on from where it stopped, three times as long, and so on, until a
few are left, which are measured on the test split. At every turn the budget grows, so that schedules, which are
functions of its share, go back and run to their end again: at the end of a turn every configuration is one whose
schedule is over, as a run of that budget would be.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fivefold import catalog
from fivefold.comparison import plan as planning
from fivefold.comparison.crew import Crew
from fivefold.comparison.halving import STARTING, Plan, plan
from fivefold.comparison.place import Place
from fivefold.comparison.racer import TRAINING, Racer
from fivefold.data import Data
from fivefold.errors import OptionError, RunError, Stopped
from fivefold.files import read_json, write_json
from fivefold.options import Slot, label, plain
from fivefold.report import folder
from fivefold.report.columns import DENSITY
from fivefold.report.trials import in_words
from fivefold.training.failures import reason, status
from fivefold.training.trials import FINISHED, Trial, Trials
from fivefold.training.tuning import settle

if TYPE_CHECKING:
    from optuna.trial import Trial as Asked

LATEST = 1.05  # of the time, after which no row is begun
PATIENCE = 1.5, 5.0  # a turn that is late by this factor and so many seconds is given up

clock = time.monotonic


@dataclass
class Entry:
    """A configuration: the system's place, what its options are beside the usual ones, and its turns so far.

    Each turn says the best validation `value` so far, the seconds `trained` in all and those of the clock.
    """

    label: str
    system: int
    number: int
    options: dict[str, Any]
    turns: list[dict[str, Any]] = field(default_factory=list)
    state: str = FINISHED
    error: str | None = None
    share: float = TRAINING

    @property
    def name(self) -> str:
        """Of its run and row."""
        return folder.file_name(self.label, 0)

    @property
    def value(self) -> float:
        return self.turns[-1]["value"] if self.turns else math.inf


class Race:
    """One race in a comparison's folder; what it knows is in `race.json`, and a further call goes on from there.

    Args:
        directory: of the comparison.
        data: what systems are trained on.
        systems: with the options that are given.
        shared: what all jobs share (`compare`); its options say what the measure is.
        within: seconds in all.
        place: where its processes are, as many as that does jobs at a time.
        started: when the clock was started.
        console: where it says what it does.
    """

    def __init__(
        self, directory: Path, data: Data, systems: list[Slot], shared: dict[str, Any], within: float, place: Place,
        started: float, console: Console,
    ) -> None:  # fmt: skip
        self.directory, self.data, self.systems, self.shared = directory, data, systems, shared
        self.within, self.jobs, self.console = within, place.jobs, console
        self.path = directory / folder.RACE
        self.plan = begun_plan(directory) or plan(len(systems), within, self.jobs)
        old: dict[str, Any] = {"elapsed": 0.0, "planned": [], "entries": []}
        old |= read_json(self.path) if self.path.exists() else {}
        self.started, self.planned = started - old["elapsed"], old["planned"]
        self.entries = [Entry(**entry) for entry in old["entries"]]
        self.guard, self.stopping = threading.RLock(), threading.Event()
        self.racers = [Racer(directory, shared["threads"], place, i) for i in range(self.jobs)]
        self.asked: dict[str, Asked] = {}  # trials that are being trained
        self.sized: dict[int, dict[str, Any]] = {}  # by system
        self.trials: dict[int, Trials] = {}
        for i in {entry.system for entry in self.entries if entry.number >= 0}:
            self._settle(i, {})

    def run(self) -> list[Entry]:
        """All turns; the finalists, the best first. Stopped where it was interrupted."""
        self.console.print(self.announcement(), highlight=False, markup=False)
        try:
            for turn in range(len(self.plan.counts)):
                self._turn(turn)
        finally:
            for racer in self.racers:
                racer.end()
        finalists = self._standing(len(self.plan.counts) - 1)[: self.plan.counts[-1]]
        if not finalists:
            raise RunError(
                "no configuration could be trained; the last: " + (self.entries[-1].error or "none was begun")
            )
        return finalists

    def announcement(self) -> str:
        """What will be done and how long it takes."""
        first, *further = zip(self.plan.counts, self.plan.seconds, strict=True)
        drawn = (
            f", each system as it is and {self.plan.each - 1} times with options drawn anew"
            if self.plan.each > 1
            else ""
        )
        lines = [f"  {first[0]} configurations{drawn}: {first[1]:.0f} s each"]
        lines += [f"  the best {count}, trained on: {seconds:.0f} s more each" for count, seconds in further]
        lines += [f"  the last {self.plan.counts[-1]} measured on the test split: {self.plan.measuring:.0f} s"]
        by = self.shared["options"]["by"]
        measure = "distance of samples" if by == "distance" else "density"
        gone = f", {self.elapsed():.0f} s of which are over" if self.planned else ""
        head = f"within {self.within:.0f} s{gone}, by the {measure} on the validation split, {self.jobs} at a time:"
        return "\n".join([head, f"  start: {STARTING:.0f} s", *lines])

    def job(self, rank: int, entry: Entry) -> dict[str, Any]:
        """What measures a finalist."""
        system = self.systems[entry.system]
        filled = replace(system, options={**system.options, **self.sized[entry.system], **entry.options})
        [job] = planning.plan(self.directory, self.data, [filled], 1, {}, self.shared)
        return {**job, "name": entry.name, "row": job["row"] | {"label": entry.label, "position": float(rank)}}

    # --- one turn of all that are in it -----------------------------------------------------------

    def _turn(self, turn: int) -> None:
        queue: deque[Callable[[int], Entry | None]] = deque(self._waiting(turn))
        if not queue:
            return
        for racer in self.racers[: len(queue)]:
            racer.wait_ready()
        if len(self.planned) == turn:
            self.planned.append(self._share(len(queue)) / (len(self.plan.counts) - turn))
            self._save()
        pool = ThreadPoolExecutor(self.jobs)
        futures = [pool.submit(self._work, i, turn, queue) for i in range(self.jobs)]
        try:
            wait(futures)
        except KeyboardInterrupt:
            self.stopping.set()
            self.console.print("stopping: saving what is half trained ...")
            for racer in self.racers:
                racer.end()
            self._save()
            raise Stopped(f"stopped {self.elapsed():.0f} s into {self.within:.0f}; the same command goes on") from None
        finally:
            pool.shutdown(cancel_futures=True)
        for future in futures:
            future.result()
        if turn + 1 < len(self.plan.counts):
            going = [entry.label for entry in self._standing(turn)[: self.plan.counts[turn + 1]]]
            self.console.print(f"{self.elapsed():5.0f} s going on: {'; '.join(going)}", highlight=False, markup=False)

    def _waiting(self, turn: int) -> list[Callable[[int], Entry | None]]:
        """Who takes this turn and has not yet."""
        if turn == 0:
            lost = {entry.system for entry in self.entries if entry.number < 0}
            done = {i: len(trials.done) for i, trials in self.trials.items()}
            missing = [(self.plan.each - done.get(i, 0), i) for i in range(len(self.systems)) if i not in lost]
            rounds = range(max((count for count, _ in missing), default=0))
            return [lambda slot, i=i: self._begin(i, slot) for n in rounds for count, i in missing if n < count]  # type: ignore[misc]
        chosen = [e for e in self._standing(turn - 1, dropped=True)[: self.plan.counts[turn]] if e.state == FINISHED]
        return [lambda slot, entry=entry: entry for entry in chosen if len(entry.turns) == turn]  # type: ignore[misc]

    def _standing(self, turn: int, dropped: bool = False) -> list[Entry]:
        """All that took a turn, the best first; those that failed later only where `dropped`."""
        took = [e for e in self.entries if len(e.turns) > turn and (dropped or e.state == FINISHED)]
        return sorted(took, key=lambda entry: (entry.turns[turn]["value"], entry.label))

    def _work(self, slot: int, turn: int, queue: deque[Callable[[int], Entry | None]]) -> None:
        """One after another, until none waits."""
        while True:
            with self.guard:
                if not queue or self.stopping.is_set():
                    return
                # The same for all; what slow ones took longer is missing in later turns.
                seconds = min(self.planned[turn], self._share(len(queue)))
                entry = queue.popleft()(slot)
            if entry is None:
                continue
            run = (self.directory / "runs" / entry.name).resolve()
            turn_of = {"run": str(run), "seconds": seconds, "share": entry.share}
            options = {**self.sized[entry.system], **entry.options}
            answer = self.racers[slot].take(self._asked(entry.system, options) | turn_of, self._latest(seconds))
            with self.guard:
                if not self.stopping.is_set():
                    self._note(entry, turn, answer)

    def _asked(self, i: int, options: dict[str, Any]) -> dict[str, Any]:
        """What a process is told of a system with these options beside those given."""
        system = self.systems[i]
        about = {"system": planning.name_of(system), "preset": system.preset, "device": self.shared["device"]}
        return {**about, "options": plain({**self._given(system), **options})}

    def _latest(self, seconds: float) -> float:
        """How long an answer is waited for."""
        return min(PATIENCE[0] * seconds + PATIENCE[1], max(LATEST * self.within - self.elapsed(), 5.0))

    def _begin(self, i: int, slot: int) -> Entry | None:
        """A new configuration of a system; None where it does not fit or nothing builds."""
        system = self.systems[i]
        if any(entry.system == i and entry.number < 0 for entry in self.entries):
            return None
        if i not in self.trials:
            answer = self.racers[slot].take(
                self._asked(i, {}) | {"size": self._sizing()}, self._latest(self.planned[0])
            )
            if answer["state"] != FINISHED:
                self._leave_out(i, answer["state"], answer["error"])
                return None
            self._settle(i, answer["sized"])
        try:
            asked, options = self.trials[i].ask()
        except Exception as error:
            self._leave_out(i, status(error), reason(error))
            return None
        called = label(system) + (f" (trial {asked.number})" if options else "")
        entry = Entry(called, i, asked.number, plain(options))
        self.asked[entry.name] = asked
        return entry

    def _leave_out(self, i: int, state: str, error: str) -> None:
        """A system that cannot be built."""
        self.entries.append(Entry(label(self.systems[i]), i, -1, {}, [], state, error))
        self._save()
        self._say(self.entries[-1])

    def _sizing(self) -> str:
        """The budget that sizes are chosen for: what a configuration that gets half way has in all."""
        return f"{TRAINING * sum(self.plan.seconds[: len(self.plan.seconds) // 2 + 1]):.1f}s"

    def _note(self, entry: Entry, turn: int, answer: dict[str, Any]) -> None:
        """What came of a turn."""
        entry.state, entry.error = answer["state"], answer.get("error")
        if entry.state == FINISHED:
            entry.share = answer["share"]
            entry.turns.append({key: answer[key] for key in ("value", "trained", "seconds")})
        if turn == 0:
            self.entries.append(entry)
            told = Trial(entry.number, entry.state, entry.options, answer.get("value"), answer.get("seconds", 0.0),
                         answer.get("curve", []), entry.error)  # fmt: skip
            self.trials[entry.system].tell(self.asked.pop(entry.name), told)
        self._save()
        self._say(entry)

    def _share(self, waiting: int) -> float:
        """What each of those that wait may take, were all the time that is left theirs; a second at least."""
        left = self.within - self.plan.measuring - self.elapsed()
        return max(left / math.ceil(waiting / self.jobs), 1.0)

    # --- what is kept and said ------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds that the race has worked, those before an interruption too."""
        return clock() - self.started

    def _say(self, entry: Entry) -> None:
        value = f"{entry.value:.4g}" if entry.turns else ""
        after = f" after {entry.turns[-1]['trained']:.0f} s of training" if entry.turns else ""
        words = in_words(entry.options)
        said = f"{value:>10}  {entry.label}{f' ({words})' if words else ''}{after}"
        if entry.state != FINISHED:
            said += f": {entry.state}: {entry.error}"
        self.console.print(f"{self.elapsed():5.0f} s {said}", highlight=False, markup=False)

    def _save(self) -> None:
        kept = {"within": self.within, "elapsed": self.elapsed(), "plan": asdict(self.plan), "planned": self.planned}
        kept |= {"by": self.shared["options"]["by"], "entries": [asdict(entry) for entry in self.entries]}
        write_json(self.path, kept)

    def _given(self, system: Slot) -> dict[str, Any]:
        return {**self.shared["options"], **system.options}

    def _settle(self, i: int, sized: dict[str, Any]) -> None:
        """Begin a system's trials, or go on with them, at the sizes that they were begun with."""
        system = self.systems[i]
        given, name = self._given(system), planning.name_of(system)
        place = self.directory / folder.TUNING / folder.file_name(label(system), None)
        place.mkdir(parents=True, exist_ok=True)
        about = {"system": name, "preset": system.preset, "given": plain(dict(system.options)), "by": given["by"]}
        about |= {"budget": f"{self.plan.seconds[0]:.0f}s", "data": {"name": self.data.name}}
        self.sized[i] = settle(place, about, lambda: sized)
        cls = catalog.class_of(name)
        self.trials[i] = Trials(place, cls, self.data.space, system.preset, given, self.sized[i], seed=0)


def entered(systems: list[Slot], preset: str | None, by: str, kind: str, named: bool) -> list[Slot]:
    """The systems that race, with their presets: all by "distance"; by "density" those whose density can be averaged.

    OptionError names the others where the user `named` the systems; else they are left out.
    """
    able = [s for s in systems if by == "distance" or catalog.find(planning.name_of(s)).densities.get(kind) in DENSITY]
    others = [label(system) for system in systems if system not in able]
    if others and named:
        raise OptionError(f"{', '.join(others)} have no density to be chosen by: leave them out, or --by distance")
    return [replace(system, preset=planning.own_preset(system, preset)) for system in able]


def begun_plan(directory: Path) -> Plan | None:
    """That of a race which was begun, whatever the number of processes is now."""
    path = directory / folder.RACE
    return Plan.from_json(read_json(path)["plan"]) if path.exists() else None


def terms(directory: Path, systems: list[Slot], within: float, jobs: int) -> dict[str, Any]:
    """What must be the same where a race is gone on with, and what the page says of its budget."""
    most = sum((begun_plan(directory) or plan(len(systems), within, jobs)).seconds)
    return {"budget": f"up to {most:.0f}s", "within": {"seconds": within, "systems": list(map(label, systems))}}


def race(
    directory: Path, data: Data, systems: list[Slot], shared: dict[str, Any], within: float, place: Place,
    started: float, console: Console,
) -> None:  # fmt: skip
    """Race, and measure the last few on the test split, the best first, for as long as there is time."""
    run = Race(directory, data, systems, shared, within, place, started, console)
    found = [run.job(rank, entry) for rank, entry in enumerate(run.run())]
    waiting = [job for job in found if not (directory / "rows" / f"{job['name']}.json").exists()]
    console.print(f"\nreport: {directory / folder.REPORT}", highlight=False, markup=False)
    took = 0.0
    while waiting:
        began = run.elapsed()
        if took and began + took > LATEST * within:
            names = ", ".join(job["row"]["label"] for job in waiting)
            console.print(f"the time is over: not measured: {names}; the same command measures them", markup=False)
            return
        batch, waiting = waiting[: run.jobs], waiting[run.jobs :]
        left = max(LATEST * within - began, 10.0)
        batch = [{**job, "sample_seconds": left / 4} for job in batch]
        Crew(directory, batch, place, console).work()
        took = run.elapsed() - began
