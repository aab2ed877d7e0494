"""A part of a system as a graph of operations, of any batch size where that can be left free."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

import fivefold
from fivefold.apps.lacking import GRADIENTS
from fivefold.apps.parts import Draw, Given, Part, Recorded, Tensors, part_of, symbolic_len
from fivefold.errors import RunError
from fivefold.system import System, seeded

BATCH = 16  # examples at once, where the number is not free
LARGEST = 2**20
MEMORY = 64  # where more would be taken in several parts, for memory, and their number cannot be free
SIZES = (11, 17)  # of batches by which it is told what follows their size; networks have no dimension of these
NAME = "batch"

Size = int | str  # of a dimension: fixed, "batch" or "2*batch"


class Stopped(Exception):
    """What stops an export, in words."""


class ByBatch(Stopped):
    """The batch's size cannot be left free."""


class Noise(NamedTuple):
    """Draws of one law and shape as one input, stacked in front where they are several."""

    law: str
    size: tuple[Size, ...]  # of one of them
    dtype: torch.dtype
    places: tuple[int, ...]  # in the order of drawing

    @property
    def shape(self) -> tuple[Size, ...]:
        return (len(self.places), *self.size) if len(self.places) > 1 else self.size


class Batches(NamedTuple):
    """Which sizes of a batch a graph takes, and why no others."""

    least: int
    most: int
    why: str = ""

    @property
    def free(self) -> bool:
        return self.least < self.most

    def describe(self) -> str:
        if self.most == LARGEST:
            return "any"
        return f"{self.least} to {self.most}" if self.free else f"{self.most}, fixed: {self.why}"


class Traced(NamedTuple):
    """A part as a graph.

    Args:
        part: what was traced.
        name: the part's.
        noise: what it draws, which are its last inputs.
        batches: how many examples at once.
        program: the graph.
        cases: inputs and what the run makes of them, to check a file on.
    """

    part: Part
    name: str
    noise: list[Noise]
    batches: Batches
    program: ExportedProgram
    cases: list[tuple[Tensors, Tensors]]

    @property
    def names(self) -> list[str]:
        """Of the inputs."""
        return [*self.part.inputs, *(f"noise_{i}" for i in range(len(self.noise)))]

    def case(self, n: int) -> tuple[Tensors, Tensors]:
        """Inputs for a batch of `n`, and what the run makes of them."""
        inputs, draws, outputs = _try(self.part, n)
        return (*inputs, *_stacked(draws, self.noise)), outputs

    def __str__(self) -> str:
        return f"{self.name} of {type(self.part.system).__name__}"


@torch.no_grad()
def trace(system: System, name: str, batch: int = BATCH) -> Traced:
    """A part of a system as a graph.

    Args:
        system: whose part; it is put in eval mode and its parameters take no gradients any more.
        name: of the part.
        batch: examples at once, where the number cannot be left free.

    Raises:
        Unfit, OptionError: as `part_of`.
        RunError: it cannot be traced; names the operation that stops it.
    """
    system.eval().requires_grad_(False)
    part, why = part_of(system, name), ""
    for least, most in ((1, LARGEST), (1, MEMORY), (batch, batch)):
        try:
            with stopping(system):
                return _traced(part, name, Batches(least, most, why))
        except ByBatch as stopped:
            why = str(stopped)
        except Stopped as stopped:
            why = str(stopped)
            break
    raise RunError(f"{name} of {type(system).__name__} cannot be exported: {why}")


def _traced(part: Part, name: str, batches: Batches) -> Traced:
    sizes = SIZES if batches.free else (batches.most,)
    tried = [_try(part, n) for n in sizes]
    noise = _grouped([draws for _, draws, _ in tried], sizes)
    module = _Exportable(part, noise, batches)
    cases = [((*inputs, *_stacked(draws, noise)), outputs) for inputs, draws, outputs in tried]
    traced = Traced(part, name, noise, batches, _program(module, cases[0][0], batches), cases)
    if batches.free:
        cases.append(traced.case(1))  # it was made from larger ones
    return traced


# --- noise ------------------------------------------------------------------------------------------


def _try(part: Part, n: int) -> tuple[Tensors, list[Draw], Tensors]:
    """Inputs for a batch of `n`, what is drawn on them, and what comes out."""
    inputs = part.make(n)
    with seeded(0), Recorded() as recorded:
        outputs = part.call(n, *inputs)
    return inputs, recorded.draws, outputs


def _grouped(draws: list[list[Draw]], sizes: Sequence[int]) -> list[Noise]:
    """The draws of batches of several sizes by law, type and shape, of which some follow the batch's size."""
    if len({len(each) for each in draws}) > 1:
        raise ByBatch("how often it draws depends on the batch's size")
    groups: dict[tuple[str, tuple[Size, ...], torch.dtype], list[int]] = {}
    for place, alike in enumerate(zip(*draws, strict=True)):
        size = tuple(_size(each, sizes) for each in zip(*(draw.value.shape for draw in alike), strict=True))
        groups.setdefault((alike[0].law, size, alike[0].value.dtype), []).append(place)
    return [Noise(law, size, dtype, tuple(places)) for (law, size, dtype), places in groups.items()]


