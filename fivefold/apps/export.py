"""A part of a trained system as a file that runs without this library, checked against the run.

Beside the file lies a JSON of what goes in and comes out. All that a part draws is an input too, so that what comes out
is a function of what goes in.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fivefold
from fivefold.apps.parts import Draw, Given, Part, Recorded, Tensors, part_of, symbolic_len
from fivefold.errors import OptionError, RunError
from fivefold.files import replacing, write_json
from fivefold.run import Run
from fivefold.system import System, seeded

TOLERANCE = 1e-4  # of what comes out, relative where that exceeds 1
DISAGREE = 1e-3  # share of whole numbers that may differ: those on the edge between two
BATCH = 16  # where the batch's size is not free
LARGEST = 2**20
MEMORY = 64  # where more would be taken in several parts, for memory, and their number cannot be free
SIZES = (3, 5)  # of batches by which it is told which sizes follow the batch's
BATCH_NAME = "batch"

Size = int | str  # of a dimension: fixed, "batch" or "2*batch"
Runner = Callable[[Sequence[Tensor]], list[Tensor]]


class Noise(NamedTuple):
    """Draws of one law and shape, as one input: stacked in front where they are several."""

    law: str
    shape: tuple[Size, ...]
    dtype: torch.dtype
    places: tuple[int, ...]  # in the order of drawing

    @property
    def stacked(self) -> tuple[Size, ...]:
        """The input's shape."""
        return (len(self.places), *self.shape) if len(self.places) > 1 else self.shape


class Exported(NamedTuple):
    """What was exported, and how far it is from the run."""

    interface: dict[str, Any]
    runner: Runner
    inputs: Tensors  # on which it was checked
    module: nn.Module  # that was exported, which gives the same of the same inputs


def export_file(
    directory: str | Path,
    part: str,
    to: str,
    out: str | Path | None = None,
    *,
    batch: int = BATCH,
    force: bool = False,
    trust: str | None = None,
) -> str:
    """Export a part of a run; says in a few lines what was written and how far it is from the run.

    Args:
        directory: of the run.
        part: "sample", "log_prob", "encode", "decode", or "step" of a diffusion's sampler.
        to: "onnx" (for ONNX Runtime and others) or "pt2" (`torch.export`).
        out: the file; None takes `RUN-PART.onnx` or `.pt2` beside the run's folder. Its JSON has the same stem.
        batch: examples at once, where the number cannot be left free.
        force: whether existing files may be replaced.
        trust: module of a system outside the package that may be imported.

    Raises:
        Unfit: the system does not have the part.
        RunError: it cannot be exported (names the operation that stops it), the file gives something else than the
            run, or there is such a file.
    """
    if to not in FORMATS:
        raise OptionError(f"cannot export to {to!r}: choose one of {', '.join(FORMATS)}")
    system = Run.open(directory, trust=trust).load_system()
    folder = Path(directory).resolve()
    path = Path(out) if out else folder.parent / f"{folder.name}-{part}.{to}"
    described = path.with_suffix(".json")
    if path.suffix != f".{to}":
        raise OptionError(f"the file of --to {to} ends in .{to}, got {path.name}")
    if not path.parent.is_dir():
        raise RunError(f"the folder {path.parent} does not exist: make it first")
    for existing in (path, described):
        if existing.exists() and not force:
            raise RunError(f"{existing} exists; choose another --out, or --force to replace it")
    with replacing(path) as temporary:
        found = export(system, part, to, temporary, batch=batch).interface
        write_json(described, found)
    most, least = found["batch"]["most"], found["batch"]["least"]
    sizes = "any" if most == LARGEST else f"{least} to {most}" if least < most else f"{most}: {found['batch']['why']}"
    lines = [
        f"{kind} {one['name']} {one['dtype']} {tuple(one['shape'])}: {one['what']}"
        for kind, plural in (("in ", "inputs"), ("out", "outputs"))
        for one in found[plural]
    ]
    return "\n".join([f"wrote {path} and {described.name}; batch: {sizes}", *lines, found["checked"]])


def export(system: System, part: str, to: str, path: Path, *, batch: int = BATCH) -> Exported:
    """Export a part of a system to a file of the format, and check the file; see `export_file`."""
    if to not in FORMATS:
        raise OptionError(f"cannot export to {to!r}: choose one of {', '.join(FORMATS)}")
    system.eval().requires_grad_(False)
    with torch.no_grad():
        chosen, why = part_of(system, part), ""
        for batches in (Batches(1, LARGEST), Batches(1, MEMORY), Batches(batch, batch)):
            try:
                return _export(chosen, part, to, path, batches, why)
            except _Stopped as stopped:
                why = str(stopped)
    raise RunError(f"{part} of {type(system).__name__} cannot be exported to {to}: {why}")


class Batches(NamedTuple):
    """Which sizes of a batch a file takes."""

    least: int
    most: int

    @property
    def free(self) -> bool:
        return self.least < self.most

    def tried(self) -> tuple[int, ...]:
        """Sizes from which it is told what follows the batch's."""
        return SIZES if self.free else (self.most,)


