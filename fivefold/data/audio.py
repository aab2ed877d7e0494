"""Folders of sound: windows of 16-bit samples at one rate, read from the files as they are needed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.data.raw import Options, Part, Raw, Skipped
from fivefold.errors import DataError
from fivefold.space import Space

LENGTH = 1024
SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
PLAIN = "PCM_16"  # what libsndfile calls 16-bit samples, as which all sound is encoded
SILENT = 10 ** (-60 / 20)  # of the loudest sample: 60 dB below it


@dataclass(frozen=True)
class Clips:
    """Windows of `length` samples: the w-th starts at sample `starts[w]` of file `owners[w]`, at `rate`."""

    files: tuple[Any, ...]
    owners: np.ndarray
    starts: np.ndarray
    length: int
    rate: int
    trim: bool

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: Any) -> np.ndarray:
        out = np.empty((len(index), self.length), np.int16)
        for row, (owner, start) in enumerate(zip(self.owners[index], self.starts[index], strict=True)):
            window = _samples(self.files[owner], self.rate, self.trim)[start : start + self.length]
            out[row] = window if window.ndim == 1 else np.round(window.mean(axis=1))
        return out


@dataclass
class _Found:
    """What the headers of a folder's files say."""

    rates: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    stereo: int = 0
    short: int = 0


def read(files: list[Any], labels: np.ndarray | None, options: Options) -> Raw:
    """Files of sound as windows, file after file in an order drawn at random, so that blocks of them are alike.

    What is not at the commonest rate (or the `rate` that is asked for) is resampled; several channels are mixed. A file
    is a path, or what has a method `open` that gives a path or a file, and is named by `str`.
    """
    length = options.length or LENGTH
    _samples.cache_clear()  # files may have changed since they were last read
    found, skipped, good = _Found(), Skipped(options.skip_bad), []
    for owner in np.random.default_rng(options.split_seed).permutation(len(files)):
        with skipped.unless_good():
            info = _info(files[owner])
            found.rates[info.samplerate] += 1
            found.kinds[info.subtype] += 1
            found.stereo += info.channels > 1
            good.append(owner)
    if not good:
        raise DataError("no file is left that can be read as sound")
    rate = options.rate or found.rates.most_common(1)[0][0]
    owners, starts = [], []
    for owner in good:
        with skipped.unless_good():
            samples = len(_samples(files[owner], rate, options.trim))
            found.short += samples < length
            begins = np.arange(0, samples - length + 1, length)
            owners.append(np.full(len(begins), owner))
            starts.append(begins)
    if found.short == len(owners):
        raise DataError(f"no file has {length} samples: pass a smaller length (--length)")
    clips = Clips(tuple(files), np.concatenate(owners), np.concatenate(starts), length, rate, options.trim)
    raw = Raw("audio", {"train": Part(clips, None if labels is None else labels[clips.owners])}, ordered=True)
    kind = found.kinds.most_common(1)[0][0]
    raw.facts, raw.sound = {"rate": rate, "length": length}, kind
    raw.notes += [*skipped.notes(files), *_notes(found, len(owners), rate, length, kind)]
    return raw


def _notes(found: _Found, files: int, rate: int, length: int, kind: str) -> list[str]:
    resampled = {one: count for one, count in found.rates.items() if one != rate}
    notes = [f"{files} files in windows of {length} samples end to end; what is left at their ends is unused"]
    if resampled:
        of = " and ".join(f"{count} of {one} Hz" for one, count in resampled.items())
        notes.append(f"resampled to {rate} Hz: {of} (--rate asks for another)")
    if deep := {one: count for one, count in found.kinds.items() if one != PLAIN}:
        of = ", ".join(f"{count} of {one}" for one, count in deep.items())
        notes.append(f"modelled with 16 bits a sample: {of}; samples come back as {kind}")
    if found.stereo:
        notes.append(f"{found.stereo} files of several channels are mixed down to one")
    if found.short:
        notes.append(f"{found.short} files are shorter than a window: left out")
    return notes


def _opened(file: Any) -> Any:
    return file if isinstance(file, Path) else file.open()


def _info(path: Any) -> Any:
    """Rate, channels and kind of samples; DataError for what is no sound."""
    import soundfile

    try:
        return soundfile.info(_opened(path))
    except (RuntimeError, OSError, TypeError) as error:
        raise DataError(f"{path} cannot be read as sound: {error}") from error


@lru_cache(maxsize=256)
def _samples(path: Any, rate: int, trim: bool) -> np.ndarray:
    """16-bit samples at that rate, `(N,)` or `(N, channels)`; memory-mapped where the file holds just those."""
    import soundfile

    info = _info(path)
    try:
        opened = _opened(path)
        if (info.format, info.subtype, info.samplerate, trim) == ("WAV", PLAIN, rate, False):
            return _mapped(opened) if isinstance(path, Path) else soundfile.read(opened, dtype="int16")[0]
        x, own = soundfile.read(opened, dtype="float64", always_2d=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"{path} cannot be read as sound: {error}") from error
    mixed = x.mean(1)
    if own != rate:
        from scipy.signal import resample_poly

        mixed = resample_poly(mixed, rate // gcd(rate, own), own // gcd(rate, own))
    if trim and len(mixed):
        loud = np.flatnonzero(np.abs(mixed) > SILENT * np.abs(mixed).max())
        mixed = mixed[loud[0] : loud[-1] + 1] if len(loud) else mixed[:0]
    return np.clip(np.rint(mixed * 32768), -32768, 32767).astype(np.int16)


def _mapped(path: Path) -> np.ndarray:
    """The samples of a 16-bit WAV file on disk; read whole where scipy cannot map it."""
    import struct
    import warnings

    import soundfile
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that are not sound
            return wavfile.read(path, mmap=True)[1]
    except (ValueError, EOFError, UnboundLocalError, struct.error):  # scipy's, of files that are not quite whole
        return soundfile.read(path, dtype="int16")[0]


def fit(raw: Raw, options: Options) -> Space:
    """The Space of 16-bit sound."""
    length, rate = raw.facts["length"], raw.facts["rate"]
    return Space("audio", (length,), levels=65536, rate=rate, dtype="int16", sound=raw.sound)
