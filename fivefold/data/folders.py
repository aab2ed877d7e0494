"""Folders of images, of sound and of texts, read as they are needed; sub-folders are parts or labels."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fivefold.data import audio, image_files, text
from fivefold.data.raw import Options, Raw, part_of, read_parts
from fivefold.errors import DataError

TEXTS = {".txt", ".text", ".md"}
KINDS = {"images": image_files.SUFFIXES, "sound": audio.SUFFIXES, "text": TEXTS}


def read(folder: Path, options: Options) -> Raw:
    """A folder of images, sound or texts, perhaps in `train/`, `test/` (`valid/`), perhaps by label in sub-folders.

    Raises DataError where there are neither, both, or files that do not go together.
    """
    parts = {part: path for path in sorted(folder.iterdir()) if path.is_dir() and (part := part_of(path.name))}
    if "train" not in parts:
        return _read_part(folder, options)
    raw = read_parts(parts, _read_part, options)
    raw.notes.append(f"parts by the folders {', '.join(path.name for path in parts.values())}")
    return raw


def _read_part(folder: Path, options: Options) -> Raw:
    names = list(_names(folder))
    suffixes = [sys.intern(os.path.splitext(name)[1]) for name in names]
    found = {
        kind: [n for n, s in zip(names, suffixes, strict=True) if s.lower() in kinds] for kind, kinds in KINDS.items()
    }
    pictures, sounds, texts = found.values()
    if texts and not pictures and not sounds:
        return text.read_folder([folder / name for name in texts], options)
    if bool(pictures) == bool(sounds):
        counts = Counter(sorted(suffixes))
        kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in counts.items())
        raise DataError(
            f"the folder {folder} holds {kinds or 'no files'}: "
            f"expected images ({' '.join(sorted(image_files.SUFFIXES))}), sound or text ({' '.join(sorted(TEXTS))})"
        )
    inside = [sys.intern(os.path.dirname(name) or ".") for name in pictures or sounds]
    labels = np.array(inside, dtype=object) if len(set(inside)) > 1 and "." not in inside else None
    if pictures:
        return image_files.read(folder, pictures, labels, options)
    return audio.read([folder / name for name in sounds], labels, options)


def _names(folder: Path, inside: str = "") -> Iterator[str]:
    """The files of a folder and of those in it, in the order of their paths; names alone, as there may be a million."""
    with os.scandir(folder / inside) as entries:
        kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    for name in sorted(kinds):
        if kinds[name]:
            yield from _names(folder, f"{inside}{name}/")
        elif not name.startswith(".") and (folder / inside / name).is_file():
            yield inside + name
