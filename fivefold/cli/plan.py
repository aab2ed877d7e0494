"""`plan SYSTEM`: what a training needs, before it is begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fivefold import catalog
from fivefold.cli.base import app, load
from fivefold.cli.train import Systems, TrainCommand
from fivefold.errors import OptionError

if TYPE_CHECKING:
    from fivefold.training.forecast import Forecast, Way

SPARE = 0.9  # of a device's memory: the rest is the allocator's and the libraries'


class PlanCommand(TrainCommand):
    """As `train SYSTEM`, and trains nothing."""

    def __init__(self, entry: catalog.Entry) -> None:
        super().__init__(entry)
        self.params = [param for param in self.params if "--out" not in param.opts]
        self.params[1:1] = [
            click.Option(["--devices"], type=click.IntRange(1), default=1, help="How many.", show_default=True),
            click.Option(["--memory"], help="Of each device: 80GB, 16GiB.  [default: what this one has]"),
        ]
        self.callback = self._plan
        self.help = f"Say what training {entry.title} needs, and what makes it fit."

    def _plan(self, data: str, devices: int, memory: str | None, device: str, preset: str | None, **given: Any) -> None:
        from fivefold.cli.options import given_options
        from fivefold.machine import bytes_in, choose_device, memory_of
        from fivefold.training.forecast import Forecast, Way
        from fivefold.training.options import Settings, arguments
        from fivefold.training.spread import check
        from fivefold.training.trainer import USUAL_BATCH

        place = choose_device(device)
        room = bytes_in(memory) if memory else memory_of(place)
        split = arguments(self.entry.load(), preset, given_options(given, self.known))
        settings = Settings(**split["fit"])
        forecast = Forecast(self.entry.load(), load(data, given), split["system"], settings, place)
        batch = settings.batch_size or USUAL_BATCH
        asked = Way(batch, devices, settings.accumulate, settings.recompute, settings.shard)
        if batch % (devices * asked.accumulate):
            raise OptionError(f"a batch of {batch} does not divide into {devices} devices x {asked.accumulate} parts")
        if asked.shard:
            check(forecast.system)
        click.echo(f"{self.entry.id}: {forecast.numbers:,} parameters; {devices} x {room / 1e9:.3g} GB")
        ways = list(dict.fromkeys(forecast.ways(asked)))
        fitting = next((way for way in ways if forecast.need(way).total <= SPARE * room), None)
        for way in dict.fromkeys([asked, *([] if fitting is None else [fitting])]):
            click.echo(describe(forecast, way, room))
        if fitting is None:
            raise click.ClickException("nothing that the plan knows makes it fit: a smaller preset, or more memory")
        click.echo(f"it fits with: {fitting}")


def describe(forecast: Forecast, way: Way, room: int) -> str:
    """A line for a way: its parts in megabytes, whether they fit, how long a step takes."""
    need = forecast.need(way)
    parts = {"model": need.model, "optimiser": need.states, "copies": need.copies, "gathered": need.gathered}
    parts |= {"gradients and activations": need.step}
    cells = ", ".join(f"{name} {_megabytes(size)}" for name, size in parts.items() if size)
    fits = "fits" if need.total <= SPARE * room else "does not fit"
    return f"  {way}: {_megabytes(need.total)} MB a device ({cells}), {fits}; {forecast.seconds(way):.2g} s a step"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.{0 if size >= 1e7 else 1}f}"


class Plans(Systems):
    """`plan SYSTEM`."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if ctx.resilient_parsing:
            return None
        with catalog.trusting(name):
            return PlanCommand(catalog.find(name))


@app.group("plan", cls=Plans, subcommand_metavar="SYSTEM --data DATA [OPTIONS]")
def plan() -> None:
    """Say what training a system needs, and what makes it fit."""
