"""Folders of images, of sound and of texts, read as they are needed; sub-folders are parts or labels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from fivefold.data import audio, image_files, text
from fivefold.data.raw import Options, Raw, part_of, read_parts
from fivefold.errors import DataError

TEXTS = {".txt", ".text", ".md"}


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
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in image_files.SUFFIXES]
    sounds = [path for path in files if path.suffix.lower() in audio.SUFFIXES]
    texts = [path for path in files if path.suffix.lower() in TEXTS]
    if texts and not pictures and not sounds:
        return text.read_folder(texts, options)
    if bool(pictures) == bool(sounds):
        kinds = ", ".join(
            f"{n} {suffix or 'without suffix'}" for suffix, n in Counter(sorted(p.suffix for p in files)).items()
        )
        raise DataError(
            f"the folder {folder} holds {kinds or 'no files'}: "
            f"expected images ({' '.join(sorted(image_files.SUFFIXES))}), sound or text ({' '.join(sorted(TEXTS))})"
        )
    found = pictures or sounds
    folders = [str(path.parent.relative_to(folder)) for path in found]
    labels = np.array(folders, dtype=object) if len(set(folders)) > 1 and "." not in folders else None
    return image_files.read(pictures, labels, options) if pictures else audio.read(sounds, labels, options)
