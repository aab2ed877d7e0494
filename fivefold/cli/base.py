"""What the commands share: the group, and options that several take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
DATA_ARGUMENTS = (
    "condition",
    "test",
    "size",
    "length",
    "missing",
    "read",
    "crop",
    "skip_bad",
    "columns",
    "keep",
    "field",
    "rate",
    "trim",
    "vocabulary",
)


@click.group(context_settings=HELP)
@click.version_option(package_name="fivefold")
def app() -> None:
    """Every family of deep generative model: train, sample, score and compare them on your data.

    DATA is an embedded name (digits, photos, cancer, wine, pydocs, moons, rings, checkerboard, gaussians,
    pinwheel), a path (folder of images, sound or text, NPZ, NPY, CSV, Parquet, text) or hf:NAME.
    """


def data_options() -> list[click.Option]:
    """How data are read."""
    return [
        click.Option(["--condition"], help="Column, several ('sex,age') or 'label' to condition on."),
        click.Option(["--test"], type=click.Path(exists=True), help="Your own test split."),
        click.Option(["--size"], type=int, help="Resize images to this height and width."),
        click.Option(["--crop"], type=int, help="Of images take a square of so many pixels round the centre."),
        click.Option(["--skip-bad"], is_flag=True, default=None, help="Leave out files that cannot be read."),
        click.Option(["--length"], type=int, help="Characters (bytes, tokens) or audio samples of one example."),
        click.Option(["--vocabulary"], help="What text is made of: characters, bytes, bpe or bpe:512 (tokens)."),
        click.Option(["--read"], help="How a text file of rows is written: 'sep=;,decimal=,'."),
        click.Option(["--columns"], help="What columns are: 'zip=category,income=real,id=drop'."),
        click.Option(["--keep"], help="Relations that samples keep exactly: 'total=p1+p2,pay=rate*hours'."),
        click.Option(["--field"], help="Field of JSON lines, Parquet or the hub that holds the text."),
        click.Option(["--rate"], type=int, help="Samples a second that sound is resampled to."),
        click.Option(["--trim"], is_flag=True, default=None, help="Cut off silence at both ends of sound."),
        click.Option(
            ["--missing"],
            type=click.Choice(["model", "drop", "refuse"]),
            help="Missing numbers: modelled as a value of their own, such rows left out, or refused.",
        ),
    ]


def load(source: str, given: dict[str, Any]) -> Any:
    """The data that the command line names."""
    from fivefold.data import load_data

    return load_data(source, **{name: given[name] for name in DATA_ARGUMENTS if given[name] is not None})


def features(command: Callable[..., None]) -> Callable[..., None]:
    """`--features`."""
    text = "Network that samples are compared in: fitted, inception, or inception:WEIGHTS."
    return click.option("--features", default="fitted", show_default=True, help=text)(command)


def cluster_options() -> list[click.Option]:
    """Where jobs run."""
    return [
        click.Option(["--cluster"], metavar="auto|HOST:PORT|slurm", help="Run jobs on a Ray cluster, or by Slurm."),
        click.Option(["--cpus-per-job"], type=click.IntRange(1), help="Cores, and threads, of each job."),
        click.Option(["--gpus-per-job"], type=float, default=0, help="Of each job on a cluster: whole ones."),
    ]


def trust(command: Callable[..., None]) -> Callable[..., None]:
    """`--trust`."""
    text = "Names of modules outside the package that may be imported, separated by commas."
    return click.option("--trust", help=text)(command)
