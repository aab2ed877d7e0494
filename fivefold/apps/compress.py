"""Lossless compression by a trained system: an entropy coder spends -log2 p bits on each whole number.

Any system that can say its examples as whole numbers, each with its law given those before (see `Coder`), can code.
To encode, the system runs exactly as it does to decode, but is handed the numbers in place of reading them: what the
laws are computed from, and in which batches, is the same at both ends. Floating-point networks differ in the last bit
with the size of a batch, the number of threads, the version of torch and the machine, and one bit is enough to lose
everything after it. So a file says its batch size and threads, which decoding takes over, and carries checksums: what
does not decode to what was encoded is refused.

A file is eight bytes that name the format, the length of the header, a checksum of what follows (32 bits each), the
header in JSON, and the coder's 32-bit words.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fivefold.data import load_examples
from fivefold.data.writers import check_suffix, save_examples
from fivefold.errors import DataError, RunError, Unfit
from fivefold.files import replacing
from fivefold.machine import using
from fivefold.run import Run
from fivefold.space import Batch, Space
from fivefold.system import System
from fivefold.tools.laws import Draw, Law

MAGIC = b"5fold\x00c1"
SUFFIXES = (".npz", ".csv", ".parquet")  # that hold examples exactly as they are
DEEPEST = 52  # halvings of the whole numbers: float64 has no more


@runtime_checkable
class Coder(Protocol):
    """What a system must be able to do: its examples are whole numbers, drawn one lot after another by their laws."""

    def code(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        """The whole numbers of encoded examples, in the order in which `generate` asks for them."""

    def generate(self, n: int, condition: Tensor | None, draw: Draw) -> Tensor:
        """Encoded examples of the whole numbers that `draw` gives, each lot with its law given those before."""


class CompressionError(RunError):
    """A compressed file cannot be read: says why, and what to do."""


class Compressed(NamedTuple):
    """A compressed file's bytes, how many of them are header, and the model's own ln p summed over the examples."""

    data: bytes
    header_bytes: int
    nats: float


def compress(system: System, data: Any, condition: Any = None, *, batch_size: int = 100) -> Compressed:
    """Examples as bytes from which `decompress` makes them again, exactly.

    Args:
        system: trained; one that can code (see `Coder`).
        data: examples in the user's own form.
        condition: in a conditional space, one condition for all or one for each; the file keeps them too.
        batch_size: examples at a time, at both ends.

    Raises:
        Unfit: the system cannot code.
        DataError: the examples do not fit.
    """
    x = system.data_space.encode(data)
    return compress_encoded(system, Batch(x, system._encode_condition(condition, len(x))), batch_size=batch_size)


def compress_encoded(system: System, batch: Batch, *, batch_size: int = 100) -> Compressed:
    """As `compress`, of encoded examples."""
    coder = _coder(system)
    encoder, threads = _Encoder(), torch.get_num_threads()
    with system.evaluating():
        for first in range(0, len(batch.x), batch_size):
            part = batch.x[first : first + batch_size].to(system.device)
            condition = None if batch.condition is None else batch.condition[first : first + batch_size]
            condition = None if condition is None else condition.to(system.device)
            encoder.waiting = iter(coder.code(part, condition))
            again = coder.generate(len(part), condition, encoder)
            if not torch.equal(again, part):
                raise CompressionError(f"{type(system).__name__} does not come back from its own code: report it")
    words = encoder.words()
    header = {
        "model": _fingerprint(system),
        "count": len(batch.x),
        "batch": batch_size,
        "threads": threads,
        "torch": torch.__version__,
        "examples": _checksum(batch.x),
        **({} if batch.condition is None else {"condition": _pack(batch.condition)}),
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    head = MAGIC + struct.pack("<II", len(text), zlib.crc32(text + words)) + text
    return Compressed(head + words, len(head), encoder.nats)


def decompress(system: System, data: bytes) -> Any:
    """The examples of `compress`, in the user's own form.

    Raises:
        CompressionError: the bytes are damaged or not of `compress`, of another model, or do not decode here.
    """
    return system.data_space.decode(decompress_encoded(system, data).x)


def decompress_encoded(system: System, data: bytes) -> Batch:
    """As `decompress`, encoded."""
    coder, (header, words) = _coder(system), _read(data)
    if header["model"] != _fingerprint(system):
        raise CompressionError("this was compressed by another model: give the run that compressed it")
    condition = _unpack(header["condition"], system) if "condition" in header else None
    decoder, parts = _Decoder(words), []
    with system.evaluating(), using(header["threads"]), contextlib.suppress(_Lost):
        for first in range(0, header["count"], header["batch"]):
            n = min(header["batch"], header["count"] - first)
            given = None if condition is None else condition[first : first + n].to(system.device)
            parts.append(coder.generate(n, given, decoder).cpu())
    x = torch.cat(parts) if parts else torch.empty(0)
    if _checksum(x) != header["examples"]:
        raise CompressionError(
            f"this decodes to something else than was compressed: the model's numbers differ between machines, "
            f"devices or versions of torch (it was compressed with {header['torch']}, this is {torch.__version__}); "
            "decompress where it was compressed"
        )
    return Batch(x, condition)


# --- files --------------------------------------------------------------------------------------------


def compress_file(
    directory: str | Path, source: str, out: str | Path, *, batch_size: int = 100, trust: str | None = None
) -> str:
    """Compress the examples of a source by a run into a file; says in a line how small they became.

    Args:
        directory: of the run.
        source: as `load_data` takes; all of its examples, in their order.
        out: file, replaced where it exists when the new one is whole.
        batch_size: examples at a time, at both ends.
        trust: module of a system outside the package that may be imported.

    Raises:
        Unfit: the system cannot code.
        DataError, RunError: the data or the run cannot be read.
    """
    out, run = _in_a_folder(out), Run.open(directory, trust=trust)
    system = run.load_system()
    _coder(system)
    split = load_examples(source, system.data_space, **{**run.record["data"]["arguments"], "test": None})
    space, x = system.data_space, split.batch(slice(None)).x
    _check_whole(space, x, source)
    made = compress_encoded(system, split.batch(slice(None)), batch_size=batch_size)
    with replacing(out) as path:
        path.write_bytes(made.data)
    units = float(space.units(x).sum())
    size, model = 8 * len(made.data) / units, -made.nats / units / math.log(2)
    return (
        f"compressed {len(split):,} examples of {source} to {len(made.data):,} bytes, {size:.4g} bits per {space.unit} "
        f"({made.header_bytes:,} bytes are the header; the model's own are {model:.4g}); wrote {out}"
    )


def decompress_file(directory: str | Path, file: str | Path, out: str | Path, *, trust: str | None = None) -> str:
    """Write the examples of a compressed file; says in a line what was written.

    Args:
        directory: of the run that compressed it.
        file: that `compress_file` wrote.
        out: file to write, by its suffix one that holds examples exactly: .npz, .csv or .parquet.
        trust: module of a system outside the package that may be imported.

    Raises:
        CompressionError: the file is damaged or foreign, of another model, or does not decode here.
        DataError, RunError: `out` cannot hold the examples, or the run cannot be read.
    """
    out, run = _in_a_folder(out), Run.open(directory, trust=trust)
    system = run.load_system()
    if out.suffix.lower() not in SUFFIXES:
        raise DataError(f"{out.name!r} cannot hold examples exactly: choose a suffix of {', '.join(SUFFIXES)}")
    check_suffix(out, system.data_space)
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise CompressionError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        examples = decompress(system, data)
    except CompressionError as error:
        raise CompressionError(f"{file}: {error}") from error
    save_examples(out, system.data_space, examples)
    return f"decompressed {len(examples):,} examples; wrote {out}"


def _check_whole(space: Space, x: Tensor, source: str) -> None:
    """DataError where windows of bytes or tokens cut a character, which would not come back as text."""
    try:
        for row in x.tolist() if space.vocabulary is not None else ():
            space.vocabulary.joined(row).decode()  # type: ignore[union-attr]
    except UnicodeDecodeError as error:
        raise DataError(
            f"a window of {source} begins or ends within a character and would not come back as text; "
            "train with --vocabulary characters"
        ) from error


def _in_a_folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"the folder {path.parent} does not exist: make it first")
    return path


# --- the coder ----------------------------------------------------------------------------------------


class _Encoder:
    """A `Draw` that hands out what `waiting` holds, and writes it.

    A whole number is told by halving: first whether it lies below the law's centre, then in which half of what is
    left, each a decision with the probability that the law gives it. How far the halving reaches is written first.
    """

    def __init__(self) -> None:
        self.stream = _stream()
        self.coder = self.stream.queue.RangeEncoder()
        self.waiting: Iterator[Tensor] = iter(())
        self.nats = 0.0

    def __call__(self, law: Law) -> Tensor:
        z = next(self.waiting)
        self.nats += law.log_prob(z).double().sum().item()
        offset = z.double() - law.centre
        farthest = torch.maximum(offset, -1 - offset).max().item() if offset.numel() else 0.0
        depth = max(int(farthest), 0).bit_length()
        if depth > DEEPEST:
            raise CompressionError(f"a whole number of {farthest:.3g} is too far from its law to be coded")
        self.coder.encode(depth, self.stream.model.Uniform(DEEPEST + 1))
        halving = _Halving(law, depth)
        while not halving.done:
            upper = offset >= halving.middle
            symbols = upper.flatten().cpu().numpy().astype(np.int32)
            self.coder.encode(symbols, self.stream.model.Bernoulli(perfect=False), halving.probability())
            halving.choose(upper)
        return z

    def words(self) -> bytes:
        return self.coder.get_compressed().astype("<u4").tobytes()


class _Decoder:
    """A `Draw` that reads what `_Encoder` wrote."""

    def __init__(self, words: bytes) -> None:
        self.stream = _stream()
        self.coder = self.stream.queue.RangeDecoder(np.frombuffer(words, "<u4").astype(np.uint32))

    def __call__(self, law: Law) -> Tensor:
        halving = _Halving(law, int(self._next(self.stream.model.Uniform(DEEPEST + 1))))
        while not halving.done:
            symbols = self._next(self.stream.model.Bernoulli(perfect=False), halving.probability())
            upper = torch.from_numpy(np.asarray(symbols) != 0).view_as(halving.low)
            halving.choose(upper.to(halving.low.device))
        return halving.low + law.centre

    def _next(self, *model: Any) -> Any:
        try:
            return self.coder.decode(*model)
        except AssertionError as error:  # how constriction says that no encoder with these laws wrote the words
            raise _Lost from error


class _Lost(Exception):
    """The words are not of the laws that they are read with."""


class _Halving:
    """Intervals [low, low + width) of offsets from a law's centre, halved until one whole number is left.

    At first [-2^depth, 2^depth); its ends have the tails, so that no probability is left out.
    """

    def __init__(self, law: Law, depth: int) -> None:
        self.law, self.centre, self.reach = law, law.centre, 2.0**depth
        self.low, self.width = torch.full_like(self.centre, -self.reach), 2 * self.reach

    @property
    def done(self) -> bool:
        return self.width <= 1

    @property
    def middle(self) -> Tensor:
        return self.low + self.width / 2

    def probability(self) -> np.ndarray:
        """Of the upper half, flattened; 1/2 where the law gives neither half any."""
        high = self.low + self.width
        first = torch.where(self.low == -self.reach, -torch.inf, self.low + self.centre)
        last = torch.where(high == self.reach, torch.inf, high + self.centre)
        middle = self.middle + self.centre
        lower, upper = self.law.mass(first, middle), self.law.mass(middle, last)
        p = (upper / (lower + upper)).nan_to_num(0.5).clamp(0, 1)
        return p.double().flatten().cpu().numpy()

    def choose(self, upper: Tensor) -> None:
        self.low = torch.where(upper, self.middle, self.low)
        self.width /= 2


def _stream() -> Any:
    try:
        from constriction import stream
    except ImportError as error:
        raise RunError("compression needs the library 'constriction': pip install 'fivefold[compression]'") from error
    return stream


# --- the header ---------------------------------------------------------------------------------------


def _coder(system: System) -> Coder:
    if not isinstance(system, Coder):
        raise Unfit(
            f"{type(system).__name__} cannot compress: it does not say its examples as whole numbers with their laws. "
            "idf and discrete-flow do"
        )
    if made := system.data_space.made:
        names = ", ".join(one.name for one in made)
        raise Unfit(f"{names} would not come back: the model leaves out what tells rows apart; drop it (--columns)")
    if system.lift is not None:
        raise Unfit("this table has columns that are more to the model than a level each (dates, missing numbers, ...)")
    return system


def _read(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the words."""
    start = len(MAGIC) + 8
    if not data.startswith(MAGIC):
        raise CompressionError("not a file that fivefold compress wrote (its first bytes are others)")
    if len(data) < start or zlib.crc32(data[start:]) != struct.unpack("<I", data[start - 4 : start])[0]:
        raise CompressionError("truncated or changed since it was written: compress the data again")
    end = start + struct.unpack("<I", data[len(MAGIC) : start - 4])[0]
    return json.loads(data[start:end]), data[end:]


def _fingerprint(system: System) -> str:
    """Of a model's weights and what its examples are: 16 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(system.data_space.to_json(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(system.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _checksum(x: Tensor) -> int:
    return zlib.crc32(x.long().contiguous().numpy().tobytes())


def _pack(condition: Tensor) -> str:
    values = condition.float().cpu().contiguous().numpy().astype("<f4")
    return base64.b85encode(zlib.compress(values.tobytes(), 9)).decode()


def _unpack(text: str, system: System) -> Tensor:
    assert system.data_space.condition is not None
    values = np.frombuffer(zlib.decompress(base64.b85decode(text)), "<f4").copy()
    return torch.from_numpy(values).view(-1, *system.data_space.condition.shape)
