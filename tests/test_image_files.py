"""Files of images and sound as people have them: turned, deep, animated, broken, large."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from fivefold.data import load_data
from fivefold.errors import DataError

RNG = np.random.default_rng(0)


def first(folder: Path, **options) -> np.ndarray:
    """The image of a folder of copies of one."""
    data = load_data(folder, **options)
    return data.space.decode(data.train.batch(slice(1)).x)[0]


def copies(folder: Path, image: Image.Image, suffix: str = ".png", n: int = 6, **options) -> Path:
    folder.mkdir()
    for i in range(n):
        image.save(folder / f"{i}{suffix}", **options)
    return folder


@pytest.mark.parametrize("turn", range(1, 9))
def test_photographs_stand_upright(turn: int, tmp_path: Path) -> None:
    """All eight ways to hold a camera, against what the tag's standard says of rows and columns."""
    shown = RNG.integers(0, 256, (5, 8, 3), np.uint8)
    stored = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.swapaxes(0, 1),
        6: shown.swapaxes(0, 1)[::-1], 7: shown.swapaxes(0, 1)[::-1, ::-1], 8: shown.swapaxes(0, 1)[:, ::-1],
    }[turn]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = turn
    folder = copies(tmp_path / "a", image, exif=exif)
    assert np.array_equal(first(folder), shown)
    assert any("turned upright" in note for note in load_data(folder).notes) == (turn > 1)


def test_deep_images_keep_their_levels_or_are_said_to_be_reduced(tmp_path: Path) -> None:
    floats = RNG.normal(size=(5, 6)).astype(np.float32)
    data = load_data(copies(tmp_path / "float", Image.fromarray(floats), ".tif"))
    assert data.space.levels is None
    np.testing.assert_allclose(first(tmp_path / "float"), floats, atol=1e-5)
    assert any("real values" in note for note in data.notes)
    deep = RNG.integers(0, 65536, (5, 6)).astype(np.uint16)
    data = load_data(copies(tmp_path / "deep", Image.fromarray(deep), ".tif"))
    assert data.space.levels == 65536
    assert np.array_equal(first(tmp_path / "deep"), deep)
    colours = RNG.integers(0, 65536, (5, 6, 3)).astype(">u2")
    (tmp_path / "colours").mkdir()
    for i in range(6):
        (tmp_path / "colours" / f"{i}.png").write_bytes(png(colours))
    data = load_data(tmp_path / "colours")
    assert data.space.levels == 256
    assert "6 of 6 files have 16 bits a channel: reduced to 8" in data.notes


def png(colours: np.ndarray) -> bytes:
    """A file of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = colours.shape
    lines = b"".join(b"\0" + row.tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_of_several_frames_the_first_is_read_and_that_is_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((6, 6, 3), shade, np.uint8)) for shade in (10, 200)]
    for suffix in (".gif", ".webp"):
        options = {"save_all": True, "append_images": frames[1:]} | ({"lossless": True} if suffix == ".webp" else {})
        folder = copies(tmp_path / suffix[1:], frames[0], suffix, **options)
        assert (first(folder) == 10).all()
        assert "6 of 6 files have several frames: the first is read" in load_data(folder).notes


@pytest.mark.parametrize("damage", ["no image", "truncated"])
def test_broken_files_are_refused_by_name_or_left_out(damage: str, tmp_path: Path) -> None:
    folder = copies(tmp_path / "a", Image.fromarray(RNG.integers(0, 256, (20, 20, 3), np.uint8)))
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(b"not an image" if damage == "no image" else whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2\.png cannot be read as an image"):
        load_data(folder)
    data = load_data(folder, skip_bad=True)
    assert len(data.train) + len(data.valid) + len(data.test) == 5
    assert any("1 of 6 files left out" in note and "2.png" in note for note in data.notes)


def test_a_square_round_the_centre_is_taken_before_scaling(tmp_path: Path) -> None:
    image = RNG.integers(0, 256, (20, 31, 3), np.uint8)
    folder = copies(tmp_path / "a", Image.fromarray(image))
    assert np.array_equal(first(folder, crop=10), image[5:15, 10:20])
    wanted = Image.fromarray(image[5:15, 10:20]).resize((4, 4), Image.Resampling.LANCZOS)
    assert np.array_equal(first(folder, crop=10, size=4), np.asarray(wanted))
    data = load_data(np.stack([image] * 6), crop=10)
    assert np.array_equal(data.space.decode(data.train.batch(slice(1)).x)[0], image[5:15, 10:20])


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"RIFF\x24\x00\x00\x00WAVE"])
def test_broken_sound_is_refused_by_name_or_left_out(content: bytes, tmp_path: Path) -> None:
    for i in range(5):
        wavfile.write(tmp_path / f"{i}.wav", 8000, RNG.integers(-99, 99, 400).astype(np.int16))
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.wav cannot be read as sound"):
        load_data(tmp_path, length=100)
    data = load_data(tmp_path, length=100, skip_bad=True)
    assert len(data.train) + len(data.valid) + len(data.test) == 20
    assert any("1 of 6 files left out" in note for note in data.notes)


def test_the_hub_alone_is_a_sentence() -> None:
    with pytest.raises(DataError, match="hf: alone"):
        load_data("hf:")
