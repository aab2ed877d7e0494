"""Arrays of images: the layout, the levels, the size; and the Space fitted on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fivefold.data.raw import Options, Raw, Rows
from fivefold.errors import DataError
from fivefold.space import Space

SMALL = 32  # an integer image whose largest value is below this has exactly that many levels and one


def infer_layout(shape: tuple[int, ...], notes: list[str]) -> str:
    """ "HW", "HWC" or "CHW" of an array of images `(N, ...)`; channels are the axis of length 1 to 4.

    Raises DataError where no axis can be the channels.
    """
    if len(shape) == 3:
        return "HW"
    fits = {"HWC": shape[3] <= 4, "CHW": shape[1] <= 4}
    square = {"HWC": shape[1] == shape[2], "CHW": shape[2] == shape[3]}
    candidates = sorted((layout for layout in fits if fits[layout]), key=lambda layout: not square[layout])
    if not candidates:
        raise DataError(
            f"an array of shape {shape} has no axis of 1 to 4 channels: "
            "give images as (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    if all(fits.values()):
        notes.append(f"shape {shape} can be read as HWC or CHW: read as {candidates[0]}")
    return candidates[0]


def fit(raw: Raw, options: Options) -> Space:
    """The Space of images: integers by their levels, real values standardised with the training part's mean and std."""
    layout = raw.facts["layout"]
    first = np.asarray(raw.parts["train"].rows[np.array([0])])
    shapes = {name: np.asarray(part.rows[np.array([0])]).shape[1:] for name, part in raw.parts.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"the parts hold images of different shapes: {shapes}; pass size (--size) for one size")
    channels, height, width = _chw(first.shape[1:], layout)
    shape, dtype = (channels, height, width), str(first.dtype)
    if options.size not in (None, (height, width)) and (options.size, options.size) != (height, width):
        raise DataError(f"size (--size) does not apply to these images of {height}x{width}: leave it out")
    levels = raw.facts.get("levels") or _levels(raw)
    if levels is not None:
        return Space("image", shape, levels=levels, layout=layout, dtype=dtype)
    location, scale = _moments(raw.parts["train"].rows)
    raw.notes.append(
        f"pixels are real values: mean {location:.6g}, standard deviation {scale:.6g} of the training split"
    )
    return Space("image", shape, layout=layout, dtype=dtype, location=location, scale=scale)


def _chw(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return {"HW": lambda: (1, *shape), "HWC": lambda: (shape[2], *shape[:2]), "CHW": lambda: shape}[layout]()


def _levels(raw: Raw) -> int | None:
    """Number of values of whole-numbered images (over all parts: the range is not fitted), None for real ones."""
    top, whole = 0, True
    for part in raw.parts.values():
        for x in chunks(part.rows):
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                bad = int((~np.isfinite(x)).sum())
                raise DataError(f"{bad} pixels are missing (NaN) or infinite; remove or fill them first")
            if x.dtype.kind in "fi" and ((x < 0).any() or (x.dtype.kind == "f" and (x != np.round(x)).any())):
                whole = False
                break
            top = max(top, int(x.max()))
            if x.dtype == np.uint8 and top >= SMALL:
                break
    if not whole:
        return None
    levels = level_count(top)
    rule = "the largest value and one" if levels <= SMALL else "the range of that many bits"
    raw.notes.append(f"{levels} levels, as pixels are whole numbers up to {top} ({rule})")
    return levels


def level_count(top: int) -> int:
    """Levels of whole-numbered pixels up to `top`: top + 1 below 32 (at least 2), else the next of 256, 512, ..."""
    return max(top + 1, 2) if top < SMALL else max(256, 2 ** math.ceil(math.log2(top + 1)))


def _moments(rows: Rows) -> tuple[float, float]:
    """Mean and standard deviation over all pixels, in one pass."""
    count, total, square, shift = 0, 0.0, 0.0, None
    for x in chunks(rows):
        values = x.astype(np.float64)
        shift = float(values.mean()) if shift is None else shift  # keeps the squares small beside a large mean
        count, total, square = count + x.size, total + (values - shift).sum(), square + ((values - shift) ** 2).sum()
    mean = total / count
    deviation = math.sqrt(max(square / count - mean**2, 0.0))
    if not deviation > 0:
        raise DataError(f"every pixel of the training images is {mean + (shift or 0.0):g}: there is nothing to model")
    return mean + (shift or 0.0), deviation


def chunks(rows: Rows, size: int = 4096) -> Iterator[np.ndarray]:
    """The rows in order, some thousands at a time."""
    for start in range(0, len(rows), size):
        yield np.asarray(rows[np.arange(start, min(start + size, len(rows)))])


def resize(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Scaled to cover `size` (one number: a square; else height, width) and cropped to it round the centre."""
    height, width = (size, size) if isinstance(size, int) else size
    factor = max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC)
    return cut(image, height, width)


def cut(image: Image.Image, height: int, width: int) -> Image.Image:
    """What of it lies round the centre, at most so high and wide."""
    height, width = min(height, image.height), min(width, image.width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def framed(image: Image.Image, crop: int | None, size: int | tuple[int, int] | None) -> Image.Image:
    """A square of `crop` pixels round the centre, then scaled to `size`; each where it is given."""
    image = image if crop is None else cut(image, crop, crop)
    return image if size is None else resize(image, size)


@dataclass(frozen=True)
class Resized:
    """Images of an array, a square round the centre of each and at another size where those are given."""

    rows: Rows
    layout: str
    size: int | tuple[int, int] | None
    crop: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        x = np.asarray(self.rows[index])
        if self.crop is not None:
            first = 2 if self.layout == "CHW" else 1
            for axis in (first, first + 1):
                kept = min(self.crop, x.shape[axis])
                start = (x.shape[axis] - kept) // 2
                x = x.take(range(start, start + kept), axis)
        if self.size is None:
            return x
        if x.dtype != np.uint8:
            raise DataError(f"size (--size) resizes 8-bit images, not {x.dtype}; resize the arrays first")
        x = np.moveaxis(x, 1, -1) if self.layout == "CHW" else x
        planes = x[..., None] if x.ndim == 3 else x
        resized = [
            np.stack([np.asarray(resize(Image.fromarray(plane), self.size)) for plane in np.moveaxis(image, -1, 0)], -1)
            for image in planes
        ]
        out = np.stack(resized)
        return {"HW": lambda: out[..., 0], "HWC": lambda: out, "CHW": lambda: np.moveaxis(out, -1, 1)}[self.layout]()
