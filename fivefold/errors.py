"""Every error that is meant for people: it says what was given, what was expected and how to mend it.

The command line prints these as one line; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class FivefoldError(Exception):
    """Base of all of them."""


class DataError(FivefoldError, ValueError):
    """The data given do not fit."""


class FeatureError(FivefoldError, RuntimeError):
    """The features that were asked for cannot be had."""


class TooFew(FivefoldError, ValueError):
    """Not enough examples for a measure to mean anything."""


class UnknownSystem(FivefoldError, ValueError):
    """No system of that name: names the nearest."""


class Unfit(FivefoldError, ValueError):
    """A system cannot be built on this space, or with this part in a slot."""


class OptionError(FivefoldError, ValueError):
    """An option does not exist or its value is not what it takes: names it, its bounds, or the nearest."""


class RunError(FivefoldError, RuntimeError):
    """A run or comparison cannot be made, read or used: names the file and what to do."""


class Untrusted(RunError):
    """A name read from a file would import what neither the catalogue has nor the user trusted."""


class Diverged(FivefoldError, RuntimeError):
    """Training became non-finite more often than `retries` allows; the last good weights are kept."""


class Stopped(KeyboardInterrupt):
    """Training was interrupted; its run is saved and can be resumed."""
