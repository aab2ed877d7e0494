"""Lossless compression of test images by a trained integer discrete flow, beside PNG and general compressors.

Trains idf for the same time on each data set and compresses its test images: the digits, and those of the NPZ files
named (such as MNIST). Every file is decompressed and compared. The model's own weights are not counted: it is shared
by all files that it compresses, as a codec is.

    python -m benchmarks.compression [FILE.npz ...] --budget 120s
"""

from __future__ import annotations

import io
import lzma
import math
import time
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, machine
from fivefold import fit, load_data
from fivefold.apps.compress import compress_encoded, decompress_encoded
from fivefold.data import Data
from fivefold.files import write_json, write_text

MOST = 2000  # test images of a data set


def measure(data: Data, budget: str, name: str) -> dict[str, Any]:
    """Bits per dimension of everything, of at most `MOST` test images."""
    system = fit("idf", data, budget=budget, watch=_watch)
    batch = data.test.spread(MOST)
    start = time.perf_counter()
    made = compress_encoded(system, batch)
    middle = time.perf_counter()
    if not bool((decompress_encoded(system, made.data).x == batch.x).all()):
        raise RuntimeError(f"{name} did not come back")
    end = time.perf_counter()
    images = batch.x.numpy().astype(np.uint8)
    dims, raw = images.size, images.tobytes()
    sizes = {
        "idf, one file": len(made.data),
        "PNG, one file of all": len(_png(_tiles(images))),
        "PNG, a file each": sum(len(_png(image)) for image in np.moveaxis(images, 1, -1)),
        "zlib -9": len(zlib.compress(raw, 9)),
        "lzma, extreme": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {
        "data": name,
        "images": len(images),
        "shape": list(data.space.shape),
        "levels": data.space.levels,
        "parameters": sum(p.numel() for p in system.parameters()),
        "model_bits": -made.nats / dims / math.log(2),
        "header_bytes": made.header_bytes,
        "bytes": sizes,
        "bits": {codec: 8 * size / dims for codec, size in sizes.items()},
        "seconds": {"compress": middle - start, "decompress": end - middle},
    }


def _tiles(images: np.ndarray) -> np.ndarray:
    """All images side by side, near a square, `(H, W, C)`; places left over are 0."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    padded = np.concatenate([images, np.zeros((rows * columns - len(images), *images.shape[1:]), images.dtype)])
    _, channels, height, width = images.shape
    grid = padded.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    return grid.reshape(rows * height, columns * width, channels)


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG", optimize=True)
    return file.getvalue()


def table(rows: list[dict[str, Any]], budget: str) -> str:
    """The figures as Markdown."""
    codecs = list(rows[0]["bits"])
    lines = [
        f"Lossless compression of test images, in bits per dimension, header included, after {budget} of training",
        f"idf on each data set, on {machine()}. All files came back exactly. A model's weights are not counted.",
        "",
        "| data | images | idf, −log2 p | " + " | ".join(codecs) + " | above, without header | compress, decompress |",
        "|---" * (len(codecs) + 5) + "|",
    ]
    for row in rows:
        dims = row["images"] * math.prod(row["shape"])
        above = 8 * (row["bytes"]["idf, one file"] - row["header_bytes"]) / dims / row["model_bits"] - 1
        seconds = ", ".join(f"{row['seconds'][way]:.1f} s" for way in ("compress", "decompress"))
        lines.append(
            f"| {row['data']} | {row['images']:,} of {'x'.join(map(str, row['shape']))}, {row['levels']} levels "
            f"| {row['model_bits']:.3f} | "
            + " | ".join(f"{row['bits'][codec]:.3f}" for codec in codecs)
            + f" | {above:+.2%} | {seconds} |"
        )
    return "\n".join(lines) + "\n"


def _watch(event: dict[str, Any]) -> None:
    if "validation" in event:
        click.echo(f"  {event['progress']:4.0%} step {event['step']:,} {event['validation']:.3f} {event['name']}")


@click.command()
@click.argument("files", nargs=-1)
@click.option("--budget", default="120s", show_default=True)
def main(files: tuple[str, ...], budget: str) -> None:
    rows = []
    for source in ("digits", *files):
        if source != "digits" and not Path(source).exists():
            click.echo(f"skipped: {source} is not there")
            continue
        rows.append(measure(load_data(source), budget, Path(source).stem))
        click.echo(table(rows, budget))
    RESULTS.mkdir(exist_ok=True)
    write_text(RESULTS / "compression.md", table(rows, budget))
    write_json(RESULTS / "compression.json", {"machine": machine(), "budget": budget, "rows": rows})


if __name__ == "__main__":
    main()
