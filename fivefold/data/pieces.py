"""Tables too large for memory, CSV and Parquet: read in pieces, and stored with their types in a temporary file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fivefold.data import dialect, tables
from fivefold.data.columns import identifier, infer_column, is_numeric, kinds_told
from fivefold.data.raw import Options, Raw
from fivefold.data.stored import Stored, TooMany, kept_as
from fivefold.errors import DataError
from fivefold.space.written import Dialect, Numbers

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LARGE = 2**26  # bytes of a CSV file, or of the numbers of a Parquet file: larger ones are read in pieces
ROWS = 2**15  # of a piece
HEAD = 2**20  # bytes from which, with those of the spots, it is told what columns hold
SPOTS, SPOT = 64, 2**16  # places spread over the file, and bytes looked at there
DIFFERENT = 0.9  # share of different texts from which on they are free text, codes or times
SIGNS = sorted({form for sign in dialect.MISSING for form in (sign, sign.upper(), sign.title(), "NaN", "N/A", "#N/A")})


def is_large(path: Path) -> bool:
    """Whether a CSV or Parquet file is to be read in pieces; UTF-16 and UTF-32 never are."""
    if path.suffix.lower() in (".parquet", ".pq"):
        import pyarrow.parquet as pq

        facts = pq.read_metadata(path)
        return 8 * facts.num_rows * facts.num_columns > LARGE
    if path.stat().st_size <= LARGE:
        return False
    with path.open("rb") as file:
        return b"\0" not in file.read(1000)


# --- CSV --------------------------------------------------------------------------------------------


@dataclass
class _Column:
    """How a column is read: "bare" numbers by the parser, "formed" ones by `numbers_of`, "words" that occur again as
    categories by the parser, "texts" as they are."""

    how: str
    values: pd.Series  # of the rows looked at first
    form: Numbers | None = None

    def __post_init__(self) -> None:
        """Texts of which most occur once are kept as they are."""
        given = self.values.dropna()
        words = _is_text(given) and given.map(lambda value: isinstance(value, str)).all()
        self.different = bool(words) and given.nunique() > DIFFERENT * len(given)
        self.how = "texts" if self.how == "words" and self.different else self.how


class _Read(Exception):
    """A column has to be read in another way: from the start again."""

    def __init__(self, name: str, how: str) -> None:
        self.name, self.how = name, how


def read_csv(path: Path, options: Options) -> Raw:
    """A large file of rows, as `dialect.read` reads small ones; DataError names the row that contradicts the rest."""
    said = dialect.given(options.read) if options.read else {}
    try:
        strings, found = dialect.fields(path, _looked_at(path, SPOTS), said)
    except DataError:
        strings, found = dialect.fields(path, _looked_at(path, 0), said)  # fields with line breaks
    told = kinds_told(options.columns)
    guess = {str(name): _guess(values, found) for name, values in tables.checked(strings).items()}
    _refuse(guess, told)
    while True:
        try:
            stored = _filled(guess, told, True, lambda: _csv_pieces(path, found, guess, told))
            break
        except _Read as error:
            column = guess[error.name]
            column.how, column.form = error.how, column.form if error.how == "formed" else None
            column.values = column.values if error.how == "formed" else column.values.astype(str)
    raw = tables.from_stored(stored, named=found.header > 0)
    raw.dialect = found
    for name, column in guess.items():
        if column.form is not None and (decimals := stored.decimals(name, column.form.decimals)) is not None:
            raw.written[name] = replace(column.form, decimals=decimals)
    return raw


def _looked_at(path: Path, spots: int) -> bytes:
    """The first lines of a file, and lines at some places of the rest."""
    with path.open("rb") as file:
        found = [file.read(HEAD).rpartition(b"\n")[0]]
        for start in np.linspace(HEAD, path.stat().st_size, spots, endpoint=False).astype(int)[1:].tolist():
            file.seek(start)
            file.readline()  # the rest of a line
            found.append(file.read(SPOT).rpartition(b"\n")[0])
    return b"\n".join(found) + b"\n"


def _guess(strings: pd.Series, found: Dialect) -> _Column:
    values, form = dialect.typed(strings, found)
    if pd.api.types.is_bool_dtype(values):  # or texts: it is told when all rows are read
        return _Column("texts", values.astype(str))
    if not is_numeric(values):
        return _Column("words", values)
    bare = strings[values.notna()].str.strip().str.replace(found.decimal, ".", regex=False)
    return _Column("bare" if pd.to_numeric(bare, errors="coerce").notna().all() else "formed", values, form)


def _csv_pieces(
    path: Path, found: Dialect, columns: dict[str, _Column], told: dict[str, str]
) -> Iterator[pd.DataFrame]:
    types = {"bare": "float64", "words": "category"}
    wanted = {i: types.get(column.how, str) for i, column in enumerate(columns.values())}
    signs = {i: SIGNS for i, column in enumerate(columns.values()) if column.how == "bare"}
    row = 0

    def parsed(file: IO[str], types: Any, signs: Any, skipped: int) -> Any:
        return pd.read_csv(
            file, sep=found.sep, header=None, skiprows=skipped, dtype=types, na_values=signs, keep_default_na=False,
            skipinitialspace=True, decimal=found.decimal, chunksize=ROWS,
        )  # fmt: skip

    with dialect.readable(path, found):
        try:
            with _opened(path, found) as file, parsed(file, wanted, signs, _lines_of_names(path, found)) as pieces:
                for piece in pieces:
                    yield _typed(piece, found, columns, told, row)
                    row += len(piece)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not {found.encoding} text: {error}; name another with --read encoding=..."
            ) from error
        except (DataError, pd.errors.ParserError, pd.errors.EmptyDataError):
            raise
        except ValueError as error:
            with _opened(path, found) as file, parsed(file, str, None, _lines_of_names(path, found) + row) as pieces:
                _contradicted(next(pieces), found, columns, told, row)
            raise DataError(f"{path} cannot be read: {error}") from error


def _typed(
    piece: pd.DataFrame, found: Dialect, columns: dict[str, _Column], told: dict[str, str], row: int
) -> pd.DataFrame:
    """The columns of a piece, whose first row is `row`."""
    made = {}
    for i, (name, column) in enumerate(columns.items()):
        values = piece[i].rename(name)
        if column.how == "formed":
            read = dialect.numbers_of(values, found)
            if (read is None and dialect.is_given(values).any()) or (read and _other_unit(read[1], column.form)):
                raise _contradiction(values, found, told, row)
            values = read[0] if read else values.where(dialect.is_given(values)).astype(float)
        elif column.how == "words":
            if not pd.api.types.is_string_dtype(values.cat.categories):
                raise _Read(name, "texts")  # all look like numbers, which pandas makes of them
            known = dialect.is_given(pd.Series(values.cat.categories, dtype=str))
            values = values.cat.remove_categories(values.cat.categories[~known.to_numpy()])
        elif column.how == "texts":
            values = values.where(dialect.is_given(values))
        made[name] = values
    return pd.DataFrame(made)


def _other_unit(form: Numbers | None, usual: Numbers | None) -> bool:
    return form is not None and usual is not None and (form.before, form.after) != (usual.before, usual.after)


def _is_text(values: pd.Series) -> bool:
    return pd.api.types.is_string_dtype(values) or pd.api.types.is_object_dtype(values)


def _contradicted(
    piece: pd.DataFrame, found: Dialect, columns: dict[str, _Column], told: dict[str, str], row: int
) -> None:
    """Raises what is to be done about a piece whose numbers the parser does not read."""
    piece.columns = pd.Index(list(columns))
    read = {name: dialect.numbers_of(piece[name], found) for name, column in columns.items() if column.how == "bare"}
    for name, numbers in read.items():
        if numbers is None and dialect.is_given(piece[name]).any():
            raise _contradiction(piece[name], found, told, row)
    for name in read:
        bare = piece[name][~piece[name].isin(SIGNS)].str.replace(found.decimal, ".", regex=False)
        if pd.to_numeric(bare, errors="coerce").isna().any():
            raise _Read(name, "formed")


def _contradiction(values: pd.Series, found: Dialect, told: dict[str, str], row: int) -> Exception:
    """What a column of numbers that holds something else calls for."""
    if told.get(str(values.name)) in ("category", "ordered"):
        return _Read(str(values.name), "texts")
    number = dialect.pattern(found.decimal, found.thousands).pattern
    odd = ~values.str.strip().str.fullmatch(number) & ~values.str.strip().str.lower().isin(dialect.MISSING)
    at = int(odd.to_numpy().argmax())
    return DataError(
        f"column {values.name!r} holds {values.iloc[at]!r} in row {row + at + 1:,}, but numbers in those looked at "
        "before: leave such cells empty or mend them, or read the column as categories "
        f"(--columns '{values.name}=category')"
    )


def _lines_of_names(path: Path, found: Dialect) -> int:
    """How many records stand before the first row, blank ones counted."""
    names = 0
    with _opened(path, found) as file:
        for count, record in enumerate(csv.reader(file, delimiter=found.sep, skipinitialspace=True)):
            if names == found.header:
                return count
            names += any(field.strip() for field in record)
    return 0


def _opened(path: Path, found: Dialect) -> Any:
    file = path.open(encoding=found.encoding, newline="")
    return _WithoutComments(file, found.comment) if found.comment else file


class _WithoutComments(io.TextIOBase):
    """A file less its lines of comments."""

    def __init__(self, file: IO[str], comment: str) -> None:
        self.file, self.comment = file, comment
        self.rest = dialect.without_comments("".join(file.readlines(HEAD)), comment)

    def read(self, size: int | None = -1) -> str:
        """About as many characters, whole lines."""
        found, self.rest = self.rest, ""
        while not found and (lines := self.file.readlines(HEAD)):
            found = "".join(line for line in lines if not line.lstrip().startswith(self.comment))
        return found

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        """The next line."""
        self.rest = self.rest or self.read()
        line, end, self.rest = self.rest.partition("\n")
        return line + end

    def close(self) -> None:
        self.file.close()
        super().close()


# --- Parquet ----------------------------------------------------------------------------------------


def read_parquet(path: Path, options: Options) -> Raw:
    """A large Parquet file, by the batches of its row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = kinds_told(options.columns)
    try:
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            first = next(_parquet_pieces(file))
            guess = {str(name): _Column("", values) for name, values in tables.checked(first).items()}
            _refuse(guess, told)
            stored = _filled(guess, told, False, lambda: _parquet_pieces(file))
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    return tables.from_stored(stored, named=True)


