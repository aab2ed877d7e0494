"""`describe DATA`."""

from __future__ import annotations

from typing import Any

import click

from fivefold.cli.base import HELP, app, data_options, load


def _describe(source: str, out: str | None, **given: Any) -> None:
    data = load(source, given)
    click.echo(data.describe())
    if out:
        from fivefold.report.marginals import draw

        click.echo(f"wrote {draw(data, out)}")


app.add_command(
    click.Command(
        "describe",
        params=[
            click.Argument(["source"], metavar="DATA"),
            *data_options(),
            click.Option(["--out"], help="FILE.png: the marginals of a table's columns, a grid of images."),
        ],
        callback=_describe,
        help="What is read of DATA and what every column is taken for, without training anything.",
        context_settings=HELP,
    )
)
