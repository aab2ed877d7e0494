"""The command line. Imports torch only where a command needs it, so that help and `list` answer at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fivefold import catalog
from fivefold.errors import FivefoldError
from fivefold.training.budget import Budget

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_HELP)
@click.version_option(package_name="fivefold")
def app() -> None:
    """Every family of deep generative model: train, sample, score and compare them on your data.

    DATA is an embedded name (digits, photos, cancer, wine, pydocs, moons, rings, checkerboard, gaussians,
    pinwheel), a path (folder of images or WAV, NPZ, NPY, CSV, Parquet, text) or hf:NAME.
    """


def main() -> None:
    """Run the command line; what a person can mend is one line, not a traceback."""
    try:
        app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error  # click raises Abort from what interrupted it
        click.echo(str(cause) or "stopped", err=True)
        sys.exit(130)
    except (FivefoldError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


# --- list -------------------------------------------------------------------------------------------


@app.command("list")
@click.option("--family", type=click.Choice(list(catalog.FAMILIES)), help="Only this family.")
@click.option("--data", help="Only systems that model this data.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_systems(family: str | None, data: str | None, as_json: bool) -> None:
    """The systems: id, family, kind of density, spaces, reference."""
    found = [e for e in catalog.entries().values() if family in (None, e.family)]
    if data:
        from fivefold.data import load_data

        kind = load_data(data).space.kind
        found = [e for e in found if kind in e.densities]
    if as_json:
        click.echo(json.dumps([entry.to_json() for entry in found], indent=1))
        return
    for name in dict.fromkeys(entry.family for entry in found):
        click.secho(f"\n{catalog.FAMILIES.get(name, name)}", bold=True)
        for e in (e for e in found if e.family == name):
            density = ", ".join(dict.fromkeys(e.densities.values()))
            click.echo(f"  {e.id:<18}{e.title} (survey {e.section}; {e.reference})")
            click.secho(f"  {'':<18}{', '.join(e.densities)}; density: {density}", dim=True)


# --- train, resume ----------------------------------------------------------------------------------


class _TrainCommand(click.Command):
    """A system's own command: help in sections by where an option belongs."""

    sections: dict[str, str] = {}
    slots: dict[str, Any] = {}  # options that a part or system fills

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Besides its own options those of what fills a slot, as they are given: `--prior.layers 4`."""
        flags = dict.fromkeys(arg.partition("=")[0] for arg in args if arg.startswith("--") and "." in arg)
        for flag in flags:
            param = self._inner(flag, args)
            if param is not None:
                self.params.append(param)
                self.sections[param.name or ""] = _TITLES["system"]
        return super().parse_args(ctx, args)

    def _inner(self, flag: str, args: list[str]) -> click.Option | None:
        """The option that `--slot.name` means; None where the slot or its part has no such option."""
        from fivefold.options import class_in, options_of, slot_of

        head, *path = flag[2:].replace("-", "_").split(".")
        known, content = self.slots, None
        outer = f"--{head.replace('_', '-')}"
        for given, value in zip(args, [*args[1:], ""], strict=True):
            content = value if given == outer else given.partition("=")[2] if given.startswith(f"{outer}=") else content
        for step in [head, *path[:-1]]:
            if step not in known or known[step].needs is None:
                return None
            filling = slot_of(content or known[step].default)
            with catalog.trusting(filling.name):
                known, content = options_of(class_in(filling, known[step].needs)), None
        option = known.get(path[-1])
        return None if option is None else _click_option(option, {}, flag, _INSIDE.join([head, *path]))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = dict.fromkeys(["Run", *self.sections.values()])
        for title in titles:
            params = [p for p in self.get_params(ctx) if self.sections.get(p.name or "", "Run") == title]
            records = [record for p in params if (record := p.get_help_record(ctx))]
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class _Systems(click.Group):
    """`train SYSTEM`: every system is a command whose options come from its signature."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(catalog.entries())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if ctx.resilient_parsing:
            return None
        with catalog.trusting(name):
            return _train_command(catalog.find(name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Systems"):
            formatter.write_dl([(e.id, f"{e.title} ({e.reference})") for e in catalog.entries().values()])


@app.group("train", cls=_Systems, subcommand_metavar="SYSTEM --data DATA [OPTIONS]")
def train() -> None:
    """Train one system. `fivefold train SYSTEM --help` lists its options."""


_INSIDE = "__"  # in the names of options of what fills a slot, where people write a dot
_TITLES = {"system": "Model", "optimizers": "Optimisers", "fit": "Training"}


def _train_command(entry: catalog.Entry) -> click.Command:
    from fivefold.options import preset_of, presets_of
    from fivefold.training.options import options

    cls = entry.load()
    known = options(cls)
    defaults = preset_of(cls, None)
    presets = ", ".join(name for name in presets_of(cls) if name != "default") or "none"
    params: list[click.Parameter] = [
        click.Option(["--data"], required=True, help="Embedded name, path or hf:NAME."),
        *_data_options(),
        click.Option(["--out"], help="New folder of the run.  [default: runs/SYSTEM-DATA]"),
        click.Option(["--device"], default="auto", help="auto, cpu, cuda, cuda:1.", show_default=True),
        click.Option(["--preset"], help=f"A named set of options: {presets}."),
    ]
    command = _TrainCommand(
        entry.id,
        params=params + [_click_option(option, defaults) for option in known.values()],
        callback=lambda **given: _train(entry.id, known, **given),
        help=f"{entry.title} (survey {entry.section}; {entry.reference}).\n\n{entry.summary}",
        context_settings=_HELP,
    )
    command.sections = {name: _TITLES[option.section] for name, option in known.items()}
    command.slots = {name: option for name, option in known.items() if option.needs is not None}
    return command


def _click_option(option: Any, defaults: dict[str, Any], flag: str = "", name: str = "") -> click.Option:
    """A flag from a declared option; unset ones stay None, so that presets show through."""
    import typing

    flag, name = flag or f"--{option.name.replace('_', '-')}", name or option.name
    default = defaults.get(option.name, option.default)
    text = ",".join(map(str, default)) if isinstance(default, tuple) else default
    help_text = f"{option.help}  [default: {text}]"
    kinds = [k for k in (typing.get_args(option.type) or (option.type,)) if k is not type(None)]
    origin = typing.get_origin(option.type)
    if option.type is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=help_text)
    if option.needs is not None:
        return click.Option([flag, name], metavar=option.describe_type(), default=None, help=help_text)
    if origin is typing.Literal:
        kind: Any = click.Choice(list(map(str, kinds)))
    elif origin is tuple:
        kind = _Several(kinds[0])
    else:
        kind = kinds[0]
    return click.Option([flag, name], type=kind, default=None, help=help_text)


class _Several(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated values."""

    def __init__(self, kind: type) -> None:
        self.kind, self.name = kind, f"{kind.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r}: expected {self.kind.__name__} values separated by commas", param, ctx)


def _data_options() -> list[click.Option]:
    return [
        click.Option(["--condition"], help="Column (or 'label') to condition on."),
        click.Option(["--test"], type=click.Path(exists=True), help="Your own test split."),
        click.Option(["--size"], type=int, help="Resize images to this height and width."),
        click.Option(["--length"], type=int, help="Characters or audio samples of one example."),
        click.Option(["--missing"], type=click.Choice(["refuse", "drop"]), help="Rows with missing numbers."),
    ]


def _with_data_options(command: Callable[..., None]) -> Callable[..., None]:
    command.__click_params__ = [*_data_options(), *getattr(command, "__click_params__", [])]  # type: ignore[attr-defined]
    return command


_DATA_ARGUMENTS = ("condition", "test", "size", "length", "missing")


def _load(source: str, given: dict[str, Any]) -> Any:
    """The data that the command line names."""
    from fivefold.data import load_data

    return load_data(source, **{name: given[name] for name in _DATA_ARGUMENTS if given[name] is not None})


def _train(
    name: str, known: dict[str, Any], data: str, out: str | None, device: str, preset: str | None, **given: Any
) -> None:
    from fivefold.training.fit import begun, fit

    chosen = {key.replace(_INSIDE, "."): value for key, value in given.items() if value is not None}
    options = {key: value for key, value in chosen.items() if key.partition(".")[0] in known}
    Budget.parse(options.get("budget", "60s"))
    loaded = _load(data, given)
    if not int(os.environ.get("RANK", 0)):
        click.echo(loaded.describe())
    usual = Path("runs") / f"{name}-{loaded.name}"
    folders = [usual, *(usual.with_name(f"{usual.name}-{i}") for i in range(2, 10_000))]  # or one that was killed
    free = (f for f in folders if not f.exists() or begun(f, name, loaded, preset=preset, **options))
    folder = Path(out) if out else next(free)
    with _Display(folder) as display:
        fit(name, loaded, out=folder, preset=preset, device=device, watch=display, **options)
    _say_trained(folder)


def _say_trained(folder: Path) -> None:
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
@click.option("--trust", help="Name of a module outside the package that may be imported.")
def resume(directory: str, budget: str | None, device: str | None, trust: str | None) -> None:
    """Finish a run that was stopped or killed, or train further."""
    from fivefold.training.fit import resume as go_on

    if budget:
        Budget.parse(budget)
    with _Display(Path(directory)) as display:
        go_on(directory, budget=budget, device=device, trust=trust, watch=display)
    _say_trained(Path(directory))


class _Display:
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
        self.bar.update(self.task, budget=str(budget))


# --- sample, score, evaluate ------------------------------------------------------------------------


def _features(command: Callable[..., None]) -> Callable[..., None]:
    text = "Network that samples are compared in: fitted, inception, or inception:WEIGHTS."
    return click.option("--features", default="fitted", show_default=True, help=text)(command)


def _trust(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--trust", help="Name of a module outside the package that may be imported.")(command)


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("-n", "count", type=click.IntRange(1), default=16, show_default=True, help="How many.")
@click.option("--seed", type=int, help="The same seed gives the same samples.")
@click.option("--condition", help="Condition for all samples, where the model has one.")
@click.option("--dial", "dials", multiple=True, metavar="NAME=VALUE", help="Such as temperature=0.8, for this call.")
@click.option("--out", required=True, help="File: .png .npz .csv .txt .wav by what the data are.")
@_trust
def sample(
    directory: str,
    count: int,
    seed: int | None,
    condition: str | None,
    dials: tuple[str, ...],
    out: str,
    trust: str | None,
) -> None:
    """Draw samples into a file, in the data's own form."""
    from fivefold.data.writers import check_suffix, save_examples
    from fivefold.run import load

    system = load(directory, trust=trust)
    check_suffix(out, system.space)
    given = system.space.condition
    wanted = given.parse(condition) if given is not None and condition is not None else condition
    labels = None if condition is None else [condition] * count
    with system.turned(**dict(map(_dial, dials))):
        drawn = system.sample(count, wanted, seed=seed)
    for path in save_examples(out, system.space, drawn, labels):
        click.echo(f"wrote {path}")


def _dial(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected NAME=NUMBER", param_hint="--dial") from None


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("--data", help="Score these examples instead of the run's own test split.")
@click.option("--out", required=True, help="FILE.csv or FILE.parquet.")
@_trust
def score(directory: str, data: str | None, out: str, trust: str | None) -> None:
    """Log-probability of each example: nats, bits per dimension, kind, standard error."""
    from fivefold.evaluation.score import score_file

    click.echo(score_file(directory, out, data=data, trust=trust))


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("--data", help="Evaluate against these data instead of the run's own.")
@_features
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_trust
def evaluate(directory: str, data: str | None, features: str, as_json: bool, trust: str | None) -> None:
    """Measure a trained system: one row of the table."""
    from fivefold.comparison.compare import show_row
    from fivefold.data import load_data
    from fivefold.evaluation.evaluate import evaluate as measure
    from fivefold.evaluation.features import named_features
    from fivefold.run import Run

    run = Run.open(directory, trust=trust)
    loaded = run.load_data() if data is None else load_data(data, **{**run.record["data"]["arguments"], "test": None})
    row = measure(directory, loaded, features=named_features(features, loaded), trust=trust)
    click.echo(json.dumps(row, indent=1) if as_json else show_row(row))


# --- compress, decompress ---------------------------------------------------------------------------


@app.command()
@click.argument("directory", metavar="DIR")
@click.argument("data", metavar="DATA")
@click.option("--out", required=True, help="File to write.")
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Examples at a time.")
@_trust
def compress(directory: str, data: str, out: str, batch_size: int, trust: str | None) -> None:
    """Compress the examples of DATA losslessly by a run that can (idf, discrete-flow)."""
    from fivefold.apps.compress import compress_file

    click.echo(compress_file(directory, data, out, batch_size=batch_size, trust=trust))


@app.command()
@click.argument("directory", metavar="DIR")
@click.argument("file", metavar="FILE")
@click.option("--out", required=True, help="FILE.npz, FILE.csv or FILE.parquet by what the data are.")
@_trust
def decompress(directory: str, file: str, out: str, trust: str | None) -> None:
    """Write the examples that FILE was compressed from, by the same run and on the same machine."""
    from fivefold.apps.compress import decompress_file

    click.echo(decompress_file(directory, file, out, trust=trust))


# --- compare, report --------------------------------------------------------------------------------


@app.command()
@click.argument("systems", nargs=-1, metavar="[SYSTEM ...]")
@click.option("--data", default="digits", show_default=True, help="Embedded name, path or hf:NAME.")
@_with_data_options
@_features
@click.option("--budget", default="30s", show_default=True, help="The same for every system.")
@click.option("--table1", is_flag=True, help="The systems of the survey's Table 1, its published figures beside.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Runs of each system.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Processes at a time.")
@click.option("--samples", multiple=True, metavar="NAME=FILE", help="Other people's samples, as a row.")
@click.option("--out", help="Folder of the comparison.  [default: compare-DATA]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
def compare(systems: tuple[str, ...], samples: tuple[str, ...], **options: Any) -> None:
    """Train systems of every family on the same data and budget, measure them the same way, draw Table 1."""
    from fivefold.comparison.compare import compare as run

    wrong = [text for text in samples if "=" not in text]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r}: expected NAME=FILE", param_hint="--samples")
    Budget.parse(options["budget"])
    named = dict(text.split("=", 1) for text in samples)
    data = _load(options.pop("data"), {name: options.pop(name) for name in _DATA_ARGUMENTS})
    run(list(systems) or None, data, samples=named, **options)


@app.command()
@click.argument("directory", metavar="DIR")
@_trust
def report(directory: str, trust: str | None) -> None:
    """Write the page of a comparison, or of one run."""
    from fivefold.report import write_report

    click.echo(f"wrote {write_report(directory, trust=trust)}")
