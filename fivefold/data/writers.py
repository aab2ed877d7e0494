"""Samples to files, in the form the data had; a file is there whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from fivefold.errors import DataError
from fivefold.files import replacing
from fivefold.space import Space
from fivefold.space.written import Dialect

Labels = Sequence[Any] | None
CELL = 64  # pixels: smaller images are magnified by a whole number to about this in a grid
CAPTION = 12  # pixels under each image of a grid


def save_examples(path: Path | str, space: Space, data: Any, labels: Labels = None) -> list[Path]:
    """Writes examples, in the form `Space.decode` gives, in the format of the suffix.

    Images: .png (a labelled grid), .npz. Tables: .csv, .parquet, .npz (numbers only). Text: .txt, .npz.
    Sound: .wav, .flac, .ogg (several examples: numbered files), .npz.

    Args:
        path: file to write, replaced where it exists.
        space: of the examples.
        data: the examples, as `System.sample` returns them.
        labels: the condition each was drawn with, where there is one.

    Returns:
        The files written.

    Raises:
        DataError: no such examples in a file of that suffix; names the suffixes there are.
    """
    path = Path(path)
    check_suffix(path, space)
    if labels is not None and len(labels) != len(data):
        raise DataError(f"{len(labels)} labels for {len(data)} examples: expected one each")
    return _FORMATS[space.kind][path.suffix.lower()](path, space, data, labels)


def check_suffix(path: Path | str, space: Space) -> None:
    """Raises DataError where `save_examples` cannot write to `path`, so that nothing is sampled in vain."""
    path = Path(path)
    formats = _FORMATS[space.kind]
    if path.suffix.lower() not in formats:
        raise DataError(f"cannot write {space.kind} examples to {path.name!r}: choose a suffix of {', '.join(formats)}")
    if not path.parent.is_dir():
        raise DataError(f"the folder {path.parent} does not exist: make it first")


def grid(
    space: Space, images: np.ndarray, captions: Sequence[str] | None = None, columns: int | None = None
) -> Image.Image:
    """Images in the user's layout side by side, near a square, each with its caption under it."""
    pictures = [_picture(space, pixels) for pixels in _to_8_bit(space, images)]
    zoom = max(1, CELL // max(pictures[0].size))
    width, height = pictures[0].width * zoom, pictures[0].height * zoom
    columns = columns or int(np.ceil(np.sqrt(len(pictures))))
    rows, below = -(-len(pictures) // columns), CAPTION if captions else 0
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + below + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        corner = (i % columns * (width + 2), i // columns * (height + below + 2))
        scaled = picture.resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(scaled, corner, scaled.getchannel("A") if "A" in scaled.getbands() else None)
        if captions:
            draw.text((corner[0] + 1, corner[1] + height), captions[i], fill="black")
    return sheet


def _to_8_bit(space: Space, images: np.ndarray) -> np.ndarray:
    """To 0..255: by the levels, or where pixels are real by the smallest and largest."""
    x = np.asarray(images, dtype=np.float64)
    low, high = (0.0, space.levels - 1.0) if space.levels is not None else (x.min(), x.max())
    return np.round(255 * (x - low) / max(high - low, 1e-12)).clip(0, 255).astype(np.uint8)


def _picture(space: Space, pixels: np.ndarray) -> Image.Image:
    pixels = np.moveaxis(pixels, 0, -1) if space.layout == "CHW" else pixels
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels)


def _write_png(path: Path, space: Space, data: Any, labels: Labels) -> list[Path]:
    captions = [str(label) for label in (labels if labels is not None else range(1, len(data) + 1))]
    with replacing(path) as temporary:
        grid(space, data, captions).save(temporary, format="PNG")
    return [path]


def _write_npz(path: Path, space: Space, data: Any, labels: Labels) -> list[Path]:
    x = np.asarray(data.to_numpy() if isinstance(data, pd.DataFrame) else data)
    if x.dtype == object:
        raise DataError(
            f"these columns are not all numbers, so {path.name!r} cannot hold them: choose .csv or .parquet"
        )
    arrays: dict[str, Any] = (
        {"x": x} if labels is None else {"x": x, "y": np.asarray([_text_or_number(label) for label in labels])}
    )
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    return [path]


def _text_or_number(label: Any) -> Any:
    return label if isinstance(label, int | float | np.number) else str(label)


def _frame(space: Space, data: Any, labels: Labels) -> pd.DataFrame:
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(data, columns=[c.name for c in space.columns])
    if labels is None:
        return frame
    names = [column.name for column in space.condition.columns] if space.condition else []
    if len(names) < 2:
        return frame.assign(**{names[0] if names else "label": labels})
    words = [str(label).split(",") if isinstance(label, str) else list(label) for label in labels]
    return frame.assign(**{name: [row[i] for row in words] for i, name in enumerate(names)})


def _write_csv(path: Path, space: Space, data: Any, labels: Labels) -> list[Path]:
    """As the file of the data is written: separators, lines of names, the numbers of every column, encoding."""
    dialect = space.dialect or Dialect()
    with replacing(path) as temporary, temporary.open("w", encoding=dialect.encoding, newline="") as file:
        file.write(csv_text(space, _frame(space, data, labels), dialect))
    return [path]


def csv_text(space: Space, frame: pd.DataFrame, dialect: Dialect) -> str:
    """The rows of a table in a dialect, numbers as the space's columns are written."""
    columns = [*space.columns, *(space.condition.columns if space.condition else ())]
    forms = {column.name: column.written for column in columns if column.written}
    written = frame.assign(**{n: forms[n].write(frame[n], dialect) for n in frame.columns if n in forms})
    names: Any = list(frame.columns) if dialect.header else False
    file = io.StringIO(newline="")
    if len(dialect.lines) > 1 and len(dialect.lines[0]) == len(frame.columns):
        csv.writer(file, delimiter=dialect.sep, lineterminator=dialect.newline).writerows(dialect.lines)
        names = False
    written.to_csv(
        file, index=False, sep=dialect.sep, decimal=dialect.decimal, header=names, na_rep=dialect.missing,
        lineterminator=dialect.newline, quoting=csv.QUOTE_ALL if dialect.quoted else csv.QUOTE_MINIMAL,
    )  # fmt: skip
    return file.getvalue()


def _write_parquet(path: Path, space: Space, data: Any, labels: Labels) -> list[Path]:
    with replacing(path) as temporary:
        _frame(space, data, labels).to_parquet(temporary, index=False)
    return [path]


def _write_txt(path: Path, space: Space, data: Any, labels: Labels) -> list[Path]:
    """One example as it is, several under numbered lines."""
    text = data[0] if len(data) == 1 else "\n".join(f"--- {i} ---\n{sample}" for i, sample in enumerate(data, 1))
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return [path]


def _write_sound(path: Path, space: Space, data: Any, labels: Labels) -> list[Path]:
    """One example to `path`, several to numbered files beside it; samples as wide as those of the data."""
    import soundfile

    digits, kind = len(str(len(data))), path.suffix[1:].upper()
    paths = (
        [path]
        if len(data) == 1
        else [path.with_name(f"{path.stem}-{i:0{digits}d}{path.suffix}") for i in range(1, len(data) + 1)]
    )
    plain = space.sound.startswith(("PCM", "FLOAT", "DOUBLE")) and soundfile.check_format(kind, space.sound)
    for one, samples in zip(paths, data, strict=True):
        sound = io.BytesIO()
        soundfile.write(sound, samples, space.rate or 1, subtype=space.sound if plain else None, format=kind)
        with replacing(one) as temporary:
            temporary.write_bytes(sound.getvalue())
    return paths


_Write = Callable[[Path, Space, Any, Labels], list[Path]]
_FORMATS: dict[str, dict[str, _Write]] = {
    "image": {".png": _write_png, ".npz": _write_npz},
    "table": {".csv": _write_csv, ".tsv": _write_csv, ".parquet": _write_parquet, ".npz": _write_npz},
    "text": {".txt": _write_txt, ".npz": _write_npz},
    "audio": {".wav": _write_sound, ".flac": _write_sound, ".ogg": _write_sound, ".npz": _write_npz},
}
