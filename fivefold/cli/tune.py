"""`tune SYSTEM`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fivefold import catalog
from fivefold.cli.base import app, cluster_options, load
from fivefold.cli.train import Systems, TrainCommand
from fivefold.training.budget import Budget

_OWN = ("--budget", "--out")  # whose meaning is another one here
_WHERE = ("cluster", "jobs", "cpus_per_job", "gpus_per_job")


class TuneCommand(TrainCommand):
    """As `train SYSTEM`: what is given stays fixed, the rest is tuned."""

    def __init__(self, entry: catalog.Entry) -> None:
        super().__init__(entry)
        self.params = [param for param in self.params if not set(param.opts) & set(_OWN)]
        self.params[1:1] = [
            click.Option(["--trials"], type=click.IntRange(1), default=10, show_default=True, help="How many."),
            click.Option(["--budget"], default="20s", show_default=True, help="Of each trial."),
            *cluster_options(),
            click.Option(
                ["--jobs"], type=click.IntRange(1), help="Trials at a time, on a cluster.  [default: all that fit]"
            ),
            click.Option(["--out"], help="Folder of the trials.  [default: tuning/SYSTEM-DATA]"),
        ]
        self.callback = self._tune
        self.help = f"Tune {entry.title} on the validation split. Options that are given stay as they are."

    def _tune(
        self, data: str, trials: int, budget: str, out: str | None, device: str, preset: str | None, **given: Any
    ) -> None:
        from fivefold.cli.options import given_options
        from fivefold.comparison.tuning import tune
        from fivefold.machine import choose_device
        from fivefold.report import write_report
        from fivefold.report.trials import in_words
        from fivefold.training.ranges import ranges
        from fivefold.training.trials import Trial

        name, where = self.entry.id, {key: given.pop(key) for key in _WHERE}
        options = given_options(given, self.known)
        amount = Budget.parse(budget)
        choose_device(device)
        loaded = load(data, given)
        click.echo(loaded.describe())
        folder = Path(out or Path("tuning") / f"{name}-{loaded.name}")
        tuned = ranges(self.entry.load(), preset, options)
        seconds = f", about {trials * amount.amount / 60:.1f} min and validation" if amount.unit == "seconds" else ""
        click.echo(f"{trials} trials of {budget}{seconds}; tuned: {', '.join(tuned)}")

        def told(trial: Trial) -> None:
            value = "" if trial.value is None else f"{trial.value:.5g}"
            error = f": {trial.error}" if trial.error else ""
            click.echo(f"{value:>10}  {in_words(trial.options) or 'as it is'}"
                       + (f"  ({trial.state}{error})" if trial.state != "ok" else ""))  # fmt: skip

        found = tune(name, loaded, trials=trials, budget=budget, out=folder, preset=preset, device=device, told=told,
                     **where, **options)  # fmt: skip
        page = write_report(folder)
        first = next((t.value for t in found.trials if t.number == 0 and t.value is not None), None)
        beside = f", {first:.5g} as it is" if first is not None and found.best.number else ""
        click.echo(f"best by validation: {found.best.value:.5g}{beside}: {found.command}")
        click.echo(f"report: {page}")


class Tunable(Systems):
    """`tune SYSTEM`: every system is a command."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if ctx.resilient_parsing:
            return None
        with catalog.trusting(name):
            return TuneCommand(catalog.find(name))


@app.group("tune", cls=Tunable, subcommand_metavar="SYSTEM --data DATA [OPTIONS]")
def tune() -> None:
    """Tune one system's options on the validation split. `fivefold tune SYSTEM --help` lists them."""