class _Stopped(Exception):
    """What stops an export, in words."""


def _export(part: Part, name: str, to: str, path: Path, batches: Batches, why: str) -> Exported:
    sizes = batches.tried()
    tried = [_try(part, n) for n in sizes]
    noise = _grouped([draws for _, draws, _ in tried], sizes)
    module = _Exportable(part, noise)
    names = [*part.inputs, *(f"noise_{i}" for i in range(len(noise)))]
    cases = [((*inputs, *_stacked(draws, noise)), outputs) for inputs, draws, outputs in tried]
    with _stopping(part.system):
        program = _program(module, cases[0][0], batches)
        runner = FORMATS[to](program, path, names, list(part.outputs))
        if batches.free:  # another than those it was made from
            one = (*part.make(1), *(_middle(each, 1) for each in noise))
            cases.append((one, module(*one)))
        error = max(_difference(runner(inputs), outputs) for inputs, outputs in cases)
    inputs, outputs = cases[0]
    interface = {
        "system": type(part.system).__name__,
        "part": name,
        "format": to,
        "batch": {"least": batches.least, "most": batches.most, **({"why": why} if why else {})},
        "inputs": _inputs(part, noise, inputs, batches),
        "outputs": _described(part.outputs, outputs, batches),
        **part.facts,
        "space": part.system.data_space.to_json(),
        "checked": f"within {error:.1e} of the run on the same inputs, in {len(cases)} batches",
        "versions": {"fivefold": fivefold.__version__, "torch": torch.__version__},
    }
    return Exported(interface, runner, inputs, module)


# --- noise ------------------------------------------------------------------------------------------


def _try(part: Part, n: int) -> tuple[Tensors, list[Draw], Tensors]:
    """Inputs for a batch of `n`, what is drawn on them, and what comes out."""
    inputs = part.make(n)
    with seeded(0), Recorded() as recorded:
        outputs = part.call(n, *inputs)
    return inputs, recorded.draws, outputs


def _grouped(draws: list[list[Draw]], sizes: Sequence[int]) -> list[Noise]:
    """The draws of batches of several sizes by law, type and shape, whose sizes may follow the batch's."""
    if len({len(each) for each in draws}) > 1:
        raise _Stopped("how often it draws depends on the batch's size")
    groups: dict[tuple[str, tuple[Size, ...], torch.dtype], list[int]] = {}
    for place, alike in enumerate(zip(*draws, strict=True)):
        shape = tuple(_size(each, sizes) for each in zip(*(draw.value.shape for draw in alike), strict=True))
        groups.setdefault((alike[0].law, shape, alike[0].value.dtype), []).append(place)
    return [Noise(law, shape, dtype, tuple(places)) for (law, shape, dtype), places in groups.items()]


def _size(found: tuple[int, ...], sizes: Sequence[int]) -> Size:
    if len(set(found)) == 1:
        return found[0]
    factor, left = divmod(found[0], sizes[0])
    if left or any(one != factor * n for one, n in zip(found, sizes, strict=True)):
        raise _Stopped("how much it draws is no multiple of the batch's size")
    return BATCH_NAME if factor == 1 else f"{factor}*{BATCH_NAME}"


def _stacked(draws: list[Draw], noise: list[Noise]) -> Tensors:
    """The inputs that hold these draws."""
    values = [[draws[place].value for place in group.places] for group in noise]
    return tuple(each[0] if len(each) == 1 else torch.stack(each) for each in values)


def _times(size: Size, n: int) -> int:
    """A size in a batch of `n`."""
    return size if isinstance(size, int) else n * int(size.partition("*")[0] if "*" in size else 1)


def _middle(noise: Noise, n: int) -> Tensor:
    """One in the middle of the law, for a batch of `n`."""
    value = 0 if noise.law.startswith(("integers", "standard normal")) else 0.5
    return torch.full([_times(size, n) for size in noise.stacked], value, dtype=noise.dtype)


class _Exportable(nn.Module):
    """A part as a function of its inputs and of noise."""

    def __init__(self, part: Part, noise: list[Noise]) -> None:
        super().__init__()
        self.system, self.part, self.noise = part.system, part, noise
        self.order = sorted((place, i, j) for i, each in enumerate(noise) for j, place in enumerate(each.places))
        self.batched = [name not in part.single for name in part.inputs]

    def forward(self, *tensors: Tensor) -> Tensors:
        inputs, noise = tensors[: len(self.batched)], tensors[len(self.batched) :]
        given = [noise[i][j] if len(self.noise[i].places) > 1 else noise[i] for _, i, j in self.order]
        with Given(given):
            return self.part.call(self._batch(inputs, noise), *inputs)

    def _batch(self, inputs: Tensors, noise: Tensors) -> Any:
        """The batch's size, which may be free."""
        for x, batched in zip(inputs, self.batched, strict=True):
            if batched:
                return x.shape[0]
        for x, each in zip(noise, self.noise, strict=True):
            if BATCH_NAME in each.stacked:
                return x.shape[each.stacked.index(BATCH_NAME)]
        return BATCH


