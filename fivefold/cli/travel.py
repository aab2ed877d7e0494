"""How a run leaves this machine: export."""

from __future__ import annotations

import click

from fivefold.cli.base import app, trust


@app.command()
@click.argument("directory", metavar="RUN")
@click.option("--part", required=True, help="sample, log_prob, encode, decode, or a diffusion's step.")
@click.option("--to", default="onnx", show_default=True, help="onnx, or pt2 for torch.export.")
@click.option("--out", help="FILE.onnx or FILE.pt2; FILE.json beside it says what goes in and comes out.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Where it cannot be left free.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@trust
def export(directory: str, part: str, to: str, out: str | None, batch: int, force: bool, trust: str | None) -> None:
    """Export a part of a run as a file that runs without fivefold, checked against the run."""
    from fivefold.apps.export import export_file

    click.echo(export_file(directory, part, to, out, batch=batch, force=force, trust=trust))
