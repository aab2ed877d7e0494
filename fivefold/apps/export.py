"""A part of a trained system as a file that runs without this library, checked against the run.

Beside the file lies a JSON of what goes in and comes out. All that a part draws is an input too, so that what comes out
is a function of what goes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fivefold
from fivefold.apps.lacking import LACKING
from fivefold.apps.parts import Tensors
from fivefold.apps.tracing import BATCH, NAME, Size, Stopped, Traced, stopping, trace
from fivefold.errors import OptionError, RunError
from fivefold.files import replacing, write_json
from fivefold.run import Run

TOLERANCE = 1e-4  # of what comes out, relative where that exceeds 1
DISAGREE = 1e-3  # share of whole numbers that may differ: those on the edge between two

Runner = Callable[[Sequence[Tensor]], list[Tensor]]


class Exported(NamedTuple):
    """A file that was checked: what goes in and comes out, and what runs it."""

    interface: dict[str, Any]
    run: Runner


def export_file(
    directory: str | Path,
    part: str,
    to: str = "onnx",
    out: str | Path | None = None,
    *,
    batch: int = BATCH,
    force: bool = False,
    trust: str | None = None,
) -> str:
    """Export a part of a run; says in a few lines what was written, what goes in and comes out.

    Args:
        directory: of the run.
        part: "sample", "log_prob", "encode", "decode", or "step" of a diffusion's sampler.
        to: "onnx" (for ONNX Runtime and others) or "pt2" (`torch.export`).
        out: the file; None takes `RUN-PART.onnx` or `.pt2` beside the run's folder. Its JSON has the same stem.
        batch: examples at once, where the number cannot be left free.
        force: whether existing files may be replaced.
        trust: module of a system outside the package that may be imported.

    Raises:
        OptionError: no such part or format.
        Unfit: the system does not have the part.
        RunError: it cannot be exported (names the operation that stops it), the file gives something else than the
            run, or there is such a file.
    """
    if to not in FORMATS:
        raise OptionError(f"cannot export to {to!r}: choose one of {', '.join(FORMATS)}")
    system, folder = Run.open(directory, trust=trust).load_system(), Path(directory).resolve()
    path = Path(out) if out else folder.parent / f"{folder.name}-{part}.{to}"
    described = path.with_suffix(".json")
    if path.suffix != f".{to}":
        raise OptionError(f"a file of {to} ends in .{to}, got {path.name}")
    if not path.parent.is_dir():
        raise RunError(f"the folder {path.parent} does not exist: make it first")
    for existing in (path, described):
        if existing.exists() and not force:
            raise RunError(f"{existing} exists; choose another --out, or --force to replace it")
    traced = trace(system, part, batch)
    with replacing(path) as temporary:
        found = write(traced, to, temporary).interface
        write_json(described, found)
    lines = [
        f"{kind} {one['name']} {one['dtype']} ({', '.join(map(str, one['shape']))}): {one['what']}"
        for kind, several in (("in ", "inputs"), ("out", "outputs"))
        for one in found[several]
    ]
    first = f"wrote {path} and {described.name}; batch: {traced.batches.describe()}"
    return "\n".join([first, *lines, f"checked: {found['checked']}"])


@torch.no_grad()
def write(traced: Traced, to: str, path: Path) -> Exported:
    """Write a traced part to a file of the format "onnx" or "pt2", and check the file.

    Raises RunError where the format lacks an operation, or the file gives something else than the run.
    """
    part = traced.part
    try:
        with stopping(part.system):
            run = FORMATS[to](traced, path)
            error = max(_difference(run(inputs), outputs) for inputs, outputs in traced.cases)
    except Stopped as stopped:
        raise RunError(f"{traced} cannot be exported to {to}: {stopped}") from None
    interface = {
        "system": type(part.system).__name__,
        "part": traced.name,
        "format": to,
        "batch": traced.batches._asdict(),
        "inputs": _inputs(traced),
        "outputs": _described(part.outputs, traced.cases[0][1], traced),
        **part.facts,
        "space": part.system.data_space.to_json(),
        "checked": f"within {error:.1e} of the run on the same inputs, in {len(traced.cases)} batches",
        "versions": {"fivefold": fivefold.__version__, "torch": torch.__version__},
    }
    return Exported(interface, run)


def _to_pt2(traced: Traced, path: Path) -> Runner:
    with path.open("wb") as file:
        torch.export.save(traced.program, file)
    loaded = torch.export.load(str(path)).module()
    return lambda tensors: list(loaded(*tensors))


def _to_onnx(traced: Traced, path: Path) -> Runner:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"ONNX needs the library {error.name}: pip install 'fivefold[export]'") from error
    program = traced.program
    if LACKING.keys() & {node.target for node in program.graph.nodes}:
        program = program.run_decompositions(LACKING)
    made = torch.onnx.export(
        program, input_names=traced.names, output_names=list(traced.part.outputs), dynamo=True, verbose=False
    )
    assert made is not None
    made.save(str(path), external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {one.name for one in session.get_inputs()}

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: x.numpy() for name, x in zip(traced.names, tensors, strict=True) if name in used}
        return [torch.from_numpy(y) for y in session.run(None, feed)]

    return run


FORMATS: dict[str, Callable[[Traced, Path], Runner]] = {"onnx": _to_onnx, "pt2": _to_pt2}


def _difference(found: list[Tensor], wanted: Tensors) -> float:
    """The largest difference, relative where numbers exceed 1; `Stopped` where it is too large."""
    worst = 0.0
    for ours, theirs in zip(wanted, found, strict=True):
        if ours.shape != theirs.shape:
            raise Stopped(f"the file gives the shape {tuple(theirs.shape)}, the run {tuple(ours.shape)}")
        if not ours.is_floating_point():
            share = (ours != theirs).double().mean().item()
            if share > DISAGREE:
                raise Stopped(f"{share:.1%} of the file's whole numbers are not the run's")
            continue
        error = ((ours - theirs).abs() / ours.abs().clamp(min=1)).nan_to_num(math.inf)
        error[(ours == theirs) | (ours.isnan() & theirs.isnan())] = 0.0
        worst = max(worst, error.max().item())
    if worst > TOLERANCE:
        raise Stopped(f"the file is {worst:.1e} from the run, more than {TOLERANCE:g}")
    return worst


def _inputs(traced: Traced) -> list[dict[str, Any]]:
    """Of every input its name, shape, type and what it is."""
    part = traced.part
    given = _described(part.inputs, traced.cases[0][0][: len(part.inputs)], traced)
    for one in given:
        if one["name"] in part.single:
            one["shape"] = [1]
    names = traced.names[len(given) :]
    return given + [
        {"name": name, "shape": list(each.shape), "dtype": _type(each.dtype), "what": f"noise: {each.law}"}
        for name, each in zip(names, traced.noise, strict=True)
    ]


def _described(what: dict[str, str], tensors: Tensors, traced: Traced) -> list[dict[str, Any]]:
    """Of tensors whose first dimension is the batch name, shape, type and what they are."""
    first: Size = NAME if traced.batches.free else traced.batches.most
    return [
        {"name": name, "shape": [first, *x.shape[1:]], "dtype": _type(x.dtype), "what": text}
        for (name, text), x in zip(what.items(), tensors, strict=True)
    ]


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
