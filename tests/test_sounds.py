"""Files of sound as people have them: formats, widths, rates, channels, silence."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from fivefold.data import load_data, load_examples
from fivefold.data.writers import save_examples

RATE, LENGTH = 8000, 400


def tone(seconds: float = 0.5, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def sounds(folder: Path, suffix: str = ".wav", n: int = 4, rate: int = RATE, x: np.ndarray | None = None, **options):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        soundfile.write(folder / f"{rate}-{i}{suffix}", tone(rate=rate) if x is None else x, rate, **options)
    return folder


def whole(folder: Path, **options) -> np.ndarray:
    """All windows in the order of a tone's phase, as floats."""
    data = load_data(folder, length=LENGTH, **options)
    return data.space.decode(data.train.batch(slice(None)).x) / 32768


@pytest.mark.parametrize(
    ("suffix", "subtype", "within"),
    [
        (".wav", "PCM_16", 1e-4), (".wav", "PCM_24", 1e-4), (".wav", "PCM_32", 1e-4), (".wav", "FLOAT", 1e-4),
        (".wav", "DOUBLE", 1e-4), (".wav", "PCM_U8", 0.01), (".flac", "PCM_24", 1e-4), (".aiff", "PCM_16", 1e-4),
        (".ogg", "VORBIS", 0.1), (".mp3", "MPEG_LAYER_III", 0.25),
    ],
)  # fmt: skip
def test_every_format_is_read_and_comes_back_as_wide(suffix: str, subtype: str, within: float, tmp_path: Path) -> None:
    folder = sounds(tmp_path / "in", suffix, subtype=subtype)
    assert np.abs(np.abs(whole(folder)).max() - 0.5) < within
    data = load_data(folder, length=LENGTH)
    x = data.space.decode(data.train.batch(slice(3)).x)
    if suffix in (".wav", ".flac", ".aiff"):
        phases = [np.abs(x[0] / 32768 - tone()[start : start + LENGTH]).max() for start in range(0, 3601, LENGTH)]
        assert min(phases) < within
    assert any("modelled with 16 bits" in note for note in data.notes) == (subtype != "PCM_16")
    (path,) = save_examples(tmp_path / "out.wav", data.space, x[:1])
    info = soundfile.info(path)
    assert info.samplerate == RATE
    assert info.subtype == (subtype if suffix in (".wav", ".flac", ".aiff") else "PCM_16")
    assert np.abs(soundfile.read(path, dtype="int16")[0].astype(int) - x[0]).max() <= (
        0 if "U8" not in subtype else 256
    )


def test_mixed_rates_and_channels_are_brought_to_one(tmp_path: Path) -> None:
    """A tone of another rate comes out with the pitch that it had: its spectrum peaks at the same frequency."""
    folder = sounds(tmp_path / "in", n=3)
    sounds(folder, n=1, rate=22050)
    sounds(folder, n=1, rate=44100, x=np.stack([tone(rate=44100), np.zeros(22050)], 1))
    data = load_data(folder, length=2000)
    said = " ".join(data.notes)
    assert "resampled to 8000 Hz: 1 of 22050 Hz and 1 of 44100 Hz" in said or "1 of 44100 Hz and 1 of 22050 Hz" in said
    assert "1 files of several channels are mixed down" in said
    for part in (data.train, data.valid, data.test):
        for x in data.space.decode(part.batch(slice(None)).x):
            spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x))))
            assert abs(spectrum.argmax() * RATE / len(x) - 440) < 6
            assert 0.2 < np.abs(x).max() / 32768 < 0.55
    assert load_data(folder, length=LENGTH, rate=16000).space.rate == 16000
    other = sounds(tmp_path / "other", n=3, rate=16000)
    assert len(load_examples(other, data.space, length=2000)) == 3 * 2


def test_silence_at_both_ends_is_cut_off_on_request(tmp_path: Path) -> None:
    quiet = np.zeros(RATE)
    folder = sounds(tmp_path / "in", x=np.concatenate([quiet, tone(), quiet]))
    assert (np.abs(whole(folder)).max(1) == 0).any()
    assert np.abs(whole(folder, trim=True)).max(1).min() > 0.4
