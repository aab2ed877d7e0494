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
    from fivefold.report import folder, page, rows, single, trials

    directory = Path(directory)
    if (directory / folder.SETTINGS).exists():
        return rows.write_page(rows.Shelf(directory))
    if (directory / "run.json").exists():
        return page.write(single.content(directory, trust), directory / folder.REPORT)
    if (directory / trials.SETTINGS).exists():
        return trials.write(directory)
    raise RunError(f"{directory} is neither a comparison nor a run: it has no {folder.SETTINGS} and no run.json")


def write_table(directory: str | Path, kind: str) -> Path:
    """Write the table of a comparison as `table.csv`, `.md` or `.parquet` in its folder.

    Args:
        directory: what `compare` wrote.
        kind: "csv", "md" or "parquet".

    Raises:
        RunError: the folder holds no comparison, or Parquet is asked for without pyarrow.
        OptionError: another kind.
    """
    from fivefold.report import folder, rows, table

    found = rows.Shelf(folder.comparison(directory)).read()
    return table.write(Path(directory) / f"table.{kind}", table.frame(found), table.markdown(found))
