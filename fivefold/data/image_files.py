"""Files of images: headers at once, pixels as they are needed, upright and in one mode."""

from __future__ import annotations

import contextlib
import warnings
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
LOOKED_AT = 10_000  # headers that are read at once
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


def read(folder: Path, names: list[str], labels: np.ndarray | None, options: Options) -> Raw:
    """Headers now, of very many files those of some; the pixels later.

    With `skip_bad` the pixels of the files looked at too, to know which are whole.
    Raises DataError where sizes or modes do not go together, or a file is no image.
    """
    seen, skipped, bad = _Seen(), Skipped(options.skip_bad), set[int]()
    looked_at = np.unique(np.linspace(0, len(names) - 1, min(len(names), LOOKED_AT)).astype(int)).tolist()
    for i in looked_at:
        bad.add(i)
        with skipped.unless_good(), _opened(folder / names[i]) as image:
            _look(image, folder / names[i], seen, options)
            bad.remove(i)
    notes = skipped.notes(looked_at)
    if len(looked_at) < len(names):
        later = ", when one that is not whole is replaced by the next" if options.skip_bad else ""
        notes.append(f"{len(looked_at):,} of {len(names):,} files looked at, the others when they are read{later}")
    if len(seen.sizes) > 1 and options.size is None:
        (a, one), (b, other) = list(seen.sizes.items())[:2]
        raise DataError(
            f"the images differ in size: {one.name} is {a[0]}x{a[1]}, {other.name} is {b[0]}x{b[1]}; "
            "pass size (--size 32) to scale and crop them to one"
        )
    mode = _common_mode(seen.modes)
    if len(seen.modes) > 1:
        notes.append(f"images of modes {', '.join(seen.modes)} are all read as {mode}")
    notes += [f"{count} of {len(looked_at)} files {what}" for what, count in seen.odd.items() if count]
    if bad:
        good = [i for i in range(len(names)) if i not in bad]
        names, labels = [names[i] for i in good], None if labels is None else labels[good]
    shape = None if options.size is not None else next(iter(seen.sizes))[::-1]
    rows = ImageFiles(folder, names, mode, shape, options)
    levels = _DEEP.get(mode, 2 if mode == "1" else 256)
    facts = {"layout": "HW" if mode in ("1", "L", *_DEEP) else "HWC", "levels": levels}
    return Raw("image", {"train": Part(rows, labels)}, notes=notes, facts=facts)


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
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, all in one mode and of one size: `shape`, or what the options ask for."""

    folder: Path
    names: list[str]
    mode: str
    shape: tuple[int, int] | None
    options: Options

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> np.ndarray:
        places = np.arange(len(self.names))[index] if isinstance(index, slice) else index
        return np.stack([self._whole(int(i)) for i in places])

    def _whole(self, place: int) -> np.ndarray:
        """The image there, or with `skip_bad` the next that can be read."""
        for i in range(place, place + len(self.names)):
            try:
                return self._read(self.folder / self.names[i % len(self.names)])
            except DataError as error:
                if not self.options.skip_bad:
                    raise
                warnings.warn(f"{error}; the next is read in its place", stacklevel=2)
        raise DataError(f"no file in {self.folder} can be read as an image")

    def _read(self, path: Path) -> np.ndarray:
        size = self.options.size
        with _opened(path) as image:
            if not self._fits(_mode(image)):
                raise DataError(f"{path} is of mode {_mode(image)}, those looked at were of {self.mode}: convert it")
            picture = ImageOps.exif_transpose(image)
            if self.mode not in _DEEP:
                picture = picture.convert("L" if self.mode == "1" and size is not None else self.mode)
            picture = images.framed(picture, self.options.crop, size)
            x = np.asarray(picture if self.mode != "1" else picture.convert("L"))
        if self.shape is not None and x.shape[:2] != self.shape:
            raise DataError(
                f"{path} is {x.shape[1]}x{x.shape[0]}, those looked at were {self.shape[1]}x{self.shape[0]}; "
                "pass size (--size 32) to scale and crop them to one"
            )
        return (x > 127).astype(np.uint8) if self.mode == "1" else x

    def _fits(self, mode: str) -> bool:
        """Whether an image of that mode can be read as the others without loss."""
        if mode not in _WIDER or self.mode not in _WIDER:
            return mode == self.mode
        return _WIDER.index(mode) <= _WIDER.index(self.mode)