def _size(found: tuple[int, ...], sizes: Sequence[int]) -> Size:
    if len(set(found)) == 1:
        return found[0]
    factor, left = divmod(found[0], sizes[0])
    if left or any(one != factor * n for one, n in zip(found, sizes, strict=True)):
        raise ByBatch("how much it draws is no multiple of the batch's size")
    return NAME if factor == 1 else f"{factor}*{NAME}"


def _factor(size: str) -> int:
    """How many times the batch's a size is."""
    return int(size.partition("*")[0]) if "*" in size else 1


def _stacked(draws: list[Draw], noise: list[Noise]) -> Tensors:
    """The inputs that hold these draws."""
    values = [[draws[place].value for place in group.places] for group in noise]
    return tuple(each[0] if len(each) == 1 else torch.stack(each) for each in values)


class _Exportable(nn.Module):
    """A part as a function of its inputs and of noise."""

    def __init__(self, part: Part, noise: list[Noise], batches: Batches) -> None:
        super().__init__()
        self.system, self.part, self.noise, self.batches = part.system, part, noise, batches
        self.order = sorted((place, i, j) for i, each in enumerate(noise) for j, place in enumerate(each.places))
        self.batched = [name not in part.single for name in part.inputs]

    def forward(self, *tensors: Tensor) -> Tensors:
        inputs, noise = tensors[: len(self.batched)], tensors[len(self.batched) :]
        given = [noise[i][j] if len(self.noise[i].places) > 1 else noise[i] for _, i, j in self.order]
        with Given(given):
            return self.part.call(self._batch(inputs, noise), *inputs)

    def _batch(self, inputs: Tensors, noise: Tensors) -> Any:
        """The batch's size, which may be free."""
        if not self.batches.free:
            return self.batches.most
        sizes = [x.shape[0] for x, batched in zip(inputs, self.batched, strict=True) if batched]
        sizes += [x.shape[each.shape.index(NAME)] for x, each in zip(noise, self.noise, strict=True)
                  if NAME in each.shape]  # fmt: skip
        if not sizes:
            raise ByBatch("nothing that goes in has the batch's size")
        return sizes[0]


# --- tracing ----------------------------------------------------------------------------------------

BY_GRADIENT = "fake tensor in the exported program constant"  # how torch.export says that it does not follow gradients


def _program(module: _Exportable, inputs: Tensors, batches: Batches) -> ExportedProgram:
    shapes = None
    if batches.free:
        batch = Dim(NAME, min=batches.least, max=batches.most)
        shapes = [{0: batch} if batched else None for batched in module.batched]
        for each in module.noise:
            free = {i: size for i, size in enumerate(each.shape) if isinstance(size, str)}
            shapes.append({i: batch if size == NAME else _factor(size) * batch for i, size in free.items()})
    with symbolic_len():
        try:
            program = torch.export.export(module, inputs, dynamic_shapes=shapes and (tuple(shapes),), strict=False)
        except RuntimeError as error:
            if BY_GRADIENT not in str(error):
                raise
            follow = make_fx(module.forward, GRADIENTS, tracing_mode="symbolic", _allow_non_fake_inputs=True)
            graph = follow(*inputs)
            program = torch.export.export(graph, inputs, dynamic_shapes=shapes and tuple(shapes), strict=False)
    for node in program.graph.nodes:
        dropout = node.target is torch.ops.aten.dropout.default and not node.args[2]  # of a network that is not trained
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not dropout:
            raise Stopped(f"it draws by {node.target}")
    return program


# --- what stops it ----------------------------------------------------------------------------------


@contextlib.contextmanager
def stopping(system: System) -> Iterator[None]:
    """What torch or ONNX raise as `Stopped`; what they print and log is left out."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (RunError, Stopped):
        raise
    except Exception as error:  # they have no common base
        raise _reason(error, inspect.getfile(type(system))) from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException, own: str) -> Stopped:
    """What is at the bottom of an error, and the line of a system (in the file `own`) that it came from."""
    causes = [error]
    while (below := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(below)
    text = str(causes[-1])
    if guards := re.findall(r"satisfy the generated guard (.*?)\.?$", text, re.MULTILINE):
        size = re.sub(r"L\['\w+'\]\[\d+\]\.size\(\)\[\d+\]", NAME, guards[0])
        return ByBatch(f"what is computed depends on the batch's size: {size}")
    by_value = "data-dependent" in text
    if not by_value and any(word in text for word in ("Constraints violated", "Expected op to be", "specialized")):
        return ByBatch(f"what is computed depends on the batch's size: {text.splitlines()[0]}")
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", "".join(map(str, causes))):
        return Stopped(f"ONNX has no {missing[1]}")
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(causes[-1]).__name__]
    root = str(Path(fivefold.__file__).parent)
    frames = [frame for one in causes for frame in traceback.extract_tb(one.__traceback__)]
    ours = [f for f in frames if f.filename == own or (f.filename.startswith(root) and "/apps/" not in f.filename)]
    where = f", at {Path(ours[-1].filename).name}:{ours[-1].lineno} `{ours[-1].line}`" if ours else ""
    first = re.split(r" \(unhinted|\. ", lines[0])[0].rstrip(".")
    return Stopped(f"{first}{where}")