def _parquet_pieces(file: pq.ParquetFile) -> Iterator[pd.DataFrame]:
    for batch in file.iter_batches(ROWS, use_threads=False):
        yield batch.to_pandas(use_threads=False).reset_index(drop=True).rename(columns=str)


# --- both -------------------------------------------------------------------------------------------


def _filled(
    columns: dict[str, _Column], told: dict[str, str], truths: bool, pieces: Callable[[], Iterable[pd.DataFrame]]
) -> Stored:
    """The pieces, stored; once more from the start where a column has more different texts than codes."""
    while True:
        stored = Stored({
            name: kept_as(column.values, not column.different, truths, told.get(name))
            for name, column in columns.items()
        })  # fmt: skip
        try:
            for piece in pieces():
                stored.append(piece)
            return stored
        except TooMany as error:
            columns[error.name].different, columns[error.name].how = True, "texts"


def _refuse(columns: dict[str, _Column], told: dict[str, str]) -> None:
    """Before all is read: DataError for what no reading of the rest makes a column of."""
    for name, column in columns.items():
        values, kind = column.values, told.get(name)
        few = _is_text(values) and not column.different and values.dropna().map(lambda one: isinstance(one, str)).all()
        if values.isna().all() or few or kind in ("drop", "identifier"):
            continue  # of the rest more may be told
        if identifier(values, 0, values, len(values)) is None:
            infer_column(values, values, [], kind)
