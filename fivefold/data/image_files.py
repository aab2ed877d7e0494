"""Files of images: headers at once, pixels as they are needed, upright and in one mode."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fivefold.data import images
from fivefold.data.raw import Options, Part, Raw, Skipped
from fivefold.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"}
_WIDER = ("1", "L", "LA", "RGB", "RGBA")  # each can be turned into the next without loss
_MODES = {"P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
_DEEP = {"I;16": 65536, "I": None, "F": None}  # modes of more than 8 bits, and their levels where the mode says them
_TURN = 0x0112  # the tag of EXIF that says how the camera was held; from 5 on the sides are exchanged


@dataclass
class _Seen:
    """What the headers say: modes and sizes, each with a file that has it; what is read otherwise than it is."""

    modes: dict[str, Path] = field(default_factory=dict)
    sizes: dict[tuple[int, int], Path] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)


def read(files: list[Path], labels: np.ndarray | None, options: Options) -> Raw:
    """All headers now, the pixels later; with `skip_bad` the pixels too, to know which files are whole.

    Raises DataError where sizes or modes do not go together, or a file is no image.
    """
    seen, skipped, good = _Seen(), Skipped(options.skip_bad), []
    for i, path in enumerate(files):
        with skipped.unless_good(), _opened(path) as image:
            _look(image, path, seen, options)
            good.append(i)
    notes = skipped.notes(files)
    if len(seen.sizes) > 1 and options.size is None:
        (a, one), (b, other) = list(seen.sizes.items())[:2]
        raise DataError(
            f"the images differ in size: {one.name} is {a[0]}x{a[1]}, {other.name} is {b[0]}x{b[1]}; "
            "pass size (--size 32) to scale and crop them to one"
        )
    mode = _common_mode(seen.modes)
    if len(seen.modes) > 1:
        notes.append(f"images of modes {', '.join(seen.modes)} are all read as {mode}")
    notes += [f"{count} of {len(files)} files {what}" for what, count in seen.odd.items() if count]
    rows = ImageFiles(tuple(files[i] for i in good), mode, options.size, options.crop)
    levels = _DEEP.get(mode, 2 if mode == "1" else 256)
    facts = {"layout": "HW" if mode in ("1", "L", *_DEEP) else "HWC", "levels": levels}
    return Raw("image", {"train": Part(rows, None if labels is None else labels[good])}, notes=notes, facts=facts)


def _look(image: Image.Image, path: Path, seen: _Seen, options: Options) -> None:
    reduced = image.mode in _WIDER and any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    turn = image.getexif().get(_TURN, 1)
    if options.skip_bad:
        image.load()
    size = image.size if turn < 5 else image.size[::-1]
    if options.crop is not None:
        size = (min(size[0], options.crop), min(size[1], options.crop))
    seen.modes.setdefault(_mode(image), path)
    seen.sizes.setdefault(size, path)
    seen.odd["are turned upright, as their EXIF says"] += turn > 1
    seen.odd["have several frames: the first is read"] += getattr(image, "n_frames", 1) > 1
    seen.odd["have 16 bits a channel: reduced to 8"] += reduced


def _mode(image: Image.Image) -> str:
    """The mode an image is read in."""
    if image.mode == "P" and "transparency" in image.info:
        return "RGBA"
    if image.mode.startswith("I;16"):
        return "I;16"
    return _MODES.get(image.mode, image.mode)


def _common_mode(seen: dict[str, Path]) -> str:
    if not seen:
        raise DataError("no file is left that can be read as an image")
    odd = [path for mode, path in seen.items() if mode not in _WIDER]
    if not odd:
        return max(seen, key=_WIDER.index)
    if len(seen) == 1 and next(iter(seen)) in _DEEP:
        return next(iter(seen))
    raise DataError(
        f"{odd[0]} is of mode {next(m for m, p in seen.items() if p == odd[0])}, others are not: expected 8-bit grey "
        "or colour, or one mode in all files; convert it (magick IN -depth 8 OUT.png)"
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file; whatever goes wrong with it is a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, all in one mode and at one size."""

    files: tuple[Path, ...]
    mode: str
    size: int | tuple[int, int] | None
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.stack([self._read(self.files[i]) for i in np.arange(len(self.files))[index]])

    def _read(self, path: Path) -> np.ndarray:
        with _opened(path) as image:
            picture = ImageOps.exif_transpose(image)
            if self.mode not in _DEEP:
                picture = picture.convert("L" if self.mode == "1" and self.size is not None else self.mode)
            picture = images.framed(picture, self.crop, self.size)
            x = np.asarray(picture if self.mode != "1" else picture.convert("L"))
        return (x > 127).astype(np.uint8) if self.mode == "1" else x
