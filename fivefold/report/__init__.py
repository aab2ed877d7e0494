"""The page of a comparison, its table, plots and advice."""

from __future__ import annotations

from pathlib import Path


def write_report(directory: str | Path, *, trust: str | None = None) -> Path:
    """Write `report.html` of a comparison's folder, a tuning's, or a run's (which is measured first).

    Args:
        directory: what `compare`, `tune` or `fit` wrote.
        trust: the module name of a run's system outside the package, to allow importing it.

    Returns:
        The page's path. Nothing else is needed to open it.
    """
    from fivefold.errors import RunError
    from fivefold.report import folder, page, single, trials

    directory = Path(directory)
    if (directory / folder.SETTINGS).exists():
        content = folder.content(directory)
    elif (directory / "run.json").exists():
        content = single.content(directory, trust)
    elif (directory / trials.SETTINGS).exists():
        return trials.write(directory)
    else:
        raise RunError(f"{directory} is neither a comparison nor a run: it has no {folder.SETTINGS} and no run.json")
    return page.write(content, directory / folder.REPORT)
