"""Texts in any encoding, of many documents: windows, blocks, fields."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fivefold.data import load_data
from fivefold.data.raw import PARTS
from fivefold.errors import DataError

GERMAN = "Über den Wipfeln ist Ruh, größer als das Gefühl für Schönheit. " * 40
# each of letters of its own, so that a window of two would show
DOCUMENTS = [chr(ord("a") + i) * int(n) for i, n in enumerate(np.random.default_rng(0).integers(5, 90, 26))]


def windows(data) -> dict[str, list[str]]:
    return {part: data.space.decode(getattr(data, part).batch(slice(None)).x) for part in PARTS}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8-sig", "utf-32"])
def test_any_encoding_is_told(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(GERMAN.encode(encoding))
    data = load_data(tmp_path / "a.txt", length=21)
    assert data.space.symbols == "".join(sorted(set(GERMAN)))
    assert windows(data)["train"][0] == GERMAN[:21]


def check(data, length: int) -> None:
    """No window is of two documents, no character of a long enough one is lost but at ends, no part shares text."""
    found = windows(data)
    assert all(len(set(window)) == 1 and len(window) == length for part in found.values() for window in part)
    long = {document[0] for document in DOCUMENTS if len(document) >= length}
    assert {window[0] for part in found.values() for window in part} == long
    assert data.space.symbols == "".join(sorted(long))


def test_documents_do_not_run_into_each_other() -> None:
    for length in (10, 16, 30):
        check(load_data(DOCUMENTS, length=length), length)
    data = load_data(DOCUMENTS, length=30)
    short = sum(len(document) < 30 for document in DOCUMENTS)
    assert f"{short} documents are shorter than a window: left out" in data.notes
    assert "26 documents; no window is of two" in data.notes


def test_blocks_of_documents_share_no_character() -> None:
    """Characters that are all different say where every window lies; in training one starts every quarter."""
    whole = "".join(map(chr, range(0x4E00, 0x4E00 + 4000)))
    texts = [whole[start : start + 100] for start in range(0, 4000, 100)]
    found = windows(load_data(texts, length=16))
    seen = {part: {ord(c) for window in found[part] for c in window} for part in PARTS}
    assert not seen["train"] & seen["valid"] | seen["valid"] & seen["test"] | seen["train"] & seen["test"]
    assert len(seen["train"]) > 0.7 * 4000
    starts = [ord(window[0]) - 0x4E00 for window in found["train"]]
    assert all(start % 100 + 16 <= 100 for start in starts)
    assert set(np.diff(starts)) <= {4, *range(16, 21)}


def test_folders_json_lines_and_fields(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / "texts" / f"{i}.txt").write_text(document)
    check(load_data(tmp_path / "texts", length=10), 10)
    rows = [{"id": i, "text": document} for i, document in enumerate(DOCUMENTS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(load_data(tmp_path / "a.jsonl", length=10), 10)
    pd.DataFrame(rows).assign(title="x").to_parquet(tmp_path / "a.parquet")
    check(load_data(tmp_path / "a.parquet", length=10, field="text"), 10)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row | {"title": "x"}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"name one with field \(--field\): text, title"):
        load_data(tmp_path / "b.jsonl", length=10)
    with pytest.raises(DataError, match="no field 'body' of text"):
        load_data(tmp_path / "b.jsonl", length=10, field="body")
    gaps = [{"text": None}, *rows, {"text": None}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gaps))
    pd.DataFrame(gaps).to_parquet(tmp_path / "d.parquet")
    for name in ("d.jsonl", "d.parquet"):
        data = load_data(tmp_path / name, length=10, field="text")
        check(data, 10)
        assert "2 of 28 rows have no text: left out" in data.notes
    with pytest.raises(DataError, match=r"'\\ud800', which is half of a character"):
        load_data(["\ud800" * 99])
    (tmp_path / "c.jsonl").write_text("not json\n")
    with pytest.raises(DataError, match="cannot be read as JSON lines"):
        load_data(tmp_path / "c.jsonl")


def test_a_broken_text_is_left_out_by_name(tmp_path: Path) -> None:
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / f"{i}.txt").write_text(document)
    (tmp_path / "bad.txt").write_bytes(b"ab\x00\x01\x02cd" * 9)
    with pytest.raises(DataError, match=r"bad\.txt"):
        load_data(tmp_path, length=10)
    assert any("bad.txt" in note for note in load_data(tmp_path, length=10, skip_bad=True).notes)