# --- tracing and writing ----------------------------------------------------------------------------


def _program(module: _Exportable, inputs: Tensors, batches: Batches) -> torch.export.ExportedProgram:
    """The traced part; each size is fixed, or follows the batch's where that is free."""
    shapes = None
    if batches.free:
        batch = torch.export.Dim(BATCH_NAME, min=batches.least, max=batches.most)
        shapes = [{0: batch} if batched else None for batched in module.batched]
        for each in module.noise:
            free = {i: size for i, size in enumerate(each.stacked) if isinstance(size, str)}
            shapes.append({i: batch if size == BATCH_NAME else _times(size, 1) * batch for i, size in free.items()})
    with symbolic_len():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes and (tuple(shapes),), strict=False)
    for node in program.graph.nodes:
        dropout = node.target is torch.ops.aten.dropout.default and not node.args[2]  # of a network that is not trained
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not dropout:
            raise _Stopped(f"it draws by {node.target}")
    return program


def _to_pt2(program: torch.export.ExportedProgram, path: Path, inputs: list[str], outputs: list[str]) -> Runner:
    with path.open("wb") as file:
        torch.export.save(program, file)
    loaded = torch.export.load(str(path)).module()
    return lambda tensors: list(loaded(*tensors))


def _to_onnx(program: torch.export.ExportedProgram, path: Path, inputs: list[str], outputs: list[str]) -> Runner:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"ONNX needs the library {error.name!r}: pip install 'fivefold[export]'") from error
    made = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    assert made is not None
    made.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {one.name for one in session.get_inputs()}

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(inputs, tensors, strict=True) if name in used}
        return [torch.from_numpy(y) for y in session.run(None, feed)]

    return run


FORMATS: dict[str, Callable[[torch.export.ExportedProgram, Path, list[str], list[str]], Runner]] = {
    "onnx": _to_onnx, "pt2": _to_pt2,
}  # fmt: skip


@contextmanager
def _stopping(system: System) -> Iterator[None]:
    """What torch or ONNX raise as `_Stopped`; what they print and log is left out."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except (RunError, _Stopped):
        raise
    except Exception as error:  # they have no common base
        raise _Stopped(_reason(error, inspect.getfile(type(system)))) from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException, own: str) -> str:
    """What is at the bottom of an error in a line, and the line of a system (in the file `own`) that it came from."""
    causes = [error]
    while (below := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(below)
    text = str(causes[-1])
    if guard := re.search(r"satisfy the generated guard (.*?)\.?$", text, re.MULTILINE):
        return f"what is computed depends on the batch's size: {guard[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(causes[-1]).__name__]
    root = Path(fivefold.__file__).parent
    frames = [frame for one in causes for frame in traceback.extract_tb(one.__traceback__)]
    ours = [f for f in frames if f.filename == own or (f.filename.startswith(str(root)) and "apps" not in f.filename)]
    where = f", at {Path(ours[-1].filename).name}:{ours[-1].lineno} `{ours[-1].line}`" if ours else ""
    return f"{lines[0].partition(' (unhinted')[0]}{where}"


# --- checking and describing ------------------------------------------------------------------------


def _difference(found: list[Tensor], wanted: Tensors) -> float:
    """The largest difference, relative where numbers exceed 1; `_Stopped` where it is too large."""
    worst = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.shape != theirs.shape:
            raise _Stopped(f"the file gives the shape {tuple(theirs.shape)}, the run {tuple(ours.shape)}")
        if not ours.is_floating_point():
            share = (ours != theirs).double().mean().item()
            if share > DISAGREE:
                raise _Stopped(f"{share:.1%} of the file's whole numbers are not the run's")
            continue
        error = ((ours - theirs).abs() / ours.abs().clamp(min=1)).nan_to_num(math.inf)
        error[(ours == theirs) | (ours.isnan() & theirs.isnan())] = 0.0
        worst = max(worst, error.max().item())
    if worst > TOLERANCE:
        raise _Stopped(f"the file is {worst:.1e} from the run, more than {TOLERANCE:g}")
    return worst


def _inputs(part: Part, noise: list[Noise], inputs: Tensors, batches: Batches) -> list[dict[str, Any]]:
    """Of every input its name, shape, type and what it is."""
    given = _described(part.inputs, inputs[: len(part.inputs)], batches)
    for one in given:
        if one["name"] in part.single:
            one["shape"] = [1]
    drawn = [
        {"name": f"noise_{i}", "shape": list(each.stacked), "dtype": _type(each.dtype), "what": f"noise: {each.law}"}
        for i, each in enumerate(noise)
    ]
    return given + drawn


def _described(what: dict[str, str], tensors: Tensors, batches: Batches) -> list[dict[str, Any]]:
    """Of tensors whose first dimension is the batch name, shape, type and what they are."""
    first = BATCH_NAME if batches.free else batches.most
    return [
        {"name": name, "shape": [first, *x.shape[1:]], "dtype": _type(x.dtype), "what": text}
        for (name, text), x in zip(what.items(), tensors, strict=True)
    ]


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
