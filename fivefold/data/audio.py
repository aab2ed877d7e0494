"""Folders of 16-bit WAV files: windows of samples, read from the files as they are needed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.data.raw import Options, Part, Raw
from fivefold.errors import DataError
from fivefold.space import Space

LENGTH = 1024


@dataclass(frozen=True)
class Clips:
    """Windows of `length` samples: the w-th starts at sample `starts[w]` of file `owners[w]`."""

    files: tuple[Path, ...]
    owners: np.ndarray
    starts: np.ndarray
    length: int

    def __len__(self) -> int:
        return len(self.owners)

    def __getitem__(self, index: Any) -> np.ndarray:
        out = np.empty((len(index), self.length), np.int16)
        for row, (owner, start) in enumerate(zip(self.owners[index], self.starts[index], strict=True)):
            _, samples = _open(self.files[owner])
            window = samples[start : start + self.length]
            out[row] = window if window.ndim == 1 else np.round(window.mean(axis=1))
        return out


@dataclass
class _Found:
    """What the files of a folder say before any sample is read."""

    rates: dict[int, Path] = field(default_factory=dict)
    stereo: int = 0
    short: int = 0


def read(files: list[Path], labels: np.ndarray | None, options: Options) -> Raw:
    """WAV files as windows, file after file in an order drawn at random, so that blocks of them are alike.

    Raises DataError where they are not 16-bit or their rates differ.
    """
    length = options.length or LENGTH
    _open.cache_clear()  # files may have changed since they were last read
    found, owners, starts = _Found(), [], []
    for owner in np.random.default_rng(options.split_seed).permutation(len(files)):
        path = files[owner]
        rate, samples = _open(path)
        found.rates.setdefault(rate, path)
        found.stereo += samples.ndim > 1
        found.short += len(samples) < length
        begins = np.arange(0, len(samples) - length + 1, length)
        owners.append(np.full(len(begins), owner))
        starts.append(begins)
    if len(found.rates) > 1:
        (a, one), (b, other) = list(found.rates.items())[:2]
        raise DataError(f"the rates differ: {one.name} has {a} Hz, {other.name} has {b} Hz; resample them to one rate")
    if found.short == len(files):
        raise DataError(f"no file has {length} samples: pass a smaller length (--length)")
    clips = Clips(tuple(files), np.concatenate(owners), np.concatenate(starts), length)
    raw = Raw("audio", {"train": Part(clips, None if labels is None else labels[clips.owners])}, ordered=True)
    raw.facts = {"rate": next(iter(found.rates)), "length": length}
    raw.notes.append(
        f"{len(files)} files in windows of {length} samples end to end; what is left at their ends is unused"
    )
    if found.stereo:
        raw.notes.append(f"{found.stereo} files of several channels are mixed down to one")
    if found.short:
        raw.notes.append(f"{found.short} files are shorter than a window: left out")
    return raw


@lru_cache(maxsize=256)
def _open(path: Path) -> tuple[int, np.ndarray]:
    """Rate and memory-mapped samples; raises DataError for what is not 16-bit PCM."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks that are not sound
            rate, samples = wavfile.read(path, mmap=True)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} cannot be read as WAV ({error}); {_MEND}") from error
    if samples.dtype != np.int16:
        raise DataError(f"{path} holds {samples.dtype} samples, expected 16-bit; {_MEND}")
    return int(rate), samples


_MEND = "convert it to 16-bit PCM (ffmpeg -i IN.wav -c:a pcm_s16le OUT.wav)"


def fit(raw: Raw, options: Options) -> Space:
    """The Space of 16-bit sound."""
    return Space("audio", (raw.facts["length"],), levels=65536, rate=raw.facts["rate"], dtype="int16")
