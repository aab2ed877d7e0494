"""A comparison's finished rows as its table needs them, each read once: of thousands from one Parquet file.

What only an opened row shows (`OPENED`) stays in the row's own JSON file. `rows.parquet` holds the rest of every row,
as JSON, with the arrays that it shares with others and the size and time of the file that it was read from: a row whose
file has changed since is read again from there. It needs pyarrow (the extra `parquet`); without it all files are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fivefold.files import is_temporary, read_json, replacing
from fivefold.report import folder, page, pairs, trials
from fivefold.report.columns import Row
from fivefold.report.page import Arrays, Content
from fivefold.report.table import has_parquet

FILE = "rows.parquet"
OPENED = ("diagnostics", "monitor")  # of a row, and of its curves those that are not compared
_COMPARED = ("density", "distance")
_INDEX = "_index"  # how the names of those end that say which examples
_AT_A_TIME = 500  # rows, so that memory holds no more than the table itself


class Stamp(NamedTuple):
    """What tells that a file has changed."""

    size: int
    modified: int  # nanoseconds


class Shelf:
    """The rows of a folder; reading again reads only what is new."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.rows: dict[str, tuple[Stamp, Row]] = {}
        self.behind = False  # whether the Parquet file is
        self._arrays: set[str] = set()  # names of those that rows share
        self._indices: dict[bytes, Any] = {}  # which examples: the same arrays for most rows

    def read(self) -> list[Row]:
        """The rows in the order of the comparison's systems, later ones behind; `shared` is `pairs.of_row`."""
        stamps = self.stamps()
        if not self.rows and (self.directory / FILE).exists() and has_parquet():
            self.rows = {name: (stamp, row) for name, stamp, row in self._kept() if stamps.get(name) == stamp}
        known, self.rows = self.rows, {}
        for name, stamp in stamps.items():
            found = known.get(name)
            if found is None or found[0] != stamp:
                found, self.behind = (stamp, self._from_file(name)), True
            self.rows[name] = found
        return folder.ordered(row for _, row in self.rows.values())

    def stamps(self) -> dict[str, Stamp]:
        """By name what the files of the rows are now."""
        with os.scandir(self.directory / "rows") as entries:
            files = [entry for entry in entries if entry.name.endswith(".json") and not is_temporary(Path(entry.name))]
            found = {file.name.removesuffix(".json"): file.stat() for file in files}
        return {name: Stamp(stat.st_size, stat.st_mtime_ns) for name, stat in sorted(found.items())}

    def keep(self) -> None:
        """Write the Parquet file, where there are rows that it has not; nothing without pyarrow."""
        if not self.behind or not has_parquet():
            return
        import pyarrow as pa
        from pyarrow import parquet

        about = [("name", pa.string()), ("size", pa.int64()), ("modified", pa.int64()), ("row", pa.string())]
        kinds = {key: pa.list_(pa.int32() if key.endswith(_INDEX) else pa.float32()) for key in sorted(self._arrays)}
        schema = pa.schema([*about, *kinds.items()])
        with replacing(self.directory / FILE) as path, parquet.ParquetWriter(path, schema) as writer:
            for names in _parts(list(self.rows)):
                stamps, rows = zip(*(self.rows[name] for name in names), strict=True)
                texts = [json.dumps({key: value for key, value in row.items() if key != "shared"}) for row in rows]
                columns = [names, [stamp.size for stamp in stamps], [stamp.modified for stamp in stamps], texts]
                arrays = [folder.read_arrays(self._path(name).with_suffix(".npz"), folder.SHARED) for name in names]
                columns += [[each.get(key) for each in arrays] for key in kinds]
                found = [pa.array(*each) for each in zip(columns, schema.types, strict=True)]
                writer.write_table(pa.table(found, schema=schema))
        self.behind = False

    def _kept(self) -> Iterator[tuple[str, Stamp, Row]]:
        """What the Parquet file holds, in its own order; of one that is damaged what comes before that."""
        from pyarrow import lib, parquet

        try:
            with parquet.ParquetFile(self.directory / FILE) as file:
                for batch in file.iter_batches(_AT_A_TIME):
                    about = [batch.column(key).to_pylist() for key in ("name", "size", "modified", "row")]
                    lists = {key: batch.column(key) for key in batch.schema.names[4:]}
                    for i, (name, size, modified, text) in enumerate(zip(*about, strict=True)):
                        found = {key: values[i] for key, values in lists.items()}
                        arrays = {key: value.values.to_numpy() for key, value in found.items() if value.is_valid}
                        yield name, Stamp(size, modified), self._shared(json.loads(text), arrays)
        except (lib.ArrowException, KeyError, ValueError):
            return

    def _from_file(self, name: str) -> Row:
        path = self._path(name)
        return self._shared(slim(read_json(path)), folder.read_arrays(path.with_suffix(".npz"), folder.SHARED))

    def _shared(self, row: Row, arrays: Arrays) -> Row:
        """The row with what it shares with others; copies, so that nothing else stays in memory."""
        if row["status"] == "ok":
            self._arrays |= set(arrays)
            for key, array in arrays.items():
                index = key.endswith(_INDEX)
                arrays[key] = self._indices.setdefault(array.tobytes(), array.copy()) if index else array.copy()
            row["shared"] = pairs.of_row(row, arrays)
        return row

    def _path(self, name: str) -> Path:
        return self.directory / "rows" / f"{name}.json"


def slim(row: Row) -> Row:
    """Without what only an opened row shows."""
    curves = {name: points for name, points in (row.get("curves") or {}).items() if name in _COMPARED}
    return {key: value for key, value in row.items() if key not in OPENED} | {"curves": curves}


def _parts(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _AT_A_TIME):
        yield names[start : start + _AT_A_TIME]


# --- the page's content -----------------------------------------------------------------------------


class Drawn(Mapping[str, Arrays]):
    """By label the pictures of its first finished row, read when they are asked for."""

    def __init__(self, directory: Path, rows: Iterable[Row]) -> None:
        self.paths: dict[str, Path] = {}
        for row in rows:
            if row["status"] == "ok":
                self.paths.setdefault(row["label"], _path(directory, row).with_suffix(".npz"))

    def __getitem__(self, label: str) -> Arrays:
        return folder.read_arrays(self.paths[label], ("samples", "density", "nearest"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)


def content(shelf: Shelf, running: Iterable[Row] = ()) -> Content:
    """What the page of a comparison is made of; of several seeds the first one's pictures."""
    directory, rows = shelf.directory, shelf.read()
    race = directory / folder.RACE
    return Content(
        read_json(directory / folder.SETTINGS),
        rows,
        folder.read_arrays(directory / "real.npz").get("samples"),
        Drawn(directory, rows),
        trials.read(directory / folder.TUNING),
        read_json(race) if race.exists() else None,
        lambda row: read_json(_path(directory, row)),
        list(running),
    )


def write_page(shelf: Shelf) -> Path:
    """Write the page of a comparison, and its rows in one file."""
    path = page.write(content(shelf), shelf.directory / folder.REPORT)
    shelf.keep()
    return path


def _path(directory: Path, row: Row) -> Path:
    return directory / "rows" / f"{folder.file_name(row['label'], row['seed'])}.json"
