"""The command line."""

from fivefold.cli.app import main as main
