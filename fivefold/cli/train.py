"""`train SYSTEM` and `resume`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fivefold import catalog
from fivefold.cli.base import HELP, app, data_options, load, trust
from fivefold.options import preset_of, presets_of
from fivefold.training.budget import Budget

TITLES = {"system": "Model", "optimizers": "Optimisers", "fit": "Training"}


class TrainCommand(click.Command):
    """A system's own command: its options, and those of what fills its slots, in sections by where they belong."""

    def __init__(self, entry: catalog.Entry) -> None:
        from fivefold.cli.options import flag_of
        from fivefold.training.options import options

        cls = entry.load()
        self.entry, self.known, self.defaults = entry, options(cls), preset_of(cls, None)
        presets = ", ".join(name for name in presets_of(cls) if name != "default") or "none"
        self.sections = {option.name: TITLES[option.section] for option in self.known.values()}
        super().__init__(
            entry.id,
            params=[
                click.Option(["--data"], required=True, help="Embedded name, path or hf:NAME."),
                *data_options(),
                click.Option(["--out"], help="Folder of the run.  [default: runs/SYSTEM-DATA]"),
                click.Option(["--device"], default="auto", help="auto, cpu, cuda, cuda:1.", show_default=True),
                click.Option(["--preset"], help=f"A named set of options: {presets}."),
                *(flag_of(option, self.defaults.get(name, option.default)) for name, option in self.known.items()),
            ],
            callback=self._train,
            help=f"{entry.title} (survey {entry.section}; {entry.reference}).\n\n{entry.summary}",
            context_settings=HELP,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        from fivefold.cli.options import slot_flags

        for title, flag in slot_flags(self.known, self.defaults, args):
            self.params.append(flag)
            self.sections[flag.name or ""] = title
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = dict.fromkeys(["Run", *self.sections.values()])
        for title in titles:
            params = [p for p in self.get_params(ctx) if self.sections.get(p.name or "", "Run") == title]
            records = [record for p in params if (record := p.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def _train(self, data: str, out: str | None, device: str, preset: str | None, **given: Any) -> None:
        from fivefold.cli.options import given_options
        from fivefold.machine import choose_device
        from fivefold.training.fit import begun, fit

        name, options = self.entry.id, given_options(given, self.known)
        Budget.parse(options.get("budget", "60s"))
        choose_device(device)
        loaded = load(data, given)
        if not int(os.environ.get("RANK", 0)):
            click.echo(loaded.describe())
        usual = Path("runs") / f"{name}-{loaded.name}"
        folders = [usual, *(usual.with_name(f"{usual.name}-{i}") for i in range(2, 10_000))]  # or one that was killed
        free = (f for f in folders if not f.exists() or begun(f, name, loaded, preset=preset, **options))
        folder = Path(out) if out else next(free)
        with Display(folder) as display:
            fit(name, loaded, out=folder, preset=preset, device=device, watch=display, **options)
        say_trained(folder)


class Systems(click.Group):
    """`train SYSTEM`: every system is a command whose options are those that it declares."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(catalog.entries())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if ctx.resilient_parsing:
            return None
        with catalog.trusting(name):
            return TrainCommand(catalog.find(name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Systems"):
            formatter.write_dl([(e.id, f"{e.title} ({e.reference})") for e in catalog.entries().values()])


@app.group("train", cls=Systems, subcommand_metavar="SYSTEM --data DATA [OPTIONS]")
def train() -> None:
    """Train one system. `fivefold train SYSTEM --help` lists its options."""


def say_trained(folder: Path) -> None:
    if int(os.environ.get("RANK", 0)):
        return
    best = json.loads((folder / "run.json").read_text())["best"]
    if best:
        click.echo(f"best by validation: {best['value']:.4g} {best['name']}, at step {best['step']:,}")
    click.echo(f"kept in {folder}: fivefold sample {folder} -n 16 --out samples.png; fivefold evaluate {folder}")


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("--budget", help="New total budget, to train a finished run further.")
@click.option("--device", help="auto, cpu, cuda, cuda:1.")
@click.option("--shard/--no-shard", default=None, help="In shards or not, under torchrun.  [default: as it was begun]")
@trust
def resume(directory: str, budget: str | None, device: str | None, shard: bool | None, trust: str | None) -> None:
    """Finish a run that was stopped or killed, or train further."""
    from fivefold.training.fit import resume as go_on

    if budget:
        Budget.parse(budget)
    with Display(Path(directory)) as display:
        go_on(directory, budget=budget, device=device, shard=shard, trust=trust, watch=display)
    say_trained(Path(directory))


class Display:
    """Progress for people: done of budget, time left, examples/s, the loss by player, the last validation."""

    def __init__(self, folder: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.folder, self.last = folder, ""
        console = Console(stderr=True)
        self.live = console.is_terminal
        self.bar = Progress(
            TextColumn("{task.fields[budget]}"),
            BarColumn(30),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("train", total=1.0, budget="", numbers="starting")

    def __enter__(self) -> Callable[[dict[str, Any]], None]:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        if "start" in event:
            self._announce(event["start"])
        elif "validation" in event:
            self.last = f"validation {event['validation']:.4g} {event['name']}"
            if not self.live:
                click.echo(f"{event['progress']:4.0%}  step {event['step']:,}  {self.last}", err=True)
        elif "went_back" in event:
            self.bar.console.print(f"went back to step {event['step']:,}: {event['went_back']}", style="yellow")
        elif "loss" in event:
            losses = "  ".join(f"{name} {value:.4g}" for name, value in event["loss"].items())
            numbers = f"{event['examples_per_second']:,.0f}/s  loss {losses}  {self.last}"
            self.bar.update(self.task, completed=event["progress"], numbers=numbers)

    def _announce(self, start: dict[str, Any]) -> None:
        budget = Budget.parse(start["budget"])
        how_long = "about that and a little for validation" if budget.unit == "seconds" else "time left is shown below"
        click.echo(
            f"{start['system']}: {start['parameters']:,} parameters on {start['device']}, "
            f"{start['batch_size']} of {start['examples']:,} examples a step; budget {budget} ({how_long}); "
            f"{self.folder} will take about {start['bytes'] / 1e6:,.0f} MB. Ctrl-C saves and stops.",
            err=True,
        )
        if start["sizes"]:
            click.echo(f"sizes by the rule: {start['sizes']}", err=True)
        self.bar.update(self.task, budget=str(budget))
