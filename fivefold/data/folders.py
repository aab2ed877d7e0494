"""Folders of images and of WAV files, read as they are needed; sub-folders are parts or labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fivefold.data import audio, images
from fivefold.data.raw import Options, Part, Raw, part_of, with_test
from fivefold.errors import DataError

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
_WIDER = ("1", "L", "LA", "RGB", "RGBA")  # each can be turned into the next without loss
_MODES = {"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB", "I;16B": "I;16"}


def read(folder: Path, options: Options) -> Raw:
    """A folder of images or WAV files, perhaps in `train/`, `test/` (`valid/`), perhaps by label in sub-folders.

    Raises DataError where there are neither, both, or files that do not go together.
    """
    parts = {part: path for path in sorted(folder.iterdir()) if path.is_dir() and (part := part_of(path.name))}
    if "train" not in parts:
        return _read_part(folder, options)
    raw = _read_part(parts["train"], options)
    raw.notes.append(f"parts by the folders {', '.join(path.name for path in parts.values())}")
    for name in parts.keys() - {"train"}:
        own = _read_part(parts[name], options)
        raw.notes += [note for note in own.notes if note not in raw.notes]
        raw.parts[name] = with_test(raw, own).parts["test"]
    return raw


def _read_part(folder: Path, options: Options) -> Raw:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in files if path.suffix.lower() in IMAGES]
    sounds = [path for path in files if path.suffix.lower() == ".wav"]
    if bool(pictures) == bool(sounds):
        kinds = ", ".join(
            f"{n} {suffix or 'without suffix'}" for suffix, n in Counter(sorted(p.suffix for p in files)).items()
        )
        raise DataError(
            f"the folder {folder} holds {kinds or 'no files'}: "
            f"expected images ({' '.join(sorted(IMAGES))}) or WAV files"
        )
    found = pictures or sounds
    folders = [str(path.parent.relative_to(folder)) for path in found]
    labels = np.array(folders, dtype=object) if len(set(folders)) > 1 and "." not in folders else None
    return _read_images(pictures, labels, options) if pictures else audio.read(sounds, labels, options)


def _read_images(files: list[Path], labels: np.ndarray | None, options: Options) -> Raw:
    """All headers now, the pixels later."""
    notes: list[str] = []
    seen: dict[str, Path] = {}
    sizes: dict[tuple[int, int], Path] = {}
    for path in files:
        with _open(path) as image:
            seen.setdefault(_mode(image), path)
            sizes.setdefault(image.size, path)
    if len(sizes) > 1 and options.size is None:
        (a, one), (b, other) = list(sizes.items())[:2]
        raise DataError(
            f"the images differ in size: {one.name} is {a[0]}x{a[1]}, {other.name} is {b[0]}x{b[1]}; "
            "pass size (--size 32) to scale and crop them to one"
        )
    mode = _common_mode(seen)
    if len(seen) > 1:
        notes.append(f"images of modes {', '.join(seen)} are all read as {mode}")
    rows = ImageFiles(tuple(files), mode, options.size)
    facts = {"layout": "HW" if mode in ("1", "L", "I;16") else "HWC", "levels": {"1": 2, "I;16": 65536}.get(mode, 256)}
    return Raw("image", {"train": Part(rows, labels)}, notes=notes, facts=facts)


def _mode(image: Image.Image) -> str:
    """The mode an image is read in."""
    if image.mode == "P" and "transparency" in image.info:
        return "RGBA"
    return _MODES.get(image.mode, image.mode)


def _common_mode(seen: dict[str, Path]) -> str:
    odd = [path for mode, path in seen.items() if mode not in _WIDER]
    if not odd:
        return max(seen, key=_WIDER.index)
    if list(seen) == ["I;16"]:
        return "I;16"
    raise DataError(
        f"{odd[0]} is of mode {next(m for m, p in seen.items() if p == odd[0])}: expected 8-bit grey or colour "
        "(or 16-bit grey in all files); convert it (magick IN -depth 8 OUT.png)"
    )


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, all in one mode and at one size."""

    files: tuple[Path, ...]
    mode: str
    size: int | tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.stack([self._read(self.files[i]) for i in np.arange(len(self.files))[index]])

    def _read(self, path: Path) -> np.ndarray:
        try:
            with _open(path) as image:
                picture = image if image.mode in ("I;16", "I;16B") else image.convert(self.mode)
                if self.size is not None and self.mode == "1":
                    picture = images.resize(picture.convert("L"), self.size)
                elif self.size is not None:
                    picture = images.resize(picture, self.size)
                x = np.asarray(picture if self.mode != "1" else picture.convert("L"))
        except (OSError, SyntaxError) as error:  # a truncated file is found when its pixels are read
            raise DataError(f"{path} cannot be read as an image: {error}") from error
        return (x > 127).astype(np.uint8) if self.mode == "1" else x
