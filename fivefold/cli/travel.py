"""How a run leaves this machine and comes to another: push, pull, export."""

from __future__ import annotations

from typing import Any

import click

from fivefold.cli.base import app, trust

TRAINING = click.option("--with-training-state", is_flag=True, help="Also what resuming needs.")


@app.command()
@click.argument("directory", metavar="RUN")
@click.argument("target", metavar="hf:NAME|FOLDER|URL")
@TRAINING
@click.option("--public", is_flag=True, help="A model that is made on the hub can be seen by all.")
@click.option("--force", is_flag=True, help="Replace a run that is there.")
@trust
def push(directory: str, target: str, **options: Any) -> None:
    """Copy a run with samples and a card to the hub, a folder or a store (s3://... by fsspec)."""
    from fivefold.apps.travel import push as run

    click.echo(run(directory, target, **options))


@app.command()
@click.argument("source", metavar="hf:NAME|FOLDER|URL")
@click.option("--out", help="The new folder.  [default: runs/NAME]")
@TRAINING
@click.option("--force", is_flag=True, help="Replace a run that is there.")
@trust
def pull(source: str, **options: Any) -> None:
    """Fetch a run that was pushed, and check it."""
    from fivefold.apps.travel import pull as run

    folder = run(source, **options)
    click.echo(f"pulled {source} to {folder}: fivefold sample {folder} -n 16 --out samples.png")


@app.command()
@click.argument("directory", metavar="RUN")
@click.option("--part", required=True, help="sample, log_prob, encode, decode, or a diffusion's step.")
@click.option("--to", default="onnx", show_default=True, help="onnx, or pt2 for torch.export.")
@click.option("--out", help="FILE.onnx or FILE.pt2; FILE.json beside it says what goes in and comes out.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Where it cannot be left free.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@trust
def export(directory: str, part: str, **options: Any) -> None:
    """Export a part of a run as a file that runs without fivefold, checked against the run."""
    from fivefold.apps.export import export_file

    click.echo(export_file(directory, part, **options))
