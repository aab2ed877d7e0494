"""Text files of rows as people write them: what is read is right, and what is written back is as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fivefold.data import load_data, read_raw
from fivefold.data.raw import Options
from fivefold.data.writers import save_examples
from fivefold.errors import DataError, OptionError

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(0, 40, N).round(2)
PRICE = RNG.lognormal(7.5, 1, N).round(2)
COUNT = RNG.integers(0, 5000, N)
KIND = RNG.choice(["oak", "ash", "elm"], N)


def english(value: float, decimals: int = 2) -> str:
    return f"{value:,.{decimals}f}"


def german(value: float, decimals: int = 2) -> str:
    return english(value, decimals).translate(str.maketrans(",.", ".,"))


def lines(sep: str, *columns: Any, names: str = "x;n;kind") -> str:
    rows = [names.replace(";", sep), *(sep.join(map(str, row)) for row in zip(*columns, strict=True))]
    return "".join(row + "\n" for row in rows)


def quoted(texts: list[str]) -> list[str]:
    return [f'"{text}"' if "," in text else text for text in texts]


PLAIN = (X, COUNT, KIND)
COMMA = ([f"{x:.2f}".replace(".", ",") for x in X], COUNT, KIND)
# name: text, encoding, columns of numbers with their values, words of the dialect
CASES: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "plain": (lines(",", [f"{x:.2f}" for x in X], COUNT, KIND), "utf-8", {"x": X, "n": COUNT}, []),
    "semicolons and decimal commas": (lines(";", *COMMA), "utf-8", {"x": X, "n": COUNT}, ["semicolons", "decimal"]),
    "tabs": (lines("\t", [f"{x:.2f}" for x in X], COUNT, KIND), "utf-8", {"x": X, "n": COUNT}, ["tabs"]),
    "pipes": (lines("|", [f"{x:.2f}" for x in X], COUNT, KIND), "utf-8", {"x": X, "n": COUNT}, ["pipes"]),
    "tabs and decimal commas": (lines("\t", *COMMA), "utf-8", {"x": X, "n": COUNT}, ["tabs", "decimal"]),
    "thousands in quotes": (
        lines(",", quoted([english(p) for p in PRICE]), COUNT, KIND), "utf-8", {"x": PRICE, "n": COUNT},
        ["thousands mark ','"],
    ),
    "German thousands": (
        lines(";", [german(p) for p in PRICE], COUNT, KIND), "utf-8", {"x": PRICE, "n": COUNT},
        ["semicolons", "decimal mark ','", "thousands mark '.'"],
    ),
    "whole thousands": (
        lines(";", [english(c * 10, 0) for c in COUNT], COUNT, KIND), "utf-8", {"x": COUNT * 10, "n": COUNT},
        ["thousands mark ','"],
    ),
    "currency": (lines(";", [f"${p:.2f}" for p in PRICE], COUNT, KIND), "utf-8", {"x": PRICE, "n": COUNT}, []),
    "currency after": (
        lines(";", [f"{german(p)} €" for p in PRICE], COUNT, KIND), "utf-8", {"x": PRICE, "n": COUNT}, ["decimal"],
    ),
    "negative currency": (
        lines(",", [f"{'-' if x < 0 else ''}£{abs(x):.2f}" for x in X], COUNT, KIND), "utf-8", {"x": X, "n": COUNT}, [],
    ),
    "per cent": (
        lines(",", [f"{x:.1f}%" for x in X.round(1) + 0.0], COUNT, KIND), "utf-8", {"x": X.round(1), "n": COUNT}, [],
    ),
    "Latin-1": (
        lines(";", COMMA[0], COUNT, ["Müller", "Weiß", "Strauß"] * 20, names="Höhe;n;kind"), "latin-1",
        {"Höhe": X, "n": COUNT}, ["encoding"],
    ),
    "UTF-16": (lines("\t", *PLAIN), "utf-16", {"x": X, "n": COUNT}, ["tabs", "encoding utf-16"]),
    "UTF-16 without a mark": (lines("\t", *PLAIN), "utf-16-le", {"x": X, "n": COUNT}, ["encoding utf-16-le"]),
    "UTF-8 with a mark": (lines(",", *PLAIN), "utf-8-sig", {"x": X, "n": COUNT}, ["utf-8-sig"]),
    "two lines of names": (
        lines(",", *PLAIN, names="length;count;kind\ncm;trees;"), "utf-8", {"length cm": X, "count trees": COUNT},
        ["2 lines of names"],
    ),
    "missing by a sign": (
        lines(",", [f"{x:.2f}" for x in X], COUNT, np.where(COUNT % 3 == 0, "?", KIND)), "utf-8", {"n": COUNT}, [],
    ),
    "everything in quotes, Windows": (
        lines(";", [f'"{x}"' for x in COMMA[0]], [f'"{n}"' for n in COUNT], [f'"{k}"' for k in KIND],
              names='"x";"n";"kind"').replace("\n", "\r\n"), "utf-8", {"x": X, "n": COUNT}, ["semicolons"],
    ),
    "years as names": (
        lines(",", KIND, *RNG.normal(5, 2, (3, N)).round(1), names="tree;2010;2011;2012"), "utf-8", {}, [],
    ),
    "line breaks in quotes": (
        lines(",", X, COUNT, [f'"{k}\nof the wood"' for k in KIND]), "utf-8", {"x": X, "n": COUNT}, [],
    ),
}  # fmt: skip


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_is_right_and_comes_back_as_it_was(case: str, tmp_path: Path) -> None:
    """To the last character of every row, from the encoded examples."""
    text, encoding, numbers, words = CASES[case]
    file = written(tmp_path / "data.csv", text, encoding)
    frame = read_raw(file, Options()).parts["train"].rows[:]
    for name, values in numbers.items():
        assert frame[name].dtype.kind in "if"
        np.testing.assert_allclose(frame[name].to_numpy(), values)
    data = load_data(file)
    said = " ".join(data.notes)
    assert all(word in said for word in words)
    assert ("read with" in said) == bool(words or case == "currency") or ";" in text
    back = data.space.decode(data.space.encode(frame))
    save_examples(tmp_path / "back.csv", data.space, back)
    assert (tmp_path / "back.csv").read_bytes().decode(encoding) == file.read_bytes().decode(encoding)


def test_comments_are_left_out_and_one_that_names_the_columns_is_read(tmp_path: Path) -> None:
    body = lines(",", X, COUNT, KIND)
    data = load_data(written(tmp_path / "a.csv", "# measured in May\n#\n" + body + "# the end\n"))
    assert [column.name for column in data.space.columns] == ["x", "n", "kind"]
    assert "comment lines" in " ".join(data.notes)
    data = load_data(written(tmp_path / "b.csv", "# measured in May\n# " + body))
    assert [column.name for column in data.space.columns] == ["x", "n", "kind"]


def test_what_the_user_says_of_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """1.234 has three decimals where nothing else is told; the user may say that it is a thousand."""
    file = written(tmp_path / "a.csv", lines(";", [f"{c // 1000 + 1}.{c % 1000:03d}" for c in COUNT], COUNT, KIND))
    assert load_data(file).space.columns[0].kind == "real"
    told = load_data(file, read="sep=;,decimal=,,thousands=.").space.columns[0]
    assert told.dtype == "int64"
    for wrong in ("decimal", "sep=;;", "colour=red", "header=two"):
        with pytest.raises(OptionError, match="--read"):
            load_data(file, read=wrong)


def test_rows_of_the_wrong_length_are_refused_with_their_line(tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", lines(";", *COMMA) + "1;2;3;4;5\n")
    with pytest.raises(DataError, match=r"line 62.*--read"):
        load_data(file)


def test_tables_without_names_keep_numbers_beside_text(tmp_path: Path) -> None:
    rows = lines(",", X, KIND, COUNT)[len("x,n,kind\n") :]
    data = load_data(written(tmp_path / "a.csv", rows))
    assert [column.kind for column in data.space.columns] == ["real", "categorical", "real"]
    x = data.space.decode(data.train.batch(slice(5)).x)
    save_examples(tmp_path / "b.csv", data.space, x)
    back = (tmp_path / "b.csv").read_text().splitlines()
    assert set(back) <= set(rows.splitlines())


def test_codes_keep_their_zeros(tmp_path: Path) -> None:
    codes = RNG.choice(["02077", "10115", "00601"], N)
    file = written(tmp_path / "a.csv", lines(",", X, codes, KIND))
    column = load_data(file).space.columns[1]
    assert column.categories == ("00601", "02077", "10115")
