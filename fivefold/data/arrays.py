"""Arrays and DataFrames: in memory, and from NPY and NPZ files, memory-mapped where they can be."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fivefold.data import images, tables, text
from fivefold.data.raw import Options, Part, Raw, Rows, part_of
from fivefold.errors import DataError

_SOLE = ("x", "data", "images")  # keys of an archive's examples where it has no parts, and of their labels
_LABELS = ("y", "label", "labels")


def from_memory(data: Any, options: Options) -> Raw:
    """An array, a DataFrame, a list of strings, or a dictionary of arrays with the keys of an NPZ file."""
    if isinstance(data, pd.DataFrame):
        return tables.from_frame(data)
    if isinstance(data, Mapping):
        return from_keys(data, "the dictionary", options)
    if isinstance(data, list | tuple) and data and all(isinstance(item, str) for item in data):
        return text.from_strings(data, options)
    return from_parts({"train": np.asarray(data)}, {}, options)


def read_npy(path: Path, options: Options) -> Raw:
    """One array, memory-mapped."""
    try:
        return from_parts({"train": np.load(path, mmap_mode="r", allow_pickle=False)}, {}, options)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: {error}") from error


def read_npz(path: Path, options: Options) -> Raw:
    """An archive with x_train, x_test (x_valid, y_...), or x (y), or one array; `FILE.npz:KEY` picks one."""
    path, _, key = (path, "", "") if path.exists() else map_key(path)
    try:
        arrays, mapped = _open_npz(path)
    except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as NPZ: {error}") from error
    if key:
        if key not in arrays:
            raise DataError(f"{path.name} has no array {key!r}; it has: {', '.join(arrays)}")
        return from_parts({"train": arrays[key]}, {}, options)
    raw = from_keys(arrays, path.name, options)
    if not mapped and path.stat().st_size > 2**28:
        raw.notes.append(
            f"{path.name} is compressed, so it is held in memory; np.savez (uncompressed) is read from disk"
        )
    return raw


def map_key(path: Path) -> tuple[Path, str, str]:
    """`FILE.npz:KEY` as the file, ":" and the key."""
    file, colon, key = str(path).rpartition(":")
    return Path(file), colon, key


def from_keys(arrays: Mapping[str, Any], where: str, options: Options) -> Raw:
    """Named arrays; raises DataError naming the keys where it is not clear which are the examples."""
    x = {part: key for key in arrays if (part := _part_key(key, "x"))}
    y = {part: key for key in arrays if (part := _part_key(key, "y"))}
    if "train" not in x:
        candidates = [key for key in arrays if key.lower() in _SOLE] or (list(arrays) if len(arrays) == 1 else [])
        if len(candidates) != 1:
            raise DataError(
                f"{where} has the arrays {', '.join(arrays)}: expected x_train, x_test (and x_valid, y_train, y_test), "
                f"or x (and y), or one array; {where}:KEY picks one"
            )
        x = {"train": candidates[0]}
        labels = [key for key in arrays if key.lower() in _LABELS]
        y = {"train": labels[0]} if labels else {}
    raw = from_parts(
        {part: np.asanyarray(arrays[key]) for part, key in x.items()},
        {part: np.asarray(arrays[key]) for part, key in y.items()} if y.keys() >= x.keys() else {},
        options,
    )
    unused = sorted(set(arrays) - set(x.values()) - set(y.values()))
    if unused:
        raw.notes.append(f"arrays not used: {', '.join(unused)}")
    return raw


def _part_key(key: str, letter: str) -> str | None:
    """ "train", "valid" or "test" of the keys `x_train`, `train_x`, `train`."""
    words = key.lower().split("_")
    if letter in words and len(words) == 2:
        words.remove(letter)
        return part_of(words[0])
    return part_of(key) if letter == "x" else None


def from_parts(x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray], options: Options) -> Raw:
    """Arrays by part: two axes are a table, three or four images; raises DataError for others."""
    for part, labels in y.items():
        if labels.ndim != 1 or len(labels) != len(x[part]):
            raise DataError(f"labels of shape {labels.shape} do not fit {len(x[part])} examples: expected one each")
    shape, dtype = x["train"].shape, x["train"].dtype
    if len(shape) not in (2, 3, 4) or dtype.kind not in "biuf":
        raise DataError(
            f"an array of shape {shape} and type {dtype}: expected numbers as a table (N, D) or images (N, H, W), "
            "(N, H, W, C), (N, C, H, W); for sound give a folder of WAV files"
        )
    if not all(x[part].size for part in x):
        raise DataError(f"an array is empty: {', '.join(f'{part} {array.shape}' for part, array in x.items())}")
    if len(shape) == 2:
        return _table(x, y)
    notes: list[str] = []
    layout = images.infer_layout(shape, notes)

    def rows(array: np.ndarray) -> Rows:
        if options.size is None and options.crop is None:
            return array
        return images.Resized(array, layout, options.size, options.crop)

    parts = {part: Part(rows(x[part]), y.get(part)) for part in x}
    return Raw("image", parts, notes=notes, facts={"layout": layout})


def _table(x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray]) -> Raw:
    parts = {}
    for part, array in x.items():
        frame = pd.DataFrame(np.asarray(array), copy=False, columns=[f"x{i}" for i in range(array.shape[1])])
        parts[part] = Part(tables.TableRows(frame), y.get(part))
    return Raw("table", parts, facts={"named": False})


def _open_npz(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of an NPZ file, mapped into memory where they are not compressed; and whether all are."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    arrays, mapped = {}, True
    with np.load(path, allow_pickle=False) as loaded:
        for member in members:
            key = member.filename.removesuffix(".npy")
            plain = member.compress_type == zipfile.ZIP_STORED
            array = _map_member(path, member) if plain else loaded[key]
            arrays[key] = loaded[key] if array is None else array
            mapped = mapped and array is not None and plain
    return arrays, mapped


def _map_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray | None:
    """An uncompressed member as a memory map: it lies behind its local header. None where it cannot be."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)  # the local header: 30 bytes, lengths of name and extra field at 26, 28
        name, extra = np.frombuffer(file.read(4), "<u2")
        file.seek(member.header_offset + 30 + int(name) + int(extra))
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            return None
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects, which can run code when read: save plain arrays")
        if not all(shape):
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
