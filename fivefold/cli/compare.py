"""`compare`, `diff`, `report` and `leaderboard`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from typing import Any

import click

from fivefold.cli.base import DATA_ARGUMENTS, app, cluster_options, data_options, features, load, trust
from fivefold.cli.options import flag_of, given_options
from fivefold.options import Slot, options_of, slot, slot_of
from fivefold.training.budget import Budget
from fivefold.training.options import Settings

SHARED = {name: option for name, option in options_of(Settings).items() if name not in ("budget", "seed")}


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    flags = [*data_options(), *cluster_options(), *(flag_of(option, "each system's own") for option in SHARED.values())]
    command.__click_params__ = [*flags, *getattr(command, "__click_params__", [])]  # type: ignore[attr-defined]
    return command


def _serve(command: Callable[..., None]) -> Callable[..., None]:
    """`--serve` and `--port`."""
    text = "Of --serve.  [default: the first free one from 8050 on]"
    command = click.option("--port", type=click.IntRange(1, 65535), help=text)(command)
    return click.option("--serve", is_flag=True, help="Serve the page on 127.0.0.1 while rows come in.")(command)


def _row(text: str) -> str | Slot:
    """A system, or one with options as `train` takes them: `"vae --prior spline-flow"`."""
    from fivefold import catalog
    from fivefold.cli.train import TrainCommand

    name, *words = shlex.split(text)
    if not words:
        return slot_of(name) if slot(name).preset else name
    content = slot_of(name)
    assert isinstance(content.name, str)
    with catalog.trusting(content.name):
        command = TrainCommand(catalog.find(content.name))
    given = command.make_context(content.name, ["--data", "", *words]).params
    return Slot(content.name, given["preset"] or content.preset, given_options(given, command.known))


@app.command()
@click.argument("systems", nargs=-1, metavar="[SYSTEM ...]")
@click.option("--data", default="digits", show_default=True, help="Embedded name, path or hf:NAME.")
@_shared_options
@features
@click.option("--budget", default="30s", show_default=True, help="The same for every system.")
@click.option("--table1", is_flag=True, help="The systems of the survey's Table 1, its published figures beside.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each system.")
@click.option(
    "--tune", type=click.IntRange(0), default=0, metavar="N", help="A further row of each system, tuned over N trials."
)
@click.option("--tune-budget", default="20s", show_default=True, help="Of each trial.")
@click.option(
    "--within", metavar="TIME", help="How long all may take (10m, 1h): systems and their configurations race."
)
@click.option("--jobs", type=click.IntRange(1), help="Processes at a time.  [default: 1; on a cluster all that fit]")
@click.option("--measure-on", metavar="NODE", help="In the end measure all speeds again on that machine, or 'here'.")
@click.option("--samples", multiple=True, metavar="NAME=FILE", help="Other people's samples, as a row.")
@click.option("--out", help="Folder of the comparison.  [default: compare-DATA]")
@click.option("--preset", help="Of every system that has one of this name.")
@click.option("--no-diagnostics", is_flag=True, help="Leave out the curves of dials and the largest resolution.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@_serve
def compare(systems: tuple[str, ...], samples: tuple[str, ...], serve: bool, port: int | None, **options: Any) -> None:
    """Train systems of every family on the same data and budget, measure them the same way, draw Table 1.

    SYSTEM is an id, one with a preset (transformer:small), or one with options as `train` takes them, in quotes:
    "vae --prior spline-flow".
    """
    from fivefold.comparison.compare import compare as run

    wrong = [text for text in samples if "=" not in text]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r}: expected NAME=FILE", param_hint="--samples")
    Budget.parse(options["budget"]), Budget.parse(options["tune_budget"])
    named = dict(text.split("=", 1) for text in samples)
    rows = [_row(text) for text in systems]
    data = load(options.pop("data"), {name: options.pop(name) for name in DATA_ARGUMENTS})
    options["diagnostics"] = not options.pop("no_diagnostics")
    shared = given_options({name: options.pop(name) for name in SHARED}, SHARED)
    serve_at = _free_port(port) if serve else None
    done = run(rows or None, data, samples=named, serve=serve_at, **options, **shared)
    if serve:
        _serve_until_stopped(str(done.directory), serve_at)


@app.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("-n", "count", type=click.IntRange(1), default=8, show_default=True, help="Examples named on each side.")
@click.option("--out", help="File for these examples: .png .csv .txt .wav by what the data are.")
@trust
def diff(a: str, b: str, count: int, out: str | None, trust: str | None) -> None:
    """Compare two runs by the examples they share, and name those on which they differ most.

    A and B are each a run's folder (runs/vae), or FOLDER:LABEL, a line of a comparison with all its seeds
    (compare-digits:vae; compare-digits:transformer:small). A run outside a comparison is measured first.
    """
    from fivefold.comparison.diff import diff as run

    click.echo(run(a, b, count=count, out=out, trust=trust).text)


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("--table", type=click.Choice(["csv", "md", "parquet"]), help="The table alone, as DIR/table.FORMAT.")
@_serve
@trust
def report(directory: str, table: str | None, serve: bool, port: int | None, trust: str | None) -> None:
    """Write the page of a comparison, or of one run; or its table alone; or serve it, with what comes in."""
    from fivefold.report import write_report, write_table

    if serve:
        _serve_until_stopped(directory, port)
    else:
        click.echo(f"wrote {write_table(directory, table) if table else write_report(directory, trust=trust)}")


@app.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--by", default="frechet", show_default=True, help="Column that ranks, by its key; or density.")
@click.option("--kind", type=click.Choice(["exact", "lower bound", "estimate"]), help="Of density, to be ranked by.")
@click.option("--out", help="A file for the table: .csv .md .parquet.")
def leaderboard(directories: tuple[str, ...], by: str, kind: str | None, out: str | None) -> None:
    """Put comparisons on several data sets into one table: each system's rank on each, and its mean rank.

    Ranked are the systems that finished in all of the folders DIR, those that are told apart by no more than their
    error at the mean of their ranks; the others are listed with what is missing.
    """
    from fivefold.report.leaderboard import leaderboard as run

    found = run(directories, by=by, kind=kind)
    click.echo(found.text)
    if out:
        click.echo(f"wrote {found.write(out)}")


def _free_port(port: int | None) -> int:
    """The port that the page is served at, known before the folder is there to be served."""
    from fivefold.report.serve import free_port

    return free_port(port)


def _serve_until_stopped(directory: str, port: int | None) -> None:
    from fivefold.report import serve

    server = serve.server(directory, port)
    click.echo(f"serving {serve.address(server)} until Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        serve.work(server)
