"""The command line. Imports torch only where a command needs it, so that help and `list` answer at once."""

from __future__ import annotations

import json
import sys

import click

from fivefold import catalog
from fivefold.cli import compare, describe, plan, train, travel, tune, use  # noqa: F401  # their commands join the group
from fivefold.cli.base import app
from fivefold.errors import FivefoldError


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
