"""What one does with a run: sample, score, evaluate, fill in, compress, decompress."""

from __future__ import annotations

import json
from typing import Any

import click

from fivefold.cli.base import app, features, trust


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("-n", "count", type=click.IntRange(1), default=16, show_default=True, help="How many.")
@click.option("--seed", type=int, help="The same seed gives the same samples.")
@click.option("--condition", help="Condition for all samples, where the model has one.")
@click.option("--dial", "dials", multiple=True, metavar="NAME=VALUE", help="Such as temperature=0.8, for this call.")
@click.option("--out", required=True, help="File: .png .npz .csv .txt .wav by what the data are.")
@trust
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
    check_suffix(out, system.data_space)
    given = system.data_space.condition
    wanted = given.parse(condition) if given is not None and condition is not None else condition
    labels = None if condition is None else [condition] * count
    with system.turned(**dict(map(_dial, dials))):
        drawn = system.sample(count, wanted, seed=seed)
    for path in save_examples(out, system.data_space, drawn, labels):
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
@click.option(
    "--by",
    type=click.Choice(["density", "typicality"]),
    default="density",
    show_default=True,
    help="What ranks: the least probable first, or that whose -log p is furthest from the usual, either way.",
)
@click.option("--against", help="Other data: how well the score tells them apart, as an area under the ROC curve.")
@click.option(
    "--explain",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Of a table: so many of the most unusual rows have the columns named that make them so.",
)
@click.option("--log-z", is_flag=True, help="Estimate the constant of an unnormalised density, by annealing.")
@click.option("--temperatures", type=click.IntRange(1), default=1000, show_default=True, help="Of --log-z.")
@trust
def score(directory: str, out: str, log_z: bool, temperatures: int, **options: Any) -> None:
    """Log-probability of each example (nats, bits, kind, standard error) and how unusual it is (rank, columns)."""
    from fivefold.evaluation.score import score_file

    click.echo(score_file(directory, out, log_z=temperatures if log_z else None, **options))


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("--data", help="Evaluate against these data instead of the run's own.")
@features
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@trust
def evaluate(directory: str, data: str | None, features: str, as_json: bool, trust: str | None) -> None:
    """Measure a trained system: one row of the table."""
    from fivefold.comparison.compare import show_row
    from fivefold.data import load_data
    from fivefold.evaluation.evaluate import evaluate as measure
    from fivefold.evaluation.features import named_features
    from fivefold.run import Run

    run = Run.open(directory, trust=trust)
    other = {**run.record["data"]["arguments"], "test": None}
    if vocabulary := run.record["space"].get("vocabulary"):
        other["vocabulary"] = vocabulary  # other text in the model's own tokens
    loaded = run.load_data() if data is None else load_data(data, **other)
    row = measure(directory, loaded, features=named_features(features, loaded), trust=trust)
    click.echo(json.dumps(row, indent=1) if as_json else show_row(row))


@app.command()
@click.argument("directory", metavar="DIR")
@click.option("--data", help="Rows with empty cells or without columns; of other data examples [the test split].")
@click.option("--mask", help="Of what is no table, what is missing: upper, lower, left, right, center, or a FILE.")
@click.option("-n", "count", type=click.IntRange(1), default=16, show_default=True, help="Examples, if no table.")
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="For each row or example.")
@click.option("--steps", type=click.IntRange(1), help="Of the chains, or particles; the system's own unless given.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same draws.")
@click.option("--condition", help="Condition for all, where the model has one and the data do not say it.")
@click.option("--read", default="", help="How a text file of rows is written: 'sep=;,decimal=,'.")
@click.option("--out", required=True, help="File: .csv .parquet .npz .png .txt .wav by what the data are.")
@trust
def fill(directory: str, out: str, **options: Any) -> None:
    """Fill in what is missing of examples: draws of it given the rest, which stays as it is."""
    from fivefold.apps.fill import fill_file

    click.echo(fill_file(directory, out, **options))


# --- compress, decompress ---------------------------------------------------------------------------


@app.command()
@click.argument("directory", metavar="DIR")
@click.argument("data", metavar="DATA")
@click.option("--out", required=True, help="File to write.")
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True, help="Examples at a time.")
@trust
def compress(directory: str, data: str, out: str, batch_size: int, trust: str | None) -> None:
    """Compress the examples of DATA losslessly by a run that can (idf, discrete-flow)."""
    from fivefold.apps.compress import compress_file

    click.echo(compress_file(directory, data, out, batch_size=batch_size, trust=trust))


@app.command()
@click.argument("directory", metavar="DIR")
@click.argument("file", metavar="FILE")
@click.option("--out", required=True, help="FILE.npz, FILE.csv or FILE.parquet by what the data are.")
@trust
def decompress(directory: str, file: str, out: str, trust: str | None) -> None:
    """Write the examples that FILE was compressed from, by the same run and on the same machine."""
    from fivefold.apps.compress import decompress_file

    click.echo(decompress_file(directory, file, out, trust=trust))
